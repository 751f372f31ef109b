"""The schema table, the typed configuration, and what is said about a wrong one."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zonemgr.errors import ConfigError
from zonemgr.model import schema
from zonemgr.model import zone as model
from zonemgr.model.schema import Form
from zonemgr.model.zone import Zone
from zonemgr.store import toml

MINIMAL = Zone("web", "/zones/web")


def read(text: str) -> Zone:
    """The configuration in a TOML text, as if it were the file of the zone web."""
    table, lines = toml.parse(text.encode(), "web.toml")
    return Zone.from_table(table, filename="web.toml", zonename="web", default_zonepath="/zones/web", lines=lines)


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read(text)
    assert "\n" not in caught.value.text
    return caught.value.text


def test_zone_and_schema_name_the_same_things() -> None:
    fields = {field.name for field in dataclasses.fields(Zone)}
    rows = {row.field for row in schema.GLOBAL_PROPERTIES} | {kind.field for kind in schema.RESOURCES.values()}
    assert fields == rows


@pytest.mark.parametrize("kind", schema.RESOURCES.values(), ids=lambda kind: kind.name)
def test_each_resource_class_has_the_schema_s_properties(kind: schema.Resource) -> None:
    fields = [field.name for field in dataclasses.fields(model.CLASSES[kind.name])]
    assert fields == [row.field for row in kind.properties]
    assert all(kind.property(name) for name in kind.key)


def test_defaults_of_zone_and_schema_agree_and_pass_their_own_checks() -> None:
    zone = MINIMAL
    for row in schema.GLOBAL_PROPERTIES:
        if row.name in ("zonename", "zonepath"):
            continue
        assert getattr(zone, row.field) == row.default
        if row.default is not None:
            assert row.check(row.default) == row.default


def test_every_row_has_a_help_text_and_every_list_a_list_default() -> None:
    rows = [*schema.GLOBAL_PROPERTIES, *(row for kind in schema.RESOURCES.values() for row in kind.properties)]
    assert all(row.help for row in rows)
    assert all(row.default == () for row in rows if row.form is Form.LIST)


FULL = """
zonename = "web"
zonepath = "/zones//web/"
brand = "native"
autoboot = true
bootargs = "-m verbose"
ip-type = "exclusive"
limitpriv = "default, !net_raw"
hostid = "0x1F"
hostname = "web.example.org"
cpu-shares = 20
max-processes = 200
max-shm-memory = "1.5G"
fs-allowed = ["ext4"]

[[net]]
anet = "zbr0"
address = ["10.91.0.10/24", "fd91::0010/64"]
defrouter = "10.91.0.1"
mac-address = "2:0:0:0:0:A"

[[net]]
physical = "eth1"

[[fs]]
dir = "/srv/"
special = "/srv/web"
type = "lofs"
options = ["ro", "nosuid"]

[[fs]]
dir = "/tmp"
type = "tmpfs"

[[fs]]
dir = "/data"
special = "/data"
type = "bind"
owner = "1000:1000"

[[attr]]
name = "owner"
type = "string"
value = "ops"

[[attr]]
name = "port"
type = "uint"
value = 80

[[rctl]]
name = "zone.max-lwps"
value = ["(priv=privileged,limit=300,action=deny)"]

[[rctl]]
name = "zone.max-swap"
value = [{ priv = "privileged", limit = 104857600, action = "deny" }]

[[rctl]]
name = "zone.max-frobs"
value = ["(priv=privileged,limit=1,action=none)"]

[capped-memory]
physical = "512M"

[capped-cpu]
ncpus = 1.5

[[device]]
match = "/dev/fuse"

[[dataset]]
name = "tank/web"

