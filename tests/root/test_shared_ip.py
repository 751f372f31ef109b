"""A zone on the host's network stack: it has its addresses there, and root of the zone gets at no others."""

from __future__ import annotations

import secrets
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.kit import outside as world
from tests.kit.instance import Instance
from tests.kit.outside import FAR4, FAR6, HOST4, HOST6, Outside
from tests.kit.processes import Started
from tests.root.attacks.inside import ask

pytestmark = pytest.mark.requires("root", "userns", "mount", "net", "cgroup")

OWN4, OWN6 = "192.0.2.7", "2001:db8::7"
ECHO = """
import socket, threading
def serve(kind):
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("", 77))
    print("up", flush=True)
    while True:
        _, peer = server.recvfrom(100)
        server.sendto(peer[0].encode(), peer)
serve(0)
"""


@dataclass(frozen=True)
class Scene:
    instance: Instance
    outside: Outside


@pytest.fixture
def scene(instance: Instance) -> Iterator[Scene]:
    """One test for all: a zone costs more than a question."""
    with world.outside() as place:
        instance.run("create", "web", "--no-net", "ip-type=shared")
        for address in (f"{OWN4}/24", f"{OWN6}/64"):
            instance.run("config", "web", "add", "net", f"physical={place.link}", f"address={address}")
        instance.run("install", "web")
        instance.run("boot", "web")
        yield Scene(instance, place)


def host_addresses(link: str) -> str:
    return subprocess.run(["ip", "-o", "address", "show", link], capture_output=True, text=True, check=True).stdout


PROGRAM = f"""
def bind(family, address, port=0):
    with socket.socket(family) as sock:
        sock.bind((address, port))
        return sock.getsockname()[0]

def tell(act, *arguments):
    try:
        return act(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno]

def datagram(source, connected=False):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        asked = struct.pack("=I4s4s", 0, socket.inet_aton(source or "0.0.0.0"), bytes(4))
        control = [(socket.IPPROTO_IP, 8, asked)] if source else []
        if connected:
            sock.connect(("{FAR4}", 77))
        sock.sendmsg([b"?"], control, 0, *([] if connected else [("{FAR4}", 77)]))
        return sock.recv(100).decode()

def loopback():
    with socket.create_server(("127.0.0.1", 53)) as server, socket.create_connection(("127.0.0.1", 53)) as client:
        return server.accept()[1][0] == client.getsockname()[0]

answer({{
    "own": [tell(bind, socket.AF_INET, "{OWN4}", 80), tell(bind, socket.AF_INET6, "{OWN6}", 80)],
    "any": [tell(bind, socket.AF_INET, "", 80), tell(bind, socket.AF_INET6, "::", 80)],
    "disguised": tell(bind, socket.AF_INET6, "::ffff:{OWN4}"),
    "foreign": [tell(bind, socket.AF_INET, "{HOST4}"), tell(bind, socket.AF_INET6, "{HOST6}"),
                tell(bind, socket.AF_INET6, "::ffff:{HOST4}"), tell(bind, socket.AF_INET6, "::1")],
    "datagrams": [tell(datagram, ""), tell(datagram, "{HOST4}"), tell(datagram, "{HOST4}", True)],
    "loopback": tell(loopback),
    "raw": [attempt(socket.socket, socket.AF_INET, socket.SOCK_RAW, 1),
            attempt(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, 0),
            attempt(socket.socket, socket.AF_INET6, socket.SOCK_RAW, 58)],
    "ip": [subprocess.run(["ip", *words.split()], capture_output=True).returncode != 0 for words in (
        "address add {FAR4}/24 dev LINK", "link set LINK down", "route add 198.51.100.0/24 via {FAR4}",
        "link add zx type bridge", "neighbour add 192.0.2.9 lladdr 02:00:00:00:00:01 dev LINK")],
}})
"""


def test_a_zone_on_the_hosts_stack(scene: Scene) -> None:
    instance, place = scene.instance, scene.outside
    assert {OWN4, OWN6} <= {word.partition("/")[0] for word in host_addresses(place.link).split()}
    with Started(place.words("python3", "-c", ECHO), stdout=subprocess.PIPE) as echo:
        assert echo.stdout
        echo.stdout.readline()
        said = ask(instance, PROGRAM.replace("LINK", place.link))
        echo.kill()
    assert said["own"] == said["any"] == [OWN4, OWN6]
    assert said["disguised"] == f"::ffff:{OWN4}"
    assert set(said["foreign"]) == {"EADDRNOTAVAIL"}
    assert said["datagrams"][:2] == [OWN4, OWN4]
    assert said["datagrams"][2] in (OWN4, "EINVAL", "EPERM")
    assert said["loopback"] is True
    assert all(said["raw"])
    assert said["ip"] == [True] * 5

    command = [*instance.command, "--root", str(instance.root), "login", "web", "--"]
    with world.service(command, 80):  # binds to every address, and gets the zone's of IPv6
        assert place.ask((OWN6, 80), (HOST6, 80), (HOST4, 80)) == [FAR6, *["ConnectionRefusedError"] * 2]
        assert "Error" not in world.ask((OWN6, 80))[0]
    with world.service(place.words(), 99), world.service([], 99), socket.create_server(("127.0.0.1", 0)) as local:
        places = ((FAR4, 99), (FAR6, 99), (HOST4, 99), local.getsockname())
        words = [str(part) for there in places for part in there]
        answers = instance.login("web", "python3", "-c", world.ASK, *words).splitlines()
        assert answers == [OWN4, OWN6, OWN4, "ConnectionRefusedError"]

    instance.run("halt", "web")
    assert OWN4 not in host_addresses(place.link)
    assert OWN6 not in host_addresses(place.link)


def test_an_address_of_the_host_is_refused_and_stays(instance: Instance) -> None:
    with world.outside() as place:
        instance.run("create", "web", "--no-net", "ip-type=shared")
        instance.run("config", "web", "add", "net", f"physical={place.link}", f"address={HOST4}/24")
        instance.run("install", "web")
        done = instance.run("boot", "web", check=1)
        assert f"address {HOST4}/24 is in use by link {place.link} of the host" in done.stderr
        assert HOST4 in host_addresses(place.link)


def test_a_missing_link_is_skipped_with_a_warning(instance: Instance) -> None:
    missing = f"zm{secrets.token_hex(3)}"
    assert not Path("/sys/class/net", missing).exists()
    instance.run("create", "web", "--no-net", "ip-type=shared")
    instance.run("config", "web", "add", "net", f"physical={missing}", f"address={OWN4}/24")
    instance.run("install", "web")
    done = instance.run("boot", "web")
    assert f"skipping network interface '{missing}'" in done.stderr
    assert instance.state() == "running"
