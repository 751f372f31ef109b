"""A plan: what a transition will do to the kernel, as data.

``platform.compose`` makes it, ``zonemgr plan`` prints it, ``platform.runner`` executes it and writes each op to
the ledger before it acts.  An op is a small frozen value that says in the operator's words what it is
(``describe``), survives JSON (the ledger is read by successors), and holds no behaviour of the kernel.
"""

from __future__ import annotations

import dataclasses
import enum
from dataclasses import dataclass
from typing import Any, ClassVar

from zonemgr.model import network

_KINDS: dict[str, type[Op]] = {}


class Live(enum.Enum):
    """How an op of a living zone may be changed (``model.delta``)."""

    NEVER = "never"
    REMAKE = "remake"  # taken away and made anew
    REWRITE = "rewrite"  # what is there is given other values


@dataclass(frozen=True)
class Op:
    """One step of a plan.  Each sub-class has a ``kind``, its name in JSON."""

    kind: ClassVar[str] = "op"
    live: ClassVar[Live] = Live.NEVER

    def __init_subclass__(cls) -> None:
        _KINDS[cls.kind] = cls

    @property
    def identity(self) -> tuple[object, ...]:
        """What tells the op from others of a plan: an op of the same identity in another plan is the same thing,
        with other values.
        """
        return (self.kind, repr(self)) if self.live is Live.NEVER else (self.kind,)

    @property
    def mount_point(self) -> str | None:
        """Where the op mounts something, if that is what it does."""
        return None

    def rests_on(self, other: Op) -> bool:
        """Whether the op must be made anew when the other one is."""
        mine, below = self.mount_point, other.mount_point
        return mine is not None and below is not None and mine.startswith(f"{below.rstrip('/')}/")

    def describe(self) -> str:
        """What the op does, for ``zonemgr plan``."""
        raise NotImplementedError

    def to_json(self) -> dict[str, Any]:
        """The op as a JSON table with its kind."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {"kind": self.kind, **values}  # plain values and tuples of them: nothing to copy deeply


def from_json(table: dict[str, Any]) -> Op:
    """The op that ``to_json`` wrote.  Lists become tuples again; keys of newer versions are ignored."""
    cls = _KINDS[table["kind"]]
    known = {field.name for field in dataclasses.fields(cls)}
    values = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in table.items()
        if key in known
    }
    return cls(**values)


# -- the zone's processes ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MakeCgroup(Op):
    """The zone's folders in every hierarchy."""

    kind: ClassVar[str] = "cgroup"
    base: str  # folder of this instance below each hierarchy
    zonename: str

    def describe(self) -> str:
        return f"make cgroup {self.base}/{self.zonename}"


@dataclass(frozen=True)
class SetLimits(Op):
    """Resource limits on the zone's cgroup.  None leaves a limit alone, or lifts it where a living zone is changed."""

    kind: ClassVar[str] = "limits"
    live: ClassVar[Live] = Live.REWRITE
    memory_bytes: int | None = None
    swap_bytes: int | None = None  # memory and swap together, as zones count
    cpus: float | None = None
    cpu_shares: int | None = None
    pids: int | None = None
    io_weight: int | None = None
    io_throttles: tuple[str, ...] = ()  # "/dev/sda read-bps=1048576 write-iops=100"
    huge_pages: tuple[str, ...] = ()  # "2097152=8388608": size of a page, bytes
    oom_group: bool = False
    best_effort: bool = False
    optional: tuple[str, ...] = ()  # limits that nobody asked for: a host that lacks them is no obstacle

    @property
    def empty(self) -> bool:
        return dataclasses.replace(self, best_effort=False, optional=()) == SetLimits()

    def describe(self) -> str:
        fields = (field.name for field in dataclasses.fields(self) if field.name not in ("best_effort", "optional"))
        given = ((name, getattr(self, name)) for name in fields)
        words = (
            f"{name} {', '.join(value) if isinstance(value, tuple) else value}"
            for name, value in given
            if value not in (None, (), False)
        )
        return "limit " + ", ".join(words)


