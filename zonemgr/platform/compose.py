"""Configuration and brand become a plan.

Pure but for a few questions to the host: whether an optional thing of a brand exists, which cgroups it has, whether
its bridges filter.  The order of the result is the order of execution: cgroup, zsched and namespaces, the mount tree
sorted by directory (plain string comparison, as the reference's section 3.3 has it, so that ``/usr`` comes before
``/usr/local``), devices, masks, network, and the seal last.
"""

from __future__ import annotations

import dataclasses
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from zonemgr.errors import ConfigError, PlatformError
from zonemgr.linux import machined, paths, traffic
from zonemgr.linux.cgroup import ZoneCgroup, detect
from zonemgr.linux.netlink import host_link_name
from zonemgr.model import network, plan
from zonemgr.model.brandspec import DeviceRule, PlatformBrand, PlatformMount
from zonemgr.model.states import IDS_PER_ZONE
from zonemgr.model.zone import FsResource, NetResource, Zone
from zonemgr.platform import firewall, resources
from zonemgr.store import instance as instances
from zonemgr.store.instance import Mode
from zonemgr.store.names import hosts_file
from zonemgr.store.paths import Layout
from zonemgr.store.settings import Settings

MASKED = (
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/sysrq-trigger",
    "/proc/timer_list",
    "/proc/acpi",
    "/proc/scsi",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)
READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq")
READ_ONLY_PRIVILEGED = ("/proc/sys",)  # without a user namespace nothing else protects the host's settings

CGROUP = "/sys/fs/cgroup"
SYSTEMD = "name=systemd"  # the v1 hierarchy that only names groups

_BIND_TYPES = ("bind", "lofs")
_REFUSED_TYPES = ("proc", "sysfs", "mntfs", "autofs", "cachefs", "cgroup", "cgroup2", "devtmpfs")


@dataclass(frozen=True, slots=True)
class Subject:
    """All that a plan is made from."""

    zone: Zone
    brand: PlatformBrand
    data: str  # the brand's own folder
    layout: Layout
    settings: Settings
    mode: Mode
    uid_base: int
    uuid: str
    layers: tuple[str, ...] = ()  # frozen origins that the zone's root lies on, the uppermost first
    writable: bool = False  # boot -w: this life's root is not held to file-mac-profile

    @property
    def root(self) -> str:
        """The root of the zone on the host: the zone's own, or the scratch zone's."""
        return f"{self.zone.zonepath}/{'lu' if self.mode.alternate else 'root'}"


def compose_birth(subject: Subject) -> tuple[plan.Op, ...]:
    """How every plan of making a zone ready begins: nothing of the host but processes, which end by themselves."""
    zone = subject.zone
    base = 0 if zone.privileged else subject.uid_base
    return (
        plan.MakeCgroup("zonemgr" + subject.layout.suffix, zone.zonename),
        plan.StartZsched(base, zone.privileged, zone.hostname or zone.zonename),
    )


def compose_ready(subject: Subject) -> tuple[plan.Op, ...]:
    """The plan of making a zone ready (or mounted, by the subject's mode)."""
    zone = subject.zone
    ops: list[plan.Op] = [*compose_birth(subject)]
    if subject.mode is Mode.BOOT:
        ops += _names(subject)
        ops += _network(subject)
        ops += resources.limits(zone, subject.settings, _project(subject))
    if subject.layers:
        ops.append(plan.Layers(zone.zonepath, subject.layers))
    ops.append(plan.AllowDevices(_devices(subject)))
    ops += _alternate_tree(subject) if subject.mode.alternate else _tree(subject)
    ops.append(plan.Mask(MASKED, READ_ONLY + (READ_ONLY_PRIVILEGED if zone.privileged else ())))
    if subject.mode is Mode.BOOT:
        if zone.hostid is not None:
            ops.append(plan.HostId(zone.hostid))
        settings = resources.sysctls(zone)
        ops += [plan.Sysctls(settings)] if settings else []
        ops += _links(subject)
    ops += _frozen(subject)
    ops.append(plan.Seal())
    if subject.mode is Mode.BOOT:
        ops += _loose_mounts(subject)
    return tuple(ops)


