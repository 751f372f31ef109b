"""A zone tells when it is ready for work, and who has to wait for that does; it can tell nothing else that way."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kit import victims
from tests.kit.instance import Instance
from tests.kit.nursery import Nursery
from tests.kit.waiting import until
from tests.root.attacks.conftest import one_installed
from tests.root.attacks.inside import ask
from zonemgr.store import events, readiness
from zonemgr.store import instance as instances
from zonemgr.store.observe import observe

pytestmark = pytest.mark.requires("root", "userns", "mount", "net", "cgroup")

# Ends when somebody writes to the pipe: only then are the start-up scripts done.
HELD = "#!/bin/sh\n[ $1 = stop ] || read word </srv/go\n"


@pytest.fixture(scope="module")
def held(warm: Nursery) -> Iterator[Instance]:
    """Zones "web", whose start-up waits for ``go``, and "late", which comes after it."""
    with one_installed(warm) as instance:
        root = instance.layout.zonepath("web") / "root"
        os.mkfifo(root / "srv/go")
        script = root / "etc/rc.d/S50held"
        script.parent.mkdir(exist_ok=True)
        script.write_text(HELD)
        script.chmod(0o755)
        instance.installed("late")
        instance.run("config", "late", "set autoboot=true after=web")
        instance.run("config", "web", "set autoboot=true")
        yield instance


def go(instance: Instance, name: str = "web") -> None:
    """Let the start-up of the zone end; waits until its script waits."""
    path = instance.layout.zonepath(name) / "root/srv/go"

    def heard() -> bool:
        try:
            pipe = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            return False  # nobody reads yet
        with open(pipe, "w") as stream:
            stream.write("go\n")
        return True

    until(heard, "the start-up script to wait")


def listed(instance: Instance, name: str = "web") -> dict[str, Any]:
    (row,) = instance.json("list", name)
    assert isinstance(row, dict)
    return row


def children(pid: int) -> str:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text()


def told(instance: Instance, name: str = "web") -> list[dict[str, Any]]:
    found = (event for event in events.recorded(instance.layout) if event["type"] == "ready")
    return [event for event in found if event["zonename"] == name]


def test_a_zone_runs_before_it_is_ready_and_says_when_it_is(held: Instance) -> None:
    before = len(told(held))
    assert listed(held)["ready"] is None
    held.run("boot", "web")
    assert (listed(held)["state"], listed(held)["ready"]) == ("running", False)
    header, row = held.run("list", "-v", "web").stdout.splitlines()
    assert (header.split()[-1], row.split()[-1]) == ("READY", "no")
    waited = held.popen("boot", "--wait-ready", "web")
    go(held)
    said, errors = waited.communicate(timeout=60)
    assert (waited.returncode, said) == (0, ""), errors
    assert (listed(held)["ready"], listed(held)["status"]) == (True, None)
    assert "READY" not in held.run("list", "-v", "web").stdout
    assert len(told(held)) == before + 1
    held.run("halt", "web")
    assert listed(held)["ready"] is None
    assert sorted((held.layout.run / "instances").iterdir()) == []


def test_who_waits_in_vain_is_told(held: Instance) -> None:
    held.layout.settings.write_text("ready-s = 1\n")
    try:
        done = held.run("boot", "--wait-ready", "web", check=1)
        assert done.stderr == "zonemgr: zone 'web': the zone has not become ready within 1 seconds\n"
        assert held.state() == "running"
    finally:
        held.layout.settings.unlink()
        held.run("halt", "web")


def test_of_an_init_that_somebody_chose_nothing_is_expected(held: Instance) -> None:
    held.run("boot", "--wait-ready", "web", "--", "-i", "/usr/local/sbin/init")
    assert listed(held)["ready"] is True
    held.run("halt", "web")


def test_a_successor_hears_what_was_told_to_nobody(held: Instance) -> None:
    held.run("boot", "web")
    before = len(told(held))
    os.kill(victims.supervisor(held), signal.SIGKILL)
    go(held)
    until(lambda: listed(held)["ready"], "the zone to be ready")  # zsched has started the successor
    assert len(told(held)) == before + 1
    os.kill(victims.supervisor(held), signal.SIGKILL)
    assert victims.supervisor(held)  # another one
    held.run("halt", "web")
    assert len(told(held)) == before + 1  # it was no news


def test_what_a_supervisor_dies_over_is_heard_by_its_successor(held: Instance) -> None:
    """It was told, and had not read it yet."""
    held.run("boot", "web")
    before, supervisor_pid = len(told(held)), victims.supervisor(held)
    os.kill(supervisor_pid, signal.SIGSTOP)
    go(held)
    init_pid = victims.init(held)
    until(lambda: not children(init_pid), "the end of the start-up script, and of who tells of it")
    assert len(told(held)) == before
    os.kill(supervisor_pid, signal.SIGKILL)
    until(lambda: listed(held)["ready"], "the zone to be ready")
    assert len(told(held)) == before + 1
    held.run("halt", "web")


def test_zones_that_come_after_another_wait_until_it_is_ready(held: Instance) -> None:
    with held.popen("autoboot") as booting:
        until(lambda: held.states()["web"] == "running", "the first zone to run")
        assert held.states()["late"] == "installed"
        go(held)
        assert (booting.wait(60), booting.stderr.read() if booting.stderr else "") == (0, "")
    assert held.states() == {"web": "running", "late": "running"}
    held.run("halt", "web", "late")


def test_zones_that_come_after_another_do_not_wait_for_ever(held: Instance) -> None:
    held.layout.settings.write_text("ready-s = 1\n")
    try:
        done = held.run("autoboot")
        assert done.stderr == "zonemgr: zone 'web': the zone has not become ready within 1 seconds\n"
        assert held.states() == {"web": "running", "late": "running"}
    finally:
        held.layout.settings.unlink()
        held.run("halt", "web", "late")


FLOOD = """
import time
sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
sock.connect("/run/host/notify")
sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
sock.setblocking(False)
sent = 0
ends = time.monotonic() + 3
while time.monotonic() < ends:
    try:
        sock.send(b"STATUS=" + bytes([27]) + b"]0;owned\\n" + b"STOPPING=1\\nREADY=1\\n" + b"x" * 20000)
        sent += 1
    except (BlockingIOError, OSError):
        time.sleep(0.001)
answer([sent, attempt(socket.send_fds, sock, [b"READY=1"], [0]), attempt(os.unlink, "/run/host/notify")])
"""


@pytest.mark.attack("exhausting the manager")
def test_a_zone_that_tells_without_end_wakes_nobody_and_gets_nothing_shown(held: Instance) -> None:
    held.run("boot", "web")
    go(held)
    until(lambda: listed(held)["ready"], "the zone to be ready")
    record = instances.read(held.layout, "web")
    assert record is not None and record.zsched is not None
    before = len(told(held)), descriptors(record.zsched.pid)
    sent, passed, unlinked = ask(held, FLOOD)
    assert 0 < sent <= 64 * 6 + 600, "zsched reads as fast as the zone writes"
    assert passed in ("EPERM", "EAGAIN") and unlinked == "EROFS"
    assert (len(told(held)), descriptors(record.zsched.pid)) == before
    seen = observe(held.layout, "web")
    said = readiness.of(held.layout, seen)
    assert said is not None and "\x1b" not in said.status and said.stopping
    assert held.run("login", "-l", "nobody", "web", "--", "test", "-w", "/run/host/notify", check=1).stderr == ""
    held.run("halt", "web")


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))
