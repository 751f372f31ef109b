"""Walks a packet through the chains of nftables, ours and those of others, and finds the rule that decides.

Pure: the rules are what ``nft -j list ruleset`` shows.  A packet is a few facts, and what is not known of it (or of a
rule: there are hundreds of matches) makes a comparison unknown, never wrong: a rule that may drop it is told apart from
one that does.  An accept ends only its own base chain; a drop ends the packet, whoever says it.
"""

from __future__ import annotations

import fnmatch
import ipaddress
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

_DEPTH: Final = 16  # jumps within jumps, as the kernel has it
_NAT: Final = ("dnat", "snat", "masquerade", "redirect")
_REFUSALS: Final = ("drop", "reject")
_PROTOCOLS: Final = {1: "icmp", 6: "tcp", 17: "udp", 58: "ipv6-icmp", 132: "sctp"}  # nft has names from /etc/protocols
_SILENT: Final = ("counter", "log", "limit", "quota", "mangle", "notrack", "set", "comment", "meter", "ct helper")


@dataclass(frozen=True, slots=True)
class Packet:
    """A new connection's first packet, as far as it is known.  ``None`` is not known."""

    v6: bool
    protocol: str  # tcp or udp
    iifname: str | None = None
    oifname: str | None = None
    saddr: str | None = None
    daddr: str | None = None
    dport: int | None = None
    to_host: bool = False  # its destination is an address of this host


@dataclass(frozen=True, slots=True)
class Decision:
    """What a chain made of a packet: a verdict (accept, drop, reject), and the rule that gave it; None: the policy."""

    verdict: str
    family: str
    table: str
    chain: str
    handle: int | None = None
    rule: Mapping[str, Any] | None = None
    certain: bool = True

    @property
    def refuses(self) -> bool:
        return self.verdict in _REFUSALS

    @property
    def place(self) -> str:
        return f"{self.family} {self.table} {self.chain}"


@dataclass
class Rules:
    """A ruleset, looked up by table and name."""

    bases: list[dict[str, Any]] = field(default_factory=list)
    rules: dict[tuple[str, str, str], list[dict[str, Any]]] = field(default_factory=dict)
    sets: dict[tuple[str, str, str], dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, objects: Iterable[Mapping[str, Any]]) -> Rules:
        """From the list that nft gives as "nftables"."""
        found = cls()
        for item in objects:
            for kind, value in item.items():
                if kind == "chain" and "hook" in value:
                    found.bases.append(value)
                elif kind == "rule":
                    found.rules.setdefault(_place(value, value["chain"]), []).append(value)
                elif kind in ("set", "map"):
                    found.sets[_place(value, value["name"])] = value
        found.bases.sort(key=lambda chain: chain.get("prio", 0))
        return found

    def hooked(self, hook: str, *, v6: bool) -> Iterator[dict[str, Any]]:
        """Base chains that see an IP packet at a hook, in their order."""
        families = ("inet", "ip6" if v6 else "ip")
        return (chain for chain in self.bases if chain["hook"] == hook and chain["family"] in families)


def _place(value: Mapping[str, Any], name: str) -> tuple[str, str, str]:
    return value["family"], value["table"], name


def walk(rules: Rules, packet: Packet, hooks: Iterable[str]) -> list[Decision]:
    """What each base chain decides, until one that surely refuses."""
    decisions = []
    for hook in hooks:
        for chain in rules.hooked(hook, v6=packet.v6):
            for decision in _Walk(rules, packet, chain).run():
                decisions.append(decision)
                if decision.refuses and decision.certain:
                    return decisions
    return decisions


def refusals(decisions: Iterable[Decision]) -> list[Decision]:
    """Those that refuse, or may."""
    return [decision for decision in decisions if decision.refuses]


