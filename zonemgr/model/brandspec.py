"""What a brand declares, as data (the reference's config.xml and platform.xml, sections 9.3 and 9.4).

Paths may hold ``{zonepath}`` (the zone's directory on the host), ``{root}`` (its root on the host),
``{zonename}`` and ``{data}`` (the brand's own folder); nothing else is substituted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol


@dataclass(frozen=True, slots=True)
class PlatformMount:
    """One mount the brand needs.

    ``type`` is ``bind`` (special is a host path) or a kernel file-system type (``tmpfs``).  ``directory`` is absolute
    inside the zone.  ``optional`` mounts are left out when the host has no such ``special``.
    ``kind`` says what is mounted: ``dir`` or ``file``.
    """

    special: str
    directory: str
    type: str = "bind"
    options: tuple[str, ...] = ()
    optional: bool = False
    kind: str = "dir"


@dataclass(frozen=True, slots=True)
class DeviceRule:
    """A device of the host's /dev that appears in the zone's (``match`` is a path below /dev, or a shell pattern).

    ``name`` is what the zone sees it as, when that differs (``match`` is then one device).  ``ip_type`` limits the
    rule to zones of one ip-type.  An ``optional`` device is left out when the host has none.
    """

    match: str
    optional: bool = False
    name: str = ""
    ip_type: str = ""


@dataclass(frozen=True, slots=True)
class DeviceLink:
    """A symbolic link below the zone's /dev."""

    path: str
    target: str


@dataclass(frozen=True, slots=True)
class InitProgram:
    """What process 1 of a zone becomes when it boots.  All paths and ids are the zone's own.

    ``path`` without a slash is looked for in the PATH of ``environment``.  ``terminal``: the console is the program's
    controlling terminal; an init that starts terminals for others wants it free, as the kernel gives it.
    ``reaped``: the program is no init, so it becomes the child of a minimal process 1 that reaps orphans, passes
    signals on and ends when the program ends, with its status; ``folder``, ``uid``, ``gid`` and ``groups`` are for
    such a program.
    ``shutdown_signal`` is sent to process 1 by ``shutdown`` when there is no ``shutdown_command``.
    """

    path: str
    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    terminal: bool = True
    reaped: bool = False
    folder: str = "/"
    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()
    shutdown_command: tuple[str, ...] = ()
    shutdown_signal: str = ""


Fate = Literal["halt", "reboot"]


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """What becomes of a zone whose init ends (the reference's restartinit and its younger relatives).

    A process 1 cannot be replaced in its pid namespace, so starting init again is a reboot of the zone.  ``ended``
    is for an exit with status 0, ``failed`` for any other status and for a signal, ``rebooted`` for a reboot that the
    zone asked for itself (``reboot(2)``); a halt that it asked for is a halt.
    A reboot that comes less than ``quick_s`` seconds after its boot is a quick one.  ``free`` of them in a row are
    done at once; from then on each waits, 2 seconds and twice as long each time, up to ``delay_max_s``.
    """

    ended: Fate = "halt"
    failed: Fate = "halt"
    rebooted: Fate = "reboot"
    quick_s: float = 10.0
    free: int = 3
    delay_max_s: float = 60.0

    def delay_s(self, quick: int) -> float:
        """Seconds to wait before the ``quick``-th quick reboot in a row."""
        return 0.0 if quick <= self.free else min(2.0 ** min(quick - self.free, 32), self.delay_max_s)


@dataclass(frozen=True, slots=True)
class PrivilegeSets:
    """Privileges by what they are to a zone: had unless it says otherwise, needed, and never had."""

    default: frozenset[str] = frozenset()
    required: frozenset[str] = frozenset()
    prohibited: frozenset[str] = frozenset()

    def __or__(self, other: PrivilegeSets) -> PrivilegeSets:
        return PrivilegeSets(
            self.default | other.default, self.required | other.required, self.prohibited | other.prohibited
        )


class PlatformBrand(Protocol):
    """What the virtual platform needs to know of a brand."""

    @property
    def mounts(self) -> tuple[PlatformMount, ...]:
        """Made at ready, seen from the host (the reference's global_mount)."""

    @property
    def zone_mounts(self) -> tuple[PlatformMount, ...]:
        """Made at boot, in file order (the reference's mount)."""

    @property
    def devices(self) -> tuple[DeviceRule, ...]:
        """The devices of /dev."""

    @property
    def cgroup(self) -> str:
        """What is on /sys/fs/cgroup."""

    @property
    def notifies(self) -> bool:
        """Whether process 1 tells when it is ready."""

    @property
    def links(self) -> tuple[DeviceLink, ...]:
        """The symbolic links of /dev."""


STANDARD_DEVICES = tuple(DeviceRule(name) for name in ("null", "zero", "full", "random", "urandom", "tty"))
STANDARD_LINKS = (
    DeviceLink("fd", "/proc/self/fd"),
    DeviceLink("stdin", "/proc/self/fd/0"),
    DeviceLink("stdout", "/proc/self/fd/1"),
    DeviceLink("stderr", "/proc/self/fd/2"),
    DeviceLink("ptmx", "pts/ptmx"),
    DeviceLink("zconsole", "console"),
)