def compose_boot(subject: Subject, init: str, arguments: tuple[str, ...]) -> tuple[plan.Op, ...]:
    """The plan of booting a ready zone: the brand's in-zone mounts in file order, then init."""
    mounts = (_platform_mount(subject, mount, subject.root) for mount in _late_mounts(subject))
    return (*(op for op in mounts if op), *_machine(subject), plan.ExecInit(init, arguments))


def _machine(subject: Subject) -> Iterator[plan.Machine]:
    if subject.layout.root == Path("/") and machined.is_there():
        zone = subject.zone
        links = (_host_link(subject, index) for index, net in enumerate(zone.net) if net.anet)
        yield plan.Machine(zone.zonename, subject.uuid, subject.root, tuple(links))


def _late_mounts(subject: Subject) -> Iterator[PlatformMount]:
    """The brand's in-zone mounts; of an immutable zone's root they show nothing that can be written."""
    immutable = mutable_folders(subject) is not None
    for mount in subject.brand.zone_mounts:
        if immutable and mount.special.startswith("{root}/"):
            yield dataclasses.replace(mount, options=(*mount.options, "ro"))
        else:
            yield mount


# -- immutable zones ----------------------------------------------------------------------------------------------

# What of its root a zone may change (reference, section 11), and what below that it may not: what decides which
# programs run, and when.
_MUTABLE: Final[Mapping[str, tuple[str, ...]]] = {
    "strict": (),
    "fixed-configuration": ("/var",),
    "flexible-configuration": ("/etc", "/root", "/var"),
    "dynamic-zones": ("/etc", "/root", "/var"),
}
_CONFIGURATION: Final = ("/var/lib/dpkg", "/var/lib/rpm", "/var/spool/cron")


def mutable_folders(subject: Subject) -> tuple[str, ...] | None:
    """The folders of its root that an immutable zone may write to; None: the zone is not immutable."""
    profile = subject.zone.file_mac_profile
    if subject.mode.alternate or subject.writable or profile in (None, "none"):
        return None
    return _MUTABLE[profile]


def _fixed_configuration(mutable: tuple[str, ...]) -> tuple[str, ...]:
    return _CONFIGURATION if mutable == ("/var",) else ()


def frozen_folders(subject: Subject) -> tuple[str, ...]:
    """The folders whose mounts are made read-only last; empty for a zone that is not immutable."""
    mutable = mutable_folders(subject)
    if mutable is None:
        return ()
    own = [mount.directory for mount in subject.brand.mounts if mount.special.startswith("{root}/")]
    return ("/", *(folder for folder in own if folder not in mutable), *_fixed_configuration(mutable))


def _own_mounts(subject: Subject) -> list[plan.Op]:
    """Parts of the root as mounts of their own, so that they can differ from it in being writable."""
    mutable = mutable_folders(subject)
    return [plan.OwnMounts((*mutable, *_fixed_configuration(mutable)))] if mutable else []


def _frozen(subject: Subject) -> list[plan.Op]:
    folders = frozen_folders(subject)
    return [plan.ReadOnlyRoot(folders)] if folders else []


def _project(subject: Subject) -> int:
    """The zone's id as a project of a file system: its first user id, which no other zone has."""
    return subject.uid_base or zlib.crc32(subject.uuid.encode())


# -- mounts -----------------------------------------------------------------------------------------------------


def _kernel_mounts() -> list[tuple[str, plan.Op]]:
    mounts: list[plan.KernelFileSystem] = [
        plan.KernelFileSystem("devpts", "/dev/pts"),
        plan.KernelFileSystem("mqueue", "/dev/mqueue"),
        plan.KernelFileSystem("proc", "/proc"),
        plan.KernelFileSystem("sysfs", "/sys", read_only=True),
    ]
    return [(op.directory, op) for op in mounts]


