"""A whole zone as one stream: a tar archive with a manifest first, the root, and a digest of everything last.

Owners are the zone's own (unshifted).  Holes, hard links, extended attributes, access lists and times are kept; any tar
program can read it.  Reading trusts nothing: names are resolved below the new root by the kernel, nothing is followed,
nothing exists twice, owners are within the zone's range, device nodes are left out, and an archive whose digest is
missing or wrong is refused.  Deliberately not here: what is done with the configuration in the manifest.
"""

from __future__ import annotations

import copy
import errno
import hashlib
import io
import json
import os
import stat
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import IO, Any, BinaryIO, Final, cast
from urllib.parse import quote_from_bytes, unquote_to_bytes

from zonemgr.brandkit import owners as owning
from zonemgr.brandkit import tree
from zonemgr.brandkit.compression import Reader
from zonemgr.brandkit.owners import Owners
from zonemgr.brandkit.tree import Move, Step, Tick
from zonemgr.errors import PlatformError, message
from zonemgr.linux import paths
from zonemgr.model.states import IDS_PER_ZONE

VERSION: Final = 1
FORMAT: Final = "zonemgr-zone"
MANIFEST: Final = "zonemgr-zone.json"
DIGEST: Final = "zonemgr-digest.json"
ROOT: Final = "root"
_METADATA_MAX: Final = 1 << 20
FOLDERS_MAX: Final = 256 << 20  # bytes
_FOLDER_BYTES: Final = 256  # that one takes besides its name
SHARE_OF_DISK: Final = 0.9  # of what is free when unpacking begins: no archive fills the host's disk
_NAMES_TOLD: Final = 20  # left-out objects that are named one by one
_COMPONENTS_AT_ONCE: Final = 8  # 8 names of 255 bytes are within what one call takes
_ATTRIBUTE: Final = "SCHILY.xattr."
_SPARSE_NAME: Final = "GNUSparseFile.0/hole"
_CHUNK_BYTES: Final = 1 << 20
# What reading something that is no archive of ours may raise.
_NONSENSE: Final = (
    tarfile.TarError,
    EOFError,
    ValueError,
    OverflowError,
    MemoryError,
    RecursionError,
    zlib.error,
)
_TYPES: Final[Mapping[bytes, int]] = {
    tarfile.DIRTYPE: stat.S_IFDIR,
    tarfile.REGTYPE: stat.S_IFREG,
    tarfile.AREGTYPE: stat.S_IFREG,
    tarfile.SYMTYPE: stat.S_IFLNK,
    tarfile.FIFOTYPE: stat.S_IFIFO,
    tarfile.CHRTYPE: stat.S_IFCHR,
    tarfile.BLKTYPE: stat.S_IFBLK,
}
_TYPE_OF: Final = {kind: letter for letter, kind in _TYPES.items() if letter != tarfile.AREGTYPE}
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Manifest:
    """What an archive says of its zone.  All of it is a claim."""

    zonename: str
    brand: str
    uuid: str
    hostname: str
    configuration: str
    bridge: str
    size_bytes: int
    created: int

    def text(self) -> str:
        return json.dumps({"format": FORMAT, "version": VERSION, **asdict(self)}, indent=2) + "\n"

    @classmethod
    def parse(cls, content: bytes) -> Manifest:
        """Raises PlatformError."""
        try:
            table: dict[str, Any] = json.loads(content)
            kind, version = table["format"], table["version"]
            found = cls(**{field.name: table[field.name] for field in fields(cls)})
        except (ValueError, KeyError, TypeError, RecursionError):
            raise PlatformError("this is no archive of a zone") from None
        if kind != FORMAT or not _is_sound(found):
            raise PlatformError("this is no archive of a zone")
        if version != VERSION:
            raise PlatformError(
                "the archive is of version {version}, this zonemgr reads {known}",
                version=version,
                known=VERSION,
            )
        return found


def _is_sound(manifest: Manifest) -> bool:
    numbers = (manifest.size_bytes, manifest.created)
    texts = (value for value in asdict(manifest).values() if value not in numbers)
    return all(type(number) is int and number >= 0 for number in numbers) and all(
        type(text) is str for text in texts
    )


