"""Who is at the other end of a door, and whether that process may ask (design, section 8).

A caller is root of the host: uid 0, CAP_SYS_ADMIN in effect, in our own user and pid namespaces.  Its mount namespace
may differ (a service with a private /tmp is still the host's).  Everything is read while a pidfd proves that the pid
still is the process which connected.
"""

from __future__ import annotations

import os
import select
import socket
import struct
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Final

from zonemgr.errors import ZoneError

SO_PEERPIDFD: Final = 77  # since Linux 6.5
CAP_SYS_ADMIN: Final = 21
_CREDENTIALS: Final = struct.Struct("iII")


class CallerError(ZoneError):
    """The process that connected may not ask anything here."""


@dataclass(frozen=True, slots=True)
class Caller:
    """The process that connected, as it was then.  ``pid`` is for messages; it may be gone."""

    pid: int
    uid: int


class _Handle:
    """A pidfd with its own ``close``."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def alive(self) -> bool:
        """The process has not ended."""
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        return not poll.poll(0)

    def close(self) -> None:
        os.close(self.fd)


def check(connection: socket.socket) -> Caller:
    """The caller behind a connection that was just accepted.  Raises CallerError for everyone but the host's root."""
    with examined(connection) as (caller, _folder_fd):
        return caller


def check_user(connection: socket.socket) -> Caller:
    """Any user of the host, in our own user and pid namespaces.  CallerError for a process of a zone or container."""
    with _identified(connection) as (caller, handle, folder_fd):
        _check_namespaces(caller.pid, handle, folder_fd)
        return caller


@contextmanager
def examined(connection: socket.socket) -> Iterator[tuple[Caller, int]]:
    """As ``check``, with a descriptor of the caller's folder in /proc, which stays that process's.  CallerError."""
    with _identified(connection) as (caller, handle, folder_fd):
        if caller.uid != 0:
            raise CallerError("insufficient privileges: uid {uid}, pid {pid}", uid=caller.uid, pid=caller.pid)
        _check_process(caller.pid, handle, folder_fd)
        yield caller, folder_fd


@contextmanager
def _identified(connection: socket.socket) -> Iterator[tuple[Caller, _Handle, int]]:
    """The caller, a handle on it and its folder in /proc.  CallerError when nobody can tell who it is."""
    pid, uid, _ = _CREDENTIALS.unpack(
        connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    )
    if pid <= 0:
        raise CallerError("insufficient privileges: a process of another pid namespace")
    try:
        with closing(_handle(connection, pid)) as handle:
            folder_fd = os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                yield Caller(pid, uid), handle, folder_fd
            finally:
                os.close(folder_fd)
    except OSError as error:  # it ended meanwhile, or /proc hides it: either way nobody vouches for it
        raise CallerError("cannot tell who pid {pid} is: {why}", pid=pid, why=error.strerror) from error


def _handle(connection: socket.socket, pid: int) -> _Handle:
    try:
        return _Handle(connection.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD))
    except OSError:
        return _opened(connection, pid)


def _opened(connection: socket.socket, pid: int) -> _Handle:
    """Before Linux 6.5: the pid could have been reused, which needs the caller to have gone; so it must be here yet."""
    handle = _Handle(os.pidfd_open(pid))
    poll = select.poll()
    poll.register(connection, 0)
    if poll.poll(0):
        handle.close()
        raise CallerError("pid {pid} has left", pid=pid)
    return handle


def _check_process(pid: int, handle: _Handle, folder_fd: int) -> None:
    _check_namespaces(pid, handle, folder_fd)
    if not _effective(folder_fd) >> CAP_SYS_ADMIN & 1:
        raise CallerError("insufficient privileges: pid {pid} lacks CAP_SYS_ADMIN", pid=pid)


def _check_namespaces(pid: int, handle: _Handle, folder_fd: int) -> None:
    # The folder stays with the process it was opened for; what matters is that this is ours.
    if not handle.alive():
        raise CallerError("pid {pid} has left", pid=pid)
    for kind in ("user", "pid"):
        if os.stat(f"ns/{kind}", dir_fd=folder_fd).st_ino != os.stat(f"/proc/self/ns/{kind}").st_ino:
            raise CallerError(
                "insufficient privileges: pid {pid}, other {kind} namespace", pid=pid, kind=kind
            )


def _effective(folder_fd: int) -> int:
    """The effective capabilities as a bit mask."""
    status_fd = os.open("status", os.O_RDONLY, dir_fd=folder_fd)
    with open(status_fd, encoding="ascii", errors="replace") as status:
        for line in status:
            if line.startswith("CapEff:"):
                return int(line.split()[1], 16)
    return 0
