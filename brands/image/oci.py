"""OCI images: a layout on disk, or a tar of one; which manifest is meant, what it says, and its layers.

Nothing is believed before its digest and size have been verified.  An image's configuration decides what runs inside
of the zone and as whom; it grants nothing beyond that, whatever it says.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, Final, Protocol

from zonemgr.brandkit import NotCompleted, message
from zonemgr.brandkit.rootdir import RootDir

from . import archive
from .unpack import Reader, Unpacker, parts_of

DOCUMENT_MAX_BYTES: Final = 4 << 20
LAYERS_MAX: Final = 512
FILES_MAX: Final = 100_000  # of a layout in a tar
NAME_ANNOTATION: Final = "org.opencontainers.image.ref.name"
_CHUNK_BYTES: Final = 1 << 20
_DIGEST: Final = re.compile(r"(sha256):([0-9a-f]{64})|(sha512):([0-9a-f]{128})")
_INDEX_TYPES: Final = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
_MANIFEST_TYPES: Final = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
_MACHINES: Final = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}

Json = dict[str, Any]


class Files(Protocol):
    """The files of a layout, wherever they are."""

    def open(self, name: str) -> IO[bytes]:
        """A regular file for reading.  OSError when there is none."""


class Folder:
    """A layout as a folder, which may have been made by anybody: no link in it is followed."""

    def __init__(self, path: str) -> None:
        self._root = RootDir(os.path.realpath(path))

    def open(self, name: str) -> IO[bytes]:
        fd = self._root.open("/" + name, os.O_RDONLY | os.O_NONBLOCK, follow=False)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise FileNotFoundError(2, "not a regular file", name)
        return open(fd, "rb")

    def close(self) -> None:
        """Let go of the folder."""
        self._root.close()


class Tar:
    """A layout in a plain tar on disk."""

    def __init__(self, file: IO[bytes], scratch: str) -> None:
        file.seek(0)
        self._scratch = scratch
        self._archive = tarfile.open(fileobj=file, mode="r:", tarinfo=archive.Header)  # noqa: SIM115 - close() does
        self._members: dict[str, tarfile.TarInfo] = {}
        for count, member in enumerate(self._archive):
            archive.check_size(member)
            if member.isreg() and not member.issparse():  # blobs have no holes
                self._members["/".join(parts_of(member.name))] = member
            if count > FILES_MAX:
                raise NotCompleted("the archive holds too many files for an image")

    def open(self, name: str) -> IO[bytes]:
        member = self._members.get(name)
        source = self._archive.extractfile(member) if member is not None else None
        if source is None:
            raise FileNotFoundError(2, "No such file in the archive", name)
        # A file of its own: a decompressing program reads it by descriptor.
        return archive.spooled(source, self._scratch)

    def close(self) -> None:
        """Let go of the archive."""
        self._archive.close()


@dataclass(frozen=True, slots=True)
class Image:
    """One image of a layout: its configuration and the descriptors of its layers, lowest first."""

    config: Json
    layers: tuple[Json, ...]
    diff_ids: tuple[str, ...]
    digest: str


# -- digests ----------------------------------------------------------------------------------------------------


def _hash(digest: object, what: str) -> tuple[Any, str]:
    match = _DIGEST.fullmatch(digest) if isinstance(digest, str) else None
    if match is None:
        raise NotCompleted("{what} has no digest that can be verified: {digest!r}", what=what, digest=digest)
    algorithm, expected = (match[1], match[2]) if match[1] else (match[3], match[4])
    return hashlib.new(algorithm), expected


class _Verified:
    """Passes data on and knows its digest at the end."""

    def __init__(self, reader: Reader, digest: str, what: str) -> None:
        self._reader = reader
        self._hash, self._expected = _hash(digest, what)
        self._what = what

    def read(self, size: int = -1, /) -> bytes:
        chunk = self._reader.read(size)
        self._hash.update(chunk)
        return chunk

    def check(self) -> None:
        """All has been read: raises NotCompleted when it was not what it should be."""
        if self._hash.hexdigest() != self._expected:
            raise NotCompleted("{what} does not match its digest", what=self._what)


@contextmanager
def blob(files: Files, descriptor: Json, what: str, size_max: int | None = None) -> Iterator[IO[bytes]]:
    """What a descriptor points to, verified, as a file at its beginning.  Raises NotCompleted."""
    digest, size = descriptor.get("digest"), descriptor.get("size")
    check, expected = _hash(digest, what)
    if (
        not isinstance(size, int)
        or isinstance(size, bool)
        or size < 0
        or (size_max is not None and size > size_max)
    ):
        raise NotCompleted("{what} has an impossible size: {size!r}", what=what, size=size)
    try:
        file = files.open(f"blobs/{check.name}/{expected}")
    except OSError as error:
        raise NotCompleted("{what} {digest}: {why}", what=what, digest=digest, why=error.strerror) from error
    with file:
        length = 0
        while chunk := file.read(_CHUNK_BYTES):
            check.update(chunk)
            length += len(chunk)
            if length > size:
                break
        if length != size or check.hexdigest() != expected:
            raise NotCompleted("{what} {digest} does not match its digest and size", what=what, digest=digest)
        file.seek(0)
        yield file


def _document(files: Files, descriptor: Json, what: str) -> Json:
    with blob(files, descriptor, what, DOCUMENT_MAX_BYTES) as file:
        return _parse(file.read(), what)


def _parse(data: bytes, what: str) -> Json:
    try:
        table = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise NotCompleted("{what} is not JSON: {why}", what=what, why=error) from error
    if not isinstance(table, dict):
        raise NotCompleted("{what} is not a JSON object", what=what)
    return table


def _rows(table: Json, key: str, what: str) -> list[Json]:
    rows = table.get(key)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise NotCompleted("{what} has no list '{key}'", what=what, key=key)
    return rows


def _part(row: Json, key: str) -> Json:
    """An object in an object; empty for whatever else is there."""
    found = row.get(key)
    return found if isinstance(found, dict) else {}


# -- choosing ---------------------------------------------------------------------------------------------------


def find(files: Files, tag: str = "") -> Image:
    """The image for this machine; by its name in the layout when there are several.  Raises NotCompleted."""
    try:
        with files.open("index.json") as file:
            index = _parse(file.read(DOCUMENT_MAX_BYTES), "index.json")
    except OSError as error:
        raise NotCompleted(
            "this is no OCI image: it has no index.json ({why})", why=error.strerror
        ) from error
    chosen = _named(_rows(index, "manifests", "index.json"), tag)
    for _level in range(4):  # an index may hold another one
        if chosen.get("mediaType") not in _INDEX_TYPES:
            break
        below = _document(files, chosen, "image index")
        chosen = _for_this_machine(_rows(below, "manifests", "image index"))
    if chosen.get("mediaType", _MANIFEST_TYPES[0]) not in _MANIFEST_TYPES:
        raise NotCompleted("this is no image, but {type}", type=chosen.get("mediaType"))
    return _image(files, chosen)


def _named(rows: list[Json], tag: str) -> Json:
    names = [str(_part(row, "annotations").get(NAME_ANNOTATION, "")) for row in rows]
    if tag:
        found = [row for row, name in zip(rows, names, strict=True) if tag in (name, name.rpartition(":")[2])]
        if not found:
            raise NotCompleted(
                "no image '{tag}' here; there are: {names}", tag=tag, names=", ".join(names) or "none"
            )
        return found[0]
    if len(rows) > 1 and len(set(names)) == len(rows):
        raise NotCompleted("there are several images here, name one with -t: {names}", names=", ".join(names))
    return rows[0] if len(rows) == 1 else _for_this_machine(rows)


def _for_this_machine(rows: list[Json]) -> Json:
    machine = os.uname().machine
    wanted = ("linux", _MACHINES.get(machine, machine))
    found = []
    for row in rows:
        platform = _part(row, "platform")
        found.append((str(platform.get("os", "")), str(platform.get("architecture", ""))))
        if found[-1] == wanted:
            return row
    known = ", ".join("/".join(pair) for pair in found if pair != ("unknown", "unknown"))
    raise NotCompleted(
        "the image is not for {wanted}, but for: {known}", wanted="/".join(wanted), known=known or "none"
    )


def _image(files: Files, descriptor: Json) -> Image:
    manifest = _document(files, descriptor, "manifest")
    layers = tuple(_rows(manifest, "layers", "manifest"))
    config_descriptor = manifest.get("config")
    if not isinstance(config_descriptor, dict):
        raise NotCompleted("the manifest has no configuration")
    config = _document(files, config_descriptor, "image configuration")
    machine = os.uname().machine
    made_for = (config.get("os"), config.get("architecture"))
    if made_for != ("linux", _MACHINES.get(machine, machine)):
        raise NotCompleted(
            "the image is for {os}/{machine}, this host is not", os=made_for[0], machine=made_for[1]
        )
    diff_ids = _part(config, "rootfs").get("diff_ids")
    if not isinstance(diff_ids, list) or len(diff_ids) != len(layers) or len(layers) > LAYERS_MAX:
        raise NotCompleted("manifest and configuration do not have the same layers")
    for layer in layers:
        if "tar" not in str(layer.get("mediaType", "")):
            raise NotCompleted("a layer is no archive, but {type}", type=layer.get("mediaType"))
    return Image(config, layers, tuple(diff_ids), str(descriptor.get("digest")))


def unpack(files: Files, image: Image, unpacker: Unpacker, say: Callable[[str], None]) -> None:
    """Apply the layers to an empty root.  Raises NotCompleted, OSError."""
    for number, (layer, diff_id) in enumerate(zip(image.layers, image.diff_ids, strict=True), 1):
        unpacker.begin_layer()
        with blob(files, layer, f"layer {number}") as file, archive.plain(file) as reader:
            say(
                message(
                    "layer {number} of {all}: {megabytes:.1f} MB",
                    number=number,
                    all=len(image.layers),
                    megabytes=layer["size"] / 1000000.0,
                )
            )
            content = _Verified(reader, diff_id, f"layer {number}, unpacked,")
            archive.unpack_tar(content, unpacker, whiteouts=True)
            content.check()
