"""What a zone uses, read from outside in as few and as plain reads as there are: a thousand zones are looked at in one
go, by anybody.

One table from each number to its place: a file of the zone's payload on cgroup2, or of its folder on a v1 mount, where
that has the controller.  Deliberately not here: limits (``limits``, through cgroupspy, whose descriptors would cost
more than the reads), and rates, which take two looks (``cli.stat``).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from zonemgr.linux.cgroup.hierarchy import Hierarchy, Kind

# "No limit" reads back as the largest number of pages of v1.
_NO_LIMIT: Final = 1 << 60


@dataclass(frozen=True, slots=True)
class Usage:
    """What a zone uses and may use now.  None: this host does not count it, or there is no limit (``*_cap``).

    Times are microseconds since the zone's control group was made, sizes bytes.  ``cpu_cap`` counts processors,
    ``pressure`` is the share of the last ten seconds in which some process had to wait, in percent.
    """

    cpu_us: int | None = None
    user_us: int | None = None
    system_us: int | None = None
    cpu_cap: float | None = None
    cpu_shares: int | None = None
    throttled_us: int | None = None
    memory_bytes: int | None = None
    memory_peak_bytes: int | None = None
    memory_cap_bytes: int | None = None
    swap_bytes: int | None = None
    swap_peak_bytes: int | None = None
    swap_cap_bytes: int | None = None
    pids: int | None = None
    pids_peak: int | None = None
    pids_cap: int | None = None
    read_bytes: int | None = None
    write_bytes: int | None = None
    oom_kills: int | None = None
    pressure: Mapping[str, float] = field(default_factory=dict)


def _text(folder: str, filename: str) -> str:
    """The content of a kernel file; empty when there is none."""
    try:
        fd = os.open(f"{folder}/{filename}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        return os.read(fd, 65536).decode(errors="replace")
    except OSError:  # removed under us
        return ""
    finally:
        os.close(fd)


def _number(text: str) -> int | None:
    text = text.strip()
    if not text.isdecimal():
        return None
    value = int(text)
    return None if value > _NO_LIMIT else value


def _pairs(text: str) -> dict[str, int]:
    """Lines of a name and a number."""
    words = (line.split() for line in text.splitlines())
    return {pair[0]: int(pair[1]) for pair in words if len(pair) == 2 and pair[1].isdecimal()}


# -- cgroup2 --------------------------------------------------------------------------------------------------------


def _times(folder: str) -> dict[str, int]:
    """Processor time is counted on cgroup2, whichever controllers it has."""
    stat = _pairs(_text(folder, "cpu.stat"))
    names = {
        "usage_usec": "cpu_us",
        "user_usec": "user_us",
        "system_usec": "system_us",
        "throttled_usec": "throttled_us",
    }
    return {ours: stat[theirs] for theirs, ours in names.items() if theirs in stat}


def _memory(folder: str) -> dict[str, int | None]:
    """Solaris counts memory and swap together in its cap of swap; cgroup2 limits swap alone."""
    cap, room = _number(_text(folder, "memory.max")), _number(_text(folder, "memory.swap.max"))
    return {
        "memory_bytes": _number(_text(folder, "memory.current")),
        "memory_peak_bytes": _number(_text(folder, "memory.peak")),
        "memory_cap_bytes": cap,
        "swap_bytes": _number(_text(folder, "memory.swap.current")),
        "swap_peak_bytes": _number(_text(folder, "memory.swap.peak")),
        "swap_cap_bytes": None if room is None else room + (cap or 0),
        "oom_kills": _pairs(_text(folder, "memory.events")).get("oom_kill"),
    }


def _cpu(folder: str) -> dict[str, float | int | None]:
    quota, _, period = _text(folder, "cpu.max").strip().partition(" ")
    cap = int(quota) / int(period) if quota.isdecimal() and period.isdecimal() else None
    return {"cpu_cap": cap, "cpu_shares": _number(_text(folder, "cpu.weight"))}


def _pids(folder: str) -> dict[str, int | None]:
    return {
        "pids": _number(_text(folder, "pids.current")),
        "pids_peak": _number(_text(folder, "pids.peak")),
        "pids_cap": _number(_text(folder, "pids.max")),
    }


def _io(folder: str) -> dict[str, int]:
    totals = {"rbytes": 0, "wbytes": 0}
    text = _text(folder, "io.stat")
    if not text and not os.path.exists(f"{folder}/io.stat"):
        return {}  # an empty one is of a zone that has not moved a byte
    for line in text.splitlines():
        for word in line.split()[1:]:
            key, _, value = word.partition("=")
            if key in totals and value.isdecimal():
                totals[key] += int(value)
    return {"read_bytes": totals["rbytes"], "write_bytes": totals["wbytes"]}


def _pressure(folder: str) -> dict[str, float]:
    found = {}
    for name in ("cpu", "memory", "io"):
        for word in _text(folder, f"{name}.pressure").partition("\n")[0].split():
            if word.startswith("avg10="):
                found[name] = float(word.removeprefix("avg10="))
    return found


# -- v1 -------------------------------------------------------------------------------------------------------------


def _memory_v1(folder: str) -> dict[str, int | None]:
    used, both = (
        _number(_text(folder, name)) for name in ("memory.usage_in_bytes", "memory.memsw.usage_in_bytes")
    )
    return {
        "memory_bytes": used,
        "memory_peak_bytes": _number(_text(folder, "memory.max_usage_in_bytes")),
        "memory_cap_bytes": _number(_text(folder, "memory.limit_in_bytes")),
        "swap_bytes": None if used is None or both is None else max(0, both - used),
        "swap_cap_bytes": _number(_text(folder, "memory.memsw.limit_in_bytes")),
        "oom_kills": _pairs(_text(folder, "memory.oom_control")).get("oom_kill"),
    }


def _cpu_v1(folder: str) -> dict[str, float | int | None]:
    quota, period = (_number(_text(folder, f"cpu.cfs_{name}_us")) for name in ("quota", "period"))
    shares = _number(_text(folder, "cpu.shares"))
    throttled = _pairs(_text(folder, "cpu.stat")).get("throttled_time")
    return {
        "cpu_cap": quota / period if quota and period else None,
        "cpu_shares": None if shares is None else round(shares / 10.24),
        "throttled_us": None if throttled is None else throttled // 1000,
    }


def _blkio_v1(folder: str) -> dict[str, int]:
    totals = {"Read": 0, "Write": 0}
    for line in _text(folder, "blkio.throttle.io_service_bytes_recursive").splitlines():
        words = line.split()
        if len(words) == 3 and words[1] in totals:
            totals[words[1]] += int(words[2])
    return {"read_bytes": totals["Read"], "write_bytes": totals["Write"]}


_Read = Callable[[str], Mapping[str, float | int | None]]

# controller of v1 -> how its numbers are read there, and on cgroup2
_READS: Final[Mapping[str, tuple[_Read, _Read]]] = {
    "memory": (_memory_v1, _memory),
    "cpu": (_cpu_v1, _cpu),
    "pids": (_pids, _pids),
    "blkio": (_blkio_v1, _io),
}


def of_zone(hierarchy: Hierarchy, base: str, name: str) -> Usage:
    """What the zone uses; all None when it has no control groups."""
    payload = f"{hierarchy.unified()}/{base}/{name}/payload"
    counted: dict[str, float | int | None] = {**_times(payload)}
    for controller, (from_v1, from_v2) in _READS.items():
        mount = hierarchy.controllers.get(controller)
        counted |= from_v2(payload) if mount is None else from_v1(f"{mount}/{base}/{name}")
    return Usage(**counted, pressure=_pressure(payload))  # type: ignore[arg-type]


def oom_kills(payload: str, folders_v1: Iterable[str]) -> int:
    """How many processes of a zone the kernel has killed because its memory cap was reached."""
    for folder in folders_v1:
        if found := _pairs(_text(folder, "memory.oom_control")).get("oom_kill"):
            return found
    return _pairs(_text(payload, "memory.events")).get("oom_kill", 0)


def of_host(hierarchy: Hierarchy) -> Usage:
    """What the whole host uses, zones included."""
    memory = {
        words[0].rstrip(":"): int(words[1]) * 1024
        for words in (line.split() for line in _text("/proc", "meminfo").splitlines())
        if len(words) > 1
    }
    ticks = [int(word) for word in _text("/proc", "stat").partition("\n")[0].split()[1:9]]
    unit = 1_000_000 // os.sysconf("SC_CLK_TCK")
    user, nice, system, _idle, _wait, irq, soft, _steal = ticks or [0] * 8
    running = _text("/proc", "loadavg").split()
    return Usage(
        cpu_us=(user + nice + system + irq + soft) * unit,
        user_us=(user + nice) * unit,
        system_us=(system + irq + soft) * unit,
        cpu_cap=float(os.cpu_count() or 1),
        memory_bytes=memory.get("MemTotal", 0) - memory.get("MemAvailable", 0),
        memory_cap_bytes=memory.get("MemTotal"),
        swap_bytes=memory.get("SwapTotal", 0) - memory.get("SwapFree", 0),
        swap_cap_bytes=memory.get("MemTotal", 0) + memory.get("SwapTotal", 0),
        pids=int(running[3].partition("/")[2]) if len(running) > 3 else None,
        pids_cap=_number(_text("/proc/sys/kernel", "pid_max")),
        **_disks(),
        pressure=_pressure_of_host(hierarchy),
    )


def _disks() -> dict[str, int]:
    """Whole disks only: what a partition or a mapped device moves is its disk's too."""
    sectors = [0, 0]
    for line in _text("/proc", "diskstats").splitlines():
        words = line.split()
        if len(words) > 9 and os.path.exists(f"/sys/block/{words[2]}/device"):
            sectors = [sectors[0] + int(words[5]), sectors[1] + int(words[9])]
    return {"read_bytes": sectors[0] * 512, "write_bytes": sectors[1] * 512}


def _pressure_of_host(hierarchy: Hierarchy) -> dict[str, float]:
    if hierarchy.kind is not Kind.LEGACY and os.path.exists("/proc/pressure/cpu"):
        texts = {name: _text("/proc/pressure", name) for name in ("cpu", "memory", "io")}
        return {
            name: float(word.removeprefix("avg10="))
            for name, text in texts.items()
            for word in text.partition("\n")[0].split()
            if word.startswith("avg10=")
        }
    return {}


def network(pid: int) -> tuple[int, int] | None:
    """(received, sent) bytes of all links of a process's network namespace but the loopback, since they were made.

    Through its /proc entry, which anybody may read, and which knows every kind of link.
    """
    lines = _text(f"/proc/{pid}/net", "dev").splitlines()[2:]
    if not lines:
        return None
    received = sent = 0
    for line in lines:
        name, _, numbers = line.partition(":")
        words = numbers.split()
        if name.strip() != "lo" and len(words) > 8:
            received, sent = received + int(words[0]), sent + int(words[8])
    return received, sent
