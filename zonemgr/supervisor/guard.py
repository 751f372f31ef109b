"""Who finishes a reboot whose supervisor is killed in its middle, when there is no zsched to notice it.

The guard is a fork of the supervisor that waits for one thing, the end of the supervisor, which it sees as the end of
a pipe that nobody else holds.  Then it becomes the successor, who finds in the intent what to go on with, and posts a
guard of its own; a few times, since what ends every supervisor must not start them for ever.  It lives as long as the
reboot, holds neither lock nor door, and decides nothing: a supervisor that somebody else has started meanwhile has the
lock, and the guard's leaves.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from zonemgr.linux import process

SUCCESSORS_MAX: Final = 5  # of one reboot; after them it goes on with the next command about the zone
_GONE_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Guard:
    """The supervisor's end of it."""

    pid_fd: int
    pipe_fd: int

    def dismiss(self) -> None:
        """The reboot is over.  Killed before the pipe ends, it takes that for nothing else."""
        process.pidfd_signal(self.pid_fd, signal.SIGKILL)
        process.wait_pidfd(self.pid_fd, _GONE_S)  # it sits in our control group, which the last one takes with it
        os.close(self.pipe_fd)
        os.close(self.pid_fd)


def post(zonename: str, successor: Sequence[str], drop: Callable[[], None]) -> Guard:
    """Fork a guard that runs ``successor`` when the caller has ended; ``drop`` is as for ``worker.start``.  OSError."""
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    try:
        pid, pid_fd = process.clone3()
        if pid == 0:
            _watch(zonename, successor, drop, read_fd)
    except OSError:
        os.close(write_fd)
        raise
    finally:
        os.close(read_fd)
    return Guard(pid_fd, write_fd)


def _watch(zonename: str, successor: Sequence[str], drop: Callable[[], None], read_fd: int) -> None:
    """The child: never returns."""
    try:
        signal.set_wakeup_fd(-1)
        os.setsid()
        drop()
        process.close_fds([read_fd])
        process.stdio_to_null()
        process.reset_signals()
        process.set_name("zone-guard")
        process.set_title(f"zone-guard {zonename}")
        os.read(read_fd, 1)
        os.execv(successor[0], list(successor))
    finally:
        os._exit(1)
