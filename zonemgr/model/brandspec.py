"""What a brand declares, as data (the reference's config.xml and platform.xml, sections 9.3 and 9.4).

Paths may hold ``{zonepath}`` (the zone's directory on the host), ``{root}`` (its root on the host),
``{zonename}`` and ``{data}`` (the brand's own folder); nothing else is substituted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


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
    """A device of the host's /dev that appears in the zone's (``match`` is a path below /dev, or a shell pattern)."""

    match: str
    optional: bool = False


@dataclass(frozen=True, slots=True)
class DeviceLink:
    """A symbolic link below the zone's /dev."""

    path: str
    target: str


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
