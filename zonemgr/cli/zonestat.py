"""``zonestat``: Solaris' program for what zones use, in its syntax, on the numbers of ``stat``.

    zonestat [-z zones] [-r resources] [-n names] [-T u|d|i] [-R total,average,high] [-q] [-p [-P lines]] [-S columns]
             interval [duration [report]]

Resources that the Linux kernel does not count for a zone are shown with dashes, never left out silently.
"""

from __future__ import annotations

import dataclasses
import getopt
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from zonemgr.cli.output import Session, columns
from zonemgr.cli.sampling import CPU, LWPS, MEMORY, RATES, VIRTUAL, Amount, Line, Peaks, Sample
from zonemgr.cli.stat import samples, size
from zonemgr.errors import Exit, UsageError
from zonemgr.store.observe import observe
from zonemgr.store.paths import Layout

USAGE: Final = (
    "usage: zonestat [-z zonelist] [-r reslist] [-n namelist] [-T u|d|i] [-R reports] [-q] [-p [-P lines]]\n"
    "                [-S cols] interval [duration [report]]"
)

# Solaris' resource -> (ours, None where the kernel does not count it; what it is measured in)
RESOURCES: Final[Mapping[str, tuple[str | None, str]]] = {
    "physical-memory": (MEMORY, "bytes"),
    "virtual-memory": (VIRTUAL, "bytes"),
    "locked-memory": (None, "bytes"),
    "processor-set": (CPU, "cpus"),
    "processes": (None, "number"),
    "lwps": (LWPS, "number"),
    "shm-memory": (None, "bytes"),
    "shm-ids": (None, "number"),
    "sem-ids": (None, "number"),
    "msg-ids": (None, "number"),
    "lofi": (None, "number"),
}
_MEMORY: Final = ("physical-memory", "virtual-memory", "locked-memory")
_SYSV: Final = ("shm-memory", "shm-ids", "sem-ids", "msg-ids")
NICKNAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "summary": ("summary",),
    "memory": _MEMORY,
    "psets": ("processor-set",),
    "default-pset": ("processor-set",),
    "limits": ("processes", "lwps", "lofi"),
    "sysv": _SYSV,
    "all": tuple(RESOURCES),
}
REPORTS: Final = ("total", "average", "high")
COLUMNS: Final = ("zone", "used", "%used", "cap", "%cap", "shares", "%shares")
LINES: Final = ("header", "resource", "total", "system", "zones")


@dataclass(slots=True)
class Asked:
    """A command line of zonestat."""

    interval_s: float
    times: int | None = None
    report_every: int | None = None
    zones: tuple[str, ...] = ()
    resources: tuple[str, ...] = ("summary",)
    names: tuple[str, ...] = ()
    stamp: str = ""
    reports: tuple[str, ...] = ()
    quiet: bool = False
    parsable: bool = False
    lines: tuple[str, ...] = LINES
    sort: str = ""


# -- the command line -----------------------------------------------------------------------------------------------


def parse(words: Sequence[str]) -> Asked:
    """Read a command line.  Raises UsageError."""
    try:
        options, rest = getopt.gnu_getopt(list(words), "z:r:n:T:R:qpP:S:")
    except getopt.GetoptError as error:
        raise UsageError("{why}", why=error.msg) from None
    if not 1 <= len(rest) <= 3:
        raise UsageError("an interval is needed" if not rest else "too many operands")
    asked = Asked(_seconds(rest[0], "interval"))
    if len(rest) > 1:
        asked.times = _rounds(rest[1], asked.interval_s)
    if len(rest) > 2:
        asked.report_every = _rounds(rest[2], asked.interval_s)
    for letter, value in options:
        _option(asked, letter, value)
    if asked.report_every and not asked.reports:
        asked.reports = REPORTS
    if asked.quiet and not asked.reports:
        raise UsageError("-q leaves nothing to show without -R")
    return asked


def _option(asked: Asked, letter: str, value: str) -> None:
    match letter:
        case "-z":
            asked.zones = (*asked.zones, *_list(value))
        case "-r":
            asked.resources = _resources(_list(value))
        case "-n":
            asked.names = _list(value)
        case "-T":
            asked.stamp = _one_of("-T", value, ("u", "d", "i"))
        case "-R":
            asked.reports = tuple(_one_of("-R", word, REPORTS) for word in _list(value))
        case "-q":
            asked.quiet = True
        case "-p":
            asked.parsable = True
        case "-P":
            asked.lines = tuple(_one_of("-P", word, LINES) for word in _list(value))
        case "-S":
            asked.sort = _one_of("-S", _list(value)[0], COLUMNS)


