"""``login`` exactly: exit status, bytes, users, terminals (design, section 10)."""

from __future__ import annotations

import fcntl
import hashlib
import os
import select
import signal
import struct
import subprocess
import termios
from pathlib import Path

import pytest

from tests.kit.instance import Instance
from tests.kit.waiting import until

pytestmark = pytest.mark.requires("root", "mount", "net", "cgroup")


@pytest.fixture
def zone(instance: Instance) -> Instance:
    instance.running()
    return instance


def status(zone: Instance, *words: str) -> int:
    return zone.run("login", "web", "--", *words, check=False).returncode


def test_exit_statuses(zone: Instance) -> None:
    for number in (0, 1, 2, 42, 124, 128, 200, 255):
        assert status(zone, "sh", "-c", f"exit {number}") == number
    assert status(zone, "sh", "-c", "kill -TERM $$") == 128 + signal.SIGTERM
    assert status(zone, "sh", "-c", "kill -KILL $$") == 128 + signal.SIGKILL
    done = zone.run("login", "web", "--", "no-such-program", check=127)
    assert len(done.stderr.splitlines()) == 1 and "no-such-program" in done.stderr
    done = zone.run("login", "web", "--", "/etc/hostname", check=126)
    assert len(done.stderr.splitlines()) == 1
    done = zone.run("login", "nosuch", "--", "true", check=125)
    assert done.stderr == "zonemgr: nosuch: No such zone configured\n"
    zone.run("halt", "web")
    done = zone.run("login", "web", "--", "true", check=125)
    assert done.stderr == "zonemgr: zone 'web': login allowed only to running zones (web is 'installed').\n"


def test_a_megabyte_of_any_bytes_both_ways(zone: Instance) -> None:
    data = os.urandom(1 << 20)
    words = [*zone.command, "login", "web", "--", "sh", "-c", "tee /dev/stderr"]
    done = subprocess.run(words, env=zone.env, input=data, capture_output=True, timeout=60)
    assert done.returncode == 0
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(data).digest()
    assert hashlib.sha256(done.stderr).digest() == hashlib.sha256(data).digest()


def test_words_environment_and_folder(zone: Instance) -> None:
    words = ["a b", "", "*", "$HOME", "'", "-n", "--", "é\n"]
    assert zone.login("web", "printf", "[%s]", *words) == "".join(f"[{word}]" for word in words)
    os.environ["SECRET_OF_THE_CALLER"] = "x"
    try:
        environment = zone.login("web", "env")
    finally:
        del os.environ["SECRET_OF_THE_CALLER"]
    assert "SECRET" not in environment and "ZONEMGR" not in environment
    assert {"HOME=/root", "USER=root", "LOGNAME=root", "container=zonemgr"} <= set(environment.splitlines())
    assert zone.login("web", "pwd") == "/root\n"
    assert zone.login("web", "sh", "-c", "ls /proc/self/fd | wc -l").strip() == "4"
    assert zone.run("login", "-n", "web", "--", "cat", input="ignored").stdout == ""


def test_users(zone: Instance) -> None:
    """No form of -l may end as another user than it says, least of all as root."""
    root = zone.layout.zonepath("web") / "root"
    (root / "etc/passwd").write_text(
        (root / "etc/passwd").read_text() + "joe:x:1000:1000::/home/joe:/bin/sh\n0x0:x:77:77::/:/bin/sh\n"
    )
    (root / "etc/group").write_text((root / "etc/group").read_text() + "joe:x:1000:\nextra:x:1001:joe\n")

    def ids(user: str) -> str:
        return zone.run("login", "-l", user, "web", "--", "sh", "-c", "id -u; id -g; id -G").stdout.replace(
            "\n", " "
        )

    assert ids("root").startswith("0 0 ")
    assert ids("joe") == "1000 1000 1000 1001 "
    assert ids("1000") == "1000 1000 1000 1001 "
    assert ids("joe:extra").startswith("1000 1001 ")
    assert ids("1000:5").startswith("1000 5 ")
    assert ids("4242:4243").startswith("4242 4243 ")
    for bad in (
        "",
        "-1",
        "1000:",
        ":5",
        "4294967295",
        "65536",
        "70000",
        "nobody-such",
        "joe:",
        "joe:nope",
        "1e3",
        " 0",
        "+0",
        "0x0",
    ):
        done = zone.run("login", "-l", bad, "web", "--", "id", "-u", check=False)
        assert done.returncode in (2, 125), (bad, done)
        assert done.stdout == "", bad
        assert len(done.stderr.splitlines()) == 1, (bad, done.stderr)
    assert zone.login("web", "sh", "-c", "grep ^CapEff /proc/self/status | cut -f2") != "0000000000000000\n"
    caps = zone.run("login", "-l", "joe", "web", "--", "grep", "^CapEff", "/proc/self/status").stdout
    assert caps.split()[1] == "0000000000000000"


