"""Tar archives, plain or compressed, and folders, read one object after the other.

Compression is told by content, never by name.  gzip and xz are Python's own; zstd is the program of that name, run on
the host, which is what distributions ship.
"""

from __future__ import annotations

import dataclasses
import gzip
import lzma
import os
import stat
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, Final

from zonemgr.brandkit import NotCompleted, tree
from zonemgr.brandkit.owners import attributes

from .unpack import SHARE_OF_DISK, WHITEOUT, Entry, Reader, Unpacker, parts_of

HEADER_MAX_BYTES: Final = 1 << 20  # of one extended header, which tarfile reads into memory
_CHUNK_BYTES: Final = 1 << 20
_MAGIC: Final = (
    (b"\x1f\x8b", "gz"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x28\xb5\x2f\xfd", "zst"),
    (b"BZh", "bz2"),
)
_EXTENDED: Final = frozenset(
    (
        tarfile.GNUTYPE_LONGNAME,
        tarfile.GNUTYPE_LONGLINK,
        tarfile.XHDTYPE,
        tarfile.XGLTYPE,
        tarfile.SOLARIS_XHDTYPE,
    )
)
_KINDS: Final = {
    tarfile.DIRTYPE: stat.S_IFDIR,
    tarfile.SYMTYPE: stat.S_IFLNK,
    tarfile.LNKTYPE: 0,
    tarfile.FIFOTYPE: stat.S_IFIFO,
    tarfile.CHRTYPE: stat.S_IFCHR,
    tarfile.BLKTYPE: stat.S_IFBLK,
}
# What tarfile and the decompressors raise for data that is not what it should be.
DAMAGED: Final = (
    tarfile.TarError,
    gzip.BadGzipFile,
    lzma.LZMAError,
    zlib.error,
    EOFError,
    UnicodeError,
    ValueError,
)
_XATTR: Final = "SCHILY.xattr."


@contextmanager
def damage_told() -> Iterator[None]:
    """Whatever data that is not what it should be raises becomes NotCompleted."""
    try:
        yield
    except DAMAGED as error:
        raise NotCompleted("the archive is damaged: {why}", why=str(error) or type(error).__name__) from error


class Header(tarfile.TarInfo):
    """A header that is refused before tarfile would read gigabytes because of it."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str | None, errors: str) -> Header:
        header = super().frombuf(buf, encoding, errors)  # type: ignore[arg-type]
        if header.type in _EXTENDED and not 0 <= header.size <= HEADER_MAX_BYTES:
            raise NotCompleted("the archive has a header of {size} bytes", size=header.size)
        return header


def check_size(header: tarfile.TarInfo) -> None:
    """NotCompleted for one by which tarfile would go backwards, and round and round."""
    if header.size < 0:
        raise NotCompleted("entry '{name}' has an impossible size", name=header.name)


# -- compression ------------------------------------------------------------------------------------------------


def compression(file: IO[bytes]) -> str:
    """``gz``, ``xz``, ``zst``, or nothing.  The file stands at its beginning, before and after."""
    head = file.read(6)
    file.seek(0)
    found = next((name for magic, name in _MAGIC if head.startswith(magic)), "")
    if found == "bz2":
        raise NotCompleted("bzip2 is not supported: use gz, xz or zst")
    return found


@contextmanager
def plain(file: IO[bytes]) -> Iterator[Reader]:
    """The content of a file on disk without its compression."""
    kind = compression(file)
    if kind == "gz":
        with gzip.GzipFile(fileobj=file) as unpacked:
            yield unpacked
    elif kind == "xz":
        with lzma.LZMAFile(file) as unpacked:
            yield unpacked
    elif kind == "zst":
        with _zstd(file) as reader:
            yield reader
    else:
        yield file


@contextmanager
def _zstd(file: IO[bytes]) -> Iterator[Reader]:
    command = ["zstd", "--decompress", "--stdout", "--quiet", "--memory=512MB"]
    file.seek(0)
    os.lseek(file.fileno(), 0, os.SEEK_SET)
    try:
        process = subprocess.Popen(command, stdin=file, stdout=subprocess.PIPE)
    except FileNotFoundError:
        raise NotCompleted("zstd is not installed: install the package zstd on the host") from None
    assert process.stdout is not None
    try:
        yield process.stdout
        if process.stdout.read(1) == b"" and process.wait():
            raise NotCompleted("the zstd data is damaged")
    finally:
        process.kill()
        process.stdout.close()
        process.wait()


def spooled(reader: Reader, folder: str) -> IO[bytes]:
    """All of it as a file of its own, without a name.  NotCompleted before the disk is full: a few bytes can become as
    many as they like.
    """
    disk = os.statvfs(folder)
    left = int(disk.f_bavail * disk.f_frsize * SHARE_OF_DISK)
    copy = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - the caller closes it
    try:
        while chunk := reader.read(_CHUNK_BYTES):
            left -= len(chunk)
            if left < 0:
                raise NotCompleted("not enough room on the disk for what the archive holds")
            copy.write(chunk)
        copy.seek(0)
    except BaseException:
        copy.close()
        raise
    return copy


# -- tar --------------------------------------------------------------------------------------------------------


def members(reader: Reader) -> Iterator[tuple[Entry, Reader | None]]:
    """The entries of a tar stream; content is valid until the next one.  Raises what tarfile does (``DAMAGED``)."""
    with tarfile.open(
        fileobj=reader,  # type: ignore[call-overload]
        mode="r|",
        tarinfo=Header,
        bufsize=64 * tarfile.RECORDSIZE,
        errors="surrogateescape",
    ) as archive:
        while (header := archive.next()) is not None:
            check_size(header)
            archive.members.clear()  # or it would keep every header of the archive
            yield _entry(header), archive.extractfile(header) if header.isreg() else None
    while reader.read(_CHUNK_BYTES):
        pass  # what follows the end marker still belongs to the digest


def _entry(header: tarfile.TarInfo) -> Entry:
    headers: Any = header.pax_headers
    extended = {
        key.removeprefix(_XATTR): value.encode("utf-8", "surrogateescape")
        for key, value in headers.items()
        if key.startswith(_XATTR)
    }
    return Entry(
        name=header.name,
        kind=stat.S_IFREG if header.isreg() else _KINDS.get(header.type, stat.S_IFREG),
        mode=header.mode,
        uid=header.uid,
        gid=header.gid,
        mtime=min(max(float(header.mtime), 0.0), 2.0**33),
        size=header.size,
        target=header.linkname,
        attributes=extended,
    )


def unpack_tar(reader: Reader, unpacker: Unpacker, *, whiteouts: bool = False) -> None:
    """All of a tar stream.  ``whiteouts``: it is a layer of an image.  Raises NotCompleted, OSError."""
    with damage_told():
        for entry, content in members(reader):
            if whiteouts and entry.name.rstrip("/").rpartition("/")[2].startswith(WHITEOUT):
                unpacker.hide(entry.name)
            else:
                unpacker.add(entry, content)


def is_image(file: IO[bytes]) -> bool:
    """Whether a plain tar on disk holds an image rather than a root: by its first entry, the rest may be gigabytes."""
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:", tarinfo=Header) as archive:
            header = archive.next()
            first = parts_of(header.name)[:1] if header else ()
    except tarfile.TarError as error:
        raise NotCompleted("this is no tar archive: {why}", why=error) from error
    finally:
        file.seek(0)
    word = first[0] if first else ""
    return word in ("blobs", "oci-layout", "index.json", "manifest.json", "repositories")


# -- folders ----------------------------------------------------------------------------------------------------


def unpack_folder(path: str, unpacker: Unpacker) -> None:
    """A copy of a folder of the host; nothing in it is followed."""
    top_fd = os.open(path, tree.FOLDER & ~os.O_NOFOLLOW)
    names = tree.Names()
    try:
        for step in tree.walk(top_fd):
            if step.move is tree.Move.LEAVE:
                continue
            status = step.status
            is_device = stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode)
            if step.move is tree.Move.FILE and status.st_nlink > 1 and not is_device:
                first = names.first_of(step)
                if first is not None:
                    unpacker.add(Entry(step.path, 0, uid=status.st_uid, gid=status.st_gid, target=first))
                    continue
            _add_step(step, unpacker)
    finally:
        os.close(top_fd)


def _add_step(step: tree.Step, unpacker: Unpacker) -> None:
    status = step.status
    entry = Entry(
        name=step.path,
        kind=stat.S_IFMT(status.st_mode),
        mode=status.st_mode,
        uid=status.st_uid,
        gid=status.st_gid,
        mtime=status.st_mtime,
        size=status.st_size,
        target=os.readlink(step.name, dir_fd=step.folder_fd) if stat.S_ISLNK(status.st_mode) else "",
    )
    if not stat.S_ISREG(status.st_mode):
        unpacker.add(entry)
        return
    with open(tree.open_file(step.folder_fd, step.name, status), "rb", buffering=0) as file:
        unpacker.add(dataclasses.replace(entry, attributes=attributes(file.fileno())), file)
