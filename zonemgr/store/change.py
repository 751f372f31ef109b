"""The record of a change of a living zone, from before its first step until nothing of it can be taken back any more.

``/run/zonemgr/zones/NAME/change.json`` holds the steps, how many of them were begun, and both configurations.  Whoever
finds a record that nobody works on takes the change back: at once, or when the time for its confirmation is over.  A
record of another life of the zone says nothing.
"""

from __future__ import annotations

import dataclasses
import enum
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from zonemgr.linux.procfs import boot_id
from zonemgr.model import delta
from zonemgr.model.delta import Step
from zonemgr.model.zone import Zone
from zonemgr.store import instance as instances
from zonemgr.store.files import read_json, write_json
from zonemgr.store.paths import Layout

VERSION: Final = 1


class Phase(enum.Enum):
    """How far the change has come."""

    APPLYING = "applying"
    UNCONFIRMED = "unconfirmed"
    REVERTING = "reverting"


@dataclass(frozen=True, slots=True)
class Record:
    """One change.  ``begun`` counts the steps that may have had an effect; ``due_s`` is a time of CLOCK_BOOTTIME."""

    zonename: str
    generation: str
    old: Zone
    new: Zone
    steps: tuple[Step, ...]
    begun: int = 0
    phase: Phase = Phase.APPLYING
    due_s: float = 0.0

    def but(self, **values: Any) -> Record:
        """A copy with these fields changed."""
        return dataclasses.replace(self, **values)

    @property
    def left_s(self) -> float:
        """Seconds until the change is taken back; none unless it waits for its confirmation."""
        return max(0.0, self.due_s - now_s()) if self.phase is Phase.UNCONFIRMED else 0.0


def now_s() -> float:
    """The clock of ``due_s``: it goes on while the host sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _path(layout: Layout, zonename: str) -> Path:
    return layout.zone_run(zonename) / "change.json"


def read(layout: Layout, zonename: str) -> Record | None:
    """The record of the zone's present life, if there is one."""
    table = read_json(_path(layout, zonename))
    instance = instances.read(layout, zonename)
    if not table or instance is None or table.get("boot_id") != boot_id():
        return None
    if table.get("generation") != instance.generation:
        return None
    return Record(
        zonename=zonename,
        generation=table["generation"],
        old=Zone.from_json(table["old"]),
        new=Zone.from_json(table["new"]),
        steps=tuple(delta.step_from_json(step) for step in table["steps"]),
        begun=table["begun"],
        phase=Phase(table["phase"]),
        due_s=table["due_s"],
    )


def write(layout: Layout, record: Record) -> Record:
    """Store the record (atomically) and return it."""
    table = {
        "version": VERSION,
        "boot_id": boot_id(),
        "generation": record.generation,
        "phase": record.phase.value,
        "begun": record.begun,
        "due_s": record.due_s,
        "steps": [step.to_json() for step in record.steps],
        "old": record.old.to_json(),
        "new": record.new.to_json(),
    }
    write_json(_path(layout, record.zonename), table, 0o600, durable=False)
    return record


def forget(layout: Layout, zonename: str) -> None:
    """The change stays, or is taken back, or its zone's life is over."""
    _path(layout, zonename).unlink(missing_ok=True)
