"""Traffic between zones, their host and the world outside of it, and what is left of the packet filter afterwards."""

from __future__ import annotations

import json
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.kit import outside as world
from tests.kit.instance import Instance
from tests.kit.nursery import Nursery, nursery
from tests.kit.outside import FAR4, FAR6, HOST4, HOST6, Outside
from zonemgr.linux import nft

pytestmark = pytest.mark.requires("root", "userns", "mount", "net", "cgroup", "nft")

FORWARDING = ("net/ipv4/conf/all/forwarding", "net/ipv6/conf/all/forwarding")
SETTINGS = "forwarding = true\netc-hosts = true\n"
BRIDGES_FILTER6 = Path("/proc/sys/net/bridge/bridge-nf-call-ip6tables")  # there when br_netfilter is loaded
IP_PKTINFO = 8  # Python has no name for it
FOREIGN = "add table inet zmforeign\nadd chain inet zmforeign input { type filter hook input priority 5 ; }\n"


@dataclass(frozen=True)
class Scene:
    """Two zones on the default bridge, ``web`` with a service on port 80 that the host forwards 8080 to."""

    instance: Instance
    warm: Nursery
    outside: Outside
    web: tuple[str, str]
    db: tuple[str, str]


def addresses(instance: Instance, name: str) -> tuple[str, str]:
    """The zone's IPv4 and IPv6 address."""
    first, second = instance.json("config", name, "info", "net")[0]["address"]
    return first.partition("/")[0], second.partition("/")[0]


def setting(name: str) -> str:
    return Path("/proc/sys", name).read_text().strip()


def routes6() -> str:
    words = ["ip", "-6", "route", "show", "table", "all"]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


def rules() -> str:
    return subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True, check=True).stdout


@contextmanager
def bridges_do_not_filter() -> Iterator[None]:
    """As on a host without Docker, wherever the tests run: in this network namespace."""
    before = BRIDGES_FILTER6.read_text() if BRIDGES_FILTER6.exists() else ""
    if before:
        BRIDGES_FILTER6.write_text("0")
    yield
    if before:
        BRIDGES_FILTER6.write_text(before)


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    before = {name: setting(name) for name in FORWARDING}
    folder = Path(tempfile.mkdtemp(prefix="zonemgr-", dir="/var/tmp"))
    folder.chmod(0o755)
    instance = Instance(folder)
    problems: list[str] = []
    with ExitStack() as stack:
        stack.callback(instance.force)
        stack.enter_context(bridges_do_not_filter())
        place = stack.enter_context(world.outside())
        nft.run(FOREIGN)
        stack.callback(lambda: nft.run("delete table inet zmforeign\n"))
        instance.layout.etc.mkdir(parents=True)
        instance.layout.settings.write_text(SETTINGS)
        (folder / "etc/hosts").write_text("127.0.0.1 localhost\n")
        warm = stack.enter_context(nursery())
        warm.run(instance, "create", "web")
        warm.run(instance, "config", "web", "add", "forward", "port=8080", "to=80")
        warm.run(instance, "create", "db")
        for words in (("install", "web"), ("install", "db"), ("boot", "web", "db")):
            warm.run(instance, *words)
        command = [*instance.command, "--root", str(folder), "login", "web", "--"]
        stack.enter_context(world.service(command, 80))
        stack.enter_context(world.service(place.words(), 99))
        yield Scene(instance, warm, place, addresses(instance, "web"), addresses(instance, "db"))
        problems = instance.close()
        instance.run("fsck", "--host")
    assert problems == []
    assert "zonemgr" + instance.suffix not in rules()
    assert "local ::1 dev zbr0" not in routes6()
    assert {name: setting(name) for name in FORWARDING} == before


def ask_from(scene: Scene, name: str, *places: tuple[str, int]) -> list[str]:
    """What services answer to a zone."""
    words = [str(part) for place in places for part in place]
    return scene.warm.run(scene.instance, "login", name, "--", "python3", "-c", world.ASK, *words).stdout.splitlines()


def test_zones_and_their_host_reach_each_other_by_both_families(scene: Scene) -> None:
    assert ask_from(scene, "db", *((address, 80) for address in scene.web)) == list(scene.db)
    bridge = [address.rpartition(mark)[0] + mark + "1" for address, mark in zip(scene.web, ".:", strict=True)]
    assert world.ask(*((address, 80) for address in scene.web)) == bridge


def test_what_leaves_the_host_has_the_hosts_address(scene: Scene) -> None:
    assert ask_from(scene, "web", (FAR4, 99), (FAR6, 99)) == [HOST4, HOST6]


