"""Starting a launcher for the next run, at the end of one that had to do without: nobody waits for it."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from zonemgr.errors import ZoneError
from zonemgr.store import settings
from zonemgr.store.paths import Layout
from zonemgr.wire import start

LOCK = "launcher.lock"
_NAMESPACES = ("mnt", "net", "uts", "ipc", "pid", "user", "cgroup")


def in_background(root: str) -> None:
    """Start the instance's launcher unless it has one, or wants none.  Never an error: the run has had its result."""
    try:
        layout = Layout.at(root)
        if layout.etc.is_dir() and _is_wanted(layout) and not _is_there(layout.run / LOCK):
            _spawn(layout)
    except (OSError, ZoneError):
        return


def _is_wanted(layout: Layout) -> bool:
    """The host's own launcher is for the host's processes: one that sees other files or links would refuse them all."""
    if not layout.suffix and not all(map(_is_the_hosts, _NAMESPACES)):
        return False
    return not layout.settings.exists() or settings.load(layout).launcher_idle_s > 0


def _is_the_hosts(kind: str) -> bool:
    return os.path.samestat(os.stat(f"/proc/self/ns/{kind}"), os.stat(f"/proc/1/ns/{kind}"))


def _is_there(lock: Path) -> bool:
    """One lives, or starts."""
    try:
        lock_fd = os.open(lock, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock_fd)
    return False


def _spawn(layout: Layout) -> None:
    words = start.program("zonemgr.launcher", "--root", str(layout.root))
    null = [
        (os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in (0, 1, 2)
    ]  # what it has to say nobody would read
    os.posix_spawn(
        words[0],
        words,
        start.environment(),
        file_actions=null,
        setsid=True,
        setsigmask=(),
        setsigdef=start.DEFAULTS,
    )
