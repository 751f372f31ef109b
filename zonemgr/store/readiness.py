"""Whether a running zone is ready for work: its init has started, and where such an init tells when it is done, it has.

What an init has told is a file beside the zone's record, written by its supervisor and readable for everybody.  It is
not in the record, which belongs to the transition under way.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path

from zonemgr.errors import NoSuchZoneError
from zonemgr.model.states import State
from zonemgr.store import files
from zonemgr.store.instance import Instance
from zonemgr.store.observe import Observation, observe
from zonemgr.store.paths import Layout


@dataclass(frozen=True, slots=True)
class Told:
    """The words of one life's init."""

    generation: str
    ready: bool = False
    stopping: bool = False
    status: str = ""


def _path(layout: Layout, zonename: str) -> Path:
    return layout.instance(zonename).with_suffix(".ready")


def write(layout: Layout, zonename: str, told: Told) -> None:
    files.write_json(_path(layout, zonename), asdict(told), 0o644, durable=False)


def forget(layout: Layout, zonename: str) -> None:
    """The life is over."""
    _path(layout, zonename).unlink(missing_ok=True)


def read(layout: Layout, instance: Instance) -> Told:
    """What the init of this life has told so far."""
    table = files.read_json(_path(layout, instance.zonename)) or {}
    found = Told(**{name: table[name] for name in Told.__slots__ if name in table}) if "generation" in table else None
    return found if found and found.generation == instance.generation else Told(instance.generation)


def of(layout: Layout, seen: Observation) -> Told | None:
    """Of a zone that runs; None for any other.  An init that tells nothing is ready when it runs."""
    if seen.state is not State.RUNNING or seen.instance is None:
        return None
    if not seen.instance.notifies:
        return Told(seen.instance.generation, ready=True)
    return read(layout, seen.instance)


def wait(layout: Layout, zonename: str, limit_s: float) -> bool:
    """Wait until a zone that runs is ready.  False: it does not run (any more), or the time is up."""
    from zonemgr.linux.inotify import Inotify

    deadline = time.monotonic() + limit_s
    with Inotify(layout.instance(zonename).parent) as changes:  # before the first look, so that nothing falls between
        while True:
            try:
                told = of(layout, observe(layout, zonename))
            except NoSuchZoneError:
                return False
            if told is None or told.ready:
                return told is not None
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return False
            changes.wait(min(left_s, 5.0))  # the death of a zone whose supervisor is gone changes no file