class _FolderRoom:
    """For an archive's folders, all of which its reader has to remember.  A zone can make them many, and deep."""

    def __init__(self) -> None:
        self._left = FOLDERS_MAX

    def take(self, name: str) -> None:
        """Raises PlatformError when it is one too many."""
        self._left -= _FOLDER_BYTES + len(name)
        if self._left < 0:
            raise PlatformError("the zone has too many folders, or too deep ones, for an archive")


Ranges = list[tuple[int, int]]


def _summary(info: tarfile.TarInfo, ranges: Ranges | None = None) -> bytes:
    """All that a member says besides its content, in one order: what the digest is made of.

    ``ranges``: where a file with holes has data.
    """
    table = [
        info.name,
        (tarfile.REGTYPE if info.type == tarfile.AREGTYPE else info.type).decode("latin-1"),
        info.mode & 0o7777,
        info.uid,
        info.gid,
        info.pax_headers.get("mtime", str(info.mtime)),
        info.size if info.isreg() else 0,
        info.linkname,
        info.devmajor,
        info.devminor,
        sorted((name, value) for name, value in info.pax_headers.items() if name.startswith(_ATTRIBUTE)),
        None if ranges is None else [list(pair) for pair in ranges],
    ]
    return json.dumps(table).encode() + b"\n"


def _sparse_map(info: tarfile.TarInfo) -> Ranges:
    found: Any = info.sparse  # typeshed calls it bytes
    return list(found)


# -- writing ----------------------------------------------------------------------------------------------------


def write(
    out: BinaryIO, manifest: Manifest, root_fd: int, owners: Owners, tick: Tick = lambda _: None
) -> None:
    """Write a zone to a stream.  The zone must not run.  Raises OSError, PlatformError."""
    writer = _Writer(out, owners)
    try:
        _write(writer, manifest, root_fd, tick)
    except BaseException:
        vars(writer.archive.fileobj)["closed"] = True  # else what is left of it is written when it is forgotten
        raise


def _write(writer: _Writer, manifest: Manifest, root_fd: int, tick: Tick) -> None:
    writer.text(MANIFEST, manifest.text())
    writer.folder(ROOT, os.fstat(root_fd), owning.attributes(root_fd))
    for step in tree.walk(root_fd):
        if step.move is not Move.LEAVE:
            writer.take(step)
            tick(step.status.st_blocks * 512)
    digest = {"format": FORMAT, "entries": writer.entries, "sha256": writer.digest.hexdigest()}
    writer.text(DIGEST, json.dumps(digest) + "\n")
    writer.archive.close()


