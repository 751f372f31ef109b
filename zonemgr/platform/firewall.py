"""The packet filter: two tables of nftables, ``bridge zonemgr`` and ``inet zonemgr`` (with the instance's suffix).

``bridge`` holds each zone to what is its own: a chain for each guarded link, found by the name of the bridge port that
a frame came in by, so that nothing a zone writes into a frame can lead past it.  ``inet`` translates addresses on the
way out and leads forwarded ports in: rules that never change, and maps and sets to which a zone's elements are added.

What one zone has there is added in one batch, and each op is undone by itself, so that a running zone can be changed.
The tables are made by the first batch that misses them.  Tables of others are never touched, but for ``admit``, which
the settings have to ask for.  Whether traffic passes in the end is for all base chains to say: an accept of ours does
not overrule another's drop.  That is why ``Admit`` exists, and why ``filtertrace`` finds the rule that decides.
"""

from __future__ import annotations

import ipaddress
import json
import re
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
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


def additions(op: plan.Op, name: str) -> list[str]:
    """The commands that do a filter op.  Doing it again changes nothing."""
    match op:
        case plan.Guard():
            chain = f"bridge {name} {_chain(op)}"
            return [
                f"add chain {chain}",
                f"flush chain {chain}",
                *(f"add rule {chain} {rule}" for rule in guard_rules(op)),
                f'add element bridge {name} links {{ "{op.link}" : goto {_chain(op)} }}',
            ]
        case plan.Translate():
            return [
                f'add element inet {name} bridges {{ "{op.bridge}" }}',
                *(f"add element {element}" for element in _inside(op, name)),
            ]
        case plan.Forward():
            return [
                f'add element inet {name} bridges {{ "{op.bridge}" }}',
                *([f"add element inet {name} loopback6 {{ ::1 }}"] if op.loopback6 else []),
                *(f"add element {element}" for element in _forward(op, name)),
            ]
    raise AssertionError(op.kind)


def removals(op: plan.Op, name: str) -> list[str]:
    """The commands that undo a filter op.  Each adds first: what is not there can be taken away as well."""
    match op:
        case plan.Guard():
            chain = f"bridge {name} {_chain(op)}"
            element = f'bridge {name} links {{ "{op.link}" : goto {_chain(op)} }}'
            return [
                f"add chain {chain}",
                f"add element {element}",
                f"delete element {element}",
                f"flush chain {chain}",
                f"delete chain {chain}",
            ]
        case plan.Translate():
            elements = _inside(op, name)
        case plan.Forward():
            elements = _forward(op, name)
        case _:
            raise AssertionError(op.kind)
    return [f"{verb} element {element}" for element in elements for verb in ("add", "delete")]


def remains(op: plan.Op, name: str) -> list[nfnetlink.Chain | nfnetlink.Element]:
    """What is there of a filter op that was done."""
    match op:
        case plan.Guard():
            element = nfnetlink.Element(nfnetlink.BRIDGE, name, "links", nfnetlink.link_key(op.link))
            return [element, nfnetlink.Chain(nfnetlink.BRIDGE, name, _chain(op))]
        case plan.Translate():
            packed = map(_packed, op.addresses)
            return [
                nfnetlink.Element(nfnetlink.INET, name, f"inside{4 if len(key) == 4 else 6}", key) for key in packed
            ]
        case plan.Forward():
            return [nfnetlink.Element(nfnetlink.INET, name, *_forward_key(op, target)) for target in op.to]
    raise AssertionError(op.kind)


def _forward_key(op: plan.Forward, target: str) -> tuple[str, bytes]:
    """The map that has the forward to this target, and the key there."""
    protocol = bytes([getattr(socket, f"IPPROTO_{op.protocol.upper()}")])
    at = [_packed(op.address)] if op.address else []
    place = "-at" if op.address else ""
    key = nfnetlink.key(protocol, *at, op.port.to_bytes(2, "big"))
    return f"forward{place}{6 if network.is_v6(target) else 4}", key


def _packed(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if network.is_v6(address) else socket.AF_INET, address)


def _chain(op: plan.Guard) -> str:
    return f"link-{op.link}"


def _comment(zonename: str, why: str = "") -> str:
    return f'comment "zone {zonename}{": " if why else ""}{why}"'


def _inside(op: plan.Translate, name: str) -> list[str]:
    return [
        f"inet {name} inside{6 if network.is_v6(address) else 4} {{ {address} {_comment(op.zonename)} }}"
        for address in op.addresses
    ]


def _forward(op: plan.Forward, name: str) -> list[str]:
    elements = []
    for target in op.to:
        family = 6 if network.is_v6(target) else 4
        place = f"-at{family}" if op.address else f"{family}"
        at = f" . {op.address}" if op.address else ""
        key = f"{op.protocol}{at} . {op.port} {_comment(op.zonename)}"
        elements.append(f"inet {name} forward{place} {{ {key} : {target} . {op.to_port} }}")
    return elements


# -- guarding a link --------------------------------------------------------------------------------------------


