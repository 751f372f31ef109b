"""Limits of a zone, by going beyond each of them from inside it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.kit import disks
from tests.kit.instance import Instance
from tests.kit.waiting import until
from zonemgr.linux.cgroup import cpus
from zonemgr.store import cpus as registry

pytestmark = pytest.mark.requires("root", "userns", "net", "cgroup")

# What a process of the zone can get of each thing; "" is for one that it got whole.
BEYOND = """
import ctypes, json, mmap, os, resource, sys, time
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
def why(result):
    return os.strerror(ctypes.get_errno()) if result in (-1, ctypes.c_void_p(-1).value) else ""
def many(make):
    for count in range(5000):
        if make() == -1:
            return count
    return -1
found = {}
begun, worked = time.monotonic(), time.process_time()
while time.process_time() - worked < 0.3:
    sum(range(10**5))
found["share of a processor"] = (time.process_time() - worked) / (time.monotonic() - begun)
PRIVATE, CREATE = 0, 0o1600
found["shm of 1M"] = why(libc.shmget(PRIVATE, 1 << 20, CREATE))
found["shm of 3M"] = why(libc.shmget(PRIVATE, 3 << 20, CREATE))
found["shm ids"] = 1 + many(lambda: libc.shmget(PRIVATE, 4096, CREATE))
found["msg ids"] = many(lambda: libc.msgget(PRIVATE, CREATE))
found["sem ids"] = many(lambda: libc.semget(PRIVATE, 1, CREATE))
anonymous = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
area = libc.mmap(None, 2 << 20, 3, anonymous, -1, 0)
found["lock 512K"] = why(libc.mlock(ctypes.c_void_p(area), 512 << 10))
found["lock 2M"] = why(libc.mlock(ctypes.c_void_p(area), 2 << 20))
found["files"] = resource.getrlimit(resource.RLIMIT_NOFILE)
found["policy"] = [os.sched_getscheduler(1), os.sched_getscheduler(0)]
found["score"] = int(open("/proc/self/oom_score_adj").read())
begun = time.monotonic()
block = open("/root/written", "wb", 0)
memory = mmap.mmap(-1, 1 << 20)
fd = os.open("/root/written", os.O_WRONLY | os.O_DIRECT)
for _ in range(4):
    os.write(fd, memory)
found["seconds of 4M"] = time.monotonic() - begun
found["inotify"] = many(lambda: libc.inotify_init1(0))
children = 0
try:
    while children < 2000:
        if not os.fork():
            time.sleep(1000)
        children += 1
except BlockingIOError:
    pass
found["children"] = children
print(json.dumps(found), flush=True)
sys.stdin.read()
"""

SETTINGS = """
max-lwps = 100
max-shm-memory = "2M"
max-shm-ids = 5
max-msg-ids = 3
oom-score-adj = 300
scheduling-class = "BATCH"

[capped-memory]
physical = "96M"
swap = "96M"
locked = "1M"

[capped-cpu]
ncpus = 0.5

[[capped-io]]
device = "/var/tmp"
write-bps = "2M"
read-iops = 5000

[[rlimit]]
name = "nofile"
soft = "300"
hard = "400"

[[rctl]]
name = "zone.max-sem-ids"
value = ["(priv=privileged,limit=4,action=deny)", "(priv=privileged,limit=9,action=deny)"]
"""


def installed(instance: Instance, zonename: str, settings: str) -> None:
    """A zone with these lines in its configuration: properties before its own, tables after."""
    instance.configured(zonename)
    file = instance.layout.config(zonename)
    properties, bracket, tables = settings.partition("[")
    file.write_text(properties + file.read_text() + bracket + tables)
    instance.run("install", zonename)


def applied(instance: Instance, zonename: str) -> dict[str, dict[str, Any]]:
    """The zone's limits as ``list`` shows them, by name."""
    (row,) = instance.json("list", zonename)
    return {limit["name"]: limit for limit in row["limits"]}


