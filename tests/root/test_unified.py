"""Zones on pure cgroup v2, as a host with systemd has it: what the kernel holds, what it does, and what a guest may do.

Every test looks at the kernel's own files, or at what processes feel; contrib/vm runs them where this host has its
controllers on v1.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.kit import disks
from tests.kit.instance import Instance
from tests.kit.processes import Started
from tests.kit.waiting import until
from zonemgr.linux.cgroup import Part, ZoneCgroup, cpus, detect
from zonemgr.platform.limits import disk_of

pytestmark = pytest.mark.requires("root", "userns", "net", "cgroup", "controllers")

MIB = 1 << 20


def group(instance: Instance, zonename: str = "web") -> ZoneCgroup:
    return ZoneCgroup(detect(), "zonemgr" + instance.suffix, zonename)


def held(instance: Instance, *names: str, zonename: str = "web") -> list[str]:
    """What is in these files of the zone's folder."""
    folder = group(instance, zonename).part_path(Part.PAYLOAD)
    return [(folder / name).read_text().strip() for name in names]


def configured(instance: Instance, *commands: str, zonename: str = "web") -> None:
    for command in commands:
        words = [command] if ";" in command else command.split()
        instance.run("config", zonename, *words)


def applied(instance: Instance) -> dict[str, dict[str, Any]]:
    (row,) = instance.json("list", "web")
    return {limit["name"]: limit for limit in row["limits"]}


def used(instance: Instance) -> Any:
    (line,) = instance.json("stat", "web")["zones"]
    return line


def test_the_kernel_holds_what_the_configuration_says_and_what_apply_makes_of_it(instance: Instance) -> None:
    instance.installed("web")
    configured(
        instance,
        "set max-lwps=100 cpu-shares=30 oom-group=true zfs-io-priority=200",
        "add capped-memory physical=96M swap=128M",
        "add capped-cpu ncpus=0.5",
        "add capped-io device=/var/tmp write-bps=2M read-iops=500",
        "add capped-hugetlb pagesize=2M limit=6M",
    )
    instance.run("boot", "web")
    disk = disk_of("/var/tmp")
    memory = ("memory.max", "memory.high", "memory.swap.max", "memory.oom.group")
    assert held(instance, *memory) == [str(96 * MIB), "max", str(32 * MIB), "1"]
    assert held(instance, "cpu.max", "cpu.weight", "pids.max") == ["50000 100000", "30", "100"]
    assert held(instance, "io.max") == [f"{disk} rbps=max wbps={2 * MIB} riops=500 wiops=max"]
    assert held(instance, "hugetlb.2MB.max") == [str(6 * MIB)]
    assert "default 200" in held(instance, "io.weight")[0].splitlines()
    limits = applied(instance)
    for name in ("capped-memory physical", "capped-memory swap", "capped-cpu ncpus", "cpu-shares", "max-lwps",
                 "zfs-io-priority", "capped-io", "capped-hugetlb", "oom-group"):  # fmt: skip
        assert limits[name]["effective"] == limits[name]["configured"] is not None, name
    line = used(instance)
    assert (line["physical-memory"]["cap"], line["virtual-memory"]["cap"]) == (96 * MIB, 128 * MIB)
    assert (line["cpu"]["cap"], line["cpu"]["shares"], line["lwps"]["cap"]) == (0.5, 30, 100)
    assert line["physical-memory"]["used"] > 0 and line["lwps"]["used"] >= 1 and line["cpu"]["total"] > 0

    configured(
        instance,
        "set max-lwps=150 cpu-shares=40 oom-group=false",
        "select capped-memory; set physical=112M; set swap=112M; end",
        "select capped-cpu; set ncpus=0.75; end",
        "remove capped-io device=/var/tmp",
        "remove capped-hugetlb",
    )
    instance.run("apply", "web")
    assert held(instance, *memory) == [str(112 * MIB), "max", "0", "0"]
    assert held(instance, "cpu.max", "cpu.weight", "pids.max") == ["75000 100000", "40", "150"]
    assert held(instance, "io.max", "hugetlb.2MB.max") == ["", "max"]
    line = used(instance)
    assert (line["physical-memory"]["cap"], line["virtual-memory"]["cap"]) == (112 * MIB, 112 * MIB)
    assert (line["cpu"]["cap"], line["lwps"]["cap"]) == (0.75, 150)
    for name in ("memory.max", "pids.max", "io.max", "cgroup.freeze", "cgroup.kill"):
        words = f"echo 1 >/sys/fs/cgroup/{name}"
        instance.login("web", "sh", "-c", f"! {{ {words}; }} 2>/dev/null")
    instance.run("reboot", "web")
    assert held(instance, *memory) == [str(112 * MIB), "max", "0", "0"]
    instance.run("halt", "web")