def _list(value: str) -> tuple[str, ...]:
    return tuple(word for word in re.split("[, ]+", value) if word)


def _one_of(letter: str, word: str, choices: Iterable[str]) -> str:
    if word not in choices:
        raise UsageError(
            "{letter}: '{word}' is not one of {choices}", letter=letter, word=word, choices=" ".join(choices)
        )
    return word


def _resources(words: Iterable[str]) -> tuple[str, ...]:
    found: list[str] = []
    for word in words:
        if word not in RESOURCES and word not in NICKNAMES:
            choices = " ".join((*NICKNAMES, *RESOURCES))
            raise UsageError("-r: '{word}' is not one of {choices}", word=word, choices=choices)
        found += NICKNAMES.get(word, (word,))
    return tuple(dict.fromkeys(found))


def _seconds(word: str, what: str) -> float:
    """Seconds, with the units that Solaris takes: 90, 90s, 5m, 1h."""
    match = re.fullmatch(r"([0-9]+)([smhd]?)", word)
    if not match or not int(match[1]):
        raise UsageError(
            "{what} must be a number of seconds, or such as 5m, not '{word}'", what=what, word=word
        )
    return float(int(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]])


def _rounds(word: str, interval_s: float) -> int | None:
    """How many intervals a duration has; ``inf`` is for ever."""
    if word == "inf":
        return None
    return max(1, round(_seconds(word, "duration") / interval_s))


# -- the reports ----------------------------------------------------------------------------------------------------


class Totals:
    """What the intervals of a report come to, for each amount of each line."""

    def __init__(self) -> None:
        self.rounds = 0
        self._sums: dict[tuple[str, str], float] = {}
        self._seen: dict[tuple[str, str], int] = {}
        self._peaks = Peaks()
        self._last: Sample | None = None

    def add(self, taken: Sample) -> None:
        """Count an interval."""
        self.rounds += 1
        self._last = taken
        self._peaks.add(taken)
        for line in (*taken.zones, taken.zones_total, taken.host):
            for name, amount in line.amounts.items():
                if amount.used is not None:
                    key = line.name, name
                    self._sums[key] = self._sums.get(key, 0.0) + amount.used
                    self._seen[key] = self._seen.get(key, 0) + 1

    def report(self, kind: str) -> Sample | None:
        """``average``, ``high`` or ``total`` (of rates what was used over the whole time, of all else what is used now)
        as a sample; None when no interval was counted.
        """
        last = self._last
        if last is None:
            return None

        def of(line: Line) -> Line:
            amounts = {name: self._amount(kind, line, name) for name in line.amounts}
            return dataclasses.replace(line, amounts=amounts)

        return dataclasses.replace(
            last,
            zones=tuple(map(of, last.zones)),
            zones_total=of(last.zones_total),
            host=of(last.host),
        )

    def _amount(self, kind: str, line: Line, name: str) -> Amount:
        amount, key = line.amounts[name], (line.name, name)
        if amount.used is None:
            return amount
        if kind == "high":
            return dataclasses.replace(amount, used=self._peaks.of(*key))
        if kind == "average" or name in RATES:
            return dataclasses.replace(amount, used=self._sums[key] / self._seen[key])
        return amount


def _amount_of(line: Line, resource: str) -> Amount:
    ours = RESOURCES[resource][0]
    return Amount() if ours is None else line.amounts[ours]


def _used(amount: Amount, unit: str) -> str:
    if amount.used is None:
        return "-"
    if unit == "bytes":
        return size(amount.used)
    return f"{amount.used:.2f}" if unit == "cpus" else f"{amount.used:.0f}"


def _part(value: float | None, whole: float | None) -> str:
    return "-" if value is None or not whole else f"{100 * value / whole:.2f}%"


def _row(line: Line, resource: str, whole: Amount, shares: int) -> list[str]:
    """zone, used, %used, cap, %cap, shares, %shares"""
    unit = RESOURCES[resource][1]
    amount = _amount_of(line, resource)
    cap = None if amount.cap is None else dataclasses.replace(amount, used=amount.cap)
    own = amount.shares if unit == "cpus" else None
    return [
        line.name,
        _used(amount, unit),
        _part(amount.used, whole.cap),
        "-" if cap is None else _used(cap, unit),
        _part(amount.used, amount.cap),
        "-" if own is None else str(own),
        _part(own, shares),
    ]