def test_each_limit_holds_against_the_zones_root(instance: Instance) -> None:
    installed(instance, "web", SETTINGS)
    instance.run("boot", "web")
    with instance.popen("login", "web", "--", "python3", "-c", BEYOND, stdin=subprocess.PIPE) as child:
        assert child.stdout is not None
        found = json.loads(child.stdout.readline() or child.communicate()[1])
        # What the zone has used up is its own: the host's root has as much as before.
        assert _inotify_of_the_host() > 0
        used = instance.json("stat", "web")["zones"][0]
        child.kill()
    assert (found["shm of 1M"], found["shm of 3M"]) == ("", "Invalid argument")
    assert (found["shm ids"], found["msg ids"], found["sem ids"]) == (5, 3, 4)
    assert found["lock 512K"] == "" and found["lock 2M"] == "Cannot allocate memory"
    assert found["policy"] == [os.SCHED_BATCH] * 2
    assert found["files"] == [300, 400] and found["score"] == 300
    assert found["seconds of 4M"] > 1.5, "2 MiB a second"
    assert 0 < found["inotify"] <= 300
    assert 80 < found["children"] < 100
    assert used["lwps"]["used"] == used["lwps"]["cap"] == 100
    assert found["share of a processor"] < 0.75
    assert used["cpu"]["cap"] == 0.5 and used["physical-memory"]["cap"] == 96 << 20

    assert instance.login("web", "python3", "-c", "bytearray(b'x') * (200 << 20)", check=137) == ""
    limits = applied(instance, "web")
    assert limits["capped-memory physical"] == {
        "name": "capped-memory physical", "configured": 96 << 20, "effective": 96 << 20,
    }  # fmt: skip
    assert limits["rlimit nofile"]["effective"] == "300:400"
    assert limits["max-sem-ids"]["effective"] == 4
    assert limits["capped-io"]["effective"] == limits["capped-io"]["configured"]
    instance.run("halt", "web")


def _inotify_of_the_host() -> int:
    import ctypes

    fd: int = ctypes.CDLL(None).inotify_init1(0)
    if fd >= 0:
        os.close(fd)
    return fd


def test_a_zone_that_says_nothing_leaves_the_host_its_processes(instance: Instance) -> None:
    instance.running("web")
    limit = applied(instance, "web")["max-lwps"]
    assert limit["configured"] is None
    assert limit["effective"] < int(Path("/proc/sys/kernel/pid_max").read_text()) / 4
    instance.run("halt", "web")
    instance.layout.settings.parent.mkdir(parents=True, exist_ok=True)
    instance.layout.settings.write_text("default-max-lwps = 150\n")
    instance.run("boot", "web")
    assert applied(instance, "web")["max-lwps"]["effective"] == 150


def test_a_limit_that_the_kernel_lacks_refuses_the_boot_unless_the_zone_is_content(
    instance: Instance,
) -> None:
    tables = (
        '[[capped-hugetlb]]\npagesize = "3M"\nlimit = "6M"\n[[capped-io]]\ndevice = "/proc"\nread-bps = 5\n'
    )
    installed(instance, "web", tables)
    done = instance.run("boot", "web", check=1)
    assert "capped-io: /proc is not on a disk that can be limited" in done.stderr
    file = instance.layout.config("web")
    file.write_text(file.read_text().replace('[[capped-io]]\ndevice = "/proc"\nread-bps = 5\n', ""))
    done = instance.run("boot", "web", check=1)
    assert "cannot apply the limit capped-hugetlb=3145728:6291456: " in done.stderr
    assert instance.state() == "installed"
    file.write_text(
        "best-effort = true\n" + file.read_text() + '[[capped-io]]\ndevice = "/proc"\nread-bps = 5\n'
    )
    warned = instance.run("boot", "web").stderr
    for name in ("capped-hugetlb", "capped-io"):
        assert f"WARNING: the limit {name} does not hold" in warned
    limit = applied(instance, "web")["capped-hugetlb"]
    assert limit["configured"] == [[3 << 20, 6 << 20]] and limit["effective"] is None and limit["problem"]


