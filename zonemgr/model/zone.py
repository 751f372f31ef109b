"""A zone's configuration, typed and checked: built from a TOML table, frozen, and written to JSON without loss.

``Zone.from_table`` is the only way in; it refuses unknown keys, wrong values and impossible combinations with the
file, the line, the key and the nearest valid key.  What needs the host (does the path exist, is the bridge there)
is not asked here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from zonemgr.errors import ConfigError
from zonemgr.model import network, rlimits, schema
from zonemgr.model.checks import SECURITY_FLAGS, RctlValue, Refused
from zonemgr.model.schema import Property, Resource

Path = tuple[str | int, ...]


class LineFinder(Protocol):
    """Finds the line a key is on; asked only when an error is reported."""

    def find(self, path: Path) -> int | None:
        """The line (from 1) of the key at this path, such as ("fs", 0, "dir")."""


@dataclass(frozen=True, slots=True)
class FsResource:
    """A file system in the zone."""

    dir: str
    special: str
    type: str
    raw: str | None = None
    options: tuple[str, ...] = ()
    owner: str | None = None
    idmap: str | None = None

    @property
    def read_only(self) -> bool:
        return "ro" in self.options

    @property
    def owner_ids(self) -> tuple[int, int] | None:
        """(uid, gid) of ``owner``."""
        if self.owner is None:
            return None
        uid, _, gid = self.owner.partition(":")
        return int(uid), int(gid)


@dataclass(frozen=True, slots=True)
class NetResource:
    """A network link: ``anet`` (made on a bridge), ``macvlan`` (made on a link) or ``physical`` (moved in)."""

    anet: str | None = None
    macvlan: str | None = None
    physical: str | None = None
    global_nic: str | None = None
    linkname: str | None = None
    address: tuple[str, ...] = ()
    allowed_address: tuple[str, ...] = ()
    configure_allowed_address: bool | None = None
    allowed_dhcp_cids: tuple[str, ...] = ()
    defrouter: tuple[str, ...] = ()
    mac_address: str | None = None
    mac_prefix: str | None = None
    mtu: int | None = None
    vlan_id: int | None = None
    maxbw: str | None = None
    link_protection: tuple[str, ...] = ()
    priority: str | None = None
    property: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ForwardResource:
    """A port of the host that leads into the zone."""

    port: int
    protocol: str = "tcp"
    to: int | None = None
    address: str | None = None


@dataclass(frozen=True, slots=True)
class DeviceResource:
    match: str
    allow_partition: bool | None = None
    allow_raw_io: bool | None = None


@dataclass(frozen=True, slots=True)
class AttrResource:
    name: str
    type: str
    value: str


@dataclass(frozen=True, slots=True)
class RctlResource:
    name: str
    value: tuple[RctlValue, ...]

    @property
    def denied(self) -> int | None:
        """The lowest limit beyond which something is denied; None when its values only watch."""
        return min((value.limit for value in self.value if value.action == "deny"), default=None)


@dataclass(frozen=True, slots=True)
class DatasetResource:
    name: str
    alias: str | None = None


@dataclass(frozen=True, slots=True)
class AdminResource:
    user: str
    auths: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DedicatedCpu:
    ncpus: str | None = None
    cpus: str | None = None
    cores: str | None = None
    sockets: str | None = None
    importance: int | None = None

    def wanted(self) -> tuple[tuple[str, str], ...]:
        """The unit and what is wanted of it (one: see ``Zone``)."""
        units = {"ncpus": self.ncpus, "cpus": self.cpus, "cores": self.cores, "sockets": self.sockets}
        return tuple((unit, wanted) for unit, wanted in units.items() if wanted is not None)


@dataclass(frozen=True, slots=True)
class CappedCpu:
    ncpus: float


@dataclass(frozen=True, slots=True)
class CappedMemory:
    """Sizes in bytes; ``swap`` is RAM and swap together, as on Solaris."""

    physical: int | None = None
    swap: int | None = None
    locked: int | None = None
    pagesize_policy: str | None = None


@dataclass(frozen=True, slots=True)
class CappedIo:
    """Bytes and operations a second on the disk below ``device``."""

    device: str
    read_bps: int | None = None
    write_bps: int | None = None
    read_iops: int | None = None
    write_iops: int | None = None


@dataclass(frozen=True, slots=True)
class CappedHugetlb:
    pagesize: int
    limit: int


@dataclass(frozen=True, slots=True)
class Rlimit:
    name: str
    soft: str | None = None
    hard: str | None = None


@dataclass(frozen=True, slots=True)
class SecurityFlags:
    lower: str | None = None
    default: str | None = None
    upper: str | None = None

    @property
    def always_on(self) -> tuple[str, ...]:
        return _flags(self.lower, ())

    @property
    def off_at_first(self) -> tuple[str, ...]:
        """What is not on when a process of the zone starts: Linux has all of them on by itself."""
        may = _flags(self.upper, SECURITY_FLAGS)
        first = _flags(self.default, may)
        return tuple(flag for flag in SECURITY_FLAGS if flag not in first or flag not in may)


@dataclass(frozen=True, slots=True)
class SmfDependency:
    fmri: str
    name: str | None = None
    grouping: str | None = None
    restart_on: str | None = None


def _flags(text: str | None, unset: tuple[str, ...]) -> tuple[str, ...]:
    if text is None:
        return unset
    return tuple(flag for flag in SECURITY_FLAGS if flag in text.split(","))


CLASSES: Mapping[str, type] = {
    "fs": FsResource,
    "net": NetResource,
    "forward": ForwardResource,
    "device": DeviceResource,
    "attr": AttrResource,
    "rctl": RctlResource,
    "dataset": DatasetResource,
    "admin": AdminResource,
    "dedicated-cpu": DedicatedCpu,
    "capped-cpu": CappedCpu,
    "capped-memory": CappedMemory,
    "capped-io": CappedIo,
    "capped-hugetlb": CappedHugetlb,
    "rlimit": Rlimit,
    "security-flags": SecurityFlags,
    "smf-dependency": SmfDependency,
}


@dataclass(frozen=True, slots=True)
class Zone:
    """One zone's whole configuration.  Field names are the schema's names with underscores."""

    zonename: str
    zonepath: str
    brand: str = "native"
    autoboot: bool = False
    bootargs: str = ""
    pool: str | None = None
    limitpriv: str = ""
    seccomp: tuple[str, ...] = ()
    no_new_privs: bool = False
    scheduling_class: str | None = None
    ip_type: str = "exclusive"
    hosts: str = "shared"
    hostid: int | None = None
    fs_allowed: tuple[str, ...] = ()
    hostname: str | None = None
    privileged: bool = False
    best_effort: bool = False
    file_mac_profile: str | None = None
    requires: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    autoshutdown: str | None = None
    boot_priority: str | None = None
    tenant: str | None = None
    global_time: bool | None = None
    host_compatible: str | None = None
    zfs_io_priority: int | None = None
    cpu_shares: int | None = None
    max_lwps: int | None = None
    max_processes: int | None = None
    max_shm_memory: int | None = None
    max_shm_ids: int | None = None
    max_msg_ids: int | None = None
    max_sem_ids: int | None = None
    oom_group: bool | None = None
    oom_score_adj: int | None = None
    quota: int | None = None
    fs: tuple[FsResource, ...] = ()
    net: tuple[NetResource, ...] = ()
    forward: tuple[ForwardResource, ...] = ()
    device: tuple[DeviceResource, ...] = ()
    dedicated_cpu: DedicatedCpu | None = None
    capped_cpu: CappedCpu | None = None
    capped_memory: CappedMemory | None = None
    capped_io: tuple[CappedIo, ...] = ()
    capped_hugetlb: tuple[CappedHugetlb, ...] = ()
    rlimit: tuple[Rlimit, ...] = ()
    attr: tuple[AttrResource, ...] = ()
    dataset: tuple[DatasetResource, ...] = ()
    admin: tuple[AdminResource, ...] = ()
    rctl: tuple[RctlResource, ...] = ()
    security_flags: SecurityFlags | None = None
    smf_dependency: tuple[SmfDependency, ...] = ()

    @classmethod
    def from_table(
        cls,
        table: Mapping[str, Any],
        *,
        filename: str,
        zonename: str | None = None,
        default_zonepath: str | None = None,
        lines: LineFinder | None = None,
    ) -> Zone:
        """The configuration in a TOML table.  Raises ConfigError.

        ``zonename`` is the name the file's place gives the zone: the table may leave it out, but not differ.
        ``filename`` begins every error, unless it is empty.
        """
        return _Reader(filename, lines).zone(table, zonename, default_zonepath)

    def to_json(self) -> dict[str, Any]:
        """A table of everything that is not left at nothing, fit for JSON and for ``from_json``."""
        result: dict[str, Any] = {}
        for row in schema.GLOBAL_PROPERTIES:
            value = getattr(self, row.field)
            if value is not None and value != ():
                result[row.name] = _plain(value)
        for kind in schema.RESOURCES.values():
            value = getattr(self, kind.field)
            if kind.single and value is not None:
                result[kind.name] = _plain_resource(kind, value)
            elif not kind.single and value:
                result[kind.name] = [_plain_resource(kind, item) for item in value]
        return result

    @classmethod
    def from_json(cls, table: Mapping[str, Any], *, filename: str = "snapshot") -> Zone:
        """The inverse of ``to_json``.  Raises ConfigError for anything else."""
        return cls.from_table(table, filename=filename)

    @property
    def label(self) -> str:
        """The mandatory label in the attr resource of that name, or nothing; brands decide what it means."""
        return next((str(attr.value) for attr in self.attr if attr.name == "label"), "")

    def without_effect(self) -> list[str]:
        """The names of properties and resources that are set but do nothing yet, for a warning."""
        rows = [
            row.name
            for row in schema.GLOBAL_PROPERTIES
            if not row.effect and getattr(self, row.field) not in (None, ())
        ]
        kinds = [
            kind.name for kind in schema.RESOURCES.values() if not kind.effect and getattr(self, kind.field)
        ]
        controls = [f"rctl {control.name}" for control in self.rctl if not _is_held(control)]
        return rows + kinds + self._parts_without_effect() + controls

    def with_controls(self) -> Zone:
        """The same zone with what its resource controls deny as properties: of several values the lowest counts."""
        values: dict[str, Any] = {}
        for alias in schema.CONTROL_ALIASES:
            control = next((one for one in self.rctl if one.name == alias.rctl), None)
            denied = control.denied if control else None
            if denied is None:
                continue
            limit = denied if alias.scale == 1 else denied / alias.scale
            if alias.resource is None:
                values[alias.field.replace("-", "_")] = limit
                continue
            field = alias.resource.replace("-", "_")
            present = values.get(field, getattr(self, field))
            change = {alias.field: limit}
            values[field] = (
                dataclasses.replace(present, **change) if present else CLASSES[alias.resource](**change)
            )
        return dataclasses.replace(self, **values)

    def _parts_without_effect(self) -> list[str]:
        """As ``kind property``: resources that have an effect, with a property that has none yet."""
        found = []
        for kind in schema.RESOURCES.values():
            if not kind.effect:
                continue
            value = getattr(self, kind.field)
            for item in (value,) if kind.single and value is not None else value or ():
                for row in kind.properties:
                    if not row.effect and getattr(item, row.field) not in (None, ()):
                        found.append(f"{kind.name} {row.name}")
        return list(dict.fromkeys(found))


def read_resource(kind: Resource, table: Mapping[str, Any]) -> object:
    """One resource by itself, checked, for an editor.  Raises ConfigError."""
    return _Reader("", None).resource((), kind, dict(table))


def _is_held(control: RctlResource) -> bool:
    known = {alias.rctl for alias in schema.CONTROL_ALIASES}
    return control.name in schema.CONTROLS_HELD or (control.name in known and control.denied is not None)


def _plain(value: object) -> object:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, RctlValue) else value


def _plain_resource(kind: Resource, item: object) -> dict[str, Any]:
    values = ((row.name, getattr(item, row.field)) for row in kind.properties)
    return {name: _plain(value) for name, value in values if value is not None and value != ()}


class _Reader:
    """Reads one table; its methods raise ConfigError with the place of the fault."""

    def __init__(self, filename: str, lines: LineFinder | None) -> None:
        self.filename = filename
        self.lines = lines

    def fail(self, path: Path, form: str, /, **arguments: object) -> ConfigError:
        """The error for the key at ``path``; returned, so that callers write ``raise self.fail(...)``."""
        line = None
        while self.lines is not None and path and line is None:
            line = self.lines.find(path)
            path = path[:-1]
        place = "{filename}: " if line is None else "{filename}: line {line}: "
        if not self.filename:
            place = ""
        return ConfigError(place + form, filename=self.filename, line=line, **arguments)

    def zone(self, table: Mapping[str, Any], zonename: str | None, default_zonepath: str | None) -> Zone:
        values: dict[str, Any] = {}
        for key, given in table.items():
            self.top_level(values, key, given)
        self.name(values, zonename)
        if "zonepath" not in values:
            if default_zonepath is None:
                raise self.fail((), "zonepath not specified")
            values["zonepath"] = default_zonepath
        self.fold_controls(values)
        zone = Zone(**values)
        _check_combinations(self, zone)
        return zone

    def top_level(self, values: dict[str, Any], key: str, given: object) -> None:
        row = schema.global_property(key)
        if row is not None:
            values[row.field] = self.value((key,), row, given)
            return
        kind = schema.RESOURCES.get(key)
        if kind is None:
            raise self.unknown((key,), "property", key, schema.top_level_names())
        if kind.single:
            values[kind.field] = self.resource((key,), kind, given)
            return
        if not isinstance(given, list):
            raise self.fail((key,), "{key} is a list of tables: write [[{key}]], not [{key}]", key=key)
        values[kind.field] = tuple(
            self.resource((key, index), kind, item) for index, item in enumerate(given)
        )

    def name(self, values: dict[str, Any], zonename: str | None) -> None:
        """The file's place and its ``zonename`` agree, and there is one of them."""
        given = values.setdefault("zonename", zonename)
        if given is None:
            raise self.fail((), "zonename not specified")
        if zonename is not None and given != zonename:
            raise self.fail(
                ("zonename",), "zonename is '{given}', but the file is that of '{zonename}'",
                given=given, zonename=zonename,
            )  # fmt: skip

    def value(self, path: Path, row: Property, given: object, prefix: str = "") -> object:
        try:
            return row.check(given)
        except Refused as refused:
            raise self.fail(path, "{name} {why}", name=prefix + row.name, why=refused) from None

    def unknown(self, path: Path, what: str, key: str, valid: list[str]) -> ConfigError:
        near = schema.nearest(key, valid)
        if near is None:
            return self.fail(path, "unknown {what} '{key}'", what=what, key=key)
        return self.fail(
            path, "unknown {what} '{key}' (did you mean '{near}'?)", what=what, key=key, near=near
        )

    def resource(self, path: Path, kind: Resource, given: object) -> object:
        if not isinstance(given, dict):
            brackets = "[{kind}]" if kind.single else "[[{kind}]]"
            raise self.fail(path, "{kind} is a table: write " + brackets, kind=kind.name)
        values: dict[str, object] = {}
        for key, item in given.items():
            row = kind.property(key)
            if row is None:
                names = [row.name for row in kind.properties]
                raise self.unknown((*path, key), f"property of {kind.name}", key, names)
            if row.field in values:
                raise self.fail((*path, key), "{kind}: {name} is given twice", kind=kind.name, name=row.name)
            values[row.field] = self.value((*path, key), row, item, f"{kind.name}: ")
        if kind is schema.FS and values.get("type") == "tmpfs":
            values.setdefault("special", "tmpfs")
        if kind is schema.FS and "special" not in values:
            raise self.fail(path, "fs: special not specified")
        for row in kind.properties:
            if row.required and row.field not in values:
                raise self.fail(path, "{kind}: {name} not specified", kind=kind.name, name=row.name)
        return CLASSES[kind.name](**values)

    def fold_controls(self, values: dict[str, Any]) -> None:
        """A one-valued rctl that is also a property becomes that property; another form of it is refused."""
        kept = []
        aliases = {alias.rctl: alias for alias in schema.CONTROL_ALIASES}
        for index, control in enumerate(values.get("rctl", ())):
            path: Path = ("rctl", index)
            alias = aliases.get(control.name)
            if alias is None:
                kept.append(control)
            elif len(control.value) == 1 and control.value[0].action == alias.action:
                self.fold(path, values, alias, control.value[0].limit)
            elif _is_set(values, alias):
                raise self.fail(
                    path,
                    "{property}: An incompatible rctl already exists for this property",
                    property=alias.field,
                )
            else:
                kept.append(control)
        if "rctl" in values:
            values["rctl"] = tuple(kept)

    def fold(self, path: Path, values: dict[str, Any], alias: schema.ControlAlias, limit: int) -> None:
        if _is_set(values, alias):
            raise self.fail(
                path,
                "rctl {name} and the property {property} are both given",
                name=alias.rctl,
                property=alias.field,
            )
        given: int | float = limit if alias.scale == 1 else limit / alias.scale
        if alias.resource is None:
            row = schema.global_property(alias.field)
            assert row is not None
            values[row.field] = self.value(path, row, given)
            return
        kind = schema.RESOURCES[alias.resource]
        row = kind.property(alias.field)
        assert row is not None
        value = self.value(path, row, given, f"{kind.name}: ")
        present = values.get(kind.field)
        if present is None:
            values[kind.field] = CLASSES[kind.name](**{row.field: value})
        else:
            values[kind.field] = dataclasses.replace(present, **{row.field: value})


