"""The walk of a packet through rules as nft shows them."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from zonemgr.model.filtertrace import Packet, Rules, refusals, walk

WEB = Packet(False, "tcp", iifname="eth0", oifname="zbr0", daddr="10.0.0.2", dport=80)


def match(left: Any, right: Any, op: str = "==") -> dict[str, Any]:
    return {"match": {"op": op, "left": left, "right": right}}


def meta(key: str) -> dict[str, Any]:
    return {"meta": {"key": key}}


def payload(protocol: str, name: str) -> dict[str, Any]:
    return {"payload": {"protocol": protocol, "field": name}}


DROP: dict[str, Any] = {"drop": None}
ACCEPT: dict[str, Any] = {"accept": None}


def ruleset(*rules: list[dict[str, Any]], policy: str = "accept", family: str = "ip", **chains: Any) -> Rules:
    base = {"family": family, "table": "t", "name": "f", "hook": "forward", "prio": 0, "policy": policy}
    objects: list[dict[str, Any]] = [{"chain": base}]
    for name, content in {"f": rules, **chains}.items():
        for handle, expr in enumerate(content, 1):
            objects.append({"rule": {"family": family, "table": "t", "chain": name, "handle": handle, "expr": expr}})
    return Rules.of(objects)


def verdicts(rules: Rules, packet: Packet = WEB) -> list[tuple[str, int | None, bool]]:
    return [(one.verdict, one.handle, one.certain) for one in walk(rules, packet, ("forward",))]


@pytest.mark.parametrize(
    ("expression", "applies"),
    [
        (match(meta("oifname"), "zbr0"), True),
        (match(meta("oifname"), "zbr*"), True),
        (match(meta("oifname"), "docker0"), False),
        (match(meta("iifname"), "docker0", "!="), True),
        (match(meta("l4proto"), {"set": ["tcp", "udp"]}), True),
        (match(meta("l4proto"), 6), True),  # as nft shows it where /etc/protocols is missing
        (match(meta("l4proto"), {"set": [17, 58]}), False),
        (match({"concat": [meta("l4proto"), payload("th", "dport")]}, {"set": [{"concat": [6, 80]}]}), True),
        (match(payload("tcp", "dport"), {"set": [22, {"range": [80, 90]}]}), True),
        (match(payload("tcp", "dport"), {"range": [81, 90]}), False),
        (match(payload("udp", "dport"), 80), False),
        (match(payload("th", "dport"), 80), True),
        (match(payload("ip", "daddr"), {"prefix": {"addr": "10.0.0.0", "len": 8}}), True),
        (match(payload("ip", "daddr"), {"range": ["10.0.0.3", "10.0.0.9"]}), False),
        (match(payload("ip6", "daddr"), "fd00::1"), False),
        (match({"ct": {"key": "state"}}, ["established", "related"], "in"), False),
        (match({"ct": {"key": "state"}}, "new", "in"), True),
        (match({"concat": [meta("iifname"), payload("tcp", "dport")]}, {"set": [{"concat": ["eth0", 80]}]}), True),
        (match({"concat": [meta("iifname"), payload("tcp", "dport")]}, {"set": [{"concat": ["eth1", 80]}]}), False),
        (match({"fib": {"result": "type", "flags": "daddr"}}, "local"), False),
    ],
)
def test_a_comparison_holds_or_does_not(expression: dict[str, Any], applies: bool) -> None:
    expected = [("drop", 1, True)] if applies else [("accept", None, True)]
    assert verdicts(ruleset([expression, DROP])) == expected


@pytest.mark.parametrize(
    "expression",
    [
        match(payload("ip", "saddr"), "192.0.2.1"),
        match({"ct": {"key": "mark"}}, 7),
        match(meta("mark"), 7),
        {"xt": {"type": "match", "name": "addrtype"}},
        {"xt": None},
    ],
)
def test_what_is_not_known_of_a_packet_may_drop_it(expression: dict[str, Any]) -> None:
    assert verdicts(ruleset([expression, DROP])) == [("drop", 1, False), ("accept", None, True)]


def test_a_policy_is_in_doubt_when_something_unknown_may_have_accepted() -> None:
    unknown = match(meta("mark"), 7)
    assert verdicts(ruleset([unknown, ACCEPT], policy="drop")) == [("drop", None, False)]
    assert verdicts(ruleset([match(meta("oifname"), "docker0"), ACCEPT], policy="drop")) == [("drop", None, True)]


def test_jumps_come_back_and_gotos_do_not() -> None:
    jump, goto = ({kind: {"target": "below"}} for kind in ("jump", "goto"))
    below = [[match(meta("oifname"), "docker0"), DROP]]
    assert verdicts(ruleset([jump], [DROP], below=below)) == [("drop", 2, True)]
    assert verdicts(ruleset([goto], [DROP], below=below)) == [("accept", None, True)]
    assert verdicts(ruleset([jump], [DROP], below=[[{"return": None}], [ACCEPT]])) == [("drop", 2, True)]
    assert verdicts(ruleset([jump], below=[[DROP]])) == [("drop", 1, True)]
    assert verdicts(ruleset([jump], below=[[jump]])) == [("accept", None, True)]  # the kernel refuses loops; we end


def test_a_map_of_verdicts() -> None:
    vmap = {"vmap": {"key": meta("iifname"), "data": {"set": [["eth1", ACCEPT], ["eth0", DROP]]}}}
    assert verdicts(ruleset([vmap])) == [("drop", 1, True)]
    assert verdicts(ruleset([vmap]), dataclasses.replace(WEB, iifname="eth9")) == [("accept", None, True)]


def test_an_accept_ends_one_chain_and_a_drop_the_packet() -> None:
    first = {"family": "ip", "table": "a", "name": "f", "type": "filter", "hook": "forward", "prio": -5}
    second = {"family": "inet", "table": "b", "name": "f", "type": "filter", "hook": "forward", "prio": 5}
    objects = [
        {"chain": {**second, "policy": "drop"}},
        {"chain": {**first, "policy": "accept"}},
        {"rule": {"family": "ip", "table": "a", "chain": "f", "handle": 1, "expr": [ACCEPT]}},
    ]
    found = walk(Rules.of(objects), WEB, ("forward", "postrouting"))
    assert [(one.place, one.verdict) for one in found] == [("ip a f", "accept"), ("inet b f", "drop")]
    assert [one.place for one in refusals(found)] == ["inet b f"]


def test_rules_of_the_other_family_are_not_asked() -> None:
    assert verdicts(ruleset([DROP], family="ip6")) == []
    assert verdicts(ruleset([DROP], family="inet")) == [("drop", 1, True)]
