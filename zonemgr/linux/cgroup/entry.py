"""Where a process that enters a running zone is born.

The zone's payload folder itself, as long as its guest has handed no controllers down.  Once it has (systemd
does), cgroup2 allows no processes in that folder (EBUSY): then a leaf of our own below it, which goes with the
zone.
"""

from __future__ import annotations

import os

LEAF = "zlogin"


def entry_fd(payload: str | os.PathLike[str]) -> int:
    """A new close-on-exec descriptor of the folder for clone3(CLONE_INTO_CGROUP).  OSError when the zone is gone."""
    payload_fd = os.open(payload, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if not _handed_down(payload_fd):
            return os.dup(payload_fd)
        try:
            os.mkdir(LEAF, 0o755, dir_fd=payload_fd)
        except FileExistsError:
            pass  # an earlier login made it, or the guest, whose right it is
        return os.open(LEAF, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=payload_fd)
    finally:
        os.close(payload_fd)


def _handed_down(payload_fd: int) -> bool:
    control_fd = os.open("cgroup.subtree_control", os.O_RDONLY | os.O_CLOEXEC, dir_fd=payload_fd)
    try:
        return bool(os.read(control_fd, 4096).strip())
    finally:
        os.close(control_fd)
