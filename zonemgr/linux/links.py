"""The rarer kinds of links: ports of a VLAN, links on top of others, and links with a bandwidth.

Beside ``netlink``, whose sockets and words these use, because few zones need them and every boot loads that.  Only
short-lived workers may call these functions: pyroute2 is imported by the first call.
"""

from __future__ import annotations

import errno
from typing import Any, Final

from zonemgr.errors import PlatformError
from zonemgr.linux.netlink import _explained, _find, _index, _kind, _rtnl, delete_link

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


def let_back(port: str) -> None:
    """A frame may leave a bridge by the port that it came in by: where br_netfilter translates addresses in the bridge,
    what a zone sends to itself by way of the host does."""
    with _rtnl() as rtnl, _explained("cannot set the hairpin mode of '{port}'", port=port):
        rtnl.brport("set", index=_index(rtnl, port), mode=1)


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