@dataclass(frozen=True)
class DedicateCpus(Op):
    """CPUs of the host that no other zone runs on, kept until the zone is halted."""

    kind: ClassVar[str] = "dedicated-cpu"
    live: ClassVar[Live] = Live.REWRITE
    zonename: str
    unit: str  # ncpus, cpus, cores or sockets
    wanted: str  # a number or a range of how many, or which
    best_effort: bool = False

    def describe(self) -> str:
        return f"dedicate {self.unit} {self.wanted} to the zone"


@dataclass(frozen=True)
class JoinPool(Op):
    """The CPUs that the zone shares with the other zones of its pool."""

    kind: ClassVar[str] = "pool"
    live: ClassVar[Live] = Live.REWRITE
    zonename: str
    pool: str
    cpus: str  # "0-3,6"; empty: the host has no such pool

    def describe(self) -> str:
        return f"keep the zone to the CPUs of pool {self.pool} ({self.cpus or 'none'})"


@dataclass(frozen=True)
class SetProcessLimits(Op):
    """What each process of the zone begins with: its rlimits, and its score when the host runs out of memory."""

    kind: ClassVar[str] = "rlimits"
    live: ClassVar[Live] = Live.REWRITE
    limits: tuple[str, ...]  # "nofile=1024:524288"
    asked: tuple[str, ...] = ()  # names that the configuration gives: these are set or the boot is refused
    oom_score_adj: int = 0
    scheduling_class: str = ""
    best_effort: bool = False

    def describe(self) -> str:
        named = [words for words in self.limits if words.partition("=")[0] in self.asked]
        limits = " ".join([*named, "otherwise" if named else "to", "the defaults"])
        return f"set the limits of a process: {limits}; oom_score_adj {self.oom_score_adj}"


@dataclass(frozen=True)
class SetQuota(Op):
    """The most disk space below a folder, as a project of its file system; None lifts it."""

    kind: ClassVar[str] = "quota"
    live: ClassVar[Live] = Live.REWRITE
    path: str
    project: int
    limit_bytes: int | None
    best_effort: bool = False

    def describe(self) -> str:
        if self.limit_bytes is None:
            return f"lift the quota of {self.path}"
        return f"hold {self.path} to {self.limit_bytes} bytes of disk space (project {self.project})"


@dataclass(frozen=True)
class StartZsched(Op):
    """zsched, the namespaces, and the parked process 1."""

    kind: ClassVar[str] = "zsched"
    uid_base: int
    privileged: bool
    hostname: str

    def describe(self) -> str:
        if self.privileged:
            return "start zsched and the parked init in new namespaces, WITHOUT a user namespace"
        return f"start zsched and the parked init in new namespaces, ids from {self.uid_base}"


# -- the mount tree ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layers(Op):
    """The layers of the zone's root put together at its place, each with its ids mapped."""

    kind: ClassVar[str] = "layers"
    zonepath: str
    layers: tuple[str, ...]

    @property
    def root(self) -> str:
        """What is written: the uppermost layer, and where all of them are seen."""
        return f"{self.zonepath}/root"

    @property
    def work(self) -> str:
        """The overlay's own folder."""
        return f"{self.zonepath}/work"

    def describe(self) -> str:
        return f"mount an overlay of {self.root} upon {' '.join(self.layers)}, ids mapped"


@dataclass(frozen=True)
class RootTree(Op):
    """The zone's own root as the root of its mount tree."""

    kind: ClassVar[str] = "root"
    path: str

    def describe(self) -> str:
        return f"mount {self.path} as the zone's root, ids mapped"


@dataclass(frozen=True)
class ScratchRoot(Op):
    """A small tmpfs as the root of a zone that is mounted for maintenance."""

    kind: ClassVar[str] = "scratch-root"
    path: str
    links: tuple[str, ...] = ()  # "name>target" symbolic links below the root

    def describe(self) -> str:
        return f"mount a tmpfs on {self.path} as the scratch zone's root"


