"""What the kernel lets one user, or everybody together, have: read before a zone boots, and named when too little.

A zone's namespaces belong to its own first user id, so what the kernel counts a user (inotify instances, keys,
namespaces) it counts for each zone by itself; processes are counted for the whole host.  Deliberately not here: the
limits of a zone's configuration.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from zonemgr.errors import message

MOST_PROCESSES: Final = 16384
FEWEST_PROCESSES: Final = 512
SHARE_OF_PROCESSES: Final = 0.15


@dataclass(frozen=True, slots=True)
class Budget:
    """One setting: the least that a zone with an init of its own gets along with, and what there is of it."""

    sysctl: str
    least: int
    what: str
    found: int

    @property
    def enough(self) -> bool:
        return self.found >= self.least

    @property
    def cure(self) -> str:
        return f"sysctl -w {self.sysctl}={self.least}"

    def __str__(self) -> str:
        return message(
            "{sysctl} is {found}: a zone may need {least} {what} ({cure})",
            sysctl=self.sysctl,
            found=self.found,
            least=self.least,
            what=self.what,
            cure=self.cure,
        )


_TABLE: Final = (
    ("fs.inotify.max_user_instances", 64, "inotify instances"),
    ("fs.inotify.max_user_watches", 8192, "inotify watches"),
    ("kernel.keys.maxkeys", 100, "keys"),
    ("kernel.keys.maxbytes", 10000, "bytes of keys"),
    ("user.max_user_namespaces", 8, "user namespaces"),
    ("user.max_mnt_namespaces", 32, "mount namespaces"),
    ("user.max_pid_namespaces", 8, "process id namespaces"),
    ("user.max_net_namespaces", 16, "network namespaces"),
    ("user.max_ipc_namespaces", 16, "ipc namespaces"),
    ("user.max_uts_namespaces", 16, "uts namespaces"),
    ("user.max_cgroup_namespaces", 8, "cgroup namespaces"),
)


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            return file.read()
    except OSError:
        return ""


def _setting(name: str) -> int | None:
    text = _read("/proc/sys/" + name.replace(".", "/")).strip()
    return int(text) if text.isdecimal() else None


def users() -> Iterator[Budget]:
    """What each user may have.  A setting that this kernel lacks is no limit."""
    for name, least, what in _TABLE:
        found = _setting(name)
        if found is not None:
            yield Budget(name, least, what, found)


def processes(wanted: int = 0) -> Iterator[Budget]:
    """What the whole host may have, given the processes that there are and as many more as a zone may make."""
    words = _read("/proc/loadavg").split()
    running = int(words[3].partition("/")[2]) if len(words) > 3 else 0
    for name in ("kernel.pid_max", "kernel.threads-max"):
        found = _setting(name)
        if found is not None:
            yield Budget(name, running + wanted, "processes and threads with those of the host", found)


def default_processes() -> int:
    """How many threads a zone gets that says nothing: part of what the host can have, so that a fork bomb in it, or in
    a few zones at once, leaves the host its own.
    """
    most = [found for name in ("kernel.pid_max", "kernel.threads-max") if (found := _setting(name))]
    return max(FEWEST_PROCESSES, min(MOST_PROCESSES, int(min(most, default=32768) * SHARE_OF_PROCESSES)))