def _system(taken: Sample, resource: str) -> Line:
    """What the host uses beside its zones."""
    ours = RESOURCES[resource][0]
    if ours is None:
        return Line("[system]", {})
    every, zones = taken.host.amounts[ours].used, taken.zones_total.amounts[ours].used
    used = None if every is None else max(0.0, every - (zones or 0))
    return Line("[system]", {ours: Amount(used)})


def resource_report(taken: Sample, resource: str, asked: Asked) -> list[list[str]]:
    """The rows of one resource: the total, the host's own, and each zone."""
    whole = _amount_of(taken.host, resource)
    shares = sum(_amount_of(line, resource).shares or 0 for line in taken.zones)
    rows = []
    if "total" in asked.lines:
        rows.append(_row(taken.host, resource, whole, 0))
    if "system" in asked.lines:
        rows.append(_row(_system(taken, resource), resource, whole, 0))
    if "zones" in asked.lines:
        zones = sorted(taken.zones, key=_order(asked.sort, resource))
        rows += [_row(line, resource, whole, shares) for line in zones]
    return rows


def _order(sort: str, resource: str) -> Callable[[Line], tuple[float, str]]:
    def key(line: Line) -> tuple[float, str]:
        amount = _amount_of(line, resource)
        value = {"cap": amount.cap, "%cap": amount.of_cap, "shares": amount.shares, "%shares": amount.shares}
        used = value.get(sort, amount.used)
        return (0.0 if sort == "zone" else -(used or 0.0)), line.name

    return key


def summary(taken: Sample, asked: Asked) -> list[list[str]]:
    """The table of the three that matter most."""
    shown = ("processor-set", "physical-memory", "virtual-memory")
    rows = [["ZONE", "CPU", "%CPU", "PHYS", "%PHYS", "VIRT", "%VIRT"]] if "header" in asked.lines else []
    lines = [
        *([taken.host] if "total" in asked.lines else []),
        *(sorted(taken.zones, key=_order(asked.sort, "processor-set")) if "zones" in asked.lines else ()),
    ]
    for line in lines:
        row = [line.name]
        for resource in shown:
            row += _row(line, resource, _amount_of(taken.host, resource), 0)[1:3]
        rows.append(row)
    return rows


def report(taken: Sample, asked: Asked, title: str) -> list[str]:
    """All that is printed of one interval or report."""
    out = [] if asked.parsable else [_title(taken, asked, title)]
    for resource in asked.resources:
        name = "default_pset" if resource == "processor-set" else resource
        if asked.names and name not in asked.names and resource not in asked.names:
            continue
        rows = summary(taken, asked) if resource == "summary" else resource_report(taken, resource, asked)
        if asked.parsable:
            out += [":".join((title, resource, *row)) for row in rows]
            continue
        if resource != "summary" and "header" in asked.lines:
            rows.insert(0, [word.upper() for word in COLUMNS])
        if resource != "summary" and "resource" in asked.lines:
            out.append(resource.upper())
        out += columns([["  " + row[0], *row[1:]] for row in rows])
    return out


def _title(taken: Sample, asked: Asked, title: str) -> str:
    moment = time.localtime(taken.time_s)
    stamps = {"u": str(int(taken.time_s)), "i": time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(taken.time_s))}
    stamp = stamps.get(asked.stamp, time.strftime("%a %b %e %T %Y", moment))
    return f"{title}, {stamp}"


def run(session: Session, layout: Layout, asked: Asked) -> int:
    """Print reports until the duration is over, or somebody ends it."""
    for zone in asked.zones:
        if zone != "global":
            observe(layout, zone)  # NoSuchZoneError
    names = [zone for zone in asked.zones if zone != "global"]
    totals = Totals()
    times = None if asked.times is None else asked.times + 1  # the first look only begins an interval
    try:
        for number, taken in enumerate(samples(layout, names, asked.interval_s, times)):
            if number == 0:
                continue
            totals.add(taken)
            if not asked.quiet:
                _print(session, report(taken, asked, f"interval:{number}"), asked)
            if asked.report_every and totals.rounds == asked.report_every:
                _reports(session, totals, asked)
                totals = Totals()
    except KeyboardInterrupt:
        pass
    _reports(session, totals, asked)
    return Exit.OK


def _reports(session: Session, totals: Totals, asked: Asked) -> None:
    for kind in asked.reports:
        taken = totals.report(kind)
        if taken is not None:
            _print(session, report(taken, asked, f"report-{kind}"), asked)


def _print(session: Session, lines: Iterable[str], asked: Asked) -> None:
    for line in lines:
        session.data(line)
    if not asked.parsable:
        session.data("")
    sys.stdout.flush()
