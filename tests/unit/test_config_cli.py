"""create, config and delete, as a user types them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kit.program import Answer, Zonemgr
from tests.unit.test_schema import FULL
from tests.unit.test_schema import zones as zone_tables
from zonemgr.cli import configtext
from zonemgr.errors import UsageError
from zonemgr.model import schema
from zonemgr.model.states import State
from zonemgr.model.zone import CappedMemory, Zone
from zonemgr.store import detached, zones
from zonemgr.store.paths import Layout


def text_of(layout: Layout, name: str = "web") -> str:
    return layout.config(name).read_text()


def test_a_created_zone_has_a_brand_a_path_and_a_link_with_free_addresses(zonemgr: Zonemgr, layout: Layout) -> None:
    first, second = zonemgr("create", "web", "autoboot=true"), zonemgr("create", "db")
    assert (first.code, second.code, first.out) == (0, 0, "")
    web, db = zones.load(layout, "web"), zones.load(layout, "db")
    assert first.err == f"zonemgr: zone 'web': configured at {', '.join(web.net[0].address)}\n"
    assert (web.brand, web.autoboot, web.zonepath) == ("native", True, str(layout.zonepath("web")))
    assert web.net[0].anet == "zbr0" + layout.suffix
    assert len(web.net[0].address) == len(web.net[0].defrouter) == 2
    assert not set(web.net[0].address) & set(db.net[0].address)
    assert text_of(layout).startswith("# Zone web.")


def test_create_without_a_link_quietly_or_as_json(zonemgr: Zonemgr, layout: Layout) -> None:
    answer = zonemgr("create", "-q", "--no-net", "web", "bootargs=-m verbose")
    assert answer == Answer(0, "", "")
    assert zones.load(layout, "web").net == ()
    made = json.loads(zonemgr("create", "db", "--json").out)
    assert made["zonename"] == "db"


REFUSED = [
    (["create", "global"], 1, "zone 'global': create operation is invalid for the global zone."),
    (["create", "SUNWx"], 1, "zone 'SUNWx': create operation is invalid for zones starting with SUNW."),
    (["create", "a/b"], 1, "Bogus zone name"),
    (["create", "a" * 64], 1, "has 64 characters, 63 is the most"),
    (["create", "x", "autobot=true"], 1, "zone 'x': unknown property 'autobot' (did you mean 'autoboot'?)"),
    (["create", "x", "autoboot=maybe"], 1, "zone 'x': autoboot must be true or false, not 'maybe'"),
    (["create", "x", "autoboot"], 2, "'autoboot' is not of the form property=value"),
    (["create", "x", "zonename=y"], 1, "zonename is 'y', but the file is that of 'x'"),
    (["create", "x", "ip-type=none"], 1, "zone 'x': ip-type must be exclusive or shared, not 'none'"),
    (["create", "x", "-b", "no-such-brand"], 1, "zone 'x': brand 'no-such-brand' is not known"),
    (["create", "x", "-t", "nothing"], 1, "there is neither a template nor a zone named 'nothing'"),
    (["create", "x", "-t", "web", "--no-net"], 2, "-t cannot be given together with -b or --no-net"),
    (["create"], 2, "Missing argument"),
    (["create", "web"], 1, "zone 'web': Zone name already in use"),
    (["config", "web", "-f", "x", "info"], 2, "give commands or -f FILE, not both"),
    (["config", "nope", "info"], 1, "nope: No such zone configured"),
    (["config", "web", "-f", "/nonexistent/file"], 1, "cannot read /nonexistent/file: No such file or directory"),
    (["config", "web", "sett", "a=b"], 2, "no such command: sett (did you mean 'set'?)"),
    (["config", "web", "set", "a=b"], 1, "zone 'web': unknown property 'a'"),
    (["config", "web", "set", "autoboot"], 2, "'autoboot' is not of the form property=value"),
    (["config", "web", 'set a="b'], 2, "a quote or bracket is not closed"),
    (["config", "web", "set", "zonename=web/x"], 1, "zonename 'web/x' is not a zone name"),
    (["config", "web", "set", "zonename=SUNWx"], 1, "names that begin with SUNW or SYS are"),
    (["config", "web", "help", "autobot"], 1, "there is no help about 'autobot' (did you mean 'autoboot'?)"),
    (["config", "web", "create", "-b", "-t", "web"], 2, "usage: create [-F] [-b | -X | -t TEMPLATE | -a PATH]"),
    (["config", "db", "create", "-a", "/nothing"], 1, "/nothing is not a detached zone"),
    (["config", "web", "set", "zonepath=zones"], 1, "zone 'web': zonepath zones is not an absolute path."),
    (["config", "web", "clear", "brand"], 1, "zone 'web': Clearing this property is not allowed"),
    (["config", "web", "add", "sf"], 1, "zone 'web': unknown resource type 'sf' (did you mean 'fs'?)"),
    (["config", "web", "add", "fs", "dri=/a"], 1, "unknown property of fs 'dri' (did you mean 'dir'?)"),
    (["config", "web", "add", "fs", "dir=/a"], 1, "zone 'web': fs: special not specified"),
    (["config", "web", "add", "fs"], 1, "resource specification incomplete"),
    (["config", "web", "add", "fs", "dir=/srv", "type=tmpfs"], 1, "A fs resource with the dir '/srv' already exists."),
    (["config", "web", "add", "fs", "dir=/a", "special=/a", "type=bind"], 1, "fs: /a is a writable bind"),
    (["config", "web", "add", "capped-memory", "physical=1G"], 1, "The capped-memory resource already exists."),
    (["config", "web", "remove", "fs"], 1, "There are multiple instances of this resource."),
    (["config", "web", "remove", "fs", "dir=/none"], 1, "zone 'web': No such resource with that id"),
    (["config", "web", "remove", "device"], 1, "zone 'web': No such resource with that id"),
    (["config", "web", "select", "fs", "type=tmpfs"], 1, "more than one fs resource is like that"),
    (["config", "web", "end"], 2, "end is for use inside a resource"),
    (["config", "web", "create"], 1, "zone 'web': Zone web already exists; -F overwrites it"),
    (["config", "web", "info", "device", "match=x"], 1, "No such resource with that id"),
    (["config", "web", "-f", "/dev/zero"], 1, "/dev/zero is too large to be a zone's configuration"),
    (["config", "web", "info", "autobot", "--json"], 1, "unknown property 'autobot' (did you mean 'autoboot'?)"),
    (["delete", "nope"], 1, "nope: No such zone configured"),
    (["delete", "web"], 2, "needs -F where nobody can be asked"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "code", "text"), REFUSED, ids=range(len(REFUSED)))
def test_a_wrong_command_gets_one_line_and_changes_nothing(
    zonemgr: Zonemgr, layout: Layout, words: list[str], code: int, text: str
) -> None:
    layout.config("web").parent.mkdir(parents=True)
    content = (
        '[[fs]]\ndir = "/srv"\ntype = "tmpfs"\n[[fs]]\ndir = "/t"\ntype = "tmpfs"\n[capped-memory]\nphysical = "1G"\n'
    )
    layout.config("web").write_text(content)
    answer = zonemgr(*words)
    assert answer.code == code
    assert text in answer.err
    assert answer.err.startswith("zonemgr: ")
    assert zones.names(layout) == ["web"]
    assert text_of(layout) == content


def test_properties_and_resources_are_changed_and_shown(zonemgr: Zonemgr, layout: Layout) -> None:
    zonemgr("create", "web", "--no-net")
    for command in (
        "set autoboot=true",
        "add fs dir=/srv special=/srv/web type=bind options=ro,nosuid",
        "add capped-memory physical=512M swap=1G",
        "set max-lwps=500",
    ):
        assert zonemgr("config", "web", *command.split()) == Answer(0, "", "")
    answer = zonemgr("config", "web", "info")
    assert answer.out == (
        f"zonename: web\nzonepath: {layout.zonepath('web')}\nbrand: native\nautoboot: true\nbootargs:\npool:\n"
        "limitpriv:\nscheduling-class:\nip-type: exclusive\nhostid:\nfs-allowed:\n[max-lwps: 500]\n"
        "fs:\n\tdir: /srv\n\tspecial: /srv/web\n\ttype: bind\n\traw not specified\n\toptions: [ro,nosuid]\n"
        "capped-memory:\n\tphysical: 512M\n\t[swap: 1G]\n"
    )
    assert zonemgr("config", "web", "info", "autoboot").out == "autoboot: true\n"
    assert zonemgr("config", "web", "info", "fs", "dir=/srv").out.startswith("fs:\n\tdir: /srv\n")
    assert json.loads(zonemgr("config", "web", "info", "fs", "--json").out)[0]["options"] == ["ro", "nosuid"]
    assert zonemgr("config", "web", "clear", "max-lwps; remove fs dir=/srv").code == 1
    assert zonemgr("config", "web", "clear max-lwps; remove fs dir=/srv") == Answer(0, "", "")
    assert "fs" not in zonemgr("config", "web", "info").out.replace("fs-allowed", "")


def test_a_resource_is_selected_changed_and_left(zonemgr: Zonemgr, layout: Layout) -> None:
    zonemgr("create", "web", "--no-net")
    zonemgr("config", "web", "add", "fs", "dir=/srv", "special=/srv/web", "type=bind", "options=[ro]")
    layout.config("web").write_text(text_of(layout).replace("[[fs]]", "# the pages\n[[fs]]"))
    answer = zonemgr("config", "web", "select fs dir=/srv; add options nosuid; set special=/srv/new; info; end")
    assert answer.out == "fs:\n\tdir: /srv\n\tspecial: /srv/new\n\ttype: bind\n\toptions: [ro,nosuid]\n"
    assert zones.load(layout, "web").fs[0].options == ("ro", "nosuid")
    assert "# the pages" in text_of(layout)
    before = text_of(layout)
    zonemgr("config", "web", "select fs dir=/srv; set special=/other; cancel")
    assert text_of(layout) == before
    zonemgr("config", "web", "select", "fs", "dir=/srv", ";", "remove", "options", "nosuid;", "end")
    assert zones.load(layout, "web").fs[0].options == ("ro",)


def test_the_first_error_of_a_file_is_named_with_its_line_and_nothing_is_saved(
    zonemgr: Zonemgr, layout: Layout, tmp_path: Path
) -> None:
    zonemgr("create", "web")
    before = text_of(layout)
    script = tmp_path / "commands"
    script.write_text("# a comment\nset autoboot=true\nset bootarg=-s\n")
    answer = zonemgr("config", "web", "-f", str(script))
    assert answer.code == 1
    assert answer.err == ("zonemgr: zone 'web': line 3: unknown property 'bootarg' (did you mean 'bootargs'?)\n")
    assert text_of(layout) == before


def test_an_export_makes_the_same_zone_again(zonemgr: Zonemgr, layout: Layout, tmp_path: Path) -> None:
    layout.config("web").parent.mkdir(parents=True)
    layout.config("web").write_text(FULL)
    script = tmp_path / "exported"
    assert zonemgr("config", "web", "export", "-f", str(script)).code == 0
    before = zones.load(layout, "web")
    zonemgr("delete", "-F", "web")
    answer = zonemgr("config", "web", "-f", str(script))
    assert answer.code == 0
    assert zones.load(layout, "web") == before


@given(zone_tables())
def test_any_configuration_survives_export(table: dict[str, Any]) -> None:
    zone = Zone.from_table(table, filename="f", zonename="web", default_zonepath="/z")
    lines = configtext.commands("\n".join(configtext.export(zone, "/z")))
    found: dict[str, Any] = {}
    current = found
    for line in lines[1:]:
        name, *rest = line.words
        if name == "add" and len(rest) == 1:
            kind = schema.RESOURCES[rest[0]]
            current = {}
            if kind.single:
                found[kind.name] = current
            else:
                found.setdefault(kind.name, []).append(current)
        elif name == "add":
            current.setdefault(rest[0], []).append(rest[1])
        elif name == "end":
            current = found
        else:
            key, _, value = rest[0].partition("=")
            rows = kind.properties if current is not found else schema.GLOBAL_PROPERTIES
            row = next(row for row in rows if row.name == key)
            current[key] = row.from_text(value)
    assert Zone.from_table(found, filename="f", zonename="web", default_zonepath="/z") == zone


@given(st.lists(st.text(min_size=1, max_size=6).filter(str.isprintable), min_size=1, max_size=4))
def test_quoted_words_are_read_as_they_were(words: list[str]) -> None:
    text = " ".join(configtext.quoted(word) for word in words)
    if "=" in words or text.startswith("#"):
        return
    (line,) = configtext.commands(text)
    assert line.words == tuple(words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("set a=b; info", [["set", "a=b"], ["info"]]),
        ('set bootargs="-m verbose; x"', [["set", "bootargs=-m verbose; x"]]),
        ("set options = [ro, nosuid]", [["set", "options=[ro, nosuid]"]]),
        ("add value (priv=basic, limit=1,action=deny)", [["add", "value", "(priv=basic, limit=1,action=deny)"]]),
        ("  # nothing", []),
        ("set a= ; ; info\nend", [["set", "a="], ["info"], ["end"]]),
        ("set a='x\"y'", [["set", 'a=x"y']]),
    ],
)  # fmt: skip
def test_words(text: str, words: list[list[str]]) -> None:
    assert [list(line.words) for line in configtext.commands(text)] == words


def test_an_open_quote_is_refused() -> None:
    with pytest.raises(UsageError, match="line 2: a quote or bracket is not closed"):
        configtext.commands('info\nset a="b', numbered=True)


def test_path_and_brand_of_an_installed_zone_are_frozen(zonemgr: Zonemgr, layout: Layout) -> None:
    zonemgr("create", "web")
    zones.set_state(layout, "web", State.INSTALLED)
    for name, value in (("zonepath", "/zones/other"), ("brand", "debian")):
        answer = zonemgr("config", "web", "set", f"{name}={value}")
        assert answer.err == f"zonemgr: zone 'web': Zone web already installed; set {name} not allowed.\n"
    assert zonemgr("config", "web", "set", "brand=native").code == 0
    assert zonemgr("config", "web", "set", "autoboot=true").code == 0
    assert "already installed; create not allowed" in zonemgr("config", "web", "create", "-F").err


def test_an_installed_zone_is_deleted_by_force_only_and_its_files_stay(zonemgr: Zonemgr, layout: Layout) -> None:
    zonemgr("create", "web")
    zones.set_state(layout, "web", State.INSTALLED)
    kept = layout.zonepath("web") / "root/etc/motd"
    kept.parent.mkdir(parents=True)
    kept.write_text("hello")
    answer = zonemgr("delete", "web")
    assert answer.err == (
        "zonemgr: zone 'web': Zone web not in configured state; delete not allowed.  Use -F to force delete.\n"
    )
    assert zonemgr("delete", "web", "-F").code == 0
    assert zones.names(layout) == []
    assert kept.read_text() == "hello"


def test_a_zone_is_made_from_another_with_addresses_of_its_own(zonemgr: Zonemgr, layout: Layout) -> None:
    zonemgr("create", "web", "hostid=1f", "bootargs=-s")
    zonemgr("config", "web", "add", "attr", "name=owner", "type=string", "value=the ops")
    assert zonemgr("create", "db", "-t", "web").code == 0
    web, db = zones.load(layout, "web"), zones.load(layout, "db")
    assert (db.bootargs, db.attr, db.hostid) == (web.bootargs, web.attr, None)
    assert db.zonepath == str(layout.zonepath("db"))
    assert not set(db.net[0].address) & set(web.net[0].address)
    assert db.net[0].defrouter == web.net[0].defrouter


def test_a_zone_is_made_from_a_template(zonemgr: Zonemgr, layout: Layout) -> None:
    template = layout.etc / "templates/small.toml"
    template.parent.mkdir(parents=True)
    template.write_text('# small zones\nzonename = "x"\n\n[capped-memory]\nphysical = "64M"\n')
    assert zonemgr("create", "web", "-t", "small", "autoboot=true").code == 0
    assert text_of(layout).startswith("# small zones\n")
    zone = zones.load(layout, "web")
    assert (zone.zonename, zone.autoboot, zone.capped_memory) == ("web", True, CappedMemory(64 << 20))


def test_a_broken_file_is_named_with_its_line_and_can_be_mended(zonemgr: Zonemgr, layout: Layout) -> None:
    zonemgr("create", "web", "--no-net")
    layout.config("web").write_text('zonename = "web"\nautoboot = 7\n')
    answer = zonemgr("config", "web", "info")
    place = f"{layout.config('web')}: line 2"
    assert answer.err == f"zonemgr: zone 'web': {place}: autoboot must be true or false, not a number\n"
    assert zonemgr("config", "web", "set", "autoboot=true").code == 0
    assert zones.load(layout, "web").autoboot
    layout.config("web").write_text('zonename = "web"\nautoboot 7\n')
    assert f"{layout.config('web')}: line 2: Expected '='" in zonemgr("config", "web", "info").err


def test_help_knows_every_property(zonemgr: Zonemgr) -> None:
    zonemgr("create", "web", "--no-net")
    assert "takes effect: reinstall" in zonemgr("config", "web", "help", "brand").out
    assert "no effect yet" in zonemgr("config", "web", "help", "dataset").out
    assert "commands: create, set" in zonemgr("config", "web", "help").out


def test_controls_are_shown_as_they_are_written(zonemgr: Zonemgr) -> None:
    """Also those that are properties, in the same run and in a later one; each is found by its name."""
    zonemgr("create", "web", "--no-net")
    add = "add rctl; set name=zone.{}; add value (priv=privileged,limit={},action=deny); end"
    lines = [add.format("max-lwps", 200), add.format("other-thing", 7)]
    shown = [
        f"rctl:\n\tname: zone.{name}\n\tvalue: [(priv=privileged,limit={limit},action=deny)]\n"
        for name, limit in (("max-lwps", 200), ("other-thing", 7))
    ]
    assert zonemgr("config", "web", "; ".join([*lines, "info rctl; info max-lwps"])).out == (
        "".join(shown) + "[max-lwps: 200]\n"
    )
    assert zonemgr("config", "web", "info rctl").out == "".join(shown)
    assert zonemgr("config", "web", "info rctl name=zone.other-thing").out == shown[1]


SHORTHANDS = [  # control, how its property is set, what info says of it, the control's limit and action
    ("cpu-shares", "set cpu-shares=20", "[cpu-shares: 20]", 20, "none"),
    ("max-lwps", "set max-lwps=200", "[max-lwps: 200]", 200, "deny"),
    ("max-processes", "set max-processes=200", "[max-processes: 200]", 200, "deny"),
    ("max-shm-memory", "set max-shm-memory=1G", "[max-shm-memory: 1G]", 1 << 30, "deny"),
    ("max-shm-ids", "set max-shm-ids=7", "[max-shm-ids: 7]", 7, "deny"),
    ("max-msg-ids", "set max-msg-ids=7", "[max-msg-ids: 7]", 7, "deny"),
    ("max-sem-ids", "set max-sem-ids=7", "[max-sem-ids: 7]", 7, "deny"),
    ("zfs-io-priority", "set io-weight=50", "[zfs-io-priority: 50]", 50, "none"),
    ("cpu-cap", "add capped-cpu ncpus=1.25", "\t[ncpus: 1.25]", 125, "deny"),
    ("max-swap", "add capped-memory swap=1G", "\t[swap: 1G]", 1 << 30, "deny"),
    ("max-locked-memory", "add capped-memory locked=64M", "\t[locked: 64M]", 64 << 20, "deny"),
]


def test_every_control_that_is_a_property_is_among_the_shorthands() -> None:
    assert ["zone." + row[0] for row in SHORTHANDS] == [alias.rctl for alias in schema.CONTROL_ALIASES]


@pytest.mark.parametrize(("name", "command", "line", "limit", "action"), SHORTHANDS)
def test_a_control_is_found_by_its_name_and_by_its_property(
    zonemgr: Zonemgr, layout: Layout, name: str, command: str, line: str, limit: int, action: str
) -> None:
    zonemgr("create", "web", "--no-net")
    before = text_of(layout)
    control = f"rctl:\n\tname: zone.{name}\n\tvalue: [(priv=privileged,limit={limit},action={action})]\n"
    raised = f"(priv=privileged,limit={limit + 100},action={action})"
    add = f"add rctl name=zone.{name} value=(priv=privileged,limit={limit},action={action})"
    alias = next(one for one in schema.CONTROL_ALIASES if one.rctl == f"zone.{name}")
    by_property = f"info {alias.resource or alias.field}"
    for setting in (command, add):
        assert zonemgr("config", "web", setting) == Answer(0, "", "")
        as_set = text_of(layout)
        assert zonemgr("config", "web", f"info rctl name=zone.{name}").out == control
        assert line in zonemgr("config", "web", by_property).out.splitlines()
        again = zonemgr("config", "web", add)
        assert again.err == f"zonemgr: zone 'web': A rctl resource with the name 'zone.{name}' already exists.\n"
        # Changed as a control, it is still written as it was.
        change = f"select rctl name=zone.{name}; set value={raised}; end"
        assert zonemgr("config", "web", change) == Answer(0, "", "")
        assert f"limit={limit + 100}," in zonemgr("config", "web", "info rctl").out
        assert ("[[rctl]]" in text_of(layout)) == (setting is add)
        # In a form that the property cannot have, it is a control.
        other = f"add value (priv=basic,limit={limit},action=none)"
        answer = zonemgr("config", "web", f"select rctl name=zone.{name}; {other}; end; info rctl; revert")
        assert answer.out.count("rctl:") == answer.out.count(f"limit={limit},action=none") == 1
        assert zonemgr("config", "web", f"remove rctl name=zone.{name}") == Answer(0, "", "")
        assert text_of(layout).strip() == before.strip()
        layout.config("web").write_text(as_set)
        assert zonemgr("config", "web", removal(alias)) == Answer(0, "", "")
        assert text_of(layout).strip() == before.strip()


def removal(alias: schema.ControlAlias) -> str:
    return f"clear {alias.field}" if alias.resource is None else f"remove {alias.resource}"


def test_a_property_is_changed_where_it_is_written(zonemgr: Zonemgr, layout: Layout) -> None:
    zonemgr("create", "web", "--no-net")
    deny = "add rctl name=zone.{} value=(priv=privileged,limit={},action=deny)".format
    lines = [deny("max-lwps", 200), deny("max-swap", 1 << 30), deny("max-locked-memory", 1 << 20)]
    zonemgr("config", "web", "; ".join(lines))
    assert zonemgr("config", "web", "set max-lwps=300") == Answer(0, "", "")
    assert "max-lwps =" not in text_of(layout)
    assert "limit=300," in text_of(layout)
    # Two controls are one resource: what changes becomes the resource's, the rest stays where it is.
    assert zonemgr("config", "web", "select capped-memory; set swap=2G; set physical=1G; end") == Answer(0, "", "")
    zone = zones.load(layout, "web")
    assert zone.capped_memory == CappedMemory(1 << 30, 2 << 30, 1 << 20)
    assert "zone.max-swap" not in text_of(layout)
    assert "zone.max-locked-memory" in text_of(layout)
    assert zonemgr("config", "web", "select capped-memory; clear locked; end") == Answer(0, "", "")
    assert zones.load(layout, "web").capped_memory == CappedMemory(1 << 30, 2 << 30)
    zonemgr("config", "web", "remove capped-memory; " + deny("max-swap", 1 << 30))
    assert zonemgr("config", "web", "add capped-memory physical=1G").err == (
        "zonemgr: zone 'web': The capped-memory resource or a related resource control already exists.\n"
    )


def test_a_control_of_another_form_is_not_the_property(zonemgr: Zonemgr, layout: Layout) -> None:
    zonemgr("create", "web", "--no-net")
    zonemgr("config", "web", "add rctl name=zone.max-lwps value=(priv=privileged,limit=200,action=none)")
    for command in ("set max-lwps=300", "clear max-lwps"):
        assert zonemgr("config", "web", command).err == (
            "zonemgr: zone 'web': max-lwps: An incompatible rctl already exists for this property\n"
        )
    # Written twice by hand, it is mended by either name.
    both = 'max-lwps = 200\n[[rctl]]\nname = "zone.max-lwps"\nvalue = "(priv=privileged,limit=300,action=deny)"\n'
    for command, left in (("clear max-lwps", 300), ("remove rctl name=zone.max-lwps", 200)):
        layout.config("web").write_text(both)
        assert zonemgr("config", "web", command) == Answer(0, "", "")
        assert zones.load(layout, "web").max_lwps == left


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    """As root, in a mount namespace of its own, with the configuration on a tmpfs of 16 KiB."""
    if subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs root")
    script = """
