"""What a verb that takes several steps to move a zone is about to do, written down before the first step.

A journal that is found belongs to a verb that died.  Whoever next takes the zone's administration lock finishes or
undoes what it says (``brandkit.relocate.recover``).  A damaged one says nothing and is dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from zonemgr.errors import PlatformError
from zonemgr.store import files
from zonemgr.store.paths import Layout

_SUFFIX: Final = ".journal"


def _path(layout: Layout, name: str) -> Path:
    return layout.state(name).with_name(name + _SUFFIX)


def begin(layout: Layout, name: str, record: Mapping[str, Any]) -> None:
    """Write down what is about to happen to the zone.  Raises PlatformError."""
    path = _path(layout, name)
    files.make_directory(path.parent)
    files.write_json(path, {"version": 1, "zonename": name, **record})


def end(layout: Layout, name: str) -> None:
    """It has happened."""
    _path(layout, name).unlink(missing_ok=True)
    files.sync_directory(_path(layout, name).parent)


def pending(layout: Layout, name: str) -> dict[str, Any] | None:
    """What was begun and not ended with this zone, under its old or its new name."""
    for path in sorted(layout.state("x").parent.glob(f"*{_SUFFIX}")):
        record = _read(path)
        if record is not None and name in (record.get("zonename"), record.get("new_name")):
            return record
    return None


def _read(path: Path) -> dict[str, Any] | None:
    try:
        record = files.read_json(path)
    except PlatformError:
        record = None
    if record is None or record.get("version") != 1:
        path.unlink(missing_ok=True)
        return None
    return record