def _cgroup_mounts(subject: Subject) -> list[tuple[str, plan.Op]]:
    """What the guest finds on /sys/fs/cgroup: the generation that its brand asks for."""
    match subject.brand.cgroup:
        case "none":
            return []
        case "v1":
            return _cgroups_v1(subject)
        case _:
            return [(CGROUP, plan.KernelFileSystem("cgroup2", CGROUP))]


def _cgroups_v1(subject: Subject) -> list[tuple[str, plan.Op]]:
    """The zone's own folder of each v1 hierarchy, where an old guest looks for it.

    It may write in the hierarchy that has no controller, ``systemd``, and only look at the others: a v1 controller
    is not safe in the hands of a guest.
    """
    zone_cgroup = ZoneCgroup(detect(), "zonemgr" + subject.layout.suffix, subject.zone.zonename)
    if not zone_cgroup.hierarchy.v1_mounts:
        raise PlatformError(
            "brand '{brand}' needs cgroup v1, which this host does not have"
            " (boot it with systemd.unified_cgroup_hierarchy=0)",
            brand=subject.zone.brand,
        )
    named = zone_cgroup.hierarchy.controllers.get(SYSTEMD)
    tree: list[tuple[str, plan.Op]] = [
        (CGROUP, plan.FileSystem("tmpfs", "tmpfs", CGROUP, ("nosuid", "nodev", "noexec", "mode=755")))
    ]
    for mount, folder in zip(zone_cgroup.hierarchy.v1_mounts, zone_cgroup.v1_paths(), strict=True):
        options = ("nosuid", "noexec", *(() if mount == named else ("ro",)))
        place = f"{CGROUP}/{'systemd' if mount == named else mount.name}"
        tree.append((place, plan.Bind(str(folder), place, options, idmap="none")))
    return tree


def _devices(subject: Subject) -> tuple[str, ...]:
    brand = subject.brand
    names = [_device(rule) for rule in brand.devices if _applies(rule, subject.zone.ip_type)]
    if subject.mode is Mode.BOOT:
        names += [device.match.removeprefix("/dev/") for device in subject.zone.device]
        names += [name for name in subject.zone.fs_allowed if name == "fuse"]  # the device is what makes it possible
    return tuple(dict.fromkeys(names))


def _device_tree(subject: Subject) -> plan.DeviceTree:
    return plan.DeviceTree(
        _devices(subject), tuple(f"{link.path}>{link.target}" for link in subject.brand.links)
    )


def _applies(rule: DeviceRule, ip_type: str) -> bool:
    """Whether the zone gets the device: its ip-type is meant, and the host has one or must have."""
    if rule.ip_type not in ("", ip_type):
        return False
    return not rule.optional or os.path.exists(f"/dev/{rule.match}")


def _device(rule: DeviceRule) -> str:
    return f"{rule.match}>{rule.name}" if rule.name else rule.match


def _tree(subject: Subject) -> list[plan.Op]:
    """The mount tree of a zone that boots."""
    mounts = _kernel_mounts() + _cgroup_mounts(subject)
    mounts.append(("/dev", _device_tree(subject)))
    mounts.append(
        ("/dev/shm", plan.FileSystem("tmpfs", "tmpfs", "/dev/shm", ("nosuid", "nodev", "mode=1777")))
    )
    brand_mounts = [(m.directory, _platform_mount(subject, m, subject.root)) for m in subject.brand.mounts]
    mounts += [(directory, op) for directory, op in brand_mounts if op]
    if not any(directory == "/run" for directory, _ in mounts):
        mounts.append(("/run", plan.FileSystem("tmpfs", "tmpfs", "/run", ("nosuid", "nodev", "mode=755"))))
    mounts.append(("/run/host", plan.RunHost(subject.uuid, subject.brand.notifies)))
    loose = _loose_directories(subject)
    mounts += [(fs.dir, fs_mount(fs, subject.zone)) for fs in subject.zone.fs if fs.dir not in loose]
    mounts += [] if _hosts_are_loose(subject) else [(op.directory, op) for op in _hosts(subject)]
    mounts.sort(key=lambda pair: pair[0])
    return [plan.RootTree(subject.root), *_own_mounts(subject), *(op for _directory, op in mounts), plan.Console()]