WRITES = """
import json, mmap, os, sys, time
size = int(sys.argv[1]) << 20
memory = mmap.mmap(-1, 1 << 20)
took = {}
for name, flags in ("direct", os.O_DIRECT), ("through the cache", 0):
    fd = os.open("/root/written", os.O_CREAT | os.O_TRUNC | os.O_WRONLY | flags, 0o600)
    begun = time.monotonic()
    for _ in range(size >> 20):
        os.write(fd, memory)
    os.fsync(fd)
    took[name] = time.monotonic() - begun
    os.close(fd)
fd = os.open("/root/written", os.O_RDONLY | os.O_DIRECT)
begun = time.monotonic()
while os.readv(fd, [memory]):
    pass
took["read"] = time.monotonic() - begun
print(json.dumps(took))
"""


def test_a_throttled_disk_slows_writes_through_the_cache_too_until_it_is_lifted(instance: Instance) -> None:
    """6 MiB at 2 MiB a second, and without."""
    instance.installed("web")
    configured(instance, "add capped-io device=/var/tmp write-bps=2M read-bps=3M")
    instance.run("boot", "web")

    def seconds() -> Any:
        return json.loads(instance.login("web", "python3", "-c", WRITES, "6"))

    slow = seconds()
    print("throttled, seconds:", slow)
    assert slow["direct"] > 2.3 and slow["through the cache"] > 2.3 and slow["read"] > 1.5
    moved = used(instance)
    assert moved["disk-write"]["total"] >= 12 * MIB and moved["disk-read"]["total"] >= 6 * MIB
    configured(instance, "remove capped-io device=/var/tmp")
    instance.run("apply", "web")
    fast = seconds()
    print("lifted, seconds:", fast)
    assert all(fast[name] < slow[name] / 2 for name in slow)
    instance.run("halt", "web")


def test_who_waits_for_a_processor_shows_as_pressure(instance: Instance) -> None:
    instance.installed("web")
    configured(instance, "add capped-cpu ncpus=0.1")
    instance.run("boot", "web")
    assert set(used(instance)["pressure"]) == {"cpu", "memory", "io"}
    with instance.popen("login", "web", "--", "sh", "-c", "while :; do :; done") as busy:
        until(lambda: used(instance)["pressure"]["cpu"] > 10, "pressure")
        line = used(instance)
        assert line["throttled-us"] > 0 and line["pressure"]["cpu"] <= 100
        shown = instance.run("stat", "web", "--prometheus").stdout
        (text,) = (text for text in shown.splitlines() if text.startswith("zonemgr_pressure") and '"cpu"' in text)
        assert text.startswith('zonemgr_pressure_percent{zone="web",resource="cpu"} ') and float(text.split()[1]) > 0
        busy.kill()
    instance.run("halt", "web")


INSIDE = """
set -e
cd /sys/fs/cgroup
cat cgroup.controllers
mkdir init inner
for pid in $(cat cgroup.procs); do echo $pid >init/cgroup.procs 2>/dev/null || true; done
for name in $(cat cgroup.controllers); do echo +$name >cgroup.subtree_control; done
cat cgroup.subtree_control
echo 3 >inner/pids.max
echo 24M >inner/memory.max
echo "20000 100000" >inner/cpu.max
cat inner/pids.max inner/memory.max inner/cpu.max
"""
IN_INNER = """
import os
open("/sys/fs/cgroup/inner/cgroup.procs", "w").write("0")
made = 0
try:
    while made < 10:
        if not os.fork():
            __import__("signal").pause()
        made += 1
except BlockingIOError:
    print(made, open("/proc/self/cgroup").read().strip(), flush=True)
open("/sys/fs/cgroup/inner/cgroup.kill", "w").write("1")
"""


