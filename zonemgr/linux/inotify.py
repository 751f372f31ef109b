"""Waiting until something happens in a folder.

Deliberately small: no recursion; what happened is looked up by the caller, who alone knows what
matters.
"""

from __future__ import annotations

import os
import select
import struct
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from zonemgr.linux import libc

MODIFY = 0x002
ATTRIB = 0x004
CLOSE_WRITE = 0x008
MOVED_FROM = 0x040
MOVED_TO = 0x080
CREATE = 0x100
DELETE = 0x200
DELETE_SELF = 0x400
MOVE_SELF = 0x800
OVERFLOW = 0x4000
IGNORED = 0x8000

CHANGES = MODIFY | CREATE | DELETE | MOVED_FROM | MOVED_TO | DELETE_SELF

_HEAD = struct.Struct("iIII")
_BUFFER_BYTES = 65536


@dataclass(frozen=True, slots=True)
class Event:
    """Something happened to ``name`` in the folder ("" for the folder itself)."""

    name: str
    mask: int


class Inotify:
    """A watch on one folder (or file), from its making until ``close``."""

    def __init__(self, path: str | os.PathLike[str], mask: int = CHANGES) -> None:
        self._fd = libc.call("inotify_init1", os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            libc.call("inotify_add_watch", self._fd, os.fspath(path), mask)
        except OSError:
            self.close()
            raise

    def add(self, path: str | os.PathLike[str], mask: int = CHANGES) -> None:
        """Watch this one too; events do not tell of which folder they are.  OSError."""
        libc.call("inotify_add_watch", self._fd, os.fspath(path), mask)

    def fileno(self) -> int:
        """For poll and select."""
        return self._fd

    def read(self) -> list[Event]:
        """What happened since the last call; empty when nothing did."""
        try:
            data = os.read(self._fd, _BUFFER_BYTES)
        except BlockingIOError:
            return []
        events, offset = [], 0
        while offset < len(data):
            _watch, mask, _cookie, length = _HEAD.unpack_from(data, offset)
            offset += _HEAD.size
            name = data[offset : offset + length].rstrip(b"\0")
            offset += length
            events.append(Event(os.fsdecode(name), mask))
        return events

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until something happens, and forget what it was.  False when the time is up."""
        poller = select.poll()
        poller.register(self._fd, select.POLLIN)
        if not poller.poll(None if timeout_s is None else max(0, int(timeout_s * 1000))):
            return False
        self.read()
        return True

    def close(self) -> None:
        """Stop watching."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