@dataclass(frozen=True)
class Bind(Op):
    """A host path bound into the zone.

    ``idmap`` is ``zone`` (ids on disk are the zone's own), ``none`` (bound unshifted: host owners show as nobody) or
    ``UID:GID`` (that host owner appears as the zone's root).  ``within``: the folder that the special lies in and
    below which nothing may be a link, because the zone could have planted it; empty: the special is the host's own.
    """

    kind: ClassVar[str] = "bind"
    live: ClassVar[Live] = Live.REMAKE
    special: str
    directory: str
    options: tuple[str, ...] = ()
    idmap: str = "zone"
    make: str = "dir"  # what to make when the mount point is missing: dir or file
    recursive: bool = False
    within: str = ""

    @property
    def identity(self) -> tuple[object, ...]:
        return ("mount", self.directory)

    @property
    def mount_point(self) -> str:
        return self.directory

    def describe(self) -> str:
        options = f" ({','.join(self.options)})" if self.options else ""
        return f"bind {self.special} on {self.directory}{options}"


@dataclass(frozen=True)
class FileSystem(Op):
    """A file system of its own mounted in the zone: tmpfs, or a block file system of an ``fs`` resource."""

    kind: ClassVar[str] = "fs"
    live: ClassVar[Live] = Live.REMAKE
    type: str
    special: str
    directory: str
    options: tuple[str, ...] = ()
    raw: str = ""  # checked by the file system's fsck before the mount

    @property
    def identity(self) -> tuple[object, ...]:
        return ("mount", self.directory)

    @property
    def mount_point(self) -> str:
        return self.directory

    def describe(self) -> str:
        options = f" ({','.join(self.options)})" if self.options else ""
        return f"mount {self.type} {self.special} on {self.directory}{options}"


@dataclass(frozen=True)
class KernelFileSystem(Op):
    """proc, sysfs, mqueue, devpts or cgroup2: made with host credentials inside the zone's namespaces."""

    kind: ClassVar[str] = "kernel-fs"
    type: str
    directory: str
    read_only: bool = False

    @property
    def mount_point(self) -> str:
        return self.directory

    def describe(self) -> str:
        return f"mount {self.type} on {self.directory}" + (" (ro)" if self.read_only else "")


@dataclass(frozen=True)
class DeviceTree(Op):
    """/dev: a tmpfs with the zone's devices and links, and nothing else."""

    kind: ClassVar[str] = "dev"
    live: ClassVar[Live] = Live.REWRITE
    devices: tuple[str, ...]
    links: tuple[str, ...]  # "path>target"

    @property
    def mount_point(self) -> str:
        return "/dev"

    def describe(self) -> str:
        return "make /dev with " + " ".join(self.devices)


@dataclass(frozen=True)
class AllowDevices(Op):
    """The devices that the zone's processes may open, by whatever node: names and patterns as in DeviceTree."""

    kind: ClassVar[str] = "allow-devices"
    live: ClassVar[Live] = Live.REWRITE
    devices: tuple[str, ...]

    def describe(self) -> str:
        return "let the zone open no device but " + " ".join(self.devices)


@dataclass(frozen=True)
class OwnMounts(Op):
    """Folders of the zone's root become mounts of their own, which may stay writable when the root does not."""

    kind: ClassVar[str] = "own-mounts"
    directories: tuple[str, ...]

    def describe(self) -> str:
        return "keep apart from the root " + " ".join(self.directories)


@dataclass(frozen=True)
class ReadOnlyRoot(Op):
    """The zone's own root becomes read-only, but for what was mounted on it (file-mac-profile)."""

    kind: ClassVar[str] = "read-only-root"
    directories: tuple[str, ...]

    def describe(self) -> str:
        return "make read-only " + " ".join(self.directories)


@dataclass(frozen=True)
class Console(Op):
    """A pty from the zone's own devpts: the slave on /dev/console, the master with zsched."""

    kind: ClassVar[str] = "console"

    @property
    def mount_point(self) -> str:
        return "/dev/console"

    def describe(self) -> str:
        return "open the console pty and bind it on /dev/console"


@dataclass(frozen=True)
class Mask(Op):
    """Hide a path: a file behind the null device, a folder behind an empty read-only tmpfs.  Missing paths are
    fine.
    """

    kind: ClassVar[str] = "mask"
    paths: tuple[str, ...]
    read_only: tuple[str, ...] = ()

    def describe(self) -> str:
        return (
            "mask "
            + " ".join(self.paths)
            + ("; read-only " + " ".join(self.read_only) if self.read_only else "")
        )