class _Writer:
    def __init__(self, out: BinaryIO, owners: Owners) -> None:
        self.archive = tarfile.open(  # noqa: SIM115 - closed by its user
            fileobj=out, mode="w|", format=tarfile.PAX_FORMAT, encoding="utf-8", errors="surrogateescape"
        )
        self.owners = owners
        self.digest = hashlib.sha256()
        self.entries = 0
        self.links = tree.Names()
        self.room = _FolderRoom()

    def text(self, name: str, text: str) -> None:
        """A member that is made here."""
        content = text.encode()
        info = tarfile.TarInfo(name)
        info.size, info.mode = len(content), 0o600
        self._note(info)
        self.digest.update(content)
        self._add(info, io.BytesIO(content))

    def _add(self, info: tarfile.TarInfo, content: IO[bytes] | None = None) -> None:
        self.archive.addfile(info, content)
        vars(self.archive)["members"] = []  # tarfile would remember every one

    def _note(self, info: tarfile.TarInfo, ranges: Ranges | None = None) -> None:
        self.entries += 1
        self.digest.update(_summary(info, ranges))

    def folder(self, path: str, status: os.stat_result, extended: Mapping[str, bytes]) -> None:
        self.room.take(path)
        info = self._info(path, status, extended)
        self._note(info)
        self._add(info)

    def _info(self, path: str, status: os.stat_result, extended: Mapping[str, bytes]) -> tarfile.TarInfo:
        info = tarfile.TarInfo(path)
        info.type = _TYPE_OF[stat.S_IFMT(status.st_mode)]
        info.mode = stat.S_IMODE(status.st_mode)
        info.uid, info.gid = self.owners.id(status.st_uid), self.owners.id(status.st_gid)
        info.mtime = status.st_mtime_ns // 10**9
        headers = {"mtime": f"{info.mtime}.{status.st_mtime_ns % 10**9:09}"}
        for name, value in extended.items():
            moved = self.owners.attribute(name, value)
            headers[_ATTRIBUTE + _quoted(name)] = moved.decode("utf-8", "surrogateescape")
        info.pax_headers = headers
        return info

    def take(self, step: Step) -> None:
        """One object of the tree."""
        status = step.status
        path = f"{ROOT}/{step.path}"
        if step.move is Move.ENTER:
            fd = tree.open_folder(step.folder_fd, step.name)
            try:
                self.folder(path, status, owning.attributes(fd))
            finally:
                os.close(fd)
        elif stat.S_ISSOCK(status.st_mode):
            return  # nothing listens on it: a socket is its process's
        elif not self._linked(path, step):
            self._object(path, step)

    def _linked(self, path: str, step: Step) -> bool:
        first = self.links.first_of(step) if step.status.st_nlink > 1 else None
        if first is None:
            return False
        info = self._info(path, step.status, {})
        info.type, info.linkname = tarfile.LNKTYPE, f"{ROOT}/{first}"
        self._note(info)
        self._add(info)
        return True

    def _object(self, path: str, step: Step) -> None:
        if stat.S_ISREG(step.status.st_mode):
            self._regular(path, step)
            return
        info = self._info(path, step.status, {})
        if info.issym():
            info.linkname = os.readlink(step.name, dir_fd=step.folder_fd)
        if info.isdev() and not info.isfifo():
            info.devmajor, info.devminor = os.major(step.status.st_rdev), os.minor(step.status.st_rdev)
        self._note(info)
        self._add(info)

    def _regular(self, path: str, step: Step) -> None:
        fd = tree.open_file(step.folder_fd, step.name, step.status)
        try:
            info = self._info(path, step.status, owning.attributes(fd))
            info.size = size = step.status.st_size
            ranges = [(0, size)] if step.status.st_blocks * 512 >= size else list(tree.data_ranges(fd, size))
            if ranges not in ([(0, size)], []) or (size and not ranges):
                self._sparse(info, fd, ranges)
                return
            self._note(info)
            self._add(info, cast(IO[bytes], _Content(fd, [(0, size)], self.digest)))
        finally:
            os.close(fd)

    def _sparse(self, info: tarfile.TarInfo, fd: int, ranges: Ranges) -> None:
        """A file with holes, in the form that GNU tar calls 1.0: the map of its data comes before the data."""
        numbers = [len(ranges), *(number for pair in ranges for number in pair)]
        table = "".join(f"{number}\n" for number in numbers).encode()
        table += b"\0" * (-len(table) % tarfile.BLOCKSIZE)
        self._note(info, ranges)
        info.pax_headers = {
            **info.pax_headers,
            "GNU.sparse.major": "1",
            "GNU.sparse.minor": "0",
            "GNU.sparse.name": info.name,
            "GNU.sparse.realsize": str(info.size),
        }
        info.name = _SPARSE_NAME
        info.size = len(table) + sum(length for _, length in ranges)
        self._add(info, cast(IO[bytes], _Content(fd, ranges, self.digest, table)))


class _Content:
    """Reads the data of a file, and has it counted into the digest."""

    def __init__(self, fd: int, ranges: Ranges, digest: hashlib._Hash, head: bytes = b"") -> None:
        self.fd = fd
        self.ranges = list(ranges)
        self.digest = digest
        self.head = head

    def read(self, size: int) -> bytes:
        taken, self.head = self.head[:size], self.head[size:]
        parts = [taken]
        size -= len(taken)
        while size > 0 and self.ranges:
            offset, length = self.ranges.pop(0)
            chunk = os.pread(self.fd, min(size, length), offset) if length else b""
            if length and not chunk:
                raise PlatformError("the zone's root is being changed by somebody")
            if len(chunk) < length:
                self.ranges.insert(0, (offset + len(chunk), length - len(chunk)))
            self.digest.update(chunk)
            parts.append(chunk)
            size -= len(chunk)
        return b"".join(parts)


def _quoted(name: str) -> str:
    """An attribute's name as part of a keyword, which is ASCII and has no "="."""
    return quote_from_bytes(os.fsencode(name), safe="._-:@+ ")


