"""A client of a zone's console that speaks the socket's protocol itself, so that tests see every byte."""

from __future__ import annotations

import os
import re
import select
import socket
import time
from types import TracebackType
from typing import Final, Self

from tests.kit.instance import Instance
from zonemgr.wire import start

DEADLINE_S: Final = 30.0
_NOTICE: Final = re.compile(rb"\r\n\[((?:NOTICE|WARNING): [^\]]*)\]\r\n")


def knock(instance: Instance, line: bytes, zonename: str = "web") -> socket.socket:
    """A connection to the console that has said this line; a supervisor is started when there is none."""
    connection = start.connected(instance.layout, zonename, "console", lambda _text: None)
    connection.settimeout(DEADLINE_S)
    connection.sendall(line, socket.MSG_NOSIGNAL)
    return connection


def answer(connection: socket.socket) -> bytes:
    """Everything up to the end of the connection, or to the end of the first line."""
    text = b""
    while not text.endswith(b"\n"):
        try:
            byte = connection.recv(1)
        except ConnectionResetError:
            break
        if not byte:
            break
        text += byte
    return text


class Console:
    """The client.  A context manager; ``text`` is all that has come so far."""

    def __init__(self, instance: Instance, zonename: str = "web", *, leave_on_halt: bool = False) -> None:
        self.pid = os.getpid()
        self.text = b""
        self._taken = 0
        first = b""
        while not first:  # a supervisor may leave between our coming and its answer
            self.socket = knock(instance, b"IDENT %d C %d\n" % (self.pid, leave_on_halt), zonename)
            first = answer(self.socket)
            if first != b"OK\n":
                self.socket.close()
        assert first == b"OK\n", first

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data, socket.MSG_NOSIGNAL)

    def _read(self, deadline: float) -> bool:
        left_s = deadline - time.monotonic()
        if left_s < 0 or not select.select([self.socket], [], [], left_s)[0]:
            raise AssertionError(f"the console says no more; it said {self.text!r}")
        try:
            data = self.socket.recv(65536)
        except ConnectionResetError:
            data = b""
        self.text += data
        return bool(data)

    def until(self, wanted: bytes, *, deadline_s: float = DEADLINE_S) -> bytes:
        """Read until ``wanted`` comes, and take it: the next call looks behind it.  What came before it."""
        deadline = time.monotonic() + deadline_s
        while wanted not in self.text[self._taken :]:
            assert self._read(deadline), f"the console hung up; it said {self.text!r}"
        before, _, _ = self.text[self._taken :].partition(wanted)
        self._taken += len(before) + len(wanted)
        return before

    def end(self) -> None:
        """Read until the supervisor hangs up."""
        deadline = time.monotonic() + DEADLINE_S
        while self._read(deadline):
            pass

    def notices(self) -> list[str]:
        """The notices since the last call, as far as they have come."""
        while select.select([self.socket], [], [], 0)[0]:
            if not self._read(time.monotonic() + 1):
                break
        found = [match.decode() for match in _NOTICE.findall(self.text)]
        self.text, self._taken = b"", 0
        return found
