"""Streams that may be compressed: zstd by its program where there is one, gzip by Python, or not at all.

Reading goes by what the stream begins with, never by a name.  Nothing is spooled.
"""

from __future__ import annotations

import enum
import os
import shutil
import stat
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, BinaryIO, Final, Protocol, cast

from zonemgr.errors import PlatformError

_CHUNK_BYTES: Final = 1 << 20
_LONGEST_MAGIC: Final = 4


class Reader(Protocol):
    """What is needed of a stream that is read."""

    def read(self, size: int, /) -> bytes: ...


class Kind(enum.Enum):
    """How a stream is compressed, and what it then begins with."""

    ZSTD = b"\x28\xb5\x2f\xfd"
    GZIP = b"\x1f\x8b"
    NONE = b""

    @classmethod
    def of_name(cls, name: str) -> Kind:
        """What a file's name asks for; the best there is when it says nothing."""
        if name.endswith((".gz", ".tgz")):
            return cls.GZIP
        if name.endswith(".tar"):
            return cls.NONE
        return cls.ZSTD if name.endswith(".zst") or _program() else cls.GZIP


def _program() -> str | None:
    return shutil.which("zstd", path="/usr/local/bin:/usr/bin:/bin")


def _required_program() -> str:
    found = _program()
    if found is None:
        raise PlatformError("there is no zstd on this host (install it, or use gzip: a name that ends in .tar.gz)")
    return found


@contextmanager
def compressed(fd: int, kind: Kind) -> Iterator[BinaryIO]:
    """A stream whose bytes go to ``fd`` compressed.  At its end everything has arrived.  Raises PlatformError."""
    if kind is Kind.NONE:
        with os.fdopen(os.dup(fd), "wb") as plain:
            yield plain
    elif kind is Kind.GZIP:
        import gzip

        with os.fdopen(os.dup(fd), "wb") as raw, gzip.GzipFile(fileobj=raw, mode="wb", compresslevel=6) as zipped:
            yield cast(BinaryIO, zipped)
    else:
        words = [_required_program(), "-q", "-c", "-T0"]
        with _process(words, stdin=subprocess.PIPE, stdout=fd, stderr=subprocess.PIPE) as program:
            assert program.stdin is not None
            try:
                yield cast(BinaryIO, program.stdin)
                program.stdin.close()
            except BrokenPipeError:
                raise _why(program) from None
            if program.wait():
                raise _why(program)


def _why(program: subprocess.Popen[bytes]) -> PlatformError:
    """What the program said last."""
    assert program.stderr is not None
    said = program.stderr.read(4096).decode(errors="replace").strip().splitlines()
    return PlatformError("cannot compress: {why}", why=said[-1].strip() if said else "zstd failed")


@contextmanager
def expanded(fd: int) -> Iterator[Reader]:
    """What ``fd`` holds, expanded if need be.  Raises PlatformError."""
    with os.fdopen(os.dup(fd), "rb", buffering=0) as raw:
        head = _head(raw)
        kind = next(kind for kind in Kind if head.startswith(kind.value))
        whole = _Prefixed(head, raw)
        if kind is Kind.NONE:
            yield whole
        elif kind is Kind.GZIP:
            import gzip

            with gzip.GzipFile(fileobj=cast(BinaryIO, whole), mode="rb") as zipped:
                yield cast(Reader, zipped)
        else:
            with _expander(whole, raw) as reader:
                yield reader


def _head(raw: IO[bytes]) -> bytes:
    head = b""
    while len(head) < _LONGEST_MAGIC:
        chunk = raw.read(_LONGEST_MAGIC - len(head))
        if not chunk:
            break
        head += chunk
    return head


class _Prefixed:
    """A stream with some bytes put back in front."""

    def __init__(self, head: bytes, rest: IO[bytes]) -> None:
        self.head = head
        self.rest = rest

    def read(self, size: int = -1, /) -> bytes:
        if not self.head:
            return self.rest.read(size)
        taken = self.head if size < 0 else self.head[:size]
        self.head = self.head[len(taken) :]
        return taken


@contextmanager
def _expander(whole: _Prefixed, raw: IO[bytes]) -> Iterator[Reader]:
    words = [_required_program(), "-d", "-q", "-c"]
    if stat.S_ISREG(os.fstat(raw.fileno()).st_mode):
        os.lseek(raw.fileno(), -len(whole.head), os.SEEK_CUR)
        with _process(words, stdin=raw.fileno(), stdout=subprocess.PIPE) as program:
            assert program.stdout is not None
            yield cast(Reader, program.stdout)
        return
    with _process(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as program:
        assert program.stdin is not None and program.stdout is not None
        # What was read ahead cannot be put back into a pipe, so somebody has to pass the rest on.
        feeder = threading.Thread(target=_feed, args=(whole, program.stdin), daemon=True)
        feeder.start()
        yield cast(Reader, program.stdout)


def _feed(source: _Prefixed, sink: IO[bytes]) -> None:
    with suppress(OSError, ValueError):  # the reader has seen enough, or the writer has gone: the digest tells
        while chunk := source.read(_CHUNK_BYTES):
            sink.write(chunk)
    with suppress(OSError):
        sink.close()


@contextmanager
def _process(
    words: list[str], *, stdin: int, stdout: int, stderr: int = subprocess.DEVNULL
) -> Iterator[subprocess.Popen[bytes]]:
    """A program that is gone at the end, whatever happens.  It dies with us: its other end closes."""
    program = subprocess.Popen(words, stdin=stdin, stdout=stdout, stderr=stderr, start_new_session=True)
    try:
        yield program
    finally:
        if program.poll() is None:
            program.kill()
        program.wait()
        for stream in (program.stdin, program.stdout, program.stderr):
            if stream is not None:
                with suppress(OSError):
                    stream.close()
