"""The packet filter: two tables of nftables, ``bridge zonemgr`` and ``inet zonemgr`` (with the instance's suffix).

``bridge`` holds each zone to what is its own: a chain for each guarded link, found by the name of the bridge port that
a frame came in by, so that nothing a zone writes into a frame can lead past it.  ``inet`` translates addresses on the
way out and leads forwarded ports in: rules that never change, and maps and sets to which a zone's elements are added.

What one zone has there is added in one batch of messages (``nfnetlink``), and each op is undone by itself, so that a
running zone can be changed.  The tables are made by nft(8), when a batch misses them.  Tables of others are never
touched, but for ``admit``, which the settings have to ask for.  Whether traffic passes in the end is for all base
chains to say: an accept of ours does not overrule another's drop.  That is why ``Admit`` exists, and why
``filtertrace`` finds the rule that decides.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from zonemgr.errors import PlatformError, message
from zonemgr.linux import nfnetlink, nft, traffic
from zonemgr.model import filtertrace, network, plan
from zonemgr.platform.stage import Stage
from zonemgr.store import hostledger
from zonemgr.store.paths import Layout

ETHER_TYPES = ("ip", "ip6", "arp")
FEW = 8
DHCP_SERVERS = (("ip", 67), ("ip6", 547))
MISSING = "nft is not installed, so {what} (apt-get install nftables)"


def table(suffix: str) -> str:
    """The name that both tables have."""
    return f"zonemgr{suffix}"


# -- the tables -------------------------------------------------------------------------------------------------


def skeleton(name: str) -> str:
    """Both tables, without a zone in them.  May be loaded again and again."""
    return f"""
add table bridge {name}
add map bridge {name} links {{ type ifname : verdict ; }}
add chain bridge {name} prerouting {{ type filter hook prerouting priority -350 ; policy accept ; }}
flush chain bridge {name} prerouting
add rule bridge {name} prerouting iifname vmap @links

