"""The terminals between an operator and a zone: neither end can type at the other's."""

from __future__ import annotations

import os
import pty
import select
import subprocess

import pytest

from tests.kit.console import Console
from tests.kit.instance import Instance
from tests.kit.processes import Started
from tests.root.attacks.inside import PRELUDE

pytestmark = pytest.mark.requires("root", "userns", "mount", "net", "cgroup")

INJECT = """
import fcntl
def push(descriptor):
    return attempt(lambda: [fcntl.ioctl(descriptor, 0x5412, character.encode()) for character in "touch /pwned\\n"])
seen = [push(0), push(os.open("/dev/tty", os.O_RDWR))]
seen.append(attempt(lambda: fcntl.ioctl(0, 0x540E, 1)) and "")
print("SEEN", seen, os.ttyname(0), flush=True)
"""


def typed_back(master_fd: int, child: subprocess.Popen[bytes]) -> str:
    """What the program at the terminal wrote until it ended."""
    text = b""
    while child.poll() is None or select.select([master_fd], [], [], 0)[0]:
        if select.select([master_fd], [], [], 0.05)[0]:
            try:
                text += os.read(master_fd, 65536)
            except OSError:
                break
    return text.decode(errors="replace")


@pytest.mark.attack("typing into terminals (TIOCSTI)", "CVE-2016-10124", "CVE-2017-5226")
def test_a_command_at_a_terminal_of_login_cannot_type_at_the_operators(web: Instance) -> None:
    """CVE-2016-10124, CVE-2017-5226: TIOCSTI on the terminal that login gives."""
    master_fd, slave_fd = pty.openpty()
    name = os.ttyname(slave_fd)
    command = [*web.command, "login", "-t", "web", "--", "/usr/bin/python3", "-c", PRELUDE + INJECT]
    try:
        with Started(command, env=web.env, stdin=slave_fd, stdout=slave_fd, stderr=slave_fd) as child:
            said = typed_back(master_fd, child)
            assert child.wait() == 0, said
        os.set_blocking(slave_fd, False)
        with pytest.raises(BlockingIOError):
            os.read(slave_fd, 100)  # nothing was typed for whoever reads this terminal next
    finally:
        os.close(master_fd)
        os.close(slave_fd)
    assert "SEEN ['EPERM', 'EPERM'" in said
    assert f"{name} " not in said.replace("/dev/pts/0", "")


@pytest.mark.attack("typing into terminals (TIOCSTI)")
def test_the_console_takes_no_input_from_the_zone_and_gives_none(web: Instance) -> None:
    """What a zone writes to its console comes to the client as output; pushing it in as input is refused."""
    program = PRELUDE + """
import fcntl
console = os.open("/dev/console", os.O_RDWR | os.O_NOCTTY)
seen = attempt(lambda: fcntl.ioctl(console, 0x5412, b"x"))
os.write(console, b"asked\\033[6n\\033[5nend\\n")
print(seen)
"""
    with Console(web) as console:
        assert web.login("web", "/usr/bin/python3", "-c", program) == "EPERM\n"
        console.until(b"end")