@pytest.mark.requires("unified")
def test_who_exceeds_the_memory_cap_takes_the_zone_along(instance: Instance) -> None:
    installed(instance, "web", 'oom-group = true\n[capped-memory]\nphysical = "96M"\nswap = "96M"\n')
    instance.run("boot", "web")
    instance.login("web", "python3", "-c", "bytearray(b'x') * (200 << 20)", check=False)
    until(lambda: instance.state("web") == "installed", "the zone is down")


def _cpus_of(instance: Instance, zonename: str) -> set[int]:
    """Of process 1: who enters has the affinity of his shell besides."""
    shown = instance.login(zonename, "sed", "-n", "s/^Cpus_allowed_list:[[:space:]]*//p", "/proc/1/status")
    return set(cpus.parse(shown))


@pytest.mark.requires("cpus")
def test_dedicated_cpus_are_one_zones_alone_until_it_is_halted(instance: Instance) -> None:
    every = set(cpus.online())
    installed(instance, "alone", '[dedicated-cpu]\nncpus = "1"\n')
    instance.installed("other")
    instance.run("boot", "other")
    assert _cpus_of(instance, "other") == every
    instance.run("boot", "alone")
    (mine,) = _cpus_of(instance, "alone")
    assert _cpus_of(instance, "other") == every - {mine}
    assert applied(instance, "alone")["dedicated-cpu"]["effective"] == str(mine)

    instance.run("reboot", "alone")
    assert _cpus_of(instance, "alone") == {mine}
    instance.run("reboot", "other")
    assert _cpus_of(instance, "other") == every - {mine}, "a zone that is made later keeps off as well"

    instance.run("halt", "alone")
    assert _cpus_of(instance, "other") == every
    assert not registry.REGISTRY.exists() or "alone" not in registry.REGISTRY.read_text()


@pytest.mark.requires("cpus")
def test_the_zones_of_a_pool_share_its_cpus(instance: Instance) -> None:
    every = set(cpus.online())
    first, last = min(every), max(every)
    instance.layout.settings.parent.mkdir(parents=True, exist_ok=True)
    instance.layout.settings.write_text(f'[pools]\nbatch = "{first}"\nrest = "{last}"\n')
    for name in ("one", "two"):
        installed(instance, name, 'pool = "batch"\n')
        assert "WARNING" not in instance.run("boot", name).stderr
        assert _cpus_of(instance, name) == {first}
    assert applied(instance, "one")["pool"]["effective"] == str(first)
    installed(instance, "alone", f'[dedicated-cpu]\ncpus = "{last}"\n')
    instance.run("boot", "alone")
    assert _cpus_of(instance, "one") == {first}, "what is dedicated to another one moves nobody out of its pool"
    instance.run("halt", "alone")
    assert _cpus_of(instance, "one") == {first}
    # In a living zone, there and back; a limit that is changed meanwhile keeps it there.
    instance.run("config", "one", "set pool=rest; set max-lwps=300")
    instance.run("apply", "one")
    assert (_cpus_of(instance, "one"), _cpus_of(instance, "two")) == ({last}, {first})
    instance.run("config", "one", "clear pool")
    instance.run("apply", "one")
    assert _cpus_of(instance, "one") == every
    instance.run("config", "one", "set pool=batch")
    instance.run("apply", "one")
    assert _cpus_of(instance, "one") == {first}
    instance.run("reboot", "two")
    assert _cpus_of(instance, "two") == {first}
    instance.run("halt", "one", "two")
    assert not registry.REGISTRY.exists() or instance.suffix not in registry.REGISTRY.read_text()


@pytest.mark.requires("cpus")
def test_a_pool_that_is_not_there_is_a_warning(instance: Instance) -> None:
    """And one whose CPUs the host lacks: the zone has those that all have."""
    every = set(cpus.online())
    instance.layout.settings.parent.mkdir(parents=True, exist_ok=True)
    instance.layout.settings.write_text('[pools]\nbatch = "4000-4001"\n')
    for pool in ("nowhere", "batch"):
        installed(instance, pool, f'pool = "{pool}"\n')
        warned = instance.run("boot", pool).stderr
        assert f"WARNING: unable to bind to pool '{pool}'; using default pool: [pools] in zonemgr.toml" in warned
        assert _cpus_of(instance, pool) == every
        assert applied(instance, pool)["pool"]["problem"]
    instance.layout.settings.write_text('pools = "0"\n')
    refused = instance.run("create", "more", check=1).stderr
    assert "zonemgr.toml: line 1: pools must be a table of names and CPUs" in refused


