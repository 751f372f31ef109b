"""Mounts by descriptor (the kernel's new mount API): made detached, changed while nobody sees them, then
attached to a descriptor.

So no path is resolved twice, and none at all inside a tree that somebody else may change meanwhile.

Deliberately not here: which mounts a zone has (``platform.mounting``), and mount tables, which are never
parsed.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Mapping

from zonemgr.linux import libc
from zonemgr.linux.libc import AT_EMPTY_PATH, AT_FDCWD, AT_RECURSIVE, AT_SYMLINK_NOFOLLOW

ATTR_RDONLY = 0x00000001
ATTR_NOSUID = 0x00000002
ATTR_NODEV = 0x00000004
ATTR_NOEXEC = 0x00000008
ATTR_RELATIME = 0x00000000
ATTR_NOATIME = 0x00000010
ATTR_STRICTATIME = 0x00000020
ATTR_NODIRATIME = 0x00000080
ATTR_IDMAP = 0x00100000
ATTR_NOSYMFOLLOW = 0x00200000
_ATIME_MASK = 0x00000070  # one field of several values: it must be cleared as a whole to be set

UNBINDABLE = 1 << 17
PRIVATE = 1 << 18
SLAVE = 1 << 19
SHARED = 1 << 20

FORCE = 1
DETACH = 2
EXPIRE = 4
NOFOLLOW = 8

_OPEN_TREE_CLONE = 1
_MOVE_FROM_EMPTY = 0x04
_MOVE_TO_EMPTY = 0x40
_FSOPEN_CLOEXEC = 1
_FSMOUNT_CLOEXEC = 1
_SET_FLAG, _SET_STRING, _SET_FD, _CMD_CREATE = 0, 1, 5, 6
_LOG_LINES = 32


class _MountAttributes(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "userns_fd")]


def open_tree(
    path: str,
    *,
    dir_fd: int | None = None,
    clone: bool = True,
    recursive: bool = False,
    empty_path: bool = False,
    follow: bool = True,
) -> int:
    """A descriptor of the tree at ``path`` (with ``empty_path``: at ``dir_fd`` itself); cloned, it is a
    detached copy.
    """
    flags = os.O_CLOEXEC | (_OPEN_TREE_CLONE if clone else 0)
    flags |= (AT_RECURSIVE if recursive else 0) | (AT_EMPTY_PATH if empty_path else 0)
    flags |= 0 if follow else AT_SYMLINK_NOFOLLOW
    return libc.call("open_tree", AT_FDCWD if dir_fd is None else dir_fd, path, flags)


def move_mount(mount_fd: int, target_fd: int, target_path: str = "") -> None:
    """Attach a detached mount to the object that ``target_fd`` is, or to ``target_path`` below it (links
    not followed).
    """
    flags = _MOVE_FROM_EMPTY | (0 if target_path else _MOVE_TO_EMPTY)
    libc.call("move_mount", mount_fd, "", target_fd, target_path, flags)


_STATX_ATTR_MOUNT_ROOT = 0x2000


def _setattr(
    fd: int,
    path: str,
    at_flags: int,
    *,
    set: int = 0,
    clear: int = 0,
    propagation: int = 0,
    userns_fd: int = 0,
) -> None:
    if (set | clear) & _ATIME_MASK or set & ATTR_STRICTATIME:
        clear |= _ATIME_MASK
    attributes = _MountAttributes(set=set, clear=clear, propagation=propagation, userns_fd=userns_fd)
    libc.call("mount_setattr", fd, path, at_flags, ctypes.byref(attributes), ctypes.sizeof(attributes))


def set_attributes(
    fd: int,
    *,
    set: int = 0,
    clear: int = 0,
    propagation: int = 0,
    userns_fd: int | None = None,
    recursive: bool = False,
) -> None:
    """Change the attributes of the mount that ``fd`` is. ATTR_IDMAP takes the map of the user namespace
    ``userns_fd``.
    """
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    _setattr(fd, "", flags, set=set, clear=clear, propagation=propagation, userns_fd=userns_fd or 0)


def set_propagation(path: str, flag: int, recursive: bool = False) -> None:
    """Make the mount at ``path`` PRIVATE, SLAVE, SHARED or UNBINDABLE."""
    _setattr(AT_FDCWD, path, AT_RECURSIVE if recursive else 0, propagation=flag)


def _log(fs_fd: int) -> str:
    """The complaints that the file system left for us, without their level letters."""
    lines = []
    for _count in range(_LOG_LINES):
        try:
            line = os.read(fs_fd, 1024).decode("utf-8", "replace")
        except OSError:
            break
        if line[:2] in ("e ", "w "):
            lines.append(line[2:].strip())
    return "; ".join(lines)


def _configure(fs_fd: int, fstype: str, source: str | None, options: Mapping[str, str | None]) -> None:
    settings = {"source": source or fstype, **options}
    for key, value in settings.items():
        command = _SET_FLAG if value is None else _SET_STRING
        libc.call("fsconfig", fs_fd, command, key, value, 0)
    libc.call("fsconfig", fs_fd, _CMD_CREATE, None, None, 0)


def make_filesystem(
    fstype: str, options: Mapping[str, str | None], *, attributes: int = 0, source: str | None = None
) -> int:
    """A detached mount of a new (or, for a device, opened) file system.

    An option with the value None is a flag. OSError carries what the file system said: ENODEV for an unknown
    type.
    """
    fs_fd = libc.call("fsopen", fstype, _FSOPEN_CLOEXEC)
    try:
        _configure(fs_fd, fstype, source, options)
        return libc.call("fsmount", fs_fd, _FSMOUNT_CLOEXEC, attributes)
    except OSError as failure:
        name = (failure.strerror or "").partition(":")[0]
        raise libc.error(name, failure.errno or 0, _log(fs_fd)) from None
    finally:
        os.close(fs_fd)


def make_procfs(pid_namespace_fd: int, attributes: int) -> int | None:
    """A detached procfs of that pid namespace.  None for a kernel before 6.17, which shows the maker's own alone."""
    fs_fd = libc.call("fsopen", "proc", _FSOPEN_CLOEXEC)
    try:
        try:
            libc.call("fsconfig", fs_fd, _SET_FD, "pidns", None, pid_namespace_fd)
        except OSError as failure:
            if failure.errno == errno.EINVAL:
                return None
            raise
        _configure(fs_fd, "proc", None, {})
        return libc.call("fsmount", fs_fd, _FSMOUNT_CLOEXEC, attributes)
    finally:
        os.close(fs_fd)


