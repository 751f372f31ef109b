"""The rarer kinds of links (ports of a VLAN, on top of others, with a bandwidth), and changing a link in use.

Beside ``netlink``, whose sockets and words these use, because few zones need them and every boot loads that.  Only
short-lived workers may call these functions: pyroute2 is imported by the first call.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from zonemgr.errors import PlatformError
from zonemgr.linux.netlink import (
    _add_address,
    _explained,
    _find,
    _gateway,
    _index,
    _interface,
    _kind,
    _rtnl,
    delete_link,
)

# -- VLANs ---------------------------------------------------------------------------------------------------

_PVID: Final = 1 << 1
_UNTAGGED: Final = 1 << 2
_DEFAULT_VLAN: Final = 1  # where every port of a bridge is at first
_VLAN_HINTS: Final = {errno.EOPNOTSUPP: "this kernel's bridges have no VLANs: CONFIG_BRIDGE_VLAN_FILTERING"}


def tell_vlans_apart(bridge: str) -> None:
    """Let a bridge keep VLANs apart.  Raises PlatformError where the kernel's bridges cannot."""
    with _rtnl() as rtnl:
        index = _index(rtnl, bridge)
        with _explained("cannot let the bridge '{name}' tell VLANs apart", _VLAN_HINTS, name=bridge):
            rtnl.link("set", index=index, kind="bridge", br_vlan_filtering=1)
        if not _tells_vlans_apart(_find(rtnl, bridge)):
            raise PlatformError("this kernel's bridges have no VLANs (CONFIG_BRIDGE_VLAN_FILTERING)")


def _tells_vlans_apart(bridge: Any) -> bool:
    if bridge is None or _kind(bridge) != "bridge":
        return False
    data = bridge.get_attr("IFLA_LINKINFO").get_attr("IFLA_INFO_DATA")
    return bool(data is not None and data.get_attr("IFLA_BR_VLAN_FILTERING"))


def set_port_vlan(port: str, bridge: str, vlan: int) -> None:
    """The port of the bridge belongs to this VLAN alone; its frames carry no tag on the other side of the link."""
    with _rtnl() as rtnl:
        if not _tells_vlans_apart(_find(rtnl, bridge)):
            raise PlatformError(
                "bridge '{bridge}' does not tell VLANs apart (ip link set {bridge} type bridge vlan_filtering 1)",
                bridge=bridge,
            )
        index = _index(rtnl, port)
        with _explained("cannot put '{port}' into VLAN {vlan}", _VLAN_HINTS, vlan=vlan, port=port):
            if vlan != _DEFAULT_VLAN:
                rtnl.vlan_filter("del", index=index, vlan_info={"vid": _DEFAULT_VLAN})
            rtnl.vlan_filter("add", index=index, vlan_info={"vid": vlan, "flags": _PVID | _UNTAGGED})


def let_back(port: str, may: bool = True) -> None:
    """A frame may leave a bridge by the port that it came in by: where br_netfilter translates addresses in the bridge,
    what a zone sends to itself by way of the host does."""
    with _rtnl() as rtnl, _explained("cannot set the hairpin mode of '{port}'", port=port):
        rtnl.brport("set", index=_index(rtnl, port), mode=int(may))


# -- links on top of others ----------------------------------------------------------------------------------


def make_macvlan(
    lower: str, name: str, *, netns_fd: int, mtu: int | None = None, mac: str | None = None
) -> None:
    """Make a link with an Ethernet address of its own on top of a link of the host, in another network namespace.

    It is born there, so that its name need not be free here, and goes with the namespace.
    """
    with _rtnl() as rtnl:
        below = _find(rtnl, lower)
        if below is None:
            raise PlatformError("link '{name}' does not exist on this host", name=lower)
        settings: dict[str, Any] = {"mtu": mtu, "address": mac}
        given = {key: value for key, value in settings.items() if value is not None}
        hints = {
            errno.EBUSY: "the link below is used by a bridge or in another way that excludes this",
            errno.EINVAL: "the link below is of a kind that cannot carry others, or the mtu is larger than its",
            errno.EEXIST: "the zone has a link of this name already",
        }
        with _explained("cannot make link '{name}' on top of '{lower}'", hints, name=name, lower=lower):
            rtnl.link(
                "add",
                ifname=name,
                kind="macvlan",
                macvlan_mode="bridge",
                link=below["index"],
                net_ns_fd=netns_fd,
                **given,
            )


# -- bandwidth -----------------------------------------------------------------------------------------------

_BURST_S: Final = 0.02  # what may go at once, in seconds of the rate
_BURST_MIN_BYTES: Final = 32 << 10
_LATENCY: Final = "50ms"
_HANDLE: Final = 0x10000
_ROOT: Final = 0xFFFFFFFF
_INGRESS: Final = 0xFFFF0000
_INGRESS_PARENT: Final = 0xFFFFFFF1
_ETH_P_ALL: Final = 0x0003
_TC_HINTS: Final = {
    errno.ENOENT: "the kernel lacks sch_tbf, sch_ingress, cls_u32 or act_mirred",
    errno.EOPNOTSUPP: "the kernel lacks ifb",
}


