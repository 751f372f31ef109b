"""Zone ids: numbers 1 to 9999 that grow with every zone made ready and start anew when the host boots.

They name an instance of a zone in lists and events; nothing is found by them.
"""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path

from zonemgr.errors import PlatformError
from zonemgr.model.states import ZONE_ID_MAX
from zonemgr.store import files
from zonemgr.store.locks import FileLock
from zonemgr.store.paths import Layout

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def next_id(layout: Layout, in_use: Container[int] = ()) -> int:
    """The next id; after 9999 the count starts again and passes over those in use.  Raises PlatformError."""
    path = layout.run / "ids.json"
    boot_id = _BOOT_ID.read_text().strip()
    with FileLock(layout.run / "ids.lock"):
        record = files.read_json(path) or {}
        last = record.get("last", 0) if record.get("boot_id") == boot_id else 0
        for step in range(ZONE_ID_MAX):
            candidate = (int(last) + step) % ZONE_ID_MAX + 1
            if candidate not in in_use:
                files.write_json(path, {"version": 1, "boot_id": boot_id, "last": candidate}, durable=False)
                return candidate
    raise PlatformError("all {count} zone ids are in use", count=ZONE_ID_MAX)
