"""Walking and copying a zone's root on descriptors, however deep it is and whatever lies in it.

The walk holds one descriptor at a time and keeps no recursion: it steps down with openat2, which follows no link and
crosses no mount, and up through ".." after making sure that this is the folder it came from.  The zone must not run.
"""

from __future__ import annotations

import enum
import errno
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from zonemgr.brandkit.owners import Owners, attributes
from zonemgr.errors import PlatformError
from zonemgr.linux import cow, paths

FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_CHUNK_BYTES: Final = 1 << 20
NAMES_MAX: Final = 128 << 20  # bytes
_NOT_HERE: Final = frozenset((errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF, errno.ETXTBSY))

Tick = Callable[[int], None]  # told how many bytes of the tree are done


class Move(enum.Enum):
    """What a step of the walk is."""

    ENTER = "enter"
    FILE = "file"  # anything but a folder
    LEAVE = "leave"


@dataclass(slots=True)
class _Level:
    name: str
    status: os.stat_result
    names: Iterator[str] = field(default_factory=lambda: iter(()))


@dataclass(frozen=True, slots=True)
class Step:
    """``folder_fd`` is the folder that holds ``name``, for LEAVE the folder itself; it is open until the next step, and
    until then there is a ``path``.
    """

    move: Move
    name: str
    folder_fd: int
    status: os.stat_result
    levels: list[_Level]  # from the top down to the folder

    @property
    def path(self) -> str:
        """From the top, "" for the top itself.  Made when it is asked for: kept for each level, the paths of a zone's
        hundred thousand folders in each other would take gigabytes.
        """
        names = [level.name for level in self.levels[1:]]
        return "/".join(names if self.move is Move.LEAVE else (*names, self.name))


def walk(top_fd: int) -> Iterator[Step]:
    """All of a tree, folders before and after what is in them; the last step leaves the top.  Raises OSError."""
    current = os.open(".", FOLDER, dir_fd=top_fd)
    try:
        levels = [_level("", current)]
        while levels:
            level = levels[-1]
            name = next(level.names, None)
            if name is None:
                yield Step(Move.LEAVE, level.name, current, level.status, levels)
                levels.pop()
                if levels:
                    current = _replace(current, up(current, levels[-1].status))
                continue
            status = os.stat(name, dir_fd=current, follow_symlinks=False)
            if not stat.S_ISDIR(status.st_mode):
                yield Step(Move.FILE, name, current, status, levels)
                continue
            yield Step(Move.ENTER, name, current, status, levels)
            current = _replace(current, open_folder(current, name))
            levels.append(_level(name, current))
    finally:
        os.close(current)


def _level(name: str, fd: int) -> _Level:
    return _Level(name, os.fstat(fd), iter(sorted(os.listdir(fd))))


def _replace(old_fd: int, new_fd: int) -> int:
    os.close(old_fd)
    return new_fd


def open_folder(parent_fd: int, name: str) -> int:
    """A folder in a folder, no link and no other mount.  Raises OSError."""
    return paths.open_beneath(parent_fd, name, FOLDER, in_root=False, no_xdev=True)


def up(folder_fd: int, expected: os.stat_result) -> int:
    """The folder above, which must be the one we came from.  Raises PlatformError when it was moved meanwhile."""
    above = os.open("..", FOLDER, dir_fd=folder_fd)
    if not os.path.samestat(os.fstat(above), expected):
        os.close(above)
        raise PlatformError("the zone's root is being changed by somebody")
    return above


def open_file(folder_fd: int, name: str, status: os.stat_result) -> int:
    """A regular file that the walk has met, for reading."""
    fd = os.open(name, _READ, dir_fd=folder_fd)
    if not os.path.samestat(os.fstat(fd), status):
        os.close(fd)
        raise PlatformError("the zone's root is being changed by somebody")
    return fd


@dataclass(frozen=True, slots=True)
class Size:
    """What a tree amounts to: bytes on disk, and the number of objects in it."""

    size_bytes: int
    objects: int


def measure(top_fd: int) -> Size:
    """How much there is to copy."""
    size = objects = 0
    for step in walk(top_fd):
        if step.move is not Move.LEAVE:
            objects += 1
            size += step.status.st_blocks * 512
    return Size(size, objects)


class Names:
    """Where the first of several names of a file is.  What is remembered has a limit: a zone can make names enough."""

    def __init__(self, limit_bytes: int = NAMES_MAX) -> None:
        self._first: dict[tuple[int, int], str] = {}
        self._left = limit_bytes

    def first_of(self, step: Step) -> str | None:
        """The name that was met before; None for the first.  Raises PlatformError."""
        key = (step.status.st_dev, step.status.st_ino)
        first = self._first.get(key)
        if first is None:
            path = self._first[key] = step.path
            self._left -= len(path)
            if self._left < 0:
                raise PlatformError("too many files of the zone have several names")
        return first


# -- copying ----------------------------------------------------------------------------------------------------


def copy(source_fd: int, target_fd: int, owners: Owners, *, share: bool = False, tick: Tick = lambda _: None) -> None:
    """Fill the empty folder ``target_fd`` with a copy of ``source_fd``: links, holes, times and attributes too.

    ``share``: files share their blocks with the source's; where they cannot, OSError.  Sockets are left out: nothing
    listens on them.  Raises OSError, PlatformError.
    """
    copier = _Copier(target_fd, owners, share)
    try:
        for step in walk(source_fd):
            copier.take(step)
            if step.move is not Move.LEAVE:
                tick(step.status.st_blocks * 512)
    finally:
        copier.close()


