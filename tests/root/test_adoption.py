"""Restartability: whoever of a zone's supervisor, zsched and worker is killed, in whatever state, the zone runs on and
can be commanded as before (reference 4.3 to 4.5).
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.kit import door, processes, victims
from tests.kit.brands import Traced
from tests.kit.console import Console
from tests.kit.instance import Instance
from tests.kit.waiting import until
from zonemgr.linux.cgroup import detect
from zonemgr.linux.procfs import boot_id
from zonemgr.model.states import Command
from zonemgr.store import instance as instances
from zonemgr.store.observe import state_of
from zonemgr.supervisor import guard
from zonemgr.wire import start, varlink
from zonemgr.wire.client import Client, LostReply

pytestmark = pytest.mark.requires("root", "mount", "net", "cgroup")

ORDERS = {"poweroff": "installed", "halt": "installed", "reboot": "running"}


def state(instance: Instance) -> str:
    return state_of(instance.layout, "web").label


def warning(label: str) -> str:
    return (
        f"zonemgr: zone 'web': WARNING: zone is in state '{label}', but zoneadmd does not appear to be available; "
        "restarted zoneadmd to recover.\n"
    )


def identity(instance: Instance) -> tuple[object, ...]:
    """What a killed supervisor does not change: id, uuid, generation and all processes of the zone."""
    record = victims.record(instance)
    (line,) = [line for line in instance.run("list", "-p").stdout.splitlines() if line.split(":")[1] == "web"]
    return record.generation, record.zone_id, record.init, line, victims.residents(instance)


def order(instance: Instance, verb: str) -> None:
    """Root of the zone types ``reboot`` or the like.  The order may end the command before it has an exit status."""
    instance.run("login", "web", "--", f"/usr/local/sbin/{verb}", "-f", check=False)


def wait_for(instance: Instance, label: str) -> None:
    until(lambda: state(instance) == label, f"state {label}")


def ends(instance: Instance, verb: str, before: instances.Instance) -> None:
    """The guest's order, or the death of init, has come to what it should."""
    if ORDERS.get(verb) == "running":
        until(lambda: _again(instance, before), "the next life of the zone")
        assert victims.record(instance).zone_id > before.zone_id
    else:
        wait_for(instance, "installed")


def _again(instance: Instance, before: instances.Instance) -> bool:
    record = instances.read(instance.layout, "web")
    return record is not None and record.generation != before.generation and state(instance) == "running"


def works(instance: Instance) -> None:
    """The zone can be halted and booted."""
    instance.run("halt", "web")
    assert state(instance) == "installed"
    instance.run("boot", "web")
    assert state(instance) == "running"


# -- the supervisor ---------------------------------------------------------------------------------------------


def test_killed_while_the_zone_runs(instance: Instance) -> None:
    instance.running()
    before = identity(instance)
    victims.kill(victims.supervisor(instance))
    assert state(instance) == "running"
    assert identity(instance) == before
    instance.login("web", "sh", "-c", "echo said-to-nobody > /dev/console")

    done = instance.run("boot", "web")
    assert done.stderr == warning("running") + "zonemgr: zone 'web': zone is already booted\n"
    assert identity(instance) == before
    assert b"said-to-nobody" in (instance.layout.zone_log("web") / "console.log").read_bytes()
    assert "WARNING" not in instance.run("boot", "web").stderr
    works(instance)


def test_killed_while_the_zone_is_ready(instance: Instance) -> None:
    instance.installed()
    instance.run("ready", "web")
    before = identity(instance)
    victims.kill(victims.supervisor(instance))
    assert identity(instance) == before

    done = instance.run("ready", "web")
    assert done.stderr == warning("ready") + "zonemgr: zone 'web': zone is already ready\n"
    victims.kill(victims.supervisor(instance))
    assert instance.run("boot", "web").stderr == warning("ready")
    assert victims.record(instance).zone_id == before[1]
    works(instance)


def test_killed_while_the_zone_is_mounted(instance: Instance) -> None:
    instance.installed()
    instance.run("mount", "web")
    before = identity(instance)
    victims.kill(victims.supervisor(instance))
    assert identity(instance) == before
    assert instance.run("unmount", "web").stderr == warning("mounted")
    instance.run("boot", "web")
    works(instance)


def test_killed_while_the_zone_is_only_installed(instance: Instance) -> None:
    """A console client keeps it alive there; nobody needs a warning."""
    instance.installed()
    with Console(instance) as console:
        victims.kill(victims.supervisor(instance))
        console.end()
    assert state(instance) == "installed"
    assert instance.run("boot", "web").stderr == ""
    works(instance)


