"""Where a root comes from: a folder, an archive of files, an image in a layout or an archive, a registry."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Final

from zonemgr.brandkit import InitProgram, NotCompleted, UsageError, message
from zonemgr.brandkit.rootdir import RootDir

from . import archive, oci, program
from .unpack import Unpacker

REGISTRY: Final = "docker://"
# What skopeo fetches: from a registry, a daemon or another tool's storage, and from files (whose names follow).
FILES: Final = ("oci:", "oci-archive:", "docker-archive:", "dir:")
FETCHED: Final = (REGISTRY, "docker-daemon:", "containers-storage:", *FILES)
DOWNLOAD: Final = "image.download"  # below the zonepath, while a registry is read

Say = Callable[[str], None]


def fill(root: RootDir, source: str, scratch: str, *, tag: str, wanted: str, say: Say) -> None:
    """Fill an empty root and write down what it runs.  Raises NotCompleted, UsageError, OSError."""
    with Unpacker(root) as unpacker, archive.damage_told():
        if source.startswith(FETCHED):
            config = _by_skopeo(source, scratch, unpacker, tag, say)
        elif os.path.isdir(source):
            config = _from_folder(source, unpacker, tag, say)
        elif os.path.isfile(source):
            config = _from_file(source, scratch, unpacker, tag, say)
        else:
            raise UsageError(
                "{source}: No such file or folder (an image of a registry is written {registry}NAME:TAG)",
                source=source,
                registry=REGISTRY,
            )
    if unpacker.devices:
        say(message("{count} device nodes left out: a zone has its own /dev", count=unpacker.devices))
    for folder, mode in (
        ("/dev", 0o755),
        ("/proc", 0o555),
        ("/sys", 0o555),
        ("/run", 0o755),
        ("/etc", 0o755),
    ):
        root.folder(folder, mode)
    program.write(root, _program(root, config, wanted), source)
    say(
        message(
            "{files} files, {megabytes:.1f} MB",
            files=unpacker.objects,
            megabytes=unpacker.written / 1000000.0,
        )
    )


def _program(root: RootDir, config: oci.Json | None, wanted: str) -> InitProgram:
    inner = config.get("config") if config is not None else None
    if inner is not None and not isinstance(inner, dict):
        raise NotCompleted("the image's configuration is damaged")
    found = program.from_config(root, inner or {}, wanted) if config is not None else program.system(root)
    if found is None:
        raise NotCompleted("the root has no init (looked for {inits})", inits=", ".join(program.SYSTEM_INITS))
    return found


# -- each kind --------------------------------------------------------------------------------------------------


def _from_folder(path: str, unpacker: Unpacker, tag: str, say: Say) -> oci.Json | None:
    if os.path.isfile(f"{path}/oci-layout") or os.path.isfile(f"{path}/index.json"):
        files = oci.Folder(path)
        try:
            return _image(files, unpacker, tag, say)
        finally:
            files.close()
    say(message("copying {path}", path=path))
    archive.unpack_folder(path, unpacker)
    return None


def _from_file(path: str, scratch: str, unpacker: Unpacker, tag: str, say: Say) -> oci.Json | None:
    with open(path, "rb") as file:
        if not archive.compression(file):
            if archive.is_image(file):
                return _from_image_archive(file, scratch, unpacker, tag, say)
        elif _packed_image(file):
            with _unpacked(file, scratch) as plain:
                return _from_image_archive(plain, scratch, unpacker, tag, say)
        say(message("unpacking {path}", path=path))
        with archive.plain(file) as reader:
            archive.unpack_tar(reader, unpacker)
    return None


def _packed_image(file: IO[bytes]) -> bool:
    """Whether a compressed tar holds an image: its beginning is unpacked to see."""
    with archive.plain(file) as reader, tempfile.TemporaryFile() as head:
        head.write(reader.read(64 << 10))
        found = archive.is_image(head)
    file.seek(0)
    return found


@contextmanager
def _unpacked(file: IO[bytes], scratch: str) -> Iterator[IO[bytes]]:
    """A compressed archive as a plain file: the files of an image are read in an order of their own."""
    with archive.plain(file) as reader, archive.spooled(reader, scratch) as plain:
        yield plain


def _from_image_archive(file: IO[bytes], scratch: str, unpacker: Unpacker, tag: str, say: Say) -> oci.Json:
    files = oci.Tar(file, scratch)
    try:
        return _image(files, unpacker, tag, say)
    finally:
        files.close()


def _image(files: oci.Files, unpacker: Unpacker, tag: str, say: Say) -> oci.Json:
    image = oci.find(files, tag)
    say(message("image {digest}", digest=image.digest))
    oci.unpack(files, image, unpacker, say)
    return image.config


def located(source: str, folder: str) -> str:
    """The source with a relative name of a file completed."""
    transport = next((found for found in FETCHED if source.startswith(found)), "")
    if transport and transport not in FILES:
        return source
    return transport + os.path.join(folder, source.removeprefix(transport))


def _by_skopeo(source: str, scratch: str, unpacker: Unpacker, tag: str, say: Say) -> oci.Json | None:
    if shutil.which("skopeo") is None:
        raise NotCompleted(
            "such images are fetched by skopeo: install the package skopeo on the host"
        )
    if tag:
        raise UsageError("an image that skopeo fetches is named in the reference, not with -t")
    folder = f"{scratch}/{DOWNLOAD}"
    shutil.rmtree(folder, ignore_errors=True)
    say(message("fetching {source}", source=source))
    try:
        done = subprocess.run(["skopeo", "copy", "--quiet", "--", source, f"oci:{folder}:zone"])
        if done.returncode:
            raise NotCompleted("skopeo could not fetch {source}", source=source)
        return _from_folder(folder, unpacker, "", say)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
