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
    IntegerFile,
)

from zonemgr.linux.cgroup import cpus
from zonemgr.linux.cgroup.hierarchy import write_file
from zonemgr.linux.cgroup.limits import BFQ_MAXIMUM, PERIOD_US, THROTTLES, HugePages, Throttle, clamp


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


class TextFile(BaseFileInterface):  # type: ignore[misc]
    """One line of text."""


class WeightFile(BaseFileInterface):  # type: ignore[misc]
    """``default 100``, with a line for each device that differs; kernels also show the bare number."""

    def sanitize_get(self, value: str) -> int:
        return int(value.splitlines()[0].removeprefix("default "))

    def sanitize_set(self, value: int) -> str:
        return str(value)


# The keys of io.max, in the order of THROTTLES.
IO_MAX_KEYS = ("rbps", "wbps", "riops", "wiops")


class IoMaxFile(BaseFileInterface):  # type: ignore[misc]
    """``8:0 rbps=max wbps=1048576 riops=max wiops=max``, a line a device; one line is written at a time."""

    def sanitize_get(self, value: str) -> frozenset[Throttle]:
        return frozenset(self._throttle(line) for line in value.splitlines() if line.strip())

    def _throttle(self, line: str) -> Throttle:
        device, *words = line.split()
        given = dict(word.split("=") for word in words)
        values = (given.get(key, "max") for key in IO_MAX_KEYS)
        return Throttle(device, *(None if value == "max" else int(value) for value in values))

    def sanitize_set(self, value: Throttle) -> str:
        values = (getattr(value, name) for name in THROTTLES)
        words = (
            f"{key}={'max' if limit is None else limit}"
            for key, limit in zip(IO_MAX_KEYS, values, strict=True)
        )
        return " ".join((value.device, *words))


class ExactWrites:
    """Replaces cgroupspy's ``open(path, "w")``: its O_CREAT turns a missing file into "permission denied"."""

    def set_property(self, filename: bytes, value: object) -> None:
        write_file(Path(os.fsdecode(self.filepath(filename))), str(value))  # type: ignore[attr-defined]


class Payload(ExactWrites, Controller):  # type: ignore[misc]
    """The files of a cgroup2 folder that zonemgr reads or writes."""

    memory_max = MaxFile("memory.max")
    memory_oom_group = IntegerFile("memory.oom.group")
    swap_max = MaxFile("memory.swap.max")
    cpu_max = QuotaFile("cpu.max")
    cpu_weight = IntegerFile("cpu.weight")
    pids_max = MaxFile("pids.max")
    cpuset_cpus = CommaDashSetFile("cpuset.cpus")
    cpuset_exclusive = CommaDashSetFile("cpuset.cpus.exclusive")
    cpuset_partition = TextFile("cpuset.cpus.partition")
    io_max = IoMaxFile("io.max")
    io_weight = WeightFile("io.weight")
    io_bfq_weight = WeightFile("io.bfq.weight")

    def __init__(self, folder: Path) -> None:
        self.full_path = os.fsencode(folder)
        super().__init__(self)  # a cgroupspy controller asks its node for nothing but full_path


class Folder:
    """The limits of one cgroup2 folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
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
        if not wanted:
            cpus.lift(self._folder / "cpuset.cpus")
            return None
        self._files.cpuset_cpus = wanted
        return frozenset(self._files.cpuset_cpus)

    def io_weight(self, wanted: int | None) -> int | None:
        """``io.weight``, or where only BFQ shares a disk by weight its own file, which ends at 1000."""
        weight = 100 if wanted is None else clamp(wanted)
        try:
            self._files.io_weight = weight
            value: int = self._files.io_weight
        except FileNotFoundError:
            self._files.io_bfq_weight = min(weight, BFQ_MAXIMUM)
            value = self._files.io_bfq_weight
        return value

    def io_throttles(self, wanted: frozenset[Throttle]) -> frozenset[Throttle]:
        lifted = {one.device for one in self._files.io_max} - {one.device for one in wanted}
        for one in (*map(Throttle, sorted(lifted)), *wanted):
            self._files.io_max = one
        held: frozenset[Throttle] = self._files.io_max
        return held - {Throttle(one.device) for one in held}

    def huge_pages(self, wanted: frozenset[HugePages]) -> frozenset[HugePages]:
        return set_huge_pages(self._files, "hugetlb.{}.max", wanted)

    def oom_group(self, wanted: bool) -> bool:
        self._files.memory_oom_group = int(wanted)
        return bool(self._files.memory_oom_group)


def page_name(size: int) -> str:
    """A size of huge pages as the kernel's file names have it: 64KB, 2MB, 1GB."""
    for unit, shift in (("GB", 30), ("MB", 20)):
        if size >= 1 << shift:
            return f"{size >> shift}{unit}"
    return f"{size >> 10}KB"


def set_huge_pages(files: Any, form: str, wanted: frozenset[HugePages]) -> frozenset[HugePages]:
    """Write one file a size; sizes that are not wanted are lifted.  What is limited afterwards."""
    limits = dict(wanted)
    prefix, suffix = form.split("{}")
    folder = Path(os.fsdecode(files.node.full_path))
    there = {path.name.removeprefix(prefix).removesuffix(suffix) for path in folder.glob(form.format("*"))}
    names = {page_name(size): size for size in limits}
    for name in sorted(names.keys() | there):
        limit = limits.get(names.get(name, 0))
        none = "max" if suffix == ".max" else "-1"
        write_file(folder / form.format(name), none if limit is None else str(limit))
    return frozenset((size, int((folder / form.format(name)).read_text())) for name, size in names.items())
