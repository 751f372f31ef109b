"""Processes, namespaces, capabilities, ptys and watches on the real kernel."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import subprocess
import threading
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kit.processes import Started
from tests.kit.waiting import until
from zonemgr.errors import PlatformError
from zonemgr.linux import caps, hints, inotify, libc, mounts, namespaces, process, pty
from zonemgr.linux.cgroup import detect

pytestmark = pytest.mark.requires("root", "userns", "mount", "cgroup")

ALL_NAMESPACES = (
    namespaces.NEWUSER
    | namespaces.NEWPID
    | namespaces.NEWNET
    | namespaces.NEWUTS
    | namespaces.NEWIPC
    | namespaces.NEWCGROUP
)


def children() -> str:
    """The pids of our children; a process that has loaded everything for other tests may be one."""
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text()


def in_child(act: Callable[[], str], flags: int = 0, cgroup_fd: int | None = None) -> str:
    """What ``act`` returns, or its exception's text, when it runs in a cloned child."""
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    pid, pidfd = process.clone3(flags, cgroup_fd=cgroup_fd)
    if pid == 0:
        try:
            answer = act()
        except Exception as error:  # noqa: BLE001 - told to the parent
            answer = f"{type(error).__name__}: {error}"
        try:
            os.write(write_fd, answer.encode())
        finally:
            os._exit(0)
    os.close(write_fd)
    with open(read_fd, encoding="utf-8") as pipe:
        answer = pipe.read()
    assert process.wait_pidfd(pidfd, 10)
    os.waitpid(pid, 0)
    os.close(pidfd)
    return answer


# -- clone3 --------------------------------------------------------------------------------------------------


def test_a_child_is_born_in_new_namespaces_and_in_its_cgroup() -> None:
    tree = detect().cg2
    assert tree is not None
    folder = tree / f"zonemgr-clone-{uuid.uuid4().hex[:8]}"
    folder.mkdir()
    folder_fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:

        def look() -> str:
            lines = Path("/proc/thread-self/cgroup").read_text().splitlines()
            return f"{os.getpid()} {[line for line in lines if line.startswith('0:')]} {os.getuid()}"

        # /proc is the host's: its "self" needs a pid of the host's namespace, so the child looks without NEWPID
        flags = ALL_NAMESPACES & ~namespaces.NEWPID
        assert in_child(look, flags, folder_fd).split(" ", 1)[1] == "['0::/'] 65534"
        assert in_child(lambda: str(os.getpid()), ALL_NAMESPACES, folder_fd) == "1"
    finally:
        os.close(folder_fd)
        folder.rmdir()


def test_the_interpreter_of_a_cloned_child_is_whole() -> None:
    def use() -> str:
        found: list[int] = []
        thread = threading.Thread(target=lambda: found.append(os.getpid()))
        thread.start()
        thread.join(10)
        output = subprocess.run(["/bin/echo", "ran"], check=True, capture_output=True, text=True).stdout
        return f"{found == [os.getpid()]} {threading.active_count()} {output.strip()}"

    assert in_child(use) == "True 1 ran"


def test_a_child_may_be_the_callers_sibling() -> None:
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    middle = process.fork()
    if middle == 0:
        try:
            pid, _pidfd = process.clone3(parent=True)
            if pid == 0:
                os._exit(42)
            os.write(write_fd, str(pid).encode())
        finally:
            os._exit(0)
    os.waitpid(middle, 0)
    pid = int(os.read(read_fd, 16))
    assert process.exit_status(os.waitpid(pid, 0)[1]) == 42
    os.close(read_fd)
    os.close(write_fd)


def test_a_refused_clone_raises_with_the_calls_name_and_leaves_the_parent_whole() -> None:
    with pytest.raises(OSError, match="clone3") as failure:
        process.clone3(cgroup_fd=0)
    assert failure.value.errno in (errno.EBADF, errno.EINVAL)
    assert in_child(lambda: "fine") == "fine"


# -- descriptors, signals, attributes ------------------------------------------------------------------------


def test_only_the_kept_descriptors_stay_open() -> None:
    extra = [os.open("/dev/null", os.O_RDONLY) for _count in range(20)]

    def close() -> str:
        keep = {extra[3], extra[7]}
        process.close_fds([*keep, 1, write])
        return str({int(name) for name in os.listdir("/proc/self/fd")} - keep - {1, write})

    write = max(extra) + 2  # the pipe that in_child makes next
    left = in_child(close)
    for descriptor in extra:
        os.close(descriptor)
    assert left.count(",") == 0  # listdir's own descriptor at most


