"""What a zone sends to its bridge does not make the host change its own network."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.kit.instance import Instance
from tests.root.attacks.inside import ask

pytestmark = pytest.mark.requires("root", "userns", "mount", "net", "cgroup")

ADVERTISE = """
sock = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
prefix = struct.pack("!BBBBIII", 3, 4, 64, 0xC0, 3600, 3600, 0) + socket.inet_pton(socket.AF_INET6, "fd00:bad::")
router = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0) + prefix
index = socket.if_nametoindex("host0")
answer([attempt(sock.sendto, router, ("ff02::1", 0, 0, index)) for _ in range(5)])
"""


@pytest.mark.requires("ipv6")
@pytest.mark.attack("raw packets", "CVE-2020-13401")
def test_a_zone_cannot_make_itself_the_hosts_router(web: Instance) -> None:
    """CVE-2020-13401: router advertisements of a container give the host addresses and a default route."""
    settings = Path("/proc/sys/net/ipv6/conf") / web.bridge
    assert (settings / "accept_ra").read_text() == "0\n"
    before = subprocess.run(["ip", "-6", "route"], capture_output=True, text=True, check=True).stdout
    ask(web, ADVERTISE)
    web.login("web", "true")  # later than the kernel's handling of what was sent
    addresses = subprocess.run(["ip", "-6", "address"], capture_output=True, text=True, check=True).stdout
    routes = subprocess.run(["ip", "-6", "route"], capture_output=True, text=True, check=True).stdout
    assert "fd00:bad" not in addresses + routes
    assert {line for line in routes.splitlines() if line.startswith("default")} <= set(before.splitlines())


def test_links_of_the_host_are_not_the_zones(web: Instance) -> None:
    links = {line.split(":")[0].strip() for line in web.login("web", "cat", "/proc/net/dev").splitlines()[2:]}
    assert links == {"lo", "host0"}
