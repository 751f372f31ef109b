"""Tell the kernel's audit log that a zone was booted or rebooted (a VIRT_CONTROL user message, as libvirt sends).

Auditing is optional everywhere: a host without it, or a caller that may not write to it, is not an error.
Deliberately not here: reading the log, and audit rules.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import struct
import sys

_NETLINK_AUDIT = 9
_AUDIT_VIRT_CONTROL = 2500
_NLM_F_REQUEST, _NLM_F_ACK = 1, 4
_NLMSG_ERROR = 2
_HEADER = struct.Struct("=IHHII")

# Audit is compiled out, off, owned by another namespace, or not ours to write to.
_NO_AUDIT = frozenset(
    (errno.EPERM, errno.ECONNREFUSED, errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT, errno.EINVAL, errno.ENOENT)
)

_OPERATIONS = {"boot": "start", "reboot": "start", "halt": "stop"}


def record(
    zonename: str,
    new_state: str,
    success: bool,
    *,
    caller_pid: int | None = None,
    caller_uid: int | None = None,
) -> OSError | None:
    """Write one record; the caller is who asked for the change (the kernel adds who wrote the record).

    Returns None when it is written or this host has no audit, else the failure, for a warning: it never raises.
    """
    try:
        _send(_text(zonename, new_state, success, caller_pid, caller_uid))
    except OSError as error:
        return None if error.errno in _NO_AUDIT else error
    return None


def _text(
    zonename: str, new_state: str, success: bool, caller_pid: int | None, caller_uid: int | None
) -> str:
    fields = {
        "virt": "zonemgr",
        "op": _OPERATIONS.get(new_state, new_state),
        "reason": new_state,
        "vm": _quoted(zonename),
        "caller-pid": caller_pid,
        "caller-uid": caller_uid,
        "exe": _quoted(sys.executable),
        "hostname": "?",
        "addr": "?",
        "terminal": "?",
        "res": "success" if success else "failed",
    }
    return " ".join(f"{key}={value}" for key, value in fields.items() if value is not None)


def _quoted(text: str) -> str:
    """The log's own way with text that somebody chose: quoted if plain, else in hexadecimal."""
    return f'"{text}"' if re.fullmatch(r"[!#-~]+", text) else os.fsencode(text).hex().upper()


def _send(text: str) -> None:
    payload = text.encode() + b"\0"
    flags = _NLM_F_REQUEST | _NLM_F_ACK
    header = _HEADER.pack(_HEADER.size + len(payload), _AUDIT_VIRT_CONTROL, flags, 1, 0)
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
    with socket.socket(socket.AF_NETLINK, kind, _NETLINK_AUDIT) as channel:
        channel.settimeout(2)  # the kernel answers within the call; a full backlog makes it wait
        channel.sendto(header + payload, (0, 0))
        answer = channel.recv(4096)
    _, message_type, _, _, _ = _HEADER.unpack_from(answer)
    if message_type == _NLMSG_ERROR:
        (code,) = struct.unpack_from("=i", answer, _HEADER.size)
        if code:
            raise OSError(-code, os.strerror(-code))