def test_standard_descriptors_go_to_null_also_when_they_were_closed() -> None:
    def move() -> str:
        os.close(0)
        os.close(2)
        process.stdio_to_null()
        return " ".join(os.readlink(f"/proc/self/fd/{number}") for number in (0, 1, 2)) + str(
            os.get_inheritable(0)
        )

    assert in_child(move) == "/dev/null /dev/null /dev/nullTrue"


def test_signals_are_reset() -> None:
    def reset() -> str:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
        process.reset_signals()
        grep = ["grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status"]
        return subprocess.run(grep, check=True, capture_output=True, text=True).stdout

    assert in_child(reset).split() == ["SigBlk:", "0" * 16, "SigIgn:", "0" * 16]


def test_attributes_of_a_process_are_set() -> None:
    def change() -> str:
        process.set_name("a name that is far too long")
        process.set_dumpable(False)
        process.set_no_new_privs()
        process.set_child_subreaper()
        barred = "NoNewPrivs:\t1" in Path("/proc/self/status").read_text()
        return f"{process.command_name(os.getpid())}|{barred}"

    assert in_child(change) == "a name that is |True"


def test_a_child_whose_parent_has_gone_already_ends_itself() -> None:
    pid = process.fork()
    if pid == 0:
        process.set_pdeathsig(signal.SIGKILL, parent_pid=1 << 22)
        os._exit(0)
    assert process.exit_status(os.waitpid(pid, 0)[1]) == 128 + signal.SIGKILL


def test_the_session_keyring_is_new() -> None:
    def join() -> str:
        process.new_session_keyring("one")
        first = libc.call("keyctl", 0, ctypes.c_void_p(-3), 0, 0, 0)
        process.new_session_keyring("two")
        return str(first != libc.call("keyctl", 0, ctypes.c_void_p(-3), 0, 0, 0))

    assert in_child(join) == "True"


# -- telling processes apart ---------------------------------------------------------------------------------


def test_a_process_is_alive_by_pid_and_start_time_and_a_zombie_is_not() -> None:
    with Started(["/bin/sleep", "60"]) as child:
        _check_life_and_death(child)


def _check_life_and_death(child: Started) -> None:
    started = process.start_time(child.pid)
    assert process.is_alive(child.pid, started)
    assert not process.is_alive(child.pid, (started or 0) + 1)
    pidfd = process.pidfd_open(child.pid)
    assert process.pid_of(pidfd) == child.pid
    assert not process.wait_pidfd(pidfd, 0)
    process.pidfd_signal(pidfd, signal.SIGKILL)
    assert process.wait_pidfd(pidfd, 10)
    assert not process.is_alive(child.pid, started)
    child.wait()
    process.pidfd_signal(pidfd, signal.SIGKILL)  # gone: nothing to do
    with pytest.raises(ProcessLookupError):
        process.pid_of(pidfd)
    assert (process.start_time(child.pid), process.command_name(child.pid)) == (None, None)
    assert process.describe_stuck(child.pid) == f"{child.pid} (gone)"
    os.close(pidfd)


def test_a_name_with_parentheses_and_blanks_confuses_nobody() -> None:
    pid = process.fork()
    if pid == 0:
        try:
            process.set_name(") R 1 2 (")
            signal.pause()
        finally:
            os._exit(0)
    try:
        # It has where it waits only once it sleeps.
        until(lambda: process.describe_stuck(pid).startswith(f"{pid} () R 1 2 () in "), "its new name")
        assert process.command_name(pid) == ") R 1 2 ("
        assert process.start_time(pid) == process.start_time(pid) != 2
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_exit_statuses_are_those_of_a_shell() -> None:
    assert [process.exit_status(status) for status in (0, 7 << 8, 9, 0x80 | 11)] == [0, 7, 137, 139]


# -- namespaces ----------------------------------------------------------------------------------------------


def test_id_maps_and_host_names() -> None:
    def inside() -> str:
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
        namespaces.set_hostname("web.example")
        return f"{os.getuid()} {os.uname().nodename}"

    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    go_read, go_write = os.pipe2(os.O_CLOEXEC)
    pid, pidfd = process.clone3(ALL_NAMESPACES)
    if pid == 0:
        try:
            os.read(go_read, 1)
            os.write(write_fd, inside().encode())
        finally:
            os._exit(0)
    namespaces.write_id_maps(pid, 524288)
    assert not namespaces.same_namespace(pid, "uts", "self")
    assert namespaces.same_namespace("self", "uts", os.getppid())
    os.write(go_write, b"g")
    assert os.read(read_fd, 100) == b"0 web.example"
    os.waitpid(pid, 0)
    for descriptor in (read_fd, write_fd, go_read, go_write, pidfd):
        os.close(descriptor)


def test_a_bad_id_map_is_refused_with_a_hint_and_leaves_no_process() -> None:
    before = children()
    with pytest.raises(OSError) as failure:
        namespaces.make_user_namespace([(0, 1, 5), (2, 9, 5)], [(0, 1, 1)])
    assert hints.explain(failure.value) == "Invalid argument (the ranges of ids are out of bounds or overlap)"
    assert children() == before


