"""Which 65536 user and group ids of the host belong to which zone.

One file for the whole host whatever the instance, because ids are the host's: two zones that shared ids could send
each other signals and read each other's files.  Ranges that /etc/subuid or /etc/subgid give to somebody else are
passed over.  A range is kept as long as its zone's index entry exists.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from zonemgr.errors import PlatformError
from zonemgr.model.states import IDS_PER_ZONE
from zonemgr.store import files
from zonemgr.store.locks import FileLock
from zonemgr.store.paths import Layout

REGISTRY: Final = Path("/var/lib/zonemgr/idranges.json")
SUBORDINATE_FILES: Final = (Path("/etc/subuid"), Path("/etc/subgid"))
FIRST_BASE: Final = 524288
END: Final = 0x7FFF0000  # ids beyond 2^31 trip programs that keep them in a signed int


@dataclass(frozen=True, slots=True)
class Range:
    """One zone's ids: ``base`` to ``base + 65535``."""

    base: int
    root: str
    zonename: str
    uuid: str
    alternate: bool = False


def allocate(
    layout: Layout,
    name: str,
    uuid: str,
    *,
    registry: Path = REGISTRY,
    subordinate_files: Iterable[Path] = SUBORDINATE_FILES,
) -> int:
    """The zone's id base: the one it has, else the lowest free one.  Raises PlatformError."""
    with _lock(registry):
        ranges = [found for found in _read(registry) if not _is_gone(found)]
        mine = next((found for found in ranges if _is_of(found, layout, name)), None)
        if mine is None:
            taken = {found.base for found in ranges}
            reserved = list(_reserved(subordinate_files))
            base = _lowest_free(taken, reserved)
            mine = Range(base, os.fspath(layout.root), name, uuid, layout.alternate)
        others = [found for found in ranges if not _is_of(found, layout, name)]
        _write(registry, [*others, replace(mine, uuid=uuid)])
    return mine.base


def release(layout: Layout, name: str, *, registry: Path = REGISTRY) -> None:
    """Give the zone's range back; nothing happens when it has none.  Raises PlatformError."""
    with _lock(registry):
        ranges = _read(registry)
        kept = [found for found in ranges if not _is_of(found, layout, name)]
        if len(kept) != len(ranges):
            _write(registry, kept)


def rename(layout: Layout, name: str, new_name: str, *, registry: Path = REGISTRY) -> None:
    """The zone's range is that of its new name; nothing happens when it has none.  Raises PlatformError."""
    with _lock(registry):
        ranges = _read(registry)
        renamed = [replace(found, zonename=new_name) if _is_of(found, layout, name) else found for found in ranges]
        if renamed != ranges:
            _write(registry, renamed)


def _lock(registry: Path) -> FileLock:
    return FileLock(registry.with_suffix(".lock"))


def _is_of(found: Range, layout: Layout, name: str) -> bool:
    return (found.zonename, found.root, found.alternate) == (name, os.fspath(layout.root), layout.alternate)


def _is_gone(found: Range) -> bool:
    """Neither an index entry (an alternate root's is not ours) nor run-time files are left of the zone."""
    layout = Layout(Path(found.root), found.alternate)
    recorded = not found.alternate and layout.state(found.zonename).exists()
    return not recorded and not layout.zone_run(found.zonename).exists()


def _lowest_free(taken: set[int], reserved: list[tuple[int, int]]) -> int:
    for base in range(FIRST_BASE, END, IDS_PER_ZONE):
        if base in taken:
            continue
        if not any(start < base + IDS_PER_ZONE and base < end for start, end in reserved):
            return base
    raise PlatformError("no free range of {count} user ids is left", count=IDS_PER_ZONE)


def _reserved(subordinate_files: Iterable[Path]) -> Iterator[tuple[int, int]]:
    """(start, end) of the ranges that subuid(5) and subgid(5) give away; damaged lines are theirs to mend."""
    for path in subordinate_files:
        content = files.read_bytes(path) or b""
        for line in content.decode(errors="replace").splitlines():
            fields = line.split(":")
            if len(fields) == 3 and fields[1].isdecimal() and fields[2].isdecimal():
                yield int(fields[1]), int(fields[1]) + int(fields[2])


def _read(registry: Path) -> list[Range]:
    record = files.read_json(registry) or {"ranges": []}
    try:
        return [
            Range(
                int(item["base"]),
                str(item["root"]),
                str(item["zonename"]),
                str(item["uuid"]),
                bool(item.get("alternate", False)),
            )
            for item in record["ranges"]
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise PlatformError("{path} is damaged: {why!r}", path=registry, why=error) from error


def _write(registry: Path, ranges: list[Range]) -> None:
    ordered = sorted(ranges, key=lambda found: found.base)
    files.write_json(registry, {"version": 1, "ranges": [asdict(found) for found in ordered]})
