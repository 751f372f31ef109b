"""Whether a zone could be run here as far as its files, links and file systems go (reference, section 6.4,
verify_details).

Every finding goes to ``say`` in the reference's words; one error at the end says that the zone failed.  What needs
the brand is in ``brandkit.verify``.  For every command but ``verify`` a zonepath with a wrong owner or mode is
repaired.
"""

from __future__ import annotations

import functools
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from zonemgr.errors import ConfigError, NoSuchZoneError, PlatformError, message
from zonemgr.linux import budgets, cow
from zonemgr.linux.paths import TMPFS_MAGIC, file_system_type
from zonemgr.model import network, schema
from zonemgr.model.states import State
from zonemgr.model.zone import FsResource, Zone
from zonemgr.store import claims, entries, settings, zones
from zonemgr.store.paths import Layout
from zonemgr.store.zones import Entry

Say = Callable[[str], None]

MAKES_ZONEPATH: Final = frozenset({"install", "clone", "import", "move"})
BRINGS_UP: Final = frozenset({"ready", "boot"})
MAKES_ROOT: Final = frozenset({"install", "clone", "import"})
DETACHED_MARKER: Final = "SUNWdetached.json"
NFS_MAGIC: Final = 0x6969
REFUSED_TYPES: Final = frozenset(
    {"proc", "sysfs", "mntfs", "autofs", "cachefs", "cgroup", "cgroup2", "devtmpfs"}
)
BIND_TYPES: Final = frozenset({"bind", "lofs"})

_BITS: Final = (
    (0o400, True, "owner", "readable"),
    (0o200, True, "owner", "writable"),
    (0o100, True, "owner", "executable"),
    (0o040, False, "group", "readable"),
    (0o020, False, "group", "writable"),
    (0o010, False, "group", "executable"),
    (0o004, False, "world", "readable"),
    (0o002, False, "world", "writable"),
    (0o001, False, "world", "executable"),
)
_PARENT_BITS: Final = tuple(bit for bit in _BITS if bit[0] in (0o400, 0o200, 0o100, 0o020, 0o002))


def verify_zone(layout: Layout, zone: Zone, entry: Entry, command: str, say: Say) -> None:
    """Check the zone on behalf of ``command`` (a verb).  Raises ConfigError after everything found has been said."""
    # A boot finds out when it takes them.
    cpu_faults = tuple(_cpu_faults(layout, zone)) if command in ("verify", "reboot") else ()
    errors = [
        *_zonepath(layout, zone, entry, command, say),
        *_file_systems(zone),
        *(_addresses(layout, zone) if command in BRINGS_UP else ()),
        *(pool_faults(layout, zone) if command == "verify" else ()),
        *(() if zone.best_effort else cpu_faults),
    ]
    for text in errors:
        say(text)
    warnings = (
        *_network_warnings(layout, zone, command),
        *_limit_warnings(zone, command),
        *(pool_faults(layout, zone) if command in MAKES_ROOT else ()),  # a boot says so when it comes to it
        *(cpu_faults if zone.best_effort else ()),
        *(_unknown_users(zone) if command == "verify" else ()),
    )
    for text in warnings:
        say(message("WARNING: {text}", text=text))
    if errors:
        raise ConfigError("zone {zonename} failed to verify", zonename=zone.zonename)


# -- the zonepath -----------------------------------------------------------------------------------------------


def _zonepath(layout: Layout, zone: Zone, entry: Entry, command: str, say: Say) -> Iterator[str]:
    path = zone.zonepath
    if not path.startswith("/"):
        yield f"{path} is not an absolute path."
        return
    # Places that zones have by default do not overlap: whoever has another is asked to keep off when it comes up.
    if command not in BRINGS_UP or path != str(layout.zonepath(zone.zonename)):
        yield from _overlaps(layout, zone)
    missing = not os.path.lexists(path)
    if missing:
        if command in MAKES_ZONEPATH:
            yield from _make(path)
        elif command == "verify":
            say(
                message(
                    "WARNING: {path} does not exist, so it could not be verified; install makes it.",
                    path=path,
                )
            )
            return
        else:
            yield f"{path}: No such file or directory"
    if not os.path.lexists(path):
        return
    if os.path.realpath(path) != os.path.normpath(path):
        yield f"{path}: Resolved path mismatch"
        return
    if not os.path.isdir(path):
        yield f"{path} is not a directory."
        return
    yield from _parent(path)
    yield from _owner_and_mode(path, command, say)
    yield from _file_system_of(path, say)
    yield from _root(path, entry, command)


def _make(path: str) -> Iterator[str]:
    """The zonepath 0700, missing parents 0755.  On btrfs it is a subvolume, so that clone can snapshot it."""
    try:
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        _make_folder(path)
        os.chmod(path, 0o700)
    except OSError as error:
        yield f"cannot make {error.filename or path}: {error.strerror}"