def _is_set(values: Mapping[str, Any], alias: schema.ControlAlias) -> bool:
    if alias.resource is None:
        return values.get(alias.field.replace("-", "_")) is not None
    present = values.get(alias.resource.replace("-", "_"))
    return present is not None and getattr(present, alias.field) is not None


def _check_combinations(reader: _Reader, zone: Zone) -> None:
    """What single values cannot show: duplicates and settings that exclude each other."""
    _check_duplicates(reader, zone)
    for index, mount in enumerate(zone.fs):
        _check_mount(reader, ("fs", index), mount)
    _check_links(reader, zone)
    _check_forwards(reader, zone)
    for index, attribute in enumerate(zone.attr):
        _check_attribute(reader, ("attr", index), attribute)
    for index, cap in enumerate(zone.capped_io):
        if cap == CappedIo(cap.device):
            raise reader.fail(
                ("capped-io", index),
                "capped-io: one of its limits must be given ({device})",
                device=cap.device,
            )
    for index, limit in enumerate(zone.rlimit):
        _check_rlimit(reader, ("rlimit", index), limit)
    _check_cpus(reader, zone)
    _check_security(reader, zone)
    memory = zone.capped_memory
    if memory is not None:
        if memory.physical is memory.swap is memory.locked is None:
            raise reader.fail(
                ("capped-memory",), "capped-memory: one of physical, swap, locked must be given"
            )
        if memory.physical is not None and memory.locked is not None and memory.locked > memory.physical:
            raise reader.fail(("capped-memory", "locked"), "capped-memory: locked is more than physical")