add table inet {name}
add set inet {name} bridges {{ type ifname ; }}
add set inet {name} inside4 {{ type ipv4_addr ; }}
add set inet {name} inside6 {{ type ipv6_addr ; }}
add set inet {name} loopback6 {{ type ipv6_addr ; }}
add map inet {name} forward4 {{ type inet_proto . inet_service : ipv4_addr . inet_service ; }}
add map inet {name} forward6 {{ type inet_proto . inet_service : ipv6_addr . inet_service ; }}
add map inet {name} forward-at4 {{ type inet_proto . ipv4_addr . inet_service : ipv4_addr . inet_service ; }}
add map inet {name} forward-at6 {{ type inet_proto . ipv6_addr . inet_service : ipv6_addr . inet_service ; }}
add chain inet {name} loopback {{ type filter hook prerouting priority -310 ; policy accept ; }}
add chain inet {name} forwards
add chain inet {name} prerouting {{ type nat hook prerouting priority -110 ; policy accept ; }}
add chain inet {name} output {{ type nat hook output priority -110 ; policy accept ; }}
add chain inet {name} postrouting {{ type nat hook postrouting priority 90 ; policy accept ; }}
flush chain inet {name} loopback
flush chain inet {name} forwards
flush chain inet {name} prerouting
flush chain inet {name} output
flush chain inet {name} postrouting
add rule inet {name} loopback iifname @bridges ip daddr 127.0.0.0/8 drop comment "the host's loopback is its own"
add rule inet {name} forwards dnat ip to meta l4proto . ip daddr . th dport map @forward-at4
add rule inet {name} forwards dnat ip6 to meta l4proto . ip6 daddr . th dport map @forward-at6
add rule inet {name} forwards dnat ip to meta l4proto . th dport map @forward4
add rule inet {name} forwards dnat ip6 to meta l4proto . th dport map @forward6
add rule inet {name} prerouting meta l4proto {{ tcp, udp }} fib daddr type local goto forwards
add rule inet {name} output ip6 daddr ::1 ip6 daddr != @loopback6 return comment "replies could not come back"
add rule inet {name} output meta l4proto {{ tcp, udp }} fib daddr type local goto forwards
add rule inet {name} postrouting oifname @bridges ct status dnat ip saddr 127.0.0.0/8 masquerade
add rule inet {name} postrouting oifname @bridges ct status dnat ip6 saddr ::1 masquerade
add rule inet {name} postrouting oifname @bridges ct status dnat ip saddr @inside4 masquerade
add rule inet {name} postrouting oifname @bridges ct status dnat ip6 saddr @inside6 masquerade
add rule inet {name} postrouting oifname != @bridges ip saddr @inside4 masquerade
add rule inet {name} postrouting oifname != @bridges ip6 saddr @inside6 masquerade
"""


# -- what an op adds and takes away -----------------------------------------------------------------------------


def additions(op: plan.Op, name: str) -> list[nfnetlink.Chain | nfnetlink.Rule | nfnetlink.Element]:
    """What does a filter op.  Doing it again changes nothing."""
    match op:
        case plan.Guard():
            chain = nfnetlink.Chain(nfnetlink.BRIDGE, name, _chain(op))
            link = nfnetlink.Element(nfnetlink.BRIDGE, name, "links", nfnetlink.link_key(op.link), goto=_chain(op))
            return [chain, *(rule.of(op, name) for rule in guard_rules(op)), link]
        case plan.Translate():
            return [_bridge(op.bridge, name), *_inside(op, name)]
        case plan.Forward():
            loopback = nfnetlink.Element(nfnetlink.INET, name, "loopback6", _packed("::1"))
            return [_bridge(op.bridge, name), *([loopback] if op.loopback6 else []), *_forward(op, name)]
    raise AssertionError(op.kind)


def removals(op: plan.Op, name: str) -> list[str]:
    """The commands of nft(8) that undo a filter op.  Each adds first: what is not there can be taken away as well."""
    if isinstance(op, plan.Guard):
        chain = f"bridge {name} {_chain(op)}"
        element = f'bridge {name} links {{ "{op.link}" : goto {_chain(op)} }}'
        return [
            f"add chain {chain}",
            f"add element {element}",
            f"delete element {element}",
            f"flush chain {chain}",
            f"delete chain {chain}",
        ]
    if isinstance(op, plan.Translate):
        places = [(f"inside{_version(address)}", address) for address in op.addresses]
    else:
        assert isinstance(op, plan.Forward)
        at = f" . {op.address}" if op.address else ""
        key = f"{op.protocol}{at} . {op.port}"
        places = [(_forward_map(op, target), f"{key} : {target} . {op.to_port}") for target in op.to]
    elements = [f"inet {name} {place} {{ {element} }}" for place, element in places]
    return [f"{verb} element {element}" for element in elements for verb in ("add", "delete")]


def remains(op: plan.Op, name: str) -> list[nfnetlink.Chain | nfnetlink.Element]:
    """What is there of a filter op that was done."""
    match op:
        case plan.Guard():
            element = nfnetlink.Element(nfnetlink.BRIDGE, name, "links", nfnetlink.link_key(op.link))
            return [element, nfnetlink.Chain(nfnetlink.BRIDGE, name, _chain(op))]
        case plan.Translate():
            return list(_inside(op, name))
        case plan.Forward():
            return list(_forward(op, name))
    raise AssertionError(op.kind)


def _bridge(link: str, name: str) -> nfnetlink.Element:
    return nfnetlink.Element(nfnetlink.INET, name, "bridges", nfnetlink.link_key(link))


def _inside(op: plan.Translate, name: str) -> Iterator[nfnetlink.Element]:
    comment = _comment(op.zonename)
    for address in op.addresses:
        place = f"inside{_version(address)}"
        yield nfnetlink.Element(nfnetlink.INET, name, place, _packed(address), comment=comment)


def _forward(op: plan.Forward, name: str) -> Iterator[nfnetlink.Element]:
    protocol = bytes([getattr(socket, f"IPPROTO_{op.protocol.upper()}")])
    at = [_packed(op.address)] if op.address else []
    key = nfnetlink.key(protocol, *at, op.port.to_bytes(2, "big"))
    for target in op.to:
        data = nfnetlink.key(_packed(target), op.to_port.to_bytes(2, "big"))
        place, comment = _forward_map(op, target), _comment(op.zonename)
        yield nfnetlink.Element(nfnetlink.INET, name, place, key, data=data, comment=comment)


def _forward_map(op: plan.Forward, target: str) -> str:
    return f"forward{'-at' if op.address else ''}{_version(target)}"


def _version(address: str) -> int:
    return 6 if network.is_v6(address) else 4


def _packed(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if network.is_v6(address) else socket.AF_INET, address)


def _chain(op: plan.Guard) -> str:
    return f"link-{op.link}"


def _comment(zonename: str, why: str = "") -> str:
    return f"zone {zonename}{': ' if why else ''}{why}"


# -- guarding a link --------------------------------------------------------------------------------------------

# What a rule may look at, in the names of nft(8).
_LOADS: Final = {
    "ether saddr": nfnetlink.payload(nfnetlink.LINK, 6, 6),
    "ether type": nfnetlink.payload(nfnetlink.LINK, 12, 2),
    "arp saddr ether": nfnetlink.payload(nfnetlink.NETWORK, 8, 6),
    "arp saddr ip": nfnetlink.payload(nfnetlink.NETWORK, 14, 4),
    "ip saddr": nfnetlink.payload(nfnetlink.NETWORK, 12, 4),
    "ip6 saddr": nfnetlink.payload(nfnetlink.NETWORK, 8, 16),
    "sport": nfnetlink.payload(nfnetlink.TRANSPORT, 0, 2),
    "icmpv6 type": nfnetlink.payload(nfnetlink.TRANSPORT, 0, 1),
    "nd target": nfnetlink.payload(nfnetlink.TRANSPORT, 8, 16),  # nft has no name for it before 1.0.9
    "protocol": nfnetlink.meta(nfnetlink.PROTOCOL),
    "l4proto": nfnetlink.meta(nfnetlink.L4PROTO),
}
_IPV4, _ARP, _IPV6 = b"\x08\x00", b"\x08\x06", b"\x86\xdd"
_UDP, _ICMPV6 = b"\x11", b"\x3a"
_ROUTER_SOLICIT, _ROUTER_ADVERT, _NEIGHBOR_SOLICIT, _NEIGHBOR_ADVERT, _REDIRECT, _LISTENER_REPORT = (
    bytes([kind]) for kind in (133, 134, 135, 136, 137, 143)
)


@dataclass(frozen=True, slots=True)
class GuardRule:
    """A rule of a link's chain: it drops, for a reason, or accepts."""

    matches: tuple[nfnetlink.Match, ...]
    why: str = ""

    def of(self, op: plan.Guard, name: str) -> nfnetlink.Rule:
        """The rule in the link's own chain."""
        verdict, comment = (nfnetlink.DROP, _comment(op.zonename, self.why)) if self.why else (nfnetlink.ACCEPT, "")
        return nfnetlink.Rule(nfnetlink.BRIDGE, name, _chain(op), self.matches, verdict, comment)