@dataclass(frozen=True)
class RunHost(Op):
    """/run/host: what the guest may know of where it is (container-manager, container-uuid, the host's os-release).

    ``notify``: and a socket by which its init tells when it is ready.
    """

    kind: ClassVar[str] = "run-host"
    uuid: str
    notify: bool = False

    @property
    def mount_point(self) -> str:
        return "/run/host"

    def describe(self) -> str:
        return "make /run/host"


@dataclass(frozen=True)
class HostId(Op):
    """The zone's hostid: a read-only file on /etc/hostid."""

    kind: ClassVar[str] = "hostid"
    value: int

    def describe(self) -> str:
        return f"set hostid {self.value:08x}"


@dataclass(frozen=True)
class Seal(Op):
    """Pivot into the finished tree and give process 1 its own locked copy of it."""

    kind: ClassVar[str] = "seal"

    def describe(self) -> str:
        return "pivot into the finished mount tree and lock every mount"


# -- the network ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Loopback(Op):
    """The zone's own loopback comes up."""

    kind: ClassVar[str] = "loopback"

    def describe(self) -> str:
        return "bring lo up"


@dataclass(frozen=True)
class Bridge(Op):
    """The default bridge, made on first use and shared by all zones of this instance."""

    kind: ClassVar[str] = "bridge"
    live: ClassVar[Live] = Live.REMAKE
    name: str
    addresses: tuple[str, ...]
    vlans: bool = False  # it has to tell VLANs apart

    @property
    def identity(self) -> tuple[object, ...]:
        return (self.kind, self.name)

    def describe(self) -> str:
        return f"make bridge {self.name} with {' '.join(self.addresses)} unless it exists"


@dataclass(frozen=True)
class Claim(Op):
    """An address, or a port of the host, becomes this zone's alone for as long as it lives."""

    kind: ClassVar[str] = "claim"
    live: ClassVar[Live] = Live.REMAKE
    claim: str

    @property
    def identity(self) -> tuple[object, ...]:
        return (self.kind, self.claim)

    def describe(self) -> str:
        return f"claim {network.describe_claim(self.claim)}"


@dataclass(frozen=True)
class Names(Op):
    """The zone's names, for the host and for other zones."""

    kind: ClassVar[str] = "names"
    live: ClassVar[Live] = Live.REWRITE
    zonename: str
    names: tuple[str, ...]
    addresses: tuple[str, ...]
    host: bool = False  # in the host's own /etc/hosts as well

    @property
    def identity(self) -> tuple[object, ...]:
        return (self.kind,)

    def describe(self) -> str:
        return f"publish the name {' and '.join(self.names)} for {' '.join(self.addresses)}"


@dataclass(frozen=True)
class HostSetting(Op):
    """A kernel setting of the host that zones need.  It stays, in the host's ledger, until ``fsck --host``."""

    kind: ClassVar[str] = "host-setting"
    live: ClassVar[Live] = Live.REMAKE
    name: str  # below /proc/sys
    value: str

    @property
    def identity(self) -> tuple[object, ...]:
        return (self.kind, self.name)

    def describe(self) -> str:
        return f"set {self.name.replace('/', '.')} of the host to {self.value}"


@dataclass(frozen=True)
class WayBack(Op):
    """Replies of zones to the host's ::1 may come in by their bridge.  It stays, as settings do."""

    kind: ClassVar[str] = "way-back"
    live: ClassVar[Live] = Live.REMAKE
    bridge: str

    @property
    def identity(self) -> tuple[object, ...]:
        return (self.kind, self.bridge)

    def describe(self) -> str:
        return f"let replies to the host's ::1 in by {self.bridge}"