def _check_duplicates(reader: _Reader, zone: Zone) -> None:
    for kind in schema.RESOURCES.values():
        if kind.single or len(kind.key) != 1:
            continue
        name = kind.key[0]
        seen = set()
        for index, item in enumerate(getattr(zone, kind.field)):
            key = getattr(item, name)
            if key in seen:
                raise reader.fail(
                    (kind.name, index, name), "A {kind} resource with the {name} '{key}' already exists.",
                    kind=kind.name, name=name, key=key,
                )  # fmt: skip
            seen.add(key)


def _check_mount(reader: _Reader, path: Path, mount: FsResource) -> None:
    if mount.type == "bind" and not mount.special.startswith("/"):
        raise reader.fail(
            (*path, "special"), "fs: special {path} is not an absolute path.", path=mount.special
        )
    if mount.owner and mount.idmap:
        raise reader.fail((*path, "idmap"), "fs: owner and idmap exclude each other ({dir})", dir=mount.dir)
    if mount.type != "bind" and (mount.owner or mount.idmap):
        key = "owner" if mount.owner else "idmap"
        raise reader.fail((*path, key), "fs: {key} is for type bind only ({dir})", key=key, dir=mount.dir)
    if {"ro", "rw"} <= set(mount.options):
        raise reader.fail((*path, "options"), "fs: ro and rw exclude each other ({dir})", dir=mount.dir)
    if mount.type == "bind" and not (mount.read_only or mount.owner or mount.idmap):
        raise reader.fail(
            path,
            "fs: {dir} is a writable bind: say whom the zone's root writes as"
            ' (owner = "uid:gid" of a user of the host, or idmap = "root"), or add the option ro',
            dir=mount.dir,
        )


