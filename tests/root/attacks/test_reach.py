"""What root of a running zone reaches of the host: nothing of its processes, settings, devices, keys and groups."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.instance import Instance
from tests.kit.leaks import cgroup_roots
from tests.kit.processes import Started
from tests.root.attacks.inside import ask

pytestmark = pytest.mark.requires("root", "userns", "mount", "net", "cgroup")

# What belongs to namespaces of the zone's own; what a kernel does not separate it refuses by itself.
OWN_SETTINGS = (
    *("net/", "user/", "fs/mqueue/", "kernel/msg", "kernel/sem", "kernel/shm", "kernel/auto_msgmni"),
    *("kernel/ns_last_pid", "kernel/pid_max", "kernel/domainname", "kernel/hostname"),
)


@pytest.mark.attack("core_pattern and other settings of the kernel", "CVE-2022-0811", "CVE-2025-52881")
def test_no_setting_of_the_host_can_be_written(web: Instance) -> None:
    host = {
        name: Path("/proc/sys", name).read_text()
        for name in ("kernel/core_pattern", "kernel/modprobe", "kernel/sysrq", "vm/overcommit_memory")
        if Path("/proc/sys", name).exists()
    }
    program = """
opened = []
for folder, _, files in os.walk("/proc/sys"):
    for file in files:
        path = os.path.join(folder, file)
        if not attempt(lambda: os.close(os.open(path, os.O_WRONLY))):
            opened.append(path.removeprefix("/proc/sys/"))
for path, text in (("core_pattern", "|/tmp/x"), ("modprobe", "/tmp/x"), ("sysrq", "1")):
    attempt(write, "/proc/sys/kernel/" + path, text)
answer([opened, attempt(write, "/proc/sysrq-trigger", "h"), attempt(write, "/proc/1/oom_score_adj", "-1000")])
"""
    opened, trigger, score = ask(web, program)
    assert [name for name in opened if not name.startswith(OWN_SETTINGS)] == []
    assert trigger or not Path("/proc/sysrq-trigger").exists()
    assert score
    assert {name: Path("/proc/sys", name).read_text() for name in host} == host


@pytest.mark.attack("core_pattern and other settings of the kernel")
def test_sysfs_cannot_be_written(web: Instance) -> None:
    program = """
found = []
for folder, names, files in os.walk("/sys"):
    if folder == "/sys/fs":
        names[:] = [name for name in names if name != "cgroup"]
    if folder.count("/") > 4:
        names.clear()
    for file in files:
        path = os.path.join(folder, file)
        if not os.path.islink(path) and not attempt(lambda: os.close(os.open(path, os.O_WRONLY))):
            found.append(path)
answer(found)
"""
    assert ask(web, program) == []


@pytest.mark.attack("processes of the host")
def test_processes_of_the_host_are_neither_seen_nor_signalled_nor_traced(web: Instance) -> None:
    # The host's numbers begin anew now and then; the victim's is to be none that the zone has reached.
    reached = int(web.login("web", "sh", "-c", "echo $$")) + 100
    while subprocess.run(["sh", "-c", f"test $$ -gt {reached}"]).returncode:
        pass
    with Started(["sleep", "1000"]) as victim:
        program = f"""
victim = {victim.pid}
answer({{
    "proc": os.path.exists("/proc/%d" % victim),
    "signal": attempt(os.kill, victim, 9),
    "trace": system(101, ctypes.c_long(16), ctypes.c_long(victim), None, None),
    "pidfd": system(434, ctypes.c_long(victim), 0),
    "mine": max(int(name) for name in os.listdir("/proc") if name.isdigit()),
    "parent of init": open("/proc/1/stat").read().rpartition(")")[2].split()[1],
}})
"""
        seen = ask(web, program)
        alive = victim.poll() is None
        victim.kill()
    assert alive
    assert seen["mine"] < victim.pid
    assert (seen["proc"], seen["signal"], seen["trace"], seen["pidfd"]) == (False, "ESRCH", "ESRCH", "ESRCH")
    assert seen["parent of init"] == "0"


@pytest.mark.attack("devices of the host")
def test_no_device_of_the_host_can_be_made_or_mounted(web: Instance) -> None:
    program = """
os.makedirs("/tmp/disk", exist_ok=True)
made = [attempt(os.mknod, place + "/disk", stat.S_IFBLK | 0o600, os.makedev(major, minor))
        for place in ("/dev", "/tmp", "/srv", "/run", "/dev/shm")
        for major, minor in ((8, 0), (254, 0), (7, 0), (1, 1))]
