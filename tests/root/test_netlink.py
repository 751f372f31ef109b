"""Links, addresses and routes, in network namespaces made for the test: one plays the host, one the zone."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from zonemgr.errors import PlatformError
from zonemgr.linux import namespaces, netlink

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@dataclass(frozen=True)
class Nets:
    """The network namespace that this process is in during a test, and the zone's."""

    home_fd: int
    zone_fd: int


def _net_fd() -> int:
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


@pytest.fixture
def nets() -> Iterator[Nets]:
    host_fd = _net_fd()
    namespaces.unshare(namespaces.NEWNET)
    zone_fd = _net_fd()
    namespaces.unshare(namespaces.NEWNET)
    home_fd = _net_fd()
    try:
        yield Nets(home_fd, zone_fd)
    finally:
        namespaces.setns(host_fd, namespaces.NEWNET)
        for fd in (host_fd, zone_fd, home_fd):
            os.close(fd)


def _link(name: str, netns_fd: int | None = None) -> Any:
    with netlink._rtnl(netns_fd) as rtnl:
        return netlink._find(rtnl, name)


def _addresses(name: str, netns_fd: int) -> dict[str, int]:
    """Address -> its flags."""
    with netlink._rtnl(netns_fd) as rtnl:
        index = rtnl.link_lookup(ifname=name)[0]
        return {
            f"{message.get_attr('IFA_ADDRESS')}/{message['prefixlen']}": message.get_attr("IFA_FLAGS")
            for message in rtnl.get_addr(index=index)
        }


def _gateways(netns_fd: int) -> set[str]:
    with netlink._rtnl(netns_fd) as rtnl:
        return {
            message.get_attr("RTA_GATEWAY")
            for message in rtnl.get_routes()
            if message.get_attr("RTA_GATEWAY")
        }


def _plain_link(name: str) -> None:
    """A link that stands for a physical one: one end of a pair (not every kernel has the dummy driver)."""
    with netlink._rtnl() as rtnl:
        rtnl.link("add", ifname=name, kind="veth", peer={"ifname": f"{name}-far"})


def test_a_veth_pair_joins_the_bridge_and_the_zone_answers_on_both_families(nets: Nets) -> None:
    assert netlink.ensure_bridge("zbr0", ["10.91.0.1/24", "fd91::1/64"])
    netlink.make_veth(
        "vb-web",
        "host0",
        netns_fd=nets.zone_fd,
        bridge="zbr0",
        mtu=1400,
        mac="02:00:00:00:00:07",
        altname="z" * 127,
    )
    netlink.loopback_up(nets.zone_fd)
    netlink.configure(
        nets.zone_fd, "host0", addresses=["10.91.0.10/24", "fd91::10/64"], routers=["10.91.0.1", "fd91::1"]
    )
    here, there = _link("z" * 127), _link("host0", nets.zone_fd)
    assert here.get_attr("IFLA_IFNAME") == "vb-web"
    assert here.get_attr("IFLA_MASTER") == _link("zbr0")["index"]
    assert (here.get_attr("IFLA_MTU"), there.get_attr("IFLA_MTU")) == (1400, 1400)
    assert there.get_attr("IFLA_ADDRESS") == "02:00:00:00:00:07"
    assert {"10.91.0.10/24", "fd91::10/64"} <= set(_addresses("host0", nets.zone_fd))
    assert _gateways(nets.zone_fd) == {"10.91.0.1", "fd91::1"}
    assert "127.0.0.1/8" in _addresses("lo", nets.zone_fd)
    for address in ("10.91.0.10", "fd91::10"):
        assert _connection_refused_by(address)


def _connection_refused_by(address: str) -> bool:
    """A refusal is an answer: packets went there and came back."""
    import socket

    try:
        socket.create_connection((address, 9), timeout=5).close()
    except ConnectionRefusedError:
        return True
    return False


