"""The served end of a door: pieces for a single-threaded poll loop, in which nothing ever waits for a client.

The loop polls :class:`Listener` and every :class:`Peer` with ``Peer.events``; on POLLIN, POLLHUP or POLLERR it calls
``readable``, on POLLOUT ``writable``, and forgets a peer that is ``closed``.  Each :class:`Call` is first shown to
:class:`Introspection`; what that leaves is valid and the application's to answer, at once or much later.

A peer is bounded in everything: the length of a request, the number of calls without an answer, what waits to be sent.
File descriptors that a peer passes are closed at once.
"""

from __future__ import annotations

import array
import os
import select
import socket
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from zonemgr.wire import varlink
from zonemgr.wire.interface import Interface, ParameterError, load
from zonemgr.wire.peers import Caller, CallerError, check
from zonemgr.wire.varlink import REQUEST_MAX, MalformedError, Message, Splitter, decode, encode

BACKLOG: Final = 128
CHUNK: Final = 16 * 1024  # bytes per recvmsg
PASSED_FDS_MAX: Final = 253  # the kernel's SCM_MAX_FD
CALLS_MAX: Final = 16  # calls of one peer without an answer
OUTPUT_MAX: Final = 256 * 1024  # bytes for a peer that does not read; what continues is dropped beyond that

_QUIET: Final = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL


class Listener:
    """A socket in a folder, published when it is ready for calls."""

    def __init__(
        self, folder_fd: int, name: str, caller_check: Callable[[socket.socket], Caller] = check
    ) -> None:
        """Bind ``name`` in the folder, in place of what a dead predecessor left there.

        The caller holds the lock that makes it the only one to serve this name.
        """
        self._folder_fd = os.dup(folder_fd)
        self._name = name
        self._check = caller_check
        self._socket = socket.socket(
            socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        )
        try:
            self._publish()
        except BaseException:
            self.close()
            raise

    def _publish(self) -> None:
        # Under the final name only once it listens, so that nobody finds a door that refuses.
        early = f".{self._name}.new"
        self._unlink(early)
        self._socket.bind(f"/proc/self/fd/{self._folder_fd}/{early}")
        os.chmod(early, 0o600, dir_fd=self._folder_fd)
        self._socket.listen(BACKLOG)
        os.rename(early, self._name, src_dir_fd=self._folder_fd, dst_dir_fd=self._folder_fd)

    def _unlink(self, name: str) -> None:
        try:
            os.unlink(name, dir_fd=self._folder_fd)
        except FileNotFoundError:
            pass

    def fileno(self) -> int:
        return self._socket.fileno()

    def accept(self) -> Peer | None:
        """The next caller, or None when there is none.

        Raises CallerError for a process that may not call; it has been told and disconnected.
        """
        try:
            connection, _ = self._socket.accept()
        except (
            OSError
        ):  # nobody there any more, or no descriptor left: the next round of the loop tries again
            return None
        connection.setblocking(False)
        try:
            caller = self._check(connection)
        except CallerError:
            _refuse(connection)
            raise
        return Peer(connection, caller)

    def withdraw(self) -> None:
        """Take the name away: who comes now finds nobody and starts a successor.  Callers in the queue stay."""
        self._unlink(self._name)

    def close(self) -> None:
        """Stop listening.  Callers that were not accepted see the connection close without an answer."""
        self._socket.close()
        os.close(self._folder_fd)


def _refuse(connection: socket.socket) -> None:
    with connection:
        try:
            connection.send(encode({"error": varlink.PERMISSION_DENIED, "parameters": {}}), _QUIET)
        except OSError:
            pass


class Call:
    """One request.  It is answered by exactly one ``reply`` or ``error``, with ``reply(continues=True)`` before."""

    def __init__(self, peer: Peer, request: Message) -> None:
        self.peer = peer
        self.method: str = _field(request, "method", str, "")
        self.parameters: Message = _field(request, "parameters", dict, {})
        self.more: bool = _field(request, "more", bool, False)
        self.oneway: bool = _field(request, "oneway", bool, False)
        self.done = False
        self._held = bytearray()  # answers that wait for the answers to earlier calls

    @property
    def gone(self) -> bool:
        """Nobody will read the answer."""
        return self.peer.closed

    def reply(self, parameters: Mapping[str, Any], *, continues: bool = False) -> bool:
        """Answer.  What continues goes only to a caller that wants ``more``, and only as fast as it reads.

        False when it was not sent (the caller did not ask for more, does not read, or has gone).
        """
        if not continues:
            return self._finish({"parameters": dict(parameters)})
        if not self.more or self.oneway or self.done:
            return False
        return self.peer.put(self, encode({"parameters": dict(parameters), "continues": True}), optional=True)

    def error(self, name: str, parameters: Mapping[str, Any] | None = None) -> bool:
        """Answer with an error."""
        return self._finish({"error": name, "parameters": dict(parameters or {})})

    def _finish(self, message: Message) -> bool:
        if self.done:
            return False
        self.done = True
        return self.peer.put(self, b"" if self.oneway else encode(message), optional=False)

    def hold(self, data: bytes) -> None:
        self._held += data

    def release(self) -> bytes:
        data = bytes(self._held)
        self._held.clear()
        return data

    @property
    def held(self) -> int:
        return len(self._held)