def unmount(path: str, flags: int = 0) -> None:
    """Unmount what is on ``path`` (a last link is not followed unless it is "." )."""
    libc.call("umount2", path, flags | (0 if path == "." else NOFOLLOW))


def is_mount_root(fd: int) -> bool:
    """Whether ``fd`` is the root of a mount: whether something is mounted at the path that it was opened by."""
    buffer = ctypes.create_string_buffer(256)  # struct statx
    libc.call("statx", fd, "", AT_EMPTY_PATH, 0, buffer)
    return bool(ctypes.c_uint64.from_buffer(buffer, 8).value & _STATX_ATTR_MOUNT_ROOT)


def pivot_root(new: str, old: str) -> None:
    """Make ``new`` the root of the mount namespace and put the old one on ``old`` (both "." works: the old
    is on top).
    """
    libc.call("pivot_root", new, old)


def supports_idmap(fd: int) -> bool:
    """Whether the file system of ``fd`` (a directory) takes id-mapped mounts. Tries it, on a copy nobody
    sees.
    """
    from zonemgr.linux import namespaces

    tree_fd = open_tree("", dir_fd=fd, empty_path=True)
    try:
        userns_fd = namespaces.make_user_namespace([(0, 524288, 65536)], [(0, 524288, 65536)])
        try:
            set_attributes(tree_fd, set=ATTR_IDMAP, userns_fd=userns_fd)
        except OSError as failure:
            if failure.errno != 22:
                raise
            return False
        finally:
            os.close(userns_fd)
        return True
    finally:
        os.close(tree_fd)
