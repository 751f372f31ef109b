"""The zone's console: one session a supervisor, one client, a ring log (reference section 5, design section 9).

Client, log and socket survive halt and reboot; each boot brings a new pty.  The socket takes two kinds of
lines:

* ``IDENT <pid> <locale> <0|1>``: be the client (1: disconnect when the zone halts); answered with ``OK``, or
  with the pid of the client there is, and then bytes in both directions;
* ``WINSIZE <pid> <rows> <columns>``: the window of the client with this pid has that size now; answered by
  closing.

Nothing here waits: a client that does not read loses its connection once 256 KiB wait for it; the zone never
blocks.
"""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Callable
from pathlib import Path

from zonemgr.errors import message, speaking
from zonemgr.linux import pty
from zonemgr.model.states import Notice
from zonemgr.supervisor.loop import Loop
from zonemgr.wire.peers import CallerError, check

IDENT_MAX = 512
PENDING_MAX = 256 * 1024
LOG_BYTES = 1024 * 1024  # of console.log; the older half is console.log.1
_CHUNK = 16384


class ConsoleLog:
    """``console.log``, bounded: when it is full it becomes ``console.log.1``."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "console.log"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._descriptor = -1
        self._size = 0

    def write(self, data: bytes) -> None:
        """Append; a full disk loses console output and nothing else."""
        try:
            if self._descriptor < 0:
                flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
                self._descriptor = os.open(self.path, flags, 0o600)
                self._size = os.fstat(self._descriptor).st_size
            os.write(self._descriptor, data)
            self._size += len(data)
            if self._size >= LOG_BYTES:
                os.rename(self.path, self.path.with_name("console.log.1"))
                os.close(self._descriptor)
                self._descriptor = -1
        except OSError:
            return  # the console goes on without its log


class Client:
    """The one that is connected."""

    def __init__(self, sock: socket.socket, pid: int, locale: str, leave_on_halt: bool) -> None:
        self.sock = sock
        self.pid = pid
        self.locale = locale
        self.leave_on_halt = leave_on_halt
        self.pending = bytearray()


class Console:
    """Serves the console socket and moves bytes between the pty and its client."""

    def __init__(
        self,
        loop: Loop,
        folder_fd: int,
        log: ConsoleLog,
        client_left: Callable[[], None],
        *,
        served: bool = True,
    ) -> None:
        self._loop = loop
        self._log = log
        self._client_left = client_left
        self._folder_fd = os.dup(folder_fd)
        self._master_fd = -1
        self._to_zone = bytearray()
        self._window: tuple[int, int] | None = None
        self.client: Client | None = None
        self._listener = self._listen() if served else None  # an alternate root has no console

    def _listen(self) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            os.unlink("console", dir_fd=self._folder_fd)
        except FileNotFoundError:
            pass
        listener.bind(f"/proc/self/fd/{self._folder_fd}/console")
        listener.listen(4)
        self._loop.watch(listener.fileno(), self._accept)
        return listener

    # -- the pty --------------------------------------------------------------------------------------------

    def set_pty(self, master_fd: int, backlog: bytes = b"") -> None:
        """Read from this master from now on (the console owns it); ``backlog`` is what was printed meanwhile."""
        self.drop_pty()
        self._master_fd = master_fd
        os.set_blocking(master_fd, False)
        if self._window:
            self._resize()
        if backlog:
            self._from_zone(backlog)
        self._watch_master()

    def drop_pty(self) -> None:
        """The pty's zone is gone: read what it still holds, and close it."""
        if self._master_fd < 0:
            return
        while self._read_master():
            pass
        if self._master_fd >= 0:
            self._loop.forget(self._master_fd)
            os.close(self._master_fd)
            self._master_fd = -1
        self._to_zone.clear()

    def _watch_master(self) -> None:
        events = select.POLLIN | (select.POLLOUT if self._to_zone else 0)
        self._loop.watch(self._master_fd, self._master_ready, events)

    def _master_ready(self, events: int) -> None:
        if events & (select.POLLIN | select.POLLHUP | select.POLLERR) and not self._read_master():
            if events & (select.POLLHUP | select.POLLERR):
                self._loop.forget(self._master_fd)
                return
        if self._master_fd >= 0 and self._to_zone:
            self._feed_zone()

    def _read_master(self) -> bool:
        try:
            data = os.read(self._master_fd, _CHUNK)
        except OSError:
            return False
        if data:
            self._from_zone(data)
        return bool(data)

    def _from_zone(self, data: bytes) -> None:
        self._log.write(data)
        self._to_client(data)

    def _feed_zone(self) -> None:
        try:
            sent = os.write(self._master_fd, self._to_zone)
        except BlockingIOError:
            sent = 0
        except OSError:
            sent = len(self._to_zone)
        del self._to_zone[:sent]
        self._watch_master()

    def _resize(self) -> None:
        if self._master_fd >= 0 and self._window:
            pty.set_window(self._master_fd, *self._window)

    # -- clients --------------------------------------------------------------------------------------------

    def _accept(self, _events: int) -> None:
        assert self._listener is not None
        try:
            sock, _address = self._listener.accept()
        except OSError:
            return
        sock.setblocking(False)
        try:
            check(sock)
        except CallerError:
            sock.close()
            return
        text = bytearray()
        deadline = self._loop.after(10, lambda: self._dismiss(sock))

        def read(_events: int) -> None:
            if self._read_line(sock, text):
                self._loop.forget(sock.fileno())
                deadline.cancel()
                self._greet(sock, bytes(text))

        self._loop.watch(sock.fileno(), read)

    def _dismiss(self, sock: socket.socket) -> None:
        if sock.fileno() >= 0:
            self._loop.forget(sock.fileno())
            sock.close()

    def _read_line(self, sock: socket.socket, text: bytearray) -> bool:
        """One byte at a time up to the newline: what follows it is for the zone."""
        while len(text) < IDENT_MAX:
            try:
                byte = sock.recv(1)
            except BlockingIOError:
                return False
            except OSError:
                byte = b""
            if not byte or byte == b"\n":
                return True
            text += byte
        return True

    def _greet(self, sock: socket.socket, line: bytes) -> None:
        words = line.split()
        if len(words) == 4 and words[0] == b"WINSIZE" and all(word.isdigit() for word in words[1:]):
            if self.client and self.client.pid == int(words[1]):
                self._window = (min(int(words[2]), 65535), min(int(words[3]), 65535))
                self._resize()
            sock.close()
        elif len(words) in (3, 4) and words[0] == b"IDENT" and words[1].isdigit():
            self._identify(sock, int(words[1]), words[2].decode("ascii", "replace"), words[3:] == [b"1"])
        else:
            sock.close()

    def _identify(self, sock: socket.socket, pid: int, locale: str, leave_on_halt: bool) -> None:
        try:
            sock.send(b"%d\n" % self.client.pid if self.client else b"OK\n")
        except OSError:
            sock.close()
            return
        if self.client is not None:
            sock.close()
            return
        self.client = Client(sock, pid, locale, leave_on_halt)
        self._watch_client()

    def _watch_client(self) -> None:
        if self.client is not None:
            events = select.POLLIN | (select.POLLOUT if self.client.pending else 0)
            self._loop.watch(self.client.sock.fileno(), self._client_ready, events)

    def _client_ready(self, events: int) -> None:
        client = self.client
        if client is None:
            return
        if events & select.POLLOUT and client.pending:
            self._flush(client)
        if self.client is client and events & (select.POLLIN | select.POLLHUP | select.POLLERR):
            self._read_client(client)

    def _read_client(self, client: Client) -> None:
        try:
            data = client.sock.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.disconnect()
            return
        if self._master_fd >= 0 and len(self._to_zone) < PENDING_MAX:
            self._to_zone += data
            self._feed_zone()

    def _to_client(self, data: bytes) -> None:
        if self.client is None:
            return
        self.client.pending += data
        self._flush(self.client)

    def _flush(self, client: Client) -> None:
        try:
            sent = client.sock.send(client.pending, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.disconnect()
            return
        del client.pending[:sent]
        if len(client.pending) > PENDING_MAX:
            self.disconnect()
            return
        self._watch_client()

    def disconnect(self) -> None:
        """Let the client go."""
        client, self.client = self.client, None
        if client is None:
            return
        self._loop.forget(client.sock.fileno())
        client.sock.close()
        self._client_left()

    # -- notices --------------------------------------------------------------------------------------------

    def notice(self, notice: Notice, arguments: str = "") -> None:
        """Tell the client, never the zone (reference 5.3)."""
        if self.client is None:
            return
        leave = notice is Notice.UNINSTALLING
        with speaking(self.client.locale):
            text = message(notice.value)
            if notice in (Notice.BOOTING, Notice.REBOOTING) and arguments:
                text = message("{notice} with arguments: {arguments}", notice=text, arguments=arguments)
            elif notice is Notice.BADARGS:
                text = f"{text} {arguments}"
            elif notice in (Notice.HALTED, Notice.BOOTFAILED) and self.client.leave_on_halt:
                text, leave = message("{notice}.  Disconnecting...", notice=text), True
        self._to_client(f"\r\n[{text}]\r\n".encode())
        if leave:
            self.disconnect()

    def close(self) -> None:
        """The supervisor leaves: no socket, no client, no pty."""
        try:
            os.unlink("console", dir_fd=self._folder_fd)
        except FileNotFoundError:
            pass
        if self._listener is not None:
            self._loop.forget(self._listener.fileno())
            self._listener.close()
        self.drop_pty()
        self.disconnect()
        os.close(self._folder_fd)