def guard_rules(op: plan.Guard) -> Iterator[GuardRule]:
    """The rules of a link's chain: every frame that the zone sends passes them, wherever it is going."""
    mac = bytes.fromhex(op.mac.replace(":", ""))
    if "mac-nospoof" in op.protections:
        yield GuardRule((_differs("ether saddr", mac),), "mac-nospoof")
        yield GuardRule((_is("ether type", _ARP), _differs("arp saddr ether", mac)), "mac-nospoof")
    if "ip-nospoof" in op.protections or "restricted" in op.protections:
        # Also tagged frames, which a receiver could read as untagged ones.
        others = tuple(_differs("ether type", kind) for kind in (_IPV4, _IPV6, _ARP))
        yield GuardRule(others, "only IPv4, IPv6 and ARP")
    if "dhcp-nospoof" in op.protections:
        for family, port in ((_IPV4, 67), (_IPV6, 547)):
            server = _is("sport", port.to_bytes(2, "big"))
            yield GuardRule((_is("ether type", family), _is("l4proto", _UDP), server), "dhcp-nospoof")
        for kind in (_ROUTER_ADVERT, _REDIRECT):
            yield GuardRule(_icmpv6(kind), "dhcp-nospoof")
    if "ip-nospoof" in op.protections:
        yield from _held_to_addresses(op)


