"""Entering a zone: a small one is made here in the safe order (M0 first, the own mount namespace last),
then attacked from inside.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.kit.waiting import until
from zonemgr.errors import PlatformError, UsageError
from zonemgr.linux import caps, enter, mounts, namespaces, passwd, paths, process, pty, seccomp
from zonemgr.linux.cgroup import detect

pytestmark = pytest.mark.requires("root", "userns", "mount", "cgroup")

BASE = 524288
KEEP = caps.ALL - {"sys_module", "sys_time"}
ENV = {"PATH": "/usr/bin:/bin", "container": "zonemgr"}
NAMESPACES = (
    namespaces.NEWUSER
    | namespaces.NEWPID
    | namespaces.NEWNET
    | namespaces.NEWUTS
    | namespaces.NEWIPC
    | namespaces.NEWCGROUP
)


@dataclass
class MiniZone:
    """A zone as far as this layer knows one: process 1, the tree, a cgroup."""

    pidfd: int
    root: Path
    cgroup: Path
    cgroup_fd: int
    init_pid: int

    def spawn(self, *argv: str, **more: Any) -> enter.Child:
        options: dict[str, Any] = {"env": ENV, "capabilities": KEEP, "cgroup_fd": self.cgroup_fd, **more}
        return enter.spawn_in_zone(self.pidfd, argv=argv, **options)

    def run(self, *argv: str, **more: Any) -> tuple[int, str]:
        """Run a command in the zone: its exit status, and what it printed."""
        read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
        null_fd = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        try:
            child = self.spawn(*argv, stdio=(null_fd, write_fd, write_fd), **more)
        except BaseException:
            os.close(read_fd)
            raise
        finally:
            os.close(write_fd)
            os.close(null_fd)
        with open(read_fd, encoding="utf-8", errors="replace") as pipe:
            text = pipe.read()
        status = child.wait()
        child.close()
        return status, text

    def shell(self, script: str, **more: Any) -> str:
        """What a shell script prints; it must succeed."""
        status, text = self.run("/bin/sh", "-c", script, **more)
        assert status == 0, text
        return text.strip()


def _attach(root_fd: int, mount_fd: int, directory: str) -> None:
    paths.make_mount_point(root_fd, directory)
    target_fd = paths.open_beneath(root_fd, directory, os.O_PATH)
    mounts.move_mount(mount_fd, target_fd)
    os.close(target_fd)
    os.close(mount_fd)


def _build(root: Path, init_pid: int, userns_fd: int) -> None:
    """In M0: the zone's tree, as the platform builds it."""
    tree_fd = mounts.open_tree(str(root))
    mounts.set_attributes(tree_fd, set=mounts.ATTR_IDMAP, userns_fd=userns_fd)
    target_fd = os.open(root, os.O_PATH)
    mounts.move_mount(tree_fd, target_fd)
    root_fd = os.open(root, os.O_PATH)
    usr_fd = mounts.open_tree("/usr")
    mounts.set_attributes(usr_fd, set=mounts.ATTR_IDMAP | mounts.ATTR_RDONLY, userns_fd=userns_fd)
    _attach(root_fd, usr_fd, "/usr")
    for kind in ("net", "ipc", "cgroup", "pid"):
        ns_fd = namespaces.open_ns(init_pid, kind)
        namespaces.setns(ns_fd, namespaces.KINDS[kind])
        os.close(ns_fd)
    options = {"mode": "620", "ptmxmode": "666", "gid": str(BASE + 5)}
    _attach(root_fd, mounts.make_filesystem("devpts", options), "/dev/pts")
    pid = process.fork()  # the pid namespace is for children
    if pid == 0:
        try:
            _attach(root_fd, mounts.make_filesystem("proc", {}), "/proc")
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
    os.fchdir(root_fd)
    mounts.pivot_root(".", ".")
    mounts.unmount(".", mounts.DETACH)
    mounts.set_propagation("/", mounts.SHARED, recursive=True)


def _stub(go_fd: int, ready_fd: int) -> None:
    """Process 1: obeys two words, then only waits."""
    try:
        process.set_dumpable(False)
        process.close_fds([2, go_fd, ready_fd])
        os.read(go_fd, 1)
        os.setgroups([])
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
        namespaces.set_hostname("mini")
        os.write(ready_fd, b"i")
        os.read(go_fd, 1)
        namespaces.unshare(namespaces.NEWNS)
        os.chdir("/")
        os.write(ready_fd, b"s")
        while True:
            signal.pause()
    finally:
        os._exit(1)


