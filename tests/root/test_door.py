"""The door of a living supervisor: an outside peer, many callers at once, bad callers, and a supervisor that leaves."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kit import door
from tests.kit.brands import Traced
from tests.kit.instance import Instance
from tests.kit.waiting import until
from zonemgr.cli import follow
from zonemgr.cli.output import Session
from zonemgr.model.states import Command
from zonemgr.store.paths import Layout
from zonemgr.wire.client import connect

pytestmark = pytest.mark.requires("root", "mount", "net", "cgroup")

varlink = pytest.importorskip("varlink")
INTERFACE = "org.zonemgr.Zone"


@pytest.fixture
def zone(instance: Instance) -> Instance:
    instance.installed()
    return instance


@pytest.fixture
def address(zone: Instance) -> Iterator[str]:
    """The door, as varlink names it, of a supervisor that stays because somebody monitors the zone."""
    with door.monitored(zone):
        yield f"unix:{zone.layout.zone_run('web') / 'door'}"


# -- the PyPI client --------------------------------------------------------------------------------------------


def test_introspection(address: str) -> None:
    with varlink.Client(address) as client:
        with client.open("org.varlink.service") as service:
            info = service.GetInfo()
            assert info["interfaces"] == ["org.varlink.service", INTERFACE]
            assert info["product"] == "zonemgr" and info["version"]
            text = service.GetInterfaceDescription(INTERFACE)["description"]
        assert "method Boot(" in text
        with client.open(INTERFACE) as peer:
            state = peer.GetState()["zone"]
    assert (state["zonename"], state["state"], state["protocol"]) == ("web", "installed", 1)


def test_boot_with_more_monitor_and_refusals(zone: Instance, address: str) -> None:
    events: list[dict[str, Any]] = []

    def monitor() -> None:
        with varlink.Client(address) as client, client.open(INTERFACE) as peer:
            for reply in peer.Monitor(_more=True):
                events.append(reply["event"])
                if reply["event"].get("newstate") == "installed":
                    return

    listening = threading.Thread(target=monitor, daemon=True)
    listening.start()
    with varlink.Client(address) as client, client.open(INTERFACE) as peer:
        replies = list(peer.Boot(args="-x unused", locale="C", _more=True))
        assert any(reply.get("message") for reply in replies[:-1])
        assert replies[-1]["messages"] == [reply["message"] for reply in replies[:-1]]
        assert peer.GetState()["zone"]["state"] == "running"
        assert peer.Boot()["note"] == "zone is already booted"
        with pytest.raises(varlink.VarlinkError) as refused:
            peer.Unmount()
        assert refused.value.error() == f"{INTERFACE}.Refused"
        text = "unmount operation is invalid for zones in state 'running'"
        assert refused.value.parameters() == {"code": 1, "messages": [text]}
        peer.Halt()
    listening.join(30)
    assert not listening.is_alive()
    states = [event["newstate"] for event in events if event["type"] == "state"]
    assert states[-2:] == ["shutting_down", "installed"]


def test_what_is_no_method(zone: Instance, address: str) -> None:
    for request, error in (
        ({"method": f"{INTERFACE}.Explode"}, "org.varlink.service.MethodNotFound"),
        ({"method": "org.example.Boot"}, "org.varlink.service.InterfaceNotFound"),
        ({"method": f"{INTERFACE}.Boot", "parameters": {"args": 3}}, "org.varlink.service.InvalidParameter"),
        ({"method": f"{INTERFACE}.Boot", "parameters": {"bogus": 3}}, "org.varlink.service.InvalidParameter"),
        ({"method": f"{INTERFACE}.Monitor"}, "org.varlink.service.ExpectedMore"),
    ):
        with connect(zone.layout.zone_run("web") / "door") as peer:
            peer.sendall(json.dumps(request).encode() + b"\0")
            assert reply(peer)["error"] == error
    assert door.state(zone)["state"] == "installed"


def reply(peer: socket.socket) -> dict[str, Any]:
    peer.settimeout(30)
    data = b""
    while not data.endswith(b"\0"):
        chunk = peer.recv(65536)
        if not chunk:
            raise EOFError
        data += chunk
    found = json.loads(data[:-1])
    assert isinstance(found, dict)
    return found


# -- bad callers ------------------------------------------------------------------------------------------------


def test_malformed_and_oversized_requests_end_their_own_connection_only(zone: Instance, address: str) -> None:
    before = door.state(zone)["supervisor_pid"]
    long = b'{"method": "' + b"x" * 70000 + b'"}\0'
    for data in (b"not json\0", b"[]\0", b'{"method": 3}\0', b"\0", b"\xff\xfe\0", long):
        with connect(zone.layout.zone_run("web") / "door") as bad:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                bad.sendall(data, socket.MSG_NOSIGNAL)
            with pytest.raises((EOFError, ConnectionResetError)):
                reply(bad)
    assert door.state(zone)["supervisor_pid"] == before


def test_callers_that_are_not_root_of_the_host(zone: Instance, address: str) -> None:
    path = zone.layout.zone_run("web") / "door"
    script = (
        "import socket, sys\n"
        f"s = socket.socket(socket.AF_UNIX); s.connect({str(path)!r}); s.settimeout(30)\n"
        "try:\n"
        f'    s.sendall(b\'{{"method": "{INTERFACE}.Halt"}}\\0\'); print(s.recv(1000).decode())\n'
        "except OSError as error: print(error)\n"
    )
    for wrapper in (
        ["setpriv", "--bounding-set", "-sys_admin"],
        ["unshare", "--user", "--map-root-user"],
        ["unshare", "--pid", "--fork"],
    ):
        done = subprocess.run(
            [*wrapper, sys.executable, "-c", script], capture_output=True, text=True, timeout=60
        )
        assert "messages" not in done.stdout, wrapper
        told = ("PermissionDenied", "reset", "Broken pipe", "Permission denied")
        assert any(text in done.stdout + done.stderr for text in told), done
    assert door.state(zone)["state"] == "installed"


def test_half_a_request_and_passed_descriptors_hold_nobody_up(zone: Instance, address: str) -> None:
    with (
        connect(zone.layout.zone_run("web") / "door") as half,
        connect(zone.layout.zone_run("web") / "door") as rich,
    ):
        half.sendall(b'{"method": "org.zone')
        request = json.dumps({"method": f"{INTERFACE}.GetState"}).encode() + b"\0"
        with open("/dev/null") as file:
            socket.send_fds(rich, [request], [file.fileno()] * 20)
        pid = reply(rich)["parameters"]["zone"]["supervisor_pid"]
        links = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
        assert links.count("/dev/null") <= 3
        assert door.ask(zone, Command.READY).ok


def test_a_caller_that_goes_away_cancels_nothing(zone: Instance, address: str) -> None:
    with connect(zone.layout.zone_run("web") / "door") as peer:
        peer.sendall(json.dumps({"method": f"{INTERFACE}.Boot"}).encode() + b"\0")
    until(lambda: zone.state() == "running", "the boot")


# -- many callers -----------------------------------------------------------------------------------------------


def test_ten_boots_at_once_are_one_boot(zone: Instance) -> None:
    callers = [zone.popen("boot", "web") for _ in range(10)]
    said = [caller.communicate(timeout=120)[1] for caller in callers]
    assert [caller.returncode for caller in callers] == [0] * 10, said
    assert sorted(said) == ["", *["zonemgr: zone 'web': zone is already booted\n"] * 9]
    record = zone.json("list", "web")[0]
    assert (record["state"], record["id"]) == ("running", 1)


def test_callers_of_every_kind_at_once(zone: Instance) -> None:
    """Each gets an answer, whatever the others do, and the zone ends in a state that follows from the last one."""
    commands = [Command.BOOT, Command.HALT, Command.READY, Command.REBOOT, Command.MOUNT, Command.UNMOUNT]
    answers: list[door.Answer] = []

    def caller(number: int) -> None:
        for turn in range(4):
            answers.append(door.ask(zone, commands[(number + turn * 5) % len(commands)]))

    threads = [threading.Thread(target=caller, args=(number,), daemon=True) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    assert len(answers) == 20
    for answer in answers:
        assert answer.ok or answer.messages, answer
    assert zone.state() in ("installed", "ready", "running", "mounted")


# -- a supervisor that leaves -----------------------------------------------------------------------------------


def hammer(zone: Instance, stop: threading.Event) -> Iterator[str]:
    while not stop.is_set():
        yield door.state(zone)["state"]


def test_no_request_is_lost_while_supervisors_come_and_go(zone: Instance) -> None:
    """A halt ends the supervisor; whoever asks in that moment is answered by it or by its successor."""
    stop = threading.Event()
    states: set[str] = set()
    failures: list[Exception] = []

    def ask() -> None:
        try:
            states.update(hammer(zone, stop))
        except Exception as error:  # noqa: BLE001 - told below
            failures.append(error)

    askers = [threading.Thread(target=ask, daemon=True) for _ in range(2)]
    for asker in askers:
        asker.start()
    try:
        for _ in range(6):
            assert door.ask(zone, Command.READY).ok
            assert door.ask(zone, Command.HALT).ok
    finally:
        stop.set()
        for asker in askers:
            asker.join(60)
    assert not failures
    assert {"installed", "ready"} <= states


def test_halt_boot_and_list_in_a_loop(zone: Instance) -> None:
    for _ in range(3):
        zone.run("boot", "web")
        assert zone.states() == {"web": "running"}
        assert zone.run("halt", "web").stderr == ""
        assert zone.states() == {"web": "installed"}


def test_a_supervisor_nobody_needs_leaves(zone: Instance) -> None:
    pid = door.state(zone)["supervisor_pid"]
    descriptor = None
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        pass
    if descriptor is not None:
        assert select.select([descriptor], [], [], 30)[0]
        os.close(descriptor)
    assert sorted(path.name for path in zone.layout.zone_run("web").iterdir()) == [
        "admin.lock",
        "lock",
        "start.lock",
    ]


# -- the end of a request ---------------------------------------------------------------------------------------


@pytest.fixture
def halting(instance: Instance, tmp_path: Path) -> Iterator[Callable[[], None]]:
    """A zone's halt, whose last event is past, and which ends when this is called."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    brand = Traced(instance)
    instance.running("web", "-b", brand.name)
    brand.script({"post running halt": f"wait {gate}"})
    with instance.popen("halt", "web") as halt:
        try:
            assert halt.stderr is not None
            assert halt.stderr.readline() == "zonemgr: zone 'web': waiting\n"

            def end() -> None:
                gate.write_text("")

            yield end
            assert halt.wait(30) == 0
        finally:
            halt.kill()


def test_who_comes_after_the_last_event_of_a_request_hears_its_end(
    instance: Instance, halting: Callable[[], None]
) -> None:
    with door.monitored(instance) as monitor:
        assert door.state(instance)["under_way"] == "halt"
        halting()
        event = reply(monitor)["parameters"]["event"]
        assert (event["type"], event["zonename"]) == ("settled", "web")
        assert door.state(instance)["under_way"] is None


def test_whoever_stays_with_a_zone_leaves_when_its_end_is_whole(
    instance: Instance, halting: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One who came too late for the last event is not left waiting for another."""
    session = Session()
    session.root = str(instance.root)
    looks: list[bool] = []
    is_up = follow._is_up

    def look(layout: Layout, name: str) -> bool:
        looks.append(is_up(layout, name))
        return looks[-1]

    monkeypatch.setattr(follow, "_is_up", look)
    staying = threading.Thread(target=follow.stay, args=(session, ["web"]), daemon=True)
    staying.start()
    until(lambda: looks == [True, True], "the look of one who listens already")
    halting()
    staying.join(30)
    assert not staying.is_alive()
    assert looks == [True, True, False]