def test_a_forwarded_port_is_reached_from_outside_as_who_one_is(scene: Scene) -> None:
    assert scene.outside.ask((HOST4, 8080), (HOST6, 8080)) == [FAR4, FAR6]
    assert scene.outside.ask((HOST4, 80)) == ["ConnectionRefusedError"]


def test_a_forwarded_port_is_reached_from_the_host_at_its_own_addresses(scene: Scene) -> None:
    answers = world.ask((HOST4, 8080), (HOST6, 8080), ("127.0.0.1", 8080))
    assert answers == [HOST4, HOST6, scene.web[0].rpartition(".")[0] + ".1"]


def test_a_forwarded_port_is_reached_from_the_hosts_ipv6_loopback(scene: Scene) -> None:
    """It answers as the bridge; what a zone itself sends to ::1 by the bridge the kernel drops."""
    assert world.ask(("::1", 8080)) == [scene.web[1].rpartition("::")[0] + "::1"]
    bridge = scene.instance.bridge
    assert f"local ::1 dev {bridge} proto static" in routes6()
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.bind(("::", 0))
        sock.settimeout(10)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        mac = Path(f"/sys/class/net/{bridge}/address").read_text().strip()
        gateway = scene.web[1].rpartition("::")[0] + "::1"
        words = (scene.db[1], str(sock.getsockname()[1]), mac, "::1", gateway)
        scene.warm.run(scene.instance, "login", "db", "--", "python3", "-c", LOOPBACK6, *words)
        _, control, _, _ = sock.recvmsg(100, 100)
    assert socket.inet_ntop(socket.AF_INET6, control[0][2][:16]) == gateway, "the packet before it did not arrive"


def test_a_forwarded_port_is_reached_from_zones_the_one_that_serves_it_included(scene: Scene) -> None:
    for name in ("db", "web"):
        assert "Error" not in "".join(ask_from(scene, name, (HOST4, 8080), (HOST6, 8080)))


def test_zones_and_the_host_know_each_other_by_name(scene: Scene) -> None:
    found = scene.warm.run(scene.instance, "login", "db", "--", "getent", "ahosts", "web").stdout
    assert {line.split()[0] for line in found.splitlines()} == set(scene.web)
    host = (scene.instance.root / "etc/hosts").read_text()
    assert host.startswith("127.0.0.1 localhost\n")
    assert f"{scene.web[0]}\tweb\t" in host
    seen = scene.warm.run(scene.instance, "login", "db", "--", "sh", "-c", "echo x >>/etc/hosts; cat /etc/hosts").stdout
    assert seen == (scene.instance.layout.run / "hosts").read_text()


def test_links_of_every_kind(scene: Scene) -> None:
    """A narrow one on the bridge that is not configured, one on top of a link of the host, one that was the host's."""
    instance, warm, place = scene.instance, scene.warm, scene.outside
    inner, outer = f"zi{place.link[2:]}", f"zu{place.link[2:]}"
    subprocess.run(["ip", "link", "add", inner, "mtu", "1300", "type", "veth", "peer", "name", outer], check=True)
    try:
        warm.run(instance, "create", "multi", "--no-net")
        for words in (
            (f"anet={instance.bridge}", "mtu=1400", "maxbw=8M", "linkname=narrow0", "mac-prefix=02:08:20"),
            (f"macvlan={place.link}", "address=[192.0.2.50/24,2001:db8::50/64]"),
            (f"physical={inner}", "linkname=mine0", "mtu=1200", "mac-address=02:00:5e:10:00:01"),
        ):
            warm.run(instance, "config", "multi", "add", "net", *words)
        warm.run(instance, "install", "multi")
        before = subprocess.run(["ip", "-br", "link", "show", inner], capture_output=True, text=True, check=True).stdout
        warm.run(instance, "boot", "multi")
        links = warm.run(instance, "login", "multi", "--", "ip", "-o", "link").stdout
        rows = {line.split(": ")[1].partition("@")[0]: line for line in links.splitlines()}
        assert set(rows) == {"lo", "narrow0", "host1", "mine0"}
        assert "mtu 1400" in rows["narrow0"] and "ether 02:08:20:" in rows["narrow0"]
        assert "mtu 1200" in rows["mine0"] and "ether 02:00:5e:10:00:01" in rows["mine0"]
        assert place.ask(("192.0.2.50", 80)) == ["ConnectionRefusedError"]  # it is there, and nothing listens
        shaped = subprocess.run(["tc", "qdisc", "show"], capture_output=True, text=True, check=True).stdout
        assert shaped.count("qdisc tbf") == 2 and "rate 8Mbit" in shaped
        warm.run(instance, "reboot", "multi")
        again = warm.run(instance, "login", "multi", "--", "cat", "/sys/class/net/narrow0/address").stdout.strip()
        assert f"ether {again} " in rows["narrow0"]
        warm.run(instance, "halt", "multi")
        after = subprocess.run(["ip", "-br", "link", "show", inner], capture_output=True, text=True, check=True).stdout
        assert after == before
        details = subprocess.run(["ip", "link", "show", inner], capture_output=True, text=True, check=True).stdout
        assert "mtu 1300" in details
    finally:
        subprocess.run(["ip", "link", "delete", outer], check=True)


