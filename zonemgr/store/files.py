"""Writing files so that a reader sees the old or the new content, never a part, also after a crash or a full disk.

Errors are PlatformError with the file's name; nothing is left behind.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zonemgr.errors import PlatformError

MAX_READ_BYTES = 4 << 20


def write_atomic(path: Path, data: bytes | str, mode: int = 0o644, *, durable: bool = True) -> None:
    """Replace the file's content by rename.  ``mode`` is exact, whatever the umask.  Raises PlatformError.

    What does not outlive the host's boot is not ``durable``: nobody waits for a disk.
    """
    content = data.encode() if isinstance(data, str) else data
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        _write_new(temporary, content, mode, durable)
        os.rename(temporary, path)
        if durable:
            sync_directory(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise PlatformError(
            "cannot write {path}: {why} (the old content is kept)", path=path, why=error.strerror or error
        ) from error


def _write_new(path: Path, content: bytes, mode: int, durable: bool) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o600)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fchmod(descriptor, mode)
        if durable:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_directory(path: Path) -> None:
    """Make renames in the folder durable; file systems that cannot are left alone."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def make_directory(path: Path, mode: int = 0o755) -> None:
    """Make the folder and its missing parents; only the folder itself gets ``mode``.  Raises PlatformError."""
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        try:
            path.mkdir(mode=mode)
        except FileExistsError:
            if not path.is_dir():
                raise
        else:
            path.chmod(mode)
    except OSError as error:
        raise PlatformError("cannot make the folder {path}: {why}", path=path, why=error.strerror) from error


def read_bytes(path: Path, limit_bytes: int = MAX_READ_BYTES) -> bytes | None:
    """The file's content, or None when there is no such file.  Raises PlatformError, also for one over the limit, and
    for what is no regular file: nobody waits for the writer of a FIFO.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise PlatformError("cannot read {path}: {why}", path=path, why=error.strerror) from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise PlatformError("{path} is not a regular file", path=path)
        content = _read_all(descriptor, status.st_size, limit_bytes)
    except OSError as error:
        raise PlatformError("cannot read {path}: {why}", path=path, why=error.strerror) from error
    finally:
        os.close(descriptor)
    if len(content) > limit_bytes:
        raise PlatformError("{path} is larger than {limit} bytes", path=path, limit=limit_bytes)
    return content


def _read_all(descriptor: int, size: int, limit_bytes: int) -> bytes:
    """Until the end, or past the limit.  A stream would ask for memory up to the limit for each small file."""
    step = max(4096, min(size, limit_bytes) + 1)
    content = b""
    while len(content) <= limit_bytes and (chunk := os.read(descriptor, step)):
        content += chunk
    return content


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in the file, or None when there is no file.  Raises PlatformError for anything else."""
    content = read_bytes(path)
    if content is None:
        return None
    try:
        value = json.loads(content)
    except ValueError as error:
        raise PlatformError("{path} is damaged: {why}", path=path, why=error) from error
    if not isinstance(value, dict):
        raise PlatformError("{path} is damaged: not a JSON object", path=path)
    return value


def write_json(path: Path, value: Mapping[str, Any], mode: int = 0o644, *, durable: bool = True) -> None:
    """Write the object by rename, one line, keys in the order given."""
    write_atomic(path, json.dumps(value, ensure_ascii=False) + "\n", mode, durable=durable)