def _check_links(reader: _Reader, zone: Zone) -> None:
    seen: set[str] = set()
    names: set[str] = set()
    for index, link in enumerate(zone.net):
        path: Path = ("net", index)
        _check_link(reader, path, link)
        if zone.ip_type == "shared":
            _check_shared_link(reader, path, link)
        else:
            _check_moved_link(reader, path, link)
        for name in (link.physical if zone.ip_type == "exclusive" else None, link.linkname):
            if name is not None and name in names:
                raise reader.fail(path, "net: the link '{name}' is used twice", name=name)
            if name is not None:
                names.add(name)
        for address in link.address:
            bare = address.partition("/")[0]
            if bare in seen:
                raise reader.fail(
                    (*path, "address"),
                    "A net resource with the address '{address}' already exists.",
                    address=bare,
                )
            seen.add(bare)


def _check_link(reader: _Reader, path: Path, link: NetResource) -> None:
    """One link by itself."""
    if sum(name is not None for name in (link.anet, link.macvlan, link.physical)) != 1:
        raise reader.fail(
            path,
            "net: give either anet (a bridge of the host), macvlan (a link of the host) or physical (a link to move)",
        )
    if link.defrouter and not (link.address or link.allowed_address):
        raise reader.fail((*path, "defrouter"), "net: defrouter needs an address")
    for router in link.defrouter:
        if not network.is_neighbour(router, network.addresses(link)):
            raise reader.fail(
                (*path, "defrouter"),
                "net: defrouter {router} is in no network of the link's addresses",
                router=router,
            )
    if "lo" in (link.anet, link.macvlan, link.linkname):
        raise reader.fail(path, "net: lo is every zone's own, nothing can be made on it or called that")
    if link.anet is None:
        # The host keeps no end of such a link on which it could hold the zone to anything.
        for key in ("vlan_id", "maxbw", "link_protection", "allowed_address"):
            if getattr(link, key):
                name = key.replace("_", "-")
                raise reader.fail((*path, name), "net: {name} needs anet, a link on a bridge", name=name)
    if "none" in link.link_protection and len(link.link_protection) > 1:
        raise reader.fail((*path, "link-protection"), "net: link-protection none stands alone")
    if "ip-nospoof" in link.link_protection and not (link.address or link.allowed_address):
        raise reader.fail(
            (*path, "link-protection"), "net: ip-nospoof needs an address or an allowed-address"
        )


