"""What the init of a zone tells about itself, as far as anybody asks: that it is ready, that it stops, its status.

zsched reads it.  All of it may be a lie or nonsense, so it is only ever shown: a few words that are known, a status of
one line, so many messages a second.  What comes faster waits in the socket, and its sender with it.
"""

from __future__ import annotations

import socket
import time
from typing import Any, Final

from zonemgr.linux import notify

A_SECOND: Final = 64  # messages
STATUS_MAX: Final = 200


class Notices:
    """The socket and what has been heard.  ``hear`` when it can be read and ``deaf_s`` is 0."""

    def __init__(self, descriptor: int) -> None:
        self._sock = socket.socket(fileno=descriptor)
        self._second = 0.0
        self._heard = 0
        self._closed = False
        self.kept: list[int] = []  # descriptors that somebody sent
        self.ready = False
        self.stopping = False
        self.status = ""

    def fileno(self) -> int:
        return self._sock.fileno()

    @property
    def deaf_s(self) -> float | None:
        """Seconds until it may be read again; None: never."""
        if self._closed:
            return None
        if self._heard < A_SECOND:
            return 0.0
        return max(0.0, self._second + 1.0 - time.monotonic())

    def hear(self) -> bool:
        """Read what is there.  Whether the zone has become ready, or has begun to stop."""
        now = time.monotonic()
        if now >= self._second + 1.0:
            self._second, self._heard = now, 0
        before = self.ready, self.stopping
        while self._heard < A_SECOND and not self._closed:
            try:
                text, self.kept = notify.receive(self._sock)
            except BlockingIOError:
                break
            except OSError:
                self._closed = True  # of no use any more
                break
            self._heard += 1
            self._closed = bool(self.kept)  # a few of them are enough
            self._understand(text)
        return (self.ready, self.stopping) != before

    def _understand(self, text: bytes) -> None:
        for line in text.split(b"\n"):
            word, _, value = line.partition(b"=")
            if word == b"STATUS":
                self.status = _one_line(value)
            elif (word, value) == (b"READY", b"1"):
                self.ready = True
            elif (word, value) == (b"STOPPING", b"1"):
                self.stopping = True

    def told(self) -> dict[str, Any]:
        return {"ready": self.ready, "stopping": self.stopping, "status": self.status}


def _one_line(value: bytes) -> str:
    """Nothing that a terminal would obey."""
    text = value[: 4 * STATUS_MAX].decode(errors="replace")
    return "".join(letter if letter.isprintable() else "?" for letter in text)[:STATUS_MAX]
