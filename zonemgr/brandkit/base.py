"""The class that every brand derives from: what it may declare, and the hooks it may have (zones reference,
section 9).

Declarations are class attributes, read without running anything of the brand.  Hooks are methods; each runs in a
forked child (``hooks.run_hook``), as root on the host, with what it prints going to the operator.  A hook fails by
raising, or by returning an exit status that is not 0.  Nothing here touches the host.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final

from zonemgr.errors import BrandError
from zonemgr.model.brandspec import (
    STANDARD_DEVICES,
    STANDARD_LINKS,
    DeviceLink,
    DeviceRule,
    PlatformMount,
)
from zonemgr.model.privileges import DEFAULT_CAPABILITIES, PROHIBITED_CAPABILITIES, REQUIRED_CAPABILITIES

if TYPE_CHECKING:
    from zonemgr.model.zone import Zone

BRAND_API: Final = 1


class NotCompleted(BrandError):
    """Raised by ``install``, ``clone`` or ``attach``: nothing worth keeping was made, it is safe to clean up."""


@dataclass(frozen=True, slots=True)
class ZoneInfo:
    """The zone a hook is about.

    ``zonepath`` and ``root`` (the zone's root below it) are absolute paths on the host; ``layout_root`` is the root of
    the instance (``/`` unless ``--root``), ``altroot`` the alternate root of a Solaris ``-R``, else empty.
    """

    zonename: str
    zonepath: str
    root: str
    config: Zone
    layout_root: str = "/"
    altroot: str = ""

    @classmethod
    def of(cls, zone: Zone, layout_root: str = "/") -> ZoneInfo:
        """What a hook is told of a zone with this configuration."""
        return cls(zone.zonename, zone.zonepath, f"{zone.zonepath}/root", zone, layout_root)


class Brand:
    """Derive from this in ``brand.py``; the folder's name is the brand's name.

    Public names other than those below are refused when the brand is loaded, so that a misspelt hook is noticed:
    helpers of a brand begin with an underscore.
    """

    # -- what a brand is
    name: ClassVar[str] = ""
    api: ClassVar[int] = BRAND_API
    version: ClassVar[str] = ""
    summary: ClassVar[str] = ""

    # -- processes inside the zone
    init: ClassVar[str] = "/sbin/init"
    init_arguments: ClassVar[tuple[str, ...]] = ()  # before the boot arguments
    init_environment: ClassVar[Mapping[str, str]] = {}  # besides container, container_uuid and PATH
    login_command: ClassVar[
        tuple[str, ...]
    ] = ()  # may hold {user}; empty: the shell of the zone's passwd entry
    shutdown_command: ClassVar[tuple[str, ...]] = (
        "/sbin/init",
        "0",
    )  # run inside the zone; its own exit is waited for
    shutdown_signal: ClassVar[str] = (
        ""  # sent to init when there is no shutdown command, for example SIGRTMIN+3
    )

    # -- what the zone may do
    default_privileges: ClassVar[frozenset[str]] = DEFAULT_CAPABILITIES
    required_privileges: ClassVar[frozenset[str]] = REQUIRED_CAPABILITIES
    prohibited_privileges: ClassVar[frozenset[str]] = PROHIBITED_CAPABILITIES
    ip_types: ClassVar[frozenset[str]] = frozenset({"exclusive", "shared"})
    delegate_cgroup: ClassVar[bool] = True  # the zone may make cgroups of its own below its payload

    # -- the virtual platform
    mounts: ClassVar[tuple[PlatformMount, ...]] = ()  # made at ready, seen from the host
    zone_mounts: ClassVar[tuple[PlatformMount, ...]] = ()  # made at boot, in this order
    devices: ClassVar[tuple[DeviceRule, ...]] = STANDARD_DEVICES
    links: ClassVar[tuple[DeviceLink, ...]] = STANDARD_LINKS
    scratch_mount: ClassVar[bool] = False  # ``mount`` shows the zone's own /etc and /var (else: update mode)

    # -- deadlines of the hooks that take long, in seconds
    install_deadline_s: ClassVar[int] = 3600
    uninstall_deadline_s: ClassVar[int] = 600

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def folder(self) -> Path:
        """The brand's own folder: ``{data}`` in its mounts."""
        return self._folder

    # -- life cycle

    def verify(self, zone: ZoneInfo, command: str) -> int | None:
        """Refuse what this brand cannot run.  ``command`` is the verb that asks (``verify``, ``install``...)."""

    def install(self, zone: ZoneInfo, arguments: Sequence[str]) -> int | None:
        """Make and fill ``zone.root``; ``zone.zonepath`` exists, is empty and 0700.

        Raise UsageError for arguments that are not understood, NotCompleted to have everything cleaned up.
        """
        raise BrandError("brand '{brand}' has no install: Missing brand install command.", brand=self.name)

    def uninstall(self, zone: ZoneInfo, arguments: Sequence[str]) -> int | None:
        """Undo what ``install`` did outside of the zonepath; the zonepath's standard folders go afterwards."""

    def clone(self, zone: ZoneInfo, source: ZoneInfo, arguments: Sequence[str]) -> int | None:
        """Make ``zone`` a copy of ``source``.  By default the root is copied and ``unconfigure`` called."""

    def unconfigure(self, zone: ZoneInfo) -> int | None:
        """Forget in ``zone.root`` what must not exist twice: machine id, host keys, leases."""

    def attach(self, zone: ZoneInfo, arguments: Sequence[str]) -> int | None:
        """Check, and if need be update, a root that was brought here."""

    def detach(self, zone: ZoneInfo, arguments: Sequence[str]) -> int | None:
        """Prepare ``zone.root`` for being taken elsewhere."""

    # -- transitions

    def pre_statechange(self, zone: ZoneInfo, state: str, command: str) -> int | None:
        """Before a step of a transition; ``state`` is the state when the request came.  Failure stops the step."""

    def post_statechange(self, zone: ZoneInfo, state: str, command: str) -> int | None:
        """After a step.  Be idempotent: it also follows a failed bring-up (``ready`` or ``running``, ``halt``)."""

    def boot(self, zone: ZoneInfo) -> int | None:
        """On the host, just before init runs.  Failure stops the boot."""

    def halt(self, zone: ZoneInfo) -> int | None:
        """On the host, after the zone's last process.  Failure leaves the zone ``down``; another halt asks again."""

    def query(self, zone: ZoneInfo, what: str) -> int | None:
        """Print what the platform asks for, one per line.  ``what`` is ``datasets``."""

    # -- for the platform, not for brands

    def overrides(self, hook: str) -> bool:
        """Whether the brand has its own ``hook``.  A hook that is not overridden costs nothing: it is not run."""
        return getattr(type(self), hook) is not getattr(Brand, hook)


HOOKS: Final = (
    "verify",
    "install",
    "uninstall",
    "clone",
    "unconfigure",
    "attach",
    "detach",
    "pre_statechange",
    "post_statechange",
    "boot",
    "halt",
    "query",
)
