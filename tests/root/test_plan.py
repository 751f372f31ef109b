"""``plan`` tells what a verb would do, in the order in which it would, and does nothing."""

from __future__ import annotations

import pytest

from tests.kit.instance import Instance

pytestmark = pytest.mark.requires("root", "userns", "net", "cgroup")


def steps(instance: Instance, verb: str) -> list[str]:
    """The texts of a plan's steps."""
    lines = instance.run("plan", verb, "web").stdout.splitlines()
    return [line.split(". ", 1)[1] for line in lines if not line.startswith("#")]


def test_boot_is_planned_in_order_and_nothing_happens(instance: Instance) -> None:
    instance.installed("web")
    plan = steps(instance, "boot")
    assert plan[0].startswith("make cgroup")
    assert plan[-1].startswith("exec /usr/local/sbin/init")
    sealed = plan.index("pivot into the finished mount tree and lock every mount")
    assert [step.split(" ")[0] for step in plan[sealed + 1 :]] == ["bind", "exec"]  # the names of all zones
    assert instance.state() == "installed"
    assert not (instance.layout.zone_run("web") / "ledger.jsonl").exists()


def test_halt_is_the_boot_backwards_and_reboot_is_both(instance: Instance) -> None:
    instance.running("web")
    made = [f"undo: {step}" for step in steps(instance, "boot") if not step.startswith("exec ")]
    assert steps(instance, "halt") == made[::-1]
    assert steps(instance, "reboot") == [*made[::-1], *steps(instance, "boot")]
    assert instance.state() == "running"
    instance.run("halt", "web")
    assert steps(instance, "halt") == []


def test_a_plan_in_json_has_ops_and_their_texts(instance: Instance) -> None:
    instance.installed("web")
    plan = instance.json("plan", "mount", "web")
    assert {op["kind"] for op in plan["ready"]} >= {"cgroup", "zsched", "scratch-root", "bind", "seal"}
    assert all(op["text"] for op in plan["ready"])


def test_a_verb_without_a_plan_is_a_usage_error(instance: Instance) -> None:
    instance.configured("web")
    assert "no plan for install" in instance.run("plan", "install", "web", check=2).stderr
