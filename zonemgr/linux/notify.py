"""The socket by which an init tells its manager how far it is (sd_notify(3)), and what may come out of it.

Whoever may write to it may be hostile: what is read has a limit, nothing is answered, and descriptors that are sent
along are never taken.  Deliberately not here: what messages mean (``supervisor.notices``).
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
from typing import Final

NAME: Final = "notify"
MESSAGE_MAX: Final = 4096
_PASSRIGHTS: Final = 83  # Linux 6.16; Python has no name for it
_RIGHTS_ROOM: Final = socket.CMSG_SPACE(253 * 4)  # as many as one message can have


def listen(folder_fd: int, owner: int) -> int:
    """A datagram socket ``notify`` in an open folder, for this user alone; its descriptor does not block."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as sock:
        with contextlib.suppress(OSError):  # an older kernel: ``receive`` takes care
            sock.setsockopt(socket.SOL_SOCKET, _PASSRIGHTS, 0)
        sock.bind(f"/proc/self/fd/{folder_fd}/{NAME}")
        os.chmod(NAME, 0o600, dir_fd=folder_fd)
        os.chown(NAME, owner, owner, dir_fd=folder_fd, follow_symlinks=False)
        return sock.detach()


def receive(sock: socket.socket) -> tuple[bytes, list[int]]:
    """The next message, cut to what may be told, and descriptors that came with it.  BlockingIOError: none is there.

    Such descriptors are best left open until the process ends: to close a socket of somebody else's can take as long as
    he likes (SO_LINGER), but for a process that ends.
    """
    text, rights, _flags, _address = sock.recvmsg(MESSAGE_MAX, _RIGHTS_ROOM, socket.MSG_CMSG_CLOEXEC)
    descriptors = array.array("i")
    for _level, _kind, data in rights:
        descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
    return text, descriptors.tolist()