made += [attempt(os.mknod, "/dev/mem", stat.S_IFCHR | 0o600, os.makedev(1, 1))]
mounted = [mount(source, "/tmp/disk", kind) for source in ("/dev/vda", "/dev/sda", "/srv/image")
           for kind in ("ext4", "vfat", "squashfs")]
mounted += [mount("none", "/tmp/disk", kind) for kind in ("debugfs", "tracefs", "securityfs", "devtmpfs", "configfs",
            "pstore", "bpf", "efivarfs", "binfmt_misc") if kind != "bpf" and kind != "binfmt_misc"]
answer([made, mounted, [name for name in os.listdir("/dev") if stat.S_ISBLK(os.lstat("/dev/" + name).st_mode)]])
"""
    made, mounted, blocks = ask(web, program)
    assert all(made), made
    assert all(mounted), mounted
    assert blocks == []


@pytest.mark.attack("modules, files by number, keys and other calls on the one kernel")
def test_calls_that_act_on_the_one_kernel_are_refused(web: Instance) -> None:
    program = """
numbers = {"kexec_load": 246, "init_module": 175, "finit_module": 313, "delete_module": 176, "bpf": 321,
           "perf_event_open": 298, "syslog": 103, "swapon": 167, "swapoff": 168, "iopl": 172, "ioperm": 173,
           "open_by_handle_at": 304, "quotactl": 179, "acct": 163, "settimeofday": 164, "clock_settime": 227,
           "add_key": 248, "request_key": 249, "keyctl": 250, "userfaultfd": 323, "io_uring_setup": 425}
if os.uname().machine != "x86_64":
    numbers = {}
answer({name: system(number, 0, 0, 0, 0, 0) for name, number in numbers.items()})
"""
    seen = ask(web, program)
    assert set(seen.values()) <= {"EPERM", "ENOSYS"}, seen


@pytest.mark.attack("typing into terminals (TIOCSTI)", "CVE-2016-10124", "CVE-2017-5226")
def test_a_terminal_takes_no_input_that_the_zone_makes_up(web: Instance) -> None:
    program = """
import fcntl
master, slave = os.openpty()
fcntl.ioctl(slave, 0x540E, 0)
def push(request):
    return attempt(lambda: fcntl.ioctl(slave, request, b"x"))
answer([push(0x5412), system(16, slave, ctypes.c_ulong(0x1_0000_5412), b"x"), push(0x541C)])
"""
    assert ask(web, program) == ["EPERM", "EPERM", "EPERM"]


@pytest.mark.attack("reboot(2)")
def test_commands_of_reboot_that_steer_the_host_are_refused(web: Instance) -> None:
    """Ctrl-Alt-Del, suspend, a loaded kernel.  Restart and halt end the zone alone (tests of its life show it)."""
    program = """
number = 169 if os.uname().machine == "x86_64" else 142
commands = (0x89ABCDEF, 0, 0xD000FCE2, 0x45584543)
answer([system(number, ctypes.c_ulong(0xFEE1DEAD), ctypes.c_ulong(672274793), ctypes.c_ulong(command), None)
        for command in commands])
"""
    assert set(ask(web, program)) <= {"EINVAL", "EPERM"}


# -- control groups ---------------------------------------------------------------------------------------------


@pytest.fixture
def neighbour(web: Instance) -> Iterator[str]:
    """A control group of the host beside the zone's, in every hierarchy."""
    name = f"zonemgr-neighbour-{secrets.token_hex(4)}"
    made = []
    for root in cgroup_roots():
        try:
            (root / name).mkdir()
            made.append(root / name)
        except OSError:
            continue
    yield name
    for folder in made:
        folder.rmdir()


@pytest.mark.attack("release agents and control groups of the host", "CVE-2022-0492", "CVE-2023-25809")
def test_control_groups_of_the_host_are_out_of_sight_and_reach(web: Instance, neighbour: str) -> None:
    """CVE-2022-0492: in a user and a cgroup namespace of one's own, mount a v1 hierarchy, set its release agent."""
    program = f"""
neighbour = {neighbour!r}
def look(where):
    os.makedirs("/tmp/group", exist_ok=True)
    seen = {{}}
    names = "memory pids cpu cpuset devices freezer blkio rdma none,name=systemd none,name=x"
    for kind, options in [("cgroup2", None)] + [("cgroup", name) for name in names.split()]:
        error = mount("none", "/tmp/group", kind, 0, options)
        if error:
            continue
        seen[kind + " " + str(options)] = [
            neighbour in os.listdir("/tmp/group"),
            attempt(write, "/tmp/group/release_agent", "/tmp/x"),
            attempt(write, "/tmp/group/devices.allow", "a"),
            attempt(write, "/tmp/group/memory.limit_in_bytes", "-1"),
            attempt(write, "/tmp/group/pids.max", "max"),
            any(name.startswith("zonemgr") for name in os.listdir("/tmp/group")),
        ]
        call("umount2", "/tmp/group", 2)
    return seen
first = look("zone")
libc.unshare(NEWUSER | NEWNS | NEWCGROUP)
answer([first, look("unshared"), open("/proc/self/cgroup").read()])
"""
    first, second, own = ask(web, program)
    assert "cgroup2 None" in first
    for seen in (first, second):
        for hierarchy, (neighbours, agent, devices, memory, pids, zones) in seen.items():
            assert not neighbours and not zones, hierarchy
            assert all((agent, devices, memory, pids)), (hierarchy, seen)
    assert {line.split(":", 2)[2] for line in own.splitlines()} == {"/"}