def test_a_vlan_is_the_ports_own_or_the_boot_is_refused_with_what_the_kernel_lacks(scene: Scene) -> None:
    instance, warm = scene.instance, scene.warm
    warm.run(instance, "create", "tagged", "--no-net")
    warm.run(instance, "config", "tagged", "add", "net", f"anet={instance.bridge}", "vlan-id=7")
    warm.run(instance, "install", "tagged")
    done = warm.run(instance, "boot", "tagged", check=False)
    if done.returncode == 0:
        vlans = subprocess.run(["bridge", "vlan", "show"], capture_output=True, text=True, check=True).stdout
        (row,) = (line for line in vlans.splitlines() if line.startswith("vb-tagged"))
        assert row.split()[1:] == ["7", "PVID", "Egress", "Untagged"]
        warm.run(instance, "halt", "tagged")
    else:
        assert "CONFIG_BRIDGE_VLAN_FILTERING" in done.stderr
        assert instance.state("tagged") == "installed"
    assert "zone tagged" not in rules()


LOOPBACK = """
import socket, struct, sys
own, port, target = sys.argv[1], int(sys.argv[2]), bytes.fromhex(sys.argv[3].replace(":", ""))
mine = bytes.fromhex(open("/sys/class/net/host0/address").read().strip().replace(":", ""))
def packet(address):
    body = struct.pack("!HHHH", 1000, port, 8 + 4, 0) + b"hello"[:4]
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 32, 0, 0, 64, 17, 0, socket.inet_aton(own), socket.inet_aton(address))
    total = sum(struct.unpack("!10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    return target + mine + b"\\x08\\x00" + head[:10] + struct.pack("!H", ~total & 0xFFFF) + head[12:] + body
sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
sock.bind(("host0", 0))
for address in sys.argv[4:]:
    sock.send(packet(address))
"""


LOOPBACK6 = """
import socket, struct, sys
own, port, target = sys.argv[1], int(sys.argv[2]), bytes.fromhex(sys.argv[3].replace(":", ""))
mine = bytes.fromhex(open("/sys/class/net/host0/address").read().strip().replace(":", ""))
def packet(address):
    ends = socket.inet_pton(socket.AF_INET6, own) + socket.inet_pton(socket.AF_INET6, address)
    words = struct.unpack("!24H", ends + struct.pack("!IIHHHH", 12, 17, 1000, port, 12, 0))
    total = sum(words) + sum(struct.unpack("!2H", b"hell"))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    body = struct.pack("!HHHH", 1000, port, 12, (~total & 0xFFFF) or 0xFFFF) + b"hell"
    return target + mine + b"\\x86\\xdd" + struct.pack("!IHBB", 6 << 28, len(body), 17, 64) + ends + body
sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
sock.bind(("host0", 0))
for address in sys.argv[4:]:
    sock.send(packet(address))
"""


def test_the_hosts_loopback_is_not_reached_through_the_bridge(scene: Scene) -> None:
    """The bridge takes packets for 127.0.0.1 since ports are forwarded: only replies."""
    bridge = scene.instance.bridge
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("", 0))
        sock.settimeout(10)
        sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        mac = Path(f"/sys/class/net/{bridge}/address").read_text().strip()
        gateway = scene.web[0].rpartition(".")[0] + ".1"
        words = (scene.db[0], str(sock.getsockname()[1]), mac, "127.0.0.1", "127.5.5.5", gateway)
        scene.warm.run(scene.instance, "login", "db", "--", "python3", "-c", LOOPBACK, *words)
        _, control, _, _ = sock.recvmsg(100, 100)
    assert socket.inet_ntoa(control[0][2][8:12]) == gateway, "the packets before it did not arrive"


def test_an_address_has_one_holder_also_behind_the_configurations_back(scene: Scene) -> None:
    """The commit refuses it; two files that say it anyway meet at boot."""
    instance, warm = scene.instance, scene.warm
    done = warm.run(instance, "config", "db", "add", "forward", "port=8080", "address=127.0.0.1", check=1)
    assert "port 8080/tcp of 127.0.0.1 leads to zone 'web'" in done.stderr
    warm.run(instance, "create", "thief")
    warm.run(instance, "install", "thief")
    path = instance.layout.config("thief")
    path.write_text(path.read_text().replace(addresses(instance, "thief")[0], scene.web[0]))
    done = warm.run(instance, "boot", "thief", check=1)
    assert f"address {scene.web[0]} is in use by zone web" in done.stderr
    assert "zone thief" not in rules()