def guard_rules(op: plan.Guard) -> Iterator[str]:
    """The rules of a link's chain: every frame that the zone sends passes them, wherever it is going."""

    def drop(match: str, why: str) -> str:
        return f"{match} drop {_comment(op.zonename, why)}"

    if "mac-nospoof" in op.protections:
        yield drop(f"ether saddr != {op.mac}", "mac-nospoof")
        yield drop(f"ether type arp arp saddr ether != {op.mac}", "mac-nospoof")
    if "ip-nospoof" in op.protections or "restricted" in op.protections:
        # Also tagged frames, which a receiver could read as untagged ones.
        yield drop(_none_of("ether type", ETHER_TYPES), "only IPv4, IPv6 and ARP")
    if "dhcp-nospoof" in op.protections:
        for family, port in DHCP_SERVERS:
            yield drop(f"ether type {family} udp sport {port}", "dhcp-nospoof")
        for kind in ("nd-router-advert", "nd-redirect"):
            yield drop(f"ether type ip6 icmpv6 type {kind}", "dhcp-nospoof")
    if "ip-nospoof" in op.protections:
        yield from _held_to_addresses(op, drop)


def _held_to_addresses(op: plan.Guard, drop: object) -> Iterator[str]:
    assert callable(drop)
    four = network.family_of(op.sources, v6=False)
    six = (*network.family_of(op.sources, v6=True), network.link_local(op.mac))
    yield drop("ether type arp " + _none_of("arp saddr ip", ("0.0.0.0", *four)), "ip-nospoof")
    yield drop(_none_of("ip saddr", four) if four else "ether type ip", "ip-nospoof")
    # The unspecified address asks whether an address is free, for routers, and tells of groups: nothing else.
    for kind in ("nd-router-solicit", "nd-neighbor-solicit", "mld2-listener-report"):
        yield f"ip6 saddr :: icmpv6 type {kind} accept"
    yield drop(_none_of("ip6 saddr", six), "ip-nospoof")
    for source in six:
        yield f"icmpv6 type nd-neighbor-advert {_advertised(source)} accept"
    yield drop("icmpv6 type nd-neighbor-advert", "ip-nospoof")


def _none_of(what: str, values: Sequence[str]) -> str:
    """A match for everything else.  Not by a set without a name, as long as there are few: nft reads all sets of a
    table before it adds to one, and six for each link would make the thousandth zone's batch five times the first's.
    """
    if len(values) > FEW:
        return f"{what} != {{ {', '.join(values)} }}"
    return " ".join(f"{what} != {value}" for value in values)


def _advertised(source: str) -> str:
    """The target of a neighbour advertisement, 64 bits into it; nft has no name for it before 1.0.9."""
    net = ipaddress.IPv6Network(source)
    bits = max(net.prefixlen, 1)
    return f"@th,64,{bits} 0x{int(net.network_address) >> (128 - bits):x}"


# -- doing and undoing ------------------------------------------------------------------------------------------


# The families that see what the host passes on; our own chain for each link is in another.
_LIST_OTHERS: Final = "".join(f"\nlist chains {family}" for family in ("inet", "ip", "ip6")) + "\n"


def start(ops: Iterable[plan.Op], stage: Stage) -> Callable[[], None]:
    """Begin to do filter ops, in one batch; what is returned waits for its end, and raises what it met.

    nft takes as long as the mounts of a zone, and need not wait for them.  Without nft, what nobody asked for is left
    out, with a warning.
    """
    ops = list(ops)
    if nft.program() is None:
        _without_nft(ops, stage)
        return lambda: None
    name = table(stage.layout.suffix)
    text = "\n".join(line for op in ops for line in additions(op, name)) + _LIST_OTHERS
    batch = nft.Batch(text)
    return lambda: _finish(batch, text, ops, stage)


def _finish(batch: nft.Batch, text: str, ops: list[plan.Op], stage: Stage) -> None:
    name = table(stage.layout.suffix)
    try:
        try:
            listing = batch.wait()
        except nft.Refusal:  # the tables are not there yet, or somebody has flushed them
            _remember(stage.layout, name)
            listing = nft.run(skeleton(name) + text)
    except nft.Refusal as error:
        raise PlatformError("cannot filter the zone's network: {why}", why=error.text) from None
    if _others_filter(listing, name):
        for text in warnings(ops):
            stage.say(text)


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
    """Make the tables and what the ops have in them anew."""
    name = table(layout.suffix)
    _remember(layout, name)
    nft.run(skeleton(name) + "\n".join(line for op in ops for line in additions(op, name)) + "\n")


def _others_filter(listing: str, name: str) -> bool:
    """Whether somebody else looks at what the host passes on; what they do to it is worth a closer look then."""
    lists = [json.loads(line)["nftables"] for line in listing.splitlines() if line]
    chains = (item["chain"] for items in lists for item in items if "chain" in item)
    return any(chain.get("hook") == "forward" and chain["table"] != name for chain in chains)


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
