"""What state a zone is in: the kernel is asked first, the record second, the index entry last (reference, section 1.1).

Works for everybody: it reads world-readable records, ``/proc/PID/stat`` and ``cgroup.events``, and starts nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from zonemgr.errors import NoSuchZoneError, PlatformError
from zonemgr.linux.procfs import command_name
from zonemgr.model.states import PARKED_NAME, State
from zonemgr.store import entries, zones
from zonemgr.store import instance as instances
from zonemgr.store.instance import Instance, Phase
from zonemgr.store.paths import Layout
from zonemgr.store.zones import Entry


@dataclass(frozen=True, slots=True)
class Observation:
    """One zone as it is seen now.  ``zone_id`` is None unless it is active."""

    zonename: str
    state: State
    zone_id: int | None
    zonepath: str
    uuid: str
    brand: str
    ip_type: str
    instance: Instance | None = None
    label: str = ""


def populated(folder: str) -> bool:
    """Whether the cgroup2 folder holds a living process, below it included.  False when it is gone."""
    try:
        text = Path(folder, "cgroup.events").read_text()
    except OSError:
        return False
    return "populated 1" in text


def living_state(instance: Instance) -> State | None:
    """The state that the kernel shows for this record; None while the platform is only being made."""
    if instance.phase is Phase.MAKING:
        return None
    alive = instance.init is not None and instance.init.alive
    if instance.phase is Phase.HALTING or not alive:
        return State.SHUTTING_DOWN if alive or populated(instance.cgroup) else State.DOWN
    if instance.mode.alternate:
        return State.MOUNTED
    if instance.phase is Phase.BOOTING:  # the writer may have died between the exec and its record
        assert instance.init is not None
        return State.READY if command_name(instance.init.pid) == PARKED_NAME else State.RUNNING
    return State.READY if instance.phase is Phase.READY else State.RUNNING


def state_of(layout: Layout, zonename: str) -> State:
    """The zone's state.  NoSuchZoneError when it is neither configured nor alive."""
    return life_of(layout, zonename)[0]


def life_of(layout: Layout, zonename: str) -> tuple[State, Instance | None]:
    """The zone's state and the record of its life, for which its configuration, some milliseconds, is not read.

    NoSuchZoneError when it is neither configured nor alive.
    """
    instance, living = _life(layout, zonename)
    return (zones.recorded(layout, zonename).state if living is None else living), instance


def observe(layout: Layout, zonename: str) -> Observation:
    """Observe one zone.  NoSuchZoneError when it is neither configured nor alive; PlatformError when its record on disk
    is damaged, which matters to nobody while it lives.
    """
    instance, living = _life(layout, zonename)
    if not zones.exists(layout, zonename) and living is None:
        raise NoSuchZoneError(zonename)
    try:
        entry = zones.read_entry(layout, zonename)
    except PlatformError:
        if living is None:
            raise
        entry = zones.damaged(layout, zonename)
    return _observation(entry, instance, living)


def _life(layout: Layout, zonename: str) -> tuple[Instance | None, State | None]:
    instance = instances.read(layout, zonename)
    return instance, living_state(instance) if instance else None


def _observation(entry: Entry, instance: Instance | None, living: State | None) -> Observation:
    return Observation(
        zonename=entry.zonename,
        state=entry.state if living is None else living,
        zone_id=instance.zone_id if instance and living is not None else None,
        zonepath=entry.zonepath,
        uuid=entry.uuid,
        brand=entry.brand,
        ip_type=entry.ip_type if instance is None or living is None else instance.ip_type,
        instance=instance,
        label=entry.label if instance is None or living is None else instance.label,
    )


def all_zones(layout: Layout, damaged: dict[str, PlatformError] | None = None) -> list[Observation]:
    """Every configured or living zone, by name.  One that vanishes meanwhile is left out.

    One with a damaged record keeps nobody from the others: without the one on disk it is incomplete, unless it lives,
    without that of its life it does not live.  ``damaged`` gets the error.
    """
    errors = {} if damaged is None else damaged
    known = entries.read_all(layout, damaged=errors)
    living = set(instances.names(layout))
    found = []
    for zonename in sorted({*known, *living}):
        try:
            if zonename not in known:
                found.append(observe(layout, zonename))
            elif zonename in living:
                found.append(_observation(known[zonename], *_life(layout, zonename)))
            else:
                found.append(_observation(known[zonename], None, None))
        except NoSuchZoneError:
            continue
        except PlatformError as error:  # of the record of its life
            errors[zonename] = error
            found.append(_observation(known.get(zonename) or zones.damaged(layout, zonename), None, None))
    return found