def test_what_a_zone_has_in_the_filter_goes_with_it_and_foreign_tables_stay(scene: Scene) -> None:
    scene.warm.run(scene.instance, "halt", "db")
    assert "zone web" in rules()
    assert "zone db" not in rules()
    assert scene.db[0] not in rules()
    assert "table inet zmforeign" in rules()


DOCKER = """
add table ip filter
add chain ip filter DOCKER-USER
add chain ip filter FORWARD { type filter hook forward priority 0 ; policy drop ; }
add rule ip filter FORWARD counter jump DOCKER-USER
add rule ip filter FORWARD oifname "docker0" ct state established,related counter accept
"""


@pytest.fixture
def docker() -> Iterator[None]:
    """The chains that Docker makes."""
    nft.run(DOCKER)
    yield
    nft.run("delete table ip filter\n")


def test_a_trace_names_the_rule_that_decides(scene: Scene, docker: None) -> None:
    done = scene.warm.run(scene.instance, "trace", "web", "tcp/80", check=1)
    assert "from the host (IPv4): passes" in done.stdout
    assert "from outside (IPv4): dropped by the policy of chain ip filter FORWARD (drop)" in done.stdout
    assert "from outside (IPv6): passes" in done.stdout
    nft.run("insert rule ip filter DOCKER-USER tcp dport 80 drop\n")
    done = scene.warm.run(scene.instance, "--json", "trace", "web", "tcp/80", check=1)
    told = json.loads(done.stdout)
    assert told["listening"] is True
    (outside,) = (way for way in told["ways"] if (way["from"], way["family"]) == ("outside", "IPv4"))
    assert outside["decisions"][-1]["rule"] == "tcp dport 80 drop"
    assert outside["decisions"][-1]["chain"] == "ip filter DOCKER-USER"
    nft.run("insert rule ip filter DOCKER-USER meta l4proto { tcp, udp } th dport 80 reject\n")
    told = scene.warm.run(scene.instance, "trace", "web", "tcp/80", check=1).stdout
    assert "th dport 80 reject" in told  # whether nft has names for the protocols of such a set or numbers
    nft.run("flush chain ip filter DOCKER-USER\ninsert rule ip filter DOCKER-USER tcp dport 80 drop\n")
    assert scene.outside.ask((HOST4, 8080)) == ["TimeoutError"]
    assert "nothing in the zone listens" in scene.warm.run(scene.instance, "trace", "web", "udp/9", check=1).stdout


def test_a_foreign_rule_that_drops_is_told_at_boot_and_admitted_where_the_settings_say_so(
    scene: Scene, docker: None
) -> None:
    """Runs when db is down: what it starts it ends."""
    instance, warm = scene.instance, scene.warm
    done = warm.run(instance, "boot", "db")
    assert "what the zone sends to the outside is dropped by the policy in chain ip filter FORWARD" in done.stderr
    assert 'admit = ["docker-user"]' in done.stderr
    assert ask_from(scene, "db", (FAR4, 99)) == ["TimeoutError"]
    warm.run(instance, "halt", "db")
    instance.layout.settings.write_text(SETTINGS + 'admit = ["docker-user"]\n')
    done = warm.run(instance, "boot", "db")
    assert "dropped" not in done.stderr
    assert ask_from(scene, "db", (FAR4, 99)) == [HOST4]
    warm.run(instance, "halt", "db")
    assert "zonemgr" not in subprocess.run(
        ["nft", "list", "chain", "ip", "filter", "DOCKER-USER"], capture_output=True, text=True, check=True
    ).stdout


def test_a_filter_that_was_flushed_is_made_anew(scene: Scene) -> None:
    """As a reload of the host's own rules does: the next boot brings ours back, for the zones that live as well."""
    instance, warm = scene.instance, scene.warm
    for family in ("inet", "bridge"):
        nft.run(f"delete table {family} zonemgr{instance.suffix}\n")
    assert scene.outside.ask((HOST4, 8080)) == ["ConnectionRefusedError"]
    done = warm.run(instance, "fsck")
    assert "web: its packet filter is gone: restored" in done.stdout
    assert scene.outside.ask((HOST4, 8080), (HOST6, 8080)) == [FAR4, FAR6]
    assert warm.run(instance, "fsck").stdout == ""
