"""The sockets of a zone's manager: only root of the host may ask, and nobody can harm them by talking nonsense.

The zone gets the instance's run folder as an fs resource, read-only and with the host's ids as its own, so that its
root may connect to every socket as far as the file system is concerned.
"""

from __future__ import annotations

import array
import json
import os
import signal
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.instance import Instance
from tests.kit.waiting import until
from tests.root.attacks.inside import ask
from zonemgr.store import instance as instances

pytestmark = pytest.mark.requires("root", "userns", "mount", "net", "cgroup")

SOCKETS = ("door", "console", "zsched")
CALL = json.dumps({"method": "org.zonemgr.Zone.Halt", "parameters": {}}).encode() + b"\0"

# Connects to each socket and says what it likes to hear; the answers, or the errno.
TALK = """
def talk(path, kind, words, folder):
    sock = socket.socket(socket.AF_UNIX, kind)
    sock.settimeout(5)
    try:
        sock.connect("/proc/self/fd/%d/%s" % (folder, path))
        try:
            sock.send(words)
        except BrokenPipeError:
            pass  # it closed already; what it said is still to be read
        return sock.recv(4096).decode("latin-1")
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))

def talk_to_all(folder):
    fd = os.open(folder, os.O_PATH)
    ask = b'{"method": "org.zonemgr.Zone.%s", "parameters": {}}' + bytes(1)
    return {
        "door": talk("door", socket.SOCK_STREAM, ask % b"Halt", fd),
        "state": talk("door", socket.SOCK_STREAM, ask % b"GetState", fd),
        "console": talk("console", socket.SOCK_STREAM, b"IDENT 1 C 0" + bytes([10]), fd),
        "zsched": talk("zsched", socket.SOCK_SEQPACKET, b'{"op":"quit"}' + bytes([10]), fd),
    }
"""


@pytest.fixture(scope="module")
def shared(installed: Instance) -> Instance:
    """The zone, booted, with the folder of its own sockets in it."""
    installed.run(
        "config",
        "web",
        f"add fs; set dir=/srv/run; set type=bind; set special={installed.layout.run}; add options ro; end",
    )
    installed.run("boot", "web")
    return installed


def supervisor_of(instance: Instance) -> int:
    """The pid of the zone's supervisor."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and (folder / "comm").exists():
            try:
                if (folder / "comm").read_text() == "zone-supervisor\n" and _is_of(folder, instance):
                    return int(folder.name)
            except OSError:
                continue
    raise AssertionError("the zone has no supervisor")


def _is_of(folder: Path, instance: Instance) -> bool:
    return any(os.readlink(entry).startswith(str(instance.layout.run)) for entry in (folder / "fd").iterdir())


def assert_refused(answers: dict[str, str]) -> None:
    assert "PermissionDenied" in answers["door"] or answers["door"] in ("EACCES", "EPERM")
    assert "PermissionDenied" in answers["state"] or answers["state"] in ("EACCES", "EPERM")
    assert answers["console"] in ("", "ECONNRESET", "EPIPE", "EACCES", "EPERM")
    assert answers["zsched"] in ("", "ECONNRESET", "EPIPE", "EACCES", "EPERM")


@pytest.mark.attack("sockets of the manager")
def test_root_of_the_zone_is_refused_at_every_socket(shared: Instance) -> None:
    zsched = instances.read(shared.layout, "web")
    assert zsched is not None and zsched.zsched is not None
    # The file system would let it in: it is shown as the owner.
    assert ask(shared, 'answer(os.stat("/srv/run/zones/web/door").st_uid)') == 0
    answers = ask(shared, TALK + 'answer(talk_to_all("/srv/run/zones/web"))')
    assert "PermissionDenied" in answers["door"]
    assert_refused(answers)
    assert shared.state("web") == "running"
    assert zsched.zsched.alive


@pytest.mark.attack("sockets of the manager")
def test_root_of_the_zone_cannot_replace_the_sockets_or_the_records(shared: Instance) -> None:
    program = """
base = "/srv/run/zones/web/"
answer([attempt(act) for act in (
    lambda: os.unlink(base + "door"), lambda: os.rename(base + "door", base + "d"),
    lambda: write(base + "instance.json", "{}"), lambda: write(base + "ledger.jsonl", ""),
    lambda: os.chmod(base, 0o777), lambda: os.symlink("/etc", base + "link"))])