def test_a_guest_hands_its_controllers_on_and_its_zone_goes_on_as_before(instance: Instance) -> None:
    instance.installed("web", "max-lwps=110")
    configured(instance, "add capped-memory physical=96M swap=96M")
    instance.run("boot", "web")
    first, second, *values = instance.login("web", "sh", "-c", INSIDE).splitlines()
    assert set(first.split()) == set(second.split()) >= {"memory", "pids", "cpu", "io", "cpuset", "hugetlb"}
    assert values == ["3", str(24 * MIB), "20000 100000"]
    assert instance.login("web", "python3", "-c", IN_INNER, check=137).split() == ["2", "0::/inner"]
    folder = group(instance).part_path(Part.PAYLOAD)
    assert (folder / "inner/pids.max").stat().st_uid != 0 == (folder / "pids.max").stat().st_uid

    configured(instance, "set max-lwps=120")
    instance.run("apply", "web")
    assert held(instance, "pids.max", "memory.max") == ["120", str(96 * MIB)]
    code = "bytearray(b'x') * (200 << 20)"
    instance.login("web", "python3", "-c", code, check=137)
    assert used(instance)["oom-kills"] == 1
    instance.run("reboot", "web")
    assert held(instance, "cgroup.subtree_control", "pids.max") == ["", "120"]
    assert not (folder / "inner").exists()
    instance.login("web", "sh", "-c", INSIDE)
    instance.run("halt", "web")
    assert not folder.exists()


def test_a_zone_that_stands_still_is_halted_and_killed_all_the_same(instance: Instance) -> None:
    instance.running("web")
    code = "import os, time\nfor _ in range(20): os.fork() or time.sleep(1000)\nprint(flush=True)\ntime.sleep(1000)"
    with instance.popen("login", "web", "--", "python3", "-c", code) as many:
        assert many.stdout is not None
        many.stdout.readline()
        assert group(instance).freeze() and held(instance, "cgroup.freeze") == ["1"]
        assert "frozen 1" in held(instance, "cgroup.events")[0].splitlines()
        assert len(group(instance).pids(Part.PAYLOAD)) > 20
        instance.run("halt", "web")
        many.wait(60)
    assert instance.state() == "installed" and not group(instance).part_path(Part.PAYLOAD).exists()


GROWS = """
import sys
kept = []
for _ in range(int(sys.argv[1])):
    kept.append(bytearray(b"x") * (1 << 20))
    print(*(open("/sys/fs/cgroup/memory." + name).read().strip() for name in ("current", "swap.current")), flush=True)
"""


def grown(instance: Instance, zonename: str, mib: int, check: int = 0) -> tuple[list[int], list[int]]:
    """What the zone used of memory and of swap, after each MiB that one of its processes has filled."""
    lines = instance.login(zonename, "python3", "-c", GROWS, str(mib), check=check).splitlines()
    memory, swap = zip(*(map(int, line.split()) for line in lines), strict=True)
    print(f"{zonename}: {len(lines)} MiB; at most {max(memory) / MIB:.1f} of memory and {max(swap) / MIB:.1f} of swap")
    return list(memory), list(swap)


def events(instance: Instance, zonename: str, name: str) -> dict[str, int]:
    (text,) = held(instance, name, zonename=zonename)
    return {key: int(value) for key, value in (line.split() for line in text.splitlines())}


@pytest.mark.requires("swap")
def test_who_goes_beyond_memory_and_swap_is_killed_with_all_of_both_used(instance: Instance) -> None:
    """With 32 MiB of swap, with none, and with as much as the host has."""
    for zonename, caps in ("some", "physical=64M swap=96M"), ("none", "physical=64M swap=64M"), ("all", "physical=64M"):
        instance.installed(zonename)
        configured(instance, f"add capped-memory {caps}", zonename=zonename)
        instance.run("boot", zonename)
    with disks.swap(256 * MIB):
        memory, swap = grown(instance, "some", 200, check=128 + signal.SIGKILL)
        assert 60 * MIB < max(memory) <= 64 * MIB and 30 * MIB < max(swap) <= 32 * MIB
        assert 60 < len(swap) < 96
        assert events(instance, "some", "memory.events")["oom_kill"] == 1
        assert events(instance, "some", "memory.swap.events")["max"] > 0
        (line,) = instance.json("stat", "some")["zones"]
        assert line["oom-kills"] == 1 and line["virtual-memory"]["cap"] == 96 * MIB
        assert line["swap"]["used"] <= 32 * MIB and line["virtual-memory"]["used"] <= 96 * MIB

        memory, swap = grown(instance, "none", 200, check=128 + signal.SIGKILL)
        assert 60 * MIB < max(memory) <= 64 * MIB and max(swap) == 0
        assert len(swap) < 64
        assert events(instance, "none", "memory.events")["oom_kill"] == 1
        assert held(instance, "memory.swap.current", zonename="none") == ["0"]

        memory, swap = grown(instance, "all", 160)
        assert max(memory) <= 64 * MIB and max(swap) > 90 * MIB
        assert events(instance, "all", "memory.events")["oom_kill"] == 0
        instance.run("halt", "some", "none", "all")


