"""Events for people and for programs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from zonemgr.cli import main
from zonemgr.cli.events import describe
from zonemgr.cli.output import Session
from zonemgr.store.events import publish
from zonemgr.store.paths import Layout


def test_a_change_of_state_reads_as_one() -> None:
    event = {
        "time": 0,
        "type": "state",
        "zonename": "web",
        "oldstate": "ready",
        "newstate": "running",
        "zoneid": 3,
    }
    assert describe(event).endswith("web              state ready -> running  zoneid=3")


def test_an_event_cannot_steer_the_terminal() -> None:
    assert "\x1b" not in describe({"time": 0, "type": "x\x1b[2J", "zonename": "web", "text": "\x1b[1m"})


def test_only_the_named_zones_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layout = Layout.at(tmp_path)
    for name in ("web", "db", "web"):
        publish(layout, {"type": "config", "zonename": name})
    with pytest.raises(SystemExit):
        main.run(main.program, ["--root", str(tmp_path), "--json", "events", "web"], Session())
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["zonename"] for line in lines] == ["web", "web"]
