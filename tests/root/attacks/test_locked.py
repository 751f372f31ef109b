"""Root of a zone cannot loosen what the host mounted for it: nothing becomes writable, vanishes, or is laid bare."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.kit.instance import Instance
from tests.root.attacks.inside import ask

pytestmark = pytest.mark.requires("root", "userns", "mount", "net", "cgroup")

ATTACK_ALL = """
points = [line.split()[4] for line in open("/proc/self/mountinfo") if " - " in line]
read_only = {line.split()[4] for line in open("/proc/self/mountinfo") if "ro" in line.split()[5].split(",")}
os.makedirs("/tmp/here", exist_ok=True)

class Attributes(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "userns_fd")]

def clear(point, flag):
    return system(442, ctypes.c_long(-100), point, 0, ctypes.byref(Attributes(clear=flag)), 32)

answer({
    "points": sorted(points),
    "read_only": sorted(read_only),
    "remounted": [p for p in read_only if not mount(None, p, None, REMOUNT | BIND)],
    "remounted again": [p for p in read_only if not mount(None, p, None, REMOUNT | BIND | NOSUID | NODEV | NOEXEC)],
    "cleared": [p for p in read_only if not clear(p, RDONLY)],
    "super block": [p for p in points if not mount(None, p, None, REMOUNT | NOSUID | NODEV, "")
                    and p in ("/", "/usr", "/proc", "/sys")],
    "nodev cleared": [p for p in ("/", "/usr", "/usr/local") if not clear(p, NODEV)],
    "unmounted": [p for p in points if not call("umount2", p, 2)],
    "moved": [p for p in points if not mount(p, "/tmp/here", None, MOVE)],
})
"""


@pytest.mark.attack("unsharing, mounting and remounting", "CVE-2022-0185")
def test_no_mount_of_the_host_can_be_made_writable_moved_or_taken_off(web: Instance) -> None:
    seen = ask(web, ATTACK_ALL)
    assert {"/", "/usr", "/proc", "/sys", "/proc/keys", "/dev"} <= set(seen.pop("points"))
    assert {"/usr", "/sys", "/usr/local/sbin/init", "/run/host", "/proc/bus"} <= set(seen.pop("read_only"))
    # What came into the running zone is its to take off: below it is the zone's own file, nothing of the host's.
    assert set(seen.pop("unmounted")) <= {"/etc/hosts"}
    assert not any(seen.values()), seen


@pytest.mark.attack("nested user namespaces", "CVE-2022-0185")
def test_masked_files_are_not_laid_bare_by_another_view_of_them(web: Instance) -> None:
    program = """
os.makedirs("/tmp/view", exist_ok=True)
def shows(*arguments):
    error = mount(*arguments)
    if not error:
        call("umount2", "/tmp/view", 2)
    return error
seen = {
    "bind of proc": shows("/proc", "/tmp/view", None, BIND),
    "bind of sys": shows("/sys", "/tmp/view", None, BIND),
    "bind of the root": shows("/", "/tmp/view", None, BIND),
    "proc": shows("proc", "/tmp/view", "proc"),
    "sysfs": shows("sysfs", "/tmp/view", "sysfs"),
}
libc.unshare(NEWUSER | NEWNS | NEWPID)
if os.fork() == 0:
    seen["proc of namespaces of its own"] = mount("proc", "/tmp/view", "proc")
    seen["sysfs of namespaces of its own"] = mount("sysfs", "/tmp/view", "sysfs")
    seen["unmount in a namespace of its own"] = call("umount2", "/proc/keys", 2)
    seen["remount in a namespace of its own"] = mount(None, "/usr", None, REMOUNT | BIND)
    answer(seen)
    os._exit(0)
os.wait()
"""
    seen = ask(web, program)
    assert all(seen.values()), seen


@pytest.mark.attack("unsharing, mounting and remounting")
def test_what_the_masks_hide_is_empty_also_through_a_recursive_bind(web: Instance) -> None:
    program = """
os.makedirs("/tmp/view", exist_ok=True)
error = mount("/proc", "/tmp/view", None, BIND | REC)
content = {}
for top in ("/proc", "/tmp/view"):
    for name in ("kcore", "keys", "timer_list", "sysrq-trigger", "latency_stats"):
        try:
            content[top + "/" + name] = open(top + "/" + name, "rb").read(100).decode("latin-1")
        except OSError as failure:
            content[top + "/" + name] = ""
    content[top + "/acpi"] = "".join(os.listdir(top + "/acpi")) if os.path.isdir(top + "/acpi") else ""
call("umount2", "/tmp/view", 2)
answer([error, content])
"""
    error, content = ask(web, program)
    assert error == ""
    assert set(content.values()) == {""}


@pytest.mark.attack("writing to files of the host", "CVE-2022-0847")
def test_files_of_the_host_stay_as_they_are(web: Instance) -> None:
    victims = [os.path.realpath(path) for path in ("/usr/bin/env", "/usr/bin/python3")]
    program = f"""
def attack(path):
    return [attempt(act) for act in (
        lambda: open(path, "r+b").close(),
        lambda: open(path, "wb").close(),
        lambda: os.chmod(path, 0o4777),
        lambda: os.chown(path, 1, 1),
        lambda: os.unlink(path),
        lambda: os.rename(path, path + ".old"),
        lambda: os.utime(path, (1, 1)),
        lambda: os.setxattr(path, "security.capability", bytes.fromhex("0100000200000000000000000000000000000000")),
        lambda: os.truncate(path, 0),
        lambda: os.symlink("/etc", os.path.dirname(path) + "/planted"),
    )]
answer([attack(path) for path in {victims}])
"""
    before = [os.stat(path) for path in victims]
    seen = ask(web, program)
    assert all(error for errors in seen for error in errors), seen
    after = [os.stat(path) for path in victims]
    assert [(s.st_mtime_ns, s.st_ctime_ns, s.st_mode, s.st_size) for s in after] == [
        (s.st_mtime_ns, s.st_ctime_ns, s.st_mode, s.st_size) for s in before
    ]
    assert not Path("/usr/bin/planted").exists()


@pytest.mark.attack("devices of the host")
def test_devices_can_be_used_and_those_of_the_host_not_changed(web: Instance) -> None:
    names = ("null", "zero", "full", "random", "urandom", "tty")
    before = [os.stat(f"/dev/{name}") for name in names]
    program = f"""
open("/dev/null", "w").write("x")
answer(len(open("/dev/zero", "rb").read(7)))
for path in ["/dev/" + name for name in {names}]:
    mode = os.stat(path).st_mode
    attempt(os.utime, path, (1, 1))
    attempt(os.chmod, path, 0)
    attempt(os.chmod, path, stat.S_IMODE(mode))
    attempt(os.chown, path, 7, 7)
    attempt(os.chown, path, 0, 0)
"""
    assert ask(web, program) == 7
    after = [os.stat(f"/dev/{name}") for name in names]
    assert [(s.st_mode, s.st_uid, s.st_ctime_ns) for s in after] == [
        (s.st_mode, s.st_uid, s.st_ctime_ns) for s in before
    ]


@pytest.mark.attack("unsharing, mounting and remounting")
def test_mounts_of_the_zone_do_not_reach_the_host(web: Instance) -> None:
    before = Path("/proc/self/mountinfo").read_text()
    ask(web, 'os.makedirs("/mnt/own", exist_ok=True); answer(mount("own", "/mnt/own", "tmpfs"))')
    after = Path("/proc/self/mountinfo").read_text()
    assert [line for line in after.splitlines() if "/mnt/own" in line] == []
    assert "/mnt/own" not in before