def test_an_ipv6_address_is_usable_at_once(nets: Nets) -> None:
    netlink.make_veth("vb-web", "host0", netns_fd=nets.zone_fd)
    netlink.configure(nets.zone_fd, "host0", addresses=["fd91::10/64"])
    tentative = 0x40
    assert not _addresses("host0", nets.zone_fd)["fd91::10/64"] & tentative


def test_ensure_bridge_again_changes_nothing_and_completes_a_half_made_one(nets: Nets) -> None:
    assert netlink.ensure_bridge("zbr0", [])
    mac = _link("zbr0").get_attr("IFLA_ADDRESS")
    assert not netlink.ensure_bridge("zbr0", ["10.91.0.1/24"])
    assert not netlink.ensure_bridge("zbr0", ["10.91.0.1/24"])
    assert netlink.addresses_in_use()["10.91.0.1"] == "zbr0"
    netlink.make_veth("vb-web", "host0", netns_fd=nets.zone_fd, bridge="zbr0")
    assert _link("zbr0").get_attr("IFLA_ADDRESS") == mac
    assert netlink.bridge_exists("zbr0") and not netlink.bridge_exists("vb-web")


def test_ensure_bridge_refuses_an_address_that_another_link_has(nets: Nets) -> None:
    netlink.ensure_bridge("other", ["10.91.0.1/24"])
    with pytest.raises(PlatformError, match=r"10\.91\.0\.1/24.*'zbr0'.*in use by link 'other'"):
        netlink.ensure_bridge("zbr0", ["10.91.0.1/24"])


def test_ensure_bridge_refuses_a_link_that_is_no_bridge(nets: Nets) -> None:
    _plain_link("zbr0")
    with pytest.raises(PlatformError, match="link 'zbr0' exists and is not a bridge"):
        netlink.ensure_bridge("zbr0", [])


def test_a_missing_bridge_is_named_and_nothing_is_made(nets: Nets) -> None:
    with pytest.raises(PlatformError, match="bridge 'nobr' does not exist"):
        netlink.make_veth("vb-web", "host0", netns_fd=nets.zone_fd, bridge="nobr")
    assert not netlink.link_exists("vb-web")


def test_a_name_collision_on_the_host_is_named(nets: Nets) -> None:
    _plain_link("vb-web")
    with pytest.raises(
        PlatformError, match="link 'vb-web' and 'host0' in the zone: .*one of these names is there"
    ):
        netlink.make_veth("vb-web", "host0", netns_fd=nets.zone_fd)


def test_a_taken_alternative_name_undoes_the_pair(nets: Nets) -> None:
    netlink.make_veth("vb-one", "host0", netns_fd=nets.zone_fd, altname="zone-web")
    with pytest.raises(PlatformError, match="'zone-web': .*another link of this host has that name"):
        netlink.make_veth("vb-two", "host1", netns_fd=nets.zone_fd, altname="zone-web")
    assert not netlink.link_exists("vb-two") and not netlink.link_exists("host1", nets.zone_fd)


def test_deleting_a_link_deletes_its_peer_and_is_idempotent(nets: Nets) -> None:
    netlink.make_veth("vb-web", "host0", netns_fd=nets.zone_fd)
    assert netlink.delete_link("vb-web")
    assert not netlink.link_exists("host0", nets.zone_fd)
    assert not netlink.delete_link("vb-web")


def test_a_link_moves_into_the_zone_and_comes_back_under_its_own_name_though_renamed_there(
    nets: Nets,
) -> None:
    _plain_link("phys0")
    index = netlink.move_link("phys0", nets.zone_fd)
    assert not netlink.link_exists("phys0")
    netlink.configure(nets.zone_fd, "phys0", addresses=["192.0.2.5/24"])
    with netlink._rtnl(nets.zone_fd) as rtnl:
        rtnl.link("set", index=index, state="down")
        rtnl.link("set", index=index, ifname="mine", state="up")
    netlink.return_link(nets.zone_fd, "phys0", nets.home_fd, index=index)
    assert netlink.link_exists("phys0")
    assert not netlink.link_exists("mine", nets.zone_fd)
    netlink.return_link(nets.zone_fd, "phys0", nets.home_fd, index=index)


