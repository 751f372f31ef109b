"""The snapshot: the configuration as it was when the zone became ready, frozen for as long as it lives (reference 2.2).

Editing a running zone has no effect on it: everything that belongs to the running zone reads this file.
"""

from __future__ import annotations

import dataclasses
import os

from zonemgr.errors import PlatformError
from zonemgr.model.zone import Zone
from zonemgr.store import zones
from zonemgr.store.files import read_json, write_json
from zonemgr.store.paths import Layout

VERSION = 1


def create(layout: Layout, zonename: str) -> Zone:
    """Freeze the configuration, with the links of its zonepath resolved.  ConfigError when it cannot be read."""
    zone = zones.load(layout, zonename)
    return write(layout, dataclasses.replace(zone, zonepath=os.path.realpath(zone.zonepath)))


def write(layout: Layout, zone: Zone) -> Zone:
    """Freeze this configuration, and return it.  PlatformError when it cannot be written."""
    path = layout.zone_run(zone.zonename) / "snapshot.json"
    try:
        write_json(path, {"version": VERSION, "zone": zone.to_json()}, 0o600, durable=False)
    except OSError as error:
        raise PlatformError("unable to create snapshot: {why}", why=error.strerror) from None
    return zone


def load(layout: Layout, zonename: str) -> Zone | None:
    """The frozen configuration, or None when the zone has none."""
    table = read_json(layout.zone_run(zonename) / "snapshot.json")
    return Zone.from_json(table["zone"]) if table else None


def destroy(layout: Layout, zonename: str) -> None:
    """Remove the snapshot; it may be gone already."""
    (layout.zone_run(zonename) / "snapshot.json").unlink(missing_ok=True)