def _manage(root: Path, cgroup_fd: int, say_fd: int, go: tuple[int, int], ready: tuple[int, int]) -> None:
    """The manager: M0 with host credentials, process 1 in everything else, the tree, then process 1's own
    copy of it.
    """
    try:
        namespaces.unshare(namespaces.NEWNS)
        mounts.set_propagation("/", mounts.PRIVATE, recursive=True)
        pid, _pidfd = process.clone3(NAMESPACES, cgroup_fd=cgroup_fd, parent=True)
        if pid == 0:
            _stub(go[0], ready[1])
        os.write(say_fd, f"{pid}\n".encode())
        namespaces.write_id_maps(pid, BASE)
        os.write(go[1], b"i")
        assert os.read(ready[0], 1) == b"i"
        _build(root, pid, namespaces.open_ns(pid, "user"))
        os.write(go[1], b"s")
        assert os.read(ready[0], 1) == b"s"
        os.write(say_fd, b"ok\n")
    except BaseException as error:  # noqa: BLE001 - told to the parent
        os.write(say_fd, f"{type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(0)


def _populate(root: Path) -> None:
    for folder in ("etc", "root", "tmp", "home"):
        (root / folder).mkdir(parents=True)
    (root / "home").chmod(0o755)
    (root / "tmp").chmod(0o1777)
    for link in ("bin", "sbin", "lib", "lib64"):
        if Path("/", link).is_symlink():
            (root / link).symlink_to(os.readlink(f"/{link}"))
    (root / "etc/passwd").write_text(
        "root:x:0:0::/root:/bin/sh\nann:x:1000:1000::/home:/bin/sh\n7seven:x:0:0::/:/bin/sh\n"
    )
    (root / "etc/group").write_text("root:x:0:\nann:x:1000:\nwheel:x:10:root,ann\naudio:x:29:ann\n")


@pytest.fixture
def zone(tmp_path: Path) -> Iterator[MiniZone]:
    tree = detect().cg2
    assert tree is not None
    cgroup = tree / f"zonemgr-mini-{uuid.uuid4().hex[:8]}"
    cgroup.mkdir()
    root = tmp_path / "root"
    _populate(root)
    cgroup_fd = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    pipes = [os.pipe2(os.O_CLOEXEC) for _count in range(3)]
    (say_read, say_write), go, ready = pipes
    manager = process.fork()
    if manager == 0:
        _manage(root, cgroup_fd, say_write, go, ready)
    for descriptor in (say_write, *go, *ready):
        os.close(descriptor)
    with open(say_read, encoding="utf-8") as said:
        init_pid = int(said.readline())
        answer = said.readline()
    os.waitpid(manager, 0)
    pidfd = process.pidfd_open(init_pid)
    try:
        assert answer == "ok\n"
        yield MiniZone(pidfd, root, cgroup, cgroup_fd, init_pid)
    finally:
        process.pidfd_signal(pidfd, signal.SIGKILL)
        os.waitpid(init_pid, 0)
        os.close(pidfd)
        os.close(cgroup_fd)
        cgroup.rmdir()


# -- what a command gets -------------------------------------------------------------------------------------


def test_a_command_runs_as_root_of_the_zone_in_all_its_namespaces(zone: MiniZone) -> None:
    script = "echo $(id -u):$(id -g) $(hostname) $(cat /proc/1/comm); for n in /proc/self/ns/*; do readlink $n; done"
    lines = zone.shell(script).splitlines()
    assert lines[0].startswith("0:0 mini ")
    own = {
        os.readlink(f"/proc/self/ns/{kind}") for kind in ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")
    }
    assert not own & set(lines[1:])
    assert os.readlink("/proc/self/ns/pid_for_children") == os.readlink("/proc/self/ns/pid")


def test_the_child_is_born_in_the_zones_cgroup_and_in_a_session_of_its_own(zone: MiniZone) -> None:
    child = zone.spawn("/bin/sleep", "60", stdio=(0, 1, 2))
    assert str(child.pid) in (zone.cgroup / "cgroup.procs").read_text().split()
    assert os.getsid(child.pid) == child.pid != os.getsid(0)
    child.signal(signal.SIGTERM)
    assert child.wait() == 128 + signal.SIGTERM
    child.close()


def test_exit_statuses_arrive_exactly(zone: MiniZone) -> None:
    for status in (0, 1, 7, 125, 255):
        assert zone.run("/bin/sh", "-c", f"exit {status}")[0] == status
    assert zone.run("/bin/sh", "-c", "kill -KILL $$")[0] == 137


def test_only_the_given_environment_and_descriptors_arrive(zone: MiniZone) -> None:
    kept = os.open("/etc", os.O_RDONLY)  # a host folder, deliberately inheritable
    os.set_inheritable(kept, True)
    try:
        assert (
            zone.shell("/usr/bin/env -u PWD -u _ -u SHLVL -u OLDPWD | sort")
            == "PATH=/usr/bin:/bin\ncontainer=zonemgr"
        )
        assert zone.shell("ls /proc/$$/fd").split() == ["0", "1", "2"]
    finally:
        os.close(kept)


def test_capabilities_are_the_wanted_ones_and_nothing_is_inheritable(zone: MiniZone) -> None:
    status = dict(line.split(":\t") for line in zone.shell("grep ^Cap /proc/self/status").splitlines())
    assert caps.names(int(status["CapBnd"], 16)) == KEEP
    assert caps.names(int(status["CapEff"], 16)) == KEEP
    assert int(status["CapInh"], 16) == int(status["CapAmb"], 16) == 0


def test_a_plain_user_has_no_capability_and_its_groups(zone: MiniZone) -> None:
    root_fd = enter.open_root(zone.pidfd)
    ann = passwd.find_account(root_fd, "ann")
    os.close(root_fd)
    assert (ann.uid, ann.gid, ann.groups, ann.home) == (1000, 1000, (1000, 10, 29), "/home")
    text = zone.shell(
        "id -u; id -G; pwd; grep ^CapEff /proc/self/status",
        uid=ann.uid,
        gid=ann.gid,
        groups=ann.groups,
        cwd=ann.home,
    )
    assert text.split() == ["1000", "1000", "10", "29", "/home", "CapEff:", "0000000000000000"]


def test_the_filter_holds_for_root_and_for_users_without_no_new_privs(zone: MiniZone) -> None:
    program = seccomp.default_filter(zone.root.parent)
    for uid in (0, 1000):
        text = zone.shell(
            "grep -E '^(Seccomp|NoNewPrivs):' /proc/self/status", seccomp=program, uid=uid, gid=uid
        )
        assert text.split() == ["NoNewPrivs:", "0", "Seccomp:", "2"]


def test_no_new_privs_is_set_when_asked_for(zone: MiniZone) -> None:
    assert zone.shell("grep ^NoNewPrivs /proc/self/status", no_new_privs=True).split() == ["NoNewPrivs:", "1"]


def test_the_session_keyring_is_a_fresh_one(zone: MiniZone) -> None:
    script = (
        "import ctypes; c = ctypes.CDLL(None); c.syscall.restype = ctypes.c_long; "
        f"print(c.syscall({250 if os.uname().machine == 'x86_64' else 219}, 0, -3, 0))"
    )
    first, second = (zone.run(_python(), "-Ic", script)[1] for _time in range(2))
    assert int(first) > 0 and int(second) > 0 and first != second


def _python() -> str:
    return os.path.realpath(sys.executable)


def test_a_command_is_looked_up_in_the_new_environments_path(zone: MiniZone) -> None:
    assert zone.run("id", "-u") == (0, "0\n")
    with pytest.raises(enter.EnterError) as failure:
        zone.run("id", env={"PATH": "/nowhere:relative"})
    assert failure.value.exit_status == 127


def test_what_cannot_be_run_is_named_with_a_way_out(zone: MiniZone) -> None:
    (zone.root / "etc/plain").write_text("no program")
    cases = {
        "/bin/none": (127, "No such file"),
        "/etc/plain": (126, "Permission denied"),
        "/etc": (126, "Permission"),
    }
    for command, (status, text) in cases.items():
        with pytest.raises(enter.EnterError, match=text) as failure:
            zone.run(command)
        assert failure.value.exit_status == status
        assert failure.value.text.startswith(f"{command}: ")
    with pytest.raises(enter.EnterError, match="cwd") as failure:
        zone.run("/bin/true", cwd="/none")
    assert (failure.value.stage, failure.value.exit_status) == (enter.Stage.CWD, 125)
    assert zone.run("/bin/pwd", cwd="/none", fall_back_to_root=True) == (0, "/\n")
    with pytest.raises(enter.EnterError, match="user") as failure:
        zone.run("/bin/true", uid=70000)
    assert failure.value.stage is enter.Stage.USER


def test_a_zone_that_has_ended_is_told_as_such(zone: MiniZone) -> None:
    process.pidfd_signal(zone.pidfd, signal.SIGKILL)
    assert process.wait_pidfd(zone.pidfd, 10)
    with pytest.raises(OSError):
        zone.run("/bin/true")
    assert os.readlink("/proc/self/ns/pid_for_children") == os.readlink("/proc/self/ns/pid")


def test_a_failing_join_of_cgroups_leaves_no_process(zone: MiniZone, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    _observe(monkeypatch, seen.append)
    with pytest.raises(enter.EnterError, match="cgroup: ") as raised:
        zone.run("/bin/true", v1_folders=("/nowhere",))
    assert (raised.value.stage, raised.value.exit_status) == (enter.Stage.CGROUP, 125)
    assert not process.is_alive(seen[0], None)


def test_a_terminal_made_in_the_zone_becomes_the_controlling_one(zone: MiniZone) -> None:
    root_fd = enter.open_root(zone.pidfd)
    master_fd, slave_fd = pty.open_pair_below(root_fd, uid=BASE, gid=BASE + 5)
    os.close(root_fd)
    pty.set_window(master_fd, 33, 99)
    child = zone.spawn(
        "/bin/sh",
        "-c",
        "tty; stty size; : </dev/pts/0 && ps -o tty= -p $$",
        stdio=(slave_fd,) * 3,
        tty_slave=True,
    )
    os.close(slave_fd)
    text = b""
    try:
        while chunk := os.read(master_fd, 4096):
            text += chunk
    except OSError:
        pass  # EIO: the last slave is closed
    assert child.wait() == 0, text
    child.close()
    os.close(master_fd)
    assert text.split() == [b"/dev/pts/0", b"33", b"99", b"pts/0"]


def test_the_command_dies_with_its_caller_when_asked(zone: MiniZone) -> None:
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    caller = process.fork()
    if caller == 0:
        try:
            child = zone.spawn("/bin/sleep", "60", die_with_parent=True)
            os.write(write_fd, f"{child.pid}\n".encode())
            signal.pause()
        finally:
            os._exit(1)
    os.close(write_fd)
    with open(read_fd, encoding="ascii") as pipe:
        pidfd = process.pidfd_open(int(pipe.readline()))
    os.kill(caller, signal.SIGKILL)
    os.waitpid(caller, 0)
    assert process.wait_pidfd(pidfd, 10)
    os.close(pidfd)


# -- what it must not be able to do --------------------------------------------------------------------------


def test_root_of_the_zone_can_undo_no_mount_of_ours(zone: MiniZone) -> None:
    for command in ("mount -o remount,bind,rw /usr", "umount /usr", "umount -l /proc", "touch /usr/pwned"):
        status, text = zone.run("/bin/sh", "-c", command)
        assert status != 0, f"{command}: {text}"
    assert not Path("/usr/pwned").exists()


def _observe(monkeypatch: pytest.MonkeyPatch, observe: Callable[[int], None]) -> None:
    """Have it called with the pid of each child as soon as that is born."""
    birth = enter._birth

    def watched(*arguments: Any) -> tuple[int, int]:
        pid, pidfd = birth(*arguments)
        if pid:
            observe(pid)
        return pid, pidfd

    monkeypatch.setattr(enter, "_birth", watched)


def _attack(zone: MiniZone, pid: int) -> str:
    """As root of the zone: read what an entering process holds, and where it stands."""
    names = Path(f"/proc/{pid}/status").read_text().split("NSpid:\t")[1].splitlines()[0].split()
    script = f"cd /proc/{names[1]} && ls fd/; readlink cwd root exe; cat environ maps | head -c 99"
    other = subprocess.run(
        [_python(), "-Ic", _ENTER, str(zone.init_pid), script], capture_output=True, text=True
    )
    return f"{other.stdout}|{other.stderr}"


def test_a_process_of_the_zone_cannot_look_into_one_that_is_about_to_enter(
    zone: MiniZone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(enter, "join", lambda _pidfd, _flags: os.kill(os.getpid(), signal.SIGSTOP))
    _assert_unseen(zone, monkeypatch)


def _assert_unseen(zone: MiniZone, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
    """Root of the zone learns nothing of a child that has stopped itself on its way in."""
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    observers: list[int] = []

    def observe(pid: int) -> None:
        observers.append(process.fork())
        if observers[0] == 0:
            try:
                until(lambda: _state(pid) == "T", "a stopped child")
                os.write(write_fd, _attack(zone, pid).encode())
            finally:
                os.kill(pid, signal.SIGKILL)
                os._exit(0)

    _observe(monkeypatch, observe)
    assert zone.run("/bin/true", **options)[0] == 137
    os.waitpid(observers[0], 0)
    os.close(write_fd)
    with open(read_fd, encoding="utf-8") as pipe:
        output, _bar, errors = pipe.read().partition("|")
    assert (output, errors.count("Permission denied")) == ("", 3)


def test_a_process_of_the_zone_cannot_look_into_one_that_has_its_ids_already(
    zone: MiniZone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped where the filter is loaded: in the zone, with its ids, and not yet exec'ed."""
    monkeypatch.setattr(seccomp, "install", lambda _program: os.kill(os.getpid(), signal.SIGSTOP))
    _assert_unseen(zone, monkeypatch, seccomp=b"x")


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


# Enters the zone as its root without any of our precautions, as an ordinary process of the zone would be there.
_ENTER = """
import ctypes, os, sys
pidfd = os.pidfd_open(int(sys.argv[1]))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.setns(pidfd, 0x10000000 | 0x20000 | 0x20000000) == 0
os.setgroups([]); os.setresgid(0, 0, 0); os.setresuid(0, 0, 0)
pid = os.fork()
if pid == 0:
    os.execv("/bin/sh", ["sh", "-c", sys.argv[2]])
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def test_a_planted_module_is_never_imported(zone: MiniZone, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that appears in the zone where the host's path has one must not run in the entering
    process.
    """
    (zone.root / "tmp/planted.py").write_text("open('/tmp/ran', 'w')")
    monkeypatch.syspath_prepend("/tmp")

    def importer() -> None:
        import planted  # type: ignore[import-not-found]  # noqa: F401

    monkeypatch.setattr(seccomp, "install", lambda _program: importer())
    with pytest.raises(enter.EnterError, match="seccomp: unexpected failure"):
        zone.run("/bin/true", seccomp=b"x")
    assert not (zone.root / "tmp/ran").exists()


# -- accounts ------------------------------------------------------------------------------------------------


MISREAD = [
    *("", ":", "1000:", ":5", "root:", "a:b:c"),  # a half, or too much
    *("-1", "+1", "0x0", "00", "007", "1e3", "٣", "7seven", "root:-1", "root:0x0"),  # no plain number
    *("2147483648", "4294967295", "4294967296", "18446744073709551616"),  # would wrap around
    *(" 0", "0 ", "ro ot", "root\n", "a\0b"),  # no plain name
]


@pytest.mark.parametrize("text", MISREAD)
def test_users_that_could_be_misread_are_refused(zone: MiniZone, text: str) -> None:
    root_fd = enter.open_root(zone.pidfd)
    with pytest.raises(UsageError):
        passwd.find_account(root_fd, text)
    os.close(root_fd)


def test_users_and_groups_by_name_and_number(zone: MiniZone) -> None:
    root_fd = enter.open_root(zone.pidfd)
    assert passwd.find_account(root_fd, "1000").name == "ann"
    assert passwd.find_account(root_fd, "ann:wheel").groups == (10,)
    assert passwd.find_account(root_fd, "4242:4243").gid == 4243
    for text in ("nobody", "4242", "ann:nogroup"):
        with pytest.raises(PlatformError, match="in the zone's"):
            passwd.find_account(root_fd, text)
    os.close(root_fd)


@pytest.mark.parametrize("kind", ["fifo", "huge", "link", "folder", "missing"])
def test_a_hostile_passwd_neither_hangs_nor_leads_out(zone: MiniZone, kind: str) -> None:
    target = zone.root / "etc/passwd"
    target.unlink()
    makers: dict[str, Sequence[Any]] = {
        "fifo": (os.mkfifo, target),
        "huge": (os.truncate, target, 1 << 40),
        "link": (os.symlink, "../../../../../../../etc/passwd-of-the-host", target),
        "folder": (os.mkdir, target),
        "missing": (str,),
    }
    if kind == "huge":
        target.touch()
    make, *arguments = makers[kind]
    make(*arguments)
    root_fd = enter.open_root(zone.pidfd)
    if kind in ("link", "missing"):
        assert passwd.find_account(root_fd, "root").uid == 0
    else:
        with pytest.raises(OSError):
            passwd.find_account(root_fd, "root")
    os.close(root_fd)
