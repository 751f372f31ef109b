"""What network settings mean: addresses, claims, protections, and the rules that hold a link to them."""

from __future__ import annotations

import ipaddress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zonemgr.errors import PlatformError
from zonemgr.linux import nfnetlink, traffic
from zonemgr.model import network, plan
from zonemgr.model.zone import ForwardResource, NetResource, Zone
from zonemgr.platform import compose, firewall
from zonemgr.store import settings
from zonemgr.store.instance import Mode
from zonemgr.store.paths import Layout


def test_what_a_link_may_send_from() -> None:
    net = NetResource(
        anet="zbr0",
        address=("10.0.0.2/24", "fd00::2/64"),
        allowed_address=("10.0.0.2/24", "10.1.0.0/16", "10.2.0.7/16", "fd01::/64"),
    )
    assert network.sources(net) == ("10.0.0.2", "fd00::2", "10.1.0.0/16", "10.2.0.7", "fd01::/64")


@pytest.mark.parametrize(
    ("net", "protections"),
    [
        (NetResource(anet="a", address=("10.0.0.2/24",)), ("mac-nospoof", "ip-nospoof", "dhcp-nospoof")),
        (NetResource(anet="a"), ("mac-nospoof", "dhcp-nospoof")),
        (NetResource(anet="a", link_protection=("restricted", "mac-nospoof")), ("mac-nospoof", "restricted")),
        (NetResource(anet="a", address=("10.0.0.2/24",), link_protection=("none",)), ()),
    ],
)
def test_protections(net: NetResource, protections: tuple[str, ...]) -> None:
    assert network.protections(net) == protections


@given(st.text(), st.text(), st.integers(0, 99))
def test_an_ethernet_address_stays_and_is_of_the_local_unicast_kind(host: str, zone: str, index: int) -> None:
    mac = network.stable_mac(host, zone, index)
    assert mac == network.stable_mac(host, zone, index)
    assert int(mac[:2], 16) & 3 == 2
    assert mac != network.stable_mac(host, zone, index + 1)
    assert ipaddress.ip_address(network.link_local(mac)).is_link_local


@given(st.integers(0, 1 << 20), st.integers(1, 100_000))
def test_the_table_of_neighbours_has_room_for_all_zones(there: int, zones: int) -> None:
    limits = network.neighbour_limits(there, zones)
    most, soft, least = limits or (there, 0, 0)
    assert most >= network.NEIGHBOURS_PER_ZONE * zones
    assert not limits or least < soft < most
    assert not network.neighbour_limits(most, zones + 1 if limits else zones)  # it is not changed for every zone


def test_a_few_zones_change_nothing_of_the_hosts() -> None:
    assert network.neighbour_limits(1024, 256) == ()


def test_an_ethernet_address_begins_with_its_prefix() -> None:
    assert network.stable_mac("host", "zone", 0, "02:08:20").startswith("02:08:20:")


def test_the_link_local_address_is_the_one_of_rfc_4291() -> None:
    assert network.link_local("34:56:78:9a:bc:de") == "fe80::3656:78ff:fe9a:bcde"


@pytest.mark.parametrize(
    ("one", "other", "collide"),
    [
        ("10.0.0.2", "10.0.0.2", True),
        ("10.0.0.2", "10.0.0.3", False),
        ("tcp/80", "tcp/80", True),
        ("tcp/80", "udp/80", False),
        ("tcp/80", "tcp/80/127.0.0.1", True),
        ("tcp/80/192.0.2.1", "tcp/80/127.0.0.1", False),
        ("tcp/80/192.0.2.1", "tcp/80/192.0.2.1", True),
    ],
)
def test_claims_that_two_zones_cannot_hold(one: str, other: str, collide: bool) -> None:
    assert network.collide(one, other) is network.collide(other, one) is collide


def test_a_forward_claims_its_port_where_it_listens() -> None:
    assert network.forward_claim(ForwardResource(80)) == "tcp/80"
    assert network.forward_claim(ForwardResource(53, "udp", address="::1")) == "udp/53/::1"
    assert network.describe_claim("udp/53/::1") == "port 53/udp of ::1"


