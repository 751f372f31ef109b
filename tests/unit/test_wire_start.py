"""Starting a supervisor on demand, with toys in its place."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from zonemgr.errors import PlatformError, StateError
from zonemgr.store.paths import Layout
from zonemgr.wire import start

BOOT = "org.zonemgr.Zone.Boot"

PRELUDE = """
import json, os, sys
_, _, zonename, _, root, _, ready_fd = sys.argv
folder = os.path.join(root, "run/zonemgr/zones", zonename)
def tell(**record):
    if "ready" in record and os.fork():
        os._exit(0)
    os.write(int(ready_fd), json.dumps(record).encode() + b"\\n")
def count():
    with open(os.path.join(root, "starts"), "a") as starts:
        starts.write(f"{os.getpid()}\\n")
def serve(calls):
    import select
    from zonemgr.wire.server import Listener
    from zonemgr.wire.peers import Caller
    fd = os.open(folder, os.O_PATH)
    listener = Listener(fd, "door", lambda _: Caller(0, 0))
    tell(ready=True)
    peers = []
    while calls:
        poll = select.poll()
        for one in [listener, *peers]:
            poll.register(one, select.POLLIN)
        ready = dict(poll.poll(20000)) or sys.exit(1)
        if listener.fileno() in ready:
            peers.append(listener.accept())
        for peer in list(peers):
            for call in peer.readable() if peer.fileno() in ready else ():
                call.reply({"messages": [call.method]})
                calls -= 1
            if peer.closed:
                peers.remove(peer)
    listener.withdraw()
count()
"""


class Toys:
    """The instance, and what the program that is started does there."""

    def __init__(self, layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
        self.layout = layout
        self.said: list[str] = []
        self._monkeypatch = monkeypatch

    def supervisor(self, script: str) -> None:
        self._monkeypatch.setattr(
            start, "program", lambda _module, *words: [sys.executable, "-c", PRELUDE + script, *words]
        )

    def call(self) -> object:
        return start.call(self.layout, "web", BOOT, {}, say=self.said.append)

    @property
    def starts(self) -> int:
        path = self.layout.root / "starts"
        return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.fixture
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Toys]:
    before = set(os.listdir("/proc/self/fd"))
    yield Toys(Layout.at(tmp_path), monkeypatch)
    assert len(os.listdir("/proc/self/fd")) <= len(before)


def test_a_supervisor_is_started_where_there_is_none(toys: Toys) -> None:
    toys.supervisor("serve(2)")
    assert toys.call() == {"messages": [BOOT]}
    assert toys.call() == {"messages": [BOOT]}
    assert toys.starts == 1


def test_what_it_says_while_it_starts_is_passed_on(toys: Toys) -> None:
    toys.supervisor("tell(message='WARNING: restarted')\nserve(1)")
    assert toys.call() == {"messages": [BOOT]}
    assert toys.said == ["WARNING: restarted"]


def test_a_supervisor_that_gives_up_says_why_once(toys: Toys) -> None:
    toys.supervisor("tell(message='cannot manage it')\nsys.exit(1)")
    with pytest.raises(PlatformError, match="could not start the supervisor"):
        toys.call()
    assert toys.said == ["cannot manage it"]
    assert toys.starts == 1


@pytest.mark.parametrize("end", ["sys.exit(1)", "os.kill(os.getpid(), 9)"])
def test_a_supervisor_that_dies_without_a_word_is_not_started_again(toys: Toys, end: str) -> None:
    toys.supervisor(end)
    with pytest.raises(PlatformError, match="could not start the supervisor"):
        toys.call()
    assert toys.starts == 1


def test_one_that_finds_another_about_to_leave_is_started_again(toys: Toys) -> None:
    toys.supervisor("serve(1) if len(open(os.path.join(root, 'starts')).readlines()) == 3 else sys.exit(0)")
    assert toys.call() == {"messages": [BOOT]}
    assert toys.starts == 3


def test_a_supervisor_that_leaves_before_it_answers_gets_a_successor(toys: Toys) -> None:
    toys.supervisor(
        "first = len(open(os.path.join(root, 'starts')).readlines()) == 1\n"
        "if first:\n"
        "    import socket\n"
        "    door = socket.socket(socket.AF_UNIX)\n"
        "    door.bind(os.path.join(folder, 'door'))\n"
        "    door.listen()\n"
        "    tell(ready=True)\n"
        "    door.accept()[0].recv(1000)\n"
        "else:\n"
        "    serve(1)\n"
    )
    assert toys.call() == {"messages": [BOOT]}
    assert toys.starts == 2


def test_a_dead_supervisors_door_is_no_obstacle(toys: Toys) -> None:
    import socket

    folder = toys.layout.zone_run("web")
    folder.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(folder / "door"))
    toys.supervisor("serve(1)")
    assert toys.call() == {"messages": [BOOT]}


def test_many_callers_start_one_supervisor(toys: Toys) -> None:
    toys.supervisor("serve(8)")
    answers: list[object] = []
    threads = [threading.Thread(target=lambda: answers.append(toys.call())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert answers == [{"messages": [BOOT]}] * 8
    assert toys.starts == 1


def test_a_supervisor_that_never_gets_ready_is_ended(toys: Toys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "START_S", 0.5)
    toys.supervisor("import signal\nsignal.pause()")
    with pytest.raises(PlatformError, match="did not become ready"):
        toys.call()
    pid = int((toys.layout.root / "starts").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_it_starts_in_a_session_and_an_environment_of_its_own(
    toys: Toys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    monkeypatch.setenv("ZONEMGR_SWITCH", "1")
    monkeypatch.setenv("LD_PRELOAD", "")
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    monkeypatch.setenv(start.TRANSITION_VARIABLE, "other")
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    toys.supervisor(
        "import signal\n"
        "tell(message=f'{os.getsid(0) == os.getpid()} {signal.getsignal(signal.SIGHUP) == signal.SIG_DFL}')\n"
        "tell(message=' '.join(sorted(set(os.environ) - {'PYTHONPATH', 'LC_CTYPE'})))\n"
        "tell(message=os.readlink('/proc/self/fd/0') + ' ' + os.readlink('/proc/self/fd/1'))\n"
        "tell(message=' '.join(sorted(os.listdir('/proc/self/fd'), key=int)))\n"
        "sys.exit(1)"
    )
    try:
        with pytest.raises(PlatformError):
            toys.call()
    finally:
        signal.signal(signal.SIGHUP, before)
    session, environment, streams, descriptors = toys.said
    assert session == "True True"
    assert "PATH" in environment.split()
    assert {"LC_ALL", "ZONEMGR_SWITCH"} <= set(environment.split())
    assert not {"LD_PRELOAD", "HOME", start.TRANSITION_VARIABLE} & set(environment.split())
    assert streams == "/dev/null /dev/null"
    assert descriptors.split()[:4] == ["0", "1", "2", "3"]


def test_a_hook_cannot_command_its_own_zone(toys: Toys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(start.TRANSITION_VARIABLE, "web")
    toys.supervisor("serve(1)")
    with pytest.raises(StateError, match="a hook cannot command"):
        toys.call()
    assert toys.starts == 0