def test_it_lives_in_the_zones_cgroups_and_namespaces(zone: Instance) -> None:
    assert zone.login("web", "hostname") == "web\n"
    own = {line.split(":", 2)[2] for line in Path("/proc/self/cgroup").read_text().splitlines()}
    seen = {line.split(":", 2)[2] for line in zone.login("web", "cat", "/proc/self/cgroup").splitlines()}
    assert not own & (seen - {"/"})
    assert zone.login("web", "sh", "-c", "ls /dev/pts; ls -d /proc/1/exe").endswith("/proc/1/exe\n")


def test_interrupted(zone: Instance) -> None:
    caller = zone.popen(
        "login", "web", "--", "sh", "-c", "trap 'echo got; exit 9' INT; echo up; while :; do sleep 0.1; done"
    )
    assert caller.stdout is not None and caller.stdout.readline() == "up\n"
    caller.send_signal(signal.SIGINT)
    out, _ = caller.communicate(timeout=30)
    assert (out, caller.returncode) == ("got\n", 9)


def test_into_a_mounted_zone(zone: Instance) -> None:
    zone.run("halt", "web")
    zone.run("mount", "web")
    assert zone.login("web", "sh", "-c", "id -u; ls /").startswith("0\n")
    assert status(zone, "sh", "-c", "exit 7") == 7
    assert "host0" not in zone.login("web", "cat", "/proc/net/dev")
    zone.run("unmount", "web")


class Terminal:
    """A command at a terminal of its own, 33 rows by 99 columns."""

    def __init__(self, zone: Instance, *words: str) -> None:
        self.master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 99, 0, 0))
        self.before = termios.tcgetattr(slave)
        self.slave = slave
        self.process = zone.popen(*words, stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
        self.text = b""

    def until(self, wanted: bytes) -> None:
        while wanted not in self.text:
            assert select.select([self.master], [], [], 30)[0], self.text
            self.text += os.read(self.master, 65536)
        self.text = self.text.partition(wanted)[2]

    def send(self, data: bytes) -> None:
        os.write(self.master, data)

    def end(self) -> int:
        status = self.process.wait(30)
        assert termios.tcgetattr(self.slave) == self.before, "the terminal is not as it was"
        os.close(self.slave)
        os.close(self.master)
        return status


def test_interactive(zone: Instance) -> None:
    terminal = Terminal(zone, "login", "web")
    terminal.until(b"[Connected to zone 'web' pts/")
    terminal.until(b"# ")
    terminal.send(b"tty; echo $TERM; stty size\n")
    terminal.until(b"/dev/pts/")
    terminal.until(b"33 99")
    fcntl.ioctl(terminal.master, termios.TIOCSWINSZ, struct.pack("HHHH", 44, 111, 0, 0))
    terminal.process.send_signal(signal.SIGWINCH)
    terminal.send(b"while [ \"$(stty size)\" != '44 111' ]; do sleep 0.05; done; echo re-$((3+4))-sized\n")
    terminal.until(b"re-7-sized")
    terminal.send(b"sh -c 'echo re-$((1+1))-ady; exec cat'\n")
    terminal.until(b"re-2-ady")
    terminal.send(b"~~x\n")
    terminal.until(b"\n~x")
    terminal.send(b"\x03")
    terminal.send(b"\nexit 3\n")
    terminal.until(b"[Connection to zone 'web' pts/")
    assert terminal.end() == 0 or terminal.process.returncode == 3


def test_disconnect_from_an_interactive_session(zone: Instance) -> None:
    terminal = Terminal(zone, "login", "web")
    terminal.until(b"# ")
    terminal.send(b"\nsleep 1000\n")

    def sleeps() -> bool:  # only what is in the foreground by then hears of a terminal's end
        return "sleep" in zone.login("web", "sh", "-c", "cat /proc/[0-9]*/comm")

    until(sleeps, "the sleep")
    terminal.send(b"~.")
    terminal.until(b"closed]")
    terminal.end()
    until(lambda: not sleeps(), "the session's end")
    assert zone.state() == "running"


def test_a_terminal_for_a_command(zone: Instance) -> None:
    terminal = Terminal(
        zone, "login", "-t", "web", "--", "sh", "-c", "test -t 0 && echo is-a-$((1+1))-tty; exit 5"
    )
    terminal.until(b"is-a-2-tty")
    assert terminal.end() == 5