@dataclass(frozen=True)
class Guard(Op):
    """What arrives on the host's end of a link is dropped unless it is the zone's own to send."""

    kind: ClassVar[str] = "guard"
    live: ClassVar[Live] = Live.REWRITE
    link: str
    zonename: str
    mac: str
    sources: tuple[str, ...]
    protections: tuple[str, ...]
    required: bool = False  # asked for in so many words: without it the zone does not boot

    @property
    def identity(self) -> tuple[object, ...]:
        return (self.kind, self.link)

    def describe(self) -> str:
        return f"hold {self.link} to {' '.join((self.mac, *self.sources))} ({', '.join(self.protections)})"


@dataclass(frozen=True)
class Translate(Op):
    """What the zone sends out of the host leaves with the host's address."""

    kind: ClassVar[str] = "translate"
    live: ClassVar[Live] = Live.REMAKE
    bridge: str
    zonename: str
    addresses: tuple[str, ...]

    @property
    def identity(self) -> tuple[object, ...]:
        return (self.kind, self.bridge)

    def describe(self) -> str:
        return f"translate {' '.join(self.addresses)} on the way out of {self.bridge}"


@dataclass(frozen=True)
class Forward(Op):
    """A port of the host leads into the zone, from outside, from the host itself and from other zones."""

    kind: ClassVar[str] = "forward"
    live: ClassVar[Live] = Live.REMAKE
    zonename: str
    bridge: str
    protocol: str
    port: int
    to: tuple[str, ...]  # addresses in the zone, one a family at most
    to_port: int
    address: str = ""  # of the host; empty: every one
    loopback6: bool = False  # also ::1

    @property
    def identity(self) -> tuple[object, ...]:
        return (self.kind, self.protocol, self.port, self.address)

    def describe(self) -> str:
        place = f"{self.address} " if self.address else ""
        return f"forward {place}port {self.port}/{self.protocol} to {' and '.join(self.to)} port {self.to_port}"


@dataclass(frozen=True)
class Admit(Op):
    """An accept rule in somebody else's chain, which would drop the zone's traffic.  Only where the settings say so."""

    kind: ClassVar[str] = "admit"
    live: ClassVar[Live] = Live.REMAKE
    zonename: str
    links: tuple[str, ...]  # host links, such as the bridge
    chains: tuple[str, ...]  # "family table chain"

    @property
    def identity(self) -> tuple[object, ...]:
        return (self.kind,)

    def describe(self) -> str:
        return f"accept traffic of {' '.join(self.links)} in {', '.join(self.chains)}"


FILTERS: tuple[type[Op], ...] = (Guard, Translate, Forward)  # one batch of nftables when they follow each other


@dataclass(frozen=True)
class Veth(Op):
    """A pair of virtual links: one end on the host's bridge, the other in the zone."""

    kind: ClassVar[str] = "veth"
    live: ClassVar[Live] = Live.REWRITE
    host_name: str
    zone_name: str
    bridge: str
    altname: str
    mtu: int | None = None
    mac: str | None = None
    vlan: int | None = None
    hairpin: bool = False  # what the zone sends may come back to it, through a port of the host that leads to it

    @property
    def identity(self) -> tuple[object, ...]:
        return (self.kind, self.host_name, self.zone_name, self.vlan)

    def describe(self) -> str:
        vlan = f", VLAN {self.vlan}" if self.vlan else ""
        return f"make veth {self.host_name} on bridge {self.bridge}{vlan}, {self.zone_name} in the zone"


@dataclass(frozen=True)
class Bandwidth(Op):
    """The most bits a second through a link, each way."""

    kind: ClassVar[str] = "bandwidth"
    live: ClassVar[Live] = Live.REWRITE
    link: str  # the host's end
    return_link: str  # made for the way out of the zone
    bits_s: int

    @property
    def identity(self) -> tuple[object, ...]:
        return (self.kind, self.link)

    def rests_on(self, other: Op) -> bool:
        return isinstance(other, Veth) and other.host_name == self.link

    def describe(self) -> str:
        return f"hold {self.link} to {self.bits_s} bits a second each way"


@dataclass(frozen=True)
class Macvlan(Op):
    """A link with an Ethernet address of its own on top of one of the host's."""

    kind: ClassVar[str] = "macvlan"
    live: ClassVar[Live] = Live.REMAKE
    lower: str
    zone_name: str
    mtu: int | None = None
    mac: str | None = None

    @property
    def identity(self) -> tuple[object, ...]:
        return (self.kind, self.zone_name)

    def describe(self) -> str:
        return f"make macvlan {self.zone_name} on {self.lower} in the zone"


