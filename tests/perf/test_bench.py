"""The bench runs and counts what it says; which program is how fast is for people to read, on a quiet machine."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from typing import Any

import pytest

from tests.kit.instance import CHECKOUT

pytestmark = [
    pytest.mark.requires("root", "userns", "net", "cgroup"),
    pytest.mark.skipif(not (CHECKOUT / ".venv/bin/zonemgr").exists(), reason="contrib/setup was not run here"),
    pytest.mark.skipif(not shutil.which("ip"), reason="the bench needs iproute2"),
]


IDLE_LIMIT_KIB = 22 * 1024  # both interpreters; lower it with every diet, so that nothing comes back unseen


@pytest.fixture(scope="module")
def programs() -> dict[str, Any]:
    program = str(CHECKOUT / "contrib/bench/bench.py")
    words = [sys.executable, program, "--rounds=2", "--only=zonemgr,floor", "--zones=", "--lists=", "--json"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)["programs"]
    return found


def test_the_bench_gives_a_sample_of_each_kind_for_each_round(programs: dict[str, Any]) -> None:
    wanted = {"boot": 2, "halt": 2, "exec": 2, "memory": 2}
    for name in ("zonemgr", "cold", "floor"):
        assert {kind: len(values) for kind, values in programs[name]["samples"].items()} == wanted
    assert all(value > 0 for values in programs["zonemgr"]["samples"].values() for value in values)


def test_supervisor_and_zsched_of_an_idle_zone_stay_small(programs: dict[str, Any]) -> None:
    assert programs["cold"]["median"]["memory"] < IDLE_LIMIT_KIB


@pytest.mark.parametrize("kind", ["boot", "halt", "exec"])
def test_the_launcher_pays(programs: dict[str, Any], kind: str) -> None:
    """Some three times as quick on a quiet machine; anything less than a little quicker means that it does nothing.
    The quickest of each is compared: what else runs can only delay.
    """
    quickest = {name: min(programs[name]["samples"][kind]) for name in ("zonemgr", "cold")}
    assert quickest["zonemgr"] < 0.9 * quickest["cold"]
