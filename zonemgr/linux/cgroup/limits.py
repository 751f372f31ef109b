"""Limits of a zone: one table from limit to controller, written to the home of that controller and read back.

Deliberately not here: how a limit is spelled in kernel files (v1.py and v2.py, which load cgroupspy), and what
a zone may ask for (model).
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from zonemgr.errors import PlatformError

if TYPE_CHECKING:
    from zonemgr.linux.cgroup.zone import ZoneCgroup

Value = float | frozenset[int] | None

# A weight of 100 is what every folder has that nobody gave one (Documentation/admin-guide/cgroup-v2.rst).
WEIGHT_MINIMUM, WEIGHT_MAXIMUM = 1, 10000
PERIOD_US = 100_000


@dataclass(frozen=True, slots=True)
class Limits:
    """What a zone may use; None is no limit.

    ``swap_bytes`` has the Solaris meaning: memory and swap together.  ``cpus`` counts processors (1.5 is one and a
    half), ``cpu_shares`` is relative to other zones (100 is the weight of a zone that names none), ``pids`` counts
    threads, ``cpu_ids`` holds the zone to these processors.
    """

    memory_bytes: int | None = None
    swap_bytes: int | None = None
    cpus: float | None = None
    cpu_shares: int | None = None
    pids: int | None = None
    cpu_ids: frozenset[int] | None = None


@dataclass(frozen=True, slots=True)
class Applied:
    """One limit as asked for and as the kernel holds it; ``problem`` is empty unless best effort left it unheld."""

    name: str
    wanted: Value
    effective: Value
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Statistics:
    """What a zone uses now.  None: this host does not count it."""

    cpu_us: int | None = None
    user_us: int | None = None
    system_us: int | None = None
    memory_bytes: int | None = None
    memory_peak_bytes: int | None = None
    swap_bytes: int | None = None
    pids: int | None = None
    oom_kills: int | None = None


class Writer(Protocol):
    """A folder of one controller.  Each method writes one limit and returns what the kernel made of it."""

    def memory(self, wanted: int | None) -> int | None: ...

    def swap(self, wanted: int | None, memory: int | None) -> int | None: ...

    def cpus(self, wanted: float | None) -> float | None: ...

    def cpu_shares(self, wanted: int | None) -> int | None: ...

    def pids(self, wanted: int | None) -> int | None: ...

    def cpu_ids(self, wanted: frozenset[int] | None) -> frozenset[int] | None: ...


def _equal(wanted: Value, effective: Value) -> bool:
    return wanted == effective


def _within_a_page(wanted: Value, effective: Value) -> bool:
    if not isinstance(wanted, (int, float)) or not isinstance(effective, (int, float)):
        return wanted == effective
    return abs(wanted - effective) < mmap.PAGESIZE


def _nearly(wanted: Value, effective: Value) -> bool:
    if not isinstance(wanted, (int, float)) or not isinstance(effective, (int, float)):
        return wanted == effective
    return abs(wanted - effective) < 0.01


def _clamped(wanted: Value, effective: Value) -> bool:
    if not isinstance(wanted, int) or not isinstance(effective, int):
        return True  # no shares asked for: whatever the kernel's default is
    # One weight more or less comes from v1's coarser unit.
    return abs(clamp(wanted) - effective) <= 1


def clamp(shares: int) -> int:
    """Shares as a weight that the kernel takes."""
    return max(WEIGHT_MINIMUM, min(WEIGHT_MAXIMUM, shares))


@dataclass(frozen=True, slots=True)
class Row:
    """One limit: the operator's name for it, its controller, its value, how to write it, and what counts as held."""

    name: str
    controller: str
    value: Callable[[Limits], Value]
    write: Callable[[Writer, Limits], Value]
    holds: Callable[[Value, Value], bool]


def _memory(limits: Limits) -> int | None:
    """Memory alone can never exceed memory and swap together; both kernels want to be told so."""
    known = [value for value in (limits.memory_bytes, limits.swap_bytes) if value is not None]
    return min(known) if known else None