class _Walk:
    """One packet in one base chain."""

    def __init__(self, rules: Rules, packet: Packet, base: Mapping[str, Any]) -> None:
        self.rules = rules
        self.packet = packet
        self.base = base
        self.perhaps: list[Decision] = []
        self.doubt = False  # something earlier may have let it pass

    def run(self) -> list[Decision]:
        """Perhaps some that may refuse, and last the decision."""
        family, table, name = self.base["family"], self.base["table"], self.base["name"]
        final = self._chain(name, 0)
        if final is None:
            final = Decision(self.base.get("policy", "accept"), family, table, name)
        return [*self.perhaps, _unsure(final) if self.doubt and final.refuses else final]

    def _chain(self, name: str, depth: int) -> Decision | None:
        """The decision of a chain; None when it returns without one."""
        for rule in self.rules.rules.get((self.base["family"], self.base["table"], name), ()):
            verdict, target, certain = self._rule(rule)
            decision = Decision(
                verdict, self.base["family"], self.base["table"], name, rule.get("handle"), rule, certain
            )
            if verdict in ("accept", *_REFUSALS):
                if certain:
                    return decision
                if decision.refuses:
                    self.perhaps.append(decision)
                else:
                    self.doubt = True
            elif verdict in ("jump", "goto") and depth < _DEPTH:
                below = self._chain(target, depth + 1)
                if below is not None and certain:
                    return below
                if below is not None and below.refuses:
                    self.perhaps.append(_unsure(below))
                elif below is not None or verdict == "goto":
                    self.doubt = True
                if verdict == "goto" and certain:
                    return None
            elif verdict == "return":
                if certain:
                    return None
                self.doubt = True
        return None

    def _rule(self, rule: Mapping[str, Any]) -> tuple[str, str, bool]:
        """(verdict, target of a jump, whether it is certain); the verdict "" when the rule does not apply."""
        certain = True
        for statement in rule.get("expr", ()):
            for kind, value in statement.items():
                if kind == "match":
                    outcome = self._match(value)
                    if outcome is False:
                        return "", "", True
                    certain = certain and outcome is True
                elif kind == "vmap":
                    verdict = self._verdict_map(value)
                    if verdict is not None:
                        return (*_verdict(verdict), certain)
                    certain = False if self._key(value["key"]) is None else certain
                elif kind in ("accept", "return", "jump", "goto", *_REFUSALS):
                    return (*_verdict(statement), certain)
                elif kind in _NAT:
                    return "accept", "", certain
                elif kind not in _SILENT:
                    certain = False  # a match of iptables, or something newer than this
        return "", "", certain

    # -- comparing ------------------------------------------------------------------------------------------

    def _match(self, match: Mapping[str, Any]) -> bool | None:
        left = self._key(match["left"])
        if left is None:
            return None
        outcome = self._within(left, match["right"])
        if outcome is None:
            return None
        match match["op"]:
            case "==" | "in":
                return outcome
            case "!=":
                return not outcome
        return None

    def _key(self, expression: Any) -> Any:
        """The packet's value of an expression; None when it is not known, () when the packet has no such thing."""
        packet = self.packet
        match expression:
            case {"meta": {"key": "iifname" | "iif"}}:
                return packet.iifname
            case {"meta": {"key": "oifname" | "oif"}}:
                return packet.oifname
            case {"meta": {"key": "l4proto"}}:
                return packet.protocol
            case {"meta": {"key": "nfproto"}}:
                return "ipv6" if packet.v6 else "ipv4"
            case {"meta": {"key": "protocol"}}:
                return "ip6" if packet.v6 else "ip"
            case {"payload": {"protocol": "ip" | "ip6" as protocol, "field": name}}:
                if (protocol == "ip6") is not packet.v6:
                    return ()
                known = {"saddr": packet.saddr, "daddr": packet.daddr}
                known.update(dict.fromkeys(("protocol", "nexthdr"), packet.protocol))
                return known.get(name)
            case {"payload": {"protocol": protocol, "field": "dport"}}:
                return packet.dport if protocol in ("th", packet.protocol) else ()
            case {"payload": {"protocol": "icmp" | "icmpv6" | "arp"}}:
                return ()
            case {"payload": {"protocol": "tcp" | "udp" | "sctp" | "dccp" as protocol}} if protocol != packet.protocol:
                return ()
            case {"ct": {"key": "state"}}:
                return "new"
            case {"ct": {"key": "status"}}:
                return None
            case {"fib": {"result": "type", "flags": "daddr" | ["daddr"]}}:
                return "local" if packet.to_host else "unicast"
            case {"concat": parts}:
                values = [self._key(part) for part in parts]
                return None if None in values else tuple(values)
        return None

    def _within(self, value: Any, pattern: Any) -> bool | None:
        """Whether the value is one of those that the right side of a comparison names."""
        if value == () and pattern != ():
            return False
        match pattern:
            case {"set": members}:
                return self._any(value, members)
            case str() if pattern.startswith("@"):
                named = self.rules.sets.get((self.base["family"], self.base["table"], pattern[1:]))
                return None if named is None else self._any(value, [_member(m) for m in named.get("elem", ())])
            case list():
                return self._any(value, pattern)
            case {"elem": {"val": member}}:
                return self._within(value, member)
            case {"prefix": {"addr": address, "len": length}}:
                network = ipaddress.ip_network(f"{address}/{length}", strict=False)
                return isinstance(value, str) and ipaddress.ip_address(value) in network
            case {"range": [low, high]}:
                return _in_range(value, low, high)
            case {"concat": parts}:
                if not isinstance(value, tuple) or len(value) != len(parts):
                    return None
                outcomes = [self._within(one, part) for one, part in zip(value, parts, strict=True)]
                return False if False in outcomes else None if None in outcomes else True
            case str() | int():
                return _equal(value, pattern)
        return None

    def _any(self, value: Any, members: Iterable[Any]) -> bool | None:
        outcomes = [self._within(value, member) for member in members]
        return True if True in outcomes else None if None in outcomes else False

    def _verdict_map(self, value: Mapping[str, Any]) -> Any:
        key, data = self._key(value["key"]), value["data"]
        if key is None:
            return None
        if isinstance(data, str):
            named = self.rules.sets.get((self.base["family"], self.base["table"], data[1:]), {})
            pairs = named.get("elem", ())
        else:
            pairs = data.get("set", ())
        return next((verdict for member, verdict in pairs if self._within(key, _member(member))), None)


