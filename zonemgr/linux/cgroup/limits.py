"""Limits of a zone: one table from limit to controller, written to the home of that controller and read back.

Deliberately not here: how a limit is spelled in kernel files (v1.py and v2.py, which load cgroupspy), and what
a zone may ask for (model).
"""

from __future__ import annotations

import errno
import mmap
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from zonemgr.errors import PlatformError

if TYPE_CHECKING:
    from zonemgr.linux.cgroup.zone import ZoneCgroup


@dataclass(frozen=True, slots=True)
class Throttle:
    """The most a zone may read from and write to one disk (``device``: "major:minor"); None is no limit."""

    device: str
    read_bps: int | None = None
    write_bps: int | None = None
    read_iops: int | None = None
    write_iops: int | None = None

    def __str__(self) -> str:
        given = ((name, getattr(self, name)) for name in THROTTLES)
        words = (f"{name.replace('_', '-')}={value}" for name, value in given if value is not None)
        return " ".join((self.device, *words))


THROTTLES: Final = ("read_bps", "write_bps", "read_iops", "write_iops")

HugePages = tuple[int, int]  # size of a page, the most bytes in pages of that size
Value = float | frozenset[int] | frozenset[Throttle] | frozenset[HugePages] | None

# A weight of 100 is what every folder has that nobody gave one (Documentation/admin-guide/cgroup-v2.rst).
WEIGHT_MINIMUM, WEIGHT_MAXIMUM = 1, 10000
BFQ_MAXIMUM = 1000
PERIOD_US = 100_000


@dataclass(frozen=True, slots=True)
class Limits:
    """What a zone may use; None is no limit.

    ``swap_bytes`` has the Solaris meaning: memory and swap together.  ``cpus`` counts processors (1.5 is one and a
    half), ``cpu_shares`` is relative to other zones (100 is the weight of a zone that names none), ``pids`` counts
    threads, ``cpu_ids`` holds the zone to these processors, ``io_weight`` is relative to other zones as ``cpu_shares``
    is.  ``oom_group``: who exceeds the memory limit takes all of the zone with it.
    """

    memory_bytes: int | None = None
    swap_bytes: int | None = None
    cpus: float | None = None
    cpu_shares: int | None = None
    pids: int | None = None
    cpu_ids: frozenset[int] | None = None
    io_weight: int | None = None
    io_throttles: frozenset[Throttle] | None = None
    huge_pages: frozenset[HugePages] | None = None
    oom_group: bool | None = None


@dataclass(frozen=True, slots=True)
class Applied:
    """One limit as asked for and as the kernel holds it; ``problem`` is empty unless best effort left it unheld."""

    name: str
    wanted: Value
    effective: Value
    problem: str = ""


class Writer(Protocol):
    """A folder of one controller.  Each method writes one limit and returns what the kernel made of it."""

    def memory(self, wanted: int | None) -> int | None: ...

    def swap(self, wanted: int | None, memory: int | None) -> int | None: ...

    def cpus(self, wanted: float | None) -> float | None: ...

    def cpu_shares(self, wanted: int | None) -> int | None: ...

    def pids(self, wanted: int | None) -> int | None: ...

    def cpu_ids(self, wanted: frozenset[int] | None) -> frozenset[int] | None: ...

    def io_weight(self, wanted: int | None) -> int | None: ...

    def io_throttles(self, wanted: frozenset[Throttle]) -> frozenset[Throttle]: ...

    def huge_pages(self, wanted: frozenset[HugePages]) -> frozenset[HugePages]: ...

    def oom_group(self, wanted: bool) -> bool: ...


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