def _make_folder(path: str) -> None:
    parent, name = os.path.split(path)
    parent_fd = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if not cow.is_btrfs(parent_fd):
            os.mkdir(path, 0o700)
            return
        previous = os.umask(0o077)
        try:
            cow.make_subvolume(parent_fd, name)
        finally:
            os.umask(previous)
    finally:
        os.close(parent_fd)


def _known(layout: Layout) -> Iterator[tuple[str, Entry]]:
    """Every zone's entry, but those that cannot be read."""
    try:
        yield from entries.read_all(layout).items()
        return
    except PlatformError:
        pass  # one of them is damaged: each by itself
    for name in zones.names(layout):
        try:
            yield name, zones.read_entry(layout, name)
        except (NoSuchZoneError, PlatformError):
            continue


def _overlaps(layout: Layout, zone: Zone) -> Iterator[str]:
    """Another zone that has files there would be destroyed with this one, or hold it."""
    real_parent = functools.cache(os.path.realpath)  # most have the same one

    def real(path: str) -> str:
        parent, name = os.path.split(path)
        if name in ("", ".", "..") or os.path.islink(path):
            return os.path.realpath(path)
        return os.path.join(real_parent(parent), name)

    mine = real(zone.zonepath)
    for name, other in _known(layout):
        if name == zone.zonename or other.state is State.CONFIGURED or not other.zonepath:
            continue
        theirs = real(other.zonepath)
        if mine == theirs or f"{mine}/".startswith(f"{theirs}/") or f"{theirs}/".startswith(f"{mine}/"):
            yield f"{zone.zonepath} overlaps {other.zonepath}, the zonepath of zone {name}."


def _wrong_bits(path: str, mode: int, bits: tuple[tuple[int, bool, str, str], ...] = _BITS) -> Iterator[str]:
    for bit, wanted, who, what in bits:
        if bool(mode & bit) != wanted:
            yield f"{path} must {'' if wanted else 'not '}be {who} {what}."


def _owner_and_mode(path: str, command: str, say: Say) -> Iterator[str]:
    status = os.stat(path)
    wrong_owner = status.st_uid != 0
    wrong_mode = stat.S_IMODE(status.st_mode) != 0o700
    if command == "verify":
        if wrong_owner:
            yield f"{path} is not owned by root."
        yield from _wrong_bits(path, status.st_mode)
        return
    if (wrong_owner or wrong_mode) and command in MAKES_ZONEPATH and _is_used(path):
        # A slip of the hand, /srv in place of /srv/web, must not lock everybody out of what is there.
        yield f"{path} holds files of others, who would be locked out (a zonepath is root's alone, mode 0700)."
        return
    try:
        if wrong_owner:
            say(message("{path}: changing owner to root.", path=path))
            os.chown(path, 0, 0)
        if wrong_mode:
            say(message("{path}: changing permissions to 0700.", path=path))
            os.chmod(path, 0o700)
    except OSError as error:
        yield f"{path}: {error.strerror}"


def _is_used(path: str) -> bool:
    """Whether anything is there, but for what a new file system has."""
    return any(name != "lost+found" for name in os.listdir(path))


def _parent(path: str) -> Iterator[str]:
    """Who may write the parent may replace the zonepath.  Not repaired: it is not ours."""
    parent = os.path.dirname(os.path.normpath(path))
    if parent == os.path.normpath(path):
        yield f"{path} is its own parent."
        return
    status = os.stat(parent)
    if status.st_uid != 0:
        yield f"{parent} is not owned by root."
    bits = _PARENT_BITS
    if status.st_mode & stat.S_ISVTX and status.st_uid == 0:  # /tmp: nobody else may rename what is root's
        bits = tuple(bit for bit in bits if bit[3] != "writable" or bit[2] == "owner")
    yield from _wrong_bits(parent, status.st_mode, bits)


def _file_system_of(path: str, say: Say) -> Iterator[str]:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        kind = file_system_type(descriptor)
    finally:
        os.close(descriptor)
    if kind == NFS_MAGIC:
        yield f"Zonepath {path} is on an NFS mounted file system."
    if kind == TMPFS_MAGIC:
        say(message("WARNING: {path} is on a temporary file system.", path=path))
    if os.statvfs(path).f_flag & os.ST_NOSUID:
        # The reference refuses.  Here a zone may well live without set-user-id programs of its own.
        say(message("WARNING: Zonepath {path} is on a nosuid file system.", path=path))


def _root(path: str, entry: Entry, command: str) -> Iterator[str]:
    root = f"{path}/root"
    if command == "attach" or not os.path.lexists(root):
        return
    if entry.state is State.CONFIGURED and os.path.lexists(f"{path}/{DETACHED_MARKER}"):
        yield f"Cannot {command} detached zone."
        yield f"Use attach or remove {path} directory."
        return
    if entry.state is State.CONFIGURED and command in MAKES_ROOT:
        yield f"{root} exists already; use attach, or remove it."
        return
    status = os.lstat(root)
    if not stat.S_ISDIR(status.st_mode):
        yield f"{root} is not a directory."
        return
    if status.st_uid not in (
        0,
        entry.uid_base,
    ):  # a root whose ids had to be shifted on disk belongs to the zone's root
        yield f"{root} is not owned by root."
    if stat.S_IMODE(status.st_mode) != 0o755:
        yield f"{root} mode is not 0755."