def test_a_pool_that_is_not_there_is_told_before_the_boot(instance: Instance) -> None:
    """As a warning where the zone is configured, since the settings may follow; ``verify`` fails."""
    settings = instance.layout.settings
    settings.parent.mkdir(parents=True, exist_ok=True)
    settings.write_text(f'[pools]\nbatch = "{min(cpus.online())}"\nfar = "4000-4001"\n')
    wrong = f"pool 'bath': [pools] in {settings} names no CPU for it that this host has (did you mean 'batch'?)"
    assert f"WARNING: {wrong}" in instance.run("create", "web", "pool=bath").stderr
    assert "WARNING: pool 'far': " in instance.run("config", "web", "set pool=far").stderr
    refused = instance.run("verify", "web", check=1).stderr
    assert f"pool 'far': [pools] in {settings} names no CPU for it that this host has\n" in refused
    assert "zone web failed to verify" in refused
    assert "WARNING: pool 'far': " in instance.run("install", "web").stderr
    assert "pool" not in instance.run("config", "web", "set pool=batch").stderr
    assert "pool" not in instance.run("verify", "web").stderr
    folder = settings.parent / "declared"
    folder.mkdir()
    (folder / "web.toml").write_text(instance.layout.config("web").read_text().replace('"batch"', '"bath"'))
    assert f"WARNING: {wrong}" in instance.run("apply", "-F", "-f", str(folder)).stderr


@pytest.mark.requires("cpus")
def test_a_pool_keeps_off_what_is_dedicated(instance: Instance) -> None:
    every = set(cpus.online())
    last = max(every)
    spelt = ",".join(map(str, sorted(every)))
    instance.layout.settings.parent.mkdir(parents=True, exist_ok=True)
    instance.layout.settings.write_text(f'[pools]\nwide = "{spelt}"\nlast = "{last}"\n')
    installed(instance, "wide", 'pool = "wide"\n')
    installed(instance, "last", 'pool = "last"\n')
    installed(instance, "alone", f'[dedicated-cpu]\ncpus = "{last}"\n')
    for name in ("wide", "last", "alone"):
        instance.run("boot", name)
    assert _cpus_of(instance, "alone") == {last}
    assert _cpus_of(instance, "wide") == _cpus_of(instance, "last") == every - {last}
    instance.run("reboot", "last")
    assert _cpus_of(instance, "last") == every - {last}
    instance.run("halt", "alone")
    assert (_cpus_of(instance, "wide"), _cpus_of(instance, "last")) == (every, {last})


@pytest.mark.requires("cpus")
def test_a_living_zone_gets_cpus_of_its_own_and_gives_them_back(instance: Instance) -> None:
    every = set(cpus.online())
    instance.running("alone")
    instance.running("other")
    instance.run("config", "alone", "add", "dedicated-cpu", "ncpus=1")
    instance.run("apply", "alone")
    (mine,) = _cpus_of(instance, "alone")
    assert _cpus_of(instance, "other") == every - {mine}
    instance.run("config", "alone", "remove", "dedicated-cpu")
    instance.run("apply", "alone")
    assert _cpus_of(instance, "alone") == _cpus_of(instance, "other") == every
    instance.run("halt", "alone")
    instance.run("halt", "other")


@pytest.mark.requires("cpus")
def test_cpus_that_are_not_there_are_refused_and_nothing_stays(instance: Instance) -> None:
    every = len(cpus.online())
    installed(instance, "web", f'[dedicated-cpu]\nncpus = "{every}"\n')
    done = instance.run("boot", "web", check=1)
    wrong = f"ncpus {every}: {every} CPUs are wanted and {every - 1} are free\n"
    assert wrong in done.stderr
    assert f"zone 'web': dedicated-cpu: {wrong}" in instance.run("verify", "web", check=1).stderr
    assert "dedicated-cpu setting cannot be instantiated" in done.stderr
    assert instance.state() == "installed"