def _loose_mounts(subject: Subject) -> list[plan.Op]:
    """Fs resources that lie on the zone's own root are mounted when the tree is sealed, so that they can be taken away
    while the zone runs: what is sealed stays, for the host too (``propagate_umount`` leaves locked mounts alone).

    Root of the zone may take such a mount off its own view, and then sees its own folder: there is nothing to hide.
    """
    loose = _loose_directories(subject)
    chosen = sorted((fs for fs in subject.zone.fs if fs.dir in loose), key=lambda fs: fs.dir)
    hosts = _hosts(subject) if _hosts_are_loose(subject) else []
    return [*hosts, *(fs_mount(fs, subject.zone) for fs in chosen)]


def _loose_directories(subject: Subject) -> set[str]:
    """Mount points of fs resources with nothing of the brand's or the kernel's below or above them.  In a root that is
    read-only none can be made later.
    """
    if mutable_folders(subject) is not None:
        return set()
    ours = [CGROUP, "/dev", "/proc", "/sys", "/run", *(mount.directory for mount in subject.brand.mounts)]
    loose: set[str] = set()
    for fs in sorted(subject.zone.fs, key=lambda fs: fs.dir):
        early = [other.dir for other in subject.zone.fs if other.dir < fs.dir and other.dir not in loose]
        if not any(_nested(fs.dir, directory) for directory in (*ours, *early)):
            loose.add(fs.dir)
    return loose


def _nested(one: str, other: str) -> bool:
    """Whether one of two paths is the other or lies below it."""
    return f"{one}/".startswith(f"{other}/") or f"{other}/".startswith(f"{one}/")


def _platform_mount(subject: Subject, mount: PlatformMount, root: str) -> plan.Op | None:
    """A brand's mount with its paths filled in, or None when it is optional and the host has no such thing."""
    zone = subject.zone
    special = mount.special.format(
        zonepath=zone.zonepath, root=root, zonename=zone.zonename, data=subject.data
    )
    if mount.type != "bind":
        return plan.FileSystem(mount.type, special, mount.directory, mount.options)
    if mount.optional and not os.path.exists(special):
        return None
    return plan.Bind(special, mount.directory, mount.options, make=mount.kind, within=_within(special, zone))


def _within(special: str, zone: Zone) -> str:
    """The zone's folder for what lies in it: below its root the zone itself may have made what the names lead to."""
    return zone.zonepath if special.startswith(f"{zone.zonepath}/") else ""


def fs_mount(fs: FsResource, zone: Zone) -> plan.Op:
    """An fs resource as an op.  ConfigError for types that are not allowed in a zone."""
    if fs.type in _REFUSED_TYPES or fs.type.startswith("nfs"):
        raise ConfigError("cannot verify fs {dir}: type {type} is not allowed.", dir=fs.dir, type=fs.type)
    if fs.type in _BIND_TYPES:
        read_only = "ro" in fs.options
        idmap = "zone" if fs.idmap == "root" or read_only else (fs.owner or "")
        if not idmap and not zone.privileged:
            raise ConfigError(
                'fs {dir}: a writable bind needs owner = "UID:GID" (a host user) or idmap = "root"',
                dir=fs.dir,
            )
        make = "file" if os.path.isfile(fs.special) else "dir"
        # Without links from the host's root on: the folder above may be a zone's to write, by another resource.
        return plan.Bind(
            fs.special,
            fs.dir,
            fs.options,
            idmap or "none",
            make,
            recursive="rbind" in fs.options,
            within="/",
        )
    return plan.FileSystem(fs.type, fs.special, fs.dir, fs.options, fs.raw or "")


