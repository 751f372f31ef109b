"""The instance's event stream: one JSON object per line in ``run/zonemgr/events.jsonl``, appended by whoever acts.

Supervisors, workers and the CLI all write here, so that ``events -f`` also sees zones without a supervisor.  The
file is bounded: over a limit it becomes ``events.jsonl.1`` and a new one begins.  Nothing waits for a reader.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from zonemgr.errors import PlatformError
from zonemgr.store import files
from zonemgr.store.paths import Layout

LIMIT_BYTES: Final = 1 << 20
_RECORD_LIMIT_BYTES: Final = 16 << 10


def events_path(layout: Layout) -> Path:
    """The file that grows."""
    return layout.run / "events.jsonl"


def older_path(layout: Layout) -> Path:
    """The file that was full."""
    return layout.run / "events.jsonl.1"


def publish(layout: Layout, record: Mapping[str, Any], *, limit_bytes: int = LIMIT_BYTES) -> None:
    """Append one event; a ``time`` (seconds since the epoch) is added when it has none.  Raises PlatformError."""
    stamped = dict(record) if "time" in record else {"time": round(time.time(), 3), **record}
    line = (json.dumps(stamped, ensure_ascii=False) + "\n").encode()
    if len(line) > _RECORD_LIMIT_BYTES:
        short = {key: stamped[key] for key in ("time", "type", "zonename") if key in stamped}
        line = (json.dumps({**short, "truncated": True}) + "\n").encode()
    try:
        _append(layout, line, limit_bytes)
    except OSError as error:
        raise PlatformError(
            "cannot write {path}: {why}", path=events_path(layout), why=error.strerror
        ) from error


def publish_best_effort(layout: Layout, record: Mapping[str, Any]) -> None:
    """``publish`` after something that is done and stays done, whether or not it can be told (a full /run)."""
    with contextlib.suppress(PlatformError):
        publish(layout, record)


def _append(layout: Layout, line: bytes, limit_bytes: int) -> None:
    path = events_path(layout)
    files.make_directory(path.parent)
    while True:
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            # Held for one write: it makes rotation and appending exclude each other.
            fcntl.flock(fd, fcntl.LOCK_EX)
            if not _is_at(path, fd):
                continue
            if os.fstat(fd).st_size + len(line) > limit_bytes:
                os.rename(path, older_path(layout))
                continue
            os.write(fd, line)
            return
        finally:
            os.close(fd)


def _is_at(path: Path, fd: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(fd))
    except FileNotFoundError:
        return False


def recorded(layout: Layout) -> Iterator[dict[str, Any]]:
    """The events there are, oldest first; damaged lines are passed over."""
    for path in (older_path(layout), events_path(layout)):
        yield from _records((files.read_bytes(path) or b"").splitlines())


def _records(lines: list[bytes]) -> Iterator[dict[str, Any]]:
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            yield record


class Follower:
    """Reads events as they are appended, also across rotations.  ``poll`` never blocks; a caller waits on
    ``linux.inotify`` for the folder and then polls."""

    def __init__(self, layout: Layout, *, from_start: bool = False) -> None:
        self._path = events_path(layout)
        self._fd = -1
        self._rest = b""
        self._open()
        if not from_start and self._fd >= 0:
            os.lseek(self._fd, 0, os.SEEK_END)

    def _open(self) -> None:
        try:
            self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            self._fd = -1

    def poll(self) -> list[dict[str, Any]]:
        """The events since the last call."""
        events = self._read()
        if self._fd < 0 or not _is_at(self._path, self._fd):
            events += self._read()  # what came between the read and the rename
            self.close()
            self._open()
            events += self._read()
        return events

    def _read(self) -> list[dict[str, Any]]:
        if self._fd < 0:
            return []
        while chunk := os.read(self._fd, 65536):
            self._rest += chunk
        *lines, self._rest = self._rest.split(b"\n")
        return list(_records(lines))

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._rest = b""


def follow(
    layout: Layout, *, from_start: bool = False, timeout_s: float | None = None
) -> Iterator[dict[str, Any]]:
    """Events as they happen, for ever (or until nothing happened for ``timeout_s``)."""
    from zonemgr.linux.inotify import Inotify

    files.make_directory(layout.run)
    with Inotify(layout.run) as watch:  # before the first read, so that nothing falls between
        follower = Follower(layout, from_start=from_start)
        try:
            while True:
                yield from follower.poll()
                if not watch.wait(timeout_s):
                    return
        finally:
            follower.close()
