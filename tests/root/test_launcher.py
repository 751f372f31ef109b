"""The launcher: what its forks do is what the command does by itself, for root alone, and nobody needs it."""

from __future__ import annotations

import os
import pty
import resource
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

import zonemgr
from tests.kit import leaks, processes
from tests.kit.controllers import handing_down
from tests.kit.instance import CHECKOUT, Instance
from tests.kit.plugin import NewInstance
from tests.kit.processes import Started
from tests.kit.waiting import until
from zonemgr.cli import main
from zonemgr.errors import NoSuchZoneError
from zonemgr.supervisor import program
from zonemgr.wire import launch

pytestmark = [pytest.mark.requires("root", "userns", "mount", "net", "cgroup"), pytest.mark.cold]

NOBODY_HELPS = "zonemgr: no launcher does this\n"


@pytest.fixture
def launched(instance: Instance) -> Instance:
    """An instance with a launcher, which has to do everything."""
    instance.configured()
    instance.warm()
    return instance


def parent_of(pid: int) -> int:
    fields = processes.read(pid, "stat").rpartition(")")[2].split()
    return int(fields[1]) if fields else 0


def members(instance: Instance, part: str) -> list[int]:
    """The processes in one of the instance's own control groups."""
    folders = [base / part for base in leaks.bases() if base.name == "zonemgr" + instance.suffix]
    files = [folder / "cgroup.procs" for folder in folders if folder.is_dir()]
    return [int(pid) for pid in files[0].read_text().split()]


def supervisors(instance: Instance) -> list[int]:
    """Of those that belong there, the ones at work."""
    return [pid for pid in members(instance, "_supervisors") if processes.read(pid, "comm") == "zone-supervisor\n"]


def runs(launcher: int) -> list[int]:
    """The launcher's children that are runs of the command line."""
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    children = [pid for pid in pids if parent_of(pid) == launcher and not is_gone(pid)]
    return [pid for pid in children if processes.read(pid, "comm") == "zonemgr\n"]


def fork_of(launcher: int) -> int:
    """The launcher's only run, once it is one; one that has said how it ended may be there a moment longer."""
    return until(lambda: found[0] if len(found := runs(launcher)) == 1 else 0, "the launcher's fork")


def field(pid: int, name: str) -> str:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.partition(":")[2].strip() for line in lines if line.startswith(name + ":"))


def is_gone(pid: int) -> bool:
    """It has ended, whether or not somebody has collected it."""
    try:
        return field(pid, "State").startswith("Z")
    except OSError:
        return True


def spares(launcher: int) -> list[int]:
    """Those of the launcher's children that have no work, once both are there."""

    def found() -> list[int]:
        pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
        ours = [pid for pid in pids if parent_of(pid) == launcher and not is_gone(pid)]
        waiting = [pid for pid in ours if processes.read(pid, "comm") == "zone-launcher\n"]
        return waiting if len(waiting) == 2 else []

    return until(found, "two spares")


# -- as if it were our child ------------------------------------------------------------------------------------


def test_a_fork_says_and_ends_what_the_command_itself_does(launched: Instance) -> None:
    answers = []
    for switch in ("must", "no"):
        launched.switch = switch
        for words in (["list", "-cp"], ["boot", "nosuch"], ["nosuch"], ["--help"], ["--json", "list", "-c"]):
            done = launched.run(*words, check=False)
            answers.append((words, done.returncode, done.stdout, done.stderr))
    half = len(answers) // 2
    assert answers[:half] == answers[half:]