def _alternate_tree(subject: Subject) -> list[plan.Op]:
    """The tree of a zone mounted for maintenance (reference, section 3.3, adapted to Linux).

    The zone's own root is on /a, read-write.  SCRATCH shows the zone's /etc and /var with the host's programs;
    UPDATE shows the host's system read-only.  Host folders other than /usr are bound unshifted: what only the
    host's root may read stays so.
    """
    zonepath = subject.zone.zonepath
    own = f"{zonepath}/root"
    ops: list[plan.Op] = [plan.ScratchRoot(subject.root, _host_links())]
    mounts = _kernel_mounts()
    mounts.append(("/dev", _device_tree(subject)))
    mounts.append(("/a", plan.Bind(own, "/a", within=zonepath)))
    mounts.append(("/usr", plan.Bind("/usr", "/usr", ("ro", "nosuid"))))
    for directory in _host_directories():
        mounts.append((directory, plan.Bind(directory, directory, ("ro", "nosuid"))))
    for directory in ("/tmp", "/run"):
        mounts.append(
            (directory, plan.FileSystem("tmpfs", "tmpfs", directory, ("nosuid", "nodev", "mode=1777")))
        )
    if subject.mode is Mode.SCRATCH:
        mounts += [(d, plan.Bind(own + d, d, within=zonepath)) for d in ("/etc", "/var")]
    else:
        read_only = ("ro", "nosuid", "nodev")
        mounts += [
            (d, plan.Bind(d, d, read_only, idmap="none"))
            for d in ("/etc", "/opt", "/var")
            if os.path.isdir(d)
        ]
        mounts.append(
            ("/var/tmp", plan.FileSystem("tmpfs", "tmpfs", "/var/tmp", ("nosuid", "nodev", "mode=1777")))
        )
    for fs in subject.zone.fs:
        mounts.append((f"/a{fs.dir}", fs_mount(_below_a(fs), subject.zone)))
    mounts.sort(key=lambda pair: pair[0])
    return [*ops, *(op for _directory, op in mounts)]


def _below_a(fs: FsResource) -> FsResource:
    return dataclasses.replace(fs, dir=f"/a{fs.dir}")


_SYSTEM_DIRECTORIES = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")


def _host_links() -> tuple[str, ...]:
    """/bin and its like where they are links into /usr, as the host has them."""
    return tuple(f"{d[1:]}>{os.readlink(d)}" for d in _SYSTEM_DIRECTORIES if os.path.islink(d))


def _host_directories() -> tuple[str, ...]:
    return tuple(d for d in _SYSTEM_DIRECTORIES if os.path.isdir(d) and not os.path.islink(d))


# -- names ------------------------------------------------------------------------------------------------------

_HOSTS = "/etc/hosts"
_HOSTS_MAX_BYTES = 64 << 10
_LOOPBACK = (b"127.", b"::1", b"fe00::", b"ff0")  # what such a file begins with in every distribution


def _names(subject: Subject) -> list[plan.Op]:
    """The zone's names, before its mounts: the file that they go to is one of them."""
    zone = subject.zone
    own = tuple(network.bare(address) for net in zone.net for address in network.addresses(net))
    if not own:
        return []
    names = tuple(dict.fromkeys((zone.zonename, *((zone.hostname,) if zone.hostname else ()))))
    return [plan.Names(zone.zonename, names, own, subject.settings.etc_hosts)]


def _hosts(subject: Subject) -> list[plan.Bind]:
    """The host's view of all names on the zone's /etc/hosts, when that hides nothing of the zone's own."""
    if subject.zone.hosts != "shared" or not _names(subject) or any(fs.dir == _HOSTS for fs in subject.zone.fs):
        return []
    for folder in (subject.root, *subject.layers):
        content = _own_hosts(folder)
        if content is not None:
            break
    else:
        return []
    lines = (line.partition(b"#")[0].split() for line in content.splitlines())
    if not all(words[0].startswith(_LOOPBACK) for words in lines if words):
        return []
    file = str(hosts_file(subject.layout))
    return [plan.Bind(file, _HOSTS, ("ro", "nosuid", "nodev"), idmap="none", make="file")]