# -- reading ----------------------------------------------------------------------------------------------------


class Archive:
    """An archive that is being read, once, from its beginning to its end."""

    def __init__(self, stream: Reader) -> None:
        self._digest = hashlib.sha256()
        self._entries = 0
        self._room = 0
        try:
            self._archive = tarfile.open(  # noqa: SIM115 - see close
                fileobj=cast(IO[bytes], stream), mode="r|", encoding="utf-8", errors="surrogateescape"
            )
        except (*_NONSENSE, OSError):
            raise PlatformError("this is no archive of a zone") from None
        first = self._next()
        if first is None or first.name != MANIFEST or not first.isreg():
            raise PlatformError("this is no archive of a zone")
        self.manifest = Manifest.parse(self._metadata(first))

    def close(self) -> None:
        self._archive.close()

    def _next(self) -> tarfile.TarInfo | None:
        try:
            info = self._archive.next()
        except (*_NONSENSE, OSError) as error:
            raise _damaged(error) from None
        vars(self._archive)["members"] = []  # tarfile would remember every one
        if info is not None and info.size < 0:
            raise PlatformError("the archive is damaged: {name} has an impossible size", name=info.name)
        return info

    def _metadata(self, info: tarfile.TarInfo, *, counted: bool = True) -> bytes:
        if info.size > _METADATA_MAX or info.issparse():
            raise PlatformError("the archive is damaged: {name} is too large", name=info.name)
        return b"".join(self._content(info) if counted else self._data(info))

    def _content(self, info: tarfile.TarInfo) -> Iterator[bytes]:
        """The data of a member, counted into the digest."""
        self._entries += 1
        self._digest.update(_summary(info))
        for chunk in self._data(info):
            self._digest.update(chunk)
            yield chunk

    def _data(self, info: tarfile.TarInfo) -> Iterator[bytes]:
        size = info.size
        if not size:
            return
        stream = self._archive.extractfile(info)
        assert stream is not None
        with stream:
            while size > 0:
                chunk = self._read(stream, min(size, _CHUNK_BYTES))
                size -= len(chunk)
                yield chunk

    def _read(self, stream: IO[bytes], size: int) -> bytes:
        try:
            chunk = stream.read(size)
        except (*_NONSENSE, OSError) as error:
            raise _damaged(error) from None
        if not chunk:
            raise PlatformError("the archive is damaged: it ends too early")
        return chunk

    def _take(self, size: int) -> None:
        """So much more is going to be on the disk."""
        self._room -= size
        if self._room < 0:
            raise PlatformError("not enough room on the disk for what the archive holds")

    def extract(
        self,
        zonepath_fd: int,
        say: Callable[[str], None],
        *,
        trust: bool = False,
        tick: Tick = lambda _: None,
    ) -> None:
        """Make the root in the empty zonepath.  What is left out is told.  Raises PlatformError, OSError."""
        extractor = _Extractor(zonepath_fd, trust)
        disk = os.fstatvfs(zonepath_fd)
        self._room = int(disk.f_bavail * disk.f_frsize * SHARE_OF_DISK)
        try:
            while (info := self._next()) is not None:
                if info.name == DIGEST and info.isreg():
                    self._check(self._metadata(info, counted=False))
                    extractor.finish(say)
                    return
                try:
                    self._extract(extractor, info)
                except _NONSENSE as error:
                    raise _damaged(error) from None
                tick(info.size)
        finally:
            extractor.close()
        raise PlatformError("the archive is not complete")

    def _extract(self, extractor: _Extractor, info: tarfile.TarInfo) -> None:
        if not info.isreg():
            self._entries += 1
            self._digest.update(_summary(info))
            extractor.make(info)
            return
        fd = extractor.new_file(info)
        try:
            if info.issparse():
                self._fill_sparse(info, fd)
            else:
                for chunk in self._content(info):
                    self._take(len(chunk))
                    _write_all(fd, chunk)
            extractor.dress(fd, info)
        finally:
            os.close(fd)

    def _fill_sparse(self, info: tarfile.TarInfo, fd: int) -> None:
        """Only the data; what tarfile would show as zeros in between stays a hole."""
        ranges = _sparse_map(info)
        self._entries += 1
        self._digest.update(_summary(info, ranges))
        plain = copy.copy(info)  # the same bytes of the archive, seen as they are
        plain.sparse, plain.size = None, sum(length for _, length in ranges)
        data = self._data(plain)
        rest, end = b"", 0
        for offset, length in ranges:
            if offset < end or length < 0 or offset + length > info.size:
                raise PlatformError("the archive is damaged: the map of a file with holes makes no sense")
            end = offset + length
            os.lseek(fd, offset, os.SEEK_SET)
            while length > 0:
                rest = rest or next(data)
                self._digest.update(rest[:length])
                self._take(len(rest[:length]))
                _write_all(fd, rest[:length])
                rest, length = rest[length:], length - min(length, len(rest))
        os.ftruncate(fd, info.size)

    def _check(self, content: bytes) -> None:
        try:
            table = json.loads(content)
            given = (table["entries"], table["sha256"])
        except (ValueError, KeyError, TypeError, RecursionError):
            raise PlatformError("the archive is damaged: its digest cannot be read") from None
        if given != (self._entries, self._digest.hexdigest()):
            raise PlatformError("the archive is damaged: its content is not what its digest says")