HOLDS = """
import sys
kept = [bytearray(b"x") * (1 << 20) for _ in range(int(sys.argv[1]))]
print(flush=True)
sys.stdin.readline()
print(sum(part[-1] == ord("x") for part in kept))
"""


@contextmanager
def holding(instance: Instance, mib: int) -> Iterator[None]:
    """Meanwhile a process of the zone keeps so much; in the end all of it is still there."""
    words = ("login", "web", "--", "python3", "-c", HOLDS, str(mib))
    with instance.popen(*words, stdin=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stdout.readline() == "\n", child.communicate()
        yield
        assert child.communicate("\n")[0] == f"{mib}\n"


CAPS = ("memory.max", "memory.swap.max")


def changed(instance: Instance, caps: str, check: int = 0) -> str:
    """What is said when the caps of a living zone's memory become others."""
    configured(instance, f"select capped-memory; {caps}; end")
    return instance.run("apply", "web", check=check).stderr


def test_less_memory_than_a_living_zone_uses_is_refused_whichever_cap_says_so(instance: Instance) -> None:
    instance.installed("web")
    configured(instance, "add capped-memory swap=160M")
    instance.run("boot", "web")
    with holding(instance, 96):
        said = changed(instance, "set swap=64M", check=1)
        assert f"cannot limit memory to {64 * MIB} bytes: the zone uses " in said
        assert held(instance, *CAPS) == [str(160 * MIB), "0"]
        changed(instance, "set swap=144M")
        assert held(instance, *CAPS) == [str(144 * MIB), "0"]
    changed(instance, "set swap=64M")
    assert held(instance, *CAPS) == [str(64 * MIB), "0"]
    assert used(instance)["oom-kills"] == 0
    instance.run("halt", "web")


@pytest.mark.requires("swap")
def test_a_living_zones_memory_moves_to_swap_as_far_as_both_caps_let_it(instance: Instance) -> None:
    instance.installed("web")
    configured(instance, "add capped-memory physical=96M swap=128M")
    instance.run("boot", "web")
    with disks.swap(256 * MIB), holding(instance, 80):
        said = changed(instance, "set physical=64M; set swap=64M", check=1)
        assert f"cannot limit memory to {64 * MIB} bytes: the zone uses " in said
        assert held(instance, *CAPS) == [str(96 * MIB), str(32 * MIB)], "nothing of it was pushed to swap instead"
        # More swap than it had is needed for that.
        changed(instance, "set physical=32M; set swap=128M")
        assert held(instance, *CAPS) == [str(32 * MIB), str(96 * MIB)]
        line = used(instance)
        assert line["physical-memory"]["used"] <= 32 * MIB and line["swap"]["used"] > 40 * MIB
        said = changed(instance, "set physical=32M; set swap=64M", check=1)
        assert f"cannot limit memory and swap to {64 * MIB} bytes: the zone uses " in said
        assert held(instance, *CAPS) == [str(32 * MIB), str(96 * MIB)]
        changed(instance, "set physical=128M; set swap=128M")
        assert held(instance, *CAPS) == [str(128 * MIB), "0"]
    assert used(instance)["oom-kills"] == 0
    instance.run("halt", "web")


OPENS = """
import os, sys
os.read(0, 1)
for name in sys.argv[1:]:
    try:
        os.close(os.open(name, os.O_RDONLY | os.O_NONBLOCK))
        print("", flush=True)
    except OSError as error:
        print(error.errno, flush=True)
"""


def opened(instance: Instance, *names: str) -> list[str]:
    """What a process of the host gets that is in the zone's control group and in nothing else of it."""
    words = (sys.executable, "-Ic", OPENS, *names)
    with Started(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        group(instance).join(Part.PAYLOAD, child.pid)
        output: str = child.communicate("\n")[0]
    return output.splitlines()


def test_the_kernel_refuses_devices_by_control_group_alone(instance: Instance) -> None:
    instance.running("web")
    refused = str(errno.EPERM)
    assert opened(instance, "/dev/null", "/dev/zero", "/dev/kmsg", "/dev/mem") == ["", "", refused, refused]
    configured(instance, "add device match=kmsg")
    instance.run("apply", "web")
    assert opened(instance, "/dev/null", "/dev/kmsg", "/dev/mem") == ["", "", refused]
    configured(instance, "remove device match=kmsg")
    instance.run("apply", "web")
    assert opened(instance, "/dev/null", "/dev/kmsg") == ["", refused]
    instance.run("halt", "web")


HUGE = """
import mmap
pages = []
for _ in range(3):
    page = mmap.mmap(-1, 2 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40000)
    page[0] = 1
    pages.append(page)
    print(len(pages), flush=True)
"""


@contextmanager
def huge_pages(count: int) -> Iterator[None]:
    setting = Path("/proc/sys/vm/nr_hugepages")
    before = setting.read_text()
    setting.write_text(str(count))
    try:
        assert int(setting.read_text()) == count
        yield
    finally:
        setting.write_text(before)


def test_huge_pages_beyond_the_cap_are_not_to_be_had(instance: Instance) -> None:
    if resource.getpagesize() != 4096:
        pytest.skip("its huge pages are not of 2 MiB")
    instance.installed("web")
    configured(instance, "add capped-hugetlb pagesize=2M limit=4M")
    instance.run("boot", "web")
    with huge_pages(6):
        shown = instance.login("web", "python3", "-c", HUGE, check=128 + signal.SIGBUS)
    assert shown.split() == ["1", "2"]
    instance.run("halt", "web")


def partition(instance: Instance) -> str:
    return held(instance, "cpuset.cpus.partition", zonename="alone")[0]


def of_the_host() -> frozenset[int]:
    """The CPUs that are left to processes outside of zones."""
    root = detect().unified()
    return cpus.parse((root / "cpuset.cpus.effective").read_text())


@pytest.mark.requires("cpus")
def test_cpus_of_its_own_are_a_partition_until_the_halt(instance: Instance) -> None:
    every = cpus.online()
    instance.installed("alone")
    configured(instance, "add dedicated-cpu ncpus=1", zonename="alone")
    instance.running("other")
    if not (group(instance, "other").part_path(Part.PAYLOAD) / "cpuset.cpus.exclusive").exists():
        pytest.skip(f"Linux {os.uname().release} has no partitions below others than partitions (6.7 has)")
    instance.run("boot", "alone")
    mine = cpus.parse(held(instance, "cpuset.cpus.effective", zonename="alone")[0])
    assert len(mine) == 1 and partition(instance) == "root"
    assert of_the_host() == every - mine
    assert os.sched_getaffinity(0) == every - mine, "whoever is outside has left them"
    shown = instance.login("alone", "python3", "-c", "import os; print(*os.sched_getaffinity(0))")
    assert cpus.parse(shown.replace(" ", ",")) == mine

    instance.run("reboot", "alone")
    assert cpus.parse(held(instance, "cpuset.cpus.effective", zonename="alone")[0]) == mine
    assert partition(instance) == "root" and of_the_host() == every - mine
    configured(instance, "set max-lwps=200", zonename="alone")
    instance.run("apply", "alone")
    assert partition(instance) == "root" and of_the_host() == every - mine, "another limit changes nothing of it"
    configured(instance, "remove dedicated-cpu", zonename="alone")
    instance.run("apply", "alone")
    assert partition(instance) == "member" and of_the_host() == every
    configured(instance, "add dedicated-cpu ncpus=1", zonename="alone")
    instance.run("apply", "alone")
    assert partition(instance) == "root" and of_the_host() == every - mine

    instance.run("halt", "alone")
    assert of_the_host() == every
    shown = instance.login("other", "python3", "-c", "import os; print(*os.sched_getaffinity(0))")
    assert cpus.parse(shown.replace(" ", ",")) == every
    instance.run("halt", "other")
