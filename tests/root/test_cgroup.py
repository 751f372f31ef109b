"""Control groups on the real kernel: membership, killing, limits, removal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.kit.controllers import handing_down
from tests.kit.processes import Started
from tests.kit.waiting import until
from zonemgr.errors import PlatformError
from zonemgr.linux.cgroup import Limits, ZoneCgroup, detect

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

HIERARCHY = detect()
BASE = f"zonemgr-test{os.getpid():x}"
ROOTS = (*HIERARCHY.v1_mounts, *([HIERARCHY.cg2] if HIERARCHY.cg2 else []))
NO_LIMITS = Limits()


@pytest.fixture
def zone() -> Iterator[ZoneCgroup]:
    zone = ZoneCgroup(HIERARCHY, BASE, "web")
    zone.create()
    yield zone
    for part in ("manager", "work", "payload"):
        zone.kill(part)
        assert zone.wait_empty(part, 10)
    zone.remove()
    assert not [root for root in ROOTS if (root / BASE).exists()]


def _in(zone: ZoneCgroup, part: str, *command: str) -> Started:
    """A child that was put into all of the zone's groups before it runs the command."""
    parked = ("sh", "-c", 'read go; exec "$@" </dev/null', "sh", *command)
    child = Started(parked, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    zone.join(part, child.pid)
    zone.join_v1(child.pid)
    assert child.stdin is not None
    child.stdin.write(b"\n")
    child.stdin.close()
    return child


def _python(zone: ZoneCgroup, code: str) -> Started:
    return _in(zone, "payload", sys.executable, "-Ic", code)


def test_create_is_idempotent_and_the_fds_are_of_the_leaves(zone: ZoneCgroup) -> None:
    zone.create()
    for part, fd in (
        ("payload", zone.payload_fd()),
        ("manager", zone.manager_fd()),
        ("work", zone.work_fd()),
    ):
        assert os.path.samestat(os.fstat(fd), os.stat(zone.part_path(part)))
        assert not os.get_inheritable(fd)
        os.close(fd)


def test_a_member_is_listed_killed_and_waited_for(zone: ZoneCgroup) -> None:
    assert not zone.populated("payload")
    with _in(zone, "payload", "sleep", "1000") as child:
        assert zone.populated("payload") and not zone.populated("manager")
        assert zone.pids("payload") == [child.pid]
        assert not zone.wait_empty("payload", 0.01)
        for path in zone.v1_paths():
            assert str(child.pid) in (path / "tasks").read_text().split()
        zone.kill("payload")
        assert zone.wait_empty("payload", 10)
        assert child.wait() == -signal.SIGKILL
    assert zone.pids("payload") == []


def test_a_process_leaves_the_v1_groups_of_its_session(zone: ZoneCgroup) -> None:
    with _in(zone, "payload", "sleep", "1000") as child:
        HIERARCHY.leave_v1(child.pid)
        lines = Path(f"/proc/{child.pid}/cgroup").read_text().splitlines()
        assert {line.split(":", 2)[2] for line in lines if not line.startswith("0:")} <= {"/"}
        zone.kill("payload")


def test_what_is_stuck_is_described_by_pid_name_and_place(zone: ZoneCgroup) -> None:
    with _in(zone, "payload", "sleep", "1000") as child:
        until(lambda: any("sleep" in line for line in zone.stuck("payload")), "the command")
        (line,) = zone.stuck("payload")
        assert line.startswith(f"{child.pid} (sleep)")
        zone.kill("payload")


def test_a_dead_process_cannot_join(zone: ZoneCgroup) -> None:
    with Started(["true"]) as child:
        child.wait()
        with pytest.raises(PlatformError, match=f"cannot move process {child.pid} into .*No such process"):
            zone.join("payload", child.pid)
        if HIERARCHY.controllers:
            with pytest.raises(PlatformError, match="No such process"):
                zone.join_v1(child.pid)


def test_a_frozen_group_stands_still_thaws_and_can_be_killed_frozen(zone: ZoneCgroup) -> None:
    with _in(zone, "payload", "sleep", "1000") as child:
        assert zone.freeze() and zone.thaw() and zone.freeze()
        zone.kill("payload")
        assert zone.wait_empty("payload", 10)
        assert child.wait() == -signal.SIGKILL


def test_remove_takes_what_the_guest_made_however_deep_and_is_idempotent(zone: ZoneCgroup) -> None:
    payload_fd = zone.payload_fd()
    for _ in range(20):  # 20 names of 250 letters: longer than any path may be
        os.mkdir("n" * 250, dir_fd=payload_fd)
        below_fd = os.open("n" * 250, os.O_RDONLY | os.O_DIRECTORY, dir_fd=payload_fd)
        os.close(payload_fd)
        payload_fd = below_fd
    os.close(payload_fd)
    assert zone.pids("payload") == []
    zone.remove()
    assert not zone.path.exists()
    zone.remove()
    assert zone.pids("payload") == [] and not zone.populated("payload") and zone.wait_empty("payload", 0)
    zone.kill("payload")


def test_remove_of_a_busy_group_names_who_is_in_it(zone: ZoneCgroup) -> None:
    with _in(zone, "payload", "sleep", "1000") as child:
        with pytest.raises(PlatformError, match=rf"cannot remove the control group .*busy; {child.pid} \("):
            zone.remove(deadline_s=0.05)
        zone.kill("payload")


def test_remove_waits_for_the_last_process(zone: ZoneCgroup) -> None:
    with _in(zone, "payload", "sleep", "0.2"):
        zone.remove(deadline_s=10)
    assert not zone.path.exists()


def test_the_shared_base_stays_while_another_zone_is_in_it(zone: ZoneCgroup) -> None:
    other = ZoneCgroup(HIERARCHY, BASE, "db")
    other.create()
    other.remove()
    assert zone.path.is_dir()


def test_zones_come_and_go_in_the_shared_base_at_the_same_time() -> None:
    def live(name: str) -> None:
        zone = ZoneCgroup(HIERARCHY, f"{BASE}-many", name)
        for _ in range(15):
            zone.create()
            zone.remove()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(live, "abcd"))
    assert not [root for root in ROOTS if (root / f"{BASE}-many").exists()]


