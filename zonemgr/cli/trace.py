"""``trace``: how a packet to a zone's port would fare in the packet filters of the host, and which rule decides.

Nothing is sent and nothing is changed.  Ways in are tried from the host itself and from outside, and the way out from
the zone, for each family that the zone has an address of.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import click

from zonemgr.cli.output import Session
from zonemgr.errors import Exit, StateError, UsageError, message
from zonemgr.linux import nft, traffic
from zonemgr.model import filtertrace, network
from zonemgr.model.filtertrace import Decision, Packet, Rules
from zonemgr.model.grid import name_check
from zonemgr.model.zone import Zone

_IN_FROM_HOST = ("output", "postrouting")
_THROUGH = ("prerouting", "forward", "postrouting")


@dataclass
class Way:
    """One way of a packet: from where, what decided, and what else is in the way."""

    start: str
    family: str
    decisions: list[Decision]
    obstacles: list[str] = field(default_factory=list)

    @property
    def passes(self) -> bool | None:
        """None: it depends on what cannot be told from here."""
        refusing = filtertrace.refusals(self.decisions)
        if self.obstacles or any(decision.certain for decision in refusing):
            return False
        return None if refusing else True


@click.command()
@click.argument("name", metavar="NAME")
@click.argument("port", metavar="PROTO/PORT")
@click.pass_obj
def trace(session: Session, name: str, port: str) -> int:
    """Walk the packet filters to a port of a running zone, and name the rule that decides.

    Status 0 when a packet would get through from everywhere, else 1.
    """
    found = re.fullmatch(r"(tcp|udp)/([0-9]{1,5})", port)
    if not found or not 0 < int(found[2]) < 65536:
        raise UsageError("'{port}' is not a port such as tcp/80", port=port)
    protocol, number = found[1], int(found[2])
    with session.about(name):
        name_check("trace", name)
        zone, pid = _living(session, name)
        ways = list(_ways(zone, protocol, number))
        listening = traffic.listens(pid, protocol, number)
    if session.json:
        session.emit(
            {
                "zonename": name,
                "protocol": protocol,
                "port": number,
                "listening": listening,
                "ways": [_to_json(way) for way in ways],
            }
        )
    else:
        for way in ways:
            for line in _text(way):
                session.data(line)
        if not listening:
            session.data(message("{port}: nothing in the zone listens", port=port))
    return Exit.OK if listening and all(way.passes for way in ways) else Exit.ERROR


def _living(session: Session, name: str) -> tuple[Zone, int]:
    from zonemgr.store import instance, snapshot, zones

    record = instance.read(session.layout, name)
    zone = snapshot.load(session.layout, name) if record else None
    if record is None or zone is None or record.init is None or not record.init.alive:
        zones.load(session.layout, name)
        raise StateError("zone is not running: its links and rules are made at boot")
    return zone, record.init.pid


def _ways(zone: Zone, protocol: str, port: int) -> Iterator[Way]:
    rules = Rules.of(nft.listing("ruleset")) if nft.program() else Rules()
    for v6 in (False, True):
        found = [
            (network.bare(address), net.anet)
            for net in zone.net
            if net.anet
            for address in net.address
            if network.is_v6(address) is v6
        ]
        for address, bridge in found[:1]:
            yield from _ways_of(rules, v6, protocol, port, address, bridge or "")


def _ways_of(rules: Rules, v6: bool, protocol: str, port: int, address: str, bridge: str) -> Iterator[Way]:
    family = "IPv6" if v6 else "IPv4"
    uplink = traffic.uplink(v6=v6)
    inbound = {"daddr": address, "dport": port}
    host = Packet(v6, protocol, iifname="lo", oifname=bridge, **inbound)  # type: ignore[arg-type]
    yield Way("the host", family, filtertrace.walk(rules, host, _IN_FROM_HOST))
    outside = Packet(v6, protocol, iifname=uplink, oifname=bridge, **inbound)  # type: ignore[arg-type]
    closed = _closed(v6=v6, link=uplink)
    yield Way("outside", family, filtertrace.walk(rules, outside, _THROUGH), closed)
    out = Packet(v6, protocol, iifname=bridge, oifname=uplink, saddr=address)
    yield Way("the zone to outside", family, filtertrace.walk(rules, out, _THROUGH), _closed(v6=v6, link=bridge))


def _closed(*, v6: bool, link: str | None) -> list[str]:
    """What is in the way besides rules of nftables."""
    found = []
    if not traffic.forwards(v6=v6, link=link if link and not v6 else "all"):
        family = "ipv6" if v6 else "ipv4"
        found.append(
            message(
                "the host does not forward packets (net.{family}.conf.all.forwarding is 0; forwarding = true in"
                " zonemgr.toml, or sysctl)",
                family=family,
            )
        )
    if "-P FORWARD DROP" in traffic.legacy_forward(v6=v6):
        found.append(message("the FORWARD chain of the old iptables drops what no rule of it accepts"))
    return found


def _text(way: Way) -> Iterator[str]:
    start = message("from {start} ({family})", start=way.start, family=way.family)
    for obstacle in way.obstacles:
        yield message("{start}: stopped: {why}", start=start, why=obstacle)
    for decision in filtertrace.refusals(way.decisions):
        how = message("dropped") if decision.certain else message("perhaps dropped")
        yield message("{start}: {how} by {what}", start=start, how=how, what=_describe(decision))
    if way.passes:
        passed = len(way.decisions)
        yield message("{start}: passes {count} chains", start=start, count=passed)


def _describe(decision: Decision) -> str:
    if decision.handle is None:
        return message(
            "the policy of chain {chain} ({policy})", chain=decision.place, policy=decision.verdict
        )
    return message(
        "the rule '{rule}' of chain {chain}", rule=nft.rule_text(decision.place, decision.handle), chain=decision.place
    )


def _to_json(way: Way) -> dict[str, Any]:
    return {
        "from": way.start,
        "family": way.family,
        "passes": way.passes,
        "obstacles": way.obstacles,
        "decisions": [
            {
                "verdict": decision.verdict,
                "certain": decision.certain,
                "chain": decision.place,
                "handle": decision.handle,
                "rule": nft.rule_text(decision.place, decision.handle) if decision.handle is not None else None,
            }
            for decision in way.decisions
        ],
    }