def _own_hosts(folder: str) -> bytes | None:
    """The file in the zone's root, which is the zone's to arrange: no link is followed and no pipe waited for."""
    try:
        root_fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            file_fd = paths.open_beneath(root_fd, _HOSTS, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        finally:
            os.close(root_fd)
        with open(file_fd, "rb") as file:
            return file.read(_HOSTS_MAX_BYTES)
    except OSError:
        return None


def _hosts_are_loose(subject: Subject) -> bool:
    """Mounted when the tree is sealed, where it can be: root of the zone may take it off to have its own file."""
    brand_has_etc = any(_nested(_HOSTS, mount.directory) for mount in subject.brand.mounts)
    return mutable_folders(subject) is None and not brand_has_etc


# -- network ----------------------------------------------------------------------------------------------------


def _network(subject: Subject) -> list[plan.Op]:
    """All but the links: claims first, then what zones share, then the filters, which are made beside the mounts."""
    zone = subject.zone
    ops: list[plan.Op] = [plan.Claim(claim) for claim in network.claims(zone)]
    if zone.ip_type == "shared":
        return [*ops, *_shared_network(subject)]
    ops += _shared_by_zones(subject)
    bridges = tuple(dict.fromkeys(_bridge(subject, net) for net in zone.net if net.anet))
    if subject.settings.admit and bridges:
        ops.append(plan.Admit(zone.zonename, bridges, admitting_chains(subject.settings.admit)))
    return [*ops, *_filters(subject)]


def _links(subject: Subject) -> list[plan.Op]:
    """The links of an exclusive stack."""
    zone = subject.zone
    if zone.ip_type == "shared":
        return []
    return [plan.Loopback(), *(op for index, net in enumerate(zone.net) for op in _link(subject, index, net))]


def _shared_network(subject: Subject) -> list[plan.Op]:
    """Addresses on the host's links, and the zone held to them."""
    zone = subject.zone
    if zone.privileged:
        raise PlatformError("ip-type shared needs a user namespace: root of a privileged zone is the host's")
    ops: list[plan.Op] = [
        plan.SharedAddress(net.physical or "", address) for net in zone.net for address in net.address
    ]
    own = tuple(network.bare(address) for net in zone.net for address in net.address)
    return [*ops, plan.HoldToAddresses(own, subject.uid_base // IDS_PER_ZONE)]


def admitting_chains(names: Iterable[str]) -> tuple[str, ...]:
    """The chains of others that a setting's names stand for."""
    return tuple(chain for name in names for chain in firewall.ADMITTING[name])


def _bridge(subject: Subject, net: NetResource) -> str:
    return net.anet or subject.settings.bridge


def _host_link(subject: Subject, index: int) -> str:
    return host_link_name(subject.zone.zonename, index, subject.layout.suffix)


def _mac(subject: Subject, index: int, net: NetResource) -> str:
    """The Ethernet address that was asked for, else one that stays the same on this host."""
    if net.mac_address and net.mac_address != "auto":
        return net.mac_address
    return network.stable_mac(_host_id(), subject.uuid, index, net.mac_prefix or "")


def _host_id() -> str:
    try:
        with open("/etc/machine-id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return os.uname().nodename


def _shared_by_zones(subject: Subject) -> list[plan.Op]:
    """The default bridge, and the host's settings that this zone needs."""
    zone, settings = subject.zone, subject.settings
    ops: list[plan.Op] = []
    on_default = [net for net in zone.net if net.anet == settings.bridge]
    if on_default:
        vlans = any(net.vlan_id for net in on_default)
        ops.append(plan.Bridge(settings.bridge, tuple(settings.bridge_address), vlans))
        if settings.forwarding:
            ops += [plan.HostSetting(name, "1") for name in _FORWARDING if os.path.exists(f"/proc/sys/{name}")]
        ops += _room_for_neighbours(instances.count(subject.layout) + 1)
    for bridge in dict.fromkeys(forward.bridge for forward in _forwards(subject)):
        # Replies to the host's loopback come in by the bridge, and so do those who ask from other zones.
        names = ("route_localnet", "forwarding")
        ops += [plan.HostSetting(f"net/ipv4/conf/{bridge}/{name}", "1") for name in names]
    ways_back = dict.fromkeys(forward.bridge for forward in _forwards(subject) if forward.loopback6)
    return [*ops, *(plan.WayBack(bridge) for bridge in ways_back)]


def _room_for_neighbours(zones: int) -> Iterator[plan.Op]:
    """The host's limits, which only its first network namespace has as settings."""
    for family in ("ipv4", "ipv6"):
        names = [f"net/{family}/neigh/default/gc_thresh{number}" for number in (3, 2, 1)]
        try:
            with open(f"/proc/sys/{names[0]}", encoding="ascii") as file:
                limits = network.neighbour_limits(int(file.read()), zones)
        except OSError:
            continue
        yield from (plan.HostSetting(name, str(limit)) for name, limit in zip(names, limits, strict=False))


_FORWARDING = ("net/ipv4/conf/all/forwarding", "net/ipv6/conf/all/forwarding")


def _filters(subject: Subject) -> list[plan.Op]:
    zone, settings = subject.zone, subject.settings
    ops: list[plan.Op] = []
    for index, net in enumerate(zone.net):
        protections = network.protections(net)
        if net.anet and protections:
            mac = _mac(subject, index, net)
            required = bool(net.link_protection or net.allowed_address)
            ops.append(
                plan.Guard(
                    _host_link(subject, index),
                    zone.zonename,
                    mac,
                    network.sources(net),
                    protections,
                    required,
                )
            )
    inside = tuple(
        network.bare(address) for net in zone.net if net.anet == settings.bridge for address in net.address
    )
    if settings.translate and inside:
        ops.append(plan.Translate(settings.bridge, zone.zonename, inside))
    return [*ops, *_forwards(subject)]


def _forwards(subject: Subject) -> list[plan.Forward]:
    """Each leads to the first address of each family that the zone has on a bridge."""
    zone = subject.zone
    own = [(network.bare(a), _bridge(subject, net)) for net in zone.net if net.anet for a in net.address]
    filtered = bool(zone.forward) and traffic.bridges_filter6()
    ops = []
    for forward in zone.forward:
        if forward.address == "::1" and filtered:
            raise PlatformError(
                "port {port} of ::1 cannot lead into a zone while bridges filter IPv6"
                " (sysctl -w net.bridge.bridge-nf-call-ip6tables=0, or address=127.0.0.1)",
                port=forward.port,
            )
        families = [False, True] if forward.address is None else [network.is_v6(forward.address)]
        found = [next((pair for pair in own if network.is_v6(pair[0]) is v6), None) for v6 in families]
        targets = [pair for pair in found if pair is not None]
        ops.append(
            plan.Forward(
                zone.zonename,
                targets[0][1],
                forward.protocol,
                forward.port,
                tuple(address for address, _ in targets),
                forward.to or forward.port,
                forward.address or "",
                loopback6=not filtered and forward.address in (None, "::1") and network.is_v6(targets[-1][0]),
            )
        )
    return ops


def _link(subject: Subject, index: int, net: NetResource) -> list[plan.Op]:
    """One link and its addresses."""
    zonename = subject.zone.zonename
    mac = _mac(subject, index, net)
    if net.physical:
        name = net.linkname or net.physical
        given = net.mac_address if net.mac_address != "auto" else None
        moved = plan.MoveLink(net.physical, "" if name == net.physical else name, net.mtu, given)
        return [moved, _configure(net, name)]
    name = net.linkname or f"host{index}"
    if net.macvlan:
        return [plan.Macvlan(net.macvlan, name, net.mtu, mac), _configure(net, name)]
    host = _host_link(subject, index)
    altname = f"zone-{zonename}-{index}{subject.layout.suffix}"
    ops: list[plan.Op] = [
        plan.Veth(
            host,
            name,
            _bridge(subject, net),
            altname,
            net.mtu,
            mac,
            net.vlan_id,
            hairpin=bool(subject.zone.forward),
        )
    ]
    if net.maxbw:
        ops.append(plan.Bandwidth(host, f"vi-{host.removeprefix('vb-')}", network.bits_per_second(net.maxbw)))
    return [*ops, _configure(net, name)]


def _configure(net: NetResource, name: str) -> plan.ConfigureLink:
    return plan.ConfigureLink(name, network.addresses(net), net.defrouter)
