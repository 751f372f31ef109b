"""Users whom an admin resource names work with their zones, and with nothing else, through a socket of their own."""

from __future__ import annotations

import json
import os
import pwd
import select
import signal
import socket
import stat
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kit.instance import CHECKOUT, Instance
from tests.kit.nursery import Nursery
from tests.kit.processes import Started
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
        name_users(instance, **{MANAGER: "manage", GUEST: "login"})
        yield instance
        instance.run("halt", "web", check=False)
        instance.run("config", "web", "remove -F admin")
        until(lambda: not (instance.layout.run / DELEGATE_SOCKET).exists(), "the delegate to leave")


def name_users(instance: Instance, **rights: str) -> None:
    for user, right in rights.items():
        instance.run("config", "web", f"add admin; set user={user}; add auths {right}; end")
    until(lambda: server_of(instance), "the delegate to listen")


def server_of(instance: Instance) -> int:
    """The process that listens; 0: none."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        try:
            sock.connect(str(instance.layout.run / DELEGATE_SOCKET))
        except OSError:
            return 0
        pid, _uid, _gid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return int(pid)


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
    with Started(words, env=shared.env, stdin=slave_fd, stdout=slave_fd, stderr=slave_fd, cwd="/") as child:
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
    pid = server_of(shared)
    descriptors = {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
    assert not {one for one in descriptors if one.startswith("pipe:")}
    unified = next(line for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines() if line.startswith("0::"))
    assert unified == f"0::/zonemgr{shared.suffix}/_supervisors"
    assert os.getsid(pid) == pid


def test_one_that_a_service_manager_keeps_follows_the_one_that_was_killed(instance: Instance) -> None:
    """And it leaves with the last user who is named."""
    instance.configured("web")
    name_users(instance, **{GUEST: "login"})
    words = [sys.executable, "-m", "zonemgr.supervisor", "delegate", "--stay", "--root", str(instance.root)]
    first = server_of(instance)
    with Started(words, env=instance.env, cwd="/") as kept:
        try:
            until(lambda: f" {kept.pid} " in Path("/proc/locks").read_text(), "the second one to wait")
            assert server_of(instance) == first
            os.kill(first, signal.SIGKILL)
            until(lambda: server_of(instance) == kept.pid, "the second one to serve")
            done = as_user(instance, GUEST, "halt", "web")
            assert done.stderr == f"zonemgr: User {GUEST} is not authorized to halt this zone.\n"
            instance.run("config", "web", "remove -F admin")
            assert kept.wait(30) == 0
        finally:
            kept.kill()
    assert not server_of(instance)


def test_it_leaves_when_the_last_one_goes_who_was_named_before(instance: Instance) -> None:
    """Nobody is named any more while somebody is still served."""
    instance.configured("web")
    name_users(instance, **{GUEST: "login"})
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as served:
        served.connect(str(instance.layout.run / DELEGATE_SOCKET))
        instance.run("config", "web", "remove -F admin")
    until(lambda: not server_of(instance), "the delegate to leave")


@pytest.fixture(scope="module")
def clones(warm: Nursery) -> Iterator[Instance]:
    """A zone to clone from, and zones that are configured for its clones."""
    with one_installed(warm) as instance:
        for name in ("copy", "other"):
            instance.configured(name)
        named = (("copy", MANAGER, "manage"), ("other", GUEST, "manage"), ("web", MANAGER, "clonefrom"))
        for name, user, right in named:
            instance.run("config", name, f"add admin; set user={user}; add auths {right}; end")
        until(lambda: server_of(instance), "the delegate to listen")
        yield instance
        for name in ("web", "copy", "other"):
            instance.run("config", name, "remove -F admin")
        until(lambda: not (instance.layout.run / DELEGATE_SOCKET).exists(), "the delegate to leave")


def answers_to(instance: Instance, user: str, *asked: tuple[str, ...]) -> list[dict[str, Any]]:
    """What a user's requests are answered, word for word."""
    given = json.dumps([json.dumps({"words": words}) for words in asked])
    done = as_user(instance, user, str(instance.layout.run / DELEGATE_SOCKET), given, code=SPEAK)
    return [json.loads(answer.rstrip("\n\0")) for answer in json.loads(done.stdout)]


@pytest.mark.parametrize(
    ("user", "pairs"),
    [
        (GUEST, [("web", "other")]),  # manages the target, and may not clone from the source
        # the other way round; a zone that is not there, since making one takes root; and a target to be overwritten
        (MANAGER, [("web", "other"), ("web", "new"), ("copy", "web"), ("copy", "copy")]),
        (STRANGER, [("web", "copy"), ("no-such-zone", "copy")]),
    ],
)
@pytest.mark.attack("rights of delegated users", "CVE-2022-47952")
def test_a_clone_takes_the_rights_on_both_zones(clones: Instance, user: str, pairs: list[tuple[str, str]]) -> None:
    before = clones.states()
    answers = answers_to(clones, user, *(("clone", *pair) for pair in pairs))
    text = f"User {user} is not authorized to clone this zone."
    assert answers == [{"refused": text, "code": 1}] * len(pairs)
    assert clones.states() == before


def test_how_a_clone_is_made_is_for_root_to_say(clones: Instance) -> None:
    asked = (
        ("clone", "-s", "/", "web", "copy"),
        ("clone", "-m", "copy", "web", "copy"),
        ("clone", "web", "copy", "-p", "vim"),
        ("clone", "web", "copy", "/etc"),
        ("clone", "web", "copy", "--", "x"),
        ("clone", "web"),
    )
    answers = answers_to(clones, MANAGER, *asked)
    assert [answer["code"] for answer in answers] == [2] * len(asked), answers
    assert clones.state("copy") == "configured"


def test_one_who_may_clone_from_a_zone_has_another_like_it(clones: Instance) -> None:
    """Last of those with clones."""
    planted = clones.layout.zonepath("web") / "root/srv/of-web"
    planted.write_text("kept\n")
    done = as_user(clones, MANAGER, "clone", "web", "copy")
    assert (done.returncode, clones.state("copy")) == (0, "installed"), done.stderr
    assert (clones.layout.zonepath("copy") / "root/srv/of-web").read_text() == "kept\n"
    assert stat.S_IMODE(clones.layout.zonepath("copy").stat().st_mode) == 0o700
    ids = [(clones.layout.zonepath(name) / "root/etc/machine-id").read_text() for name in ("web", "copy")]
    assert ids[0] != ids[1]
    again = as_user(clones, MANAGER, "clone", "web", "copy")
    assert (again.returncode, clones.state("copy")) == (1, "installed") and "zone 'copy'" in again.stderr
    assert as_user(clones, MANAGER, "boot", "web").returncode == 1  # clonefrom is no more than that
