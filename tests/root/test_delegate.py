"""Users whom an admin resource names work with their zones, and with nothing else, through a socket of their own."""

from __future__ import annotations

import json
import os
import pwd
import select
import socket
import stat
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.instance import CHECKOUT, Instance
from tests.kit.waiting import until
from tests.root.attacks.conftest import one_installed
from zonemgr.wire.start import DELEGATE_SOCKET

pytestmark = pytest.mark.requires("root", "userns", "mount", "net", "cgroup")

MANAGER, GUEST, STRANGER = "games", "news", "man"

# Becomes the user only once everything is loaded: a checkout may lie where the user cannot read.
AS_USER = """
import os, pwd, sys
from zonemgr.cli import console, delegated, lifecycle, login, main, terminal
from zonemgr.linux import pty
from zonemgr.wire import packets
user = pwd.getpwnam(sys.argv.pop(1))
os.setgroups([]); os.setresgid(*[user.pw_gid] * 3); os.setresuid(*[user.pw_uid] * 3)
"""
COMMAND = AS_USER + "main.main()\n"
SPEAK = AS_USER + """
import json, socket
answers = []
for given in json.loads(sys.argv[2]):
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.settimeout(20)
    sock.connect(sys.argv[1])
    sock.send(given.encode("latin-1"))
    try:
        answers.append(sock.recv(65536).decode())
    except OSError as error:
        answers.append(str(error))
    sock.close()
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def shared() -> Iterator[Instance]:
    """A zone that two users have rights on, booted by one of them."""
    with one_installed() as instance:
        for user, right in ((MANAGER, "manage"), (GUEST, "login")):
            instance.run("config", "web", f"add admin; set user={user}; add auths {right}; end")
        until(lambda: (instance.layout.run / DELEGATE_SOCKET).exists(), "the delegate to listen")
        yield instance
        instance.run("halt", "web", check=False)
        instance.run("config", "web", "remove -F admin")
        until(lambda: not (instance.layout.run / DELEGATE_SOCKET).exists(), "the delegate to leave")


def as_user(
    instance: Instance, user: str, *words: str, code: str = COMMAND, input: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user of the host."""
    return subprocess.run(
        [sys.executable, "-c", code, user, *words],
        env={**instance.env, "PYTHONPATH": str(CHECKOUT)},
        input=input,
        text=True,
        capture_output=True,
        timeout=60,
        cwd="/",
    )


def test_one_who_manages_the_zone_brings_it_up_and_works_in_it(shared: Instance) -> None:
    done = as_user(shared, MANAGER, "boot", "web")
    assert (done.returncode, shared.state()) == (0, "running"), done.stderr
    done = as_user(shared, MANAGER, "login", "web", "--", "sh", "-c", "id -u; cat; exit 5", input="typed\n")
    assert (done.stdout, done.returncode) == ("0\ntyped\n", 5)
    assert as_user(shared, MANAGER, "boot", "web").stderr == "zonemgr: zone 'web': zone is already booted\n"


@pytest.mark.parametrize("user", [GUEST, STRANGER])
@pytest.mark.attack("rights of delegated users", "CVE-2022-47952", "CVE-2018-6556", "CVE-2026-39402")
def test_others_are_told_that_they_are_not_authorized(shared: Instance, user: str) -> None:
    for zone in ("web", "no-such-zone"):
        done = as_user(shared, user, "halt", zone)
        assert done.returncode == 1
        assert done.stderr == f"zonemgr: User {user} is not authorized to halt this zone.\n"
    assert shared.state() == "running"


def test_a_right_to_log_in_is_no_right_to_run_commands(shared: Instance) -> None:
    done = as_user(shared, GUEST, "login", "web", "--", "id")
    assert done.returncode == 1
    assert done.stderr == "zonemgr: it takes the right to manage the zone to run a command in it\n"


