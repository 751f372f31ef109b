"""A network namespace that stands for the world outside of the host, with a link to it; and little conversations.

A service answers every TCP connection with the address that it comes from, so that one question shows both that a way
exists and as whom one arrives there.
"""

from __future__ import annotations

import contextlib
import secrets
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from tests.kit.processes import Started

HOST4: Final = "192.0.2.1"
HOST6: Final = "2001:db8::1"
FAR4: Final = "192.0.2.2"
FAR6: Final = "2001:db8::2"

SERVICE: Final = """
import socket, sys
server = socket.create_server(("", int(sys.argv[1])), family=socket.AF_INET6, dualstack_ipv6=True)
print("up", flush=True)
while True:
    connection, peer = server.accept()
    connection.sendall(peer[0].removeprefix("::ffff:").encode())
    connection.close()
"""
ASK: Final = """
import socket, sys
for where, port in zip(sys.argv[1::2], sys.argv[2::2]):
    try:
        with socket.create_connection((where, int(port)), timeout=2) as connection:
            connection.settimeout(30)  # whoever is reached answers, however busy the host is
            print(connection.recv(100).decode())
    except OSError as error:
        print(type(error).__name__)
"""


@dataclass(frozen=True)
class Outside:
    """The namespace of a process; ``link`` is the host's end."""

    pid: int
    link: str

    def words(self, *words: str) -> list[str]:
        """The command that runs these words in there."""
        return ["nsenter", "-t", str(self.pid), "-n", *words]

    def run(self, *words: str, check: bool = True) -> str:
        return subprocess.run(self.words(*words), check=check, capture_output=True, text=True, timeout=60).stdout

    def ask(self, *places: tuple[str, int]) -> list[str]:
        """What services answer to somebody out there."""
        return _answers(self.words("python3", "-c", ASK), places)


def ask(*places: tuple[str, int]) -> list[str]:
    """What services answer to the host itself."""
    return _answers(["python3", "-c", ASK], places)


def _answers(words: Sequence[str], places: Sequence[tuple[str, int]]) -> list[str]:
    arguments = [str(part) for place in places for part in place]
    done = subprocess.run([*words, *arguments], check=True, capture_output=True, text=True, timeout=60)
    return done.stdout.splitlines()


@contextlib.contextmanager
def outside() -> Iterator[Outside]:
    """The world: 192.0.2.2 and 2001:db8::2; the host is 192.0.2.1 and 2001:db8::1 there."""
    name = f"zo{secrets.token_hex(4)}"
    with Started(["unshare", "-n", "sh", "-c", "echo; exec sleep 1000"], stdout=subprocess.PIPE) as world:
        assert world.stdout
        world.stdout.readline()
        place = Outside(world.pid, name)
        try:
            _ip(f"link add {name} type veth peer name out0 netns {world.pid}")
            _ip(f"address add {HOST4}/24 dev {name}")
            _ip(f"address add {HOST6}/64 dev {name} nodad")
            _ip(f"link set {name} up")
            for words in (f"address add {FAR4}/24 dev out0", f"address add {FAR6}/64 dev out0 nodad",
                          "link set out0 up", "link set lo up"):  # fmt: skip
                place.run("ip", *words.split())
            yield place
        finally:
            _ip(f"link delete {name}")
            world.kill()


def _ip(words: str) -> None:
    subprocess.run(["ip", *words.split()], check=True, timeout=60)


@contextlib.contextmanager
def service(words: Sequence[str], port: int) -> Iterator[None]:
    """A service on a port, started by a command that takes a program's words."""
    with Started([*words, "python3", "-c", SERVICE, str(port)], stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        yield
        process.kill()
