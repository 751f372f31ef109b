"""What zones share on the host: the default bridge, kernel settings, tables of the packet filter, ways back to ::1.

Such a thing is written down before it is made, under the host's lock, and stays until ``fsck --host`` finds no zone
alive.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from zonemgr.store.files import read_json, write_json
from zonemgr.store.locks import FileLock
from zonemgr.store.paths import Layout


@dataclass
class HostLedger:
    """The shared things of one instance.  ``settings``: name below /proc/sys -> the value before us; ``ways_back``:
    bridges by which replies to ::1 may come.
    """

    bridges: list[str] = field(default_factory=list)
    settings: dict[str, str] = field(default_factory=dict)
    tables: list[str] = field(default_factory=list)
    ways_back: list[str] = field(default_factory=list)

    @property
    def empty(self) -> bool:
        return not (self.bridges or self.settings or self.tables or self.ways_back)


def lock(layout: Layout) -> FileLock:
    """Held while a shared thing is looked for and made."""
    return FileLock(layout.run / "host.lock", busy="another process changes what zones share")


def load(layout: Layout) -> HostLedger:
    """The ledger as it is; the caller holds the lock if it is going to change it."""
    table: dict[str, Any] = read_json(layout.run / "host.json") or {}
    return HostLedger(
        list(table.get("bridges", ())),
        dict(table.get("settings", {})),
        list(table.get("tables", ())),
        list(table.get("ways_back", ())),
    )


def save(layout: Layout, ledger: HostLedger) -> None:
    """Replace the ledger."""
    write_json(layout.run / "host.json", {"version": 1, **asdict(ledger)}, durable=False)