def _held_to_addresses(op: plan.Guard) -> Iterator[GuardRule]:
    four = network.family_of(op.sources, v6=False)
    six = (*network.family_of(op.sources, v6=True), network.link_local(op.mac))
    ours = _none_of("arp saddr ip", ("0.0.0.0", *four), nfnetlink.IPV4_ADDRESS)
    yield GuardRule((_is("ether type", _ARP), *ours), "ip-nospoof")
    ours = _none_of("ip saddr", four, nfnetlink.IPV4_ADDRESS)
    yield GuardRule((_is("protocol", _IPV4), *ours), "ip-nospoof")
    # The unspecified address asks whether an address is free, for routers, and tells of groups: nothing else.
    for kind in (_ROUTER_SOLICIT, _NEIGHBOR_SOLICIT, _LISTENER_REPORT):
        unspecified = _is("ip6 saddr", bytes(16))
        yield GuardRule((_is("protocol", _IPV6), unspecified, _is("l4proto", _ICMPV6), _is("icmpv6 type", kind)))
    ours = _none_of("ip6 saddr", six, nfnetlink.IPV6_ADDRESS)
    yield GuardRule((_is("protocol", _IPV6), *ours), "ip-nospoof")
    for source in six:
        yield GuardRule((*_icmpv6(_NEIGHBOR_ADVERT), _address("nd target", source, equal=True)))
    yield GuardRule(_icmpv6(_NEIGHBOR_ADVERT), "ip-nospoof")


def _is(what: str, value: bytes) -> nfnetlink.Match:
    return nfnetlink.Match(_LOADS[what], value)


def _differs(what: str, value: bytes) -> nfnetlink.Match:
    return nfnetlink.Match(_LOADS[what], value, equal=False)


def _icmpv6(kind: bytes) -> tuple[nfnetlink.Match, ...]:
    return _is("ether type", _IPV6), _is("l4proto", _ICMPV6), _is("icmpv6 type", kind)


def _none_of(what: str, addresses: Sequence[str], kind: int) -> Iterator[nfnetlink.Match]:
    """Every address but these, which may be networks.  Not by a set without a name, as long as there are few: nft(8)
    reads all sets of a table before it does anything.
    """
    single = [address for address in addresses if "/" not in address]
    if len(single) > FEW:
        values = nfnetlink.Values(kind, tuple(dict.fromkeys(map(_packed, single))))
        yield nfnetlink.Match(_LOADS[what], values, equal=False)
        addresses = [address for address in addresses if "/" in address]
    for address in addresses:
        yield _address(what, address, equal=False)


def _address(what: str, address: str, *, equal: bool) -> nfnetlink.Match:
    """An address, or a network."""
    bare, _, prefix = address.partition("/")
    value = _packed(bare)
    bits = int(prefix or 8 * len(value))
    if bits == 8 * len(value):
        return nfnetlink.Match(_LOADS[what], value, equal)
    mask = ((1 << bits) - 1 << 8 * len(value) - bits).to_bytes(len(value), "big")
    return nfnetlink.Match(_LOADS[what], bytes(a & b for a, b in zip(value, mask, strict=True)), equal, mask)


# -- doing and undoing ------------------------------------------------------------------------------------------


# The families that see what the host passes on; our own chain for each link is in another.
_PASSING: Final = (nfnetlink.INET, nfnetlink.IPV4, nfnetlink.IPV6)