def test_killed_while_the_zone_is_down(instance: Instance) -> None:
    brand = Traced(instance)
    instance.running("web", "-b", brand.name)
    brand.script({"halt": "fail"})
    instance.run("halt", "web", check=1)
    assert state(instance) == "down"
    victims.kill(victims.supervisor(instance))
    # zsched knows that init has ended, and may be faster than we are at starting a successor, which then warns nobody.
    said = instance.run("boot", "web").stderr
    assert said.endswith("zonemgr: zone 'web': zone is already booted\n")
    assert state(instance) == "down"
    brand.script()
    victims.kill(victims.supervisor(instance))
    instance.run("halt", "web")
    assert state(instance) == "installed"
    instance.run("boot", "web")
    works(instance)


@pytest.mark.parametrize("verb", ["boot", "reboot", "halt"])
def test_killed_in_a_transition_whose_caller_asks_no_more(
    instance: Instance, verb: str, tmp_path: Path
) -> None:
    """The successor takes back what was half done.  What a reboot has begun is completed: the zone is to run."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    brand = Traced(instance)
    instance.installed("web", "-b", brand.name)
    if verb != "boot":
        instance.run("boot", "web")
    brand.script({"halt" if verb == "halt" else "boot": f"wait {gate}"})
    heard: list[str] = []

    def hear(values: dict[str, object]) -> None:
        heard.append(str(values.get("message")))
        if heard[-1] == "waiting":
            os.kill(pid, signal.SIGKILL)

    with door.monitored(instance), Client(instance.layout.zone_run("web") / "door") as client:
        pid = victims.supervisor(instance)
        with pytest.raises(LostReply):
            client.call(f"{varlink.ZONE}.{verb.capitalize()}", {}, more=True, on_reply=hear)
    brand.script()
    if verb != "reboot":  # which has a guard that does the same
        door.state(instance)  # starts the successor
    wait_for(instance, "running" if verb == "reboot" else "installed")
    if verb != "reboot":
        instance.run("boot", "web")
    works(instance)


def _own(instance: Instance, name: str) -> list[int]:
    """The processes of that name among the supervisors; none is started for it."""
    folder = detect().unified() / f"zonemgr{instance.suffix}/_supervisors"
    return [pid for pid in victims.members(folder) if processes.read(pid, "comm") == f"{name}\n"]


def _order_reboot(instance: Instance, brand: Traced, gate: Path) -> None:
    """By somebody who does not come back; its second half waits."""
    brand.script({"boot": f"wait {gate}"})
    brand.trace()
    with start.connected(instance.layout, "web", "door", lambda _text: None) as client:
        client.sendall(varlink.encode({"method": f"{varlink.ZONE}.Reboot"}))
        until(lambda: _own(instance, "zone-guard"), "the guard of a reboot")


def _kill_in_the_second_half(instance: Instance, brand: Traced) -> None:
    """When nobody but a guard is there to go on."""
    until(lambda: "boot" in brand.trace(), "the boot of a reboot")
    (pid,) = _own(instance, "zone-supervisor")
    victims.kill(pid)


def test_a_reboot_goes_on_though_its_supervisors_are_killed(instance: Instance, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    brand = Traced(instance)
    instance.running("web", "-b", brand.name)
    before = victims.record(instance)
    _order_reboot(instance, brand, gate)
    for _ in range(3):
        _kill_in_the_second_half(instance, brand)
    brand.script()
    until(lambda: _again(instance, before), "the next life of the zone")
    works(instance)
    until(lambda: not _own(instance, "zone-guard"), "the end of the guard")
    assert not instance.layout.intent("web").exists()


def test_a_reboot_that_ends_every_supervisor_waits_for_somebody(instance: Instance, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    brand = Traced(instance)
    instance.running("web", "-b", brand.name)
    _order_reboot(instance, brand, gate)
    for _ in range(guard.SUCCESSORS_MAX):
        _kill_in_the_second_half(instance, brand)
    until(lambda: "boot" in brand.trace(), "the boot of a reboot")
    assert not _own(instance, "zone-guard")
    victims.kill(*_own(instance, "zone-supervisor"))
    assert not victims.has_supervisor(instance)
    brand.script()
    door.state(instance)
    wait_for(instance, "running")
    works(instance)


# -- zsched -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("victim", ["zsched", "zsched, supervisor", "supervisor, zsched"])
def test_zsched_killed_while_the_zone_runs(instance: Instance, victim: str) -> None:
    instance.running()
    before = identity(instance)
    supervisor, zsched = victims.supervisor(instance), victims.zsched(instance)
    for name in victim.split(", "):
        victims.kill({"zsched": zsched, "supervisor": supervisor}[name])
    assert state(instance) == "running"
    assert identity(instance) == before
    said = instance.run("boot", "web").stderr
    assert said.endswith("zone is already booted\n")
    assert said.startswith(warning("running")) is ("supervisor" in victim)
    assert identity(instance) == before
    works(instance)


@pytest.mark.parametrize("verb", ORDERS)
def test_the_guests_orders_without_zsched(instance: Instance, verb: str) -> None:
    """The supervisor that made zsched inherits its child, and so knows how it ended."""
    instance.running()
    before = victims.record(instance)
    assert door.state(instance)["state"] == "running"
    victims.kill(victims.zsched(instance))
    order(instance, verb)
    ends(instance, verb, before)
    instance.run("boot", "web")
    works(instance)


@pytest.mark.parametrize("verb", ["reboot", "poweroff"])
def test_the_guests_orders_after_both_have_died(instance: Instance, verb: str) -> None:
    """A successor is no ancestor of init: it learns that init has ended, not how, and takes it for a halt."""
    instance.running()
    victims.kill(victims.supervisor(instance))
    victims.kill(victims.zsched(instance))
    door.state(instance)
    order(instance, verb)
    wait_for(instance, "installed")
    instance.run("boot", "web")
    works(instance)


def test_init_ends_when_nobody_is_left(instance: Instance) -> None:
    instance.running()
    init = victims.init(instance)
    victims.kill(victims.supervisor(instance))
    victims.kill(victims.zsched(instance))
    victims.kill(init)
    assert state(instance) == "down"
    instance.run("halt", "web")
    assert state(instance) == "installed"
    instance.run("boot", "web")
    works(instance)


# -- the end of init --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", [*ORDERS, "init is killed"])
@pytest.mark.parametrize("attached", [True, False], ids=["supervised", "alone"])
def test_the_end_of_init_is_noticed(instance: Instance, verb: str, attached: bool) -> None:
    """With nobody attached zsched starts a supervisor, which does what is to be done."""
    instance.running()
    before = victims.record(instance)
    if attached:
        assert door.state(instance)["state"] == "running"
    else:
        victims.kill(victims.supervisor(instance))
    if verb in ORDERS:
        order(instance, verb)
    else:
        victims.kill(victims.init(instance))
    ends(instance, verb, before)
    if ORDERS.get(verb) != "running":
        until(lambda: not victims.has_supervisor(instance), "the end of a supervisor that has nothing to do")
        instance.run("boot", "web")
    works(instance)


def test_a_reboot_loop_is_braked_and_halt_ends_it(instance: Instance) -> None:
    """The upcall that the brake held back speaks of an earlier life by then, and is dropped."""
    instance.running()
    braked = instance.layout.zone_log("web") / "supervisor.log"

    def delays() -> list[str]:
        text = braked.read_text() if braked.exists() else ""
        return [
            line.partition("zone reboots too often: ")[2] for line in text.splitlines() if "too often" in line
        ]

    with Client(
        instance.layout.zone_run("web") / "door"
    ) as monitor:  # the supervisor stays when the zone is halted
        monitor._send(f"{varlink.ZONE}.Monitor", {}, True)
        for _ in range(3):
            before = victims.record(instance)
            order(instance, "reboot")
            ends(instance, "reboot", before)
            assert not delays()
        pid = victims.supervisor(instance)
        order(instance, "reboot")
        until(delays, "the brake")
        due = time.monotonic() + 2
        held_back_until = braked.stat().st_mtime + 2
        assert state(instance) == "down" or time.time() > held_back_until
        instance.run("halt", "web")
        assert state(instance) == "installed"
        instance.run("boot", "web")
        record = victims.record(instance)
        until(lambda: time.monotonic() > due + 0.5, "the time of the reboot that was held back")
        assert door.ask(instance, Command.BOOT).note == "zone is already booted"  # behind whatever was queued
        assert victims.record(instance).generation == record.generation
        assert victims.supervisor(instance) == pid
    assert delays() == ["waiting 2 seconds"]
    works(instance)


# -- callers ----------------------------------------------------------------------------------------------------


@pytest.fixture
def gated(instance: Instance, tmp_path: Path) -> tuple[Instance, Path]:
    """A zone whose boot waits until somebody opens and closes the fifo."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    brand = Traced(instance)
    instance.installed("web", "-b", brand.name)
    brand.script({"boot": f"wait {gate}"})
    return instance, gate


