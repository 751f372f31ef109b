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


def bench(*options: str) -> str:
    program = str(CHECKOUT / "contrib/bench/bench.py")
    words = [sys.executable, program, "--rounds", "2", "--only", "zonemgr", *options]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


def test_the_bench_gives_a_sample_of_each_kind_for_each_round() -> None:
    report: dict[str, Any] = json.loads(bench("--json"))
    samples = report["programs"]["zonemgr"]["samples"]
    assert {kind: len(values) for kind, values in samples.items()} == {"boot": 2, "halt": 2, "exec": 2, "memory": 2}
    assert all(value > 0 for values in samples.values() for value in values)


def test_supervisor_and_zsched_of_an_idle_zone_stay_small() -> None:
    report: dict[str, Any] = json.loads(bench("--json"))
    assert report["programs"]["zonemgr"]["median"]["memory"] < IDLE_LIMIT_KIB