def add(ops: Iterable[plan.Op], stage: Stage) -> None:
    """Do filter ops, all or none.  Without nft, what nobody asked for is left out, with a warning.

    Raises PlatformError.
    """
    ops = list(ops)
    if nft.program() is None:
        _without_nft(ops, stage)
        return
    name = table(stage.layout.suffix)
    try:
        try:
            _add(ops, name)
        except FileNotFoundError:  # the tables are not there yet, or somebody has flushed them
            restore(ops, stage.layout)
        passing = set[str]().union(*(nfnetlink.tables_with_hook(family, nfnetlink.HOOK_FORWARD) for family in _PASSING))
    except (OSError, nft.Refusal) as error:
        raise PlatformError("cannot filter the zone's network: {why}", why=error) from None
    if passing - {name}:  # somebody else looks at it too, and what they do to it is worth a closer look
        for text in warnings(ops):
            stage.say(text)


def _add(ops: Iterable[plan.Op], name: str) -> None:
    nfnetlink.add([thing for op in ops for thing in additions(op, name)])


def complete(ops: Iterable[plan.Op], suffix: str) -> bool:
    """Whether the kernel has what these filter ops have made, as far as the tables and chains tell."""
    if nft.program() is None:
        return True
    name = table(suffix)
    chains = {
        (item["chain"]["family"], item["chain"]["name"])
        for item in nft.listing("chains")
        if "chain" in item and item["chain"]["table"] == name
    }
    wanted = {("bridge", "prerouting"), ("inet", "postrouting")}
    wanted |= {("bridge", _chain(op)) for op in ops if isinstance(op, plan.Guard)}
    return wanted <= chains


def restore(ops: Iterable[plan.Op], layout: Layout) -> None:
    """Make the tables and what the ops have in them anew.  Raises PlatformError, OSError."""
    name = table(layout.suffix)
    _remember(layout, name)
    nft.run(skeleton(name))
    _add(ops, name)


def warnings(ops: Iterable[plan.Op]) -> Iterator[str]:
    """A line for each way of the zone's traffic through the host that a rule of others surely ends."""
    rules = filtertrace.Rules.of(nft.listing("ruleset"))
    told = set()
    for what, packet in _ways(ops):
        for decision in filtertrace.refusals(filtertrace.walk(rules, packet, ("forward",))):
            if decision.certain and (what, decision.place, decision.handle) not in told:
                told.add((what, decision.place, decision.handle))
                yield message(
                    "WARNING: {what} is dropped by {rule} in chain {chain}{hint}",
                    what=what,
                    rule=_rule_of(decision),
                    chain=decision.place,
                    hint=_hint(decision),
                )


def _ways(ops: Iterable[plan.Op]) -> Iterator[tuple[str, filtertrace.Packet]]:
    """New connections through the host that the ops are about."""
    for op in ops:
        if isinstance(op, plan.Translate):
            for address in op.addresses:
                v6 = network.is_v6(address)
                away = traffic.uplink(v6=v6)
                yield (
                    message("what the zone sends to the outside"),
                    filtertrace.Packet(v6, "tcp", iifname=op.bridge, oifname=away, saddr=address),
                )
        if isinstance(op, plan.Forward):
            for address in op.to:
                v6 = network.is_v6(address)
                come = traffic.uplink(v6=v6)
                yield (
                    message("what comes to port {port} from outside", port=op.port),
                    filtertrace.Packet(
                        v6, op.protocol, iifname=come, oifname=op.bridge, daddr=address, dport=op.to_port
                    ),
                )


def _rule_of(decision: filtertrace.Decision) -> str:
    if decision.handle is None:
        return message("the policy")
    return message("the rule '{rule}'", rule=nft.rule_text(decision.place, decision.handle))


