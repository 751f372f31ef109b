"""The folders of v1 hierarchies, driven through cgroupspy's node and controllers; what it lacks is added here.

Deliberately not here: cgroupspy's Tree and its membership writes (one node is opened by its path, and a process
joins through ``tasks``, see hierarchy.py).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar

from cgroupspy.controllers import (  # type: ignore[import-untyped]
    BlkIOController,
    Controller,
    CpuController,
    CpuSetController,
    MemoryController,
)
from cgroupspy.interfaces import BaseFileInterface  # type: ignore[import-untyped]
from cgroupspy.nodes import Node  # type: ignore[import-untyped]

from zonemgr.linux.cgroup.limits import (
    BFQ_MAXIMUM,
    PERIOD_US,
    THROTTLES,
    HugePages,
    NoController,
    Throttle,
    clamp,
)
from zonemgr.linux.cgroup.v2 import ExactWrites, MaxFile, WeightFile, quota_us, set_huge_pages

# "No limit" reads back as the largest number of pages; nothing that anybody asks for comes near.
_NO_LIMIT = 1 << 60


class Memory(ExactWrites, MemoryController):  # type: ignore[misc]
    """memory.*"""


class Cpu(ExactWrites, CpuController):  # type: ignore[misc]
    """cpu.*"""


class CpuSet(ExactWrites, CpuSetController):  # type: ignore[misc]
    """cpuset.*"""


class ThrottleFile(BaseFileInterface):  # type: ignore[misc]
    """``8:0 1048576``, a line a device; one line is written at a time, and 0 lifts it."""

    def sanitize_get(self, value: str) -> dict[str, int]:
        return {device: int(limit) for device, limit in (line.split() for line in value.splitlines())}

    def sanitize_set(self, value: tuple[str, int | None]) -> str:
        return f"{value[0]} {value[1] or 0}"


class BlkIO(ExactWrites, BlkIOController):  # type: ignore[misc]
    """blkio.*; two of cgroupspy's own throttle files have a blank in their names."""

    read_bps = ThrottleFile("blkio.throttle.read_bps_device")
    write_bps = ThrottleFile("blkio.throttle.write_bps_device")
    read_iops = ThrottleFile("blkio.throttle.read_iops_device")
    write_iops = ThrottleFile("blkio.throttle.write_iops_device")
    bfq_weight = WeightFile("blkio.bfq.weight")


class HugeTlb(ExactWrites, Controller):  # type: ignore[misc]
    """hugetlb.*, which cgroupspy does not know; the files are named after the sizes of the host's pages."""


class Pids(ExactWrites, Controller):  # type: ignore[misc]
    """pids.*, which cgroupspy does not know."""

    max = MaxFile("pids.max")


class ZoneNode(Node):  # type: ignore[misc]
    """One folder by its path.  cgroupspy would guess the controller from where a node hangs in its tree."""

    CONTROLLERS: ClassVar[dict[bytes, type]] = {
        b"memory": Memory,
        b"cpu": Cpu,
        b"cpuset": CpuSet,
        b"pids": Pids,
        b"blkio": BlkIO,
        b"hugetlb": HugeTlb,
    }

    def __init__(self, controller: str, folder: Path) -> None:
        self._own_controller = controller.encode()
        super().__init__(os.fsencode(folder))

    def _get_controller_type(self) -> bytes:
        return self._own_controller


def open_controller(controller: str, folder: Path) -> Any:
    """cgroupspy's controller object of one folder."""
    return ZoneNode(controller, folder).controller


class Folder:
    """The limits of one v1 folder: which of them it can take depends on the mount's controllers."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def memory(self, wanted: int | None) -> int | None:
        files = open_controller("memory", self._folder)
        # memory <= memory+swap holds at every moment: room above first.  A swap limit follows in a step of its own.
        if _above(wanted, _memsw(files)):
            files.memsw_limit_in_bytes = None
        files.limit_in_bytes = wanted
        return _limit(files.limit_in_bytes)

    def swap(self, wanted: int | None, memory: int | None) -> int | None:
        """v1 counts memory and swap together, as Solaris does."""
        files = open_controller("memory", self._folder)
        try:
            files.memsw_limit_in_bytes = wanted
        except FileNotFoundError:
            if os.path.exists("/proc/swaps"):
                raise
            return wanted  # a kernel without swap: memory's own limit holds the sum
        return _limit(files.memsw_limit_in_bytes)

    def cpus(self, wanted: float | None) -> float | None:
        files = open_controller("cpu", self._folder)
        if wanted is not None:
            files.cfs_period_us = PERIOD_US
        files.cfs_quota_us = None if wanted is None else quota_us(wanted)
        quota: int | None = files.cfs_quota_us
        return None if quota is None else quota / int(files.cfs_period_us)

    def cpu_shares(self, wanted: int | None) -> int | None:
        """As a cgroup2 weight, so that a zone weighs the same on either kind of host (1024 here is 100 there)."""
        files = open_controller("cpu", self._folder)
        files.shares = round((100 if wanted is None else clamp(wanted)) * 10.24)
        return round(int(files.shares) / 10.24)

    def pids(self, wanted: int | None) -> int | None:
        files = open_controller("pids", self._folder)
        files.max = wanted
        value: int | None = files.max
        return value

    def cpu_ids(self, wanted: frozenset[int] | None) -> frozenset[int] | None:
        files = open_controller("cpuset", self._folder)
        files.cpus = wanted or open_controller("cpuset", self._folder.parent).cpus
        return frozenset(files.cpus) if wanted else None

    def io_weight(self, wanted: int | None) -> int | None:
        """Only BFQ shares a disk by weight here; its weights end at 1000."""
        files = open_controller("blkio", self._folder)
        files.bfq_weight = 100 if wanted is None else min(clamp(wanted), BFQ_MAXIMUM)
        value: int = files.bfq_weight
        return value

    def io_throttles(self, wanted: frozenset[Throttle]) -> frozenset[Throttle]:
        files = open_controller("blkio", self._folder)
        for name in THROTTLES:
            lifted = dict.fromkeys(getattr(files, name))
            for device, limit in {**lifted, **{one.device: getattr(one, name) for one in wanted}}.items():
                setattr(files, name, (device, limit))
        held = {name: getattr(files, name) for name in THROTTLES}
        devices = {device for limits in held.values() for device in limits}
        return frozenset(
            Throttle(device, *(held[name].get(device) for name in THROTTLES)) for device in devices
        )

    def huge_pages(self, wanted: frozenset[HugePages]) -> frozenset[HugePages]:
        return set_huge_pages(open_controller("hugetlb", self._folder), "hugetlb.{}.limit_in_bytes", wanted)

    def oom_group(self, wanted: bool) -> bool:
        if wanted:
            raise NoController("the memory controller of cgroup v1 ends single processes only")
        return False


def _limit(value: int | None) -> int | None:
    return None if value is None or value > _NO_LIMIT else value


def _memsw(files: Any) -> int | None:
    try:
        return _limit(files.memsw_limit_in_bytes)
    except FileNotFoundError:
        return None


def _above(wanted: int | None, present: int | None) -> bool:
    return present is not None and (wanted is None or wanted > present)