def test_moving_a_link_that_is_not_there_names_it(nets: Nets) -> None:
    with pytest.raises(PlatformError, match="link 'phys9' does not exist on this host"):
        netlink.move_link("phys9", nets.zone_fd)


def test_moving_onto_a_taken_name_says_so_and_leaves_the_link(nets: Nets) -> None:
    _plain_link("host0")
    netlink.make_veth("vb-web", "host0", netns_fd=nets.zone_fd)
    with pytest.raises(PlatformError, match="cannot move link 'host0' into the zone: File exists"):
        netlink.move_link("host0", nets.zone_fd)
    assert netlink.link_exists("host0")


def test_an_address_twice_and_a_router_out_of_reach_are_explained(nets: Nets) -> None:
    netlink.make_veth("vb-web", "host0", netns_fd=nets.zone_fd)
    netlink.configure(nets.zone_fd, "host0", addresses=["10.91.0.10/24"])
    with pytest.raises(PlatformError, match="10.91.0.10/24.*has this address already"):
        netlink.configure(nets.zone_fd, "host0", addresses=["10.91.0.10/24"])
    with pytest.raises(
        PlatformError, match="route through 10.1.1.1.*no address of the link is in the router's"
    ):
        netlink.configure(nets.zone_fd, "host0", routers=["10.1.1.1"])
    with pytest.raises(PlatformError, match="'10.1.1.1.1' is not an address"):
        netlink.configure(nets.zone_fd, "host0", routers=["10.1.1.1.1"])


def test_a_shared_address_is_added_once_and_removed(nets: Nets) -> None:
    _plain_link("eth9")
    netlink.add_address("eth9", "192.0.2.7/24")
    with pytest.raises(PlatformError, match="192.0.2.7/24 is already in use by link 'eth9'"):
        netlink.add_address("eth9", "192.0.2.7/24")
    assert netlink.remove_address("eth9", "192.0.2.7/24")
    assert not netlink.remove_address("eth9", "192.0.2.7/24")


def test_calls_leave_no_fd_no_thread_and_the_caller_in_its_namespace(nets: Nets) -> None:
    netlink.link_exists("lo")
    before = (
        sorted(os.listdir("/proc/self/fd")),
        threading.active_count(),
        os.readlink("/proc/thread-self/ns/net"),
    )
    for _ in range(20):
        netlink.make_veth("vb-web", "host0", netns_fd=nets.zone_fd)
        with pytest.raises(PlatformError):
            netlink.configure(nets.zone_fd, "host0", addresses=["10.91.0.10/24"], routers=["10.1.1.1"])
        netlink.delete_link("host0", nets.zone_fd)
    after = (
        sorted(os.listdir("/proc/self/fd")),
        threading.active_count(),
        os.readlink("/proc/thread-self/ns/net"),
    )
    assert after == before


def test_a_forked_child_of_a_process_that_used_it_can_use_it(nets: Nets) -> None:
    netlink.link_exists("lo")
    for _ in range(3):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                netlink.make_veth("vb-web", "host0", netns_fd=nets.zone_fd)
                netlink.delete_link("vb-web")
                status = 0
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.mark.parametrize("zonename", ["web", "a" * 63, "we.b-1_x"])
def test_host_link_names_are_short_readable_and_tell_zones_links_and_instances_apart(zonename: str) -> None:
    names = {
        netlink.host_link_name(zonename, index, suffix) for index in (0, 1) for suffix in ("", "-12345678")
    }
    assert len(names) == 4
    assert all(
        name.startswith("vb-") and len(name) <= 15 and name.replace("-", "").isalnum() for name in names
    )


def test_the_links_of_a_long_series_of_zones_have_different_names() -> None:
    assert len({netlink.host_link_name(f"webserver-{number:04}", 0) for number in range(10_000)}) == 10_000
