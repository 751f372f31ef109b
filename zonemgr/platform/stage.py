"""What the ops of one run share: the zone, its cgroup, and what zsched gave birth to."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from zonemgr.errors import PlatformError
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


@dataclass(frozen=True, slots=True)
class AppliedLimit:
    """A limit as the configuration has it (None: a default), as the kernel holds it, and why it does not if so."""

    name: str
    configured: Any
    effective: Any
    problem: str = ""

    def to_json(self) -> dict[str, Any]:
        table = {"name": self.name, "configured": self.configured, "effective": self.effective}
        return {**table, "problem": self.problem} if self.problem else table


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
    start_zsched: Callable[[str], Callable[[], Born]]  # host name of the zone -> what waits for the birth
    keep_console: Callable[[int, int], None]  # master, slave
    seal: Callable[[], None]
    say: Callable[[str], None]
    shifted: bool = False  # the root's ids on disk are the zone's: it is mounted without a map
    root_fd: int = -1
    notify_fd: int = -1  # the socket that init notifies, until it is taken
    sealed: bool = False  # M0 holds nothing of the host's tree any more
    lazily: bool = False  # a mount that is in use is detached all the same
    sealed_only: bool = False  # there is no M0: a mount made now would be the zone's to loosen
    _born: Born | None = None
    _birth: Callable[[], Born] | None = None  # waits for a birth that is under way
    limits: dict[str, AppliedLimit] = field(default_factory=dict)
    rlimits: dict[str, str] = field(default_factory=dict)  # name -> "soft:hard"
    oom_score_adj: int | None = None
    scheduling_class: str = ""

    @property
    def born(self) -> Born:
        """What zsched made, waited for by the first op that needs it; before its start that is a bug of the plan.

        PlatformError when the birth failed.
        """
        if self._born is None:
            assert self._birth is not None
            birth, self._birth = self._birth, None
            self._born = birth()
        return self._born

    def applied(self, limit: AppliedLimit) -> None:
        """Note what became of a limit, for the zone's record; a later one of the same name replaces it."""
        self.limits[limit.name] = limit

    def expect(self, birth: Callable[[], Born]) -> None:
        """zsched has been started, and makes what ``birth`` waits for."""
        self._birth = birth

    def set_born(self, born: Born) -> None:
        self._born = born

    @property
    def has_born(self) -> bool:
        return self._born is not None

    def take_notify(self) -> tuple[int, ...]:
        """The socket that init notifies is the caller's from now on; empty when there is none."""
        taken, self.notify_fd = self.notify_fd, -1
        return (taken,) if taken >= 0 else ()

    def close(self) -> None:
        """Close what the run has opened, when nothing of it is under way any more."""
        if self._birth is not None:
            with suppress(PlatformError):
                _ = self.born
        if self._born is not None:
            for descriptor in (self._born.m0_fd, self._born.net_fd, self._born.user_fd):
                os.close(descriptor)
            self._born = None
        for descriptor in self.take_notify():
            os.close(descriptor)
        if self.root_fd >= 0:
            os.close(self.root_fd)
            self.root_fd = -1