def test_delegation_hands_over_membership_and_no_limit(zone: ZoneCgroup) -> None:
    zone.delegate(655360)
    payload = zone.part_path("payload")
    owned = {file.name for file in payload.iterdir() if file.stat().st_uid == 655360}
    assert {"cgroup.procs", "cgroup.threads", "cgroup.subtree_control"} <= owned
    assert not owned & {
        "memory.max",
        "pids.max",
        "cpu.max",
        "cgroup.kill",
        "cgroup.freeze",
        "cgroup.max.depth",
    }
    assert payload.stat().st_uid == 655360 and zone.path.stat().st_uid == 0


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../x", "nul\0"])
def test_names_that_leave_the_base_are_refused(name: str) -> None:
    with pytest.raises(PlatformError, match="cannot be the name of a control group"):
        ZoneCgroup(HIERARCHY, BASE, name)


def test_a_zone_named_as_a_kernel_file_is_refused_in_words() -> None:
    zone = ZoneCgroup(HIERARCHY, BASE, "cgroup.procs")
    with pytest.raises(PlatformError, match=r"'cgroup\.procs' cannot be the name of a control group"):
        zone.create()
    (zone.path.parent).rmdir()


def test_all_limits_are_written_and_read_back(zone: ZoneCgroup) -> None:
    wanted = Limits(
        memory_bytes=(64 << 20) + 1,
        swap_bytes=128 << 20,
        cpus=1.5,
        cpu_shares=300,
        pids=77,
        cpu_ids=frozenset({0}),
    )
    applied = {done.name: done for done in zone.apply(wanted)}
    assert applied["capped-memory physical"].effective == 64 << 20
    assert applied["capped-memory swap"].effective == 128 << 20
    assert applied["capped-cpu ncpus"].effective == 1.5
    assert applied["cpu-shares"].effective == 300
    assert applied["max-lwps"].effective == 77
    assert applied["dedicated-cpu"].effective == frozenset({0})
    assert not [done.problem for done in applied.values() if done.problem]


