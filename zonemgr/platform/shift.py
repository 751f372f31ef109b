"""Shifting a zone's root by chown, once, where its file system cannot map ids at the mount (overlay, NFS).

Every owner and group below 65536 moves up by the zone's base; what lies in the zone's range already has been
moved, so an interrupted shift is simply run again.  The index entry says that it was done: such a root is
mounted without a map.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from zonemgr.errors import PlatformError
from zonemgr.model.states import IDS_PER_ZONE


def shift_tree(root: Path, base: int) -> int:
    """Shift a tree; returns how many objects were moved.  PlatformError for an owner that is neither here nor
    there.
    """
    moved = 0
    for _path, folders, files, folder_fd in os.fwalk(root, follow_symlinks=False):
        moved += _shift(".", folder_fd, base)
        for name in files + [name for name in folders if stat.S_ISLNK(_status(name, folder_fd).st_mode)]:
            moved += _shift(name, folder_fd, base)
    return moved


def _status(name: str, folder_fd: int) -> os.stat_result:
    return os.stat(name, dir_fd=folder_fd, follow_symlinks=False)


def _shift(name: str, folder_fd: int, base: int) -> int:
    status = _status(name, folder_fd)
    uid, gid = _moved(status.st_uid, base, name), _moved(status.st_gid, base, name)
    if (uid, gid) == (status.st_uid, status.st_gid):
        return 0
    os.chown(name, uid, gid, dir_fd=folder_fd, follow_symlinks=False)
    if status.st_mode & (stat.S_ISUID | stat.S_ISGID) and not stat.S_ISLNK(status.st_mode):
        os.chmod(name, stat.S_IMODE(status.st_mode), dir_fd=folder_fd)  # chown takes these bits away
    return 1


def _moved(owner: int, base: int, name: str) -> int:
    if base <= owner < base + IDS_PER_ZONE:
        return owner
    if owner >= IDS_PER_ZONE:
        raise PlatformError(
            "cannot shift '{name}': its owner {owner} is outside of the zone's ids", name=name, owner=owner
        )
    return owner + base
