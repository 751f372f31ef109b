"""Paths inside a zone's root, which may be hostile: resolved by the kernel below a descriptor, walked one
step at a time.

The rules and texts of mount points are those of the reference, section 3.2 (valid_mount_path and
make_one_dir); here each step is taken on the descriptor of the step before, so that a link planted anywhere
is refused, also by a process that is still running.

Deliberately not here: the host's own paths, which are trusted.
"""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Callable, Iterator

from zonemgr.errors import PlatformError
from zonemgr.linux import libc

RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

PROC_MAGIC = 0x9FA0
SYSFS_MAGIC = 0x62656572
DEVPTS_MAGIC = 0x1CD1
TMPFS_MAGIC = 0x01021994
CGROUP2_MAGIC = 0x63677270

_PATH_MAX = 4096
_EAGAIN_TRIES = 64  # the kernel answers EAGAIN when something was renamed meanwhile
_EAGAIN, _EROFS, _EOVERFLOW = 11, 30, 75
_STEP = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


class _OpenHow(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("flags", "mode", "resolve")]


def open_beneath(
    root_fd: int,
    path: str,
    flags: int,
    *,
    in_root: bool = True,
    no_symlinks: bool = True,
    no_xdev: bool = False,
    mode: int = 0,
) -> int:
    """Open ``path`` with ``root_fd`` as its root: neither "..", an absolute name nor a link leads out of it.

    Without ``in_root`` a path that tries to leave is refused (EXDEV) instead of held inside. ELOOP for a link
    when ``no_symlinks``; EXDEV for another mount when ``no_xdev``. Magic links of procfs are always refused.
    """
    resolve = RESOLVE_NO_MAGICLINKS | (RESOLVE_IN_ROOT if in_root else RESOLVE_BENEATH)
    resolve |= (RESOLVE_NO_SYMLINKS if no_symlinks else 0) | (RESOLVE_NO_XDEV if no_xdev else 0)
    how = _OpenHow(flags=flags | os.O_CLOEXEC, mode=mode, resolve=resolve)
    for _attempt in range(_EAGAIN_TRIES - 1):
        try:
            return libc.call("openat2", root_fd, path, ctypes.byref(how), ctypes.sizeof(how))
        except BlockingIOError:
            continue
    return libc.call("openat2", root_fd, path, ctypes.byref(how), ctypes.sizeof(how))


def file_system_type(fd: int) -> int:
    """The magic number of the file system that ``fd`` is on (linux/magic.h)."""
    buffer = ctypes.create_string_buffer(256)  # struct statfs is 120 bytes; its first word is the type
    libc.call("fstatfs", fd, buffer)
    return int(ctypes.c_ulong.from_buffer(buffer).value)


# -- mount points --------------------------------------------------------------------------------------------


def _prefixes(directory: str) -> Iterator[tuple[str, str]]:
    """Each step of an absolute path: (the name, the literal path up to it). "//" and a last "/" give an
    empty name.
    """
    so_far = ""
    for name in directory.split("/")[1:]:
        so_far += "/" + name
        yield name, so_far


def _refuse_length(display: str, directory: str) -> None:
    if len(os.fsencode(display + directory)) >= _PATH_MAX:
        raise PlatformError("pathname {path} is too long", path=display + directory)


def _refuse_not_canonical(name: str, path: str) -> None:
    if name in ("", ".", "..") or "\0" in name:
        raise PlatformError("{path} is not a canonical path", path=path)


def _look(parent_fd: int, name: str, path: str) -> int | None:
    """A descriptor of the next step, itself never followed; None when there is none."""
    try:
        return os.open(name, _STEP, dir_fd=parent_fd)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise PlatformError(
            "can't stat {path}: {why}", path=path, why=os.strerror(error.errno or 0)
        ) from None


def _check_step(fd: int, path: str, is_leaf: bool) -> None:
    mode = os.fstat(fd).st_mode
    if stat.S_ISLNK(mode):
        raise PlatformError("{path} is a symlink", path=path)
    if not is_leaf and not stat.S_ISDIR(mode):
        raise PlatformError("{path} is not a directory", path=path)


