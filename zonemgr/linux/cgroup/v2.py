"""The files of a cgroup2 folder, declared with cgroupspy's descriptors, and the limits in their terms.

Deliberately not here: cgroupspy's Tree (it lists every folder of the host, and knows only v1).
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import Any

from cgroupspy.controllers import Controller  # type: ignore[import-untyped]
from cgroupspy.interfaces import (  # type: ignore[import-untyped]
    BaseFileInterface,
    CommaDashSetFile,
    DictFile,
    IntegerFile,
)

from zonemgr.linux.cgroup.hierarchy import write_file
from zonemgr.linux.cgroup.limits import PERIOD_US, clamp


class MaxFile(BaseFileInterface):  # type: ignore[misc]
    """A number, or ``max``: None."""

    def sanitize_get(self, value: str) -> int | None:
        return None if value == "max" else int(value)

    def sanitize_set(self, value: int | None) -> str:
        return "max" if value is None else str(int(value))


class QuotaFile(BaseFileInterface):  # type: ignore[misc]
    """``cpu.max``: microseconds of processor time per period, seen as a number of processors."""

    def sanitize_get(self, value: str) -> float | None:
        quota, period = value.split()
        return None if quota == "max" else int(quota) / int(period)

    def sanitize_set(self, value: float | None) -> str:
        return f"{'max' if value is None else quota_us(value)} {PERIOD_US}"


def quota_us(cpus: float) -> int:
    """Processor time per period; the kernel takes no less than a millisecond."""
    return max(1000, round(cpus * PERIOD_US))


class ExactWrites:
    """Replaces cgroupspy's ``open(path, "w")``: its O_CREAT turns a missing file into "permission denied"."""

    def set_property(self, filename: bytes, value: object) -> None:
        write_file(Path(os.fsdecode(self.filepath(filename))), str(value))  # type: ignore[attr-defined]


class Payload(ExactWrites, Controller):  # type: ignore[misc]
    """The files of a cgroup2 folder that zonemgr reads or writes."""

    memory_max = MaxFile("memory.max")
    memory_current = IntegerFile("memory.current", readonly=True)
    memory_peak = IntegerFile("memory.peak", readonly=True)
    memory_events = DictFile("memory.events", readonly=True)
    swap_max = MaxFile("memory.swap.max")
    swap_current = IntegerFile("memory.swap.current", readonly=True)
    cpu_max = QuotaFile("cpu.max")
    cpu_weight = IntegerFile("cpu.weight")
    cpu_stat = DictFile("cpu.stat", readonly=True)
    pids_max = MaxFile("pids.max")
    pids_current = IntegerFile("pids.current", readonly=True)
    cpuset_cpus = CommaDashSetFile("cpuset.cpus")

    def __init__(self, folder: Path) -> None:
        self.full_path = os.fsencode(folder)
        super().__init__(self)  # a cgroupspy controller asks its node for nothing but full_path


class Folder:
    """The limits of one cgroup2 folder."""

    def __init__(self, folder: Path) -> None:
        self._files: Any = Payload(folder)

    def memory(self, wanted: int | None) -> int | None:
        self._files.memory_max = wanted
        value: int | None = self._files.memory_max
        return value

    def swap(self, wanted: int | None, memory: int | None) -> int | None:
        """Solaris counts memory and swap together; cgroup2 limits swap alone."""
        # Whole pages, as the kernel holds it: the sum is to be the wanted one.
        memory = (memory or 0) // mmap.PAGESIZE * mmap.PAGESIZE
        room = None if wanted is None else max(0, wanted - memory)
        try:
            self._files.swap_max = room
            left: int | None = self._files.swap_max
        except FileNotFoundError:
            if os.path.exists("/proc/swaps"):
                raise
            left = 0  # a kernel without swap holds the limit by itself
        return None if left is None else left + memory

    def cpus(self, wanted: float | None) -> float | None:
        self._files.cpu_max = wanted
        value: float | None = self._files.cpu_max
        return value

    def cpu_shares(self, wanted: int | None) -> int | None:
        self._files.cpu_weight = 100 if wanted is None else clamp(wanted)
        value: int | None = self._files.cpu_weight
        return value

    def pids(self, wanted: int | None) -> int | None:
        self._files.pids_max = wanted
        value: int | None = self._files.pids_max
        return value

    def cpu_ids(self, wanted: frozenset[int] | None) -> frozenset[int] | None:
        self._files.cpuset_cpus = wanted or ()
        return frozenset(self._files.cpuset_cpus) or None


def statistics(folder: Path) -> dict[str, int]:
    """What this folder's files count, by the names of Statistics."""
    files: Any = Payload(folder)
    reads = {
        "cpu_us": lambda: files.cpu_stat["usage_usec"],
        "user_us": lambda: files.cpu_stat["user_usec"],
        "system_us": lambda: files.cpu_stat["system_usec"],
        "memory_bytes": lambda: files.memory_current,
        "memory_peak_bytes": lambda: files.memory_peak,
        "swap_bytes": lambda: files.swap_current,
        "pids": lambda: files.pids_current,
        "oom_kills": lambda: files.memory_events["oom_kill"],
    }
    return readings(reads)


def readings(reads: dict[str, Any]) -> dict[str, int]:
    """Call each; a file that this host does not have is left out."""
    counted: dict[str, int] = {}
    for name, read in reads.items():
        try:
            counted[name] = int(read())
        except (OSError, KeyError):
            continue
    return counted