# -- resources --------------------------------------------------------------------------------------------------


def _file_systems(zone: Zone) -> Iterator[str]:
    for resource in zone.fs:
        try:
            yield from _file_system(resource)
        except OSError as error:
            yield f"could not verify fs {resource.dir}: could not access {resource.special}: {error.strerror}"


def _file_system(resource: FsResource) -> Iterator[str]:
    if resource.type in REFUSED_TYPES or resource.type.startswith("nfs"):
        yield f"cannot verify fs {resource.dir}: type {resource.type} is not allowed."
    elif resource.type in BIND_TYPES or resource.special.startswith("/"):
        os.stat(resource.special)
    if resource.raw:
        os.stat(resource.raw)
        if not _has_program(f"fsck.{resource.type}"):
            yield f"could not verify fs {resource.dir}: there is no fsck.{resource.type} to check {resource.raw} with."


def _has_program(name: str) -> bool:
    return any(
        os.access(f"{folder}/{name}", os.X_OK) for folder in ("/usr/sbin", "/sbin", "/usr/bin", "/bin")
    )


def _addresses(layout: Layout, zone: Zone) -> Iterator[str]:
    """Two zones with one address would answer for each other.  The claims know, without a look at each zone."""
    for address in sorted({network.bare(address) for link in zone.net for address in link.address}):
        for other in claims.holders(layout, address):
            if other != zone.zonename:
                yield f"address {address} is in use by zone {other}."


def _limit_warnings(zone: Zone, command: str) -> Iterator[str]:
    """Controls that mean nothing here (the reference's text), and what the kernel has too little of for the zone."""
    if command not in BRINGS_UP and command != "verify":
        return
    known = {alias.rctl for alias in schema.CONTROL_ALIASES} | schema.CONTROLS_HELD
    for control in zone.rctl:
        if control.name not in known:
            yield message("Ignoring unrecognized rctl '{name}'.", name=control.name)
    wanted = zone.max_lwps or 10 * (zone.max_processes or 0) or budgets.default_processes()
    for budget in (*budgets.users(), *budgets.processes(wanted)):
        if not budget.enough:
            yield str(budget)


def pool_faults(layout: Layout, zone: Zone) -> Iterator[str]:
    """A pool that would hold the zone to no CPU.  It may be named in the settings later, and the zone boots without."""
    if zone.pool is None:
        return
    from zonemgr.linux.cgroup import cpus  # here, since most zones are in no pool

    pools = settings.load(layout).pools
    if cpus.parse(pools.get(zone.pool, "")) & cpus.online():
        return
    hint = "" if zone.pool in pools else schema.did_you_mean(zone.pool, pools)
    yield message(
        "pool '{pool}': [pools] in {file} names no CPU for it that this host has{hint}",
        pool=zone.pool,
        file=layout.settings,
        hint=hint,
    )


def _cpu_faults(layout: Layout, zone: Zone) -> Iterator[str]:
    """CPUs of its own that the host has not, or has given to others."""
    if zone.dedicated_cpu is None:
        return
    from zonemgr.linux.cgroup import detect  # here, since most zones have none of their own
    from zonemgr.store.cpus import Registry

    base = "zonemgr" + layout.suffix
    for unit, wanted in zone.dedicated_cpu.wanted():
        try:
            registry = Registry(detect())
            registry.picked(base, zone.zonename, registry.choice(base, zone.zonename, unit, wanted))
        except (ValueError, PlatformError, OSError) as error:
            yield message("dedicated-cpu: {unit} {wanted}: {why}", unit=unit, wanted=wanted, why=error)


def _unknown_users(zone: Zone) -> Iterator[str]:
    """They may be made later; until then the resource is nobody's."""
    if not zone.admin:
        return
    import pwd  # here, since most zones have no such resource

    for admin in zone.admin:
        try:
            pwd.getpwnam(admin.user)
        except KeyError:
            yield message("admin: this host knows no user '{user}'", user=admin.user)


def _network_warnings(layout: Layout, zone: Zone, command: str) -> Iterator[str]:
    """Links may appear later, so a missing one is worth a warning only; those of a running zone are in the zone."""
    if command == "reboot":
        return
    made_on_demand = settings.load(layout).bridge if zone.net else ""
    for resource in zone.net:
        name = resource.physical or resource.macvlan or resource.anet
        if name and name != made_on_demand and not Path("/sys/class/net", name).exists():
            yield f"skipping network interface '{name}' which is not present in the global zone."