def _field(request: Message, name: str, kind: type, default: Any) -> Any:
    value = request.get(name)
    if value is None:
        return default
    if not isinstance(value, kind):
        raise MalformedError(f"'{name}' is of the wrong type")
    return value


class Peer:
    """One caller's connection."""

    def __init__(self, connection: socket.socket, caller: Caller) -> None:
        connection.setblocking(False)
        self.caller = caller
        self.closed = False
        self._connection = connection
        self._splitter = Splitter(REQUEST_MAX)
        self._calls: deque[Call] = deque()  # in the order in which they must be answered
        self._output = bytearray()
        self._ended = False  # the peer sends nothing any more, but may still read

    def fileno(self) -> int:
        return self._connection.fileno()

    @property
    def wants_write(self) -> bool:
        return bool(self._output) and not self.closed

    @property
    def events(self) -> int:
        """What to poll for."""
        return (0 if self._ended else select.POLLIN) | (select.POLLOUT if self.wants_write else 0)

    def readable(self) -> list[Call]:
        """The calls that have arrived completely.  Whatever is wrong with them closes the connection."""
        if self.closed:
            return []
        try:
            data = self._receive()
        except (BlockingIOError, InterruptedError):
            return []
        except OSError:
            self.close()
            return []
        if not data:
            self._end()
            return []
        return self._parse(data)

    def _receive(self) -> bytes:
        room = socket.CMSG_SPACE(PASSED_FDS_MAX * array.array("i").itemsize)
        data, ancillary, _, _ = self._connection.recvmsg(
            CHUNK, room, socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
        )
        for level, kind, payload in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                _close_all(payload)
        return data

    def _end(self) -> None:
        # A caller may close its sending half and wait.  One that has really gone shows up again, as a hang-up.
        if self._ended or not (self._calls or self._output):
            self.close()
        self._ended = True

    def _parse(self, data: bytes) -> list[Call]:
        calls: list[Call] = []
        try:
            for frame in self._splitter.feed(data):
                calls.append(Call(self, decode(frame)))
            if len(self._calls) + len(calls) > CALLS_MAX:
                raise MalformedError("too many calls")
        except MalformedError:
            self.close()
            return []
        self._calls.extend(calls)
        return calls

    def put(self, call: Call, data: bytes, *, optional: bool) -> bool:
        """Send a call's answer in its turn.  For :class:`Call`."""
        if self.closed:
            return False
        if optional and len(self._output) + call.held + len(data) > OUTPUT_MAX:
            return False
        call.hold(data)
        while self._calls:
            first = self._calls[0]
            self._output += first.release()
            if not first.done:
                break
            self._calls.popleft()
        self.writable()
        return not self.closed

    def writable(self) -> None:
        """Send as much as the peer takes now."""
        if self.closed or not self._output:
            return
        try:
            sent = self._connection.send(self._output, _QUIET)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.close()
            return
        del self._output[:sent]
        if self._ended and not self._calls and not self._output:
            self.close()

    def close(self) -> None:
        """Drop the connection, whatever is under way for it."""
        if not self.closed:
            self.closed = True
            self._connection.close()
            self._output.clear()


def _close_all(payload: bytes) -> None:
    fds = array.array("i")
    fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
    for fd in fds:
        os.close(fd)


class Introspection:
    """Answers for ``org.varlink.service``, and refuses calls that do not fit the interface files."""

    def __init__(self, product: str, version: str, interfaces: Sequence[str], *, url: str = "") -> None:
        self._product, self._version, self._url = product, version, url
        self._interfaces: dict[str, Interface] = {name: load(name) for name in (varlink.SERVICE, *interfaces)}

    def handle(self, call: Call) -> str | None:
        """The short name of the method that the application has to answer ("Boot"); None when it is answered."""
        interface_name, _, method = call.method.rpartition(".")
        interface = self._interfaces.get(interface_name)
        if interface is None:
            call.error(varlink.INTERFACE_NOT_FOUND, {"interface": interface_name})
        elif method not in interface.methods:
            call.error(varlink.METHOD_NOT_FOUND, {"method": call.method})
        elif self._valid(call, interface, method):
            if interface_name != varlink.SERVICE:
                return method
            self._serve(call, method)
        return None

    def _valid(self, call: Call, interface: Interface, method: str) -> bool:
        try:
            interface.check(interface.methods[method].takes, call.parameters)
        except ParameterError as error:
            call.error(varlink.INVALID_PARAMETER, {"parameter": str(error)})
            return False
        return True

    def _serve(self, call: Call, method: str) -> None:
        if method == "GetInfo":
            call.reply(
                {
                    "vendor": "zonemgr",
                    "product": self._product,
                    "version": self._version,
                    "url": self._url,
                    "interfaces": list(self._interfaces),
                }
            )
            return
        wanted = call.parameters["interface"]
        if wanted in self._interfaces:
            call.reply({"description": self._interfaces[wanted].text})
        else:
            call.error(varlink.INTERFACE_NOT_FOUND, {"interface": wanted})