set -e
z="$0 -m zonemgr --root $1"
mkdir -p $1/etc/zonemgr
mount -t tmpfs -o size=16k none $1/etc/zonemgr
$z create -q web --no-net
cp $1/etc/zonemgr/zones/web.toml $1/before
dd if=/dev/zero of=$1/etc/zonemgr/full bs=1k 2>/dev/null || true
$z config web set autoboot=true && exit 9
cmp $1/before $1/etc/zonemgr/zones/web.toml
ls -A $1/etc/zonemgr/zones
"""
    command = ["unshare", "-m", "sh", "-c", script, sys.executable, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "web.toml\n"), done.stderr
    assert "cannot write" in done.stderr
    assert "No space left on device (the old content is kept)" in done.stderr


def test_a_zone_is_renamed_when_its_new_name_is_saved(zonemgr: Zonemgr, layout: Layout) -> None:
    zonemgr("create", "web", "--no-net")
    zonemgr("create", "db", "--no-net")
    assert "Zone name already in use" in zonemgr("config", "web", "set", "zonename=db").err
    assert zonemgr("config", "web", "set autoboot=true; set zonename=www; revert").code == 0
    assert zones.names(layout) == ["db", "web"]
    assert zonemgr("config", "web", "set zonename=www; set autoboot=true").code == 0
    assert zones.names(layout) == ["db", "www"]
    www = zones.load(layout, "www")
    assert (www.zonename, www.autoboot, www.zonepath) == ("www", True, str(layout.zonepath("www")))


def test_a_configuration_that_was_never_saved_takes_another_name_at_once(zonemgr: Zonemgr, layout: Layout) -> None:
    answer = zonemgr("config", "web", "create -b; set zonename=www; info zonename; set autoboot=true")
    assert (answer.code, answer.out) == (0, "zonename: www\n")
    assert zones.names(layout) == ["www"]


def test_zones_begin_with_the_default_template(zonemgr: Zonemgr, layout: Layout) -> None:
    template = layout.etc / "templates/default.toml"
    template.parent.mkdir(parents=True)
    template.write_text(f'# ours\nautoboot = true\n[[net]]\nanet = "zbr0{layout.suffix}"\n')
    assert zonemgr("create", "web").code == 0
    assert zonemgr("config", "db", "create").code == 0
    web, db = zones.load(layout, "web"), zones.load(layout, "db")
    assert (web.autoboot, db.autoboot) == (True, True)
    assert web.net[0].address and not set(web.net[0].address) & set(db.net[0].address)
    assert zonemgr("config", "blank", "create -b").code == 0
    assert not zones.load(layout, "blank").autoboot
    assert zonemgr("create", "plain", "-b", "native").code == 0
    assert not zones.load(layout, "plain").autoboot


def test_a_configuration_is_made_from_what_a_detached_zone_left(zonemgr: Zonemgr, layout: Layout) -> None:
    zonemgr("create", "web", "autoboot=true", "--no-net")
    place = layout.root / "elsewhere"
    place.mkdir()
    detached.write(str(place), detached.Manifest.of(layout, "web"))
    assert zonemgr("config", "db", "create", "-a", str(place)).code == 0
    db = zones.load(layout, "db")
    assert (db.autoboot, db.zonepath) == (True, str(place))


def test_the_path_of_an_installed_zone_is_changed_by_force_only(zonemgr: Zonemgr, layout: Layout) -> None:
    zonemgr("create", "web", "--no-net")
    zones.set_state(layout, "web", State.INSTALLED)
    assert zonemgr("config", "web", "set", "-F", "zonepath=/zones/other").code == 0
    assert zones.load(layout, "web").zonepath == "/zones/other"


def test_help_tells_of_commands_resources_and_properties(zonemgr: Zonemgr) -> None:
    zonemgr("create", "web")
    assert zonemgr("config", "web", "help", "select").out.startswith("usage: select resource")
    lines = zonemgr("config", "web", "help", "smf-dependency").out.splitlines()
    assert lines[0].endswith("(no effect yet)")
    assert "fmri: the service or zone it waits for (required, text, no effect yet)" in lines
    assert "default: false" in zonemgr("config", "web", "help", "autoboot").out
    assert zonemgr("config", "web", "help", "match").out.startswith("device match: ")
    assert "no effect yet" not in zonemgr("config", "web", "help", "match").out
