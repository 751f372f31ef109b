"""The class that every brand derives from: what it may declare, and the hooks it may have (zones reference,
section 9).

Declarations are class attributes, read without running anything of the brand.  Hooks are methods; each runs in a
forked child (``hooks.run_hook``), as root on the host, with what it prints going to the operator.  A hook fails by
raising, or by returning an exit status that is not 0.  Nothing here touches the host.
"""

from __future__ import annotations

import os
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
    InitProgram,
    PlatformMount,
    PrivilegeSets,
    RestartPolicy,
)
from zonemgr.model.privileges import (
    DEFAULT_CAPABILITIES,
    PROHIBITED_CAPABILITIES,
    REQUIRED_CAPABILITIES,
    expand,
)
from zonemgr.store.paths import Layout

if TYPE_CHECKING:
    from zonemgr.model.zone import Zone

BRAND_API: Final = 1


class NotCompleted(BrandError):
    """Raised by ``install``, ``clone`` or ``attach``: nothing worth keeping was made, it is safe to clean up."""


@dataclass(frozen=True, slots=True)
class ZoneInfo:
    """The zone a hook is about.

    ``zonepath`` and ``root`` (the zone's root below it) are absolute paths on the host; ``layout_root`` is the root of
    the instance (``/`` unless ``--root``), ``altroot`` the same for an alternate root (``-R``), else empty.
    ``working_folder`` is where the operator's relative paths begin; hooks run in ``/``.
    """

    zonename: str
    zonepath: str
    root: str
    config: Zone
    layout_root: str = "/"
    altroot: str = ""
    working_folder: str = "/"

    @classmethod
    def of(cls, zone: Zone, layout_root: str = "/") -> ZoneInfo:
        """What a hook is told of a zone with this configuration."""
        root = f"{zone.zonepath}/root"
        return cls(zone.zonename, zone.zonepath, root, zone, layout_root, working_folder=_working_folder())


    @property
    def layout(self) -> Layout:
        """Where everything of the zone's instance is."""
        return Layout(Path(self.layout_root), alternate=bool(self.altroot))


def _working_folder() -> str:
    try:
        return os.getcwd()
    except OSError:
        return "/"  # it was removed


