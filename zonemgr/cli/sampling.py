"""From looks at the zones to the numbers that people want: what is used, the cap, the share of it, rates and peaks.

Pure.  One resource of one zone is an ``Amount``; the resources have the names that Solaris' zonestat gives them, and
``disk-io`` and ``network`` beside them.  A rate takes two looks; with one it is the average since the zone's boot, as
vmstat has it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from zonemgr.linux.cgroup.usage import Usage
from zonemgr.store.usage import Look, ZoneUsage

CPU, MEMORY, VIRTUAL, SWAP, LWPS = "cpu", "physical-memory", "virtual-memory", "swap", "lwps"
READ, WRITE, RECEIVED, SENT = "disk-read", "disk-write", "network-received", "network-sent"
RESOURCES: Final = (CPU, MEMORY, VIRTUAL, SWAP, LWPS, READ, WRITE, RECEIVED, SENT)
RATES: Final = frozenset((CPU, READ, WRITE, RECEIVED, SENT))


@dataclass(frozen=True, slots=True)
class Amount:
    """What is used of a resource: processors, bytes, threads, bytes a second; ``total``: the counter below a rate."""

    used: float | None = None
    cap: float | None = None
    peak: float | None = None
    shares: int | None = None
    total: int | None = None

    @property
    def of_cap(self) -> float | None:
        """Percent of the cap."""
        return None if self.used is None or not self.cap else 100 * self.used / self.cap

    def to_json(self) -> dict[str, Any]:
        names = ("used", "cap", "peak", "shares", "total")
        return {"used": self.used} | {
            name: value for name in names[1:] if (value := getattr(self, name)) is not None
        }


@dataclass(frozen=True, slots=True)
class Line:
    """One zone, the zones together, or the host."""

    name: str
    amounts: Mapping[str, Amount]
    oom_kills: int | None = None
    pressure: Mapping[str, float] = field(default_factory=dict)
    throttled_us: int | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "zonename": self.name,
            **{name: self.amounts[name].to_json() for name in RESOURCES},
            "oom-kills": self.oom_kills,
            "pressure": dict(self.pressure),
            "throttled-us": self.throttled_us,
        }


@dataclass(frozen=True, slots=True)
class Sample:
    """All lines of one moment."""

    time_s: float
    interval_s: float | None
    zones: tuple[Line, ...]
    zones_total: Line
    host: Line

    def to_json(self) -> dict[str, Any]:
        return {
            "time": round(self.time_s, 3),
            "interval": self.interval_s and round(self.interval_s, 3),
            "zones": [line.to_json() for line in self.zones],
            "total": self.zones_total.to_json(),
            "host": self.host.to_json(),
        }


def sample(now: Look, before: Look | None = None) -> Sample:
    """The lines of a look, with rates since the one before."""
    earlier = {} if before is None else {zone.instance.generation: zone for zone in before.zones}
    interval_s = None if before is None else now.monotonic_s - before.monotonic_s
    lines = tuple(_zone(zone, earlier.get(zone.instance.generation), now, interval_s) for zone in now.zones)
    host = _line("[total]", now.host, None, before.host if before else None, None, interval_s or _uptime(now))
    return Sample(now.time_s, interval_s, lines, _together(lines), host)


def _uptime(now: Look) -> float:
    return max(now.monotonic_s, 0.001)


def _zone(zone: ZoneUsage, before: ZoneUsage | None, now: Look, interval_s: float | None) -> Line:
    booted_s = zone.instance.booted_s or now.monotonic_s
    lived_s = max(now.monotonic_s - booted_s, 0.001)
    since_s = lived_s if before is None or interval_s is None else interval_s
    if before is None:
        return _line(zone.zonename, zone.usage, zone.network, None, None, since_s)
    return _line(zone.zonename, zone.usage, zone.network, before.usage, before.network, since_s)


def _line(
    name: str,
    usage: Usage,
    network: tuple[int, int] | None,
    before: Usage | None,
    network_before: tuple[int, int] | None,
    since_s: float,
) -> Line:
    old = before or Usage()
    used = usage.memory_bytes
    virtual = None if used is None else used + (usage.swap_bytes or 0)
    links, links_before = network or (None, None), network_before or (None, None)
    amounts = {
        CPU: Amount(
            _rate(usage.cpu_us, old.cpu_us, since_s * 1e6),
            usage.cpu_cap,
            shares=usage.cpu_shares,
            total=usage.cpu_us,
        ),
        MEMORY: Amount(used, usage.memory_cap_bytes, usage.memory_peak_bytes),
        VIRTUAL: Amount(virtual, usage.swap_cap_bytes),
        SWAP: Amount(usage.swap_bytes, None, usage.swap_peak_bytes),
        LWPS: Amount(usage.pids, usage.pids_cap, usage.pids_peak),
        READ: _moved(usage.read_bytes, old.read_bytes, since_s),
        WRITE: _moved(usage.write_bytes, old.write_bytes, since_s),
        RECEIVED: _moved(links[0], links_before[0], since_s),
        SENT: _moved(links[1], links_before[1], since_s),
    }
    return Line(name, amounts, usage.oom_kills, usage.pressure, usage.throttled_us)


def _moved(count: int | None, before: int | None, since_s: float) -> Amount:
    return Amount(_rate(count, before, since_s), total=count)


def _rate(count: int | None, before: int | None, since: float) -> float | None:
    """Per unit of ``since``.  A counter that began anew has grown from nothing."""
    if count is None:
        return None
    grown = count - (before or 0)
    return round((grown if grown >= 0 else count) / since, 4)


def _together(lines: Iterable[Line]) -> Line:
    """The sum over zones.  A cap of all is the sum of caps only if each zone has one."""
    rows = list(lines)
    amounts = {}
    for name in RESOURCES:
        each = [row.amounts[name] for row in rows]
        capped = bool(each) and all(amount.cap is not None for amount in each)
        amounts[name] = Amount(
            _sum(amount.used for amount in each),
            _sum(amount.cap for amount in each) if capped else None,
            total=_whole(_sum(amount.total for amount in each)),
            shares=_whole(_sum(amount.shares for amount in each)),
        )
    kills = _whole(_sum(row.oom_kills for row in rows))
    return Line("[zones]", amounts, kills, {}, _whole(_sum(row.throttled_us for row in rows)))


def _sum(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


class Peaks:
    """The highest that was seen of each resource while somebody watched, for what the kernel keeps no peak of."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, str], float] = {}

    def add(self, taken: Sample) -> None:
        """Take note of a sample."""
        for line in (*taken.zones, taken.zones_total, taken.host):
            for name, amount in line.amounts.items():
                if amount.used is not None:
                    key = line.name, name
                    self._seen[key] = max(self._seen.get(key, 0.0), amount.used, amount.peak or 0.0)

    def of(self, zonename: str, resource: str) -> float | None:
        """The peak; None when the zone or its resource was never seen."""
        return self._seen.get((zonename, resource))
