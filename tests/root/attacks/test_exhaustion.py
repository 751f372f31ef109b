"""A zone that takes all it can get leaves the host able to work."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.kit.instance import Instance
from tests.kit.waiting import until
from tests.root.attacks.inside import PRELUDE, ask
from zonemgr.linux.cgroup.usage import oom_kills
from zonemgr.linux.inotify import Inotify
from zonemgr.store import instance as instances

pytestmark = pytest.mark.requires("root", "userns", "mount", "net", "cgroup")

HELD = """
kinds = {}
descriptors = []
def until_refused(kind, make, most=100000):
    for count in range(most):
        try:
            descriptors.append(make())
        except OSError as error:
            kinds[kind] = [count, errno.errorcode[error.errno]]
            return
    kinds[kind] = [most, ""]
import resource
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
until_refused("inotify", lambda: checked(libc.inotify_init()))
until_refused("files", lambda: os.open("/dev/null", os.O_RDONLY), 20000)
print(json.dumps(kinds), flush=True)
sys.stdin.read()
"""
CHECKED = """
def checked(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), "inotify")
    return result
"""


@pytest.mark.attack("exhausting the host")
def test_what_one_zone_holds_of_watches_and_files_the_host_still_has(web: Instance) -> None:
    """The kernel counts both for each user; root of a zone is a user of its own."""
    with web.popen("login", "web", "--", "python3", "-c", PRELUDE + CHECKED + HELD, stdin=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdin is not None
        line = holder.stdout.readline()
        assert '"inotify"' in line, line
        watch = Inotify(Path("/tmp"))
        watch.close()
        kept = [os.open("/dev/null", os.O_RDONLY) for _ in range(100)]
        for descriptor in kept:
            os.close(descriptor)
        assert subprocess.run(["sh", "-c", "exec 9</dev/null; true"]).returncode == 0
        holder.stdin.close()
        holder.wait()


@pytest.mark.attack("exhausting the host")
def test_a_zone_that_says_nothing_has_a_limit_on_its_processes(web: Instance) -> None:
    record = instances.read(web.layout, "web")
    assert record is not None
    files = [Path(folder, "pids.max") for folder in (record.cgroup, *record.cgroups_v1)]
    limits = [int(text) for file in files if file.exists() and (text := file.read_text().strip()) != "max"]
    assert limits, "a zone without a limit on its processes can take all of the host's"
    assert min(limits) <= int(Path("/proc/sys/kernel/threads-max").read_text()) // 2


@pytest.mark.attack("exhausting the host")
def test_a_zone_cannot_raise_its_own_limits(web: Instance) -> None:
    program = """
import resource
def raised(kind):
    hard = resource.getrlimit(kind)[1]
    if hard == resource.RLIM_INFINITY:
        return "EPERM"
    return attempt(lambda: resource.setrlimit(kind, (hard + 1, hard + 1)))
score = open("/proc/self/oom_score_adj").read().strip()
answer([attempt(write, "/proc/self/oom_score_adj", "-1000"), attempt(os.nice, -5),
        system(144, 0, 1, ctypes.byref(ctypes.c_int(50)))])
"""
    score, _nice, realtime = ask(web, program)
    assert score == "EACCES"
    assert realtime == "EPERM"


MEMORY = 160 << 20
# Takes memory in small steps, each of which is touched; says how far it came, from a child, since it does not return.
HOARD = """
step, most = 8 << 20, %d
reader, writer = os.pipe()
if os.fork() == 0:
    kept = []
    while len(kept) * step < most:
        kept.append(b"x" * step)
        os.write(writer, b".")
    os._exit(0)
os.close(writer)
_pid, status = os.wait()
said = b"".join(iter(lambda: os.read(reader, 4096), b""))
answer([len(said) * step, os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0])
"""
# Each process begets others until it is refused, and then goes on trying.  It tells once that it was refused.
BOMB = """
told = False
print("begun", flush=True)
while True:
    try:
        os.fork()
    except OSError as error:
        if not told:
            os.write(1, (errno.errorcode[error.errno] + chr(10)).encode())
            told = True
        time.sleep(0.05)
"""
THREADS = 300


@contextmanager
def booted(installed: Instance) -> Iterator[Instance]:
    installed.run("boot", "web")
    try:
        yield installed
    finally:
        installed.run("halt", "web")


@pytest.mark.attack("exhausting the host")
def test_a_zone_that_takes_all_memory_loses_its_own_process_and_the_host_none(installed: Instance) -> None:
    installed.run("config", "web", f"add capped-memory; set physical={MEMORY}; set swap={MEMORY}; end")
    try:
        with booted(installed):
            came, signal_number = ask(installed, HOARD % (8 * MEMORY))
            assert signal_number == 9 and 0 < came < MEMORY
            record = instances.read(installed.layout, "web")
            assert record is not None and record.zsched is not None and record.zsched.alive
            assert oom_kills(record.cgroup, record.cgroups_v1) >= 1
            assert installed.state() == "running"
            assert installed.login("web", "echo", "lives").strip() == "lives"
    finally:
        installed.run("config", "web", "remove -F capped-memory")


@pytest.mark.attack("exhausting the host")
def test_a_fork_bomb_stops_at_the_default_limit_and_dies_with_the_zone(installed: Instance) -> None:
    """With few threads, so that it goes off in no time; how many there are without is another test's."""
    installed.layout.settings.write_text(f"default-max-lwps = {THREADS}\n")
    try:
        installed.run("boot", "web")
        words = ("login", "web", "--", "python3", "-c", PRELUDE + "import time\n" + BOMB)
        with installed.popen(*words) as bomb:
            try:
                assert bomb.stdout is not None
                assert [bomb.stdout.readline(), bomb.stdout.readline()] == ["begun\n", "EAGAIN\n"]
                record = instances.read(installed.layout, "web")
                assert record is not None
                folders = (record.cgroup, *record.cgroups_v1)
                held = until(lambda: max(map(_processes, folders)), "the bomb to be counted")
                assert THREADS - 20 <= held <= THREADS
                assert subprocess.run(["true"]).returncode == 0  # the host can still fork
                assert installed.state() == "running"
                installed.run("halt", "web")
                assert bomb.wait(30) != 0
            finally:
                bomb.kill()
                installed.run("halt", "web")
        assert installed.state() == "installed"
        assert not Path(record.cgroup).exists()
    finally:
        installed.layout.settings.unlink()


def _processes(folder: str) -> int:
    try:
        return int(Path(folder, "pids.current").read_text())
    except FileNotFoundError:
        return 0
