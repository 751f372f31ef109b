"""The forms in which zones are listed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from zonemgr.cli.list import GLOBAL, HEADER, Row, select, show
from zonemgr.cli.output import Session
from zonemgr.model.states import State
from zonemgr.store.readiness import Told


def zone(name: str, state: State, zone_id: int | None = None, path: str = "/z", ip: str = "exclusive") -> Row:
    return Row(name, state, zone_id, path, "u", "native", ip)


def test_the_table_is_the_references() -> None:
    assert HEADER == "  ID NAME             STATUS     PATH                           BRAND    IP    "
    assert zone("web", State.RUNNING, 12, "/zones/web").verbose() == (
        "  12 web              running    /zones/web                     native   excl  "
    )
    assert zone("web", State.INSTALLED).verbose().startswith("   - web ")


def test_over_long_values_push_columns() -> None:
    assert zone("w" * 20, State.SHUTTING_DOWN).verbose() == (
        f"   - {'w' * 20} shutting_down /z                             native   excl  "
    )


def test_the_parsable_form_escapes_colons_of_the_path_only() -> None:
    assert zone("web", State.READY, 3, "/a:b").parsable() == "3:web:ready:/a\\:b:u:native:excl"
    assert zone("web", State.CONFIGURED, ip="shared").parsable() == "-:web:configured:/z:u:native:shared"
    assert GLOBAL.parsable() == "0:global:running:/::host:shared"


def test_a_path_cannot_break_the_line() -> None:
    assert "\n" not in zone("web", State.READY, 3, "/a\x1b[31m").verbose()
    assert zone("web", State.READY, 3, "/a\x1b[31m").parsable() == "3:web:ready:/a\\x1b[31m:u:native:excl"


ZONES = [
    zone("a", State.CONFIGURED),
    zone("b", State.MOUNTED, 7),
    zone("c", State.INCOMPLETE),
    zone("d", State.INSTALLED),
    zone("e", State.DOWN, 2),
    zone("f", State.INSTALLED),
]


@pytest.mark.parametrize(
    ("minimum", "names"),
    [(State.READY, "eb"), (State.INSTALLED, "ebdf"), (State.CONFIGURED, "ebacdf")],
)
def test_living_zones_come_first_by_id_then_the_others_by_name(minimum: State, names: str) -> None:
    assert "".join(row.zonename for row in select(ZONES, minimum)) == names


def test_json_holds_what_the_columns_hold(capsys: pytest.CaptureFixture[str]) -> None:
    session = Session()
    session.json = True
    show(session, [zone("web", State.RUNNING, 4)], verbose=False, parsable=False)
    assert json.loads(capsys.readouterr().out) == [
        {
            "id": 4,
            "zonename": "web",
            "state": "running",
            "zonepath": "/z",
            "uuid": "u",
            "brand": "native",
            "ip-type": "exclusive",
            "label": None,
            "limits": [],
            "ready": None,
            "status": None,
        }
    ]


def test_who_is_not_ready_is_shown_while_there_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    up, coming = (replace(zone("web", State.RUNNING, 4), told=Told("x", ready)) for ready in (True, False))
    show(Session(), [up], verbose=True, parsable=False)
    assert "READY" not in capsys.readouterr().out
    show(Session(), [up, coming, zone("down", State.INSTALLED)], verbose=True, parsable=False)
    rows = [line.split()[-1] for line in capsys.readouterr().out.splitlines()]
    assert rows == ["READY", "yes", "no", "-"]


def test_a_label_is_shown_only_where_there_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    plain, labeled = zone("web", State.RUNNING, 4), replace(zone("db", State.RUNNING, 5), label="user_u:r:db_t")
    show(Session(), [plain], verbose=True, parsable=False)
    assert "LABEL" not in capsys.readouterr().out
    show(Session(), [plain, labeled], verbose=True, parsable=False)
    header, first, second = capsys.readouterr().out.splitlines()
    assert header.endswith(" LABEL") and first.endswith(" -") and second.endswith(" user_u:r:db_t")
    assert labeled.parsable().endswith(":excl:user_u\\:r\\:db_t")


def test_an_instance_without_zones_lists_the_global_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from zonemgr.cli import main

    for words, expected in ((["list"], "global\n"), (["list", "-cn"], ""), (["list", "global"], "global\n")):
        with pytest.raises(SystemExit) as end:
            main.run(main.program, ["--root", str(tmp_path), *words], Session())
        assert end.value.code == 0
        assert capsys.readouterr().out == expected


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        (["list", "-pv"], 1, "zonemgr: list -p and -v are mutually exclusive.\n"),
        (["list", "-c", "web"], 2, "zonemgr: -c and -i do not go with zone names\n"),
        (["list", "web"], 1, "zonemgr: web: No such zone configured\n"),
    ],
)
def test_what_list_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], status: int, text: str
) -> None:
    from zonemgr.cli import main

    with pytest.raises(SystemExit) as end:
        main.run(main.program, ["--root", str(tmp_path), *words], Session())
    assert end.value.code == status
    assert capsys.readouterr().err == text
