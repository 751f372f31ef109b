"""``stat``: what the zones use, once, again and again, or as a view that fills the terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from typing import Final

import click

from zonemgr.cli.output import Session, columns
from zonemgr.cli.sampling import (
    CPU,
    LWPS,
    MEMORY,
    READ,
    RECEIVED,
    SENT,
    SWAP,
    VIRTUAL,
    WRITE,
    Amount,
    Line,
    Peaks,
    Sample,
    sample,
)
from zonemgr.errors import Exit, NoSuchZoneError, UsageError
from zonemgr.store.observe import observe
from zonemgr.store.paths import Layout
from zonemgr.store.usage import look

_UNITS: Final = "BKMGTP"
HEADER: Final = (
    *("ZONE", "CPU%", "CAP", "MEM", "CAP", "PEAK", "SWAP", "VM", "CAP", "LWPS", "CAP"),
    *("READ/s", "WRITE/s", "RECV/s", "SENT/s", "OOM"),
)


# -- for people -----------------------------------------------------------------------------------------------------


def size(value: float | None) -> str:
    """Bytes in a few characters: 512B, 1.5M."""
    if value is None:
        return "-"
    unit = 0
    while value >= 1000 and unit < len(_UNITS) - 1:
        value /= 1024
        unit += 1
    return f"{value:.0f}{_UNITS[unit]}" if unit == 0 or value >= 100 else f"{value:.1f}{_UNITS[unit]}"


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def count(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def cells(line: Line, peak: float | None = None) -> list[str]:
    """One line of the table."""
    get = line.amounts.__getitem__
    cap = get(CPU).cap
    return [
        line.name,
        percent(get(CPU).used),
        "-" if cap is None else percent(cap),
        *(size(value) for value in (get(MEMORY).used, get(MEMORY).cap, peak or get(MEMORY).peak)),
        size(get(SWAP).used),
        *(size(value) for value in (get(VIRTUAL).used, get(VIRTUAL).cap)),
        *(count(value) for value in (get(LWPS).used, get(LWPS).cap)),
        *(size(get(name).used) for name in (READ, WRITE, RECEIVED, SENT)),
        count(line.oom_kills),
    ]


def table(taken: Sample, peaks: Peaks) -> list[str]:
    """The whole table: zones by name, all of them together, and the host."""
    lines = [*taken.zones, *([taken.zones_total] if len(taken.zones) > 1 else []), taken.host]
    rows = [list(HEADER), *(cells(line, peaks.of(line.name, MEMORY)) for line in lines)]
    widths = [max(len(row[index]) for row in rows) for index in range(1, len(HEADER))]
    return columns(
        [[row[0], *(cell.rjust(width) for cell, width in zip(row[1:], widths, strict=True))] for row in rows]
    )


# -- for programs ---------------------------------------------------------------------------------------------------


def metrics(taken: Sample, stopped: Sequence[str]) -> Iterator[str]:
    """The text format of Prometheus.  A zone that does not run has zeros, so that no series ends."""
    nothing = {name: Amount(0.0, total=0) for name in taken.host.amounts}
    calm = dict.fromkeys(taken.host.pressure, 0.0)
    lines = [*taken.zones, *(Line(name, nothing, 0, calm, 0) for name in stopped)]
    for metric, kind, resource, attribute, scale in _METRICS:
        yield f"# TYPE zonemgr_{metric} {kind}"
        for line in lines:
            value = getattr(line.amounts[resource], attribute)
            if value is not None:
                yield f'zonemgr_{metric}{{zone="{line.name}"}} {value * scale:.12g}'
    yield "# TYPE zonemgr_oom_kills_total counter"
    for line in lines:
        if line.oom_kills is not None:
            yield f'zonemgr_oom_kills_total{{zone="{line.name}"}} {line.oom_kills}'
    yield "# TYPE zonemgr_cpu_throttled_seconds_total counter"
    for line in lines:
        if line.throttled_us is not None:
            yield f'zonemgr_cpu_throttled_seconds_total{{zone="{line.name}"}} {line.throttled_us * 1e-6:.12g}'
    yield "# TYPE zonemgr_pressure_percent gauge"
    for line in lines:
        for resource, percents in line.pressure.items():
            yield f'zonemgr_pressure_percent{{zone="{line.name}",resource="{resource}"}} {percents:.12g}'
    yield "# TYPE zonemgr_running gauge"
    for line in lines:
        yield f'zonemgr_running{{zone="{line.name}"}} {int(line.name not in stopped)}'


_METRICS: Final = (
    ("cpu_seconds_total", "counter", CPU, "total", 1e-6),
    ("cpu_cap", "gauge", CPU, "cap", 1),
    ("memory_bytes", "gauge", MEMORY, "used", 1),
    ("memory_peak_bytes", "gauge", MEMORY, "peak", 1),
    ("memory_cap_bytes", "gauge", MEMORY, "cap", 1),
    ("swap_bytes", "gauge", SWAP, "used", 1),
    ("threads", "gauge", LWPS, "used", 1),
    ("threads_cap", "gauge", LWPS, "cap", 1),
    ("disk_read_bytes_total", "counter", READ, "total", 1),
    ("disk_written_bytes_total", "counter", WRITE, "total", 1),
    ("network_received_bytes_total", "counter", RECEIVED, "total", 1),
    ("network_sent_bytes_total", "counter", SENT, "total", 1),
)


# -- looking again and again ----------------------------------------------------------------------------------------


def samples(
    layout: Layout, names: Sequence[str], interval_s: float | None, times: int | None
) -> Iterator[Sample]:
    """One sample, or one after each interval, ``times`` of them or for ever.  The first has averages since boot."""
    before = look(layout, names)
    yield sample(before)
    done = 1
    due_s = before.monotonic_s
    while interval_s is not None and (times is None or done < times):
        due_s += interval_s
        time.sleep(max(0.0, due_s - time.monotonic()))
        now = look(layout, names)
        yield sample(now, before)
        before, done = now, done + 1


def split_words(words: Sequence[str], is_zone: object) -> tuple[list[str], float | None, int | None]:
    """Names, and the interval and count that may follow them.  A number that is a zone's name is a name.

    Raises UsageError.
    """
    known = is_zone if callable(is_zone) else (lambda _name: False)
    names = list(words)
    numbers: list[str] = []
    while names and len(numbers) < 2 and _is_number(names[-1]) and not known(names[-1]):
        numbers.insert(0, names.pop())
    interval_s = float(numbers[0]) if numbers else None
    if interval_s is not None and interval_s <= 0:
        raise UsageError("the interval must be more than nothing")
    if len(numbers) < 2:
        return names, interval_s, None
    if not numbers[1].isdecimal() or int(numbers[1]) < 1:
        raise UsageError("the count must be a whole number from 1, not '{given}'", given=numbers[1])
    return names, interval_s, int(numbers[1])


def _is_number(word: str) -> bool:
    return word.replace(".", "", 1).isdecimal()


def _is_zone(layout: Layout, name: str) -> bool:
    try:
        observe(layout, name)
    except NoSuchZoneError:
        return False
    return True


@click.command()
@click.argument("words", metavar="[NAME...] [INTERVAL [COUNT]]", nargs=-1)
@click.option("-l", "--live", is_flag=True, help="Fill the terminal and stay up to date; q ends it.")
@click.option("--prometheus", is_flag=True, help="Counters for a collector of text files.")
@click.pass_obj
def stat(session: Session, words: tuple[str, ...], live: bool, prometheus: bool) -> int:
    """Show what running zones use of processors, memory, swap, threads, disks and links, and their caps.

    Rates are averages since the zone's boot, or with INTERVAL (seconds) since the line before.  Needs no privilege.
    """
    layout = session.layout
    names, interval_s, times = split_words(words, lambda name: _is_zone(layout, name))
    for name in names:
        observe(layout, name)  # NoSuchZoneError
    if live:
        from zonemgr.cli import statview

        return statview.run(layout, names, interval_s or 2.0)
    if prometheus:
        return _show_metrics(session, names)
    peaks = Peaks()
    try:
        for number, taken in enumerate(samples(layout, names, interval_s, times)):
            _show(session, taken, peaks, first=number == 0, stream=interval_s is not None)
    except KeyboardInterrupt:
        return Exit.OK
    return Exit.OK


def _show(session: Session, taken: Sample, peaks: Peaks, *, first: bool, stream: bool) -> None:
    peaks.add(taken)
    if session.json:
        session.emit(taken.to_json(), indent=None if stream else 2)
    else:
        if not first:
            session.data("")
        for line in table(taken, peaks):
            session.data(line)
    sys.stdout.flush()


def _show_metrics(session: Session, names: Sequence[str]) -> int:
    from zonemgr.store.observe import all_zones

    taken = sample(look(session.layout, names))
    living = {line.name for line in taken.zones}
    every = names or [zone.zonename for zone in all_zones(session.layout)]
    for text in metrics(taken, [name for name in every if name not in living]):
        session.data(text)
    return Exit.OK