def _damaged(error: BaseException) -> PlatformError:
    return PlatformError("the archive is damaged: {why}", why=str(error) or type(error).__name__)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


class _Extractor:
    """Makes objects below the zonepath, on descriptors."""

    def __init__(self, zonepath_fd: int, trust: bool) -> None:
        self.top_fd = os.open(".", _FOLDER, dir_fd=zonepath_fd)
        self.trust = trust
        self.folders: list[
            tarfile.TarInfo
        ] = []  # their owners, modes and times come last, or nothing could be made
        self.room = _FolderRoom()
        self.left_out: list[str] = []
        self.count_left_out = 0
        self._parent: tuple[str, int] | None = None

    def close(self) -> None:
        self._forget_parent()
        os.close(self.top_fd)

    def _forget_parent(self) -> None:
        if self._parent is not None:
            os.close(self._parent[1])
            self._parent = None

    def place(self, name: str) -> tuple[int, str]:
        """(descriptor of the folder, last part of the name).  Raises PlatformError for a name that leads elsewhere."""
        parts = name.split("/")
        if parts[0] != ROOT or any(part in ("", ".", "..") for part in parts) or "\0" in name:
            raise PlatformError("the archive holds '{name}', which is not in a zone's root", name=name)
        above = "/".join(parts[:-1])
        if self._parent is None or self._parent[0] != above:
            self._forget_parent()
            self._parent = (above, self._open(parts[:-1], name))
        return self._parent[1], parts[-1]

    def _open(self, parts: list[str], name: str) -> int:
        fd = os.dup(self.top_fd)
        try:
            for start in range(0, len(parts), _COMPONENTS_AT_ONCE):
                some = "/".join(parts[start : start + _COMPONENTS_AT_ONCE])
                below = paths.open_beneath(fd, some, _FOLDER, in_root=False, no_xdev=True)
                os.close(fd)
                fd = below
        except OSError as error:
            os.close(fd)
            raise PlatformError("the archive holds '{name}': {why}", name=name, why=error.strerror) from None
        return fd

    def _owners(self, info: tarfile.TarInfo) -> tuple[int, int]:
        limit = 1 << 31 if self.trust else IDS_PER_ZONE
        for owner in (info.uid, info.gid):
            if not 0 <= owner < limit:
                raise PlatformError(
                    "the archive holds '{name}' of owner {owner}, which no zone has",
                    name=info.name,
                    owner=owner,
                )
        return info.uid, info.gid

    def _refuse(self, info: tarfile.TarInfo, error: OSError) -> PlatformError:
        if error.errno in (errno.EEXIST, errno.ENOTDIR, errno.ELOOP):
            return PlatformError("the archive holds '{name}' twice", name=info.name)
        return PlatformError("cannot make {name}: {why}", name=info.name, why=error.strerror)

    def new_file(self, info: tarfile.TarInfo) -> int:
        """A new, empty file."""
        parent_fd, leaf = self.place(info.name)
        self._owners(info)
        try:
            return os.open(leaf, _NEW, 0o600, dir_fd=parent_fd)
        except OSError as error:
            raise self._refuse(info, error) from None

    def dress(self, fd: int, info: tarfile.TarInfo) -> None:
        """Owner, attributes, mode and times."""
        uid, gid = self._owners(info)
        os.fchown(fd, uid, gid)
        for keyword, text in info.pax_headers.items():
            if keyword.startswith(_ATTRIBUTE):
                name = os.fsdecode(unquote_to_bytes(keyword[len(_ATTRIBUTE) :]))
                if owning.is_portable(name):
                    os.setxattr(fd, name, text.encode("utf-8", "surrogateescape"))
        os.fchmod(fd, info.mode & 0o7777)
        os.utime(fd, ns=_times(info))

    def make(self, info: tarfile.TarInfo) -> None:
        """Anything but a regular file."""
        parent_fd, leaf = self.place(info.name)
        uid, gid = self._owners(info)
        try:
            if info.isdir():
                self.room.take(info.name)
                os.mkdir(leaf, 0o700, dir_fd=parent_fd)
                self.folders.append(info)
            elif info.islnk():
                self._link(info, parent_fd, leaf)
            elif info.issym():
                os.symlink(info.linkname, leaf, dir_fd=parent_fd)
                self._dress_by_name(info, parent_fd, leaf, uid, gid)
            elif info.type in _TYPES and (info.isfifo() or self.trust):
                device = 0 if info.isfifo() else os.makedev(info.devmajor, info.devminor)
                os.mknod(leaf, _TYPES[info.type] | 0o600, device, dir_fd=parent_fd)
                self._dress_by_name(info, parent_fd, leaf, uid, gid)
                os.chmod(leaf, info.mode & 0o7777, dir_fd=parent_fd)
            else:
                self._leave_out(info)
        except OSError as error:
            raise self._refuse(info, error) from None

    def _leave_out(self, info: tarfile.TarInfo) -> None:
        self.count_left_out += 1
        if len(self.left_out) < _NAMES_TOLD:
            self.left_out.append(info.name)

    def _dress_by_name(self, info: tarfile.TarInfo, parent_fd: int, leaf: str, uid: int, gid: int) -> None:
        os.chown(leaf, uid, gid, dir_fd=parent_fd, follow_symlinks=False)
        os.utime(leaf, ns=_times(info), dir_fd=parent_fd, follow_symlinks=False)

    def _link(self, info: tarfile.TarInfo, parent_fd: int, leaf: str) -> None:
        """A further name of a file that the archive has brought: never of anything else."""
        parts = info.linkname.split("/")
        if parts[0] != ROOT or len(parts) < 2 or any(part in ("", ".", "..") for part in parts):
            raise PlatformError("the archive holds a link to '{name}'", name=info.linkname)
        folder_fd = self._open(parts[:-1], info.linkname)
        try:
            os.link(parts[-1], leaf, src_dir_fd=folder_fd, dst_dir_fd=parent_fd, follow_symlinks=False)
        except FileNotFoundError:
            if info.linkname not in self.left_out:
                raise
            self._leave_out(info)
        finally:
            os.close(folder_fd)

    def finish(self, say: Callable[[str], None]) -> None:
        """What comes last: folders, from the innermost out, and a word on what was left out."""
        if not any(info.name == ROOT for info in self.folders):
            raise PlatformError("the archive holds no root of a zone")
        self._forget_parent()
        for info in reversed(self.folders):
            fd = self._open(info.name.split("/"), info.name)
            try:
                self.dress(fd, info)
            finally:
                os.close(fd)
        for name in self.left_out:
            say(message("left out: {name} (a device node; --trust keeps it)", name=name))
        more = self.count_left_out - len(self.left_out)
        if more:
            say(message("left out: {more} more", more=more))


def _times(info: tarfile.TarInfo) -> tuple[int, int]:
    """Access and modification time in nanoseconds, as exactly as the archive has it, within what a file can have."""
    whole, _, part = str(info.pax_headers.get("mtime", info.mtime)).partition(".")
    try:
        nanoseconds = int(whole) * 10**9 + int((part + "0" * 9)[:9])
    except ValueError:
        nanoseconds = 0
    nanoseconds = max(-(1 << 31) * 10**9, min(nanoseconds, (1 << 34) * 10**9))
    return nanoseconds, nanoseconds
