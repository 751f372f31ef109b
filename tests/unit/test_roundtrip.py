"""Any configuration that the schema allows survives export, the editor, and export again.

The configurations are drawn from the schema's own rows: a new row takes part as soon as POOL has a value for it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from zonemgr.cli import configtext
from zonemgr.cli.editor import Editor
from zonemgr.cli.output import Session
from zonemgr.errors import ConfigError
from zonemgr.model import schema
from zonemgr.model.checks import Refused
from zonemgr.model.schema import Form, Property, Resource
from zonemgr.model.zone import Zone

# Values that some row or other takes, many of them with what a quoting could trip over.
POOL: Final[tuple[Any, ...]] = (
    True, False, 0, 1, 5, 77, 100, 600, 8080, 65000, 1 << 20, 60 << 20, (1 << 40) + 1, 0.01, 1.5, 3.14159,
    "a", "web.example.org", "/a", "/srv/x y", "/with=equals;and", "/quo\"te/it's", "/back\\slash", "/#hash", "/[x],(y)",
    "10.1.2.3/24", "10.1.2.4/24", "fd00::1/64", "10.1.2.1", "fd00::ff", "10.9.0.0/16", "02:00:00:00:00:01", "02:08",
    "auto", "7:8", "root", "ro", "nosuid", "size=1m", "default,!net_raw", "kill", "1f", "FSS", "x=y", "a;b", "-m  two",
    "(name=speed,value=10 of them)", "(priv=privileged,limit=5,action=deny)", "(priv=basic,limit=7,action=none)",
    "zone.max-frobs", "zone.max-lwps", "login", "manage", "string", "uint", "2-4", "0-3,6", "100M", "2.5G", "1G",
    "bind", "tmpfs", "ext4", "svc:/network/nfs:default", "tank/web", "tank/db", "eth7", "zbr0", "mkdir", "!ptrace",
    "fuse", "zvol/dsk/x*", "umlaut ü", "two words", "", " blanks around ", "a.service", "aslr", "nofile", "unlimited",
)  # fmt: skip
FEW: Final = ("brand", "zonename", "zonepath")  # which another zone, or a host, decides about


def examples(row: Property) -> list[Any]:
    """What of the pool, and of the words that the row itself names when it refuses one, the row takes."""
    words = []
    try:
        row.check(["no-such-word"] if row.form is Form.LIST else "no-such-word")
    except Refused as refused:
        named = re.match(r"must be (.*), not", str(refused))
        words = re.split(" or |, ", named[1]) if named else []
    return [value for value in (*POOL, *words) if taken(row, [value] if row.form is Form.LIST else value)]


def taken(row: Property, value: Any) -> bool:
    try:
        row.check(value)
    except Refused:
        return False
    return True


def values(row: Property) -> st.SearchStrategy[Any]:
    found = examples(row)
    if row.form is Form.LIST:
        return st.lists(st.sampled_from(found), min_size=1, max_size=3, unique_by=repr)
    return st.sampled_from(found)


def resources(kind: Resource) -> st.SearchStrategy[dict[str, Any]]:
    rows = {row.name: values(row) for row in kind.properties}
    required = {row.name: rows.pop(row.name) for row in kind.properties if row.required}
    return st.fixed_dictionaries(required, optional=rows)


def configurations() -> st.SearchStrategy[dict[str, Any]]:
    """Tables with a few properties and up to two kinds of resources: more would rarely go together."""
    rows = [row for row in schema.GLOBAL_PROPERTIES if row.name not in FEW]
    single = st.sampled_from(rows).flatmap(lambda row: st.tuples(st.just(row.name), values(row)))
    several = st.sampled_from(list(schema.RESOURCES.values())).flatmap(
        lambda kind: st.tuples(
            st.just(kind.name),
            resources(kind) if kind.single else st.lists(resources(kind), min_size=1, max_size=2),
        )
    )
    return st.tuples(st.lists(single, max_size=4), st.lists(several, max_size=2)).map(
        lambda parts: {**dict(parts[0]), **dict(parts[1])}
    )


def test_every_row_takes_part() -> None:
    rows = [*schema.GLOBAL_PROPERTIES, *(row for kind in schema.RESOURCES.values() for row in kind.properties)]
    assert [row.name for row in rows if row.name not in FEW and not examples(row)] == [], "add a value to POOL"


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    session = Session("zonecfg")
    session.root = str(tmp_path_factory.mktemp("root"))
    session.quiet = True
    return session


@given(table=configurations())
def test_export_editor_and_export_again_are_a_fixed_point(session: Session, table: dict[str, Any]) -> None:
    try:
        zone = Zone.from_table(table, filename="", zonename="web", default_zonepath="/z")
    except ConfigError:
        assume(False)
    lines = configtext.export(zone, "/z")
    editor = Editor(session, "web")
    for line in configtext.commands("\n".join(lines), numbered=True):
        editor.command(line.words)
    draft = editor.edited()
    again = Zone.from_table(draft.table, filename="", zonename="web", default_zonepath="/z")
    assert again == Zone.from_json({**zone.to_json(), "zonepath": again.zonepath})
    assert configtext.export(again, again.zonepath) == lines


def test_a_file_with_all_of_it_is_exported_in_words_that_anybody_can_read(session: Session, tmp_path: Path) -> None:
    table = {"bootargs": "-m  two", "attr": [{"name": "n", "type": "string", "value": 'say "hi"; #1'}]}
    zone = Zone.from_table(table, filename="", zonename="web", default_zonepath="/z")
    assert configtext.export(zone, "/z") == [
        "create -b", "set autoboot=false", 'set bootargs="-m  two"', "set ip-type=exclusive",
        "add attr", "set name=n", "set type=string", 'set value="say \\"hi\\"; #1"', "end",
    ]  # fmt: skip
