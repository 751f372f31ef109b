"""What hand-made messages add is what nft(8) makes of the same rules; what is there goes, all of it or nothing."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import cast

import pytest

from zonemgr.linux import nfnetlink, nft
from zonemgr.linux.nfnetlink import BRIDGE, INET, Chain, Element, key, link_key
from zonemgr.model import plan
from zonemgr.platform import firewall

pytestmark = pytest.mark.requires("root", "net", "nft")

TABLE = "zmtaken"
MADE = f"""
add table inet {TABLE}
add set inet {TABLE} four {{ type ipv4_addr ; }}
add set inet {TABLE} six {{ type ipv6_addr ; }}
add map inet {TABLE} ports {{ type inet_proto . inet_service : ipv4_addr . inet_service ; }}
add map inet {TABLE} at6 {{ type inet_proto . ipv6_addr . inet_service : ipv6_addr . inet_service ; }}
add element inet {TABLE} four {{ 10.0.0.1 comment "x", 10.0.0.2 }}
add element inet {TABLE} six {{ fd00::1 }}
add element inet {TABLE} ports {{ tcp . 80 : 10.0.0.1 . 8080, udp . 80 : 10.0.0.1 . 53 }}
add element inet {TABLE} at6 {{ tcp . ::1 . 443 : fd00::1 . 8443 }}
add table bridge {TABLE}
add map bridge {TABLE} links {{ type ifname : verdict ; }}
add chain bridge {TABLE} link-a
add rule bridge {TABLE} link-a arp operation request drop
add rule bridge {TABLE} link-a ip saddr 10.0.0.1 accept
add element bridge {TABLE} links {{ "zv-a" : goto link-a }}
"""
PORT = (80).to_bytes(2, "big")


@pytest.fixture(autouse=True)
def made() -> Iterator[None]:
    nft.run(MADE)
    yield
    while nfnetlink._OPEN:
        nfnetlink._OPEN.pop().close()
    nft.run(f"delete table inet {TABLE}\ndelete table bridge {TABLE}\n")


def shown() -> str:
    return "".join(nft.run(f"list table {family} {TABLE}\n") for family in ("inet", "bridge"))


def elements(name: str) -> list[object]:
    for family in ("set", "map"):
        for item in nft.listing(f"{family}s", "inet"):
            if item.get(family, {}).get("name") == name and item[family]["table"] == TABLE:
                return list(item[family].get("elem", []))
    raise LookupError(name)


def test_both_tables_are_seen() -> None:
    assert firewall.exists(TABLE)
    nft.run(f"delete table inet {TABLE}\n")
    assert not firewall.exists(TABLE)
    nft.run(f"add table inet {TABLE}\n")


def test_elements_go_by_their_keys_and_leave_the_others() -> None:
    six = socket.inet_pton(socket.AF_INET6, "fd00::1")
    loopback = socket.inet_pton(socket.AF_INET6, "::1")
    assert nfnetlink.remove(
        [
            Element(INET, TABLE, "four", bytes([10, 0, 0, 1])),
            Element(INET, TABLE, "six", six),
            Element(INET, TABLE, "ports", key(bytes([socket.IPPROTO_TCP]), PORT)),
            Element(INET, TABLE, "at6", key(bytes([socket.IPPROTO_TCP]), loopback, (443).to_bytes(2, "big"))),
        ]
    )
    assert elements("four") == ["10.0.0.2"]
    assert elements("six") == elements("at6") == []
    ((kept, leads),) = cast("list[list[object]]", elements("ports"))
    # By its number where /etc/protocols is missing.
    assert kept in ({"concat": ["udp", 80]}, {"concat": [socket.IPPROTO_UDP, 80]})
    assert leads == {"concat": ["10.0.0.1", 53]}


def test_a_chain_goes_with_its_rules_after_what_leads_to_it() -> None:
    assert nfnetlink.remove([Element(BRIDGE, TABLE, "links", link_key("zv-a")), Chain(BRIDGE, TABLE, "link-a")])
    assert "link-a" not in shown() and "zv-a" not in shown()


@pytest.mark.parametrize(
    "wrong",
    [
        Element(INET, TABLE, "four", bytes([10, 0, 0, 9])),
        Element(INET, TABLE, "nosuch", bytes(4)),
        Chain(BRIDGE, TABLE, "link-b"),
        Chain(BRIDGE, TABLE, "link-a"),  # the map leads there
    ],
)
def test_all_or_nothing(wrong: Chain | Element) -> None:
    before = shown()
    assert not nfnetlink.remove([Element(INET, TABLE, "four", bytes([10, 0, 0, 1])), wrong])
    assert shown() == before


# -- what is added ----------------------------------------------------------------------------------------------

MAC = "da:49:10:af:f0:27"
LOCAL = "fe80::d849:10ff:feaf:f027"
DHCP = """
ether type ip udp sport 67 drop comment "zone web: dhcp-nospoof"
ether type ip6 udp sport 547 drop comment "zone web: dhcp-nospoof"
ether type ip6 icmpv6 type nd-router-advert drop comment "zone web: dhcp-nospoof"
ether type ip6 icmpv6 type nd-redirect drop comment "zone web: dhcp-nospoof"
"""
OWN_MAC = f"""
ether saddr != {MAC} drop comment "zone web: mac-nospoof"
ether type arp arp saddr ether != {MAC} drop comment "zone web: mac-nospoof"
"""
KINDS = 'ether type != ip ether type != ip6 ether type != arp drop comment "zone web: only IPv4, IPv6 and ARP"\n'
ASKING = """
ip6 saddr :: icmpv6 type nd-router-solicit accept
ip6 saddr :: icmpv6 type nd-neighbor-solicit accept
ip6 saddr :: icmpv6 type mld2-listener-report accept
"""
MANY = [f"10.7.0.{last}" for last in range(1, 13)]

GUARDS = {
    "its own Ethernet address": ((), ("mac-nospoof",), OWN_MAC),
    "two addresses": (
        ("10.0.0.2", "fd91::2"),
        ("mac-nospoof", "ip-nospoof", "dhcp-nospoof"),
        f"""{OWN_MAC}{KINDS}{DHCP}
        ether type arp arp saddr ip != 0.0.0.0 arp saddr ip != 10.0.0.2 drop comment "zone web: ip-nospoof"
        ip saddr != 10.0.0.2 drop comment "zone web: ip-nospoof"
        {ASKING}
        ip6 saddr != fd91::2 ip6 saddr != {LOCAL} drop comment "zone web: ip-nospoof"
        icmpv6 type nd-neighbor-advert @th,64,128 0xfd910000000000000000000000000002 accept
        icmpv6 type nd-neighbor-advert @th,64,128 0xfe80000000000000d84910fffeaff027 accept
        icmpv6 type nd-neighbor-advert drop comment "zone web: ip-nospoof"
        """,
    ),
    "networks": (
        ("10.1.0.0/16", "10.2.128.0/17", "fd91:0:0:8000::/49"),
        ("ip-nospoof",),
        f"""{KINDS}
        ether type arp arp saddr ip != 0.0.0.0 arp saddr ip & 255.255.0.0 != 10.1.0.0 \
        arp saddr ip & 255.255.128.0 != 10.2.128.0 drop comment "zone web: ip-nospoof"
        ip saddr & 255.255.0.0 != 10.1.0.0 ip saddr & 255.255.128.0 != 10.2.128.0 drop comment "zone web: ip-nospoof"
        {ASKING}
        ip6 saddr & ffff:ffff:ffff:8000:: != fd91:0:0:8000:: ip6 saddr != {LOCAL} drop comment "zone web: ip-nospoof"
        icmpv6 type nd-neighbor-advert @th,64,128 & 0xffffffffffff80000000000000000000 \
        == 0xfd910000000080000000000000000000 accept
        icmpv6 type nd-neighbor-advert @th,64,128 0xfe80000000000000d84910fffeaff027 accept
        icmpv6 type nd-neighbor-advert drop comment "zone web: ip-nospoof"
        """,
    ),
    "many addresses": (
        (*MANY, "10.8.0.0/16"),
        ("ip-nospoof",),
        f"""{KINDS}
        ether type arp arp saddr ip != {{ 0.0.0.0, {", ".join(MANY)} }} \
        arp saddr ip & 255.255.0.0 != 10.8.0.0 drop comment "zone web: ip-nospoof"
        ip saddr != {{ {", ".join(MANY)} }} ip saddr & 255.255.0.0 != 10.8.0.0 drop comment "zone web: ip-nospoof"
        {ASKING}
        ip6 saddr != {LOCAL} drop comment "zone web: ip-nospoof"
        icmpv6 type nd-neighbor-advert @th,64,128 0xfe80000000000000d84910fffeaff027 accept
        icmpv6 type nd-neighbor-advert drop comment "zone web: ip-nospoof"
        """,
    ),
}  # fmt: skip


def chain(name: str) -> list[str]:
    """The rules of the chain as nft shows them."""
    text = nft.Batch(f"list chain bridge {TABLE} {name}\n", "-n").wait()
    return [line.strip() for line in text.splitlines()[3:-2]]


@pytest.mark.parametrize("name", GUARDS)
def test_a_guard_is_what_nft_would_have_made_of_it(name: str) -> None:
    sources, protections, text = GUARDS[name]
    op = plan.Guard("zv-b", "web", MAC, sources, protections)
    lines = [f"add rule bridge {TABLE} by-nft {line.strip()}\n" for line in text.splitlines() if line.strip()]
    nft.run(f"add chain bridge {TABLE} by-nft\n" + "".join(lines))
    for _ in range(2):  # again, and nothing changes
        nfnetlink.add(firewall.additions(op, TABLE))
        assert chain("link-zv-b") == chain("by-nft") != []
    assert '"zv-b" : goto link-zv-b' in nft.Batch(f"list map bridge {TABLE} links\n", "-n").wait()
    assert nfnetlink.remove(firewall.remains(op, TABLE))
    assert "zv-b" not in shown()


def test_elements_are_what_nft_would_have_made_of_them() -> None:
    tcp, udp = bytes([socket.IPPROTO_TCP]), bytes([socket.IPPROTO_UDP])
    four = [bytes([10, 0, 0, last]) for last in range(9)]
    six = socket.inet_pton(socket.AF_INET6, "fd00::1")
    loopback = socket.inet_pton(socket.AF_INET6, "::1")
    before = shown()
    nfnetlink.remove([Element(INET, TABLE, "four", four[1]), Element(INET, TABLE, "six", six)])
    nfnetlink.remove([Element(INET, TABLE, "ports", key(tcp, PORT)), Element(INET, TABLE, "ports", key(udp, PORT))])
    nfnetlink.remove([Element(INET, TABLE, "at6", key(tcp, loopback, (443).to_bytes(2, "big")))])
    assert shown() != before
    nfnetlink.add(
        [
            Element(INET, TABLE, "four", four[1], comment="x"),
            Element(INET, TABLE, "six", six),
            Element(INET, TABLE, "ports", key(tcp, PORT), data=key(four[1], (8080).to_bytes(2, "big"))),
            Element(INET, TABLE, "ports", key(udp, PORT), data=key(four[1], (53).to_bytes(2, "big"))),
            Element(
                INET,
                TABLE,
                "at6",
                key(tcp, loopback, (443).to_bytes(2, "big")),
                data=key(six, (8443).to_bytes(2, "big")),
            ),
        ]
    )
    assert sorted(shown()) == sorted(before)


def test_nothing_is_added_when_one_thing_cannot_be() -> None:
    before = shown()
    with pytest.raises(FileNotFoundError):
        nfnetlink.add([Element(INET, TABLE, "four", bytes([10, 0, 0, 9])), Element(INET, TABLE, "nowhere", bytes(4))])
    with pytest.raises(FileNotFoundError):
        nfnetlink.add([Chain(BRIDGE, "zmnowhere", "a")])
    assert shown() == before


def test_hundreds_of_things_are_one_batch() -> None:
    many = [Element(INET, TABLE, "four", bytes([10, 9, number >> 8, number & 255])) for number in range(2000)]
    nfnetlink.add(many)
    assert len(elements("four")) == 2002
    assert nfnetlink.remove(many)
    assert len(elements("four")) == 2


def test_who_looks_at_what_the_host_passes_on_is_known() -> None:
    assert TABLE not in nfnetlink.tables_with_hook(INET, nfnetlink.HOOK_FORWARD)
    nft.run(f"add chain inet {TABLE} passing {{ type filter hook forward priority 5 ; }}\n")
    assert TABLE in nfnetlink.tables_with_hook(INET, nfnetlink.HOOK_FORWARD)
    assert TABLE not in nfnetlink.tables_with_hook(nfnetlink.IPV4, nfnetlink.HOOK_FORWARD)