class Brand:
    """Derive from this in ``brand.py``; the folder's name is the brand's name.

    Public names other than those below are refused when the brand is loaded, so that a misspelt hook is noticed:
    helpers of a brand begin with an underscore.

    Methods return None or 0 when they worked.  Any other number is an exit status, and an exception is a failure whose
    text reaches the operator, as does everything a hook prints.  ``install``, ``clone`` and ``attach`` are told apart
    further: ``UsageError`` (253) for arguments that are not understood, ``NotCompleted`` (254) when nothing was made.
    What a hook changes on the host it changes as root: never follow a name below ``zone.root`` without
    :class:`zonemgr.brandkit.rootdir.RootDir`, since a zone may have planted it.
    """

    # -- what a brand is
    # Another brand that this one is made from: its name, or the absolute path of its folder; one's own name means the
    # brand that this one hides.  All that is not declared here is the base's, and ``super()`` leads to it; ``{data}``
    # in what is inherited is the base's folder.
    base: ClassVar[str] = ""
    name: ClassVar[str] = ""
    api: ClassVar[int] = BRAND_API
    version: ClassVar[str] = ""
    summary: ClassVar[str] = ""

    # -- processes inside the zone
    init: ClassVar[str] = "/sbin/init"
    init_arguments: ClassVar[tuple[str, ...]] = ()  # before the boot arguments
    init_environment: ClassVar[Mapping[str, str]] = {}  # besides container, container_uuid and PATH
    init_terminal: ClassVar[bool] = True  # the console is init's controlling terminal (InitProgram.terminal)
    # Init tells by sd_notify(3), to NOTIFY_SOCKET, when it is ready; zones that require this one wait for that.
    init_notifies: ClassVar[bool] = False
    restart: ClassVar[RestartPolicy] = RestartPolicy()  # what follows when init ends
    # Run as root in the zone for an interactive login.  May hold {user} and {zonename} (of the zone that we are in,
    # ``global``).  Empty: the shell of the zone's passwd entry.
    login_command: ClassVar[tuple[str, ...]] = ()
    forced_login_command: ClassVar[
        tuple[str, ...]
    ] = ()  # the same when a user was named with -l: asks no password
    # Run as root in the zone, prints the passwd line of {user}.  Empty: the zone's /etc/passwd is read.
    user_command: ClassVar[tuple[str, ...]] = ()
    shutdown_command: ClassVar[tuple[str, ...]] = (
        "/sbin/init",
        "0",
    )  # run inside the zone; its exit is waited for
    shutdown_signal: ClassVar[str] = (
        ""  # sent to init when there is no shutdown command, for example SIGRTMIN+3
    )

    # -- what the zone may do
    default_privileges: ClassVar[frozenset[str]] = DEFAULT_CAPABILITIES
    required_privileges: ClassVar[frozenset[str]] = REQUIRED_CAPABILITIES
    prohibited_privileges: ClassVar[frozenset[str]] = PROHIBITED_CAPABILITIES
    ip_types: ClassVar[frozenset[str]] = frozenset({"exclusive", "shared"})
    ip_type_privileges: ClassVar[
        Mapping[str, PrivilegeSets]
    ] = {}  # added to the three sets, by the zone's ip-type
    cgroup: ClassVar[str] = (
        "v2"  # what the guest finds on /sys/fs/cgroup: v2, v1 (old guests), any (v2) or none
    )
    delegate_cgroup: ClassVar[bool] = True  # the zone may make cgroups of its own below its payload
    mandatory_label: ClassVar[bool] = (
        False  # processes run under the SELinux or AppArmor label in the attr ``label``
    )

    # -- the virtual platform
    mounts: ClassVar[tuple[PlatformMount, ...]] = ()  # made at ready, seen from the host
    zone_mounts: ClassVar[tuple[PlatformMount, ...]] = ()  # made at boot, in this order
    devices: ClassVar[tuple[DeviceRule, ...]] = STANDARD_DEVICES
    links: ClassVar[tuple[DeviceLink, ...]] = STANDARD_LINKS
    scratch_mount: ClassVar[bool] = False  # ``mount`` shows the zone's own /etc and /var (else: update mode)
    # ``verify`` does nothing but look, and soon ends: a boot calls it without a process of its own.  Counts for the
    # class that defines both alone.
    verify_only_looks: ClassVar[bool] = False
    # Besides those of the base: what a brand with a base adds without repeating what it inherits.
    more_mounts: ClassVar[tuple[PlatformMount, ...]] = ()
    more_zone_mounts: ClassVar[tuple[PlatformMount, ...]] = ()
    more_devices: ClassVar[tuple[DeviceRule, ...]] = ()
    more_links: ClassVar[tuple[DeviceLink, ...]] = ()

    # -- deadlines of the hooks that take long, in seconds
    install_deadline_s: ClassVar[int] = 3600
    uninstall_deadline_s: ClassVar[int] = 600

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def folder(self) -> Path:
        """The brand's own folder: ``{data}`` in its mounts."""
        return self._folder

    # -- what is possible

    def lacks(self) -> int | None:
        """Print one line that says what this host lacks for zones of this brand; nothing when it lacks nothing.

        ``zonemgr brands`` shows it, and no zone of the brand can be installed or booted then.
        """

    def verify_cfg(self, zone: ZoneInfo) -> int | None:
        """Refuse a configuration when it is saved: ``config``'s commit and verify.  The zone may not exist yet."""

    def verify(self, zone: ZoneInfo, command: str) -> int | None:
        """Refuse what this brand cannot run here and now (the reference's verify_adm).

        ``command`` is the verb that asks: verify, install, clone, attach, ready, boot, reboot, mount or apply.
        """

    # -- life cycle; each ``post`` and ``pre`` hook gets the arguments of its verb

    def install(self, zone: ZoneInfo, arguments: Sequence[str]) -> int | None:
        """Make and fill ``zone.root``; ``zone.zonepath`` exists, is empty and 0700.

        Raise UsageError for arguments that are not understood, NotCompleted to have everything cleaned up.
        """
        raise BrandError("brand '{brand}' has no install: Missing brand install command.", brand=self.name)

    def postinstall(self, zone: ZoneInfo, arguments: Sequence[str]) -> int | None:
        """The zone is installed.  Failure makes it incomplete again."""

    def preuninstall(self, zone: ZoneInfo, arguments: Sequence[str]) -> int | None:
        """Before anything of an installed zone is removed.  Failure stops the uninstall; the zone is untouched."""

    def uninstall(self, zone: ZoneInfo, arguments: Sequence[str]) -> int | None:
        """Undo what ``install`` did outside of the zonepath; the zonepath's standard folders go afterwards."""

    def clone(self, zone: ZoneInfo, source: ZoneInfo, arguments: Sequence[str]) -> int | None:
        """Make ``zone`` a copy of ``source``.  By default the root is copied and ``unconfigure`` called."""

    def presnap(self, zone: ZoneInfo) -> int | None:
        """On the source of a clone, before its root is snapshot: bring its files to rest.  Failure stops the clone."""

    def postsnap(self, zone: ZoneInfo) -> int | None:
        """On the source of a clone, after its root was snapshot."""

    def validatesnap(self, zone: ZoneInfo, snapshot: str) -> int | None:
        """On the source of a clone -s: refuse a folder that is no snapshot of its zonepath, or not fit to be copied."""

    def postclone(self, zone: ZoneInfo, arguments: Sequence[str]) -> int | None:
        """The clone ``zone`` has its root.  Failure leaves it incomplete."""

    def unconfigure(self, zone: ZoneInfo) -> int | None:
        """Forget in ``zone.root`` what must not exist twice: machine id, host keys, leases."""

    def attach(self, zone: ZoneInfo, arguments: Sequence[str]) -> int | None:
        """Check, and if need be update, a root that was brought here."""

    def postattach(self, zone: ZoneInfo, arguments: Sequence[str]) -> int | None:
        """The zone is installed again.  Failure makes it configured."""

    def predetach(self, zone: ZoneInfo, arguments: Sequence[str]) -> int | None:
        """Before ``detach``.  Failure stops it; the zone is untouched."""

    def detach(self, zone: ZoneInfo, arguments: Sequence[str]) -> int | None:
        """Prepare ``zone.root`` for being taken elsewhere."""

    # -- transitions

    def pre_statechange(self, zone: ZoneInfo, state: str, command: str) -> int | None:
        """Before a step of a transition; ``state`` is the state when the request came.  Failure stops the step."""

    def post_statechange(self, zone: ZoneInfo, state: str, command: str) -> int | None:
        """After a step.  Be idempotent: it also follows a failed bring-up (``ready`` or ``running``, ``halt``)."""

    def sysboot(self, zone: ZoneInfo) -> int | None:
        """On the host when it boots, for an installed zone that is not booted with it (``zonemgr sysboot``)."""

    def boot(self, zone: ZoneInfo) -> int | None:
        """On the host, just before init runs.  Failure stops the boot."""

    def halt(self, zone: ZoneInfo) -> int | None:
        """On the host, after the zone's last process.  Failure leaves the zone ``down``; another halt asks again."""

    def init_program(self, zone: ZoneInfo) -> InitProgram:
        """What process 1 of this very zone becomes.  By default what the class declares.

        Unlike a hook it runs in the worker of the transition, and at ``shutdown`` once more: read what ``install``
        has written, and return.  ``zone.root`` is not to be trusted, however often the zone has booted.
        """
        return InitProgram(
            self.init,
            self.init_arguments,
            self.init_environment,
            terminal=self.init_terminal,
            shutdown_command=self.shutdown_command,
            shutdown_signal=self.shutdown_signal,
        )

    def query(self, zone: ZoneInfo, what: str) -> int | None:
        """Print what the platform asks for, one per line.

        ``what`` is ``datasets``: folders or devices of the host, absolute, that the zone needs besides its
        configuration.  They have to exist when the zone is verified or made ready.
        """

    # -- for the platform, not for brands

    def overrides(self, hook: str) -> bool:
        """Whether the brand has its own ``hook``.  A hook that is not overridden costs nothing: it is not run."""
        return getattr(type(self), hook) is not getattr(Brand, hook)

    def only_looks(self, hook: str) -> bool:
        """Whether the class whose ``hook`` this is says so of itself, not one that it is derived from."""
        own = next(cls for cls in type(self).__mro__ if hook in vars(cls))
        return bool(vars(own).get(f"{hook}_only_looks", False))

    @property
    def notifies(self) -> bool:
        """``init_notifies`` of whoever has declared the init: that of a base says nothing about another init."""
        for cls in type(self).__mro__:
            if "init_notifies" in vars(cls):
                return self.init_notifies
            if not {"init", "init_program"}.isdisjoint(vars(cls)):
                return False
        return False

    def privileges(self, ip_type: str) -> PrivilegeSets:
        """The brand's sets for a zone of this ip-type.  What is prohibited is in no default."""
        always = PrivilegeSets(self.default_privileges, self.required_privileges, self.prohibited_privileges)
        sets = always | self.ip_type_privileges.get(ip_type, PrivilegeSets())
        return PrivilegeSets(expand(sets.default) - expand(sets.prohibited), sets.required, sets.prohibited)


HOOKS: Final = (
    "lacks",
    "verify_cfg",
    "verify",
    "install",
    "postinstall",
    "preuninstall",
    "uninstall",
    "presnap",
    "postsnap",
    "validatesnap",
    "clone",
    "postclone",
    "unconfigure",
    "attach",
    "postattach",
    "predetach",
    "detach",
    "pre_statechange",
    "post_statechange",
    "sysboot",
    "boot",
    "halt",
    "init_program",
    "query",
)