"""
    assert set(ask(shared, program)) == {"EROFS"}


SCRIPT = """
import errno, json, os, socket, sys
{talk}
print(json.dumps(talk_to_all(sys.argv[1])), flush=True)
"""


@pytest.fixture
def opened(shared: Instance) -> Iterator[Path]:
    """The folder of the sockets with all modes lifted: what is left is the check of who asks."""
    folder = shared.layout.zone_run("web")
    changed = [folder, *(folder / name for name in SOCKETS)]
    modes = [path.stat().st_mode for path in changed]
    for path in changed:
        path.chmod(0o777)
    yield folder
    for path, mode in zip(changed, modes, strict=True):
        path.chmod(stat.S_IMODE(mode))


@pytest.mark.parametrize(
    "who",
    [
        ("setpriv", "--reuid=1234", "--regid=1234", "--clear-groups"),
        ("setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"),
        ("unshare", "--user", "--map-root-user"),
        ("unshare", "--pid", "--fork"),
    ],
    ids=lambda words: "-".join(words[:2]),
)
@pytest.mark.attack("sockets of the manager")
def test_others_of_the_host_are_refused(shared: Instance, opened: Path, who: tuple[str, ...]) -> None:
    program = SCRIPT.format(talk=TALK)
    python = os.path.realpath("/usr/bin/python3")
    done = subprocess.run([*who, python, "-c", program, str(opened)], capture_output=True, text=True, check=True)
    answers = json.loads(done.stdout)
    assert "PermissionDenied" in answers["door"]
    assert_refused(answers)
    assert shared.state("web") == "running"


def test_the_sockets_are_closed_to_other_users_by_their_folder(shared: Instance) -> None:
    folder = shared.layout.zone_run("web")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for name in ("door", "console"):
        assert stat.S_ISSOCK((folder / name).stat().st_mode)


# -- nonsense ---------------------------------------------------------------------------------------------------


def connected(instance: Instance, name: str = "door", kind: int = socket.SOCK_STREAM) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, kind)
    folder_fd = os.open(instance.layout.zone_run("web"), os.O_PATH)
    try:
        sock.connect(f"/proc/self/fd/{folder_fd}/{name}")
    except OSError:
        sock.close()
        raise
    finally:
        os.close(folder_fd)
    sock.settimeout(10)
    return sock


def ends(sock: socket.socket) -> bool:
    """Whether the other end closes, whatever it says before."""
    try:
        while sock.recv(65536):
            pass
    except ConnectionError:
        return True
    return True


@pytest.mark.parametrize(
    "words",
    [
        b"x" * (64 * 1024 + 1),
        b"not json\0",
        b"[]\0",
        b'{"method": 7}\0',
        b"\xff\xfe\0",
        b"\0" * 1000,
        b"[" * 20000 + b"\0",
        b'{"method": "org.zonemgr.Zone.GetState", "parameters": []}\0',
        CALL[:-1].replace(b"Halt", b"GetState") * 1 + b"\0" + b'{"method": "org.zonemgr.Zone.GetState"}\0' * 200,
    ],
    ids=("long", "text", "list", "number", "bytes", "empty", "deep", "parameters", "many"),
)
@pytest.mark.attack("exhausting the manager")
def test_nonsense_at_the_door_ends_the_connection_and_nothing_else(shared: Instance, words: bytes) -> None:
    pid = supervisor_of(shared)
    with connected(shared) as sock:
        try:
            sock.sendall(words)
            sock.shutdown(socket.SHUT_WR)
        except (BrokenPipeError, ConnectionResetError):
            pass
        assert ends(sock)
    assert shared.json("list", "web")[0]["state"] == "running"
    assert supervisor_of(shared) == pid


def test_half_a_request_keeps_nobody_waiting(shared: Instance) -> None:
    with connected(shared) as half, connected(shared, "console") as console:
        half.sendall(CALL[:20])
        console.sendall(b"IDENT 1")
        with connected(shared) as other:
            other.sendall(b'{"method": "org.zonemgr.Zone.GetState"}\0')
            assert b'"zone"' in other.recv(65536)


def test_passed_descriptors_are_closed(shared: Instance) -> None:
    pid = supervisor_of(shared)
    before = len(os.listdir(f"/proc/{pid}/fd"))
    read_fd, write_fd = os.pipe()
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [write_fd] * 50))]
    for name in ("door", "console"):
        with connected(shared, name) as sock:
            sock.sendmsg([b"{"], rights)
            sock.shutdown(socket.SHUT_WR)
            assert ends(sock)
    os.close(write_fd)
    with open(read_fd, "rb") as pipe:  # ends only when nobody holds the writing end any more
        assert pipe.read() == b""
    until(lambda: len(os.listdir(f"/proc/{pid}/fd")) <= before, "the supervisor's closing of descriptors")


@pytest.mark.attack("exhausting the manager", "CVE-2022-31030")
def test_many_connections_that_say_nothing_do_not_shut_the_door(shared: Instance) -> None:
    idle = [connected(shared) for _ in range(100)]
    try:
        with connected(shared) as other:
            other.sendall(b'{"method": "org.zonemgr.Zone.GetState"}\0')
            assert b'"zone"' in other.recv(65536)
    finally:
        for sock in idle:
            sock.close()


def test_nonsense_at_zsched_ends_the_connection_and_not_zsched(shared: Instance) -> None:
    found = instances.read(shared.layout, "web")
    assert found is not None and found.zsched is not None
    nonsense = (b"\n", b"[]\n", b"7\n", b"null\n", b"\xff\n", b"[" * 20000, b"{}\n", b'{"op": ["x"]}\n')
    for words in (*nonsense, b'{"op": "stub"}\n', b'{"op": "console"}\n'):
        with connected(shared, "zsched", socket.SOCK_SEQPACKET) as sock:
            sock.send(words)
            sock.recv(65536)
    assert found.zsched.alive
    assert shared.login("web", "echo", "alive") == "alive\n"


def test_a_supervisor_that_is_stopped_delays_and_does_not_harm(shared: Instance) -> None:
    """What an attacker with a slow supervisor would hope for: a caller that hangs for ever, or a zone that is lost."""
    pid = supervisor_of(shared)
    os.kill(pid, signal.SIGSTOP)
    try:
        assert shared.state("web") == "running"
        assert shared.login("web", "echo", "alive") == "alive\n"
    finally:
        os.kill(pid, signal.SIGCONT)
