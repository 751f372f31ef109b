"""A fork of the launcher that has no work yet: forked, and warmed, before somebody waits for it.

Half of what a short run costs are the pages that a fresh fork copies when it first writes to them, which with
reference counts is whenever it looks at an object.  A spare has done so already.  It waits for a connection, which it
gets through a socket pair, and then is what any other fork would have become; when the launcher is gone, it goes.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NoReturn

from zonemgr.errors import Exit
from zonemgr.launcher import fork
from zonemgr.launcher.fork import Place
from zonemgr.linux import process
from zonemgr.linux.cgroup import supervisors
from zonemgr.wire import launch

_DEATH_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class Spare:
    """The launcher's end of it."""

    pid: int
    channel: socket.socket

    def give(self, connection: socket.socket) -> bool:
        """Let it work for this caller; False when it is gone."""
        rights = connection.fileno().to_bytes(4, sys.byteorder)
        try:
            self.channel.sendmsg([b"C"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)], socket.MSG_NOSIGNAL)
        except OSError:
            return False
        finally:
            self.channel.close()
        return True

    def close(self) -> None:
        """Let it go; it ends by itself."""
        self.channel.close()


def make(home: fork.Home, place: Place, drop: Callable[[], None]) -> Spare:
    """Fork one for that place.

    ``drop`` is called in it and gives up what was the launcher's own.  OSError when there can be none.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        if place is Place.SUPERVISORS:
            pid, pid_fd = supervisors.clone_into(home.hierarchy, "zonemgr" + home.layout.suffix)
        else:
            pid, pid_fd = process.clone3(0)
        if pid == 0:
            _be(theirs, home, place, drop)
        os.close(pid_fd)
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    return Spare(pid, ours)


def _be(channel: socket.socket, home: fork.Home, place: Place, drop: Callable[[], None]) -> NoReturn:
    """The child's side: never returns."""
    connection: socket.socket | None = None
    launcher_fd = os.pidfd_open(os.getppid())
    try:
        drop()
        process.close_fds([0, 1, 2, channel.fileno(), launcher_fd])
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        fork.warm_up(home, place)
        connection = _given(channel)
        channel.close()
    finally:
        if connection is None:
            process.wait_pidfd(launcher_fd, _DEATH_S)  # killed, it is still there when its descriptors are not
            supervisors.leave("zonemgr" + home.layout.suffix, home.hierarchy)
            os._exit(int(Exit.OK))
    fork.become(connection, home, place)


def _given(channel: socket.socket) -> socket.socket | None:
    _data, ancillary, _flags, _address = channel.recvmsg(1, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC)
    fds = launch.received(ancillary)
    return socket.socket(fileno=fds[0]) if fds else None
