"""What is made with nft(8) goes by hand-made messages: all of it, or nothing."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from zonemgr.linux import nfnetlink, nft
from zonemgr.linux.nfnetlink import BRIDGE, INET, Chain, Element, key, link_key
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
    assert len(elements("ports")) == 1 and "udp" in str(elements("ports"))


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
