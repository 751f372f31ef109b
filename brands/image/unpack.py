"""Writing foreign files into a new root: whatever names an archive uses, nothing outside of the root is touched.

Every parent folder is resolved by the kernel with the root as its ``/`` and every object is made by a descriptor of
that folder, never through a link of its own name.  Absolute names, ``..`` and ids that no zone has are refused; links
may say what they like, since they are only ever resolved inside the zone.  Set-user-id bits stay: in the zone's user
namespace they make root of the zone.  Device nodes are left out and counted: a zone gets its devices from zonemgr.

Deliberately not here: formats (``archive``, ``oci``).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from zonemgr.brandkit import NotCompleted, zonepath
from zonemgr.brandkit.rootdir import RootDir

ID_MAX: Final = 65535
WHITEOUT: Final = ".wh."
OPAQUE: Final = ".wh..wh..opq"
SHARE_OF_DISK: Final = 0.9  # of what is free when unpacking begins
_CHUNK_BYTES: Final = 1 << 20
_ZEROS: Final = bytes(_CHUNK_BYTES)
_NEW_FILE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CAPABILITY_V2_BYTES: Final = 20


class Reader(Protocol):
    """Where content comes from."""

    def read(self, size: int = -1, /) -> bytes:
        """At most ``size`` bytes; empty at the end."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One object of an archive.  ``kind`` is a file type of ``stat`` (S_IFREG...), or 0 for a hard link."""

    name: str
    kind: int
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime: float = 0.0
    size: int = 0
    target: str = ""
    attributes: Mapping[str, bytes] = field(default_factory=dict)


def parts_of(name: str, what: str = "entry") -> tuple[str, ...]:
    """The components of an archive's name.  NotCompleted for one that points outside of the root."""
    if name.startswith("/"):
        raise NotCompleted("{what} '{name}' points outside of the root: it is absolute", what=what, name=name)
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    if ".." in parts:
        raise NotCompleted("{what} '{name}' points outside of the root: it has '..'", what=what, name=name)
    return parts


