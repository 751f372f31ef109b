"""Finding the hierarchies in mountinfo text, and the spelling of limits in cgroup2 files.

The spelling is tried on a folder of plain files, for hosts whose controllers are all on v1; what a kernel makes of
it is tested in tests/root.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from zonemgr.errors import PlatformError
from zonemgr.linux.cgroup import Hierarchy, Kind, Limits, Throttle, ZoneCgroup
from zonemgr.linux.cgroup.hierarchy import parse

UNIFIED = (
    "29 23 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
)
HYBRID = """\
31 23 0:26 / /sys/fs/cgroup ro,nosuid,nodev,noexec shared:9 - tmpfs tmpfs ro,mode=755
32 31 0:27 / /sys/fs/cgroup/unified rw,nosuid shared:10 - cgroup2 cgroup2 rw,nsdelegate
33 31 0:28 / /sys/fs/cgroup/systemd rw,nosuid shared:11 - cgroup cgroup rw,xattr,name=systemd
36 31 0:32 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:15 - cgroup cgroup rw,cpu,cpuacct
37 31 0:33 / /sys/fs/cgroup/memory rw,nosuid shared:16 - cgroup cgroup rw,memory
90 31 0:33 /web /srv/mirror\\040of/memory rw - cgroup cgroup rw,memory
"""


def test_a_pure_v2_host() -> None:
    assert parse(UNIFIED) == Hierarchy(Kind.UNIFIED, Path("/sys/fs/cgroup"), {})


def test_a_hybrid_host_with_two_controllers_on_one_mount() -> None:
    hierarchy = parse(HYBRID)
    assert (hierarchy.kind, hierarchy.cg2) == (Kind.HYBRID, Path("/sys/fs/cgroup/unified"))
    assert (
        hierarchy.controllers["cpu"] == hierarchy.controllers["cpuacct"] == Path("/sys/fs/cgroup/cpu,cpuacct")
    )
    assert hierarchy.controllers["memory"] == Path("/sys/fs/cgroup/memory")
    assert [path.name for path in hierarchy.v1_mounts] == ["systemd", "cpu,cpuacct", "memory"]


def test_a_legacy_host_is_told_how_to_get_cgroup2() -> None:
    hierarchy = parse("".join(line for line in HYBRID.splitlines(keepends=True) if "cgroup2" not in line))
    assert (hierarchy.kind, hierarchy.cg2) == (Kind.LEGACY, None)
    with pytest.raises(PlatformError, match="no cgroup2 file system is mounted.*mount -t cgroup2"):
        ZoneCgroup(hierarchy, "zonemgr", "web").create()


def test_the_usual_place_wins_over_a_second_mount() -> None:
    second = "99 23 0:26 / /mnt/a\\040b rw - cgroup2 cgroup2 rw\n"
    assert parse(second + UNIFIED).cg2 == Path("/sys/fs/cgroup")
    assert parse(second).cg2 == Path("/mnt/a b")


def _tree(root: Path, *, controllers: str, files: dict[str, str]) -> ZoneCgroup:
    """Folders as create() leaves them, with all controllers handed down already."""
    zone = ZoneCgroup(Hierarchy(Kind.UNIFIED, root, {}), "zonemgr", "web")
    payload = zone.part_path("payload")
    payload.mkdir(parents=True)
    for folder in (root, zone.path.parent, zone.path):
        (folder / "cgroup.controllers").write_text(f"{controllers}\n")
        (folder / "cgroup.subtree_control").write_text(f"{controllers}\n")
    for filename, text in files.items():
        (payload / filename).write_text(text)
    return zone


ALL_FILES = {
    "memory.max": "max\n",
    "memory.swap.max": "max\n",
    "cpu.max": "max 100000\n",
    "cpu.weight": "100\n",
    "pids.max": "max\n",
    "cpuset.cpus": "\n",
    "io.max": "\n",
    "io.weight": "default 100\n",
    "hugetlb.2MB.max": "max\n",
    "hugetlb.1GB.max": "max\n",
    "memory.oom.group": "0\n",
}
CONTROLLERS = "cpuset cpu io memory pids hugetlb"


def test_every_limit_in_the_spelling_of_cgroup2(tmp_path: Path) -> None:
    zone = _tree(tmp_path, controllers=CONTROLLERS, files=ALL_FILES)
    throttle = Throttle("8:0", write_bps=1 << 20, read_iops=7)
    pages = frozenset({(2 << 20, 8 << 20)})
    limits = Limits(
        512 << 20, 1 << 30, 1.5, 20, 100, frozenset({0, 2, 3}), 300, frozenset({throttle}), pages, oom_group=True
    )
    assert not [done for done in zone.apply(limits) if done.problem]
    written = {name: (zone.part_path("payload") / name).read_text().strip() for name in ALL_FILES}
    assert written == {
        "memory.max": str(512 << 20),
        "memory.swap.max": str(512 << 20),
        "cpu.max": "150000 100000",
        "cpu.weight": "20",
        "pids.max": "100",
        "cpuset.cpus": "0,2-3",
        "io.max": "8:0 rbps=max wbps=1048576 riops=7 wiops=max",
        "io.weight": "300",
        "hugetlb.2MB.max": str(8 << 20),
        "hugetlb.1GB.max": "max",
        "memory.oom.group": "1",
    }


@pytest.mark.parametrize(
    ("limits", "memory", "swap"),
    [
        (Limits(memory_bytes=100 << 20, swap_bytes=100 << 20), 100 << 20, "0"),
        (Limits(memory_bytes=100 << 20, swap_bytes=50 << 20), 50 << 20, "0"),
        (Limits(swap_bytes=100 << 20), 100 << 20, "0"),
        (Limits(memory_bytes=100 << 20), 100 << 20, "max"),
        # The kernel rounds memory down to a page, and what it cuts off is the swap's.
        (Limits(memory_bytes=(100 << 20) + 1, swap_bytes=200 << 20), (100 << 20) + 1, str(100 << 20)),
    ],
)
def test_solaris_swap_is_memory_and_swap_together(
    tmp_path: Path, limits: Limits, memory: int, swap: str
) -> None:
    zone = _tree(tmp_path, controllers="memory", files=ALL_FILES)
    zone.apply(limits)
    payload = zone.part_path("payload")
    assert (payload / "memory.max").read_text().strip() == str(memory)
    assert (payload / "memory.swap.max").read_text().strip() == swap


def test_a_clear_writes_what_a_new_folder_has(tmp_path: Path) -> None:
    zone = _tree(tmp_path, controllers=CONTROLLERS, files=ALL_FILES)
    throttles = frozenset({Throttle("8:0", 5)})
    pages = frozenset({(1 << 30, 1 << 30)})
    zone.apply(Limits(1 << 20, 1 << 20, 1.0, 5, 5, frozenset({1}), 5, throttles, pages, True))
    zone.apply(Limits(), clear=True)
    for filename, text in ALL_FILES.items():
        words = (text.strip(), "max", "100", "8:0 rbps=max wbps=max riops=max wiops=max")
        assert (zone.part_path("payload") / filename).read_text().strip() in words


def test_a_host_without_the_weight_of_disks_uses_bfqs_own(tmp_path: Path) -> None:
    zone = _tree(tmp_path, controllers="io", files={"io.bfq.weight": "default 100\n"})
    (done,) = zone.apply(Limits(io_weight=5000))
    assert done.effective == 1000


def test_a_default_that_the_host_lacks_is_no_obstacle(tmp_path: Path) -> None:
    zone = _tree(tmp_path, controllers="cpu", files={})
    (done,) = zone.apply(Limits(pids=5), optional=frozenset({"max-lwps"}))
    assert done.effective is None and "no pids controller" in done.problem


def test_a_missing_controller_and_a_missing_file_are_told_apart_by_name(tmp_path: Path) -> None:
    zone = _tree(tmp_path, controllers="cpu pids", files={"cpu.weight": "100\n"})
    with pytest.raises(
        PlatformError, match="capped-memory physical=1048576: this host has no memory controller"
    ):
        zone.apply(Limits(memory_bytes=1 << 20))
    with pytest.raises(PlatformError, match=r"max-lwps=5: .*pids\.max: No such file or directory"):
        zone.apply(Limits(pids=5))
    problems = [bool(done.problem) for done in zone.apply(Limits(cpu_shares=7, pids=5), best_effort=True)]
    assert problems == [False, True]
