"""The one table of everything a zone's configuration may say (design, section 5).

A property is a row: name, check, default, when a change takes effect, help, aliases.  ``zone`` builds the typed
configuration from this table, the editor and the documentation are driven by it.  Nothing is checked here that
needs more than one value; that is ``zone``'s part.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from zonemgr.errors import message
from zonemgr.model import checks
from zonemgr.model.checks import Check, Refused
from zonemgr.model.rlimits import RLIMITS


class When(enum.Enum):
    """When a changed property takes effect."""

    LIVE = "live"
    NEXT_BOOT = "next boot"
    REINSTALL = "reinstall"


class Form(enum.Enum):
    """How a property is written, in TOML and on a command line."""

    TEXT = "text"
    BOOLEAN = "boolean"
    NUMBER = "number"
    DECIMAL = "decimal"
    SIZE = "size"  # a number of bytes, or text with a unit
    LIST = "list"


@dataclass(frozen=True, slots=True)
class Property:
    """One row.  ``effect`` is False for what is checked and kept but does nothing yet."""

    name: str
    check: Check
    help: str
    form: Form = Form.TEXT
    default: object = None
    required: bool = False
    when: When = When.NEXT_BOOT
    aliases: tuple[str, ...] = ()
    effect: bool = True

    @property
    def field(self) -> str:
        """The property's name as a Python attribute."""
        return self.name.replace("-", "_")

    def from_text(self, given: str) -> object:
        """What a command line's ``name=given`` puts into the file.  Raises Refused."""
        match self.form:
            case Form.BOOLEAN:
                if given.lower() not in ("true", "false"):
                    raise Refused("must be true or false, not '{given}'", given=given)
                return given.lower() == "true"
            case Form.NUMBER:
                return _number(given)
            case Form.DECIMAL:
                return _decimal(given)
            case Form.SIZE:
                return int(given) if given.isdigit() else given
            case Form.LIST:
                return split_list(given)
            case Form.TEXT:
                return given


@dataclass(frozen=True, slots=True)
class Resource:
    """A kind of resource.  ``key`` names the properties that tell two of a kind apart; ``single`` kinds occur once.
    ``when`` is for those of its properties whose row names nothing else than the default.
    """

    name: str
    help: str
    properties: tuple[Property, ...]
    key: tuple[str, ...] = ()
    single: bool = False
    aliases: tuple[str, ...] = ()
    effect: bool = True
    when: When = When.NEXT_BOOT

    def __post_init__(self) -> None:
        rows = tuple(
            dataclasses.replace(row, when=self.when) if row.when is When.NEXT_BOOT else row
            for row in self.properties
        )
        object.__setattr__(self, "properties", rows)

    @property
    def field(self) -> str:
        return self.name.replace("-", "_")

    def property(self, name: str) -> Property | None:
        """The property of this name or alias."""
        return _named(self.properties, name)


def _number(given: str) -> int:
    try:
        return int(given)
    except ValueError:
        raise Refused("must be a whole number, not '{given}'", given=given) from None


def _decimal(given: str) -> float:
    try:
        return float(given)
    except ValueError:
        raise Refused("must be a number, not '{given}'", given=given) from None


def split_list(given: str) -> list[str]:
    """``[a,b]`` or ``a,b`` as a list; commas inside parentheses belong to the item."""
    inner = given.strip()
    if inner.startswith("[") and inner.endswith("]"):
        inner = inner[1:-1]
    items: list[str] = []
    depth = 0
    current = ""
    for character in inner:
        depth += (character == "(") - (character == ")")
        if character == "," and depth == 0:
            items.append(current.strip())
            current = ""
        else:
            current += character
    items.append(current.strip())
    return [item for item in items if item]