def _check_moved_link(reader: _Reader, path: Path, link: NetResource) -> None:
    if link.physical == "lo":
        raise reader.fail((*path, "physical"), "net: lo stays with its host")


def _check_shared_link(reader: _Reader, path: Path, link: NetResource) -> None:
    """A zone on the host's own network stack has addresses there, and nothing else (reference, section 7.4)."""
    if link.physical is None or not link.address:
        raise reader.fail(path, "net: ip-type shared needs physical (a link of the host) and an address")
    for key in ("linkname", "mac_address", "mac_prefix", "mtu", "defrouter", "configure_allowed_address"):
        if getattr(link, key):
            name = key.replace("_", "-")
            raise reader.fail((*path, name), "net: {name} cannot be set with ip-type shared", name=name)


def _check_forwards(reader: _Reader, zone: Zone) -> None:
    seen: list[str] = []
    own = [address for link in zone.net if link.anet for address in link.address]
    for index, forward in enumerate(zone.forward):
        path: Path = ("forward", index)
        if zone.ip_type == "shared":
            raise reader.fail(path, "forward: a zone of ip-type shared has ports on its own address of the host")
        claim = network.forward_claim(forward)
        if any(network.collide(claim, other) for other in seen):
            raise reader.fail(path, "forward: {what} is forwarded twice", what=network.describe_claim(claim))
        seen.append(claim)
        wanted = own if forward.address is None else network.family_of(own, v6=network.is_v6(forward.address))
        if not wanted:
            raise reader.fail(path, "forward: no net resource has an address that {what} could lead to",
                              what=network.describe_claim(claim))  # fmt: skip