def test_halt_cancels_a_boot(gated: tuple[Instance, Path]) -> None:
    instance, _gate = gated
    boot = instance.popen("boot", "web")
    assert boot.stderr is not None
    assert boot.stderr.readline() == "zonemgr: zone 'web': waiting\n"
    instance.run("halt", "web")
    assert boot.communicate(timeout=30)[1] == "zonemgr: zone 'web': boot was cancelled by halt\n"
    assert boot.returncode == 1
    assert state(instance) == "installed"


def test_ctrl_c_lets_the_boot_go_on(gated: tuple[Instance, Path]) -> None:
    instance, gate = gated
    boot = instance.popen("boot", "web")
    assert boot.stderr is not None
    assert boot.stderr.readline() == "zonemgr: zone 'web': waiting\n"
    boot.send_signal(signal.SIGINT)
    said = boot.communicate(timeout=30)[1]
    assert boot.returncode == 130, said
    assert len(said.splitlines()) <= 1
    gate.write_text("go on")
    wait_for(instance, "running")
    (instance.layout.etc / "brands" / "traced" / "script").write_text("{}")
    works(instance)


def test_a_killed_worker_is_taken_back_and_told(gated: tuple[Instance, Path]) -> None:
    instance, _gate = gated
    boot = instance.popen("boot", "web")
    assert boot.stderr is not None
    assert boot.stderr.readline() == "zonemgr: zone 'web': waiting\n"
    worker = _child_named(victims.supervisor(instance), "zone-worker")
    victims.kill(worker)
    assert "the transition was interrupted; what it had done is taken back" in boot.communicate(timeout=30)[1]
    assert boot.returncode == 1
    wait_for(instance, "installed")


