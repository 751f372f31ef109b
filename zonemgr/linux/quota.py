"""Disk space of a folder, where its file system can hold it to a size.

ext4 (with the feature ``project``), xfs and f2fs, mounted with ``prjquota``: a folder gets a project id that everything
made below it inherits.  A zone's root cannot change ids of projects: the kernel allows that only to the host's user
namespace.  btrfs, with its quotas enabled: the folder is a subvolume, which has an account of its own.

Deliberately not here: which id a zone has (its first user id, which no other zone has).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import struct
from dataclasses import dataclass
from typing import Final

from zonemgr.linux import cow, libc

_FSGETXATTR: Final = 0x801C581F
_FSSETXATTR: Final = 0x401C5820
_ATTRIBUTES: Final = struct.Struct(
    "=IIIII8x"
)  # struct fsxattr: flags, extent size, extents, project, cow extent size
_INHERIT: Final = 0x200
_PROJECT: Final = 2
_GETQUOTA, _SETQUOTA = 0x800007, 0x800008
_BLOCK_LIMITS: Final = 1  # QIF_BLIMITS
_BLOCK_BYTES: Final = 1024
_QGROUP_LIMIT: Final = 0x8030942B
_FS_INFO: Final = 0x8400941F
_INO_LOOKUP: Final = 0xD0009412
_MAX_REFERENCED: Final = 1  # BTRFS_QGROUP_LIMIT_MAX_RFER
_UNLIMITED: Final = (1 << 64) - 1
_NONE: Final = (errno.ENOTTY, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


class _Dqblk(ctypes.Structure):
    """struct if_dqblk of linux/quota.h."""

    _fields_ = [
        *(
            (name, ctypes.c_uint64)
            for name in ("hard", "soft", "space", "inode_hard", "inode_soft", "inodes")
        ),
        *((name, ctypes.c_uint64) for name in ("block_time", "inode_time")),
        ("valid", ctypes.c_uint32),
    ]


@dataclass(frozen=True, slots=True)
class Quota:
    """What a project uses and may use; ``limit_bytes`` None is no limit."""

    used_bytes: int
    limit_bytes: int | None


def is_held(path: str, project: int) -> bool:
    """Whether the folder has been given a quota by ``hold``, which may have to be lifted."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        if cow.is_subvolume(fd):
            return _read_subvolume(fd).limit_bytes is not None
        return _attributes(fd)[3] == project
    except OSError:
        return False
    finally:
        os.close(fd)


def read(path: str, project: int) -> Quota:
    """What the file system below ``path`` knows of the folder's account.  OSError where it keeps none."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return _read_subvolume(fd) if cow.is_subvolume(fd) else _read_project(fd, project)
    finally:
        os.close(fd)


def hold(path: str, project: int, limit_bytes: int | None) -> Quota:
    """Hold a folder, and all below it on the same file system, to the limit; None lifts it.

    Idempotent: a folder that has the project already is not walked again.  OSError.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if cow.is_subvolume(fd):
            return _hold_subvolume(fd, limit_bytes)
        _read_project(fd, project)  # before anything is changed: does it keep accounts at all?
        if _attributes(fd)[3] != project:
            _mark_below(fd, project)
        blocks = 0 if limit_bytes is None else max(1, limit_bytes // _BLOCK_BYTES)
        _quotactl(fd, _SETQUOTA, project, _Dqblk(hard=blocks, soft=0, valid=_BLOCK_LIMITS))
        return _read_project(fd, project)
    finally:
        os.close(fd)


# -- subvolumes of btrfs --------------------------------------------------------------------------------------------


def _hold_subvolume(fd: int, limit_bytes: int | None) -> Quota:
    """Nothing is enabled here: accounts cost a file system dearly, so whether it keeps any is its administrator's."""
    _read_subvolume(fd)
    most = _UNLIMITED if limit_bytes is None else limit_bytes
    # struct btrfs_ioctl_qgroup_limit_args: group 0 is that of the descriptor's subvolume
    fcntl.ioctl(fd, _QGROUP_LIMIT, struct.pack("=QQQQQQ", 0, _MAX_REFERENCED, most, 0, 0, 0))
    return _read_subvolume(fd)


def _read_subvolume(fd: int) -> Quota:
    info = bytearray(1024)
    fcntl.ioctl(fd, _FS_INFO, info)
    digits = bytes(info[16:32]).hex()
    identity = "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
    place = bytearray(struct.pack("=QQ4080x", 0, 256))
    fcntl.ioctl(fd, _INO_LOOKUP, place)
    (tree,) = struct.unpack_from("=Q", place)
    folder = f"/sys/fs/btrfs/{identity}/qgroups/0_{tree}"
    try:
        used, most = (int(_line(f"{folder}/{name}")) for name in ("referenced", "max_referenced"))
        limited = int(_line(f"{folder}/limit_flags")) & _MAX_REFERENCED
    except FileNotFoundError:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP)) from None
    return Quota(used, most if limited and most != _UNLIMITED else None)


def _line(path: str) -> str:
    with open(path, encoding="ascii") as file:
        return file.read()


# -- projects -------------------------------------------------------------------------------------------------------


def _read_project(fd: int, project: int) -> Quota:
    answer = _Dqblk()
    try:
        _quotactl(fd, _GETQUOTA, project, answer)
    except FileNotFoundError:
        return Quota(0, None)  # xfs has no account of who uses nothing yet and may use all
    return Quota(answer.space, answer.hard * _BLOCK_BYTES or None)


def _quotactl(fd: int, command: int, project: int, block: _Dqblk) -> None:
    libc.call("quotactl_fd", fd, command << 8 | _PROJECT, project, ctypes.byref(block))


def _mark_below(top_fd: int, project: int) -> None:
    """The folder itself last: as long as it has no project, the walk is not done."""
    device = os.fstat(top_fd).st_dev
    for _, names, files, folder_fd in os.fwalk(".", topdown=True, dir_fd=top_fd):
        names[:] = [
            name for name in names if os.stat(name, dir_fd=folder_fd, follow_symlinks=False).st_dev == device
        ]
        for name in files:
            _mark_file(folder_fd, name, project)
        if not os.path.samestat(os.fstat(folder_fd), os.fstat(top_fd)):
            _mark(folder_fd, project, _INHERIT)
    _mark(top_fd, project, _INHERIT)


def _mark_file(folder_fd: int, name: str, project: int) -> None:
    """Regular files only: others cannot be opened without doing something, and take next to no space."""
    if not stat.S_ISREG(os.stat(name, dir_fd=folder_fd, follow_symlinks=False).st_mode):
        return
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder_fd)
    try:
        _mark(fd, project, 0)
    finally:
        os.close(fd)


def _attributes(fd: int) -> tuple[int, int, int, int, int]:
    answer = fcntl.ioctl(fd, _FSGETXATTR, bytes(_ATTRIBUTES.size))
    flags, extent, extents, project, cow = _ATTRIBUTES.unpack(answer)
    return flags, extent, extents, project, cow


def _mark(fd: int, project: int, flags: int) -> None:
    old, extent, extents, _project, cow = _attributes(fd)
    fcntl.ioctl(fd, _FSSETXATTR, _ATTRIBUTES.pack(old | flags, extent, extents, project, cow))


def lacks(error: OSError) -> bool:
    """Whether the error means that the file system keeps no accounts of projects."""
    return error.errno in (*_NONE, errno.ESRCH)
