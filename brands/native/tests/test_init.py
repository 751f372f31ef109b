"""The native brand's init for real: process 1 of a pid namespace, a pty as its console, a root that install made."""

from __future__ import annotations

import contextlib
import importlib
import os
import pty
import re
import select
import shutil
import signal
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from zonemgr.brandkit import loader
from zonemgr.linux import mounts, namespaces
from zonemgr.store.paths import Layout

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

FOLDER = loader.shipped_folder() / "native"
DEADLINE_S = 20.0
REBOOTED, HALTED = (
    signal.SIGHUP,
    signal.SIGINT,
)  # how reboot(2) in a pid namespace looks to the parent of process 1


class Machine:
    """One boot of a native root without the rest of the platform."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.output = ""
        self._seen = 0
        self.pid = 0
        self._descriptors: list[int] = []

    def script(self, name: str, text: str) -> None:
        path = self.root / "etc/rc.d" / name
        path.write_text("#!/bin/sh\n" + text)
        path.chmod(0o755)

    def boot(self, *arguments: str) -> None:
        self.master, slave = pty.openpty()
        self._status_fd, writing_fd = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.close(self.master)
                _be_the_parent_of_init(self.root, slave, writing_fd, arguments)
            finally:
                os._exit(99)
        os.close(slave)
        os.close(writing_fd)
        self._descriptors = [self.master, self._status_fd]

    def expect(self, pattern: str) -> re.Match[str]:
        """Wait until what came since the last match matches, and move on behind it."""
        deadline = time.monotonic() + DEADLINE_S
        while True:
            found = re.compile(pattern).search(self.output, self._seen)
            if found:
                self._seen = found.end()
                return found
            assert time.monotonic() < deadline, f"no {pattern!r} in {self.output[self._seen :]!r}"
            self._read(deadline - time.monotonic())

    def _read(self, timeout_s: float) -> None:
        ready, _, _ = select.select([self.master], [], [], timeout_s)
        if ready:
            try:
                self.output += os.read(self.master, 4096).decode(errors="replace")
            except OSError as error:
                raise AssertionError(f"the console has ended: {self.output!r}") from error

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def signal(self, number: int) -> None:
        os.kill(self.init_pid, number)

    @property
    def init_pid(self) -> int:
        """Process 1 as the host sees it."""
        _until(lambda: bool(self._children()))
        return self._children()[0]

    def _children(self) -> list[int]:
        return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]

    def _is_over(self) -> bool:
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def ended_by(self) -> int:
        """The signal that reboot(2) ended process 1 with."""
        deadline = time.monotonic() + DEADLINE_S
        while not select.select([self._status_fd], [], [], 0)[0]:
            assert time.monotonic() < deadline, f"init does not end: {self.output!r}"
            ready, _, _ = select.select([self._status_fd, self.master], [], [], 1.0)
            if self.master in ready:
                self._drain()
        (status,) = struct.unpack("i", os.read(self._status_fd, 4))
        self._drain()
        os.waitpid(self.pid, 0)
        self.pid = 0
        assert os.WIFSIGNALED(status), f"exit status {os.WEXITSTATUS(status)}: {self.output!r}"
        return os.WTERMSIG(status)

    def _drain(self) -> None:
        while select.select([self.master], [], [], 0)[0]:
            try:
                self.output += os.read(self.master, 4096).decode(errors="replace")
            except OSError:
                return

    def close(self) -> None:
        if self.pid:
            _until(lambda: bool(self._children()) or self._is_over())  # it may have ended by itself, or not begun
            for child in self._children():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        for descriptor in self._descriptors:
            os.close(descriptor)


def _be_the_parent_of_init(root: Path, slave: int, writing_fd: int, arguments: tuple[str, ...]) -> None:
    namespaces.unshare(namespaces.NEWNS | namespaces.NEWPID | namespaces.NEWUTS | namespaces.NEWIPC)
    mounts.set_propagation("/", mounts.PRIVATE, recursive=True)
    trees = [
        (mounts.open_tree("/usr"), "usr"),
        (mounts.open_tree(str(root / "usr/local")), "usr/local"),
        (mounts.open_tree(str(FOLDER / "process1")), "usr/local/lib/process1"),
        (mounts.open_tree(str(FOLDER / "init")), "usr/local/sbin/init"),
        (mounts.make_filesystem("tmpfs", {"mode": "755"}), "run"),
        (mounts.make_filesystem("tmpfs", {"mode": "755"}), "dev"),
    ]
    for tree, place in trees:
        target = os.open(root / place, os.O_PATH)
        mounts.move_mount(tree, target)
        os.close(target)
    os.mknod(root / "dev/null", 0o20666, os.makedev(1, 3))
    (root / "dev/console").touch()
    console = os.open(root / "dev/console", os.O_PATH)
    mounts.move_mount(mounts.open_tree(os.ttyname(slave)), console)
    init = os.fork()
    if init == 0:
        proc = os.open(root / "proc", os.O_PATH)
        mounts.move_mount(mounts.make_filesystem("proc", {}), proc)
        namespaces.set_hostname("web")
        os.chroot(root)
        os.chdir("/")
        os.login_tty(slave)
        os.closerange(3, 1000)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        words = ["/usr/local/sbin/init", *arguments]
        os.execve(words[0], words, {"container": "zonemgr", "PATH": "/usr/local/sbin:/usr/bin:/usr/sbin"})
    os.close(slave)  # like zsched, who keeps the master only
    _pid, status = os.waitpid(init, 0)
    os.write(writing_fd, struct.pack("i", status))
    os._exit(0)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    brand = loader.load("native", Layout(tmp_path))
    skeleton = importlib.import_module(".skeleton", type(brand).__module__)
    root = tmp_path / "root"
    skeleton.build(root, "web", ("bin", "sbin", "lib", "lib32", "lib64", "libx32"))
    machine = Machine(root)
    yield machine
    machine.close()
    shutil.rmtree(root)


# -- start-up ------------------------------------------------------------------------------------------------


def test_start_up_scripts_run_in_order_with_start(machine: Machine) -> None:
    for name in ("S20b", "S10a"):
        machine.script(name, 'echo "$(basename $0) $1 in $(pwd)"\n')
    machine.script("K10no", "echo not me\n")
    (machine.root / "etc/rc.d/S30plain").write_text("not executable\n")
    machine.boot()
    machine.expect("S10a start in /\r\n")
    machine.expect("S20b start in /\r\n")
    machine.expect("web: up\r\n")
    assert "not me" not in machine.output


def test_a_failing_script_is_named_with_its_exact_status(machine: Machine) -> None:
    machine.script("S10a", "exit 3\n")
    machine.script("S20b", "kill -9 $$\n")
    machine.script("S30c", "#!/nowhere\n")
    (machine.root / "etc/rc.d/S30c").write_text("#!/nowhere\n")
    machine.boot()
    machine.expect("/etc/rc.d/S10a start: exit status 3\r\n")
    machine.expect("/etc/rc.d/S20b start: killed by signal 9\r\n")
    machine.expect("cannot start /etc/rc.d/S30c: No such file or directory\r\n")
    machine.expect("web: up\r\n")


def test_verbose_names_each_script(machine: Machine) -> None:
    machine.script("S10a", "")
    machine.boot("-m", "verbose")
    machine.expect("web: /etc/rc.d/S10a start\r\n")


def test_single_user_gives_a_shell_before_start_up(machine: Machine) -> None:
    machine.script("S10a", "echo multi-user\n")
    machine.boot("-s")
    machine.expect("single user")
    machine.expect("# ")
    assert "multi-user\r\n" not in machine.output
    machine.type("exit\n")
    machine.expect("multi-user\r\n")
    machine.expect("web: up\r\n")


# -- the console ---------------------------------------------------------------------------------------------


def test_enter_gives_a_login_shell_with_job_control(machine: Machine) -> None:
    machine.boot()
    machine.expect("press Enter")
    assert not _children(machine)  # an idle zone keeps no shell
    machine.type("\n")
    machine.expect("root@web:~# ")
    machine.type("echo $0 $HOME $(tty) $((6*7))\n")
    machine.expect(r"-\w+ /root /dev/\S+ 42\r\n")
    machine.type("sh -c 'echo to be $((40+2)); exec cat'\n")
    machine.expect("to be 42\r\n")  # from here on the foreground is its
    machine.type("\x03")
    machine.expect("# ")
    machine.type("exit 5\n")
    machine.expect("press Enter")
    machine.type("echo first $((40+2)) line is not lost\n")
    machine.expect("first 42 line is not lost\r\n")


def test_a_console_program_of_the_zones_own_takes_the_shells_place(machine: Machine) -> None:
    login = machine.root / "etc/console-login"
    login.write_text("#!/bin/sh\nread line\necho Password for $line:\nread line\n")
    login.chmod(0o755)
    machine.boot()
    machine.expect("press Enter")
    machine.type("joe\n")
    machine.expect("Password for joe:")


def test_the_console_shell_comes_back_when_it_was_killed(machine: Machine) -> None:
    machine.boot()
    machine.expect("press Enter")
    machine.type("\nkill -9 $$\n")
    machine.expect("console: killed by signal 9")
    machine.expect("press Enter")
    machine.type("\necho $((40+2))\n")
    machine.expect("42\r\n")


# -- reaping -------------------------------------------------------------------------------------------------


def _children(machine: Machine) -> list[str]:
    pid = machine.init_pid
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def test_orphans_are_reaped(machine: Machine) -> None:
    machine.script("S10a", "for i in 1 2 3 4 5 6 7 8; do (sleep 0.01 & ) & done; wait; exec 3>/run/up\n")
    machine.boot()
    machine.expect("web: up")
    _until(lambda: not _children(machine))


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        select.select([], [], [], 0.01)


# -- going down ----------------------------------------------------------------------------------------------


def _service(program: str) -> str:
    """A start-up script of a daemon that is ready when the script ends."""
    wait = "until [ -e /run/armed ]; do sleep 0.01; done"
    return f'[ $1 = start ] || exit 0\nsetsid sh -c "{program}" &\n{wait}\n'


@pytest.mark.parametrize(
    ("command", "how", "word"),
    [
        ("reboot", REBOOTED, "rebooting"),
        ("halt", HALTED, "halting"),
        ("poweroff", HALTED, "powering off"),
        ("shutdown -r now", REBOOTED, "rebooting"),
        ("shutdown -h now", HALTED, "powering off"),
        ("init 6", REBOOTED, "rebooting"),
    ],
)
def test_commands_typed_inside_take_the_zone_down_in_good_order(
    machine: Machine, command: str, how: int, word: str
) -> None:
    for name in ("S10a", "S20b"):
        machine.script(name, 'echo "$(basename $0) $1"\n')
    machine.script("S30c", _service("trap 'echo told; exit' TERM; : > /run/armed; sleep 60 & wait"))
    machine.boot()
    machine.expect("press Enter")
    machine.type(f"\n{command}\n")
    machine.expect(f"web: {word}\r\n")
    machine.expect("S20b stop\r\n")
    machine.expect("S10a stop\r\n")
    assert machine.ended_by() == how
    assert "told" in machine.output


@pytest.mark.parametrize(
    ("number", "how"),
    [
        (signal.SIGTERM, REBOOTED),
        (signal.SIGINT, REBOOTED),
        (signal.SIGUSR1, HALTED),
        (signal.SIGUSR2, HALTED),
        (signal.SIGPWR, HALTED),
        (signal.SIGRTMIN + 3, HALTED),
        (signal.SIGRTMIN + 4, HALTED),
        (signal.SIGRTMIN + 5, REBOOTED),
    ],
)
def test_signals_to_process_1(machine: Machine, number: int, how: int) -> None:
    machine.boot()
    machine.expect("web: up")
    machine.signal(number)
    assert machine.ended_by() == how


def test_a_process_that_ignores_term_is_killed(machine: Machine) -> None:
    machine.script("S10a", _service("trap '' TERM HUP; : > /run/armed; while :; do sleep 60; done"))
    machine.boot()
    machine.expect("web: up")
    machine.signal(signal.SIGUSR1)
    assert machine.ended_by() == HALTED


def test_a_hanging_start_script_does_not_hold_a_halt_up(machine: Machine) -> None:
    machine.script("S10a", "[ $1 = stop ] || { echo hanging; sleep 1000; }\n")
    machine.boot()
    machine.expect("hanging\r\n")
    machine.signal(signal.SIGUSR1)
    assert machine.ended_by() == HALTED


def test_reboot_f_is_immediate(machine: Machine) -> None:
    machine.script("S10a", "[ $1 = start ] || echo stopped\n")
    machine.boot()
    machine.expect("press Enter")
    machine.type("\nreboot -f\n")
    assert machine.ended_by() == REBOOTED
    assert "stopped" not in machine.output


def test_signals_that_mean_nothing_change_nothing(machine: Machine) -> None:
    machine.boot()
    machine.expect("web: up")
    for number in (signal.SIGHUP, signal.SIGCHLD, signal.SIGPIPE, signal.SIGWINCH):
        machine.signal(number)
    machine.type("\necho $((40+2))\n")
    machine.expect("42\r\n")


def test_an_order_given_before_process_1_listens_waits_for_it(machine: Machine) -> None:
    machine.boot()
    pid = os.fork()
    if pid == 0:
        try:
            _enter_and_run(machine, "/usr/local/sbin/halt")
        finally:
            os._exit(1)
    assert machine.ended_by() == HALTED
    os.waitpid(pid, 0)


def _enter_and_run(machine: Machine, program: str) -> None:
    """Wait until process 1 has become init, which does not listen yet, and run a program beside it."""
    pid = machine.init_pid
    _until(lambda: Path(f"/proc/{pid}/comm").read_text() == "init\n")
    namespaces.setns(os.pidfd_open(pid), namespaces.NEWNS | namespaces.NEWPID)
    os.chroot(machine.root)
    os.chdir("/")
    if os.fork() == 0:
        os.execv(program, [program])
    os.wait()


def test_wrong_usage_of_the_commands_is_told(machine: Machine) -> None:
    machine.boot()
    machine.expect("press Enter")
    machine.type("\nshutdown +5; echo status $?\n")
    machine.expect("usage: ")
    machine.expect("status 2\r\n")
    machine.type("setpriv --reuid 65534 /usr/local/sbin/halt; echo status $?\n")
    machine.expect("halt: cannot tell process 1: Operation not permitted")
    machine.expect("status 1\r\n")