@pytest.mark.attack("release agents and control groups of the host", "CVE-2023-25809")
def test_limits_of_the_zone_cannot_be_lifted_from_inside(web: Instance) -> None:
    program = """
top = "/sys/fs/cgroup/"
may = ("cgroup.procs", "cgroup.threads", "cgroup.subtree_control")
written = [name for name in os.listdir(top) if name not in may
           and not attempt(lambda: os.close(os.open(top + name, os.O_WRONLY)))]
os.makedirs(top + "mine", exist_ok=True)
moved = attempt(write, top + "mine/cgroup.procs", str(os.getpid()))
answer([written, moved, attempt(os.listdir, top + ".."), os.path.exists(top + "../manager")])
"""
    written, moved, _above, manager = ask(web, program)
    delegated = set()
    if Path("/sys/kernel/cgroup/delegate").exists():
        delegated = set(Path("/sys/kernel/cgroup/delegate").read_text().split())
    assert set(written) <= delegated
    assert moved == ""
    assert not manager


# -- sockets ----------------------------------------------------------------------------------------------------


@pytest.mark.attack("abstract sockets", "CVE-2020-15257")
def test_abstract_sockets_of_the_host_are_not_there(web: Instance) -> None:
    name = f"zonemgr-test-{secrets.token_hex(8)}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("\0" + name)
        listener.listen()
        program = f"answer(attempt(socket.socket(socket.AF_UNIX).connect, chr(0) + {name!r}))"
        assert ask(web, program) == "ECONNREFUSED"


@pytest.mark.attack("sockets of the manager", "CVE-2020-15257")
def test_no_socket_or_folder_of_the_manager_is_in_the_zone(web: Instance) -> None:
    program = """
found = [path for path in ("/run", "/var/lib", "/etc", "/var/log") if os.path.exists(path + "/zonemgr")]
found += [line for line in open("/proc/net/unix") if "zonemgr" in line or "door" in line or "zsched" in line]
answer(found)
"""
    assert ask(web, program) == []


@pytest.mark.attack("leaked descriptors and folders")
def test_the_way_out_by_parent_folders_ends_at_the_root(web: Instance, secret: Path) -> None:
    """chroot(2) below, climb above; and through the roots, folders and descriptors of process 1."""
    program = f"""
secret = {str(secret)!r}
def readable(path):
    return os.path.exists(path)
starts = ("", "/proc/1/root", "/proc/1/cwd", "/proc/self/root", "/proc/self/cwd")
seen = {{start: readable(start + secret) for start in starts}}
os.makedirs("/tmp/jail", exist_ok=True)
top = os.open("/", os.O_RDONLY)
os.chroot("/tmp/jail")
os.fchdir(top)
for _ in range(50):
    os.chdir("..")
os.chroot(".")
seen["climbed"] = readable(secret)
seen["names"] = os.stat("/usr").st_ino > 0
answer(seen)
"""
    seen = ask(web, program)
    assert seen.pop("names") is True
    assert not any(seen.values()), seen


def test_secrets_of_the_host_are_not_in_the_zone(web: Instance) -> None:
    host_hashes = [line for line in Path("/etc/shadow").read_text().splitlines() if len(line.split(":")[1]) > 4]
    shadow = web.login("web", "cat", "/etc/shadow")
    assert not any(line in shadow for line in host_hashes)
    assert web.login("web", "sh", "-c", "cat /etc/ssh/*_key /root/.ssh/* 2>/dev/null; true") == ""
    marks = {name for name in os.environ if name.startswith(("ZONEMGR_", "SSH_", "AWS_"))}
    assert not marks & {line.split("=")[0] for line in web.login("web", "env").splitlines()}
