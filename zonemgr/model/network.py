"""What a zone's network settings mean, without asking the kernel: addresses, Ethernet addresses, claims, bandwidths.

An address or a forwarded port of the host belongs to one zone at a time.  What a zone wants of them are its claims:
short words that a file, a message and a comparison can hold.
"""

from __future__ import annotations

import ipaddress
import zlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from zonemgr.model.zone import ForwardResource, NetResource, Zone

PROTECTIONS: Final = ("mac-nospoof", "ip-nospoof", "dhcp-nospoof", "restricted")
NEIGHBOURS_PER_ZONE: Final = 4
_UNITS: Final = {"K": 10**3, "M": 10**6, "G": 10**9}


def bare(address: str) -> str:
    """An address without its prefix length."""
    return address.partition("/")[0]


def is_v6(address: str) -> bool:
    return ":" in address


def family_of(addresses: Iterable[str], *, v6: bool) -> tuple[str, ...]:
    """Those of one family."""
    return tuple(address for address in addresses if is_v6(address) is v6)


def sources(net: NetResource) -> tuple[str, ...]:
    """What the link may send from: its addresses, and the addresses and networks that it is allowed besides."""
    return tuple(dict.fromkeys((*map(bare, net.address), *map(_source, net.allowed_address))))


def _source(allowed: str) -> str:
    """192.0.2.0/24 allows a network; 192.0.2.7/24 is one address in it, as Solaris writes them."""
    interface = ipaddress.ip_interface(allowed)
    network = interface.network
    if network.num_addresses == 1 or interface.ip != network.network_address:
        return str(interface.ip)
    return str(network)


def protections(net: NetResource) -> tuple[str, ...]:
    """What the zone may not forge on an automatic link.  Unless told otherwise: anything, as far as its addresses are
    known; a link that is configured from inside keeps at least to its Ethernet address."""
    if net.link_protection:
        return tuple(name for name in PROTECTIONS if name in net.link_protection)
    if net.address or net.allowed_address:
        return ("mac-nospoof", "ip-nospoof", "dhcp-nospoof")
    return ("mac-nospoof", "dhcp-nospoof")


def addresses(net: NetResource) -> tuple[str, ...]:
    """What the link gets before init runs, with prefix lengths."""
    if not net.configure_allowed_address:
        return net.address
    return tuple(dict.fromkeys((*net.address, *(text for text in net.allowed_address if "/" not in _source(text)))))


def is_neighbour(router: str, own: Iterable[str]) -> bool:
    """Whether a link with these addresses (with prefix lengths) reaches the router without a router."""
    address = ipaddress.ip_address(router)
    return address.is_link_local or any(address in ipaddress.ip_interface(one).network for one in own)


def stable_mac(host: str, zone: str, index: int, prefix: str = "") -> str:
    """The Ethernet address of a zone's link: the same at each boot, and another on another host or in another zone.

    ``prefix``: the octets that it begins with, such as ``02:08:20``.
    """
    word = f"{host}/{zone}/{index}".encode()
    octets = bytearray(zlib.crc32(word).to_bytes(4, "big") + zlib.crc32(word, 0x5A4F4E45).to_bytes(4, "big"))[:6]
    octets[0] = (octets[0] & 0xFC) | 0x02  # unicast, locally administered
    start = bytes.fromhex(prefix.replace(":", ""))
    return (start + octets[len(start) :]).hex(":")


def link_local(mac: str) -> str:
    """The IPv6 link-local address that the kernel makes of an Ethernet address (RFC 4291, appendix A)."""
    octets = bytes.fromhex(mac.replace(":", ""))
    middle = bytes((octets[0] ^ 2,)) + octets[1:3] + b"\xff\xfe" + octets[3:]
    return str(ipaddress.IPv6Address(b"\xfe\x80" + bytes(6) + middle))


def bits_per_second(text: str) -> int:
    """A bandwidth such as 2.5G, in bits a second."""
    unit = _UNITS.get(text[-1:], 1)
    return max(int(float(text.rstrip("KMG")) * unit), 1)


def neighbour_limits(there: int, zones: int) -> tuple[int, ...]:
    """What the host's table of neighbours (ARP) may hold, the most first, for so many zones; nothing when it may hold
    enough already.

    The kernel counts those of all network namespaces together: for each zone the router as the zone sees it, the zone
    as the host sees it, and whatever zones it talks to.  Beyond its own limit, 1024, packets are dropped.
    """
    wanted = NEIGHBOURS_PER_ZONE * zones
    if there >= wanted:
        return ()
    most = 2 << wanted.bit_length()  # more than that, so that the next zone need not change it again
    return most, most // 2, most // 8


# -- claims -------------------------------------------------------------------------------------------------------


def claims(zone: Zone) -> tuple[str, ...]:
    """What the zone takes for itself while it lives: its addresses, and the host's ports that are forwarded to it."""
    held = [bare(address) for link in zone.net for address in addresses(link)]
    held += [forward_claim(forward) for forward in zone.forward]
    return tuple(held)


def forward_claim(forward: ForwardResource) -> str:
    """``tcp/8080``, or ``tcp/8080/192.0.2.1`` where only one address of the host is meant."""
    place = f"/{forward.address}" if forward.address else ""
    return f"{forward.protocol}/{forward.port}{place}"


def collide(one: str, other: str) -> bool:
    """Whether two claims cannot be held by two zones: a port of every address is also that of each."""
    if one == other:
        return True
    first, second = one.split("/"), other.split("/")
    return len(first) > 1 and first[:2] == second[:2] and 2 in (len(first), len(second))


def is_port(claim: str) -> bool:
    """Whether it is a port of the host, and no address."""
    return "/" in claim


def describe_claim(claim: str) -> str:
    """A claim in the operator's words."""
    parts = claim.split("/")
    if len(parts) == 1:
        return f"address {claim}"
    return f"port {parts[1]}/{parts[0]}" + (f" of {parts[2]}" if len(parts) > 2 else "")