def _child_named(parent: int, name: str) -> int:
    for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        if processes.read(int(pid), "comm").strip() == name:
            return int(pid)
    raise AssertionError(f"{parent} has no child {name}")


# -- a damaged record on disk -----------------------------------------------------------------------------------


def test_a_damaged_record_keeps_nobody_from_the_other_zones(instance: Instance) -> None:
    """Nor from stopping its own, nor from being rid of it."""
    for name in ("web", "other"):
        instance.installed(name)
    instance.run("config", "other", "set autoboot=true")
    instance.run("boot", "web")
    path = instance.layout.state("web")
    path.write_text("{")
    assert "web" in instance.run("list").stdout
    assert instance.run("autoboot").returncode == 0
    assert {"web", "other"} <= set(instance.run("list").stdout.split())
    instance.run("halt", "web")
    listed = instance.run("list", "-c", check=1)
    assert {"web", "other"} <= set(listed.stdout.split())
    assert f"zone 'web': {path} is damaged" in listed.stderr
    assert "is damaged" in instance.run("boot", "web", check=1).stderr
    assert "is damaged" in instance.run("autoboot", check=1).stderr
    assert instance.run("shutdown", "-a").returncode == 0
    assert "delete -F forgets the zone" in instance.run("delete", "web", check=1).stderr
    root = instance.layout.zonepath("web") / "root"
    instance.run("delete", "-F", "web")
    assert root.is_dir()
    assert "web" not in instance.run("list", "-c").stdout.split()


@pytest.mark.parametrize("which", ["config", "state"])
def test_a_fifo_in_place_of_a_zones_file_holds_nobody_up(instance: Instance, which: str) -> None:
    """It is named, the other zones are not touched by it, and it goes with the zone."""
    for name in ("web", "other"):
        instance.installed(name)
    path = getattr(instance.layout, which)("web")
    path.unlink()
    os.mkfifo(path)
    assert {"web", "other"} <= set(instance.run("list", "-c", check=False, timeout=20).stdout.split())
    assert f"{path} is not a regular file\n" in instance.run("boot", "web", check=1, timeout=20).stderr
    if which == "config":
        for words in (("config", "web", "info"), ("create", "new", "-t", "web")):
            assert f"{path} is not a regular file" in instance.run(*words, check=1, timeout=20).stderr
    instance.run("boot", "other", timeout=20)
    instance.run("delete", "-F", "web", timeout=20)
    assert "web" not in instance.run("list", "-c", timeout=20).stdout.split() and not path.exists()


@pytest.mark.parametrize("text", ["", '{"boot_id": "BOOT"}', '"x"'])
def test_a_damaged_record_of_a_life_keeps_nobody_from_the_other_zones(instance: Instance, text: str) -> None:
    for name in ("web", "other"):
        instance.installed(name)
        instance.run("boot", name)
    for name in ("web", "other"):
        victims.kill(victims.supervisor(instance, name))
    path = instance.layout.instance("web")
    path.write_text(text.replace("BOOT", boot_id()))
    listed = instance.run("list", check=1)
    assert "other" in listed.stdout.split()
    assert f"zone 'web': {path} is damaged" in listed.stderr
    assert f"web: {path} is damaged" in instance.run("fsck", check=1).stdout
    instance.run("shutdown", "-a", "-t", "20")
    assert state_of(instance.layout, "other").label == "installed"
    # What was said is the way out.
    path.unlink()
    instance.run("boot", "web")
    works(instance)
    instance.run("halt", "web")
    assert instance.run("fsck").stdout == ""