class Unpacker:
    """Fills one root, in a ``with``; ``begin_layer`` before each layer of an image.  Raises NotCompleted, OSError."""

    def __init__(self, root: RootDir, *, tick: Callable[[int], None] = lambda _size: None) -> None:
        self.root = root
        self.devices = 0
        self.objects = 0
        self.written = 0
        self._tick = tick
        self._touched: set[tuple[str, ...]] = set()
        self._parent: tuple[str, ...] | None = None
        self._parent_fd = -1
        disk = os.fstatvfs(root.fd)
        self._bytes_max = int(disk.f_bavail * disk.f_frsize * SHARE_OF_DISK)
        self._objects_max = int(disk.f_favail * SHARE_OF_DISK) or 1 << 32

    def __enter__(self) -> Unpacker:
        return self

    def __exit__(self, *_how: object) -> None:
        self._forget_parent()

    def begin_layer(self) -> None:
        """From here on opaque whiteouts hide what is there now."""
        self._touched.clear()

    # -- entries ------------------------------------------------------------------------------------------------

    def add(self, entry: Entry, content: Reader | None = None) -> None:
        """Make one object, in the place of what has its name.  A folder is kept with what is in it."""
        parts = parts_of(entry.name)
        if not parts:
            return  # the root itself, which stays root's and 0755
        if max(entry.uid, entry.gid) > ID_MAX or min(entry.uid, entry.gid) < 0:
            raise NotCompleted(
                "entry '{name}' belongs to {uid}:{gid}: a zone has the ids 0 to 65535",
                name=entry.name,
                uid=entry.uid,
                gid=entry.gid,
            )
        if entry.kind in (stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK):
            self.devices += entry.kind != stat.S_IFSOCK
            return
        self._count()
        self._touch(parts)
        parent_fd, leaf = self._open_parent(parts), parts[-1]
        try:
            self._make(entry, parent_fd, leaf, content)
        except (FileExistsError, IsADirectoryError, NotADirectoryError) as error:
            raise NotCompleted("entry '{name}': {why}", name=entry.name, why=error.strerror) from error

    def hide(self, name: str) -> None:
        """A whiteout: ``.wh.NAME`` removes NAME, ``.wh..wh..opq`` what lower layers have in its folder."""
        *above, leaf = parts_of(name)
        if leaf == OPAQUE:
            self._hide_all(tuple(above))
        elif leaf.startswith(WHITEOUT * 2):
            return  # other files of a union file system's own
        elif leaf in (WHITEOUT, WHITEOUT + ".", WHITEOUT + ".."):
            raise NotCompleted("whiteout '{name}' names no file", name=name)
        else:
            parts = (*above, leaf.removeprefix(WHITEOUT))
            fd = self._existing(parts[:-1])
            if fd is not None:
                zonepath.remove(fd, parts[-1])
                self._forget_parent()

    def _count(self) -> None:
        self.objects += 1
        if self.objects > self._objects_max:
            raise NotCompleted(
                "more than {count} files: the disk has no room for them", count=self._objects_max
            )

    def _touch(self, parts: tuple[str, ...]) -> None:
        for end in range(len(parts), 0, -1):
            if parts[:end] in self._touched:
                return
            self._touched.add(parts[:end])

    # -- folders ------------------------------------------------------------------------------------------------

    def _forget_parent(self) -> None:
        if self._parent_fd >= 0:
            os.close(self._parent_fd)
        self._parent, self._parent_fd = None, -1

    def _open_parent(self, parts: tuple[str, ...]) -> int:
        """A descriptor of the folder above, made when it is missing; it stays open for the entries that follow."""
        above = parts[:-1]
        if above != self._parent:
            self._forget_parent()
            try:
                self._parent_fd = self.root.make_folder("/" + "/".join(above))
            except (FileExistsError, NotADirectoryError) as error:
                raise NotCompleted(
                    "entry '{name}': what is above it is no folder", name="/".join(parts)
                ) from error
            self._parent = above
        return self._parent_fd

    def _existing(self, parts: tuple[str, ...]) -> int | None:
        try:
            self._forget_parent()
            self._parent_fd = self.root.open("/" + "/".join(parts), os.O_PATH | os.O_DIRECTORY)
        except (FileNotFoundError, NotADirectoryError):
            return None
        self._parent = parts
        return self._parent_fd

    def _hide_all(self, parts: tuple[str, ...]) -> None:
        """Remove below a folder what this layer has not made itself."""
        above_fd = self._existing(parts)
        self._touch(parts)
        if above_fd is None:
            return
        folder_fd = os.open(".", _FOLDER, dir_fd=above_fd)
        try:
            for name in os.listdir(folder_fd):
                if (*parts, name) not in self._touched:
                    zonepath.remove(folder_fd, name)
                elif stat.S_ISDIR(os.stat(name, dir_fd=folder_fd, follow_symlinks=False).st_mode):
                    self._hide_all((*parts, name))
        finally:
            os.close(folder_fd)
            self._forget_parent()

    # -- objects ------------------------------------------------------------------------------------------------

    def _make(self, entry: Entry, parent_fd: int, leaf: str, content: Reader | None) -> None:
        if entry.kind == stat.S_IFDIR:
            self._folder(entry, parent_fd, leaf)
        elif entry.kind == 0:
            self._hard_link(entry, parent_fd, leaf)
        else:
            zonepath.remove(parent_fd, leaf)
            if entry.kind == stat.S_IFREG:
                self._file(entry, parent_fd, leaf, content)
                return
            if entry.kind == stat.S_IFLNK:
                os.symlink(entry.target, leaf, dir_fd=parent_fd)
            else:
                os.mkfifo(leaf, 0o600, dir_fd=parent_fd)
                os.chmod(
                    leaf, stat.S_IMODE(entry.mode), dir_fd=parent_fd
                )  # new, and nobody else is here: no link
            os.chown(leaf, entry.uid, entry.gid, dir_fd=parent_fd, follow_symlinks=False)

    def _folder(self, entry: Entry, parent_fd: int, leaf: str) -> None:
        try:
            os.mkdir(leaf, 0o700, dir_fd=parent_fd)
        except FileExistsError:
            if not stat.S_ISDIR(os.stat(leaf, dir_fd=parent_fd, follow_symlinks=False).st_mode):
                os.unlink(leaf, dir_fd=parent_fd)
                os.mkdir(leaf, 0o700, dir_fd=parent_fd)
        fd = os.open(leaf, _FOLDER, dir_fd=parent_fd)
        try:
            self._dress(fd, entry)
        finally:
            os.close(fd)

    def _hard_link(self, entry: Entry, parent_fd: int, leaf: str) -> None:
        target = parts_of(entry.target, f"hard link '{entry.name}' to")
        if not target:
            raise NotCompleted("hard link '{name}' names no file", name=entry.name)
        try:
            target_fd = self.root.open("/" + "/".join(target[:-1]), os.O_PATH | os.O_DIRECTORY)
        except OSError as error:
            raise NotCompleted(
                "hard link '{name}' to '{target}': {why}",
                name=entry.name,
                target=entry.target,
                why=error.strerror,
            ) from error
        try:
            status = os.stat(target[-1], dir_fd=target_fd, follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                raise NotCompleted("hard link '{name}' to a folder", name=entry.name)
            if _same(status, parent_fd, leaf):
                return
            zonepath.remove(parent_fd, leaf)
            os.link(target[-1], leaf, src_dir_fd=target_fd, dst_dir_fd=parent_fd, follow_symlinks=False)
        except FileNotFoundError as error:
            raise NotCompleted(
                "hard link '{name}' to '{target}', which is not there", name=entry.name, target=entry.target
            ) from error
        finally:
            os.close(target_fd)

    def _file(self, entry: Entry, parent_fd: int, leaf: str, content: Reader | None) -> None:
        fd = os.open(leaf, _NEW_FILE, 0o600, dir_fd=parent_fd)
        try:
            if content is not None:
                self._fill(fd, content, entry.size)
            self._dress(fd, entry)
        finally:
            os.close(fd)

    def _fill(self, fd: int, content: Reader, size: int) -> None:
        """Write the content, leaving holes where it is zero, so that a file's size costs nothing by itself."""
        offset = 0
        while chunk := content.read(_CHUNK_BYTES):
            if chunk != _ZEROS[: len(chunk)]:
                self.written += len(chunk)
                if self.written > self._bytes_max:
                    raise NotCompleted(
                        "not enough room on the disk: more than {size} bytes", size=self._bytes_max
                    )
                _write_all(fd, chunk, offset)
            offset += len(chunk)
            self._tick(len(chunk))
        if offset != size:
            raise NotCompleted("the archive ends in the middle of a file")
        os.ftruncate(fd, size)

    def _dress(self, fd: int, entry: Entry) -> None:
        """Owner, then attributes, mode and time: a change of owner takes set-user-id bits and capabilities away."""
        os.fchown(fd, entry.uid, entry.gid)
        for name, value in entry.attributes.items():
            if name == "security.capability" and len(value) == _CAPABILITY_V2_BYTES:
                os.setxattr(fd, name, value)
            elif name.startswith("user."):
                _set_user_attribute(fd, name, value)
        os.fchmod(fd, stat.S_IMODE(entry.mode))
        os.utime(fd, (entry.mtime, entry.mtime))


def _write_all(fd: int, chunk: bytes, offset: int) -> None:
    view = memoryview(chunk)
    while view:
        done = os.pwrite(fd, view, offset)
        view, offset = view[done:], offset + done


def _set_user_attribute(fd: int, name: str, value: bytes) -> None:
    try:
        os.setxattr(fd, name, value)
    except OSError:
        return  # file systems limit their size differently; nothing depends on them


def _same(status: os.stat_result, parent_fd: int, leaf: str) -> bool:
    try:
        return os.path.samestat(status, os.stat(leaf, dir_fd=parent_fd, follow_symlinks=False))
    except FileNotFoundError:
        return False
