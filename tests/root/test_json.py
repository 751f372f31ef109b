"""``--json``: every verb answers as the document says, also when it fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.kit.instance import Instance
from zonemgr.cli import shapes
from zonemgr.cli.main import VERBS
from zonemgr.cli.shapes import (
    APPLIED,
    CONFIGURATION,
    EVENT,
    PLAN,
    RESULT,
    SAMPLE,
    TEXT,
    TRACE,
    Many,
    Record,
    faults,
)
from zonemgr.model import schema


def test_every_verb_is_in_the_table() -> None:
    assert {verb for answer in shapes.ANSWERS for verb in answer.verbs} == {*VERBS, "--version"}


def test_the_configuration_has_every_row_of_the_schema() -> None:
    names = {field.name for field in CONFIGURATION.fields}
    assert names == {row.name for row in schema.GLOBAL_PROPERTIES} | set(schema.RESOURCES)


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ([{"zonename": "web", "ok": 1, "note": None, "messages": []}], "[0].ok: 1 is not true or false"),
        ([{"zonename": "web", "ok": True, "messages": []}], "[0].note: is missing"),
        ([{"zonename": "web", "ok": True, "note": None, "messages": [], "x": 1}], "[0].x: result has no such field"),
        ({}, "the answer: {} is not a list"),
    ],
)
def test_what_does_not_fit_is_named(value: Any, fault: str) -> None:
    assert list(faults(Many(RESULT), value)) == [fault]


def asked(instance: Instance, shape: shapes.Shape, *words: str, check: int = 0) -> Any:
    """The answer, which must be of this very shape (``Instance.run`` takes any that the verb may have)."""
    value = json.loads(instance.run("--json", *words, check=check).stdout)
    assert list(faults(shape, value)) == [], words
    return value


def _ok(instance: Instance, *words: str) -> bool:
    (result,) = asked(instance, Many(RESULT), *words)
    return bool(result["ok"])


@pytest.mark.long
@pytest.mark.requires("root", "userns", "net", "cgroup")
def test_every_verb_answers_as_the_table_says(instance: Instance, tmp_path: Path) -> None:
    made = asked(instance, CONFIGURATION, "create", "web", "max-lwps=900", "autoboot=true")
    assert made["max-lwps"] == 900
    (refused,) = asked(instance, Many(RESULT), "create", "web", check=1)
    assert (refused["ok"], refused["messages"]) == (False, ["Zone name already in use"])
    assert all(_ok(instance, *words.split()) for words in ("install web", "verify web", "sysboot web"))
    _of_its_configuration(instance)
    _of_a_running_zone(instance)
    _of_a_set(instance, tmp_path)
    for verb in ("brands", "fsck", "doctor"):
        instance.json(verb)
    assert instance.json("--version")["json"] == shapes.VERSION


def _of_its_configuration(instance: Instance) -> None:
    assert asked(instance, CONFIGURATION, "config", "web", "info")["autoboot"] is True
    assert asked(instance, TEXT, "config", "web", "info brand") == "native"
    assert "set autoboot=true" in asked(instance, Many(TEXT), "config", "web", "export")
    assert _ok(instance, "config", "web", "add capped-memory physical=256M")
    (refused,) = asked(instance, Many(RESULT), "config", "web", "set autobot=1", check=1)
    assert refused["messages"] == ["unknown property 'autobot' (did you mean 'autoboot'?)"]
    assert instance.run("--json", "config", check=2).stdout == ""


def _of_a_running_zone(instance: Instance) -> None:
    assert [zone["action"] for zone in instance.json("autoboot")] == ["boot"]
    assert instance.json("autoboot", "--status")["results"][0]["zonename"] == "web"
    instance.json("list", "-c")
    for words in (["config", "web", "set max-lwps=800"], ["config", "web", "set hostid=1234"]):
        instance.run(*words)
    (applied,) = asked(instance, Many(APPLIED), "apply", "web")
    assert {change["property"]: change["state"] for change in applied["changes"]} == {
        "max-lwps": "applied",
        "hostid": "pending",
    }
    asked(instance, Many(APPLIED), "apply", "nosuch", check=1)
    asked(instance, Many(RESULT), "confirm", "web", check=1)
    asked(instance, SAMPLE, "stat")
    lines = instance.run("--json", "stat", "0.1", "2").stdout.splitlines()
    assert [list(faults(SAMPLE, json.loads(line))) for line in lines] == [[], []]
    asked(instance, TRACE, "trace", "web", "tcp/80", check=1)
    asked(instance, PLAN, "plan", "reboot", "web")
    assert all(_ok(instance, verb, "web") for verb in ("reboot", "shutdown", "ready", "halt", "mount", "unmount"))
    lines = instance.run("--json", "events").stdout.splitlines()
    closed = Record(EVENT.name, EVENT.help, EVENT.fields)
    assert lines and [fault for line in lines for fault in faults(closed, json.loads(line))] == []


def _of_a_set(instance: Instance, tmp_path: Path) -> None:
    (tmp_path / "other.toml").write_text("")
    for words in (["--dry-run"], ["-F"], ["-F"]):
        instance.json("apply", "-f", str(tmp_path), *words)
    assert asked(instance, shapes.LEFT, "detach", "web", "-n")["zonename"] == "web"
    asked(instance, Many(RESULT), "detach", "nosuch", "-n", check=1)