# -- capabilities --------------------------------------------------------------------------------------------


def test_the_bounding_set_and_the_own_sets_shrink_to_what_is_kept() -> None:
    keep = frozenset({"chown", "net_raw", "setpcap"})

    def drop() -> str:
        caps.drop_bounding(keep)
        caps.limit_to(keep)
        sets = (caps.bounding("self"), caps.effective("self"), caps.inheritable("self"))
        return " ".join(",".join(sorted(one)) for one in sets)

    assert in_child(drop) == "chown,net_raw,setpcap chown,net_raw,setpcap "


def test_what_is_not_permitted_cannot_be_taken_back() -> None:
    def take() -> str:
        caps.limit_to(frozenset({"chown"}))
        caps.set_process_capabilities(frozenset({"chown", "sys_admin"}), frozenset({"chown", "sys_admin"}))
        return "taken"

    assert in_child(take).startswith("PermissionError")


def test_an_unknown_capability_is_named() -> None:
    with pytest.raises(PlatformError, match="unknown capability 'cap_chown'"):
        caps.drop_bounding(frozenset({"cap_chown"}))


def test_names_and_masks_agree_with_the_kernel() -> None:
    assert caps.names(caps.mask(caps.ALL)) == caps.ALL
    assert (caps.NUMBERS["sys_admin"], caps.NUMBERS["bpf"], caps.NUMBERS["checkpoint_restore"]) == (
        21,
        39,
        40,
    )
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    assert len(caps.NAMES) >= last + 1 or last > 40  # newer ones go by number, and are dropped


# -- ptys ----------------------------------------------------------------------------------------------------


def test_a_pty_of_a_private_devpts_is_opened_without_a_path() -> None:
    devpts_fd = mounts.make_filesystem("devpts", {"mode": "620", "ptmxmode": "666"})
    master_fd = pty.open_master_in(devpts_fd)
    slave_fd = pty.open_peer(master_fd)
    pty.make_raw(slave_fd)
    pty.set_window(master_fd, 50, 132)
    assert pty.get_window(slave_fd) == (50, 132)
    os.write(master_fd, b"a\n\x03")
    assert os.read(slave_fd, 10) == b"a\n\x03"
    os.write(slave_fd, b"b\n")
    assert os.read(master_fd, 10) == b"b\n"
    folder_fd = os.open(".", os.O_RDONLY, dir_fd=devpts_fd)
    assert sorted(os.listdir(folder_fd)) == ["0", "ptmx"]
    for descriptor in (master_fd, slave_fd, folder_fd, devpts_fd):
        os.close(descriptor)


def test_a_folder_that_only_looks_like_a_devpts_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ptmx").symlink_to("/dev/ptmx")
    folder_fd = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(OSError, match="not a devpts"):
        pty.open_master_in(folder_fd)
    os.close(folder_fd)


# -- watches and hints ---------------------------------------------------------------------------------------


def test_a_watch_wakes_up_for_what_happens_and_for_nothing_else(tmp_path: Path) -> None:
    with inotify.Inotify(tmp_path) as watch:
        assert not watch.wait(0)
        (tmp_path / "new").write_text("x")
        assert watch.wait(10)
        assert not watch.wait(0)
        (tmp_path / "new").rename(tmp_path / "newer")
        assert [(event.name, event.mask) for event in watch.read()] == [
            ("new", inotify.MOVED_FROM),
            ("newer", inotify.MOVED_TO),
        ]
        assert watch.read() == []


def test_a_missing_folder_cannot_be_watched(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(FileNotFoundError, match="inotify_add_watch"):
        inotify.Inotify(tmp_path / "none")
    assert len(os.listdir("/proc/self/fd")) == before


def test_an_error_is_explained_with_its_way_out() -> None:
    with pytest.raises(OSError) as failure:
        mounts.open_tree("/none")
    assert isinstance(failure.value, FileNotFoundError)
    assert (
        hints.explain(failure.value)
        == "No such file or directory (create it on the host, or remove the fs resource)"
    )
    assert (
        hints.explain(OSError(errno.EPERM, "Operation not permitted", "/x")) == "Operation not permitted: /x"
    )
    assert hints.explain(OSError(errno.ENOSPC, "No space left on device")).endswith(
        "(free some space, or some inodes)"
    )
    assert hints.explain(OSError(errno.ENOENT, "x"), "cwd") == "x (the folder does not exist in the zone)"
    assert hints.explain(OSError("only a text")) == "only a text"
    assert hints.hint("open_tree", errno.EPERM) and not hints.hint("nothing", errno.EIO)