def test_a_fork_has_the_callers_place_limits_and_manners(launched: Instance, tmp_path: Path) -> None:
    launcher = launched.launcher_pid()

    def prepare() -> None:
        os.umask(0o027)
        os.nice(3)
        os.setgroups([0, 7, 99])
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, 200))
        signal.signal(signal.SIGQUIT, signal.SIG_IGN)
        Path("/proc/self/oom_score_adj").write_text("321")
        os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])

    with Started(
        [*launched.command, "events", "-f"],
        env={**launched.env, "SECRET_OF_THE_CALLER": "x"},
        preexec_fn=prepare,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as client:
        pid = fork_of(launcher)
        for name in ("Umask", "Groups", "SigBlk", "CapBnd", "Uid", "NoNewPrivs"):
            assert field(pid, name) == field(client.pid, name), name
        assert int(field(pid, "SigIgn"), 16) >> (signal.SIGQUIT - 1) & 1
        for name in ("limits", "oom_score_adj", "loginuid"):
            assert (
                Path(f"/proc/{pid}/{name}").read_text() == Path(f"/proc/{client.pid}/{name}").read_text()
            ), name
        cgroups = Path(f"/proc/{client.pid}/cgroup").read_text()
        until(lambda: Path(f"/proc/{pid}/cgroup").read_text() == cgroups, "its way home")
        until(lambda: os.sched_getaffinity(pid) == os.sched_getaffinity(client.pid), "its processors", deadline_s=5)
        assert os.getpriority(os.PRIO_PROCESS, pid) == os.getpriority(os.PRIO_PROCESS, client.pid)
        assert os.readlink(f"/proc/{pid}/cwd") == str(tmp_path)
        for number in (0, 1, 2):
            assert os.readlink(f"/proc/{pid}/fd/{number}") == os.readlink(f"/proc/{client.pid}/fd/{number}")
        assert b"SECRET" not in Path(f"/proc/{launcher}/environ").read_bytes()
        client.send_signal(signal.SIGINT)
        assert client.wait(30) == 130
    until(lambda: is_gone(pid), "its end")


def descendants(pid: int) -> list[int]:
    found = [int(child) for child in processes.read(pid, f"task/{pid}/children").split()]
    return found + [below for child in found for below in descendants(child)]


def test_what_a_run_has_started_comes_to_the_callers_place_with_it(launched: Instance) -> None:
    """The hook of a brand, and what that has started, before anybody knew that the run takes long."""
    hooks = launched.layout.etc / "brands/slow/hooks"
    hooks.mkdir(mode=0o755, parents=True)
    (hooks.parent / "brand.toml").write_text('name = "slow"\nbase = "native"\n')
    (hooks / "verify").write_text("#!/bin/sh\nsleep 1000 &\nwait\n")
    (hooks / "verify").chmod(0o755)
    launched.run("create", "other", "-b", "slow")
    until(lambda: not runs(launched.launcher_pid()), "its end")
    client = launched.popen("verify", "other")
    pid = fork_of(launched.launcher_pid())
    cgroups = processes.read(client.pid, "cgroup")

    def names(place: str) -> set[str]:
        found = (one for one in [pid, *descendants(pid)] if not place or processes.read(one, "cgroup") == place)
        return {processes.read(one, "comm").strip() for one in found}

    until(lambda: "sleep" in names(""), "what the hook starts")
    until(lambda: "zonemgr" in names(cgroups), "the way home of the run")
    until(lambda: names("") == names(cgroups), "the way home of what it has started")
    client.send_signal(signal.SIGINT)
    client.communicate(timeout=30)


@pytest.mark.requires("controllers", "cpus")
def test_a_fork_that_comes_home_stays_on_the_callers_processors(launched: Instance) -> None:
    """Where control groups have processors of their own, which before Linux 6.2 all who come get."""
    one = {min(os.sched_getaffinity(0))}
    with handing_down() as root:
        (root / "cgroup.subtree_control").write_text("+cpuset")
        with launched.popen("events", "-f", preexec_fn=lambda: os.sched_setaffinity(0, one)) as client:
            pid = fork_of(launched.launcher_pid())
            home = Path(f"/proc/{client.pid}/cgroup").read_text()
            until(lambda: Path(f"/proc/{pid}/cgroup").read_text() == home, "its way home")
            until(lambda: os.sched_getaffinity(pid) == one, "its return to the caller's processors", deadline_s=5)
            client.send_signal(signal.SIGINT)
            assert client.wait(30) == 130


def test_signals_stops_and_death_of_the_client_reach_its_fork(launched: Instance) -> None:
    launcher = launched.launcher_pid()
    client = launched.popen("events", "-f")
    pid = fork_of(launcher)
    client.send_signal(signal.SIGTSTP)
    until(
        lambda: field(pid, "State").startswith("T") and field(client.pid, "State").startswith("T"),
        "both stop",
    )
    client.send_signal(signal.SIGCONT)
    until(lambda: not field(pid, "State").startswith("T"), "it goes on")
    client.send_signal(signal.SIGTERM)
    client.communicate(timeout=30)
    assert client.returncode == -signal.SIGTERM

    client = launched.popen("events", "-f")
    pid = fork_of(launcher)
    client.kill()
    client.communicate(timeout=30)
    until(lambda: is_gone(pid), "the hang-up")

    client = launched.popen("events", "-f")
    os.kill(fork_of(launcher), signal.SIGKILL)
    client.communicate(timeout=30)
    assert client.returncode == -signal.SIGKILL


def test_what_the_kernel_tells_late_of_the_connection_is_no_hang_up(launched: Instance) -> None:
    """It may tell of the caller's word to begin when that has been read for long."""
    who = launch.identity(str(Path(zonemgr.__file__).parent))
    environment = {os.fsencode(name): os.fsencode(value) for name, value in launched.env.items()}
    null_fd = os.open("/dev/null", os.O_RDWR)
    folder_fd = os.open("/", os.O_PATH)
    fds = [null_fd, null_fd, null_fd, folder_fd]
    words = ["zonemgr", "list", "-c"]
    try:
        work = launch.ask(str(launched.layout.run), launch.RUN, who, words, environment, fds, launch.LONG_PATIENCE_S)
        assert work is not None
        work.go()
        while not select.select([work.connection], [], [], 0)[0]:
            with suppress(BlockingIOError):
                work.connection.send(b"x", socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        assert work.wait() == 0
        work.close()
    finally:
        os.close(null_fd)
        os.close(folder_fd)


def test_boot_login_and_halt_go_through_it_and_its_secrets_do_not(launched: Instance) -> None:
    """The supervisor knows nothing of the environment of whoever had it started, and sits in no caller's cgroup."""
    launched.run("install", "web")
    launched.run("boot", "web", env={"SECRET_OF_THE_CALLER": "not-for-supervisors"})
    assert launched.login("web", "sh", "-c", "exit 9", check=9) == ""
    assert launched.login("web", "pwd") == "/root\n"
    assert launched.run("login", "web", "--", "cat", input="typed").stdout == "typed"
    (supervisor,) = supervisors(launched)
    assert b"not-for-supervisors" not in memory_of(supervisor)
    # It outlives the launcher, and the next command finds it without one.
    os.kill(launched.launcher_pid(), signal.SIGKILL)
    until(lambda: not launched.launcher_pid(), "the launcher's death")
    launched.switch = "no"
    assert launched.state() == "running"
    launched.run("halt", "web")


def memory_of(pid: int) -> bytes:
    """Everything that the process could write."""
    found = []
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span, rights, *_ = line.split()
            if rights.startswith("rw"):
                start, end = (int(number, 16) for number in span.split("-"))
                memory.seek(start)
                found.append(memory.read(end - start))
    return b"".join(found)


def test_a_terminal_works_through_it(launched: Instance) -> None:
    launched.run("install", "web")
    launched.run("boot", "web")
    master, slave = pty.openpty()
    with os.fdopen(master, "r+b", buffering=0) as screen:
        client = launched.popen(
            "login", "web", stdin=slave, stdout=slave, stderr=slave, start_new_session=True
        )
        os.close(slave)
        seen = b""

        def shows(text: bytes) -> None:
            nonlocal seen
            while text not in seen:
                seen += screen.read(4096)

        shows(b"Connected to zone")
        screen.write(b"stty size; tty; echo $((6 * 7))a\r")
        shows(b"42a")
        assert b"/dev/pts/" in seen
        screen.write(b"exit 5\r")
        shows(b"closed]")
        assert client.wait(30) == 5


# -- who may ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrapper",
    [
        ["setpriv", "--no-new-privs"],
        ["setpriv", "--bounding-set=-sys_boot"],
        ["unshare", "--mount"],
        ["unshare", "--net"],
        ["unshare", "--uts"],
        ["setpriv", "--regid=7", "--keep-groups"],
    ],
    ids=" ".join,
)
def test_a_caller_that_a_fork_cannot_pass_for_works_by_itself(launched: Instance, wrapper: list[str]) -> None:
    def ask(switch: str) -> subprocess.CompletedProcess[str]:
        launched.switch = switch
        words = [*wrapper, *launched.command, "list", "-cp"]
        return subprocess.run(words, env=launched.env, capture_output=True, text=True, timeout=60)

    refused = ask("must")
    assert (refused.returncode, refused.stderr) == (3, NOBODY_HELPS)
    by_itself = ask("")
    assert by_itself.returncode == 0 and "web" in by_itself.stdout, by_itself.stderr


def test_nobody_but_root_is_served(launched: Instance) -> None:
    path = launched.layout.run / launch.NAME
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o666)  # the check is what refuses
    script = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.settimeout(30); "
        "print(s.recv(10))"
    )
    words = ["setpriv", "--reuid=65534", "--clear-groups", "/usr/bin/python3", "-c", script, str(path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.stdout == "b''\n", done.stderr
    assert launched.run("list").returncode == 0


def test_nonsense_and_silence_harm_nobody(launched: Instance) -> None:
    silent = [socket.socket(socket.AF_UNIX) for _ in range(20)]
    for connection in silent:
        connection.connect(str(launched.layout.run / launch.NAME))
    for nonsense in (b"\xff" * 64, b"\0\0\0\x05hello", b"\0\0\0\0", b"G"):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(launched.layout.run / launch.NAME))
            connection.sendall(nonsense)
            connection.shutdown(socket.SHUT_WR)
            connection.settimeout(30)
            assert connection.recv(10) == b""
    assert launched.run("list").returncode == 0
    for connection in silent:
        connection.close()


# -- with and without -------------------------------------------------------------------------------------------


def test_the_first_command_starts_one_and_ten_at_once_start_no_more(instance: Instance) -> None:
    instance.configured()
    instance.switch = ""
    runs = [instance.popen("list", "-cp") for _ in range(10)]
    for run in runs:
        output, error = run.communicate(timeout=120)
        assert (run.returncode, error) == (0, "") and "web" in output
    until((instance.layout.run / launch.NAME).exists, "the launcher's start", deadline_s=60)
    instance.switch = "must"
    assert "web" in instance.run("list", "-cp").stdout
    launcher = instance.launcher_pid()
    assert [pid for pid in members(instance, "_launcher") if parent_of(pid) != launcher] == [launcher]


def test_a_killed_launcher_takes_nothing_with_it(launched: Instance) -> None:
    client = launched.popen("events", "-f")
    pid = fork_of(launched.launcher_pid())
    os.kill(launched.launcher_pid(), signal.SIGKILL)
    until(lambda: not launched.launcher_pid(), "its death")
    # Its socket is still there, and nobody listens: stale.
    assert (launched.layout.run / launch.NAME).exists()
    launched.switch = ""
    assert "web" in launched.run("list", "-cp").stdout
    assert not is_gone(pid)
    client.send_signal(signal.SIGINT)
    client.communicate(timeout=30)
    assert client.returncode == 130
    until(lambda: is_gone(pid), "its end")
    until(
        # Each round asks for one anew: our look at its lock may have kept the last one from starting.
        lambda: launched.run("list", check=False).returncode == 0 and launched.launcher_pid(),
        "another one",
        deadline_s=60,
    )


def test_spares_are_used_replaced_and_missed_by_nobody(launched: Instance) -> None:
    launcher = launched.launcher_pid()
    first = spares(launcher)
    launched.run("list", "-c")
    second = spares(launcher)
    assert len(set(first) & set(second)) == 1
    for number in (signal.SIGKILL, signal.SIGTERM):
        killed = spares(launcher)
        for pid in killed:
            os.kill(pid, number)
        launched.switch = ""  # whoever is given to one that is dying works by itself
        launched.run("list", "-c")
        until(lambda: all(map(is_gone, killed)), "their end")  # noqa: B023 - it ends in here
        launched.run("list", "-c")  # one that died unused is made anew with the next caller
    third = spares(launcher)
    os.kill(launcher, signal.SIGKILL)
    until(lambda: all(map(is_gone, third)), "the end of the spares")
    launched.switch = "no"


@pytest.mark.parametrize("who", ["spares", "launcher"])
def test_one_that_is_stopped_keeps_nothing_of_the_callers_open(launched: Instance, who: str) -> None:
    """A caller does without it then, and whoever reads what it says hears its end."""
    launcher = launched.launcher_pid()
    stopped = spares(launcher) if who == "spares" else [launcher]
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        launched.switch = ""
        assert "web" in launched.run("list", "-c", timeout=20).stdout  # to the end of its output
    finally:
        if who == "launcher":
            os.kill(launcher, signal.SIGCONT)
    launched.switch = "must"
    launched.run("list", "-c")
    launched.run("list", "-c")  # a spare has been made meanwhile
    until(lambda: sum(map(is_gone, stopped)) == (who == "spares"), "the end of the one that was asked")


def test_a_supervisor_that_was_a_spare_is_like_any_other(launched: Instance) -> None:
    """Nothing of the launcher's is left in it, and nothing of the zone that it was warmed with."""
    waiting = spares(launched.launcher_pid())
    launched.run("install", "web")
    launched.run("ready", "web")
    (pid,) = supervisors(launched)
    assert pid in waiting
    assert processes.read(pid, "comm") == "zone-supervisor\n"
    assert parent_of(pid) == launched.launcher_pid()
    assert os.getsid(pid) == pid
    assert field(pid, "SigBlk") == "0000000000000000"
    launched.run("halt", "web")


def test_it_leaves_when_nobody_comes(instance: Instance) -> None:
    instance.configured()
    instance.layout.settings.write_text("launcher-idle-s = 1\n")
    instance.start_launcher()
    pid = until(instance.launcher_pid, "its start")  # the lock's file is there before its pid is in it
    until(lambda: is_gone(pid), "its leaving")
    assert not (instance.layout.run / launch.NAME).exists()
    instance.switch = ""
    instance.layout.settings.write_text("launcher-idle-s = 0\n")
    instance.run("list")
    assert instance.launcher_pid() == 0


def test_it_leaves_an_instance_that_is_removed(instance: Instance) -> None:
    instance.configured()
    pid = instance.warm()
    assert not is_gone(pid)
    shutil.rmtree(instance.layout.run)
    until(lambda: is_gone(pid), "its leaving")
    instance.switch = "no"


@pytest.fixture
def other_version(tmp_path: Path) -> Iterator[Path]:
    """A second copy of the program."""
    for room in ("zonemgr", "brands"):
        shutil.copytree(CHECKOUT / room, tmp_path / room)
    yield tmp_path


def test_one_takes_the_place_of_a_socket_that_a_killed_one_has_left(launched: Instance) -> None:
    os.kill(launched.launcher_pid(), signal.SIGKILL)
    until(lambda: not launched.launcher_pid(), "its end")
    launched.start_launcher()
    until(lambda: launched.run("list", check=False).returncode == 0, "an answer")
    pid = launched.launcher_pid()
    launched.run("list")
    assert pid and launched.launcher_pid() == pid


@pytest.mark.parametrize("moment", ["before it starts", "while it gets warm", "when it serves"])
def test_a_socket_that_systemd_listens_at_is_left_alone(instance: Instance, moment: str) -> None:
    """systemd puts it in the place of whatever is there, and starts a launcher when somebody knocks."""
    path = instance.layout.run / launch.NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    if moment == "while it gets warm":
        instance.start_launcher()
    elif moment == "when it serves":
        instance.warm()
        instance.switch = "no"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        path.unlink(missing_ok=True)
        listener.bind(str(path))
        mine = path.stat().st_ino
        listener.listen()
        if moment == "before it starts":
            instance.start_launcher()
        until(lambda: not instance.launcher_pid(), "the launcher's end")
        assert path.exists() and path.stat().st_ino == mine
    path.unlink()


def test_another_installation_works_by_itself_and_a_new_version_is_taken_up(
    launched: Instance, other_version: Path, new_instance: NewInstance
) -> None:
    env = {"PYTHONPATH": str(other_version)}
    launched.command = (sys.executable, "-P", "-m", "zonemgr")  # not the one of the working folder
    assert launched.run("list", check=3, env=env).stderr == NOBODY_HELPS

    second = new_instance()
    second.configured()
    second.command = launched.command
    words = [sys.executable, "-P", "-m", "zonemgr.launcher", "--root", str(second.root)]
    subprocess.run(words, env={**second.env, **env}, check=True, timeout=60)
    until((second.layout.run / launch.NAME).exists, "the launcher's start")
    second.switch = "must"
    assert second.run("--version", env=env).stdout != "zonemgr 99\n"
    head = other_version / "zonemgr/__init__.py"
    head.write_text(head.read_text() + '\n__version__ = "99"\n')
    pid = second.launcher_pid()
    until(lambda: second.run("--version", env=env, check=False).stdout == "zonemgr 99\n", "the new version")
    assert second.launcher_pid() == pid
    second.switch = "no"  # the rest is this checkout's, which that launcher would not serve


def test_the_launcher_of_another_root_is_not_asked(launched: Instance, new_instance: NewInstance) -> None:
    other = new_instance()
    done = launched.run("list", "--root", str(other.root), "-cp", check=3)
    assert done.stderr == NOBODY_HELPS


def test_a_unit_hears_from_its_own_process(launched: Instance, tmp_path: Path) -> None:
    """systemd takes ``READY=1`` from a unit's main process only, which no fork of the launcher is."""
    launched.run("install", "web")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(60)
        manager.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        env = {**launched.env, "NOTIFY_SOCKET": str(tmp_path / "notify")}
        staying = launched.popen("boot", "--wait", "web", env=env)
        text, ((_level, _kind, credentials),), _flags, _address = manager.recvmsg(1000, socket.CMSG_SPACE(12))
        assert text.startswith(b"READY=1\n")
        assert struct.unpack("=iii", credentials)[0] == staying.pid
    launched.run("halt", "web")
    assert staying.wait(60) == 0
    staying.communicate()


def test_what_warms_a_spare_goes_all_the_way_to_a_zone_that_is_not_there(
    launched: Instance, capsys: pytest.CaptureFixture[str]
) -> None:
    """And leaves nothing there."""
    before = sorted(launched.layout.run.rglob("*"))
    main.warm_up(str(launched.root), "nobody")
    assert capsys.readouterr().err == "zonemgr: nobody: No such zone configured\n"
    with pytest.raises(NoSuchZoneError):
        program.warm_up(launched.layout, "nobody")
    assert sorted(launched.layout.run.rglob("*")) == before
