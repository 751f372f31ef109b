"""A zone that takes all it can get leaves the host able to work."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.kit.instance import Instance
from tests.root.attacks.inside import ask
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
    from tests.root.attacks.inside import PRELUDE

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
def test_a_fork_bomb_stops_at_the_limit_and_dies_with_the_zone(web: Instance) -> None:
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