@dataclass(frozen=True)
class SharedAddress(Op):
    """An address on a link of the host, for a zone on the host's own network stack."""

    kind: ClassVar[str] = "shared-address"
    live: ClassVar[Live] = Live.REMAKE
    link: str
    address: str

    @property
    def identity(self) -> tuple[object, ...]:
        return (self.kind, network.bare(self.address))

    def describe(self) -> str:
        return f"give link {self.link} of the host the address {self.address}"


@dataclass(frozen=True)
class HoldToAddresses(Op):
    """The zone's processes use these addresses of the host's network stack, and no others."""

    kind: ClassVar[str] = "hold-addresses"
    live: ClassVar[Live] = Live.REWRITE
    addresses: tuple[str, ...]
    number: int  # tells the zone from others of the host, for a loopback address of its own

    @property
    def identity(self) -> tuple[object, ...]:
        return (self.kind,)

    def describe(self) -> str:
        return f"hold the zone to {' '.join(self.addresses) or 'no address'} of the host's network"


@dataclass(frozen=True)
class MoveLink(Op):
    """A physical link given to the zone, and taken back at halt."""

    kind: ClassVar[str] = "move-link"
    live: ClassVar[Live] = Live.REMAKE
    name: str
    zone_name: str = ""  # another name in the zone
    mtu: int | None = None
    mac: str | None = None

    @property
    def identity(self) -> tuple[object, ...]:
        return (self.kind, self.name)

    def describe(self) -> str:
        name = f" as {self.zone_name}" if self.zone_name else ""
        return f"move link {self.name} into the zone{name}"


@dataclass(frozen=True)
class ConfigureLink(Op):
    """Addresses and routers of a link in the zone, set before init runs."""

    kind: ClassVar[str] = "address"
    live: ClassVar[Live] = Live.REWRITE
    link: str
    addresses: tuple[str, ...]
    routers: tuple[str, ...]

    @property
    def identity(self) -> tuple[object, ...]:
        return (self.kind, self.link)

    def rests_on(self, other: Op) -> bool:
        return (isinstance(other, Veth | Macvlan) and other.zone_name == self.link) or (
            isinstance(other, MoveLink) and (other.zone_name or other.name) == self.link
        )

    def describe(self) -> str:
        routers = f" with default router {' '.join(self.routers)}" if self.routers else ""
        return f"bring {self.link} up, address {' '.join(self.addresses) or 'none'}{routers}"


@dataclass(frozen=True)
class Sysctls(Op):
    """Kernel settings of the zone's own namespaces ("name=value")."""

    kind: ClassVar[str] = "sysctl"
    live: ClassVar[Live] = Live.REWRITE
    settings: tuple[str, ...]

    def describe(self) -> str:
        return "set " + " ".join(self.settings)


# -- boot -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Machine(Op):
    """systemd-machined knows the zone."""

    kind: ClassVar[str] = "machine"
    zonename: str
    uuid: str
    root: str
    links: tuple[str, ...]  # on the host, those that lead to the zone

    def describe(self) -> str:
        return f"register {self.zonename} with systemd-machined"


@dataclass(frozen=True)
class ExecInit(Op):
    """The parked process becomes init."""

    kind: ClassVar[str] = "exec"
    init: str
    arguments: tuple[str, ...]

    def describe(self) -> str:
        return f"exec {' '.join((self.init, *self.arguments))} as process 1"


@dataclass(frozen=True)
class Plan:
    """A plan in its two halves: what ready does, and what boot does after it."""

    zonename: str
    ready: tuple[Op, ...]
    boot: tuple[Op, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The plan as ``zonemgr plan --json`` prints it."""
        return {
            "zonename": self.zonename,
            "ready": [{**op.to_json(), "text": op.describe()} for op in self.ready],
            "boot": [{**op.to_json(), "text": op.describe()} for op in self.boot],
        }