[[admin]]
user = "joe"
auths = ["login", "manage"]
"""


def test_a_full_configuration_is_read_into_canonical_values() -> None:
    zone = read(FULL)
    assert zone.zonepath == "/zones/web"
    assert zone.limitpriv == "default,!net_raw"
    assert zone.hostid == 31
    assert zone.max_shm_memory == 3 << 29
    assert zone.net[0].address == ("10.91.0.10/24", "fd91::10/64")
    assert zone.net[0].defrouter == ("10.91.0.1",)
    assert zone.net[0].mac_address == "02:00:00:00:00:0a"
    assert zone.fs[0].type == "bind"
    assert zone.fs[0].read_only
    assert zone.fs[1].special == "tmpfs"
    assert zone.fs[2].owner_ids == (1000, 1000)
    assert zone.attr[1].value == "80"
    assert zone.device[0].match == "fuse"
    assert zone.capped_cpu == model.CappedCpu(1.5)


def test_a_control_in_its_simple_form_becomes_the_property() -> None:
    zone = read(FULL)
    assert zone.max_lwps == 300
    assert zone.capped_memory == model.CappedMemory(physical=512 << 20, swap=100 << 20)
    assert [control.name for control in zone.rctl] == ["zone.max-frobs"]


def test_what_has_no_effect_is_named() -> None:
    assert read(FULL).without_effect() == [
        "dataset",
        "rctl zone.max-frobs",
    ]


def test_the_snapshot_is_lossless() -> None:
    zone = read(FULL)
    assert Zone.from_json(zone.to_json()) == zone


def test_a_file_may_leave_out_name_and_path() -> None:
    assert read("") == MINIMAL


REFUSALS = [
    ('autobot = true\n', "web.toml: line 1: unknown property 'autobot' (did you mean 'autoboot'?)"),
    ('# x\n\nzqx = 1', "web.toml: line 3: unknown property 'zqx'"),
    ('autoboot = 1', "web.toml: line 1: autoboot must be true or false, not a number"),
    ('autoboot = "yes"', "web.toml: line 1: autoboot must be true or false, not a string"),
    ('zonename = "db"', "web.toml: line 1: zonename is 'db', but the file is that of 'web'"),
    ('zonepath = "zones"', "web.toml: line 1: zonepath zones is not an absolute path."),
    ('zonepath = "/"', "web.toml: line 1: zonepath / is not allowed."),
    ('zonepath = "/a/../b"', "web.toml: line 1: zonepath /a/../b must not hold '.' or '..'"),
    ('brand = "a/b"', "web.toml: line 1: brand 'a/b' is not a brand name"),
    ('ip-type = "shared"\n[[net]]\nanet = "zbr0"\naddress = "10.0.0.1/24"',
     "web.toml: line 2: net: ip-type shared needs physical (a link of the host) and an address"),
    ('ip-type = "shared"\n[[net]]\nphysical = "eth0"\naddress = "10.0.0.1/24"\nmtu = 1400',
     "web.toml: line 5: net: mtu cannot be set with ip-type shared"),
    ('[[net]]\nmacvlan = "eth0"\nmaxbw = "1M"', "web.toml: line 3: net: maxbw needs anet, a link on a bridge"),
    ('[[net]]\nanet = "zbr0"\nlink-protection = ["none", "restricted"]',
     "web.toml: line 3: net: link-protection none stands alone"),
    ('[[net]]\nanet = "zbr0"\nlink-protection = ["ip-nospoof"]',
     "web.toml: line 3: net: ip-nospoof needs an address or an allowed-address"),
    ('[[net]]\nanet = "zbr0"\naddress = "10.0.0.1/24"\n[[forward]]\nport = 80\n[[forward]]\nport = 80',
     "web.toml: line 6: forward: port 80/tcp is forwarded twice"),
    ('[[net]]\nanet = "zbr0"\naddress = "10.0.0.1/24"\n[[forward]]\nport = 80\naddress = "::1"',
     "web.toml: line 4: forward: no net resource has an address that port 80/tcp of ::1 could lead to"),
    ('ip-type = "x"', "web.toml: line 1: ip-type must be exclusive or shared, not 'x'"),
    ('hostid = "fffffffff"', "web.toml: line 1: hostid must be at most eight hexadecimal digits, not 'fffffffff'"),
    ('hostid = "ffffffff"', "web.toml: line 1: hostid property is out of range."),
    ('max-lwps = 99', "web.toml: line 1: max-lwps property is out of range."),
    ('max-lwps = true', "web.toml: line 1: max-lwps must be a whole number, not true or false"),
    ('bootargs = "' + "a" * 256 + '"', "web.toml: line 1: bootargs is longer than 255 characters"),
    ('limitpriv = "default,!net_rw"',
     "web.toml: line 1: limitpriv holds an unknown privilege \"net_rw\" (did you mean 'net_raw'?)"),
    ('[fs]\ndir = "/a"', "web.toml: line 1: fs is a list of tables: write [[fs]], not [fs]"),
    ('[[capped-cpu]]\nncpus = 1', "web.toml: line 1: capped-cpu is a table: write [capped-cpu]"),
    ('[capped-cpu]\nncpus = 0', "web.toml: line 2: capped-cpu: ncpus property is out of range."),
    ('[capped-cpu]\n', "web.toml: line 1: capped-cpu: ncpus not specified"),
    ('[capped-memory]\n', "web.toml: line 1: capped-memory: one of physical, swap, locked must be given"),
    ('[capped-memory]\nphysical = "5Q"',
     'web.toml: line 2: capped-memory: physical must be a size such as "512M" or "1.5G", not \'5Q\''),
    ('[capped-memory]\nswap = "49M"', "web.toml: line 2: capped-memory: swap property is out of range. (at least 50M)"),
    ('[capped-memory]\nphysical = "1M"\nlocked = "2M"',
     "web.toml: line 3: capped-memory: locked is more than physical"),
    ('\n[[fs]]\nspecial = "/a"\ntype = "bind"', "web.toml: line 2: fs: dir not specified"),
    ('[[fs]]\ndir = "/a"\ntype = "bind"', "web.toml: line 1: fs: special not specified"),
    ('[[fs]]\ndir = "/a"\nspecial = "a"\ntype = "bind"\noptions = "ro"',
     "web.toml: line 3: fs: special a is not an absolute path."),
    ('[[fs]]\ndir = "/a"\nspecial = "/a"\ntype = "proc"', "web.toml: line 4: fs: type proc is not allowed."),
    ('[[fs]]\ndir = "/a"\nspecial = "/a"\ntype = "nfs4"', "web.toml: line 4: fs: type nfs4 is not allowed."),
    ('[[fs]]\ndri = "/a"', "web.toml: line 2: unknown property of fs 'dri' (did you mean 'dir'?)"),
    ('[[fs]]\ndir = "/a"\nspecial = "/a"\ntype = "bind"',
     ("web.toml: line 1: fs: /a is a writable bind: say whom the zone's root writes as (owner = \"uid:gid\" of a user"
     ' of the host, or idmap = "root"), or add the option ro')),
    ('[[fs]]\ndir = "/a"\nspecial = "/a"\ntype = "bind"\nowner = "0:0"',
     'web.toml: line 5: fs: owner must not be root (idmap = "root" says so in so many words)'),
    ('[[fs]]\ndir = "/a"\nspecial = "/a"\ntype = "bind"\nowner = "5:5"\nidmap = "root"',
     "web.toml: line 6: fs: owner and idmap exclude each other (/a)"),
    ('[[fs]]\ndir = "/a"\ntype = "tmpfs"\n[[fs]]\ndir = "/a/"\ntype = "tmpfs"',
     "web.toml: line 5: A fs resource with the dir '/a' already exists."),
    ('[[net]]\naddress = "10.0.0.1/24"',
     "web.toml: line 1: net: give either anet (a bridge of the host), macvlan (a link of the host) or physical"
     " (a link to move)"),
    ('[[net]]\nanet = "zbr0"\naddress = "10.0.0.1"',
     "web.toml: line 3: net: address '10.0.0.1': missing required prefix length (such as 10.0.0.1/24)"),
    ('[[net]]\nanet = "zbr0"\naddress = "fd00::1"',
     "web.toml: line 3: net: address 'fd00::1': IPv6 address missing required prefix length"),
    ('[[net]]\nanet = "zbr0"\naddress = "web.example.org"',
     "web.toml: line 3: net: address 'web.example.org': Neither an IPv4 nor an IPv6 address"),
    ('[[net]]\nanet = "zbr0"\naddress = "10.0.0.0/24"',
     "web.toml: line 3: net: address '10.0.0.0/24' is the network's own address"),
    ('[[net]]\nanet = "zbr0"\naddress = "10.0.0.1/33"',
     "web.toml: line 3: net: address '10.0.0.1/33': the prefix length is out of range"),
    ('[[net]]\nanet = "zbr0"\ndefrouter = "10.0.0.1"', "web.toml: line 3: net: defrouter needs an address"),
    ('[[net]]\nanet = "zbr0"\naddress = "10.0.0.2/24"\ndefrouter = "10.0.1.1"',
     "web.toml: line 4: net: defrouter 10.0.1.1 is in no network of the link's addresses"),
    ('[[net]]\nanet = "zbr0"\naddress = "10.0.0.2/24"\ndefrouter = ["10.0.0.1", "fd00::1"]',
     "web.toml: line 4: net: defrouter fd00::1 is in no network of the link's addresses"),
    ('[[net]]\nanet = "zbr0"\nlinkname = "lo"',
     "web.toml: line 1: net: lo is every zone's own, nothing can be made on it or called that"),
    ('[[net]]\nphysical = "lo"', "web.toml: line 2: net: lo stays with its host"),
    ('[[net]]\nanet = "zbr0"\nmac-address = "0:0:0:0:0:0"',
     "web.toml: line 3: net: mac-address '0:0:0:0:0:0' cannot be the address of a link"),
    ('[[net]]\nanet = "a-name-that-is-too-long"',
     ("web.toml: line 2: net: anet 'a-name-that-is-too-long' is not a link name"
     " (1 to 15 characters, no '/', ':' or blank)")),
    ('[[net]]\nanet = "a"\naddress = "10.0.0.1/24"\n[[net]]\nanet = "b"\naddress = [\n"10.0.0.1/16"]',
     "web.toml: line 6: A net resource with the address '10.0.0.1' already exists."),
    ('[[net]]\nphysical = "eth1"\n[[net]]\nphysical = "eth1"', "web.toml: line 3: net: the link 'eth1' is used twice"),
    ('[[attr]]\nname = "a"\ntype = "int"\nvalue = "x"', "web.toml: line 4: attr: 'x' is not a value of type int"),
    ('[[rctl]]\nname = "zone.max-lwps"\nvalue = "7"',
     'web.toml: line 3: rctl: value invalid rctl value: 7 (use "(priv=privileged,limit=N,action=deny)")'),
    ('max-lwps = 200\n[[rctl]]\nname = "zone.max-lwps"\nvalue = "(priv=privileged,limit=300,action=deny)"',
     "web.toml: line 2: rctl zone.max-lwps and the property max-lwps are both given"),
    ('max-lwps = 200\n[[rctl]]\nname = "zone.max-lwps"\nvalue = "(priv=privileged,limit=300,action=none)"',
     "web.toml: line 2: max-lwps: An incompatible rctl already exists for this property"),
    ('[dedicated-cpu]\nncpus = "2-1"',
     "web.toml: line 2: dedicated-cpu: ncpus must be a number or a range such as 2-4, not '2-1'"),
    ('[dedicated-cpu]\nncpus = 2\n[capped-cpu]\nncpus = 1', ("web.toml: line 1: capped-cpu and dedicated-cpu are"
     " incompatible.")),
    ('pool = "p"\n[dedicated-cpu]\nncpus = 2',
     "web.toml: line 1: A persistent pool is incompatible with the dedicated-cpu resource."),
    ('cpu-shares = 1\nscheduling-class = "TS"',
     "web.toml: line 2: cpu-shares needs the scheduling-class FSS, not TS"),
    ('autoboot = true\nautoboot', "web.toml: line 2: Expected '=' after a key in a key/value pair"),
    ('autoboot = true\nautoboot = true', "web.toml: line 2: Cannot overwrite a value"),
    ('a = [1,\n2', "web.toml: line 2: Unclosed array"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), REFUSALS, ids=range(len(REFUSALS)))
def test_a_wrong_file_is_refused_with_place_key_and_reason(text: str, expected: str) -> None:
    assert refusal(text) == expected


def test_text_that_is_not_utf8_is_named_with_its_line() -> None:
    with pytest.raises(ConfigError, match="web.toml: line 2: not UTF-8 text"):
        toml.parse(b"a = 1\nb = '\xff'", "web.toml")


@given(st.binary(max_size=200))
def test_no_bytes_make_the_reader_fail_in_another_way(content: bytes) -> None:
    try:
        table, lines = toml.parse(content, "web.toml")
        Zone.from_table(table, filename="web.toml", zonename="web", default_zonepath="/z", lines=lines)
    except ConfigError as error:
        assert error.text.startswith("web.toml")


SCALARS: st.SearchStrategy[Any] = st.one_of(
    st.text(max_size=5), st.integers(-10, 10**6), st.booleans(), st.floats(allow_nan=False), st.none(),
    st.lists(st.text(max_size=3), max_size=2), st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)  # fmt: skip
ALL_NAMES = sorted({row.name for kind in schema.RESOURCES.values() for row in kind.properties})
RESOURCE_TABLES = st.dictionaries(st.sampled_from(ALL_NAMES), SCALARS, max_size=3)
TABLES = st.dictionaries(
    st.sampled_from(schema.top_level_names()),
    st.one_of(SCALARS, RESOURCE_TABLES, st.lists(RESOURCE_TABLES, max_size=2)),
)


@given(TABLES)
def test_any_table_is_read_or_refused_in_one_line(table: dict[str, Any]) -> None:
    try:
        Zone.from_table(table, filename="f", zonename="web", default_zonepath="/z")
    except ConfigError as error:
        assert error.text


def addresses() -> st.SearchStrategy[str]:
    v4 = st.tuples(st.integers(1, 254), st.integers(1, 254)).map(lambda pair: f"10.{pair[0]}.0.{pair[1]}/24")
    v6 = st.integers(1, 0xFFFF).map(lambda number: f"fd91::{number:x}/64")
    return st.one_of(v4, v6)


def zones() -> st.SearchStrategy[dict[str, Any]]:
    """Tables that a zone may have."""
    words = st.text("abcdefgh-", min_size=1, max_size=8).map(lambda text: "x" + text)
    paths = st.lists(words, min_size=1, max_size=3).map(lambda parts: "/" + "/".join(parts))
    mounts = st.one_of(
        st.fixed_dictionaries({"dir": paths, "special": paths, "type": st.just("bind"), "options": st.just(["ro"])}),
        st.fixed_dictionaries({"dir": paths, "special": paths, "type": st.just("bind"), "owner": st.just("7:8")}),
        st.fixed_dictionaries({"dir": paths, "type": st.just("tmpfs")}),
    )
    links = st.fixed_dictionaries(
        {"anet": words, "address": st.lists(addresses(), unique=True, max_size=2)},
        optional={"mtu": st.integers(576, 9000)},
    )
    notes = st.fixed_dictionaries({"name": words, "type": st.just("string"), "value": words})
    return st.fixed_dictionaries(
        {},
        optional={
            "autoboot": st.booleans(),
            "bootargs": st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF, categories=["L", "N", "P"])),
            "hostid": st.one_of(st.integers(0, 0xFFFFFFFE), st.integers(0, 0xFFFFFFFE).map(hex)),
            "limitpriv": st.sampled_from(["", "default", "default,!net_raw", "kill,setuid"]),
            "privileged": st.booleans(),
            "max-lwps": st.integers(100, 10**6),
            "max-shm-memory": st.one_of(st.integers(0, 1 << 40), st.sampled_from(["1G", "0.5M", "3k"])),
            "capped-memory": st.fixed_dictionaries({"physical": st.integers(1 << 20, 1 << 40)}),
            "capped-cpu": st.fixed_dictionaries({"ncpus": st.floats(0.01, 64)}),
            "fs": st.lists(mounts, max_size=3, unique_by=lambda mount: mount["dir"]),
            "net": st.lists(links, max_size=1),
            "attr": st.lists(notes, max_size=3, unique_by=lambda note: note["name"]),
        },
    )


@given(zones())
def test_every_configuration_survives_json(table: dict[str, Any]) -> None:
    zone = Zone.from_table(table, filename="f", zonename="web", default_zonepath="/z")
    again = Zone.from_json(zone.to_json())
    assert again == zone
    assert again.to_json() == zone.to_json()


@given(st.sampled_from(["a", "a.b", '"x y"']), st.integers(0, 5), st.integers(0, 3))
def test_lines_are_found_below_comments_and_long_values(key: str, blank: int, long: int) -> None:
    text = "#\n" * blank + "first = [\n" + "1,\n" * long + "]\n" + f"[[t]]\n[[t]]\n{key} = 1\n"
    table, lines = toml.parse(text.encode(), "f")
    path: tuple[str | int, ...] = ("t", 1, *{"a": ["a"], "a.b": ["a", "b"]}.get(key, ["x y"]))
    assert lines.find(path) == blank + 2 + long + 3
    assert lines.find(("first",)) == blank + 1
    assert lines.find(("missing",)) is None
    assert table
