"""A zone in which nothing happens costs no time: who looks after it sleeps until somebody wants something."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.kit import victims
from tests.kit.instance import Instance
from tests.kit.waiting import until
from zonemgr.linux import process

pytestmark = pytest.mark.requires("root", "userns", "mount", "net", "cgroup")

IDLE_S = 2.0  # a timer that ticks less often than that would be none that anybody sees


def turns(pid: int) -> int:
    """How often the process has been given a processor: it cannot wake up, or end a system call, without that."""
    return sum(map(int, re.findall(r"ctxt_switches:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())))


def sleeps(pids: list[int]) -> bool:
    """All of them slept through: none woke up, and none had anything left to do when we began to look."""
    before = [turns(pid) for pid in pids]
    handle_fd = os.pidfd_open(pids[0])
    try:
        assert not process.wait_pidfd(handle_fd, IDLE_S), "a process that should sleep has ended"
    finally:
        os.close(handle_fd)
    return [turns(pid) for pid in pids] == before


@pytest.mark.parametrize("state", ["ready", "boot"])
def test_supervisor_and_zsched_of_a_zone_in_which_nothing_happens_never_wake_up(
    instance: Instance, state: str
) -> None:
    instance.configured()
    instance.run("install", "web")
    instance.run(state, "web")
    pids = [victims.supervisor(instance), victims.zsched(instance)]
    until(lambda: sleeps(pids), f"supervisor and zsched asleep for {IDLE_S:g} s")