def check_mount_point(root_fd: int, directory: str, *, type: str, special: str, display: str = "") -> bool:
    """Whether ``directory`` below the root can be mounted on: True as it is, False when it must be created
    first.

    ``display`` is the root's path as the operator knows it. PlatformError (reference, section 3.2) for a path
    that is not absolute or not canonical, too long, or that holds a link or a non-directory on the way; the
    leaf may be any other object.
    """
    if not directory.startswith("/"):
        raise PlatformError(
            'invalid mount directory, type: "{type}", special: "{special}", dir: "{dir}"',
            type=type,
            special=special,
            dir=directory,
        )
    _refuse_length(display, directory)
    _check_step(root_fd, display or "/", is_leaf=False)
    current: int | None = os.dup(root_fd)
    try:
        for name, so_far in _prefixes(directory):
            path = display + so_far
            _refuse_not_canonical(name, path)
            if current is None:  # missing already: what is left is only checked for its spelling
                continue
            following = _look(current, name, path)
            os.close(current)
            current = following
            if current is not None:
                _check_step(current, path, is_leaf=so_far == directory)
        return current is not None
    finally:
        if current is not None:
            os.close(current)


def _create(parent_fd: int, act: Callable[[], None]) -> None:
    """Make something in a directory. On an id-mapped mount our own id may have no image (EOVERFLOW): then
    as its owner.
    """
    try:
        act()
    except OSError as error:
        if error.errno != _EOVERFLOW:
            raise
        owner = os.fstat(parent_fd)
        group = libc.call("setfsgid", owner.st_gid)
        user = libc.call("setfsuid", owner.st_uid)
        try:
            act()
        finally:
            libc.call("setfsuid", user)
            libc.call("setfsgid", group)


def _make(parent_fd: int, name: str, mode: int, is_file: bool) -> None:
    def act() -> None:
        if is_file:
            flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
            os.close(os.open(name, flags, mode, dir_fd=parent_fd))
        else:
            os.mkdir(name, mode, dir_fd=parent_fd)

    _create(parent_fd, act)


def _make_step(parent_fd: int, name: str, mode: int, path: str, directory: str, is_file: bool) -> int:
    try:
        _make(parent_fd, name, mode, is_file)
        return os.open(name, _STEP, dir_fd=parent_fd)
    except OSError as error:
        if error.errno == _EROFS:
            raise PlatformError(
                "Could not mkdir {path}.\nIt is read-only in this zone.\nMake sure {sub} exists in the global zone.",
                path=path,
                sub=directory,
            ) from None
        raise PlatformError(
            "mkdirp of {path} failed: {why}", path=path, why=os.strerror(error.errno or 0)
        ) from None


def _check_existing(fd: int, path: str, directory: str, is_file: bool) -> None:
    mode = os.fstat(fd).st_mode
    if stat.S_ISDIR(mode):
        return
    if not stat.S_ISREG(mode):
        raise PlatformError("{path} is not a directory", path=path)
    if not is_file and not directory.startswith("/etc/"):
        raise PlatformError("{path} is not in /etc", path=path)


def make_mount_point(
    root_fd: int,
    directory: str,
    mode: int = 0o755,
    *,
    uid: int = -1,
    gid: int = -1,
    kind: str = "dir",
    display: str = "",
) -> None:
    """Make ``directory`` (``kind`` "file": an empty file) below the root, with what is missing above it.

    What exists stays as it is, mode and owner included; a regular file is good below /etc, or when a file is
    wanted. ``uid`` and ``gid`` go to the last step only; a failure of that is ignored. PlatformError as in
    the reference, section 3.2.
    """
    _refuse_length(display, directory)
    current = os.dup(root_fd)
    try:
        for name, so_far in _prefixes(directory):
            path, is_leaf = display + so_far, so_far == directory
            _refuse_not_canonical(name, path)
            is_file = is_leaf and kind == "file"
            following = _look(current, name, path)
            made = following is None
            if following is None:
                following = _make_step(current, name, mode if is_leaf else 0o755, path, directory, is_file)
            parent, current = current, following
            try:
                if is_leaf:
                    _check_existing(current, path, directory, is_file)
                else:
                    _check_step(current, path, is_leaf=False)
                if made and is_leaf and (uid, gid) != (-1, -1):
                    _chown(parent, name, uid, gid)
            finally:
                os.close(parent)
    finally:
        os.close(current)


def _chown(parent_fd: int, name: str, uid: int, gid: int) -> None:
    try:
        os.chown(name, uid, gid, dir_fd=parent_fd, follow_symlinks=False)
    except OSError:
        return  # ignored, as in the reference: the mount on top decides what is seen
