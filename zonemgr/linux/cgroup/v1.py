"""The folders of v1 hierarchies, driven through cgroupspy's node and controllers; pids and freezer are added here.

Deliberately not here: cgroupspy's Tree and its membership writes (one node is opened by its path, and a process
joins through ``tasks``, see hierarchy.py).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from cgroupspy.controllers import (  # type: ignore[import-untyped]
    Controller,
    CpuAcctController,
    CpuController,
    CpuSetController,
    MemoryController,
)
from cgroupspy.interfaces import BaseFileInterface, IntegerFile  # type: ignore[import-untyped]
from cgroupspy.nodes import Node  # type: ignore[import-untyped]

from zonemgr.linux.cgroup.limits import PERIOD_US, clamp
from zonemgr.linux.cgroup.v2 import ExactWrites, MaxFile, quota_us, readings

# "No limit" reads back as the largest number of pages; nothing that anybody asks for comes near.
_NO_LIMIT = 1 << 60


class StateFile(BaseFileInterface):  # type: ignore[misc]
    """One word of text."""


class Memory(ExactWrites, MemoryController):  # type: ignore[misc]
    """memory.*"""


class Cpu(ExactWrites, CpuController):  # type: ignore[misc]
    """cpu.*"""


class CpuSet(ExactWrites, CpuSetController):  # type: ignore[misc]
    """cpuset.*"""


class CpuAcct(ExactWrites, CpuAcctController):  # type: ignore[misc]
    """cpuacct.*"""


class Pids(ExactWrites, Controller):  # type: ignore[misc]
    """pids.*, which cgroupspy does not know."""

    max = MaxFile("pids.max")
    current = IntegerFile("pids.current", readonly=True)


class Freezer(ExactWrites, Controller):  # type: ignore[misc]
    """freezer.*, which cgroupspy does not know."""

    state = StateFile("freezer.state")


class ZoneNode(Node):  # type: ignore[misc]
    """One folder by its path.  cgroupspy would guess the controller from where a node hangs in its tree."""

    CONTROLLERS: ClassVar[dict[bytes, type]] = {
        b"memory": Memory,
        b"cpu": Cpu,
        b"cpuset": CpuSet,
        b"cpuacct": CpuAcct,
        b"pids": Pids,
        b"freezer": Freezer,
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


def _limit(value: int | None) -> int | None:
    return None if value is None or value > _NO_LIMIT else value


def _memsw(files: Any) -> int | None:
    try:
        return _limit(files.memsw_limit_in_bytes)
    except FileNotFoundError:
        return None


def _above(wanted: int | None, present: int | None) -> bool:
    return present is not None and (wanted is None or wanted > present)


def _memory_statistics(folder: Path) -> dict[str, int]:
    files = open_controller("memory", folder)
    return readings(
        {
            "memory_bytes": lambda: files.usage_in_bytes,
            "memory_peak_bytes": lambda: files.max_usage_in_bytes,
            "swap_bytes": lambda: max(0, files.memsw_usage_in_bytes - files.usage_in_bytes),
            "oom_kills": lambda: files.oom_control["oom_kill"],
        }
    )


def _pids_statistics(folder: Path) -> dict[str, int]:
    files = open_controller("pids", folder)
    return readings({"pids": lambda: files.current})


# Processor time is counted on cgroup2 whichever controllers it has.
STATISTICS: dict[str, Callable[[Path], dict[str, int]]] = {
    "memory": _memory_statistics,
    "pids": _pids_statistics,
}
