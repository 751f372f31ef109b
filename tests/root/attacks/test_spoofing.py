"""Root of a zone writes frames as it likes; on the host's bridge only those arrive that are its own to send."""

from __future__ import annotations

import re
import socket
import time
from typing import Final

import pytest

from tests.kit.instance import Instance
from tests.root.attacks.inside import ask

pytestmark = pytest.mark.requires("root", "userns", "mount", "net", "cgroup", "nft")

ETH_P_ALL: Final = 0x0003
DEADLINE_S: Final = 20.0
OWN: Final = {"own4", "own6", "own-arp", "own-advertisement", "own-linklocal", "own-question", "end"}

FRAMES: Final = r"""
def mac(text):
    return bytes.fromhex(text.replace(":", ""))

def checksum(data):
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack("!%dH" % (len(data) // 2), data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF

BROADCAST, ALL6 = mac("ff:ff:ff:ff:ff:ff"), mac("33:33:00:00:00:01")
ME, OTHER = mac(open("/sys/class/net/host0/address").read().strip()), mac("02:00:5e:00:00:01")

def six(text):
    return socket.inet_pton(socket.AF_INET6, text)

def ethernet(kind, body, source=None, target=BROADCAST):
    return target + (source or ME) + struct.pack("!H", kind) + body

def udp(port, body):
    return struct.pack("!HHHH", port, 9, 8 + len(body), 0) + body

def four(source, body, target="255.255.255.255", protocol=17):
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(body), 0, 0, 64, protocol, 0,
                       socket.inet_aton(source), socket.inet_aton(target))
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + body

def packet6(source, body, following=17, target="ff02::1"):
    return struct.pack("!IHBB", 6 << 28, len(body), following, 255) + six(source) + six(target) + body

def icmp6(source, kind, body, options=b"", target="ff02::1"):
    data = struct.pack("!BBH", kind, 0, 0) + body + options
    pseudo = six(source) + six(target) + struct.pack("!IHBB", len(data), 0, 0, 58) + data
    return data[:2] + struct.pack("!H", checksum(pseudo)) + data[4:]

def advertisement(source, about, mark):
    return icmp6(source, 136, struct.pack("!I", 0x20000000) + six(about), mark)

def arp(sender, address, operation=2):
    return struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation) + sender + socket.inet_aton(address) + BROADCAST + \
        socket.inet_aton(OWN4)

def mark(name):
    data = b"zmark-" + name.encode() + b"."
    return data + b"\0" * (-len(data) % 8)

def router(source, name):
    return icmp6(source, 134, struct.pack("!BBHII", 64, 0, 1800, 0, 0), mark(name))

frames = {
    "own4": ethernet(0x0800, four(OWN4, udp(1000, mark("own4")))),
    "own6": ethernet(0x86DD, packet6(OWN6, udp(1000, mark("own6"))), target=ALL6),
    "own-arp": ethernet(0x0806, arp(ME, OWN4) + mark("own-arp")),
    "own-advertisement": ethernet(
        0x86DD, packet6(OWN6, advertisement(OWN6, OWN6, mark("own-advertisement")), 58), target=ALL6),
    "own-linklocal": ethernet(0x86DD, packet6(LOCAL6, udp(1000, mark("own-linklocal"))), target=ALL6),
    "own-question": ethernet(
        0x86DD, packet6("::", icmp6("::", 135, bytes(4) + six(OWN6), mark("own-question")), 58), target=ALL6),
    "mac": ethernet(0x0800, four(OWN4, udp(1000, mark("mac"))), OTHER),
    "source4": ethernet(0x0800, four(HOST4, udp(1000, mark("source4")))),
    "source4-zero": ethernet(0x0800, four("0.0.0.0", udp(68, mark("source4-zero")))),
    "source6": ethernet(0x86DD, packet6(HOST6, udp(1000, mark("source6"))), target=ALL6),
    "source6-linklocal": ethernet(0x86DD, packet6("fe80::1", udp(1000, mark("source6-linklocal"))), target=ALL6),
    "source6-none": ethernet(0x86DD, packet6("::", udp(1000, mark("source6-none"))), target=ALL6),
    "arp-address": ethernet(0x0806, arp(ME, HOST4) + mark("arp-address")),
    "arp-sender": ethernet(0x0806, arp(OTHER, OWN4) + mark("arp-sender")),
    "arp-question": ethernet(0x0806, arp(ME, HOST4, 1) + mark("arp-question")),
    "advertisement": ethernet(
        0x86DD, packet6(OWN6, advertisement(OWN6, HOST6, mark("advertisement")), 58), target=ALL6),
    "advertisement-hidden": ethernet(
        0x86DD, packet6(OWN6, bytes((58, 0, 1, 4, 0, 0, 0, 0)) +
                        advertisement(OWN6, HOST6, mark("advertisement-hidden")), 0), target=ALL6),
    "router": ethernet(0x86DD, packet6(LOCAL6, router(LOCAL6, "router"), 58), target=ALL6),
    "redirect": ethernet(0x86DD, packet6(LOCAL6, icmp6(
        LOCAL6, 137, bytes(4) + six(LOCAL6) + six(HOST6), mark("redirect")), 58), target=ALL6),
    "dhcp": ethernet(0x0800, four(OWN4, udp(67, mark("dhcp")))),
    "dhcp6": ethernet(0x86DD, packet6(LOCAL6, udp(547, mark("dhcp6"))), target=ALL6),
    "tagged": ethernet(0x8100, struct.pack("!HH", 0, 0x0800) + four(HOST4, udp(1000, mark("tagged")))),
    "tagged-twice": ethernet(0x88A8, struct.pack("!HHHH", 0, 0x8100, 0, 0x0800) +
                             four(HOST4, udp(1000, mark("tagged-twice")))),
    "lldp": ethernet(0x88CC, mark("lldp")),
    "spanning-tree": ethernet(39, b"\x42\x42\x03" + mark("spanning-tree") + bytes(30), target=mac("01:80:c2:00:00:00")),
    "pppoe": ethernet(0x8863, mark("pppoe")),
    "end": ethernet(0x0800, four(OWN4, udp(1000, mark("end")))),
}
sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
sock.bind(("host0", 0))
answer({name: attempt(sock.send, frame.ljust(60, b"\0")) for name, frame in frames.items()})
"""


