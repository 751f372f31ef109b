"""The caller's end of a door: one connection, one call after the other, blocking.

It does not start anybody: ``start`` does, for those who may.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any, Final, Self

from zonemgr.errors import ZoneError
from zonemgr.wire.varlink import REPLY_MAX, MalformedError, Message, Splitter, decode, encode

SUN_PATH_MAX: Final = 107  # bytes


class RemoteError(Exception):
    """The server answered with a varlink error."""

    def __init__(self, name: str, parameters: Mapping[str, Any]) -> None:
        super().__init__(name)
        self.name = name
        self.parameters = parameters


class EmptyReply(ZoneError):
    """The server closed the connection before it answered anything: ask its successor."""

    def __init__(self) -> None:
        super().__init__("the supervisor went away before it answered")


class LostReply(ZoneError):
    """The server closed the connection in the middle of an answer."""

    def __init__(self) -> None:
        super().__init__(
            "the supervisor ended while it was working: the next command finds out how far it came"
        )


def connect(path: str | os.PathLike[str]) -> socket.socket:
    """A stream connected to the socket at ``path``, however long the path is.  Raises OSError."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        _connect(connection, os.fspath(path))
    except BaseException:
        connection.close()
        raise
    return connection


def _connect(connection: socket.socket, path: str) -> None:
    if len(os.fsencode(path)) <= SUN_PATH_MAX:
        connection.connect(path)
        return
    folder, name = os.path.split(path)
    folder_fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        connection.connect(f"/proc/self/fd/{folder_fd}/{name}")
    finally:
        os.close(folder_fd)


class Client:
    """A connection to a varlink server.  A context manager."""

    def __init__(self, at: str | os.PathLike[str] | socket.socket) -> None:
        """Connect to a path (OSError when nobody listens there), or take over a connection."""
        self._connection = at if isinstance(at, socket.socket) else connect(at)
        self._splitter = Splitter(REPLY_MAX)
        self._frames: list[bytes] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._connection.close()

    def fileno(self) -> int:
        return self._connection.fileno()

    def call(
        self,
        method: str,
        parameters: Mapping[str, Any] | None = None,
        *,
        more: bool = False,
        on_reply: Callable[[Message], None] | None = None,
    ) -> Message:
        """The parameters of the last reply; ``on_reply`` gets those of the replies before it.

        ``method`` is the full name (``org.zonemgr.Zone.Boot``).  Parameters that are None are not sent.
        Raises RemoteError, EmptyReply, LostReply.
        """
        self._send(method, parameters or {}, more)
        replies = 0
        while True:
            reply = self._receive(replies)
            replies += 1
            values: Message = reply.get("parameters") or {}
            if "error" in reply:
                raise RemoteError(str(reply["error"]), values)
            if not reply.get("continues"):
                return values
            if on_reply is not None:
                on_reply(values)

    def listen(self, method: str) -> Iterator[Message]:
        """Call with "more" now, and give the parameters of each reply as it comes.  Raises as ``call`` does."""
        self._send(method, {}, True)
        return self._replies()

    def _replies(self) -> Iterator[Message]:
        replies = 0
        while True:
            reply = self._receive(replies)
            replies += 1
            if "error" in reply:
                raise RemoteError(str(reply["error"]), reply.get("parameters") or {})
            yield reply.get("parameters") or {}

    def _send(self, method: str, parameters: Mapping[str, Any], more: bool) -> None:
        request: Message = {
            "method": method,
            "parameters": {name: value for name, value in parameters.items() if value is not None},
        }
        if more:
            request["more"] = True
        try:
            self._connection.sendall(encode(request), socket.MSG_NOSIGNAL)
        except (BrokenPipeError, ConnectionResetError):
            pass  # whatever was answered before the end can be read yet

    def _receive(self, replies: int) -> Message:
        while not self._frames:
            try:
                data = self._connection.recv(64 * 1024)
            except ConnectionResetError:
                data = b""
            if not data:
                raise LostReply if replies else EmptyReply
            try:
                self._frames += self._splitter.feed(data)
            except MalformedError as error:
                raise ZoneError("the supervisor's answer is {why}", why=str(error)) from error
        try:
            return decode(self._frames.pop(0))
        except MalformedError as error:
            raise ZoneError("the supervisor's answer is {why}", why=str(error)) from error