def _hint(decision: filtertrace.Decision) -> str:
    """How to let it pass, where there is a place for such rules."""
    for setting, chains in ADMITTING.items():
        if any(_chain_exists(chain) and chain.split()[:2] == decision.place.split()[:2] for chain in chains):
            return message(' (admit = ["{setting}"] in zonemgr.toml lets it pass)', setting=setting)
    return ""


def _remember(layout: Layout, name: str) -> None:
    with hostledger.lock(layout):
        ledger = hostledger.load(layout)
        if name not in ledger.tables:
            ledger.tables.append(name)
            hostledger.save(layout, ledger)


def _without_nft(ops: list[plan.Op], stage: Stage) -> None:
    for op in ops:
        if isinstance(op, plan.Forward) or (isinstance(op, plan.Guard) and op.required):
            raise PlatformError("cannot {what}: nft is not installed (apt-get install nftables)", what=op.describe())
    stage.say(
        "WARNING: nft is not installed, so the zone's links are not held to its own addresses and nothing is"
        " translated on its way out (apt-get install nftables)"
    )


def undo(op: plan.Op, suffix: str) -> None:
    """Undo one filter op; what is gone already is fine."""
    name = table(suffix)
    if nft.program() is None:
        return
    try:
        nft.run("\n".join(removals(op, name)) + "\n")
    except nft.Refusal:
        if exists(name):
            raise


def start_undo(ops: Sequence[plan.Op], suffix: str) -> Callable[[], None]:
    """Begin to undo filter ops, in one batch; what is returned waits for its end, and raises what it met.

    What is there as it was made goes at once; nft(8) finds out what is there of the rest.
    """
    name = table(suffix)
    if not ops or nft.program() is None or nfnetlink.remove([thing for op in ops for thing in remains(op, name)]):
        return lambda: None
    batch = nft.Batch("\n".join(line for op in ops for line in removals(op, name)) + "\n")

    def finish() -> None:
        try:
            batch.wait()
        except nft.Refusal:  # of one of them: nothing is done, so one by one
            for op in ops:
                undo(op, suffix)

    return finish


def exists(name: str) -> bool:
    """Whether both tables are there."""
    tables = [item["table"] for item in nft.listing("tables") if "table" in item]
    return {"bridge", "inet"} <= {table["family"] for table in tables if table["name"] == name}


# -- rules in chains of others ----------------------------------------------------------------------------------

ADMITTING: Final = {
    "docker-user": ("ip filter DOCKER-USER", "ip6 filter DOCKER-USER"),
    "ufw": ("ip filter ufw-user-forward", "ip6 filter ufw6-user-forward"),
}
MARK: Final = "zonemgr{suffix} zone {zonename}"


def admit(op: plan.Admit, stage: Stage) -> None:
    """Accept rules at the head of the chains that are there, once each."""
    _take_out(op, stage.layout.suffix)
    mark = MARK.format(suffix=stage.layout.suffix, zonename=op.zonename)
    lines = [
        f'insert rule {chain} {side} "{link}" counter accept comment "{mark}"'
        for chain in op.chains
        if _chain_exists(chain)
        for link in op.links
        for side in ("iifname", "oifname")
    ]
    if lines:
        nft.run("\n".join(lines) + "\n")


def undo_admit(op: plan.Admit, suffix: str) -> None:
    """Our rules, known by their comment, go; everything else in those chains stays."""
    if nft.program() is not None:
        _take_out(op, suffix)


def _take_out(op: plan.Admit, suffix: str) -> None:
    mark = MARK.format(suffix=suffix, zonename=op.zonename)
    lines = [
        f"delete rule {chain} handle {rule['handle']}"
        for chain in op.chains
        if _chain_exists(chain)
        for rule in (item["rule"] for item in nft.listing("chain", chain) if "rule" in item)
        if rule.get("comment") == mark
    ]
    if lines:
        nft.run("\n".join(lines) + "\n")


def _chain_exists(chain: str) -> bool:
    if not re.fullmatch(r"\w+ [\w.-]+ [\w.-]+", chain):
        return False
    try:
        nft.listing("chain", chain)
    except nft.Refusal:
        return False
    return True
