"""How a zone's root is copied here: btrfs snapshot, reflink, plain copy or overlay, found out by asking the kernel.

``choose`` says which way and what it costs, ``clone_root`` goes it.  A zonepath on btrfs is a subvolume, so that it can
be snapshotted.  Deliberately not here: states, locks and configurations of zones.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from zonemgr.brandkit import layers, tree, zonepath
from zonemgr.brandkit.owners import Owners
from zonemgr.brandkit.tree import Size, Tick
from zonemgr.errors import PlatformError, UsageError, message
from zonemgr.linux import cow, libc
from zonemgr.store.zones import Entry

ROOT: Final = "root"


class Method(enum.Enum):
    """The ways to copy a root, the cheapest first.

    The overlay stands apart: it changes the source too, which from then on lies on an origin that it shares.  So it is
    never chosen, only asked for.
    """

    BTRFS = "btrfs"
    REFLINK = "reflink"
    COPY = "copy"
    OVERLAY = "overlay"


_WITHOUT_COPYING: Final = frozenset({Method.BTRFS, Method.OVERLAY})
_CHOSEN: Final = tuple(method for method in Method if method is not Method.OVERLAY)
_NOTHING: Final = Size(0, 0)


@dataclass(frozen=True, slots=True)
class Choice:
    """A method, and what it costs as the operator is told."""

    method: Method
    cost: str
    size: Size


def method_named(text: str | None) -> Method | None:
    """What ``-m`` names; None for None.  Raises UsageError."""
    if text is None:
        return None
    try:
        return Method(text)
    except ValueError:
        known = ", ".join(method.value for method in Method)
        raise UsageError("unknown method '{text}' (there are: {known})", text=text, known=known) from None


def choose(source: Entry, target_zonepath: str, wanted: Method | None = None) -> Choice:
    """The method for copying a zone's root into a zonepath, which exists and is empty.

    Raises PlatformError when the wanted method is impossible here, with the reason.
    """
    with folder(source.zonepath) as source_fd, folder(target_zonepath) as target_fd:
        for method in _CHOSEN if wanted is None else (wanted,):
            why = _obstacle(method, source, source_fd, target_zonepath, target_fd)
            if why is None:
                size = _NOTHING if method in _WITHOUT_COPYING else _measure(source)
                return Choice(method, _cost(method, size, source), size)
        raise PlatformError("cannot clone by {method}: {why}", method=method.value, why=why)


def _measure(source: Entry) -> Size:
    with layers.opened_root(source) as root_fd:
        return tree.measure(root_fd)


def _obstacle(
    method: Method, source: Entry, source_fd: int, target_zonepath: str, target_fd: int
) -> str | None:
    """Why a method does not work here, or None."""
    if source.layers and method in (Method.BTRFS, Method.REFLINK):
        return "the source's root is in layers"
    match method:
        case Method.OVERLAY:
            return layers.obstacle(source, target_zonepath)
        case Method.BTRFS:
            if not cow.is_subvolume(source_fd):
                return "the source's zonepath is not a btrfs subvolume"
            if not cow.is_btrfs(target_fd) or not cow.can_reflink(source_fd, target_fd):
                return "the zonepaths are on different file systems"
            return None
        case Method.REFLINK:
            if not cow.can_reflink(source_fd, target_fd):
                return "the file system of the zonepaths shares no blocks between files"
            return None
        case Method.COPY:
            return None


def _cost(method: Method, size: Size, source: Entry) -> str:
    match method:
        case Method.OVERLAY:
            return message(
                "overlay: takes no space until one side changes; both go on above what '{source}' has now",
                source=source.zonename,
            )  # fmt: skip
        case Method.BTRFS:
            return message("btrfs snapshot: takes no space until one side changes")
        case Method.REFLINK:
            return message(
                "reflink: makes {objects} files, their {size} are shared until one side changes",
                objects=size.objects, size=human(size.size_bytes),
            )  # fmt: skip
        case Method.COPY:
            return message(
                "copy: {objects} files, {size} (no blocks can be shared here, but by -m overlay)",
                objects=size.objects, size=human(size.size_bytes),
            )  # fmt: skip


def human(size_bytes: int) -> str:
    """A size for people: three digits and a unit."""
    size, unit = float(size_bytes), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:.0f} {unit}" if size >= 10 or unit == "bytes" else f"{size:.1f} {unit}"


def clone_root(
    source: Entry, target_zonepath: str, method: Method, owners: Owners, tick: Tick = lambda _: None
) -> None:
    """Make the root of an empty zonepath a copy of the source's, by any method but the overlay, which changes records
    (``layers``).  Raises PlatformError, OSError.
    """
    if method is Method.BTRFS:
        _snapshot(source.zonepath, target_zonepath)
        if owners.base:
            with folder(target_zonepath) as fd, _below(fd, ROOT, target_zonepath) as root_fd:
                tree.move_owners(root_fd, owners)
        return
    with layers.opened_root(source) as source_fd, folder(target_zonepath) as target_fd:
        os.mkdir(ROOT, 0o700, dir_fd=target_fd)
        with _below(target_fd, ROOT) as to_fd:
            tree.copy(source_fd, to_fd, owners, share=method is Method.REFLINK, tick=tick)
        sync(target_fd)


def copy_entry(
    source_fd: int, target_fd: int, name: str, owners: Owners, *, tick: Tick = lambda _: None
) -> None:
    """Copy one folder of a zonepath into another zonepath.  Raises PlatformError, OSError."""
    os.mkdir(name, 0o700, dir_fd=target_fd)
    with _below(source_fd, name) as from_fd, _below(target_fd, name) as to_fd:
        tree.copy(from_fd, to_fd, owners, tick=tick)


def _snapshot(source_zonepath: str, target_zonepath: str) -> None:
    """The snapshot takes the place of the empty zonepath, and loses what is the source's own."""
    parent, name = os.path.split(target_zonepath)
    os.rmdir(target_zonepath)
    with folder(source_zonepath) as source_fd, folder(parent) as parent_fd:
        cow.snapshot(source_fd, parent_fd, name)
    with folder(target_zonepath) as target_fd:
        for entry in os.listdir(target_fd):
            if entry != ROOT:
                zonepath.remove(target_fd, entry)
        sync(target_fd)


def sync(fd: int) -> None:
    """Wait until the file system of ``fd`` has everything on its disk."""
    libc.call("syncfs", fd)


@contextmanager
def folder(path: str) -> Iterator[int]:
    """A descriptor of a folder of the host.  Raises PlatformError."""
    try:
        fd = os.open(path, tree.FOLDER)
    except OSError as error:
        raise PlatformError("{path}: {why}", path=path, why=error.strerror) from error
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _below(parent_fd: int, name: str, where: str = "") -> Iterator[int]:
    try:
        fd = tree.open_folder(parent_fd, name)
    except OSError as error:
        raise PlatformError("{path}: {why}", path=f"{where}/{name}", why=error.strerror) from error
    try:
        yield fd
    finally:
        os.close(fd)