def _unsure(decision: Decision) -> Decision:
    return Decision(
        decision.verdict,
        decision.family,
        decision.table,
        decision.chain,
        decision.handle,
        decision.rule,
        False,
    )


def _verdict(statement: Mapping[str, Any]) -> tuple[str, str]:
    """The verdict, and where it leads."""
    ((kind, value),) = statement.items()
    return kind, value["target"] if isinstance(value, Mapping) and "target" in value else ""


def _member(element: Any) -> Any:
    """A set's element without its comment, time-out or the data of a map."""
    if isinstance(element, Mapping) and "elem" in element:
        return element["elem"]["val"]
    if isinstance(element, list) and len(element) == 2:
        return _member(element[0])
    return element


def _equal(value: Any, pattern: str | int) -> bool:
    if isinstance(value, str) and isinstance(pattern, str) and pattern.endswith("*"):
        return fnmatch.fnmatchcase(value, pattern)
    if isinstance(value, int) and isinstance(pattern, str):
        return str(value) == pattern
    if isinstance(value, str) and isinstance(pattern, int):
        return value == _PROTOCOLS.get(pattern)
    return bool(value == pattern)


def _in_range(value: Any, low: Any, high: Any) -> bool | None:
    if isinstance(value, int) and isinstance(low, int) and isinstance(high, int):
        return low <= value <= high
    try:
        first, one, last = (ipaddress.ip_address(text) for text in (low, value, high))
    except ValueError:
        return None
    return int(first) <= int(one) <= int(last)