def _check_attribute(reader: _Reader, path: Path, attribute: AttrResource) -> None:
    value = attribute.value
    good = {
        "string": True,
        "boolean": value in ("true", "false"),
        "int": value.removeprefix("-").isdecimal(),
        "uint": value.isdecimal(),
    }[attribute.type]
    if not good:
        raise reader.fail(
            (*path, "value"),
            "attr: '{value}' is not a value of type {type}",
            value=value,
            type=attribute.type,
        )


def _check_security(reader: _Reader, zone: Zone) -> None:
    flags = zone.security_flags
    if flags is not None:
        off = [flag for flag in flags.always_on if flag in flags.off_at_first]
        if off:
            raise reader.fail(
                ("security-flags", "lower"), "security-flags: {flag} is in lower, but not in default and upper",
                flag=off[0],
            )  # fmt: skip
    if zone.global_time and not zone.privileged:
        raise reader.fail(
            ("global-time",), "global-time needs privileged = true: no user namespace may set the host's clock"
        )
    if "-" in zone.fs_allowed and len(zone.fs_allowed) > 1:
        raise reader.fail(("fs-allowed",), "fs-allowed: '-' is for no file system at all, and stands alone")


def _check_rlimit(reader: _Reader, path: Path, limit: Rlimit) -> None:
    if limit.soft is None and limit.hard is None:
        raise reader.fail(path, "rlimit: {name}: soft, hard or both must be given", name=limit.name)
    if limit.soft is not None and limit.hard is not None and rlimits.above(limit.soft, limit.hard):
        raise reader.fail((*path, "soft"), "rlimit: {name}: soft is more than hard", name=limit.name)


def _check_cpus(reader: _Reader, zone: Zone) -> None:
    if zone.dedicated_cpu is not None:
        chosen = zone.dedicated_cpu
        ways = (chosen.ncpus, chosen.cpus, chosen.cores, chosen.sockets)
        if sum(way is not None for way in ways) != 1:
            raise reader.fail(("dedicated-cpu",), "dedicated-cpu: give one of ncpus, cpus, cores, sockets")
        if zone.capped_cpu is not None:
            raise reader.fail(("dedicated-cpu",), "capped-cpu and dedicated-cpu are incompatible.")
        if zone.cpu_shares is not None:
            raise reader.fail(("dedicated-cpu",), "rctl zone.cpu-shares and dedicated-cpu are incompatible.")
        if zone.pool is not None:
            raise reader.fail(("pool",), "A persistent pool is incompatible with the dedicated-cpu resource.")
    if zone.cpu_shares is not None and zone.scheduling_class not in (None, "FSS"):
        raise reader.fail(
            ("scheduling-class",), "cpu-shares needs the scheduling-class FSS, not {given}",
            given=zone.scheduling_class,
        )  # fmt: skip