def test_a_manager_at_a_terminal_gets_a_terminal_of_the_zones(shared: Instance) -> None:
    master_fd, slave_fd = os.openpty()
    words = [sys.executable, "-c", COMMAND, MANAGER, "login", "web"]
    with subprocess.Popen(words, env=shared.env, stdin=slave_fd, stdout=slave_fd, stderr=slave_fd, cwd="/") as child:
        os.close(slave_fd)
        said = ""

        def hears(wanted: str) -> bool:
            nonlocal said
            while select.select([master_fd], [], [], 0)[0]:
                said += os.read(master_fd, 65536).decode(errors="replace")
            return wanted in said

        until(lambda: hears("Connected to zone 'web'"), "the login to begin")
        os.write(master_fd, b"echo sum $((40 + 2)); tty; exit 3\n")
        until(lambda: hears("sum 42"), "the shell's answer")
        assert child.wait(30) == 3
    os.close(master_fd)


@pytest.mark.attack("rights of delegated users")
def test_the_sockets_of_root_stay_closed_and_strange_words_are_hung_up_on(shared: Instance) -> None:
    run = shared.layout.run
    assert stat.S_IMODE((run / DELEGATE_SOCKET).stat().st_mode) == 0o666
    assert stat.S_IMODE((run / "zones/web").stat().st_mode) == 0o700
    asked = ["", "nonsense", "[1,2]", "{}", '{"words": 3}', '{"words": [1]}', "\xff" * 100]
    asked.append('{"words": ["config", "web"]}')
    asked.append(json.dumps({"words": ["boot", "--root", "/tmp", "web"]}))
    asked.append(json.dumps({"words": ["halt", "web; id"]}))
    asked.append("[" * 50000)
    done = as_user(shared, STRANGER, str(run / DELEGATE_SOCKET), json.dumps(asked), code=SPEAK)
    answers = json.loads(done.stdout)
    assert not any("started" in answer for answer in answers), answers
    assert shared.state() == "running"


def test_who_asks_too_often_has_to_wait_and_others_have_not(shared: Instance) -> None:
    asked = [json.dumps({"words": ["halt", "web"]})] * 40
    done = as_user(shared, STRANGER, str(shared.layout.run / DELEGATE_SOCKET), json.dumps(asked), code=SPEAK)
    assert any("too many requests" in answer for answer in json.loads(done.stdout))
    assert as_user(shared, MANAGER, "login", "web", "--", "true").returncode == 0


@pytest.mark.attack("rights of delegated users")
def test_a_process_of_the_zone_is_not_served(shared: Instance) -> None:
    """Not even one that a link to the socket reaches, with the uid of the user on the host."""
    uid = pwd.getpwnam(MANAGER).pw_uid
    path = shared.layout.run / DELEGATE_SOCKET
    code = f"""
import socket
sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
sock.connect({str(path)!r})
sock.send(b'{{"words": ["halt", "web"]}}')
print(sock.recv(1000))
"""
    command = ["unshare", "--user", "--map-root-user", sys.executable, "-c", code]
    done = subprocess.run(command, user=uid, group=uid, extra_groups=[], capture_output=True, text=True, cwd="/")
    assert "started" not in done.stdout and "authorized" not in done.stdout, done.stdout
    assert shared.state() == "running"


def test_rights_that_are_taken_away_are_gone_at_once(shared: Instance) -> None:
    """Last in this file."""
    shared.run("config", "web", f"select admin user={MANAGER}; set auths=login; end")
    done = as_user(shared, MANAGER, "halt", "web")
    assert done.stderr == f"zonemgr: User {MANAGER} is not authorized to halt this zone.\n"


def test_without_an_admin_resource_nobody_listens(instance: Instance) -> None:
    instance.installed("web")
    assert not (instance.layout.run / DELEGATE_SOCKET).exists()
    done = as_user(instance, MANAGER, "boot", "web")
    assert done.stderr == "zonemgr: only a privileged user may boot a zone.\n"


def test_it_keeps_nothing_of_whoever_started_it(shared: Instance) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.connect(str(shared.layout.run / DELEGATE_SOCKET))
        pid, _uid, _gid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    descriptors = {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
    assert not {one for one in descriptors if one.startswith("pipe:")}
    unified = next(line for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines() if line.startswith("0::"))
    assert unified == f"0::/zonemgr{shared.suffix}/_supervisors"
    assert os.getsid(pid) == pid