@pytest.mark.requires("cpus")
def test_verify_tells_of_cpus_that_another_zone_has(instance: Instance) -> None:
    """Its own are free to itself; best effort makes it a warning, and a reboot is refused before the zone is down."""
    last = max(cpus.online())
    for name in ("one", "two"):
        installed(instance, name, f'[dedicated-cpu]\ncpus = "{last}"\n')
        assert "dedicated-cpu" not in instance.run("verify", name).stderr
    instance.run("boot", "one")
    assert "dedicated-cpu" not in instance.run("verify", "one").stderr
    wrong = f"dedicated-cpu: cpus {last}: CPUs {last} are not free\n"
    assert f"zone 'two': {wrong}" in instance.run("verify", "two", check=1).stderr
    instance.run("config", "two", "set best-effort=true")
    assert f"WARNING: {wrong}" in instance.run("verify", "two").stderr
    instance.run("config", "one", "select dedicated-cpu; set cpus=4000; end")
    assert "dedicated-cpu: cpus 4000: the host has no cpus 4000" in instance.run("reboot", "one", check=1).stderr
    assert _cpus_of(instance, "one") == {last}


def test_verify_warns_of_a_user_whom_the_host_does_not_know(instance: Instance) -> None:
    users = "".join(f'[[admin]]\nuser = "{user}"\nauths = ["login"]\n' for user in ("nosuch", "root"))
    installed(instance, "web", users)
    said = instance.run("verify", "web").stderr
    assert "zone 'web': WARNING: admin: this host knows no user 'nosuch'\n" in said
    assert "'root'" not in said


def _quota_holds(instance: Instance, point: Path) -> None:
    instance.installed("web", f"zonepath={point}/web", "quota=8M")
    instance.run("boot", "web")
    write = "import os, sys; open('/root/' + sys.argv[1], 'wb', 0).write(os.urandom(int(sys.argv[2]) << 20)); os.sync()"
    instance.login("web", "python3", "-c", write, "small", "2")
    instance.login("web", "python3", "-c", write, "big", "12", check=False)
    assert Path(point, "web/root/root/big").stat().st_size < 8 << 20
    assert applied(instance, "web")["quota"]["effective"] == 8 << 20
    instance.run("halt", "web")
    instance.run("config", "web", "clear", "quota")
    instance.run("boot", "web")
    instance.login("web", "python3", "-c", write, "big", "12")
    instance.run("halt", "web")
    instance.run("uninstall", "web", "-F")
    instance.run("delete", "web", "-F")


@pytest.mark.requires("quota")
def test_a_quota_of_a_project_holds(instance: Instance, tmp_path: Path) -> None:
    options = ("-O", "project,quota")
    with disks.mounted("ext4", tmp_path / "disk", *options, size="64M", mount="prjquota") as point:
        _quota_holds(instance, point)


@pytest.mark.requires("xfs_quota")
def test_a_quota_of_a_project_holds_on_xfs(instance: Instance, tmp_path: Path) -> None:
    with disks.mounted("xfs", tmp_path / "disk", mount="prjquota") as point:
        _quota_holds(instance, point)


@pytest.mark.requires("btrfs")
def test_a_quota_of_a_subvolume_holds(instance: Instance, tmp_path: Path) -> None:
    with disks.mounted("btrfs", tmp_path / "disk") as point:
        subprocess.run(["btrfs", "quota", "enable", str(point)], check=True)
        _quota_holds(instance, point)


def test_a_quota_that_the_file_system_cannot_hold_refuses_the_boot(instance: Instance) -> None:
    instance.installed("web", "quota=8M")
    done = instance.run("boot", "web", check=1)
    assert "cannot apply the limit quota=8388608: the file system of" in done.stderr
    assert instance.state() == "installed"


