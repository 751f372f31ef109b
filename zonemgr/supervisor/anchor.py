"""The other end of zsched's protocol: what a supervisor and its workers ask of it."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from zonemgr.errors import PlatformError
from zonemgr.store.paths import Layout
from zonemgr.wire import packets

SOCKET = "zsched"
TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Hello:
    """What zsched holds.  The descriptors are the caller's to close (``close``)."""

    version: int
    generation: str
    init_pid: int
    exit: Mapping[str, int] | None
    fds: Mapping[str, int]
    notices: Mapping[str, Any] | None = None  # what init has told of itself, where it has a way to

    def close(self) -> None:
        """Close every descriptor."""
        packets.close_all(self.fds.values())


class Anchor:
    """One connection to a zone's zsched.  OSError when zsched is gone."""

    def __init__(self, sock: socket.socket | None) -> None:
        self._sock = sock

    @classmethod
    def absent(cls) -> Anchor:
        """In the place of a zsched that was killed."""
        return cls(None)

    @property
    def is_absent(self) -> bool:
        return self._sock is None

    @property
    def sock(self) -> socket.socket:
        if self._sock is None:
            raise ConnectionResetError(104, "zsched is gone")
        return self._sock

    @classmethod
    def connect(cls, layout: Layout, zonename: str, timeout_s: float = TIMEOUT_S) -> Anchor:
        """Connect to the zone's zsched.  OSError when there is none."""
        folder_fd = os.open(layout.zone_run(zonename), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return cls(packets.connect(folder_fd, SOCKET, timeout_s))
        finally:
            os.close(folder_fd)

    def _ask(
        self, head: dict[str, Any], fds: tuple[int, ...] = (), tail: bytes = b""
    ) -> tuple[dict[str, Any], list[int], bytes]:
        packets.send(self.sock, head, fds, tail)
        answer = packets.receive(self.sock)
        if answer is None:
            raise ConnectionResetError(104, "zsched is gone")
        return answer

    def hello(self) -> Hello:
        """Ask who is there, and for copies of all descriptors it holds."""
        head, fds, _tail = self._ask({"op": "hello"})
        named = dict(zip(head["fds"], fds, strict=True))
        return Hello(
            head["version"], head["generation"], head["pid"], head["exit"], named, head.get("notices")
        )

    def attach(self) -> bytes:
        """Be the zone's supervisor on this connection from now on.  Returns the console's ring."""
        return self._ask({"op": "attach"})[2]

    def keep_console(self, master_fd: int, slave_fd: int, *notify_fd: int) -> None:
        """Let zsched hold the console's pty, and the socket that init notifies, if there is one."""
        self._ask({"op": "console"}, (master_fd, slave_fd, *notify_fd))

    def stub(self, message: dict[str, Any], fds: tuple[int, ...] = (), tail: bytes = b"") -> dict[str, Any]:
        """Have process 1 obey a message.  PlatformError names the step that failed."""
        answer = self._ask({"op": "stub", "message": message}, fds, tail)[0]
        if "stage" in answer:
            raise StubError(answer)
        return answer

    def wake(self, after_s: float | None) -> bool:
        """Have a supervisor started after that many seconds, should nobody be attached then; None: not any more.

        False: this zsched is too old to know how.
        """
        return "unknown" not in self._ask({"op": "wake", "after_s": after_s})[0] if self._sock else False

    def commit(self) -> None:
        """The platform is complete: zsched lives on without us."""
        self._ask({"op": "commit"})

    def quit(self) -> None:
        """Tell zsched to leave."""
        self._ask({"op": "quit"})

    def close(self) -> None:
        if self._sock is not None:
            self._sock.close()


class StubError(PlatformError):
    """Process 1 could not do a step."""

    def __init__(self, answer: Mapping[str, Any]) -> None:
        code = answer.get("errno") or 0
        ended = "process 1 ended" if answer.get("exit") else "no answer"
        super().__init__(
            "{stage}: {why}",
            stage=answer["stage"],
            why=os.strerror(code) if code else answer.get("text") or ended,
        )
        self.stage = str(answer["stage"])
        self.errno = code