# Memory comes before swap: v1 keeps memory <= memory+swap at every moment, and v2's swap is the difference.
TABLE = (
    Row(
        "capped-memory physical",
        "memory",
        _memory,
        lambda to, limits: to.memory(_memory(limits)),
        _within_a_page,
    ),
    Row(
        "capped-memory swap",
        "memory",
        lambda limits: limits.swap_bytes,
        lambda to, limits: to.swap(limits.swap_bytes, _memory(limits)),
        _within_a_page,
    ),
    Row(
        "capped-cpu ncpus",
        "cpu",
        lambda limits: limits.cpus,
        lambda to, limits: to.cpus(limits.cpus),
        _nearly,
    ),
    Row(
        "cpu-shares",
        "cpu",
        lambda limits: limits.cpu_shares,
        lambda to, limits: to.cpu_shares(limits.cpu_shares),
        _clamped,
    ),
    Row("max-lwps", "pids", lambda limits: limits.pids, lambda to, limits: to.pids(limits.pids), _equal),
    Row(
        "dedicated-cpu",
        "cpuset",
        lambda limits: limits.cpu_ids,
        lambda to, limits: to.cpu_ids(limits.cpu_ids),
        _equal,
    ),
)


def apply(zone: ZoneCgroup, limits: Limits, *, best_effort: bool, clear: bool) -> list[Applied]:
    """See ZoneCgroup.apply."""
    rows = [row for row in TABLE if clear or row.value(limits) is not None]
    return [
        done for row in rows if (done := _apply_one(zone, row, limits, best_effort=best_effort)) is not None
    ]


def _apply_one(zone: ZoneCgroup, row: Row, limits: Limits, *, best_effort: bool) -> Applied | None:
    wanted = row.value(limits)
    effective: Value = None
    try:
        effective = row.write(writer(zone, row.controller), limits)
        problem = "" if row.holds(wanted, effective) else f"the kernel made it {_shown(effective)}"
    except OSError as error:
        problem = f"{error.filename or row.controller}: {error.strerror}"
        if wanted is None:
            return None  # nothing was asked for, and what the host cannot limit needs no lifting
    except NoController as error:
        problem = str(error)
        if wanted is None:
            return None
    if problem and not best_effort:
        raise PlatformError(
            "cannot apply the limit {name}={wanted}: {problem}",
            name=row.name,
            wanted=_shown(wanted),
            problem=problem,
        )
    return Applied(row.name, wanted, effective, problem)


class NoController(Exception):
    """This host has no home for the controller; the text says why."""


def writer(zone: ZoneCgroup, controller: str) -> Writer:
    """The zone's folder that has the controller: its v1 mount if there is one, else payload on cgroup2."""
    if controller in zone.hierarchy.controllers:
        from zonemgr.linux.cgroup import v1

        return v1.Folder(zone.hierarchy.controllers[controller] / zone.base / zone.name)
    from zonemgr.linux.cgroup import v2

    try:
        available = zone.enable(controller)
    except OSError as error:
        raise NoController(
            f"the {controller} controller cannot be enabled in {error.filename or zone.path}: {error.strerror}"
        ) from error
    if not available:
        raise NoController(f"this host has no {controller} controller in {zone.hierarchy.cg2}")
    return v2.Folder(zone.part_path("payload"))


def _shown(value: Value) -> str:
    if value is None:
        return "unlimited"
    if isinstance(value, frozenset):
        return ",".join(map(str, sorted(value)))
    return f"{value:g}" if isinstance(value, float) else str(value)


def statistics(zone: ZoneCgroup) -> Statistics:
    """See ZoneCgroup.statistics."""
    from zonemgr.linux.cgroup import v1, v2

    counted = v2.statistics(zone.part_path("payload"))
    for controller, counts in v1.STATISTICS.items():
        if controller in zone.hierarchy.controllers:
            counted |= counts(zone.hierarchy.controllers[controller] / zone.base / zone.name)
    return Statistics(**counted)