def test_a_zone_that_dies_of_its_memory_says_so(instance: Instance) -> None:
    """A process of the image brand's kind: init itself is what is killed."""
    installed(instance, "web", '[capped-memory]\nphysical = "64M"\nswap = "64M"\n')
    instance.run("boot", "web")
    instance.login("web", "python3", "-c", "bytearray(b'x') * (200 << 20)", check=137)
    init = json.loads(instance.layout.instance("web").read_text())["init"]["pid"]
    os.kill(init, 9)
    until(lambda: instance.state("web") == "installed", "the zone is down")
    events = [json.loads(line) for line in (instance.layout.run / "events.jsonl").read_text().splitlines()]
    (ended,) = [event for event in events if event["type"] == "init"]
    assert ended["oom_kills"] >= 1 and "memory" in ended["ended"]
    assert "out of memory" in (instance.layout.zone_log("web") / "supervisor.log").read_text()


FILLS = """
import sys
with open("/root/file", "wb") as file:
    for _ in range(96):
        file.write(bytes(1 << 20))
kept = [bytearray(b"x") * (1 << 20) for _ in range(int(sys.argv[1]))]
print(flush=True)
sys.stdin.readline()
print(len(kept))
"""


def test_a_cap_below_what_a_living_zone_uses_takes_its_caches_and_kills_nobody(instance: Instance) -> None:
    """Both caps, on either kind of control groups."""
    installed(instance, "web", '[capped-memory]\nphysical = "192M"\nswap = "192M"\n')
    instance.run("boot", "web")

    def changed(size: str, check: int = 0) -> str:
        instance.run("config", "web", f"select capped-memory; set physical={size}; set swap={size}; end")
        return instance.run("apply", "web", check=check).stderr

    with instance.popen("login", "web", "--", "python3", "-c", FILLS, "80", stdin=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stdout.readline() == "\n", child.communicate()
        assert instance.json("stat", "web")["zones"][0]["physical-memory"]["used"] > 150 << 20
        changed("128M")
        assert applied(instance, "web")["capped-memory physical"]["effective"] == 128 << 20
        said = changed("64M", check=1)
        assert "the zone uses " in said and "what had been applied is taken back" in said
        assert applied(instance, "web")["capped-memory swap"]["effective"] == 128 << 20
        assert child.communicate("\n")[0] == "80\n"
    changed("64M")
    assert instance.json("stat", "web")["zones"][0]["physical-memory"]["used"] <= 64 << 20
    instance.run("halt", "web")


def test_limits_of_a_living_zone_change_and_what_processes_chose_stays(instance: Instance) -> None:
    installed(instance, "web", SETTINGS)
    instance.run("boot", "web")
    code = "import resource, sys; r = resource.RLIMIT_NOFILE; own = sys.argv[1:]\n"
    code += "resource.setrlimit(r, (50, 60)) if own else None\nprint(flush=True); input(); print(resource.getrlimit(r))"
    words = ("login", "web", "--", "python3", "-c", code)
    with (
        instance.popen(*words, stdin=subprocess.PIPE) as plain,
        instance.popen(*words, "own", stdin=subprocess.PIPE) as own,
    ):
        assert plain.stdout is not None and own.stdout is not None
        plain.stdout.readline()
        own.stdout.readline()
        file = instance.layout.config("web")
        text = file.read_text().replace('soft = "300"\nhard = "400"', 'soft = "200"\nhard = "250"')
        text = text.replace("max-lwps = 100", "max-lwps = 120").replace(
            "oom-score-adj = 300", "oom-score-adj = 400"
        )
        text = text.replace('write-bps = "2M"\n', "").replace("max-shm-ids = 5\n", "")
        file.write_text(text)
        instance.run("apply", "web")
        assert plain.communicate("\n")[0] == "(200, 250)\n"
        assert own.communicate("\n")[0] == "(50, 60)\n"
    limits = applied(instance, "web")
    assert limits["max-lwps"]["effective"] == 120 and "max-shm-ids" not in limits
    assert limits["rlimit nofile"]["effective"] == "200:250"
    (throttle,) = limits["capped-io"]["effective"]
    assert "write-bps" not in throttle and "read-iops=5000" in throttle
    code = "import resource; print(resource.getrlimit(resource.RLIMIT_NOFILE), open('/proc/self/oom_score_adj').read())"
    assert instance.login("web", "python3", "-c", code).split() == ["(200,", "250)", "400"]
