"""What a zone's init tells of itself: few words are understood, and nobody can tell much."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from zonemgr.linux import notify
from zonemgr.supervisor.notices import A_SECOND, STATUS_MAX, Notices


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, Notices]]:
    """Where messages are sent, as on a kernel that lets descriptors pass, and who hears them."""
    theirs, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    ours.setblocking(False)
    theirs.setblocking(False)
    with theirs:
        notices = Notices(ours.detach())
        yield theirs, notices
        os.close(notices._sock.detach())


@pytest.mark.parametrize(
    ("said", "ready", "stopping", "status"),
    [
        (b"READY=1", True, False, ""),
        (b"READY=1\nSTATUS=up and well\n", True, False, "up and well"),
        (b"STATUS=almost", False, False, "almost"),
        (b"STOPPING=1", False, True, ""),
        (b"READY=0\nREADY=11\nready=1\n READY=1\nREADY=1 ", False, False, ""),
        (b"X_SYSTEMD_UNIT_ACTIVE=a.target\nMAINPID=1\nRELOADING=1\nFDSTORE=1", False, False, ""),
        (b"", False, False, ""),
        (b"\n\n=\n\0\xff" * 50, False, False, ""),
        (b"STATUS=\x1b]0;owned\x07\xff\r\xc2\x9b", False, False, "?]0;owned?\N{REPLACEMENT CHARACTER}??"),
        (b"STATUS=" + b"x" * 4000, False, False, "x" * STATUS_MAX),
        (b"x" * notify.MESSAGE_MAX + b"\nREADY=1", False, False, ""),
    ],
)
def test_what_is_understood(
    ends: tuple[socket.socket, Notices], said: bytes, ready: bool, stopping: bool, status: str
) -> None:
    to, notices = ends
    to.send(said)
    assert notices.hear() is (ready or stopping)
    assert notices.told() == {"ready": ready, "stopping": stopping, "status": status}
    to.send(said)
    assert not notices.hear()  # no news


def test_who_says_too_much_is_not_heard_for_a_while(
    ends: tuple[socket.socket, Notices], monkeypatch: pytest.MonkeyPatch
) -> None:
    to, notices = ends
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    heard = 0
    while notices.deaf_s == 0:
        to.send(b"STATUS=%d" % heard)
        notices.hear()
        heard += 1
    assert heard == A_SECOND and notices.status == str(heard - 1)
    assert notices.deaf_s == 1.0
    now += 1.0
    assert notices.deaf_s == 0
    to.send(b"READY=1")
    assert notices.hear()


def test_descriptors_are_not_closed_and_end_it(ends: tuple[socket.socket, Notices]) -> None:
    """Where the kernel lets them pass: to close one could take as long as its sender likes."""
    to, notices = ends
    reading_fd, writing_fd = os.pipe()
    socket.send_fds(to, [b"READY=1"], [writing_fd])
    os.close(writing_fd)
    assert notices.hear() and notices.deaf_s is None
    os.set_blocking(reading_fd, False)
    with pytest.raises(BlockingIOError):  # its other end is open still
        os.read(reading_fd, 1)
    os.close(reading_fd)
    for descriptor in notices.kept:
        os.close(descriptor)


def test_the_socket_is_its_owners_alone(tmp_path: Path) -> None:
    folder_fd = os.open(tmp_path, os.O_RDONLY)
    descriptor = notify.listen(folder_fd, os.geteuid())
    os.close(folder_fd)
    found = (tmp_path / "notify").stat()
    assert (found.st_mode & 0o777, found.st_uid) == (0o600, os.geteuid())
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to, socket.socket(fileno=descriptor) as ours:
        to.sendto(b"READY=1", str(tmp_path / "notify"))
        assert notify.receive(ours) == (b"READY=1", [])
        with pytest.raises(BlockingIOError):
            notify.receive(ours)
