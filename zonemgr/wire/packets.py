"""Private packets between a supervisor, its worker and zsched: one JSON head, raw bytes behind it, and file
descriptors.

SOCK_SEQPACKET keeps the boundaries, so there is no framing to get wrong.  Not for strangers: both ends are ours
and root's (the sockets are inherited or lie in a 0700 folder); the public door speaks varlink.
"""

from __future__ import annotations

import array
import json
import os
import socket
from collections.abc import Iterable
from typing import Any

PACKET_MAX = 160 * 1024  # bytes; the largest is a 64 KiB console ring behind its head
FDS_MAX = 32  # there are a dozen and a half v1 controllers


def pair() -> tuple[socket.socket, socket.socket]:
    """Two connected packet sockets."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(sock: socket.socket, head: dict[str, Any], fds: Iterable[int] = (), tail: bytes = b"") -> None:
    """Send one packet.  OSError when the other end is gone."""
    data = json.dumps(head, separators=(",", ":")).encode() + b"\n" + tail
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sock.sendmsg([data], rights, socket.MSG_NOSIGNAL)


def receive(sock: socket.socket) -> tuple[dict[str, Any], list[int], bytes] | None:
    """Receive one packet: head, descriptors (close-on-exec), tail.  None at end of file.

    TimeoutError by the socket's time-out; ValueError for nonsense.
    """
    # Its length first: a buffer for the largest would be mapped and unmapped each time.
    length = sock.recv_into(bytearray(1), 1, socket.MSG_PEEK | socket.MSG_TRUNC)
    data, ancillary, _flags, _address = sock.recvmsg(
        min(length, PACKET_MAX) + 1, socket.CMSG_SPACE(FDS_MAX * 4), socket.MSG_CMSG_CLOEXEC
    )
    fds: list[int] = []
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            rights = array.array("i")
            rights.frombytes(payload[: len(payload) - len(payload) % rights.itemsize])
            fds.extend(rights)
    if not data:
        close_all(fds)
        return None
    text, _newline, tail = data.partition(b"\n")
    try:
        head = json.loads(text)
        if not isinstance(head, dict):
            raise ValueError("a packet without a head")
    except (ValueError, RecursionError):
        close_all(fds)
        raise ValueError("not a packet") from None
    return head, fds, tail


def close_all(fds: Iterable[int]) -> None:
    """Close descriptors that are not wanted."""
    for descriptor in fds:
        os.close(descriptor)


def listen(folder_fd: int, name: str) -> socket.socket:
    """A listening packet socket called ``name`` in an open folder (its path may be longer than a socket address)."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        os.unlink(name, dir_fd=folder_fd)
    except FileNotFoundError:
        pass
    sock.bind(f"/proc/self/fd/{folder_fd}/{name}")
    sock.listen(8)
    return sock


def connect(folder_fd: int, name: str, timeout_s: float) -> socket.socket:
    """Connect to the packet socket ``name`` in an open folder.  OSError when nobody listens."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        sock.settimeout(timeout_s)
        sock.connect(f"/proc/self/fd/{folder_fd}/{name}")
    except OSError:
        sock.close()
        raise
    return sock
