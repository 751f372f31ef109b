"""The trusted path into an immutable zone: a view of its file tree in which the root can be written.

It is made from the tree that zsched holds, whose mounts are the host's and not locked, and belongs to one session
alone: nothing of it shows in the zone.  Whoever uses it is in a pid namespace of its own, so that no process of the
zone can see it, trace it, or reach the view through its /proc.

Deliberately not here: entering (``enter``), and which folders are frozen (``platform.compose``).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from typing import Final

from zonemgr.linux import mounts, namespaces, paths

# What the zone itself may have written: without ``unsafe`` nothing there is executed.
_UNTRUSTED: Final = ("/etc", "/root", "/var", "/tmp", "/run", "/dev/shm")
_PROC: Final = mounts.ATTR_NOSUID | mounts.ATTR_NODEV | mounts.ATTR_NOEXEC


def take_view(m0_fd: int, frozen: Sequence[str], unsafe: bool) -> None:
    """Enter the view, with the host's credentials and in the new pid namespace already.  OSError."""
    namespaces.setns(m0_fd, namespaces.NEWNS)
    namespaces.unshare(namespaces.NEWNS)
    mounts.set_propagation("/", mounts.PRIVATE, recursive=True)
    root_fd = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for folder in frozen:
            _change(root_fd, folder, clear=mounts.ATTR_RDONLY)
        for folder in () if unsafe else _UNTRUSTED:
            if folder not in frozen:
                _change(root_fd, folder, set=mounts.ATTR_NOEXEC | mounts.ATTR_NOSUID)
        proc_fd = mounts.make_filesystem("proc", {}, attributes=_PROC)
        place_fd = paths.open_beneath(root_fd, "/proc", os.O_PATH | os.O_DIRECTORY)
        mounts.move_mount(proc_fd, place_fd)
        os.close(place_fd)
        os.close(proc_fd)
    finally:
        os.close(root_fd)


def _change(root_fd: int, folder: str, *, set: int = 0, clear: int = 0) -> None:
    """Change a mount's attributes; nothing to do where there is no folder, or no mount."""
    try:
        folder_fd = paths.open_beneath(root_fd, folder, os.O_PATH | os.O_DIRECTORY)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return
        raise
    try:
        mounts.set_attributes(folder_fd, set=set, clear=clear)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(folder_fd)
