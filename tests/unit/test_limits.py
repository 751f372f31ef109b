"""What limits are as configuration and data, and what is made of the numbers that the kernel counts."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from zonemgr.cli import stat, statview, zonestat
from zonemgr.cli.sampling import CPU, LWPS, MEMORY, RECEIVED, Peaks, Sample, sample
from zonemgr.errors import ConfigError, PlatformError, UsageError
from zonemgr.linux import budgets
from zonemgr.linux.cgroup import Hierarchy, Kind, Usage, cpus
from zonemgr.linux.cgroup import usage as usages
from zonemgr.model import plan, rlimits
from zonemgr.model.zone import Zone
from zonemgr.platform import resources
from zonemgr.platform.limits import disk_of
from zonemgr.store import cpus as registry
from zonemgr.store import settings
from zonemgr.store.instance import Instance, Mode, Phase
from zonemgr.store.paths import Layout
from zonemgr.store.usage import Look, ZoneUsage


def zone(**table: object) -> Zone:
    return Zone.from_table({"zonename": "web", "zonepath": "/z/web", **table}, filename="web.toml")


def ops(configured: Zone, tmp_path: Path) -> dict[str, plan.Op]:
    chosen = settings.load(Layout.at(tmp_path))
    return {op.kind: op for op in resources.limits(configured, chosen, 524288)}


# -- configuration --------------------------------------------------------------------------------------------------


def test_of_several_values_of_a_control_the_lowest_that_denies_counts(tmp_path: Path) -> None:
    values = [
        "(priv=basic,limit=900,action=none)",
        *(f"(priv=privileged,limit={n},action=deny)" for n in (700, 800)),
    ]
    named = zone(rctl=[
        {"name": "zone.max-lwps", "value": values},
        {"name": "zone.cpu-cap", "value": [values[0], "(priv=privileged,limit=150,action=deny)"]},
        {"name": "zone.max-swap", "value": [f"(priv=privileged,limit={n << 20},action=deny)" for n in (64, 65)]},
    ])  # fmt: skip
    found = ops(named, tmp_path)["limits"]
    assert isinstance(found, plan.SetLimits)
    assert (found.pids, found.cpus, found.swap_bytes, found.optional) == (700, 1.5, 64 << 20, ())
    assert named.without_effect() == []
    watching = zone(rctl=[{"name": "zone.max-lwps", "value": ["(priv=privileged,limit=700,action=none)"]}])
    assert watching.without_effect() == ["rctl zone.max-lwps"]


def test_a_zone_that_says_nothing_gets_a_default_that_the_host_may_lack(tmp_path: Path) -> None:
    found = ops(zone(), tmp_path)["limits"]
    assert isinstance(found, plan.SetLimits)
    assert (found.pids, found.optional) == (budgets.default_processes(), ("max-lwps",))
    assert plan.from_json(found.to_json()) == found


def test_rlimits_are_all_set_and_one_side_stands_for_the_other(tmp_path: Path) -> None:
    configured = zone(
        rlimit=[{"name": "nofile", "soft": 4096}, {"name": "stack", "hard": "16777216"}],
        **{"capped-memory": {"locked": "1M"}},
    )
    found = ops(configured, tmp_path)["rlimits"]
    assert isinstance(found, plan.SetProcessLimits)
    numbers = rlimits.to_numbers(found.limits)
    assert set(numbers) == set(rlimits.RLIMITS)
    assert (numbers["nofile"], numbers["memlock"]) == ((4096, 524288), (1 << 20, 1 << 20))
    assert numbers["stack"] == (8 << 20, 16 << 20)
    assert found.asked == ("memlock", "nofile", "stack")


@pytest.mark.parametrize(
    ("table", "text"),
    [
        ({"rlimit": [{"name": "nofile", "soft": 5, "hard": 4}]}, "rlimit: nofile: soft is more than hard"),
        ({"rlimit": [{"name": "nofile", "soft": "unlimited", "hard": 4}]}, "soft is more than hard"),
        ({"rlimit": [{"name": "nofile"}]}, "rlimit: nofile: soft, hard or both must be given"),
        ({"rlimit": [{"name": "files", "soft": 4}]}, "rlimit: name must be as or core"),
        ({"rlimit": [{"name": "nofile", "soft": "many"}]}, "must be a number or unlimited, not 'many'"),
        ({"capped-io": [{"device": "/dev/sda"}]}, "capped-io: one of its limits must be given"),
        ({"capped-io": [{"device": "sda", "read-bps": 1}]}, "sda is not an absolute path"),
        ({"capped-hugetlb": [{"pagesize": "2M"}]}, "capped-hugetlb: limit not specified"),
        ({"quota": "10K"}, "quota property is out of range"),
        ({"oom-score-adj": -1000}, "oom-score-adj property is out of range"),
    ],
)
def test_what_cannot_be_meant_is_refused(table: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        zone(**table)


def test_a_disk_is_found_below_a_device_a_partition_and_a_folder() -> None:
    with pytest.raises(PlatformError, match=r"capped-io: /nowhere: No such file"):
        disk_of("/nowhere")
    with pytest.raises(PlatformError, match="capped-io: /proc is not on a disk"):
        disk_of("/proc")


# -- CPUs -----------------------------------------------------------------------------------------------------------

# two sockets of two cores of two threads
WHERE = {cpu: (cpu // 4, cpu // 2) for cpu in range(8)}


@pytest.mark.parametrize(
    ("unit", "wanted", "free", "chosen"),
    [
        ("ncpus", "2", range(8), {6, 7}),
        ("ncpus", "2-4", (0, 1, 5), {0, 1, 5}),
        ("cpus", "1-2,5", range(8), {1, 2, 5}),
        ("cores", "1,3", range(8), {2, 3, 6, 7}),
        ("sockets", "1", range(8), {4, 5, 6, 7}),
    ],
)
def test_cpus_are_chosen(unit: str, wanted: str, free: range, chosen: set[int]) -> None:
    assert cpus.choose(unit, wanted, frozenset(free), WHERE) == chosen


@pytest.mark.parametrize(
    ("unit", "wanted", "text"),
    [
        ("ncpus", "3-4", "3 CPUs are wanted and 2 are free"),
        ("cpus", "0,3", "CPUs 0 are not free"),
        ("cores", "9", "the host has no cores 9"),
    ],
)
def test_cpus_that_cannot_be_had_are_named(unit: str, wanted: str, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        cpus.choose(unit, wanted, frozenset({2, 3}), WHERE)


def test_a_share_of_cpus_lives_as_long_as_its_zone(tmp_path: Path) -> None:
    hierarchy = Hierarchy(Kind.UNIFIED, tmp_path / "cg", {})
    (tmp_path / "cg/base/web").mkdir(parents=True)
    (tmp_path / "cg/base/db").mkdir()
    shares = registry.Registry(hierarchy, tmp_path / "cpus.json")
    online = cpus.online()
    if len(online) > 1:
        last = max(online)
        assert shares.allocate("base", "web", lambda free: frozenset({max(free)})) == {last}
        assert shares.of("base", "web") == shares.dedicated() == {last}
        assert shares.dedicated(but=("base", "web")) == frozenset()
        shares.allocate("base", "web", lambda free: frozenset({max(free)}))  # its own are free to itself
        assert shares.dedicated() == {last}
    with pytest.raises(ValueError, match="no CPU would be left"):
        shares.allocate("base", "db", lambda free: free)
    (tmp_path / "cg/base/web").rmdir()
    assert shares.dedicated() == frozenset()
    assert not shares.release("base", "web")


def test_a_pool_takes_no_cpu_from_anybody(tmp_path: Path) -> None:
    """On pure cgroup2 too; and it is no obstacle for who wants CPUs alone."""
    hierarchy = Hierarchy(Kind.UNIFIED, tmp_path / "cg", {})
    for name in ("web", "db"):
        (tmp_path / "cg/base" / name / "payload").mkdir(parents=True)
    file = tmp_path / "cg/base/web/payload/cpuset.cpus"
    file.write_text("")
    shares = registry.Registry(hierarchy, tmp_path / "cpus.json")
    online = cpus.online()
    last = max(online)
    shares.join("base", "web", online)
    assert shares.pool_of("base", "web") == online
    assert not shares.of("base", "web") and not shares.dedicated()
    cpus.keep_off(hierarchy, "base", "web", frozenset(), frozenset({last}))
    assert cpus.parse(file.read_text()) == {last}
    if len(online) > 1:
        assert shares.allocate("base", "db", lambda free: frozenset({max(free)})) == {last}
        cpus.keep_off(hierarchy, "base", "web", shares.dedicated(), frozenset({last}))
        assert cpus.parse(file.read_text()) == online - {last}
    assert shares.release("base", "web")
    assert not shares.pool_of("base", "web")


def _cpuset_tree(root: Path) -> list[Path]:
    folders = [root, root / "web", root / "web/payload"]
    for folder in folders:
        folder.mkdir(exist_ok=True)
        for name in ("cpuset.cpus.exclusive", "cpuset.cpus.partition"):
            (folder / name).write_text("")
    return folders


def test_a_partition_is_reserved_from_the_top_down_and_given_back(tmp_path: Path) -> None:
    folders = _cpuset_tree(tmp_path / "base")
    assert cpus.partition(folders, frozenset({2, 3}), frozenset({1, 2, 3}))
    exclusive = [(folder / "cpuset.cpus.exclusive").read_text() for folder in folders]
    assert exclusive == ["1,2,3", "2,3", "2,3"]
    assert (folders[-1] / "cpuset.cpus.partition").read_text() == "root"
    cpus.dissolve(folders, frozenset({1}))
    assert [(folder / "cpuset.cpus.exclusive").read_text().strip() for folder in folders] == ["1", "", ""]
    assert (folders[-1] / "cpuset.cpus.partition").read_text() == "member"


def test_a_kernel_without_partitions_far_below_the_root_has_none(tmp_path: Path) -> None:
    assert not cpus.partition([tmp_path, tmp_path, tmp_path], frozenset({1}), frozenset())


# -- what is used ---------------------------------------------------------------------------------------------------

UNIFIED = {
    "cpu.stat": "usage_usec 5000000\nuser_usec 4000000\nsystem_usec 1000000\nthrottled_usec 70\n",
    "cpu.max": "150000 100000\n",
    "cpu.weight": "200\n",
    "cpu.pressure": "some avg10=1.50 avg60=0.00 avg300=0.00 total=9\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
    "memory.current": "1000\n",
    "memory.peak": "3000\n",
    "memory.max": "4096\n",
    "memory.swap.max": "4096\n",
    "memory.swap.current": "10\n",
    "memory.events": "low 0\nhigh 0\nmax 5\noom 2\noom_kill 2\n",
    "pids.current": "7\n",
    "pids.peak": "9\n",
    "pids.max": "max\n",
    "io.stat": "8:0 rbytes=100 wbytes=200 rios=1 wios=1\n8:16 rbytes=1 wbytes=2 rios=1 wios=1\n",
}


def test_cgroup2_is_read_whole(tmp_path: Path) -> None:
    payload = tmp_path / "base/web/payload"
    payload.mkdir(parents=True)
    for name, text in UNIFIED.items():
        (payload / name).write_text(text)
    found = usages.of_zone(Hierarchy(Kind.UNIFIED, tmp_path, {}), "base", "web")
    assert found == Usage(
        cpu_us=5000000, user_us=4000000, system_us=1000000, throttled_us=70, cpu_cap=1.5, cpu_shares=200,
        memory_bytes=1000, memory_peak_bytes=3000, memory_cap_bytes=4096, swap_bytes=10, swap_cap_bytes=8192,
        pids=7, pids_peak=9, read_bytes=101, write_bytes=202, oom_kills=2, pressure={"cpu": 1.5},
    )  # fmt: skip
    assert usages.oom_kills(str(payload), ()) == 2
    assert usages.of_zone(Hierarchy(Kind.UNIFIED, tmp_path, {}), "base", "gone") == Usage()


def _instance(name: str, generation: str = "a") -> Instance:
    return Instance(
        zonename=name, generation=generation, zone_id=1, mode=Mode.BOOT, phase=Phase.RUNNING, uid_base=1,
        privileged=False, root="/", cgroup="", booted_s=90.0,
    )  # fmt: skip


def _look(at_s: float, **used: tuple[Usage, tuple[int, int] | None]) -> Look:
    zones = tuple(ZoneUsage(name, _instance(name), usage, net) for name, (usage, net) in used.items())
    host = Usage(cpu_us=int(at_s * 1e6), cpu_cap=2.0, memory_bytes=5000, memory_cap_bytes=10000, pids=50)
    return Look(at_s, 1e9 + at_s, host, zones)


def _two() -> Sample:
    first = _look(
        100, web=(Usage(cpu_us=0, memory_bytes=1000, pids=5, cpu_shares=300), (0, 0)), db=(Usage(), None)
    )
    second = _look(
        102,
        web=(
            Usage(cpu_us=3_000_000, memory_bytes=2000, memory_cap_bytes=4000, pids=6, cpu_shares=300),
            (4096, 10),
        ),
        db=(Usage(memory_bytes=500, pids=1, cpu_us=0, cpu_shares=100), None),
    )
    return sample(second, first)


def test_rates_are_of_the_interval_and_without_one_of_the_zones_life() -> None:
    taken = _two()
    web, db = taken.zones
    assert web.amounts[CPU].used == 1.5 and web.amounts[RECEIVED].used == 2048
    assert web.amounts[MEMORY].of_cap == 50
    assert db.amounts[RECEIVED].used is None
    assert taken.zones_total.amounts[LWPS].used == 7 and taken.zones_total.amounts[MEMORY].cap is None
    assert taken.host.amounts[CPU].used == 1.0
    alone = sample(_look(100, web=(Usage(cpu_us=5_000_000), (0, 0))))
    assert alone.zones[0].amounts[CPU].used == 0.5 and alone.interval_s is None


def test_a_zone_that_came_back_has_no_past() -> None:
    before = _look(100, web=(Usage(cpu_us=9_000_000), None))
    now = _look(101, web=(Usage(cpu_us=1_000_000), None))
    reborn = dataclasses.replace(now.zones[0], instance=_instance("web", "b"))
    taken = sample(dataclasses.replace(now, zones=(reborn,)), before)
    assert taken.zones[0].amounts[CPU].used == round(1 / 11, 4)


def test_peaks_are_the_kernels_or_what_was_seen() -> None:
    peaks = Peaks()
    peaks.add(_two())
    assert peaks.of("web", LWPS) == 6 and peaks.of("nobody", LWPS) is None


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (0, "0B"), (999, "999B"), (1000, "1.0K"), (1536, "1.5K"), (200 << 20, "200M")],
)
def test_sizes_take_few_characters(value: float | None, text: str) -> None:
    assert stat.size(value) == text


def test_names_interval_and_count_are_told_apart() -> None:
    def known(name: str) -> bool:
        return name in ("web", "7")

    assert stat.split_words(("web", "5", "3"), known) == (["web"], 5.0, 3)
    assert stat.split_words(("7",), known) == (["7"], None, None)
    assert stat.split_words(("0.5",), known) == ([], 0.5, None)
    for words in (("0",), ("5", "0"), ("5", "1.5")):
        with pytest.raises(UsageError):
            stat.split_words(words, known)


def test_the_table_has_zones_their_sum_and_the_host() -> None:
    rows = stat.table(_two(), Peaks())
    assert [row.split()[0] for row in rows] == ["ZONE", "web", "db", "[zones]", "[total]"]
    assert rows[1].split()[1:4] == ["150.0", "-", "2.0K"]


def test_counters_have_zeros_for_zones_that_do_not_run() -> None:
    lines = list(stat.metrics(_two(), ["off"]))
    assert 'zonemgr_cpu_seconds_total{zone="web"} 3' in lines
    assert 'zonemgr_cpu_seconds_total{zone="off"} 0' in lines
    assert {'zonemgr_running{zone="web"} 1', 'zonemgr_running{zone="off"} 0'} <= set(lines)


def test_counters_tell_how_long_zones_waited() -> None:
    usage = Usage(pressure={"cpu": 12.5, "io": 0.0}, throttled_us=2_500_000)
    taken = sample(_look(100, web=(usage, None)))
    taken = dataclasses.replace(taken, host=dataclasses.replace(taken.host, pressure={"cpu": 1.0, "io": 1.0}))
    lines = list(stat.metrics(taken, ["off"]))
    assert 'zonemgr_cpu_throttled_seconds_total{zone="web"} 2.5' in lines
    assert 'zonemgr_pressure_percent{zone="web",resource="cpu"} 12.5' in lines
    assert 'zonemgr_pressure_percent{zone="off",resource="io"} 0' in lines


def test_the_view_sorts_fits_the_screen_and_ends() -> None:
    view = statview.View()
    lines = view.lines(_two(), 24, 200)
    assert "2 zones, by processors" in lines[0] and lines[2].startswith("web")
    assert view.key("m") and view.key("x") and not view.key("q")
    assert view.key("z") and view.lines(_two(), 24, 200)[2].startswith("db")
    small = view.lines(_two(), 6, 40)
    assert len(small) == 6 and all(len(line) < 40 for line in small)
    assert "1 more zones" in "".join(view.lines(_two(), 6, 200))


# -- zonestat -------------------------------------------------------------------------------------------------------


def test_zonestat_reads_solaris_options() -> None:
    asked = zonestat.parse(
        ["-z", "web,db", "-r", "memory,psets", "-R", "high,average", "-p", "5", "1m", "30s"]
    )
    assert asked.zones == ("web", "db") and asked.parsable
    assert asked.resources == ("physical-memory", "virtual-memory", "locked-memory", "processor-set")
    assert (asked.interval_s, asked.times, asked.report_every) == (5.0, 12, 6)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["x"],
        ["0"],
        ["5", "5", "5", "5"],
        ["-r", "disks", "5"],
        ["-R", "low", "5"],
        ["-q", "5"],
        ["-x", "5"],
    ],
)
def test_zonestat_refuses_what_it_does_not_know(words: list[str]) -> None:
    with pytest.raises(UsageError):
        zonestat.parse(words)


def test_zonestat_shows_a_resource_with_its_parts() -> None:
    lines = zonestat.report(_two(), zonestat.parse(["-r", "psets", "5"]), "interval:1")
    assert lines[1:3] == ["PROCESSOR-SET", "  ZONE      USED  %USED   CAP   %CAP    SHARES  %SHARES"]
    rows = {line.split()[0]: line.split()[1:] for line in lines[3:]}
    assert rows["[total]"][:2] == ["1.00", "50.00%"]
    assert rows["web"] == ["1.50", "75.00%", "-", "-", "300", "75.00%"]
    assert rows["[system]"][0] == "0.00"


def test_zonestat_for_programs_and_what_linux_does_not_count() -> None:
    asked = zonestat.parse(["-p", "-r", "sysv", "-P", "zones", "5"])
    lines = zonestat.report(_two(), asked, "interval:1")
    assert "interval:1:shm-ids:web:-:-:-:-:-:-" in lines and len(lines) == 8


def test_reports_add_up() -> None:
    totals = zonestat.Totals()
    for _ in range(2):
        totals.add(_two())
    high, average = totals.report("high"), totals.report("average")
    assert high and average
    assert high.zones[0].amounts[CPU].used == average.zones[0].amounts[CPU].used == 1.5
    assert zonestat.Totals().report("total") is None