def limit_bandwidth(link: str, return_link: str, bits_s: int) -> None:
    """At most so many bits a second through a link of the host, each way.  May be called again with another number.

    What leaves by the link is held back by a bucket on it; what comes in is led through ``return_link``, made for that,
    because the kernel only holds back what goes out.
    """
    with _rtnl() as rtnl, _explained("cannot limit the bandwidth of link '{link}'", _TC_HINTS, link=link):
        index = _index(rtnl, link)
        _replace_bucket(rtnl, index, bits_s)
        if _find(rtnl, return_link) is None:
            rtnl.link("add", ifname=return_link, kind="ifb")
        back = _index(rtnl, return_link)
        _replace_bucket(rtnl, back, bits_s)
        rtnl.link("set", index=back, state="up")
        _lead_through(rtnl, index, back)


def _replace_bucket(rtnl: Any, index: int, bits_s: int) -> None:
    bytes_s = max(bits_s // 8, 1)
    burst = max(int(bytes_s * _BURST_S), _BURST_MIN_BYTES)
    rtnl.tc(
        "replace", "tbf", index=index, handle=_HANDLE, parent=_ROOT, rate=bytes_s, burst=burst, latency=_LATENCY
    )


def _lead_through(rtnl: Any, index: int, target: int) -> None:
    if "ingress" in _disciplines(rtnl, index):
        rtnl.tc("del", index=index, handle=_INGRESS, parent=_INGRESS_PARENT)
    rtnl.tc("add", "ingress", index=index, handle=_INGRESS)
    action = {"kind": "mirred", "direction": "egress", "action": "redirect", "ifindex": target}
    rtnl.tc(
        "add-filter", "u32", index=index, parent=_INGRESS, prio=1, protocol=_ETH_P_ALL, target=0,
        keys=["0x0/0x0+0"], action=[action],
    )  # fmt: skip


def _disciplines(rtnl: Any, index: int) -> set[str]:
    return {discipline.get_attr("TCA_KIND") for discipline in rtnl.get_qdiscs(index=index)}


def lift_bandwidth(link: str, return_link: str) -> None:
    """Take the limit away.  The link and its limit may be gone already."""
    with _rtnl() as rtnl, _explained("cannot lift the bandwidth limit of link '{link}'", link=link):
        found = _find(rtnl, link)
        present = _disciplines(rtnl, found["index"]) if found is not None else set()
        if "tbf" in present:
            rtnl.tc("del", index=found["index"], handle=_HANDLE, parent=_ROOT)
        if "ingress" in present:
            rtnl.tc("del", index=found["index"], handle=_INGRESS, parent=_INGRESS_PARENT)
    delete_link(return_link)


# -- changing a link in use ----------------------------------------------------------------------------------


def change_veth(
    host_name: str, zone_name: str, *, netns_fd: int, bridge: str, mtu: int | None, mac: str | None
) -> None:
    """Another bridge, mtu or Ethernet address for a pair that is there; None leaves it."""
    there = {key: value for key, value in (("mtu", mtu), ("address", mac)) if value is not None}
    with _rtnl() as rtnl:
        here: dict[str, Any] = {"master": _index(rtnl, bridge), **({"mtu": mtu} if mtu else {})}
        with _explained("cannot change link '{name}'", name=host_name):
            rtnl.link("set", index=_index(rtnl, host_name), **here)
    if there:
        with _rtnl(netns_fd) as rtnl, _explained("cannot change link '{name}' of the zone", name=zone_name):
            rtnl.link("set", index=_index(rtnl, zone_name), **there)


def reconfigure(
    netns_fd: int,
    link: str,
    *,
    gone: Iterable[str],
    addresses: Iterable[str],
    routers_gone: Iterable[str],
    routers: Iterable[str],
) -> None:
    """Change the addresses and default routes of a link in a network namespace.  Idempotent: what is gone may be gone,
    what is wanted may be there.  Addresses that the zone itself has set stay.
    """
    with _rtnl(netns_fd) as rtnl:
        index = _index(rtnl, link)
        for router in routers_gone:
            with _tolerating(errno.ESRCH):
                _default_route(rtnl, "del", index, link, router)
        for address in map(_interface, gone):
            with _tolerating(errno.EADDRNOTAVAIL), _explained("cannot remove the address {address}", address=address):
                rtnl.addr("del", index=index, address=str(address.ip), prefixlen=address.network.prefixlen)
        # Taking away the first address of a network takes its others: all that are wanted are set after that.
        for address in map(_interface, addresses):
            with _tolerating(errno.EEXIST):
                _add_address(rtnl, index, link, address)
        with _explained("cannot bring up link '{link}'", link=link):
            rtnl.link("set", index=index, state="up")
        for router in routers:
            with _tolerating(errno.EEXIST):
                _default_route(rtnl, "add", index, link, router)


@contextmanager
def _tolerating(code: int) -> Iterator[None]:
    """It is as it should be already."""
    try:
        yield
    except PlatformError as error:
        if getattr(error.__cause__, "code", None) != code:
            raise


def _default_route(rtnl: Any, verb: str, index: int, link: str, router: str) -> None:
    gateway = _gateway(router)
    family = socket.AF_INET if gateway.version == 4 else socket.AF_INET6
    hints = {errno.ENETUNREACH: "no address of the link is in the router's network"}
    with _explained("cannot route through {router} on link '{link}'", hints, router=router, link=link):
        rtnl.route(verb, family=family, dst="default", gateway=str(gateway), oif=index)