def _page_by_page(wanted: Value, effective: Value) -> bool:
    """The kernel holds whole huge pages."""
    if not isinstance(wanted, frozenset) or not isinstance(effective, frozenset):
        return wanted == effective
    pages = [item for item in wanted if isinstance(item, tuple)]
    return frozenset((size, limit // size * size) for size, limit in pages) == effective


def _clamped(wanted: Value, effective: Value) -> bool:
    if not isinstance(wanted, int) or not isinstance(effective, int):
        return True  # no shares asked for: whatever the kernel's default is
    # One weight more or less comes from v1's coarser unit.
    return abs(clamp(wanted) - effective) <= 1


def _clamped_or_bfq(wanted: Value, effective: Value) -> bool:
    return _clamped(wanted, effective) or (isinstance(wanted, int) and effective == min(wanted, BFQ_MAXIMUM))


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
    Row(
        "zfs-io-priority",
        "io",
        lambda limits: limits.io_weight,
        lambda to, limits: to.io_weight(limits.io_weight),
        _clamped_or_bfq,
    ),
    Row(
        "capped-io",
        "io",
        lambda limits: limits.io_throttles,
        lambda to, limits: to.io_throttles(limits.io_throttles or frozenset()) or None,
        _equal,
    ),
    Row(
        "capped-hugetlb",
        "hugetlb",
        lambda limits: limits.huge_pages,
        lambda to, limits: to.huge_pages(limits.huge_pages or frozenset()) or None,
        _page_by_page,
    ),
    Row(
        "oom-group",
        "memory",
        lambda limits: limits.oom_group or None,
        lambda to, limits: to.oom_group(bool(limits.oom_group)) or None,
        _equal,
    ),
)


def apply(
    zone: ZoneCgroup, limits: Limits, *, best_effort: bool, clear: bool, optional: frozenset[str]
) -> list[Applied]:
    """See ZoneCgroup.apply."""
    rows = [row for row in TABLE if clear or row.value(limits) is not None]
    done = (_apply_one(zone, row, limits, best_effort=best_effort or row.name in optional) for row in rows)
    return [applied for applied in done if applied is not None]


def _apply_one(zone: ZoneCgroup, row: Row, limits: Limits, *, best_effort: bool) -> Applied | None:
    wanted = row.value(limits)
    effective: Value = None
    try:
        effective = row.write(writer(zone, row.controller), limits)
        problem = "" if row.holds(wanted, effective) else f"the kernel made it {shown(effective)}"
    except OSError as error:
        problem = f"{error.filename or row.controller}: {error.strerror}"
        if error.errno == errno.EBUSY and row.controller == "memory":  # v1 takes no cap below what is used
            problem = "the zone uses more"
    except NoController as error:
        problem = str(error)
    if problem and wanted is None:
        return None  # nothing was asked for, and what the host cannot limit needs no lifting
    if problem and not best_effort:
        raise PlatformError(
            "cannot apply the limit {name}={wanted}: {problem}",
            name=row.name,
            wanted=shown(wanted),
            problem=problem,
        )
    return Applied(row.name, wanted, effective, problem)


class NoController(Exception):
    """This host has no home for the controller; the text says why."""


# What v1 calls a controller that cgroup2 gave another name.
V1_NAMES: Final = {"io": "blkio"}


def writer(zone: ZoneCgroup, controller: str) -> Writer:
    """The zone's folder that has the controller: its v1 mount if there is one, else payload on cgroup2."""
    name = V1_NAMES.get(controller, controller)
    if name in zone.hierarchy.controllers:
        from zonemgr.linux.cgroup import v1

        return v1.Folder(zone.hierarchy.controllers[name] / zone.base / zone.name)
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


def shown(value: Value) -> str:
    """A value for a message."""
    if value is None:
        return "unlimited"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, frozenset):
        words = (f"{item[0]}:{item[1]}" if isinstance(item, tuple) else str(item) for item in _sorted(value))
        return ",".join(words)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _sorted(values: Iterable[Any]) -> list[Any]:
    return sorted(values, key=lambda value: value if isinstance(value, (int, tuple)) else str(value))


def plain(value: Value) -> Any:
    """A value for JSON."""
    if isinstance(value, frozenset):
        return [str(item) if isinstance(item, Throttle) else item for item in _sorted(value)]
    return value
