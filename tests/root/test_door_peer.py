"""Who is let in at a door: real processes with other ids, capabilities and namespaces knock at it."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.processes import Started
from zonemgr.wire import peers
from zonemgr.wire.peers import CallerError
from zonemgr.wire.server import Listener, Peer

DEADLINE_S = 30
KNOCK = """
import socket, sys
door = socket.socket(socket.AF_UNIX)
door.connect(sys.argv[1])
door.settimeout(30)
try:
    door.sendall(b'{"method": "org.example.Knock"}\\0')
except BrokenPipeError:
    pass  # the refusal came first
try:
    sys.stdout.write(door.recv(1000).decode())
except ConnectionResetError:
    sys.stdout.write("reset")
"""

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def door(tmp_path: Path) -> Iterator[tuple[Listener, Path]]:
    for folder in (tmp_path, *tmp_path.parents):  # so that the check is what refuses, not the path
        if folder.stat().st_mode & 0o001 == 0:
            folder.chmod(folder.stat().st_mode | 0o011)
    folder_fd = os.open(tmp_path, os.O_PATH)
    listener = Listener(folder_fd, "door")
    os.close(folder_fd)
    (tmp_path / "door").chmod(0o666)
    yield listener, tmp_path / "door"
    listener.close()


def knock(door: tuple[Listener, Path], *wrapper: str) -> tuple[Peer | str, str]:
    """What the door thinks of a caller started through these words, and what the caller was told."""
    listener, path = door
    words = [*wrapper, "/usr/bin/python3", "-c", KNOCK, str(path)]
    with Started(words, stdout=subprocess.PIPE, text=True) as caller:
        result = _accept(listener)
        if isinstance(result, Peer):
            result.close()
        told, _ = caller.communicate(timeout=DEADLINE_S)
    return result, told


def _accept(listener: Listener) -> Peer | str:
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    assert poll.poll(DEADLINE_S * 1000), "nobody came"
    try:
        peer = listener.accept()
    except CallerError as refusal:
        return refusal.text
    assert peer is not None
    return peer


@pytest.fixture(params=["pidfd of the socket", "pidfd_open"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to hold the caller: the second is that of kernels before 6.5."""
    if request.param == "pidfd_open":
        monkeypatch.setattr(peers, "SO_PEERPIDFD", 9999)
    return str(request.param)


@pytest.mark.usefixtures("way")
def test_root_of_the_host_is_let_in(door: tuple[Listener, Path]) -> None:
    peer, _ = knock(door)
    assert isinstance(peer, Peer)
    assert peer.caller.uid == 0
    assert peer.caller.pid > 0


@pytest.mark.usefixtures("way")
def test_another_mount_namespace_is_no_obstacle(door: tuple[Listener, Path]) -> None:
    peer, _ = knock(door, "unshare", "--mount")
    assert isinstance(peer, Peer)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(
    ("wrapper", "reason"),
    [
        (("setpriv", "--reuid", "65534"), "uid 65534"),
        (("setpriv", "--bounding-set", "-sys_admin"), "lacks CAP_SYS_ADMIN"),
        (("unshare", "--user", "--map-root-user"), "other user namespace"),
        (("unshare", "--pid", "--fork"), "other pid namespace"),
        (("unshare", "--user", "--map-root-user", "--pid", "--fork"), "other user namespace"),
    ],
)
def test_everybody_else_is_refused(
    door: tuple[Listener, Path], wrapper: tuple[str, ...], reason: str
) -> None:
    refusal, told = knock(door, *wrapper)
    assert isinstance(refusal, str)
    assert reason in refusal
    assert "org.varlink.service.PermissionDenied" in told


def test_a_caller_that_has_left_is_refused(door: tuple[Listener, Path]) -> None:
    listener, path = door
    script = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
    subprocess.run([sys.executable, "-c", script, str(path)], check=True, timeout=DEADLINE_S)
    assert isinstance(_accept(listener), str)


def test_the_check_leaves_no_descriptor_behind(door: tuple[Listener, Path]) -> None:
    before = len(os.listdir("/proc/self/fd"))
    knock(door)
    knock(door, "setpriv", "--reuid", "65534")
    assert len(os.listdir("/proc/self/fd")) == before
