"""The escape, and the relay between a terminal and a zone (on real ptys)."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import socket
import struct
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.processes import Started
from zonemgr.cli.terminal import Escape, Keys, escape_character, window
from zonemgr.errors import UsageError

KEYS = Keys(frozenset({13, 10, 3, 26}), 4)


def typed(*pieces: bytes, character: int | None = ord("~")) -> tuple[bytes, bool, bytes]:
    escape = Escape(character, KEYS)
    passed = b""
    for piece in pieces:
        data, disconnect = escape.feed(piece)
        passed += data
        if disconnect:
            return passed, True, escape.echo
    return passed, False, escape.echo


@pytest.mark.parametrize(
    ("pieces", "passed", "disconnect"),
    [
        ((b"~.",), b"", True),
        ((b"~", b"."), b"", True),
        ((b"~\x04",), b"", True),
        ((b"~~",), b"~", False),
        ((b"~x",), b"x", False),
        ((b"a~.",), b"a~.", False),
        ((b"a\r~.",), b"a\r", True),
        ((b"a\n~.b",), b"a\n", True),
        ((b"a\x03~.",), b"a\x03", True),
        ((b"~~.",), b"~.", False),
        ((b"~\r~.",), b"\r", True),
        ((b"",), b"", False),
    ],
)
def test_the_escape(pieces: tuple[bytes, ...], passed: bytes, disconnect: bool) -> None:
    assert typed(*pieces)[:2] == (passed, disconnect)


def test_what_is_shown_when_it_disconnects() -> None:
    assert typed(b"~.")[2] == b"~."
    assert typed(b"~\x04")[2] == b"~^D"
    assert typed(b"%.", character=ord("%"))[2] == b"%."


def test_without_an_escape_everything_passes() -> None:
    assert typed(b"~.\r~.", character=None)[:2] == (b"~.\r~.", False)


@pytest.mark.parametrize(
    ("text", "character"),
    [
        ("%", "%"),
        ("%x", "%"),
        ("\\", "\\"),
        ("\\\\", "\\"),
        ("\\176", "~"),
        ("\\1", "\x01"),
        ("\\377", "\xff"),
    ],
)
def test_the_operand_of_e(text: str, character: str) -> None:
    assert escape_character(text) == ord(character)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\\400", "Octal escape character '400' too large"),
        ("\\8", "Unrecognized escape character option \\8"),
        ("\\x", "Unrecognized escape character option \\x"),
        ("", "Unrecognized escape character option ''"),
    ],
)
def test_a_wrong_operand_of_e(text: str, message: str) -> None:
    with pytest.raises(UsageError) as refusal:
        escape_character(text)
    assert refusal.value.text == message


def test_the_keys_are_those_of_the_local_terminal() -> None:
    master_fd, slave_fd = pty.openpty()
    try:
        mode = termios.tcgetattr(slave_fd)
        mode[6][termios.VINTR] = b"\x07"
        mode[6][termios.VEOF] = b"\x05"
        termios.tcsetattr(slave_fd, termios.TCSANOW, mode)
        keys = Keys.of(slave_fd)
        assert 7 in keys.breaks
        assert keys.eof == 5
    finally:
        os.close(master_fd)
        os.close(slave_fd)


def test_no_terminal_has_the_usual_keys_and_no_window() -> None:
    with Path(os.devnull).open("rb") as null:
        assert Keys.of(null.fileno()) == Keys()
        assert window(null.fileno()) is None


OPERATOR = """
import os, sys
from zonemgr.cli.terminal import Escape, Keys, Relay, raw
zone_fd = int(sys.argv[1])
def tell(rows, columns):
    os.write(zone_fd, b"<%d %d>" % (rows, columns))
with raw(0):
    Relay(zone_fd, Escape(ord("~"), Keys.of(0)), tell).run()
os.write(1, b"END")
"""


class Operator:
    """A process at a terminal of its own, relayed to a socket whose other end the test holds."""

    def __init__(self) -> None:
        self.zone, theirs = socket.socketpair()
        self.zone.settimeout(20)
        self.master_fd, self.slave_fd = pty.openpty()
        self.resize(24, 80)
        self.process = Started(
            [sys.executable, "-c", OPERATOR, str(theirs.fileno())],
            stdin=self.slave_fd,
            stdout=self.slave_fd,
            pass_fds=[theirs.fileno()],
        )
        theirs.close()

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.slave_fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def types(self, data: bytes) -> None:
        os.write(self.master_fd, data)

    def zone_gets(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            more = self.zone.recv(length - len(data))
            assert more, f"the operator has left after {data!r}"
            data += more
        return data

    def sees(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            data += os.read(self.master_fd, length - len(data))
        return data

    def leaves(self) -> None:
        self.zone.close()
        assert self.process.wait(20) == 0

    def close(self) -> None:
        self.zone.close()
        self.process.end()
        os.close(self.master_fd)
        os.close(self.slave_fd)


@pytest.fixture
def operator() -> Iterator[Operator]:
    made = Operator()
    try:
        assert made.zone_gets(7) == b"<24 80>"
        yield made
    finally:
        made.close()


def test_keys_and_output_pass_unchanged(operator: Operator) -> None:
    every = bytes(range(256)).replace(b"~", b"")
    operator.types(every)
    assert operator.zone_gets(len(every)) == every
    operator.zone.sendall(every)
    assert operator.sees(len(every)) == every
    operator.leaves()


def test_the_escape_disconnects_and_the_terminal_is_restored(operator: Operator) -> None:
    before = termios.tcgetattr(operator.slave_fd)
    assert not before[3] & termios.ECHO
    operator.types(b"ls\r~.")
    assert operator.zone_gets(3) == b"ls\r"
    assert operator.zone.recv(10) == b""
    assert operator.sees(5) == b"~.END"
    assert operator.process.wait(20) == 0
    assert termios.tcgetattr(operator.slave_fd)[3] & termios.ECHO
    operator.leaves()


def test_the_end_of_the_zones_side_ends_it(operator: Operator) -> None:
    operator.zone.sendall(b"bye")
    operator.zone.shutdown(socket.SHUT_RDWR)
    assert operator.sees(6) == b"byeEND"
    operator.leaves()


def test_a_new_window_size_is_told(operator: Operator) -> None:
    operator.resize(50, 132)
    operator.process.send_signal(signal.SIGWINCH)
    assert operator.zone_gets(8) == b"<50 132>"
    operator.leaves()
