"""What the ops of one run share: the zone, its cgroup, and what zsched gave birth to."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from zonemgr.store.paths import Layout

if TYPE_CHECKING:
    from zonemgr.linux.cgroup import ZoneCgroup

TTY_GID = 5  # the group tty, in every distribution


@dataclass(frozen=True, slots=True)
class Born:
    """The namespaces and process 1 that zsched made.  The descriptors belong to the stage."""

    init_pid: int
    m0_fd: int
    net_fd: int
    user_fd: int


@dataclass
class Stage:
    """The shared state of a run.  ``start_zsched`` and ``keep_console`` are the supervisor's: the platform does
    not know it.
    """

    layout: Layout
    zonename: str
    root: str  # the zone's root on the host, for messages
    uid_base: int
    privileged: bool
    cgroup: ZoneCgroup
    start_zsched: Callable[[str], Born]  # host name of the zone -> what was born
    keep_console: Callable[[int, int], None]  # master, slave
    seal: Callable[[], None]
    say: Callable[[str], None]
    shifted: bool = False  # the root's ids on disk are the zone's: it is mounted without a map
    root_fd: int = -1
    _born: Born | None = None
    applied_limits: list[tuple[str, object, object]] = field(default_factory=list)

    @property
    def born(self) -> Born:
        """What zsched made; an op that needs it before it exists is a bug of the plan."""
        assert self._born is not None
        return self._born

    def set_born(self, born: Born) -> None:
        self._born = born

    @property
    def has_born(self) -> bool:
        return self._born is not None

    def close(self) -> None:
        """Close what the run has opened."""
        if self._born is not None:
            for descriptor in (self._born.m0_fd, self._born.net_fd, self._born.user_fd):
                os.close(descriptor)
            self._born = None
        if self.root_fd >= 0:
            os.close(self.root_fd)
            self.root_fd = -1
