"""Editing zone files: values change, everything else stays."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zonemgr.errors import ConfigError, NoSuchZoneError, PlatformError
from zonemgr.model.states import State
from zonemgr.store import config, events, zones
from zonemgr.store.config import Draft
from zonemgr.store.paths import Layout

TEXT = """# the front end

zonename = "web"  # as in the contract
autoboot = false

# towards the office
[[net]]
anet = "zbr0"
address = [  # both kinds
    "10.91.0.10/24",
    "fd91::10/64",
]

# pages
[[fs]]
dir = "/srv"
special = "/srv/web"
type = "bind"
options = ["ro"] # never write

# scratch
[[fs]]
dir = "/scratch"
type = "tmpfs"

# little
[capped-memory]
physical = "512M"
# the end
"""
INLINE = """fs = [{ dir = "/a", type = "tmpfs" }, { dir = "/b", type = "tmpfs" }]
capped-cpu = { ncpus = 1 }
capped-memory.physical = "1G"
"""


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    found = Layout.at(tmp_path)
    found.config("web").parent.mkdir(parents=True)
    return found


def draft(text: str) -> Draft:
    return Draft(Layout(Path("/nonexistent")), "web", text, "")


def lines_changed(before: str, after: str) -> tuple[list[str], list[str]]:
    old, new = before.split("\n"), after.split("\n")
    return [line for line in old if line not in new], [line for line in new if line not in old]


def test_a_changed_value_changes_its_line_only() -> None:
    edited = draft(TEXT)
    edited.set((), "zonename", "db")
    assert lines_changed(TEXT, edited.text) == (
        ['zonename = "web"  # as in the contract'],
        ['zonename = "db"  # as in the contract'],
    )


def test_a_new_property_goes_to_the_others_and_not_into_the_last_table() -> None:
    edited = draft(TEXT)
    edited.set((), "bootargs", "-s")
    assert edited.text == TEXT.replace("autoboot = false\n", 'autoboot = false\nbootargs = "-s"\n')


def test_a_new_property_of_a_file_of_tables_goes_above_their_comments() -> None:
    edited = draft('# the front end\n\n# pages\n[[fs]]\ndir = "/a"\n')
    edited.set((), "autoboot", True)
    assert edited.text == '# the front end\n\nautoboot = true\n\n# pages\n[[fs]]\ndir = "/a"\n'


def test_properties_of_resources_are_set_and_cleared() -> None:
    edited = draft(TEXT)
    edited.set(("fs", 1), "options", ["nosuid"])
    edited.clear(("fs", 0), "options")
    edited.set(("capped-memory",), "swap", "1G")
    assert lines_changed(TEXT, edited.text) == (
        ['options = ["ro"] # never write'],
        ['options = ["nosuid"]', 'swap = "1G"'],
    )
    assert edited.table["fs"][1]["options"] == ["nosuid"]


def test_a_removed_resource_takes_its_own_comment_and_no_other() -> None:
    edited = draft(TEXT)
    edited.remove("fs", 0)
    assert "# pages" not in edited.text
    assert "# scratch\n[[fs]]" in edited.text
    edited.remove("fs", 0)
    edited.remove("net", 0)
    assert edited.text.endswith('autoboot = false\n\n# little\n[capped-memory]\nphysical = "512M"\n# the end\n')


def test_an_added_resource_comes_after_the_last_of_its_kind() -> None:
    edited = draft(TEXT)
    edited.add("fs", {"dir": "/c", "type": "tmpfs"}, single=False)
    assert '[[fs]]\ndir = "/c"\ntype = "tmpfs"\n\n# little\n' in edited.text
    edited.add("capped-cpu", {"ncpus": 1.5}, single=True)
    assert edited.text.endswith("# the end\n\n[capped-cpu]\nncpus = 1.5\n")


def test_other_ways_to_write_tables_are_edited_too() -> None:
    edited = draft(INLINE)
    edited.set(("fs", 1), "dir", "/c")
    edited.add("fs", {"dir": "/d", "type": "tmpfs"}, single=False)
    edited.set(("fs", 0), "options", ["ro"])
    edited.set(("capped-cpu",), "ncpus", 2)
    edited.set(("capped-memory",), "physical", "2G")
    edited.set(("capped-memory",), "swap", "4G")
    assert edited.table == {
        "fs": [
            {"dir": "/a", "type": "tmpfs", "options": ["ro"]},
            {"dir": "/c", "type": "tmpfs"},
            {"dir": "/d", "type": "tmpfs"},
        ],
        "capped-cpu": {"ncpus": 2},
        "capped-memory": {"physical": "2G", "swap": "4G"},
    }
    edited.remove("fs", 1)
    edited.remove("capped-cpu", None)
    edited.remove("capped-memory", None)
    assert [mount["dir"] for mount in edited.table["fs"]] == ["/a", "/d"]
    edited.remove("fs", 0)
    edited.remove("fs", 0)
    assert edited.table == {}


VALUES = st.one_of(
    st.booleans(), st.integers(-9, 10**12), st.text(max_size=8), st.lists(st.text(max_size=4), max_size=3)
)  # fmt: skip
KEYS = st.sampled_from(["autoboot", "bootargs", "zonename", "max-lwps", "x y"])
FS_KEYS = st.sampled_from(["dir", "type", "options", "a.b"])
OPERATIONS = st.one_of(
    st.tuples(st.just("set"), st.just(()), KEYS, VALUES),
    st.tuples(st.just("clear"), st.just(()), KEYS, st.none()),
    st.tuples(st.just("set"), st.tuples(st.just("fs"), st.integers(0, 2)), FS_KEYS, VALUES),
    st.tuples(st.just("clear"), st.tuples(st.just("fs"), st.integers(0, 2)), FS_KEYS, st.none()),
    st.tuples(st.just("set"), st.just(("capped-memory",)), st.sampled_from(["physical", "swap"]), VALUES),
    st.tuples(st.just("clear"), st.just(("capped-memory",)), st.sampled_from(["physical", "swap"]), st.none()),
    st.tuples(st.just("add"), st.just(("fs",)), st.just(""), st.dictionaries(FS_KEYS, VALUES, min_size=1, max_size=2)),
    st.tuples(st.just("remove"), st.tuples(st.just("fs"), st.integers(0, 2)), st.just(""), st.none()),
    st.tuples(st.just("add"), st.just(("capped-memory",)), st.just(""), st.just({"locked": 1})),
    st.tuples(st.just("remove"), st.just(("capped-memory",)), st.just(""), st.none()),
)


def at(table: dict[str, Any], path: tuple[str | int, ...]) -> Any:
    found: Any = table
    for key in path:
        try:
            found = found[key]
        except (KeyError, IndexError):
            return None
    return found


def apply(edited: Draft, model: dict[str, Any], operation: tuple[str, tuple[Any, ...], str, Any]) -> None:
    """Do one operation to the text and to plain values."""
    action, path, key, value = operation
    there = at(model, path)
    if action == "set" and there is not None:
        edited.set(path, key, value)
        there[key] = value
    elif action == "clear" and there is not None:
        edited.clear(path, key)
        there.pop(key, None)
    elif action == "add" and path == ("fs",):
        edited.add("fs", value, single=False)
        model.setdefault("fs", []).append(copy.deepcopy(value))
    elif action == "add" and there is None:
        edited.add(path[0], value, single=True)
        model[path[0]] = dict(value)
    elif action == "remove" and there is not None:
        edited.remove(path[0], path[1] if len(path) > 1 else None)
        if len(path) == 1:
            del model[path[0]]
        else:
            del model["fs"][path[1]]
            if not model["fs"]:
                del model["fs"]


@given(st.sampled_from([TEXT, TEXT.split("# pages")[0], ""]), st.lists(OPERATIONS, max_size=12))
def test_any_edits_do_to_the_text_what_they_do_to_the_values(
    text: str, operations: list[tuple[str, tuple[Any, ...], str, Any]]
) -> None:
    edited = draft(text)
    model = edited.table
    kept = {line for line in text.split("\n") if line.startswith(("# the", "# little"))}
    for operation in operations:
        apply(edited, model, operation)
        assert edited.table == model, (operation, edited.text)
    if not any(operation[0] == "remove" for operation in operations):
        assert kept <= set(edited.text.split("\n"))


def test_a_save_is_checked_first_and_nothing_is_written_when_it_is_wrong(layout: Layout) -> None:
    layout.config("web").write_text(TEXT)
    edited = Draft.open(layout, "web")
    edited.set((), "autoboot", "maybe")
    with pytest.raises(ConfigError, match="^autoboot must be true or false, not a string$"):
        edited.save()
    assert layout.config("web").read_text() == TEXT


def test_the_second_of_two_administrators_is_told_and_nothing_is_lost(layout: Layout) -> None:
    layout.config("web").write_text(TEXT)
    first, second = Draft.open(layout, "web"), Draft.open(layout, "web")
    first.set((), "autoboot", True)
    second.set((), "bootargs", "-s")
    first.save()
    with pytest.raises(ConfigError) as caught:
        second.save()
    assert caught.value.text == (
        "somebody else has changed the configuration meanwhile; nothing is saved (look at it, then try again)"
    )
    assert layout.config("web").read_text() == first.text
    first.set((), "bootargs", "-v")
    first.save()
    layout.config("web").unlink()
    with pytest.raises(ConfigError, match="somebody else has deleted"):
        first.save()
    assert not layout.config("web").exists()


def test_two_who_create_the_same_zone_make_one(layout: Layout) -> None:
    first, second = Draft.new(layout, "web", "autoboot = true\n"), Draft.new(layout, "web", "autoboot = false\n")
    first.save()
    with pytest.raises(ConfigError, match="Zone name already in use"):
        second.save()
    with pytest.raises(ConfigError, match="Zone name already in use"):
        Draft.new(layout, "web")
    assert zones.load(layout, "web").autoboot


def test_mode_and_link_of_the_file_are_kept_and_the_change_is_told(layout: Layout, tmp_path: Path) -> None:
    real = tmp_path / "web.toml"
    real.write_text(TEXT)
    real.chmod(0o600)
    layout.config("web").symlink_to(real)
    edited = Draft.open(layout, "web")
    edited.set((), "autoboot", True)
    edited.save()
    assert layout.config("web").is_symlink()
    assert real.read_text() == edited.text
    assert real.stat().st_mode & 0o777 == 0o600
    assert [(event["zonename"], event["change"]) for event in events.recorded(layout)] == [("web", "changed")]


def test_an_address_of_another_zone_or_of_the_bridge_is_refused(layout: Layout) -> None:
    bridge = "zbr0" + layout.suffix
    addresses, routers = config.free_addresses(layout, "web")
    text = f'[[net]]\nanet = "{bridge}"\naddress = "{addresses[0]}"\n'
    Draft.new(layout, "web", text).save()
    with pytest.raises(ConfigError, match="is configured in zone 'web' too"):
        Draft.new(layout, "db", text).save()
    free = config.free_addresses(layout, "db")[0]
    assert addresses[0].endswith(".2/24")
    assert free[0].endswith(".3/24")
    assert free[1] == addresses[1]
    router = text.replace(addresses[0], routers[0] + "/24")
    with pytest.raises(ConfigError, match=f"is the address of the bridge {bridge}"):
        Draft.new(layout, "db", router).save()


def test_a_full_network_is_named(layout: Layout) -> None:
    layout.settings.write_text('bridge-address = "10.91.0.1/30"\n')
    address = config.free_addresses(layout, "web")[0][0]
    assert address == "10.91.0.2/30"
    Draft.new(layout, "web", f'[[net]]\nanet = "zbr9"\naddress = "{address}"\n').save()
    with pytest.raises(ConfigError, match="no address is left in 10.91.0.0/30"):
        config.free_addresses(layout, "db")


def test_a_zone_is_forgotten_with_its_entry(layout: Layout) -> None:
    Draft.new(layout, "web").save()
    zones.set_state(layout, "web", State.INCOMPLETE)
    config.delete(layout, "web")
    assert zones.names(layout) == []
    with pytest.raises(NoSuchZoneError):
        config.delete(layout, "web")
    with pytest.raises(NoSuchZoneError):
        Draft.open(layout, "web")


def test_a_folder_that_cannot_be_written_is_named(layout: Layout) -> None:
    if os.geteuid() == 0:
        layout.config("web").parent.rmdir()
        layout.config("web").parent.write_text("")
    with pytest.raises(PlatformError, match="etc/zonemgr/zones"):
        Draft.new(layout, "web").save()
