"""The processes that a test kills: a zone's supervisor, zsched and init.  Each is gone when the call returns."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from pathlib import Path

from tests.kit import door
from tests.kit.instance import Instance
from tests.kit.waiting import DEADLINE_S
from zonemgr.linux.procfs import start_time
from zonemgr.store import instance as instances


def record(instance: Instance, zonename: str = "web") -> instances.Instance:
    """The record of the living zone."""
    found = instances.read(instance.layout, zonename)
    assert found is not None, f"zone {zonename} has no record"
    return found


def supervisor(instance: Instance, zonename: str = "web") -> int:
    """The pid of the zone's supervisor, which is started when there is none."""
    return int(door.state(instance, zonename)["supervisor_pid"])


def zsched(instance: Instance, zonename: str = "web") -> int:
    found = record(instance, zonename).zsched
    assert found is not None and found.alive
    return found.pid


def init(instance: Instance, zonename: str = "web") -> int:
    found = record(instance, zonename).init
    assert found is not None and found.alive
    return found.pid


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    """Send the signal and see the process end, unless it has ended by itself meanwhile."""
    try:
        pid_fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pid_fd, number)
        ready, _, _ = select.select([pid_fd], [], [], DEADLINE_S)
        assert ready, f"process {pid} survives signal {number}"
    finally:
        os.close(pid_fd)


def residents(instance: Instance, zonename: str = "web") -> frozenset[tuple[int, int | None]]:
    """The zone's processes: pid and start time; without the forks of its init, which end once they have spoken."""
    found = record(instance, zonename)
    init = found.init.pid if found.init else 0
    passing = {b"", _words(init)}
    pids = (pid for pid in members(Path(found.cgroup)) if pid == init or _words(pid) not in passing)
    return frozenset((pid, start_time(pid)) for pid in pids)


def _words(pid: int) -> bytes:
    """Empty for one that has gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def members(cgroup: Path) -> set[int]:
    """The processes in a control group and those below it, which come and go meanwhile."""
    found: set[int] = set()
    for folder, _, _ in os.walk(cgroup):
        with contextlib.suppress(OSError):
            found |= {int(pid) for pid in Path(folder, "cgroup.procs").read_text().split()}
    return found


def has_supervisor(instance: Instance, zonename: str = "web") -> bool:
    """Whether one lives, without starting one."""
    from zonemgr.store.locks import FileLock

    path = instance.layout.zone_run(zonename) / "lock"
    if not path.exists():
        return False
    lock = FileLock(path)
    free = lock.acquire(blocking=False)
    if free:
        lock.forget()
    return not free