def _named(rows: Iterable[Property], name: str) -> Property | None:
    for row in rows:
        if name == row.name or name in row.aliases:
            return row
    return None


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The valid name most like ``name``, if any is alike."""
    import difflib  # only needed for an error

    matches = difflib.get_close_matches(name.lower(), list(names), n=1, cutoff=0.5)
    return matches[0] if matches else None


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """`` (did you mean 'x'?)``, for the end of a message; or nothing."""
    near = nearest(name, names)
    return message(" (did you mean '{near}'?)", near=near) if near else ""


_MEBI: Final = 1 << 20

GLOBAL_PROPERTIES: Final = (
    Property(
        "zonename", checks.zone_name, "the zone's name", when=When.REINSTALL,
    ),
    Property(
        "zonepath", checks.below_root_path, "the zone's folder on the host", when=When.REINSTALL,
    ),
    Property(
        "brand", checks.brand_name, "the zone's brand", default="native", when=When.REINSTALL,
    ),
    Property(
        "autoboot", checks.boolean, "boot the zone when the host boots", Form.BOOLEAN, False, when=When.LIVE,
    ),
    Property("bootargs", checks.boot_arguments, "arguments of every boot that is given none", default=""),
    Property(
        "pool", checks.pool_name, "the CPUs that it shares with others: a name in [pools] of zonemgr.toml",
        when=When.LIVE,
    ),
    Property("limitpriv", checks.privilege_list, "the most the zone may do, such as default,!net_raw", default=""),
    Property(
        "seccomp", checks.list_of(checks.system_call),
        "system calls let through beyond the default filter, or with ! before them denied", Form.LIST, (),
    ),
    Property(
        "no-new-privs", checks.boolean, "set-user-id and file capabilities have no effect in the zone",
        Form.BOOLEAN, False,
    ),
    Property("scheduling-class", checks.word, "FSS, TS, IA or FX: shares of busy CPUs; BATCH; IDLE: only idle CPUs"),
    Property(
        "ip-type", checks.one_of("exclusive", "shared"),
        "exclusive: a network stack of its own; shared: addresses on the host's", default="exclusive",
    ),
    Property(
        "hosts", checks.one_of("shared", "own"),
        "shared: /etc/hosts has the names of all zones, unless the zone's has lines of its own", default="shared",
    ),
    Property("hostid", checks.host_id, "the zone's host id, hexadecimal"),
    Property(
        "fs-allowed", checks.list_of(checks.file_system_name),
        "file systems the zone may mount: fuse besides the kernel's own choice, or - for none", Form.LIST, (),
    ),
    Property("hostname", checks.host_name, "the zone's host name (default: its zone name)"),
    Property(
        "privileged", checks.boolean, "no user namespace: root in the zone is root on the host", Form.BOOLEAN, False,
    ),
    Property(
        "best-effort", checks.boolean, "boot even when a limit cannot be applied", Form.BOOLEAN, False,
        when=When.LIVE,
    ),
    Property(
        "file-mac-profile",
        checks.one_of("none", "strict", "fixed-configuration", "flexible-configuration", "dynamic-zones"),
        "how much of the zone's own root it may change",
    ),
    Property(
        "requires", checks.list_of(checks.zone_name), "zones that must run before this one boots with the host",
        Form.LIST, (), when=When.LIVE,
    ),
    Property(
        "after", checks.list_of(checks.zone_name), "zones that boot before this one, if they boot with the host",
        Form.LIST, (), when=When.LIVE,
    ),
    Property(
        "autoshutdown", checks.one_of("shutdown", "halt"), "what happens when the host shuts down", when=When.LIVE,
    ),
    Property(
        "boot-priority", checks.one_of("high", "normal", "low"), "who boots first with the host", when=When.LIVE,
    ),
    Property("tenant", checks.word, "the tenant that the zone's virtual networks belong to", effect=False),
    Property(
        "global-time", checks.boolean, "the zone may set the host's clock (privileged zones only)", Form.BOOLEAN,
    ),
    Property("host-compatible", checks.word, "which hosts the zone must be able to move to", effect=False),
    Property(
        "zfs-io-priority", checks.number_from(1, 16384), "share of a busy disk", Form.NUMBER, aliases=("io-weight",),
        when=When.LIVE,
    ),
    Property("cpu-shares", checks.number_from(1, 65535), "share of a busy CPU", Form.NUMBER, when=When.LIVE),
    Property("max-lwps", checks.number_from(100), "most threads at once", Form.NUMBER, when=When.LIVE),
    Property("max-processes", checks.number_from(100), "most processes at once", Form.NUMBER, when=When.LIVE),
    Property("max-shm-memory", checks.size_bytes, "most System V shared memory", Form.SIZE, when=When.LIVE),
    Property("max-shm-ids", checks.number_from(0), "most shared memory segments", Form.NUMBER, when=When.LIVE),
    Property("max-msg-ids", checks.number_from(0), "most message queues", Form.NUMBER, when=When.LIVE),
    Property("max-sem-ids", checks.number_from(0), "most semaphore sets", Form.NUMBER, when=When.LIVE),
    Property(
        "oom-group", checks.boolean, "a process beyond the memory cap ends the whole zone", Form.BOOLEAN,
        when=When.LIVE,
    ),
    Property(
        "oom-score-adj", checks.number_from(-999, 1000), "how soon the zone's processes go when the host has no memory",
        Form.NUMBER, when=When.LIVE,
    ),
    Property("quota", checks.size_from(_MEBI, "1M"), "most disk space below the zonepath", Form.SIZE, when=When.LIVE),
)  # fmt: skip

FS: Final = Resource(
    "fs", "a file system mounted in the zone",
    (
        Property("dir", checks.below_root_path, "where it appears in the zone", required=True),
        Property("special", checks.text, "what is mounted: a host path or a device"),
        Property("type", checks.file_system_type, "bind, tmpfs, or a type the kernel knows", required=True),
        Property("raw", checks.absolute_path, "the device that is checked before the mount"),
        Property("options", checks.list_of(checks.mount_option), "mount options such as ro, nosuid", Form.LIST, ()),
        Property("owner", checks.owner, "uid:gid of the host's user that the zone's root writes as"),
        Property("idmap", checks.one_of("root"), "root: the zone's root writes as the host's root"),
    ),
    key=("dir",),
    when=When.LIVE,
)  # fmt: skip

NET: Final = Resource(
    "net", "a network link of the zone",
    (
        Property("anet", checks.link_name, "make a link on this bridge of the host", aliases=("lower-link",)),
        Property("macvlan", checks.link_name, "make a link on top of this link of the host"),
        Property("physical", checks.link_name, "move this link of the host into the zone"),
        Property("global-nic", checks.link_name, "the link of the host below the zone's", effect=False),
        Property("linkname", checks.link_name, "the link's name in the zone"),
        Property(
            "address", checks.list_of(checks.interface_address), "addresses with prefix lengths", Form.LIST, (),
        ),
        Property(
            "allowed-address", checks.list_of(checks.allowed_address),
            "addresses and networks that the zone may send from besides", Form.LIST, (),
        ),
        Property(
            "configure-allowed-address", checks.boolean, "give the zone's link its allowed addresses", Form.BOOLEAN,
        ),
        Property(
            "allowed-dhcp-cids", checks.list_of(checks.word), "DHCP client ids the zone may use", Form.LIST, (),
            effect=False,
        ),
        Property("defrouter", checks.list_of(checks.router_address), "default routers", Form.LIST, ()),
        Property(
            "mac-address", checks.mac_address, "the link's Ethernet address (auto: of zone and host)",
            aliases=("mac-addr",),
        ),
        Property("mac-prefix", checks.mac_prefix, "what an automatic Ethernet address begins with"),
        Property("mtu", checks.number_from(576, 65535), "the link's largest packet, in bytes", Form.NUMBER),
        Property("vlan-id", checks.number_from(1, 4094), "the VLAN of the link's bridge port", Form.NUMBER),
        Property("maxbw", checks.bandwidth, "most bits a second each way, such as 100M"),
        Property(
            "link-protection",
            checks.list_of(checks.one_of("mac-nospoof", "ip-nospoof", "dhcp-nospoof", "restricted", "none")),
            "what the zone may not forge", Form.LIST, (),
        ),
        Property("priority", checks.one_of("high", "medium", "low"), "whose packets go first", effect=False),
        Property(
            "property", checks.list_of(checks.link_property), "(name=N,value=V): a setting of the link", Form.LIST, (),
            effect=False,
        ),
    ),
    key=("anet", "macvlan", "physical", "address"),
    aliases=("anet",),
    when=When.LIVE,
)  # fmt: skip

FORWARD: Final = Resource(
    "forward", "a port of the host that leads into the zone",
    (
        Property("port", checks.number_from(1, 65535), "the host's port", Form.NUMBER, required=True),
        Property("protocol", checks.one_of("tcp", "udp"), "tcp or udp", default="tcp"),
        Property("to", checks.number_from(1, 65535), "the zone's port (default: the same)", Form.NUMBER),
        Property("address", checks.listen_address, "only this address of the host (default: all)"),
    ),
    key=("port", "protocol", "address"),
    when=When.LIVE,
)  # fmt: skip

DEVICE: Final = Resource(
    "device", "devices of the host that appear in the zone",
    (
        Property("match", checks.device_match, "a path or pattern below /dev", required=True),
        Property("allow-partition", checks.boolean, "the zone may partition the disk", Form.BOOLEAN, effect=False),
        Property(
            "allow-raw-io", checks.boolean, "the zone may send commands to the disk", Form.BOOLEAN, effect=False,
        ),
    ),
    key=("match",),
    when=When.LIVE,
)  # fmt: skip

ATTR: Final = Resource(
    "attr", "a note for people and tools",
    (
        Property("name", checks.attribute_name, "the note's name", required=True),
        Property(
            "type", checks.one_of("string", "boolean", "int", "uint"), "string, boolean, int or uint", required=True,
        ),
        Property("value", checks.attribute_value, "the note", required=True),
    ),
    key=("name",),
    when=When.LIVE,
)  # fmt: skip

RCTL: Final = Resource(
    "rctl", "a resource control by its Solaris name",
    (
        Property("name", checks.rctl_name, "such as zone.max-lwps", required=True),
        Property(
            "value", checks.list_of(checks.rctl_value), "(priv=privileged,limit=N,action=deny)", Form.LIST, (),
            required=True,
        ),
    ),
    key=("name",),
)  # fmt: skip

DATASET: Final = Resource(
    "dataset", "a delegated data set",
    (
        Property("name", checks.data_set, "the data set", required=True),
        Property("alias", checks.word, "its name in the zone"),
    ),
    key=("name",), effect=False,
)  # fmt: skip

ADMIN: Final = Resource(
    "admin", "a user who may work with the zone",
    (
        Property("user", checks.user_name, "the user", required=True),
        Property(
            "auths", checks.list_of(checks.admin_right), "login, manage, clonefrom", Form.LIST, (), required=True,
        ),
    ),
    key=("user",), when=When.LIVE,
)  # fmt: skip

DEDICATED_CPU: Final = Resource(
    "dedicated-cpu", "CPUs that nobody else uses",
    (
        Property("ncpus", checks.cpu_range, "how many: a number or a range"),
        Property("cpus", checks.id_ranges, "which CPUs, such as 0-3,6"),
        Property("cores", checks.id_ranges, "which cores, with all their threads"),
        Property("sockets", checks.id_ranges, "which sockets, with all their cores"),
        Property("importance", checks.number_from(0), "who gets CPUs first", Form.NUMBER, effect=False),
    ),
    single=True, when=When.LIVE,
)  # fmt: skip

CAPPED_CPU: Final = Resource(
    "capped-cpu", "the most CPU time the zone gets",
    (Property("ncpus", checks.cpus, "number of CPUs, such as 1.5", Form.DECIMAL, required=True),),
    single=True,
    when=When.LIVE,
)  # fmt: skip

CAPPED_MEMORY: Final = Resource(
    "capped-memory", "the most memory the zone gets",
    (
        Property("physical", checks.size_from(_MEBI, "1M"), "RAM", Form.SIZE),
        Property("swap", checks.size_from(50 * _MEBI, "50M"), "RAM and swap together", Form.SIZE),
        Property("locked", checks.size_from(1, "1"), "RAM that processes may lock", Form.SIZE),
        Property(
            "pagesize-policy", checks.one_of("largest-available", "largest-only", "smallest-only"),
            "which size of memory pages the zone gets", effect=False,
        ),
    ),
    single=True,
    when=When.LIVE,
)  # fmt: skip

CAPPED_IO: Final = Resource(
    "capped-io", "the most the zone reads and writes on a disk",
    (
        Property("device", checks.absolute_path, "the disk, or a file or folder on it", required=True),
        Property("read-bps", checks.size_from(1, "1"), "most bytes read a second", Form.SIZE),
        Property("write-bps", checks.size_from(1, "1"), "most bytes written a second", Form.SIZE),
        Property("read-iops", checks.number_from(1), "most reads a second", Form.NUMBER),
        Property("write-iops", checks.number_from(1), "most writes a second", Form.NUMBER),
    ),
    key=("device",), when=When.LIVE,
)  # fmt: skip

CAPPED_HUGETLB: Final = Resource(
    "capped-hugetlb", "the most memory in huge pages",
    (
        Property(
            "pagesize", checks.size_from(1 << 14, "16K"), "the size of a page, such as 2M", Form.SIZE, required=True,
        ),
        Property("limit", checks.size_bytes, "memory in pages of this size", Form.SIZE, required=True),
    ),
    key=("pagesize",), when=When.LIVE,
)  # fmt: skip

RLIMIT: Final = Resource(
    "rlimit", "a limit that each process of the zone begins with",
    (
        Property("name", checks.one_of(*RLIMITS), "such as nofile (see setrlimit)", required=True),
        Property("soft", checks.process_limit, "in force at first; a number or unlimited"),
        Property("hard", checks.process_limit, "what a process may raise it to"),
    ),
    key=("name",), when=When.LIVE,
)  # fmt: skip

SECURITY_FLAGS: Final = Resource(
    "security-flags", "process security flags",
    (
        Property("lower", checks.security_flags, "flags that are always on"),
        Property("default", checks.security_flags, "flags that are on at first: aslr, forbidnullmap, noexecstack"),
        Property("upper", checks.security_flags, "flags that may be on"),
    ),
    single=True,
)  # fmt: skip

SMF_DEPENDENCY: Final = Resource(
    "smf-dependency", "what has to be there before the zone boots with the host",
    (
        Property("fmri", checks.service_name, "the service or zone it waits for", required=True),
        Property("name", checks.attribute_name, "the dependency's name"),
        Property(
            "grouping", checks.one_of("require_all", "require_any", "optional_all", "exclude_all"),
            "how services of one name count",
        ),
        Property(
            "restart-on", checks.one_of("none", "error", "restart", "refresh"), "what of the service restarts the zone",
            aliases=("restart_on",),
        ),
    ),
    key=("fmri",), effect=False,
)  # fmt: skip

RESOURCES: Final[Mapping[str, Resource]] = {
    resource.name: resource
    for resource in (
        FS, NET, FORWARD, DEVICE, DEDICATED_CPU, CAPPED_CPU, CAPPED_MEMORY, CAPPED_IO, CAPPED_HUGETLB, RLIMIT, ATTR,
        DATASET, ADMIN, RCTL, SECURITY_FLAGS, SMF_DEPENDENCY,
    )
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ControlAlias:
    """A resource control that is also a property: its one value is stored as ``field`` (of ``resource`` if given)."""

    rctl: str
    field: str
    resource: str | None
    action: str
    scale: int = 1  # rctl limit = property x scale


CONTROL_ALIASES: Final = (
    ControlAlias("zone.cpu-shares", "cpu-shares", None, "none"),
    ControlAlias("zone.max-lwps", "max-lwps", None, "deny"),
    ControlAlias("zone.max-processes", "max-processes", None, "deny"),
    ControlAlias("zone.max-shm-memory", "max-shm-memory", None, "deny"),
    ControlAlias("zone.max-shm-ids", "max-shm-ids", None, "deny"),
    ControlAlias("zone.max-msg-ids", "max-msg-ids", None, "deny"),
    ControlAlias("zone.max-sem-ids", "max-sem-ids", None, "deny"),
    ControlAlias("zone.zfs-io-priority", "zfs-io-priority", None, "none"),
    ControlAlias("zone.cpu-cap", "ncpus", "capped-cpu", "deny", 100),
    ControlAlias("zone.max-swap", "swap", "capped-memory", "deny"),
    ControlAlias("zone.max-locked-memory", "locked", "capped-memory", "deny"),
)


# Controls of Solaris that hold here without being set: a zone makes no loop devices.
CONTROLS_HELD: Final = frozenset({"zone.max-lofi"})


def global_property(name: str) -> Property | None:
    """The global property of this name."""
    return _named(GLOBAL_PROPERTIES, name)


def resource(name: str) -> Resource | None:
    """The kind of resource of this name or alias."""
    found = RESOURCES.get(name)
    if found is not None:
        return found
    return next((kind for kind in RESOURCES.values() if name in kind.aliases), None)


def top_level_names() -> list[str]:
    """Every key a zone's file may have at its top level."""
    return [row.name for row in GLOBAL_PROPERTIES] + list(RESOURCES)