@pytest.mark.parametrize(("text", "bits"), [("1000", 1000), ("100K", 100_000), ("2.5G", 2_500_000_000)])
def test_bandwidths(text: str, bits: int) -> None:
    assert network.bits_per_second(text) == bits


def test_a_guard_has_no_set_of_its_own_that_each_later_batch_would_have_to_read() -> None:
    op = plan.Guard("vb-x", "web", "02:00:00:00:00:01", ("10.0.0.2", "10.1.0.0/16", "fd00::2"), network.PROTECTIONS)
    values = [match.value for rule in firewall.guard_rules(op) for match in rule.matches]
    assert values and not [value for value in values if isinstance(value, nfnetlink.Values)]


@pytest.mark.parametrize(
    "op",
    [
        plan.Guard("vb-x", "web", "02:00:00:00:00:01", ("10.0.0.2",), ("mac-nospoof",)),
        plan.Translate("zbr0", "web", ("10.0.0.2", "fd00::2")),
        plan.Forward("web", "zbr0", "tcp", 80, ("10.0.0.2", "fd00::2"), 8080),
        plan.Forward("web", "zbr0", "udp", 53, ("10.0.0.2",), 53, "192.0.2.1"),
        plan.Forward("web", "zbr0", "tcp", 80, ("fd00::2",), 8080, "::1", loopback6=True),
    ],
)
def test_what_is_added_for_a_zone_is_what_is_taken_away(op: plan.Op) -> None:
    added = {thing for thing in firewall.additions(op, "t") if not isinstance(thing, nfnetlink.Rule)}
    shared = {thing for thing in added if getattr(thing, "set_name", "") in ("bridges", "loopback6")}
    removed = set(firewall.remains(op, "t"))
    assert removed == added - shared
    said = [line for line in firewall.removals(op, "t") if line.startswith("delete ")]
    assert len(said) == len(removed)
    assert plan.from_json(op.to_json()) == op


class Borrowed:
    """A brand that needs nothing."""

    mounts = zone_mounts = devices = links = ()
    cgroup = "none"
    notifies = False


def forwarded(tmp_path: Path, address: str | None, own: tuple[str, ...]) -> compose.Subject:
    layout = Layout.at(tmp_path)
    net, forward = NetResource(anet="br9", address=own), ForwardResource(80, address=address)
    zone = Zone("web", "/zones/web", net=(net,), forward=(forward,))
    return compose.Subject(zone, Borrowed(), "", layout, settings.load(layout), Mode.BOOT, 524288, "")


@pytest.mark.parametrize(
    ("address", "own", "leads"),
    [
        (None, ("10.0.0.2/24", "fd00::2/64"), True),
        ("::1", ("10.0.0.2/24", "fd00::2/64"), True),
        (None, ("10.0.0.2/24",), False),
        ("127.0.0.1", ("10.0.0.2/24", "fd00::2/64"), False),
        ("2001:db8::1", ("fd00::2/64",), False),
    ],
)
def test_the_ipv6_loopback_leads_into_a_zone_that_can_answer_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str | None, own: tuple[str, ...], leads: bool
) -> None:
    monkeypatch.setattr(traffic, "bridges_filter6", lambda: False)
    ops = compose.compose_ready(forwarded(tmp_path, address, own))
    (forward,) = (op for op in ops if isinstance(op, plan.Forward))
    assert forward.loopback6 is leads
    assert (plan.WayBack("br9") in ops) is leads


def test_where_bridges_filter_ipv6_the_loopback_is_the_hosts_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(traffic, "bridges_filter6", lambda: True)
    own = ("10.0.0.2/24", "fd00::2/64")
    ops = compose.compose_ready(forwarded(tmp_path, None, own))
    assert not any(isinstance(op, plan.WayBack) or getattr(op, "loopback6", False) for op in ops)
    with pytest.raises(PlatformError, match="port 80 of ::1 cannot lead into a zone while bridges filter IPv6"):
        compose.compose_ready(forwarded(tmp_path, "::1", own))
