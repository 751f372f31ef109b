"""The index entries of all zones at once, for lists: what was worked out before is remembered with its files' stamps.

A zone's entry is made of its configuration and its record on disk, a millisecond's work for each; a thousand of them
are not read again to be listed.  The memory is a file in the run folder, written by who may when much of it is out of
date, and never believed beyond the inode, time and size of both files of a zone.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import zonemgr
from zonemgr.errors import NoSuchZoneError, PlatformError
from zonemgr.model.states import State
from zonemgr.store import files, zones
from zonemgr.store.paths import Layout
from zonemgr.store.zones import Entry

Stamp = list[int] | None  # inode, time, size; None: no such file

WORTH_WRITING: Final = 8  # entries that had to be worked out; fewer are quicker read again than written
_VERSION: Final = f"{zonemgr.__version__} 2"
_FIELDS: Final = ("uuid", "uid_base", "brand", "zonepath", "ip_type", "idmap_marker", "label")
_SEVERAL: Final = ("layers", "claims")


def claims(layout: Layout) -> dict[str, set[str]]:
    """Each address and port that configurations claim, and the zones that do."""
    found: dict[str, set[str]] = {}
    for name, entry in read_all(layout, whole=True).items():
        for claim in entry.claims:
            found.setdefault(claim, set()).add(name)
    return found


def read_all(
    layout: Layout, *, whole: bool = False, damaged: dict[str, PlatformError] | None = None
) -> dict[str, Entry]:
    """The entry of every configured zone, and of those that have something on disk though their file is gone.

    Raises PlatformError for a damaged record, unless ``whole``: then what the zone is configured to be still counts.
    So it does with ``damaged``, which gets the errors; such a zone is listed as incomplete.
    """
    configurations = _stamps(layout.config("x").parent, ".toml")
    records = _stamps(layout.state("x").parent, ".json")
    remembered = _remembered(layout)
    found: dict[str, Entry] = {}
    rows: dict[str, Any] = {}
    news = 0
    for name in configurations.keys() | records.keys():
        stamps: list[Stamp] = [configurations.get(name), records.get(name)]
        row = remembered.get(name)
        entry = _entry(name, row, stamps) if row else None
        if entry is None:
            news += 1
            try:
                entry = zones.read_entry(layout, name)
            except NoSuchZoneError:
                continue
            except PlatformError as error:
                if damaged is not None:
                    damaged[name] = error
                elif not whole:
                    raise
                found[name] = zones.damaged(layout, name)
                continue
        found[name] = entry
        rows[name] = {"stamps": stamps, **_row(entry)}
    if news >= WORTH_WRITING and os.access(layout.run, os.W_OK):
        _remember(layout, rows)
    return found


def _stamps(folder: Path, suffix: str) -> dict[str, Stamp]:
    """Of every file in the folder by the name of its zone."""
    found: dict[str, Stamp] = {}
    try:
        with os.scandir(folder) as items:
            for item in items:
                if item.name.endswith(suffix) and not item.name.startswith("."):
                    found[item.name[: -len(suffix)]] = _stamp(item)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise PlatformError("cannot read {path}: {why}", path=folder, why=error.strerror) from error
    return found


def _stamp(item: os.DirEntry[str]) -> Stamp:
    try:
        status = item.stat()
    except OSError:
        return None
    return [status.st_ino, status.st_mtime_ns, status.st_size]


def _place(layout: Layout) -> Path:
    return layout.run / "entries.json"


def _remembered(layout: Layout) -> Mapping[str, Any]:
    try:
        table = files.read_json(_place(layout)) or {}
    except PlatformError:
        return {}  # what is damaged is made anew
    found = table.get("zones") if table.get("version") == _VERSION else None
    return found if isinstance(found, dict) else {}


def _entry(name: str, row: Mapping[str, Any], stamps: list[Stamp]) -> Entry | None:
    """The remembered entry, if its files are still the same."""
    if row.get("stamps") != stamps:
        return None
    try:
        given: dict[str, Any] = {field: row[field] for field in _FIELDS}
        given |= {field: tuple(row[field]) for field in _SEVERAL}
        return Entry(zonename=name, state=State.of(row["state"]), **given)
    except (KeyError, TypeError, ValueError):
        return None


def _row(entry: Entry) -> dict[str, Any]:
    return {
        "state": entry.state.label,
        **{field: getattr(entry, field) for field in (*_FIELDS, *_SEVERAL)},
    }


def _remember(layout: Layout, rows: Mapping[str, Any]) -> None:
    """A memory that cannot be written is none."""
    try:
        files.write_json(_place(layout), {"version": _VERSION, "zones": rows}, durable=False)
    except PlatformError:
        return
