"""Locks between processes: flock on a file that is never removed while somebody may wait for it.

A lock ends with its holder, however it dies; a child made by fork must not keep it, so ``forget`` closes a child's
copy without unlocking the parent's.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from zonemgr.errors import BusyError, PlatformError
from zonemgr.store.files import make_directory
from zonemgr.store.paths import Layout

_POLL_S = 0.02


class FileLock:
    """A lock on a file, exclusive unless ``shared``.  As a context manager it waits at most ``deadline_s``, then raises
    BusyError.
    """

    def __init__(
        self, path: Path, *, busy: str | None = None, deadline_s: float = 30.0, shared: bool = False
    ) -> None:
        self.path = path
        self.kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        self.busy = busy or f"{path} is locked by another process"
        self.deadline_s = deadline_s
        self._fd = -1

    @property
    def held(self) -> bool:
        return self._fd >= 0

    def fileno(self) -> int:
        return self._fd

    def acquire(self, blocking: bool = True) -> bool:
        """Take the lock; without ``blocking`` return False at once when it is taken.  Raises PlatformError."""
        if self.held:
            return True
        make_directory(self.path.parent)
        while True:
            fd = self._open()
            try:
                fcntl.flock(fd, self.kind if blocking else self.kind | fcntl.LOCK_NB)
            except OSError as error:
                os.close(fd)
                if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                    return False
                raise PlatformError(
                    "cannot lock {path}: {why}", path=self.path, why=error.strerror
                ) from error
            except BaseException:
                os.close(fd)
                raise
            if self._is_current(fd):
                self._fd = fd
                return True
            os.close(fd)  # the file was removed while we waited: the lock we got protects nothing

    def _open(self) -> int:
        try:
            return os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise PlatformError("cannot open {path}: {why}", path=self.path, why=error.strerror) from error

    def _is_current(self, fd: int) -> bool:
        try:
            there = os.stat(self.path, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return os.path.samestat(there, os.fstat(fd))

    def release(self) -> None:
        """Give the lock back."""
        if self.held:
            fcntl.flock(self._fd, fcntl.LOCK_UN)
            os.close(self._fd)
            self._fd = -1

    def forget(self) -> None:
        """In a forked child: close the copy; the parent keeps the lock."""
        if self.held:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        deadline = time.monotonic() + self.deadline_s
        while not self.acquire(blocking=False):
            if time.monotonic() >= deadline:
                raise BusyError("{busy}", busy=self.busy)
            time.sleep(_POLL_S)  # flock has no time-out; a signal-based one would not compose
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def use_lock(layout: Layout, name: str, *, shared: bool) -> FileLock:
    """Held shared by whoever reads the files of a zone that does not run, exclusively by a zone that comes up: until
    others can see that it is active.
    """
    busy = (
        "the zone comes up just now"
        if shared
        else "the zone's files are being copied: wait for clone or export"
    )
    return FileLock(layout.zone_run(name) / "use.lock", busy=busy, deadline_s=0.0, shared=shared)
