"""A zone's root on the host, worked on through descriptors: for brands that make or change a root.

What is in a root may be hostile.  Every name is resolved by the kernel with the root as its ``/`` (openat2), so that
neither an absolute link nor ``..`` leads out of it; the last component is never followed when something is written or
removed.  Deliberately not here: running anything from a root, and owners as the host sees them (a root on disk has the
zone's own ids).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from zonemgr.brandkit import zonepath
from zonemgr.linux import passwd, paths
from zonemgr.linux.passwd import Account

READ_MAX_BYTES: Final = 1 << 20
_FOLDER: Final = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


class RootDir:
    """A folder as a root.  Use it in a ``with``; names are absolute inside of it.  Methods raise OSError."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.fd = os.open(path, _FOLDER | os.O_NOFOLLOW)

    @classmethod
    def make(cls, path: str) -> RootDir:
        """A new, empty root: owned by root, 0755."""
        os.mkdir(path)
        os.chmod(path, 0o755)  # mkdir's mode passes through the umask
        return cls(path)

    def __enter__(self) -> RootDir:
        return self

    def __exit__(self, *_how: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the folder."""
        os.close(self.fd)

    # -- looking ------------------------------------------------------------------------------------------------

    def open(self, name: str, flags: int = os.O_PATH, *, follow: bool = True, mode: int = 0) -> int:
        """A descriptor; links are followed inside of the root, the last one only if ``follow``."""
        more = 0 if follow else os.O_NOFOLLOW
        return paths.open_beneath(self.fd, name, flags | more, no_symlinks=False, mode=mode)

    def status(self, name: str, *, follow: bool = True) -> os.stat_result | None:
        """What is there, or None."""
        try:
            fd = self.open(name, follow=follow)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            return os.fstat(fd)
        finally:
            os.close(fd)

    def read(self, name: str, limit: int = READ_MAX_BYTES) -> bytes | None:
        """The content of a regular file, or None when there is none.  OSError beyond ``limit`` bytes."""
        try:
            return passwd.read_bounded(self.fd, name, limit)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def link_target(self, name: str) -> str | None:
        """Where a symbolic link leads; None for everything else."""
        try:
            with self._parent(name) as (parent_fd, leaf):
                return os.readlink(leaf, dir_fd=parent_fd)
        except OSError:
            return None

    def names(self, name: str) -> list[str]:
        """What is in a folder; nothing when it is missing."""
        try:
            fd = self.open(name, os.O_RDONLY | os.O_DIRECTORY)
        except (FileNotFoundError, NotADirectoryError):
            return []
        try:
            return sorted(os.listdir(fd))
        finally:
            os.close(fd)

    def account(self, wanted: str) -> Account:
        """Who ``USER`` or ``USER:GROUP`` is by the root's own /etc/passwd and /etc/group.  Raises ZoneError."""
        return passwd.find_account(self.fd, wanted)

    # -- changing -----------------------------------------------------------------------------------------------

    def folder(self, name: str, mode: int = 0o755) -> None:
        """Make a folder and what is missing above it.  One that exists stays as it is."""
        os.close(self.make_folder(name, mode))

    def make_folder(self, name: str, mode: int = 0o755) -> int:
        """As ``folder``; returns a descriptor (O_PATH) of it."""
        missing: list[str] = []
        above = name
        while True:
            try:
                fd = self.open(above or "/", _FOLDER)
                break
            except FileNotFoundError:
                above, _, leaf = above.rstrip("/").rpartition("/")
                missing.append(_plain(leaf))
        while missing:
            leaf = missing.pop()
            fd = _new_folder(fd, leaf, 0o755 if missing else mode)
        return fd

    def write(self, name: str, data: bytes | str, mode: int = 0o644, *, uid: int = 0, gid: int = 0) -> None:
        """Write a file whole, in the place of whatever has its name (a link is replaced, not followed)."""
        content = data.encode(errors="surrogateescape") if isinstance(data, str) else data
        with self._parent(name, make=True) as (parent_fd, leaf):
            temporary = f".{leaf[:200]}.{os.urandom(6).hex()}"
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with open(os.open(temporary, flags, 0o600, dir_fd=parent_fd), "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fchown(stream.fileno(), uid, gid)
                os.fchmod(stream.fileno(), mode)
            os.rename(temporary, leaf, src_dir_fd=parent_fd, dst_dir_fd=parent_fd)

    def copy(self, source: str, name: str, mode: int = 0o644) -> None:
        """A file of the host (trusted: it is followed) as a new file of the root's."""
        with self._parent(name, make=True) as (parent_fd, leaf):
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with (
                open(source, "rb") as reader,
                open(os.open(leaf, flags, 0o600, dir_fd=parent_fd), "wb") as writer,
            ):
                while chunk := reader.read(1 << 20):
                    writer.write(chunk)
                os.fchmod(writer.fileno(), mode)

    def link(self, name: str, target: str) -> None:
        """A symbolic link, in the place of whatever has its name but a folder."""
        with self._parent(name, make=True) as (parent_fd, leaf):
            try:
                os.unlink(leaf, dir_fd=parent_fd)
            except FileNotFoundError:
                pass
            os.symlink(target, leaf, dir_fd=parent_fd)

    def remove(self, name: str) -> None:
        """Remove a file, a link or a folder with all that is in it; nothing happens when it is missing."""
        try:
            with self._parent(name) as (parent_fd, leaf):
                zonepath.remove(parent_fd, leaf)
        except (FileNotFoundError, NotADirectoryError):
            return

    @contextmanager
    def _parent(self, name: str, make: bool = False) -> Iterator[tuple[int, str]]:
        above, _, leaf = name.rstrip("/").rpartition("/")
        fd = self.make_folder(above or "/") if make else self.open(above or "/", _FOLDER)
        try:
            yield fd, _plain(leaf)
        finally:
            os.close(fd)


def _new_folder(above_fd: int, name: str, mode: int) -> int:
    """A descriptor of it; that of the folder above is closed."""
    try:
        os.mkdir(name, 0o700, dir_fd=above_fd)
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above_fd)
    finally:
        os.close(above_fd)
    os.fchmod(fd, mode)
    return fd


def _plain(leaf: str) -> str:
    if leaf in ("", ".", ".."):
        raise ValueError(f"{leaf!r} is not the name of a file")
    return leaf