def test_no_limits_writes_nothing_and_clear_lifts_all(zone: ZoneCgroup) -> None:
    assert zone.apply(NO_LIMITS) == []
    zone.apply(Limits(memory_bytes=64 << 20, swap_bytes=64 << 20, cpus=0.5, cpu_shares=1, pids=5))
    lifted = {done.name: done.effective for done in zone.apply(NO_LIMITS, clear=True)}
    assert lifted["cpu-shares"] == 100
    weights = ("cpu-shares", "zfs-io-priority")
    assert {value for name, value in lifted.items() if name not in weights} == {None}


def test_memory_and_swap_go_up_and_down_in_any_order(zone: ZoneCgroup) -> None:
    for memory, swap in ((64, 128), (256, 512), (32, 40), (None, 100), (300, None), (10, 10)):
        wanted = Limits(memory_bytes=memory and memory << 20, swap_bytes=swap and swap << 20)
        assert not [done for done in zone.apply(wanted, clear=True) if done.problem]


def test_shares_are_clamped_and_the_effective_value_is_told(zone: ZoneCgroup) -> None:
    (done,) = zone.apply(Limits(cpu_shares=65535))
    assert (done.wanted, done.effective) == (65535, 10000)


def test_the_process_limit_holds(zone: ZoneCgroup) -> None:
    zone.apply(Limits(pids=3))
    code = """
import os
made = 0
try:
    while made < 10:
        if not os.fork():
            __import__('signal').pause()
        made += 1
except BlockingIOError:
    print(made, flush=True)
"""
    with _python(zone, code) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"2\n"
        assert zone.usage().pids == 3
        zone.kill("payload")


def test_the_memory_limit_kills_and_is_counted(zone: ZoneCgroup) -> None:
    zone.apply(Limits(memory_bytes=32 << 20, swap_bytes=32 << 20))
    with _python(zone, "bytearray(b'x') * (100 << 20)") as child:
        assert child.wait(timeout=60) == -signal.SIGKILL
    assert zone.usage().oom_kills == 1


def test_a_limit_without_its_controller_is_refused_by_name_unless_best_effort(zone: ZoneCgroup) -> None:
    from zonemgr.linux.cgroup import Hierarchy

    controllers = {name: path for name, path in HIERARCHY.controllers.items() if name != "cpu"}
    bare = ZoneCgroup(Hierarchy(HIERARCHY.kind, HIERARCHY.cg2, controllers), BASE, "web")
    if bare.enable("cpu"):
        pytest.skip("this host's cgroup2 has the cpu controller")
    with pytest.raises(PlatformError, match=r"limit capped-cpu ncpus=1\.5: this host has no cpu controller"):
        bare.apply(Limits(cpus=1.5))
    (done,) = bare.apply(Limits(cpus=1.5), best_effort=True)
    assert done.effective is None and "no cpu controller" in done.problem


def test_a_value_that_the_kernel_refuses_names_limit_and_file(zone: ZoneCgroup) -> None:
    with pytest.raises(PlatformError, match=r"limit dedicated-cpu=9999: .*cpuset\.cpus: "):
        zone.apply(Limits(cpu_ids=frozenset({9999})))


def test_statistics_count_processor_time_and_processes(zone: ZoneCgroup) -> None:
    with _python(zone, "sum(range(10**6)); print(flush=True); import signal; signal.pause()") as child:
        assert child.stdout is not None
        child.stdout.readline()
        counted = zone.usage()
        assert counted.pids == 1
        assert counted.cpu_us is not None and counted.cpu_us > 0
        assert counted.memory_bytes is not None and counted.memory_bytes > 0
        zone.kill("payload")


def test_a_cgroup2_controller_is_handed_down_to_the_leaves(zone: ZoneCgroup) -> None:
    """With one that no other hierarchy has taken; the root's own setting is put back."""
    with handing_down() as root:
        free = (root / "cgroup.controllers").read_text().split()
        if not free:
            pytest.skip("this host's cgroup2 has no controller")
        try:
            assert zone.enable(free[0])
            assert free[0] in (zone.part_path("payload") / "cgroup.controllers").read_text().split()
        finally:
            for folder in (zone.path, zone.path.parent):
                (folder / "cgroup.subtree_control").write_text(f"-{free[0]}")


def test_an_unused_package_loads_no_cgroupspy() -> None:
    code = (
        "import sys, zonemgr.linux.cgroup; print(any(name.startswith('cgroupspy') for name in sys.modules))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], cwd=Path(__file__).parents[2]) == b"False\n"