def zone_addresses(instance: Instance) -> tuple[str, str]:
    four, six = (one.partition("/")[0] for one in instance.json("config", "web", "info", "net")[0]["address"])
    return four, six


def arrived(sniffer: socket.socket) -> set[str]:
    """The marks of the frames that the host has seen on its bridge, the last one included."""
    found: set[str] = set()
    sniffer.settimeout(DEADLINE_S)
    end = time.monotonic() + DEADLINE_S
    while "end" not in found and time.monotonic() < end:
        mark = re.search(rb"zmark-([a-z0-9-]+)\.", sniffer.recv(2048))
        if mark:
            found.add(mark[1].decode())
    return found


def test_nothing_forged_reaches_the_bridge(web: Instance) -> None:
    own4, own6 = zone_addresses(web)
    local6 = re.search(r"inet6 (fe80::\S+)/64", web.login("web", "ip", "address", "show", "host0"))
    assert local6
    names = {
        "OWN4": own4,
        "OWN6": own6,
        "LOCAL6": local6[1],
        "HOST4": own4.rpartition(".")[0] + ".1",
        "HOST6": own6.rpartition(":")[0] + ":1",
    }
    program = "".join(f"{name} = {value!r}\n" for name, value in names.items()) + FRAMES
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)) as sniffer:
        sniffer.bind((web.bridge, 0))
        sent = ask(web, program)
        seen = arrived(sniffer)
    assert set(sent.values()) == {""}, "the test needs a zone that may write frames"
    assert seen == OWN


def test_a_zone_cannot_take_another_address_or_ethernet_address(web: Instance) -> None:
    """It is root of its own stack and may change all of it; the change leads nowhere."""
    own4, _ = zone_addresses(web)
    gateway = own4.rpartition(".")[0] + ".1"
    taken = own4.rpartition(".")[0] + ".253"
    script = f"""
        mac=$(cat /sys/class/net/host0/address)
        ping -c 1 -W 5 {gateway} >/dev/null && echo before
        ip address add {taken}/24 dev host0
        ping -c 1 -W 1 -I {taken} {gateway} >/dev/null && echo as another
        ip address del {taken}/24 dev host0
        ip link set host0 address 02:00:5e:00:00:07
        ping -c 1 -W 1 {gateway} >/dev/null && echo with another
        ip link set host0 address $mac
        ping -c 1 -W 5 {gateway} >/dev/null && echo after"""
    assert web.login("web", "sh", "-c", script).split("\n")[:-1] == ["before", "after"]