class _Copier:
    """Follows the steps of a walk in the target."""

    def __init__(self, target_fd: int, owners: Owners, share: bool) -> None:
        self.top_fd = target_fd
        self.current = os.open(".", FOLDER, dir_fd=target_fd)
        self.above: list[os.stat_result] = []
        self.owners = owners
        self.share = share
        self.links = Names()

    def close(self) -> None:
        os.close(self.current)

    def take(self, step: Step) -> None:
        if step.move is Move.ENTER:
            self.above.append(os.fstat(self.current))
            os.mkdir(step.name, 0o700, dir_fd=self.current)
            self.current = _replace(self.current, open_folder(self.current, step.name))
        elif step.move is Move.LEAVE:
            dress(self.current, step.status, attributes(step.folder_fd), self.owners)
            if self.above:
                self.current = _replace(self.current, up(self.current, self.above.pop()))
        elif not self._linked(step):
            self._file(step)

    def _linked(self, step: Step) -> bool:
        """Whether this is a further name of something copied already."""
        if step.status.st_nlink < 2:
            return False
        first = self.links.first_of(step)
        if first is None:
            return False
        try:
            os.link(first, step.name, src_dir_fd=self.top_fd, dst_dir_fd=self.current, follow_symlinks=False)
        except OSError as error:
            if error.errno not in (errno.ENAMETOOLONG, errno.EMLINK, errno.ENOENT):
                raise
            return False  # too deep to be named, or a socket: a file of its own
        return True

    def _file(self, step: Step) -> None:
        mode = step.status.st_mode
        if stat.S_ISREG(mode):
            self._regular(step)
        elif stat.S_ISLNK(mode):
            os.symlink(os.readlink(step.name, dir_fd=step.folder_fd), step.name, dir_fd=self.current)
            self._dress_by_name(step)
        elif not stat.S_ISSOCK(mode):
            os.mknod(step.name, mode, step.status.st_rdev, dir_fd=self.current)
            self._dress_by_name(step)
            os.chmod(step.name, stat.S_IMODE(mode), dir_fd=self.current)

    def _regular(self, step: Step) -> None:
        source = open_file(step.folder_fd, step.name, step.status)
        try:
            target = os.open(step.name, _NEW_FILE, 0o600, dir_fd=self.current)
            try:
                if self.share:
                    cow.reflink(source, target)
                else:
                    copy_data(source, target, step.status.st_size)
                dress(target, step.status, attributes(source), self.owners)
            finally:
                os.close(target)
        finally:
            os.close(source)

    def _dress_by_name(self, step: Step) -> None:
        status, here = step.status, self.current
        uid, gid = self.owners.id(status.st_uid), self.owners.id(status.st_gid)
        os.chown(step.name, uid, gid, dir_fd=here, follow_symlinks=False)
        times = (status.st_atime_ns, status.st_mtime_ns)
        os.utime(step.name, ns=times, dir_fd=here, follow_symlinks=False)


def dress(fd: int, status: os.stat_result, extended: dict[str, bytes], owners: Owners) -> None:
    """Owner, attributes, mode and times of a copy, in this order: each may take away what came before it."""
    os.fchown(fd, owners.id(status.st_uid), owners.id(status.st_gid))
    for name, value in extended.items():
        os.setxattr(fd, name, owners.attribute(name, value))
    os.fchmod(fd, stat.S_IMODE(status.st_mode))
    os.utime(fd, ns=(status.st_atime_ns, status.st_mtime_ns))


def data_ranges(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """(offset, length) of what is not a hole."""
    offset = 0
    while offset < size:
        try:
            start = os.lseek(fd, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        offset = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        if start < offset:
            yield start, offset - start


def copy_data(source_fd: int, target_fd: int, size: int) -> None:
    """The content of a file; holes stay holes."""
    for offset, length in data_ranges(source_fd, size):
        while length > 0:
            done = _copy_range(source_fd, target_fd, offset, min(length, 128 * _CHUNK_BYTES))
            if not done:
                raise PlatformError("the zone's root is being changed by somebody")
            offset, length = offset + done, length - done
    os.ftruncate(target_fd, size)


def _copy_range(source_fd: int, target_fd: int, offset: int, length: int) -> int:
    try:
        return os.copy_file_range(source_fd, target_fd, length, offset, offset)
    except OSError as error:
        if error.errno not in _NOT_HERE:
            raise
    return os.pwrite(target_fd, os.pread(source_fd, min(length, _CHUNK_BYTES), offset), offset)


# -- owners -----------------------------------------------------------------------------------------------------


def move_owners(top_fd: int, owners: Owners) -> None:
    """Move the owners of a tree where it is.  What was moved already stays: an interrupted move is simply run again."""
    for step in walk(top_fd):
        if step.move is Move.LEAVE:
            _move_owner(step.folder_fd, step.status, owners)
        elif step.move is Move.FILE and stat.S_ISREG(step.status.st_mode):
            fd = open_file(step.folder_fd, step.name, step.status)
            try:
                _move_owner(fd, step.status, owners)
            finally:
                os.close(fd)
        elif step.move is Move.FILE:
            uid, gid = owners.id(step.status.st_uid), owners.id(step.status.st_gid)
            os.chown(step.name, uid, gid, dir_fd=step.folder_fd, follow_symlinks=False)


def _move_owner(fd: int, status: os.stat_result, owners: Owners) -> None:
    uid, gid = owners.id(status.st_uid), owners.id(status.st_gid)
    extended = attributes(fd)
    moved = {name: owners.attribute(name, value) for name, value in extended.items()}
    if (uid, gid) == (status.st_uid, status.st_gid) and moved == extended:
        return
    os.fchown(fd, uid, gid)
    for name, value in moved.items():
        os.setxattr(fd, name, value)  # a change of owner takes file capabilities away
    os.fchmod(fd, stat.S_IMODE(status.st_mode))
