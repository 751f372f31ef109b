"""The console of a zone: its socket's protocol, its notices, and what it survives (reference, section 5)."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.kit import door
from tests.kit.console import Console, answer, knock
from tests.kit.instance import Instance
from tests.kit.waiting import until
from zonemgr.store import instance as instances

pytestmark = pytest.mark.requires("root", "mount", "net", "cgroup")

PROMPT = b"# "
UP = b"press Enter for a console shell"
ECHO = b"echo con-$((40+2))-sole\n"


@pytest.fixture
def zone(instance: Instance) -> Instance:
    instance.installed()
    return instance


def talks(console: Console) -> None:
    """A shell of the zone reads what the client types, and answers."""
    console.send(b"\n")
    console.until(PROMPT)
    console.send(ECHO)
    console.until(b"con-42-sole")


def test_connected_before_the_boot_it_shows_the_boot_and_lives_through_everything(zone: Instance) -> None:
    with Console(zone) as console:
        assert door.state(zone)["console_pid"] == os.getpid()
        zone.run("boot", "web")
        console.until(b"\r\n[NOTICE: Zone booting up]\r\n")
        talks(console)
        zone.run("reboot", "web")
        console.until(b"\r\n[NOTICE: Zone rebooting]\r\n")
        talks(console)
        zone.run("halt", "web")
        console.until(b"\r\n[NOTICE: Zone halted]\r\n")
        assert b"READIED" not in console.text and b"readied" not in console.text
        zone.run("ready", "web")
        console.until(b"\r\n[NOTICE: Zone readied]\r\n")
        zone.run("boot", "web", "--", "-s")
        console.until(b"\r\n[NOTICE: Zone booting up with arguments: -s]\r\n")
        zone.run("halt", "web")
        console.until(b"\r\n[NOTICE: Zone halted]\r\n")


def test_reboot_halt_and_poweroff_typed_at_the_console(zone: Instance) -> None:
    with Console(zone) as console:
        zone.run("boot", "web")
        talks(console)
        console.send(b"reboot\n")
        console.until(b"\r\n[NOTICE: Zone rebooting]\r\n")
        console.until(UP)  # what is typed before there is a terminal is nobody's
        talks(console)
        for word in (b"halt\n", b"poweroff\n"):
            console.send(word)
            console.until(b"\r\n[NOTICE: Zone halted]\r\n")
            until(lambda: zone.state() == "installed", "the halt")
            zone.run("boot", "web")
            talks(console)


def test_one_client(zone: Instance) -> None:
    with Console(zone):
        with knock(zone, b"IDENT 1 C 0\n") as second:
            assert answer(second) == b"%d\n" % os.getpid()
        done = zone.run("console", "web", check=1)
        assert done.stderr == f"zonemgr: zone 'web': Console is already in use by process ID {os.getpid()}.\n"
    until(lambda: door.state(zone)["console_pid"] is None, "the client's end")
    with Console(zone):
        pass


def test_a_client_that_was_killed_makes_room(zone: Instance) -> None:
    client = zone.popen("console", "web", stdin=subprocess.PIPE)
    assert client.stdout is not None
    assert client.stdout.readline() == "[Connected to zone 'web' console]\n"
    assert door.state(zone)["console_pid"] == client.pid
    client.kill()
    client.communicate()
    with Console(zone):
        pass


@pytest.mark.parametrize(
    "line", [b"IDENT\n", b"IDENT x C 0\n", b"HELLO 1 C 0\n", b"\n", b"\0" * 600, b"IDENT " * 200]
)
def test_a_malformed_ident_is_hung_up_on_and_harms_nobody(zone: Instance, line: bytes) -> None:
    with Console(zone):
        with knock(zone, line) as stranger:
            assert answer(stranger) == b""
        assert door.state(zone)["console_pid"] == os.getpid()


def test_an_old_clients_ident_has_three_words(zone: Instance) -> None:
    with knock(zone, b"IDENT 7 C\n") as client:
        assert answer(client) == b"OK\n"
        assert door.state(zone)["console_pid"] == 7


def test_disconnect_when_the_zone_halts(zone: Instance) -> None:
    zone.run("boot", "web")
    with Console(zone, leave_on_halt=True) as console:
        zone.run("reboot", "web")
        console.until(b"\r\n[NOTICE: Zone rebooting]\r\n")
        zone.run("halt", "web")
        console.until(b"\r\n[NOTICE: Zone halted.  Disconnecting...]\r\n")
        console.end()


def test_disconnect_when_the_boot_fails(zone: Instance) -> None:
    with Console(zone, leave_on_halt=True) as console:
        zone.run("boot", "web", "--", "-i", "/nowhere", check=1)
        console.until(b"\r\n[NOTICE: Zone boot failed.  Disconnecting...]\r\n")
        console.end()


def test_uninstall_disconnects(zone: Instance) -> None:
    with Console(zone) as console:
        zone.run("uninstall", "-F", "web")
        console.until(b"\r\n[NOTICE: Zone is being uninstalled.  Disconnecting...]\r\n")
        console.end()
    assert zone.state() == "configured"


def test_a_client_keeps_the_supervisor_and_its_end_ends_it(zone: Instance) -> None:
    with Console(zone):
        pid = door.state(zone)["supervisor_pid"]
        zone.run("boot", "web")
        zone.run("halt", "web")
        assert door.state(zone)["supervisor_pid"] == pid
    until(lambda: not Path(f"/proc/{pid}").exists(), "the supervisor's end")
    assert not (zone.layout.zone_run("web") / "console").exists()
    assert not (zone.layout.zone_run("web") / "door").exists()


def test_output_is_kept_in_a_bounded_log(zone: Instance) -> None:
    zone.run("boot", "web")
    with Console(zone) as console:
        talks(console)
    log = zone.layout.zone_log("web") / "console.log"
    assert b"con-42-sole" in log.read_bytes()
    assert log.stat().st_mode & 0o777 == 0o600
    zone.login("web", "sh", "-c", "head -c 2500000 /dev/zero | tr '\\0' x > /dev/console")
    until(lambda: log.with_name("console.log.1").exists(), "the log's rotation")
    both = log.stat().st_size + log.with_name("console.log.1").stat().st_size
    assert both <= 3 << 20


def test_a_client_that_never_reads_harms_nobody(zone: Instance) -> None:
    zone.run("boot", "web")
    with Console(zone) as console:
        zone.login("web", "sh", "-c", "head -c 3000000 /dev/zero | tr '\\0' x > /dev/console")
        assert door.state(zone)["state"] == "running"
        zone.run("reboot", "web")
        console.end()  # it was let go
    with Console(zone) as console:
        talks(console)


def test_a_client_that_never_stops_typing_harms_nobody(zone: Instance) -> None:
    zone.run("boot", "web")
    zone.login("web", "sh", "-c", "kill -STOP -1; true", check=False)  # nobody reads the terminal
    with Console(zone) as console:
        console.socket.setblocking(False)
        sent = 0
        while sent < 8 << 20 and select.select([], [console.socket], [], 0.2)[1]:
            sent += console.socket.send(b"x\n" * 8192)
        assert door.state(zone)["state"] == "running"
        zone.run("halt", "web")
        console.until(b"[NOTICE: Zone halted]")


def test_half_an_ident_holds_nobody_up(zone: Instance) -> None:
    idle = [knock(zone, b"IDENT") for _ in range(3)]
    with Console(zone) as console:
        zone.run("boot", "web")
        talks(console)
    for connection in idle:
        connection.close()


def test_the_console_outlives_a_killed_supervisor(zone: Instance) -> None:
    """zsched reads on meanwhile, and hands over what came."""
    zone.run("boot", "web")
    with Console(zone) as console:
        talks(console)
        before = door.state(zone)
        os.kill(before["supervisor_pid"], signal.SIGKILL)
        console.end()
    record = instances.read(zone.layout, "web")
    assert record is not None and record.init is not None
    # More than a terminal holds, so it ends only if somebody reads.
    script = "head -c 30000 /dev/zero | tr '\\0' y > /dev/console; echo nobody-there > /dev/console"
    subprocess.run(["nsenter", "-t", str(record.init.pid), "-a", "sh", "-c", script], check=True, timeout=30)
    with Console(zone) as console:
        talks(console)
        assert door.state(zone)["init_pid"] == before["init_pid"]
    assert b"nobody-there" in (zone.layout.zone_log("web") / "console.log").read_bytes()


# -- the command ------------------------------------------------------------------------------------------------


class Terminal:
    """``zonemgr console`` at a terminal of its own."""

    def __init__(self, instance: Instance, *words: str) -> None:
        self.master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 99, 0, 0))
        self.process = instance.popen(*words, stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
        os.close(slave)
        self.text = b""

    def until(self, wanted: bytes, deadline_s: float = 30) -> None:
        while wanted not in self.text:
            assert select.select([self.master], [], [], deadline_s)[0], self.text
            try:
                self.text += os.read(self.master, 65536)
            except OSError:
                raise AssertionError(f"it ended: {self.text!r}") from None
        self.text = self.text.partition(wanted)[2]

    def send(self, data: bytes) -> None:
        os.write(self.master, data)

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.process.send_signal(signal.SIGWINCH)

    def end(self) -> int:
        status = self.process.wait(30)
        os.close(self.master)
        return status


@pytest.fixture
def terminal(zone: Instance) -> Iterator[Terminal]:
    zone.run("boot", "web")
    made = Terminal(zone, "console", "web")
    yield made
    if made.process.poll() is None:
        made.process.kill()
        made.end()


def test_the_command_at_a_terminal(zone: Instance, terminal: Terminal) -> None:
    terminal.until(b"[Connected to zone 'web' console]")
    terminal.send(b"\n")
    terminal.until(PROMPT)
    terminal.send(b"stty size\n")
    terminal.until(b"33 99")
    terminal.resize(44, 111)
    master_is_told = "while [ \"$(stty size)\" != '44 111' ]; do read -t 0.1 x; done; echo si-$((3+4))-ze\n"
    terminal.send(master_is_told.encode())
    terminal.until(b"si-7-ze")
    terminal.send(b"\n~.")
    terminal.until(b"[Connection to zone 'web' console closed]")
    assert terminal.end() == 0
    assert zone.state() == "running"


@contextmanager
def in_locale(zone: Instance, locale: str, *words: str) -> Iterator[Terminal]:
    program = ("env", f"LC_ALL={locale}", "PYTHONUTF8=1", sys.executable, "-m", "zonemgr")
    terminal = Terminal(Instance(zone.root, program), *words)
    try:
        yield terminal
    finally:
        terminal.process.kill()
        terminal.end()


def test_notices_come_in_the_language_of_whoever_is_connected(zone: Instance) -> None:
    with in_locale(zone, "de_DE.UTF-8", "console", "-d", "web") as terminal:
        terminal.until("[Mit der Konsole der Zone »web« verbunden]".encode())
        zone.run("boot", "web")  # whose caller speaks another
        terminal.until(b"[HINWEIS: Zone startet]")
        zone.run("reboot", "web", "--", "-s")
        terminal.until(b"[HINWEIS: Zone startet neu mit Argumenten: -s]")
        zone.run("halt", "web")
        terminal.until(b"[HINWEIS: Zone angehalten.  Die Verbindung wird getrennt ...]")
        terminal.until("[Die Verbindung mit der Konsole der Zone »web« ist beendet]".encode())
        assert terminal.process.wait(30) == 0


def test_a_locale_that_is_none_keeps_nobody_from_the_console(zone: Instance) -> None:
    for locale in (" ", "ä" * 300, "de " + "x" * 5000):
        with in_locale(zone, locale, "console", "web") as terminal:
            terminal.until(b"]")  # in whatever language
            terminal.send(b"~.")
            assert terminal.process.wait(30) == 0


def test_strangers_at_the_console(zone: Instance) -> None:
    """Whoever is not root of the host gets nothing, even if the path were open to him."""
    with Console(zone):
        path = zone.layout.zone_run("web") / "console"
        script = f"import socket; s = socket.socket(socket.AF_UNIX); s.connect({str(path)!r}); "
        script += "s.sendall(b'IDENT 1 C 0\\n'); print(s.recv(10))"
        for wrapper in (["setpriv", "--bounding-set", "-sys_admin"], ["unshare", "--pid", "--fork"]):
            done = subprocess.run(
                [*wrapper, sys.executable, "-c", script], capture_output=True, text=True, timeout=30
            )
            assert done.stdout in ("b''\n", ""), wrapper
