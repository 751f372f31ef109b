"""State-change hooks of a brand on real transitions: the sequences of the zones reference, section 2.1, by name."""

from __future__ import annotations

import os
import shutil

import pytest

from tests.kit.instance import Instance
from zonemgr.brandkit import loader

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

TRACED = """
import os, signal, subprocess, sys
from pathlib import Path
from zonemgr.brandkit import loader
from zonemgr.store.paths import Layout

Native = type(loader.load("native", Layout.at("/")))

class Traced(Native):
    name = "traced"

    def pre_statechange(self, zone, state, command):
        return self._note(zone, f"pre {state},{command}")

    def post_statechange(self, zone, state, command):
        return self._note(zone, f"post {state},{command}")

    def boot(self, zone):
        return self._note(zone, "boot")

    def halt(self, zone):
        return self._note(zone, "halt")

    def _note(self, zone, text):
        folder = Path(zone.layout_root)
        with open(folder / "trace", "a") as trace:
            trace.write(text + "\\n")
        orders = folder / "orders"
        given = orders.read_text().splitlines() if orders.exists() else []
        match dict(line.split("=", 1) for line in given).get(text):
            case "fail":
                print(f"{text}: not today")
                return 1
            case "raise":
                raise RuntimeError("a bug of the brand")
            case "hang":
                signal.pause()
            case "command":
                words = [sys.executable, "-m", "zonemgr", "--root", zone.layout_root, "halt", zone.zonename]
                return subprocess.run(words, stderr=sys.stdout.fileno()).returncode
"""


class Traced:
    """An instance with one zone of a brand that writes down which hooks were run."""

    def __init__(self, instance: Instance) -> None:
        self.instance = instance
        folder = instance.layout.etc / "brands/traced"
        folder.mkdir(parents=True)
        (folder / "brand.py").write_text(TRACED)
        shutil.copy(loader.shipped_folder() / "native/init", folder / "init")
        instance.installed("web", "-b", "traced")

    def order(self, hook: str, what: str) -> None:
        (self.instance.root / "orders").write_text(f"{hook}={what}\n")

    def trace(self, *args: str, check: int = 0) -> list[str]:
        """The hooks that a command ran."""
        self.said, trace = "", self.instance.root / "trace"
        trace.write_text("")
        self.said = self.instance.run(*args, check=check).stderr
        return trace.read_text().splitlines()


@pytest.fixture
def zone(instance: Instance) -> Traced:
    return Traced(instance)


BOOT = ["pre installed,ready", "post installed,ready", "pre installed,boot", "boot", "post installed,boot"]
HALT = ["pre running,halt", "halt", "post running,halt"]


def test_boot_reboot_and_halt(zone: Traced) -> None:
    assert zone.trace("boot", "web") == BOOT
    ready = ["pre running,ready", "post running,ready"]
    assert zone.trace("reboot", "web") == [*HALT, *ready, "pre running,boot", "boot", "post running,boot"]
    assert zone.trace("halt", "web") == HALT


def test_ready_boot_from_ready_and_halt_of_ready(zone: Traced) -> None:
    assert zone.trace("ready", "web") == ["pre installed,ready", "post installed,ready"]
    assert zone.trace("boot", "web") == ["pre ready,boot", "boot", "post ready,boot"]
    zone.trace("halt", "web")
    zone.trace("ready", "web")
    assert zone.trace("halt", "web") == ["pre ready,halt", "halt", "post ready,halt"]


def test_commands_that_find_nothing_to_do_run_no_hook(zone: Traced) -> None:
    assert zone.trace("halt", "web") == []
    zone.trace("boot", "web")
    assert zone.trace("boot", "web") == []


def test_a_pre_hook_that_fails_stops_the_step_and_its_words_reach_the_operator(zone: Traced) -> None:
    zone.order("pre installed,ready", "fail")
    trace = zone.trace("boot", "web", check=1)
    assert trace[0] == "pre installed,ready" and "boot" not in trace
    assert "pre installed,ready: not today" in zone.said
    assert zone.instance.state("web") == "installed"


def test_a_pre_hook_can_refuse_a_halt(zone: Traced) -> None:
    zone.trace("boot", "web")
    zone.order("pre running,halt", "fail")
    assert zone.trace("halt", "web", check=1) == ["pre running,halt"]
    assert zone.instance.state("web") == "running"
    zone.order("", "")
    assert zone.trace("halt", "web") == HALT


def test_a_failed_boot_is_halted_again(zone: Traced) -> None:
    zone.order("boot", "fail")
    trace = zone.trace("boot", "web", check=1)
    assert trace[:4] == BOOT[:4]
    assert trace[4] == "post running,halt"
    assert zone.instance.state("web") == "installed"


def test_a_failing_halt_command_leaves_the_zone_down_and_a_second_halt_ends_it(zone: Traced) -> None:
    zone.trace("boot", "web")
    zone.order("halt", "fail")
    zone.trace("halt", "web", check=1)
    assert zone.instance.state("web") == "down"
    zone.order("", "")
    assert zone.trace("halt", "web") == ["pre down,halt", "halt", "post down,halt"]
    assert zone.instance.state("web") == "installed"


def test_a_bug_in_a_hook_is_one_line_with_its_place(zone: Traced) -> None:
    zone.order("pre installed,boot", "raise")
    zone.trace("boot", "web", check=1)
    (line,) = [line for line in zone.said.splitlines() if "RuntimeError" in line]
    assert "RuntimeError: a bug of the brand" in line and "brand.py:" in line
    assert "Traceback" not in zone.said
    assert zone.instance.state("web") == "installed"


def test_a_hook_that_hangs_ends_with_its_deadline(zone: Traced) -> None:
    zone.instance.layout.settings.parent.mkdir(parents=True, exist_ok=True)
    zone.instance.layout.settings.write_text("hook-s = 1\n")
    zone.order("pre installed,ready", "hang")
    zone.trace("boot", "web", check=1)
    assert "did not end within 1 seconds and was killed" in zone.said
    assert zone.instance.state("web") == "installed"


def test_a_hook_that_commands_its_own_zone_is_refused_instead_of_waiting_for_itself(zone: Traced) -> None:
    zone.order("post installed,boot", "command")
    zone.trace("boot", "web", check=1)
    assert "a hook cannot command the zone whose transition it is part of" in zone.said


def test_mount_and_unmount(zone: Traced) -> None:
    assert zone.trace("mount", "web") == ["pre installed,ready", "post installed,ready"]
    assert [line for line in zone.trace("unmount", "web") if line != "halt"] == [
        "pre mounted,halt",
        "post mounted,halt",
    ]
