"""What /proc tells of other processes and of the host, for everybody who only looks (``list`` needs no more
than this).

Deliberately not here: anything that acts, and anything that needs ctypes, which costs more than all of this.
"""

from __future__ import annotations

import functools


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


def _stat_fields(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat after the command (which may hold blanks and parentheses): state is the
    first.
    """
    try:
        return _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def start_time(pid: int) -> int | None:
    """When the process began, in clock ticks since the host booted; None when there is none.

    Together with the pid it names one process for the whole boot of the host.
    """
    fields = _stat_fields(pid)
    return int(fields[19]) if fields else None


def is_alive(pid: int, start_time: int | None) -> bool:
    """Whether that very process is there and has not ended (a zombie has)."""
    fields = _stat_fields(pid)
    if not fields or fields[0] in "ZX":
        return False
    return start_time is None or int(fields[19]) == start_time


def command_name(pid: int) -> str | None:
    """The name of the process (``/proc/PID/comm``); None when there is none."""
    try:
        return _read(f"/proc/{pid}/comm").rstrip("\n")
    except (FileNotFoundError, ProcessLookupError):
        return None


def describe_stuck(pid: int) -> str:
    """One process for an operator who wonders why it does not end: "1234 (dd) in wait_on_page"."""
    name = command_name(pid)
    if name is None:
        return f"{pid} (gone)"
    try:
        where = _read(f"/proc/{pid}/wchan").strip("\0 \n")
    except OSError:
        where = ""
    return f"{pid} ({name})" + (f" in {where}" if where not in ("", "0") else "")


def pid_of(pidfd: int) -> int:
    """The pid behind a pidfd, as we see it.  ProcessLookupError when it has ended and been waited for."""
    for line in _read(f"/proc/self/fdinfo/{pidfd}").splitlines():
        key, _, value = line.partition(":")
        if key == "Pid" and int(value) > 0:
            return int(value)
    raise ProcessLookupError(3, "No such process")


@functools.cache
def boot_id() -> str:
    """What names this boot of the host: files that carry another one are of the past."""
    return _read("/proc/sys/kernel/random/boot_id").strip()
