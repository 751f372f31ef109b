"""Links, addresses and routes of zones, by rtnetlink.

Every call opens one socket, in the right network namespace, and closes it: nothing is left to a fork.  To open a
socket in a zone's network namespace the caller's thread enters it and comes back, so callers are single-threaded.

Deliberately not here: packet filters (nftables), and deciding which zone gets which address.
What every boot and halt does goes through ``rtnetlink``; the rest through pyroute2, which the first such call imports
(some 250 ms and 20 MB): only short-lived workers may make one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from zonemgr.errors import PlatformError
from zonemgr.linux import namespaces, rtnetlink
from zonemgr.linux.rtnetlink import Rtnl

NAME_MAXIMUM = 15
ALTNAME_MAXIMUM = 127

# Our addresses are the operator's word: usable at once, without a second of duplicate address detection.
_IFA_F_NODAD = 0x02
_LOOPBACK6 = bytes(15) + b"\1"


def host_link_name(zonename: str, index: int, suffix: str = "") -> str:
    """The host side's name of a zone's automatic link: ``vb-``, a readable prefix, and a hash that tells it apart.

    In base 36, where six characters are 31 bits: of a thousand zones whose names begin alike, as those of a series do,
    two have the same once in four thousand hosts (with hexadecimal digits: once in thirty).
    """
    number = zlib.crc32(f"{suffix}/{zonename}/{index}".encode())
    digest = ""
    for _ in range(6):
        number, digit = divmod(number, 36)
        digest += "0123456789abcdefghijklmnopqrstuvwxyz"[digit]
    return f"vb-{re.sub(r'[^A-Za-z0-9]', '', zonename)[:6]}{digest}"


# -- what is there -----------------------------------------------------------------------------------------


def link_exists(name: str, netns_fd: int | None = None) -> bool:
    """Is there a link of this name (or alternative name) in this, or that, network namespace?"""
    with Rtnl(netns_fd) as rtnl:
        return rtnl.find(name) is not None


def bridge_exists(name: str) -> bool:
    """Is there a link of this name, and is it a bridge?"""
    with Rtnl() as rtnl:
        link = rtnl.find(name)
        return link is not None and link.kind == "bridge"


def addresses_in_use() -> dict[str, str]:
    """Every address of this network namespace, with the name of its link."""
    with Rtnl() as rtnl:
        return {_shown(packed): _name_of(index) for packed, index in rtnl.addresses()}


def _shown(packed: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)


def _name_of(index: int) -> str:
    try:
        return socket.if_indextoname(index)
    except OSError:
        return ""  # it has just gone


# -- the host's side ---------------------------------------------------------------------------------------


def ensure_bridge(name: str, addresses: Iterable[str]) -> bool:
    """Make the bridge unless it exists, up and with these addresses (``10.91.0.1/24``).  True: it was made now.

    The caller holds the host lock.  A half-made bridge of a killed caller is completed.
    """
    with Rtnl() as rtnl:
        link = rtnl.find(name)
        if link is not None and link.kind != "bridge":
            raise PlatformError("link '{name}' exists and is not a bridge", name=name)
        made = link is None
        if link is None:
            # An address of its own: else a bridge takes its lowest port's, and changes it as zones come and go.
            kind = rtnetlink.nested(
                rtnetlink.LINKINFO,
                rtnetlink.text(rtnetlink.INFO_KIND, "bridge"),
                rtnetlink.nested(rtnetlink.INFO_DATA, rtnetlink.number(rtnetlink.BR_STP_STATE, 0)),
            )
            with _refused("cannot create the bridge '{name}'", name=name):
                rtnl.must(
                    rtnetlink.new_link(
                        rtnetlink.text(rtnetlink.IFNAME, name), rtnetlink.mac(_random_mac()), kind
                    )
                )
            _believe_no_routers(name)
            link = rtnl.find(name)
        if link is None:
            raise PlatformError("link '{name}' does not exist", name=name)
        present = dict(rtnl.addresses())
        for address in map(_interface, addresses):
            owner = present.get(address.ip.packed)
            if owner is None:
                with _refused(*_ADDRESS_WORDS, address=address, link=name):
                    rtnl.must(_new_address(link.index, address))
            elif owner != link.index:
                raise PlatformError(
                    "cannot give {address} to the bridge '{name}': it is already in use by link '{owner}' of this host",
                    address=address,
                    name=name,
                    owner=_name_of(owner),
                )
        if not link.up:
            _believe_no_routers(name)
            with _refused("cannot bring up the bridge '{name}'", name=name):
                rtnl.must(rtnetlink.set_link(index=link.index, up=True))
        return made


def _believe_no_routers(name: str) -> None:
    """The host takes no address, router or redirection from what zones send to the bridge (IPv6 would by default)."""
    for setting in ("accept_ra", "accept_redirects", "autoconf"):
        try:
            with open(f"/proc/sys/net/ipv6/conf/{name}/{setting}", "w", encoding="ascii") as file:
                file.write("0")
        except OSError:
            continue  # a host without IPv6, or itself a container whose settings are not ours


def make_veth(
    host_name: str,
    zone_name: str,
    *,
    netns_fd: int,
    bridge: str | None = None,
    mtu: int | None = None,
    mac: str | None = None,
    altname: str | None = None,
) -> None:
    """Make a pair of links: ``host_name`` here, up, on the bridge; ``zone_name`` in the other network namespace.

    All or nothing.  ``mac`` is the zone's side's; ``altname`` (at most 127 characters) is the host's side's.
    """
    if len(host_name.encode()) > NAME_MAXIMUM or len(zone_name.encode()) > NAME_MAXIMUM:
        raise PlatformError("'{name}' is too long for a link's name", name=max(host_name, zone_name, key=len))
    here, there = [], [rtnetlink.text(rtnetlink.IFNAME, zone_name), rtnetlink.number(rtnetlink.NET_NS_FD, netns_fd)]
    with Rtnl() as rtnl:
        master = [rtnetlink.number(rtnetlink.MASTER, _bridge(rtnl, bridge).index)] if bridge is not None else []
        if mtu is not None:
            here.append(rtnetlink.number(rtnetlink.MTU, mtu))
            there.append(here[0])
        if mac is not None:
            there.append(rtnetlink.mac(mac))
        hints = {errno.EEXIST: "a link of one of these names is there already"}
        words = {"name": host_name, "peer": zone_name}
        with _refused("cannot create link '{name}' and '{peer}' in the zone", hints, **words):
            rtnl.must(rtnetlink.veth(host_name, there, *here))
        try:
            _put_in_place(rtnl, host_name, master, altname)
        except PlatformError:
            if (link := rtnl.find(host_name)) is not None:
                rtnl.ask(rtnetlink.delete_link(link.index))
            raise


_FULL = "a bridge has 1023 ports, all of this one are taken: give the zone another bridge (anet)"


def _put_in_place(rtnl: Rtnl, name: str, master: list[bytes], altname: str | None) -> None:
    """Name it, and bring it up on its bridge.  A port has no business with IPv6: without an address of its own there
    nothing of it shows in the host's lists, and the kernel joins no groups for it."""
    who = rtnetlink.text(rtnetlink.IFNAME, name)
    quiet = rtnetlink.nested(
        socket.AF_INET6,
        rtnetlink.attribute(rtnetlink.INET6_ADDR_GEN_MODE, bytes([rtnetlink.ADDR_GEN_MODE_NONE])),
    )
    messages = [
        rtnetlink.set_link(who, rtnetlink.nested(rtnetlink.AF_SPEC, quiet)),
        rtnetlink.set_link(who, *master, up=True),
    ]
    short = (altname or "")[:ALTNAME_MAXIMUM]
    if short:
        messages.append(rtnetlink.add_altname(name, short))
    _without_ipv6, placed, *named = rtnl.ask(*messages)  # a host without IPv6 refuses the first, which is as well
    if placed is not None:
        with _refused("cannot bring up link '{name}'", {errno.EXFULL: _FULL}, name=name):
            raise placed
    if named and named[0] is not None:
        hints = {errno.EEXIST: "another link of this host has that name"}
        with _refused("cannot name link '{name}' also '{altname}'", hints, name=name, altname=short):
            raise named[0]


def delete_link(name: str, netns_fd: int | None = None) -> bool:
    """Delete a link, and so its peer.  Some 20-30 ms: the kernel waits.  False: there was none."""
    with Rtnl(netns_fd) as rtnl:
        link = rtnl.find(name)
        if link is None:
            return False
        (fate,) = rtnl.ask(rtnetlink.delete_link(link.index))
        if fate is not None and fate.errno == errno.ENODEV:
            return False  # its other end was deleted meanwhile
        if fate is not None:
            with _refused("cannot delete link '{name}'", name=name):
                raise fate
        return True


def add_address(link: str, address: str, *, by_choice: bool = False) -> None:
    """Give one more address (``192.0.2.7/24``) to a link of this network namespace; it must be in use nowhere here.

    ``by_choice``: an IPv6 address that nobody sends from who has not chosen it.
    """
    with _rtnl() as rtnl:
        index, interface = _index(rtnl, link), _interface(address)
        owner = _addresses(rtnl).get(str(interface.ip))
        if owner is not None:
            raise PlatformError(
                "address {address} is already in use by link '{owner}' of this host",
                address=address,
                owner=owner,
            )
        _add_address(rtnl, index, link, interface, by_choice=by_choice)


def remove_address(link: str, address: str) -> bool:
    """Take an address from a link.  False: the link does not have it."""
    with _rtnl() as rtnl:
        interface, found = _interface(address), _find(rtnl, link)
        if found is None or _addresses(rtnl).get(str(interface.ip)) != link:
            return False
        with _explained("cannot remove the address {address} from link '{link}'", address=address, link=link):
            rtnl.addr(
                "del", index=found["index"], address=str(interface.ip), prefixlen=interface.network.prefixlen
            )
        return True


def add_way_back(link: str) -> bool:
    """Let packets in by a link whose destination the packet filter has translated back to ::1.  False: it was so.

    The kernel looks for such an address among the routes of the link that a packet came by, and nowhere else; what
    arrives for ::1 untranslated it drops long before that.
    """
    with Rtnl() as rtnl, _refused("cannot let replies to ::1 in by link '{link}'", link=link):
        (fate,) = rtnl.ask(rtnetlink.local_route(_bridge(rtnl, link).index, _LOOPBACK6, add=True))
        if fate is not None and fate.errno == errno.EEXIST:
            return False
        _raise(fate)
    return True


def remove_way_back(link: str) -> None:
    """Undo ``add_way_back``; a link or a route that is gone is fine."""
    with Rtnl() as rtnl:
        found = rtnl.find(link)
        if found is None:
            return
        (fate,) = rtnl.ask(rtnetlink.local_route(found.index, _LOOPBACK6, add=False))
        if fate is not None and fate.errno != errno.ESRCH:
            raise fate


# -- moving a link -----------------------------------------------------------------------------------------


def move_link(name: str, netns_fd: int) -> int:
    """Move an existing link into a zone's network namespace.  Returns its index there: the zone may rename it."""
    with _rtnl() as rtnl:
        link = _find(rtnl, name)
        if link is None:
            raise PlatformError("link '{name}' does not exist on this host", name=name)
        with _explained("cannot move link '{name}' into the zone", name=name):
            rtnl.link("set", index=link["index"], net_ns_fd=netns_fd)
    with _rtnl(netns_fd) as rtnl:
        return _index(rtnl, name)


def look(name: str) -> dict[str, Any]:
    """The settings of a link of this network namespace that a zone may change: its mtu and its Ethernet address."""
    with _rtnl() as rtnl:
        link = _find(rtnl, name)
        if link is None:
            raise PlatformError("link '{name}' does not exist on this host", name=name)
        return {"mtu": link.get_attr("IFLA_MTU"), "mac": link.get_attr("IFLA_ADDRESS")}


def adjust(
    netns_fd: int, index: int, *, name: str | None = None, mtu: int | None = None, mac: str | None = None
) -> None:
    """Give a link that is down another name, mtu or Ethernet address; None leaves it."""
    settings: dict[str, Any] = {"ifname": name, "mtu": mtu, "address": mac}
    changes = {key: value for key, value in settings.items() if value is not None}
    if not changes:
        return
    with _rtnl(netns_fd) as rtnl:
        words = ", ".join(f"{key} {value}" for key, value in changes.items())
        with _explained("cannot give link {index} in the zone {words}", index=index, words=words):
            rtnl.link("set", index=index, **changes)


def return_link(
    netns_fd: int,
    name: str,
    home_netns_fd: int,
    *,
    index: int | None = None,
    mtu: int | None = None,
    mac: str | None = None,
) -> bool:
    """Move a link back out of the zone, under its own name, and see it there.  ``index``: what move_link returned;
    ``mtu`` and ``mac``: how it was before.

    Idempotent: a link that is home already is left alone.  False when it is in neither place: it never moved, or
    it exists no more.
    """
    with _rtnl(netns_fd) as rtnl:
        link = (_get(rtnl, index=index) if index is not None else None) or _find(rtnl, name)
        if link is not None:
            with _explained("cannot move link '{name}' back from the zone", name=name):
                # A link that is up cannot be renamed on every kernel, and the zone may have renamed it.
                rtnl.link("set", index=link["index"], state="down")
                before = {"mtu": mtu, "address": mac}
                if changed := {key: value for key, value in before.items() if value is not None}:
                    with contextlib.suppress(_NetlinkError()):  # a link that refuses still has to come back
                        rtnl.link("set", index=link["index"], **changed)
                rtnl.link("set", index=link["index"], ifname=name, net_ns_fd=home_netns_fd)
    with _rtnl(home_netns_fd) as rtnl:
        home = _find(rtnl, name) is not None
    if link is not None and not home:
        raise PlatformError("link '{name}' did not come back from the zone", name=name)
    return home


# -- the zone's side ---------------------------------------------------------------------------------------


def loopback_up(netns_fd: int) -> None:
    """Bring up ``lo``; the kernel then gives it 127.0.0.1 and ::1."""
    with Rtnl(netns_fd) as rtnl, _refused("cannot bring up the zone's loopback"):
        rtnl.must(rtnetlink.set_link(index=1, up=True))


def configure(
    netns_fd: int,
    link: str,
    *,
    addresses: Iterable[str] = (),
    routers: Iterable[str] = (),
    up: bool = True,
    mtu: int | None = None,
    mac: str | None = None,
) -> None:
    """Set the addresses and default routes (IPv4 and IPv6 alike) of a link in a network namespace, and bring it up."""
    settings = [rtnetlink.number(rtnetlink.MTU, mtu)] if mtu is not None else []
    settings += [rtnetlink.mac(mac)] if mac is not None else []
    interfaces, gateways = [*map(_interface, addresses)], [*map(_gateway, routers)]
    with Rtnl(netns_fd) as rtnl:
        found = rtnl.find(link)
        if found is None:
            raise PlatformError("link '{name}' does not exist", name=link)
        fates = iter(
            rtnl.ask(
                *(_new_address(found.index, interface) for interface in interfaces),
                rtnetlink.set_link(*settings, index=found.index, up=True if up else None),
                *(rtnetlink.add_default_route(found.index, gateway.packed) for gateway in gateways),
            )
        )
    for interface in interfaces:
        with _refused(*_ADDRESS_WORDS, address=interface, link=link):
            _raise(next(fates))
    with _refused("cannot bring up link '{link}'", link=link):
        _raise(next(fates))
    for gateway in gateways:
        hints = {errno.ENETUNREACH: "no address of the link is in the router's network"}
        hints[errno.EHOSTUNREACH] = hints[errno.ENETUNREACH]
        with _refused("cannot route through {router} on link '{link}'", hints, router=gateway, link=link):
            _raise(next(fates))


def _raise(fate: rtnetlink.Refused | None) -> None:
    if fate is not None:
        raise fate


def _gateway(router: str) -> Any:
    import ipaddress

    try:
        return ipaddress.ip_address(router)
    except ValueError:
        raise PlatformError("'{router}' is not an address", router=router) from None


def _new_address(index: int, address: Any) -> rtnetlink.Message:
    return rtnetlink.add_address(index, address.ip.packed, address.network.prefixlen)


_ADDRESS_WORDS = (
    "cannot set the address {address} on link '{link}'",
    {
        errno.EACCES: "IPv6 is disabled on this link",
        errno.EPERM: "IPv6 is disabled on this link",
        errno.EEXIST: "the link has this address already",
    },
)


@contextmanager
def _refused(form: str, hints: Mapping[int, str] | None = None, /, **arguments: object) -> Iterator[None]:
    """As ``_explained``, for what ``rtnetlink`` was told."""
    try:
        yield
    except rtnetlink.Refused as error:
        why = error.strerror or ""
        if error.detail:
            why = f"{why}: {error.detail.rstrip('.')}"
        if hint := (hints or {}).get(error.errno or 0):
            why = f"{why} ({hint})"
        raise PlatformError(form + ": {why}", **arguments, why=why) from error


def _bridge(rtnl: Rtnl, name: str) -> rtnetlink.Link:
    link = rtnl.find(name)
    if link is None:
        raise PlatformError(
            "bridge '{name}' does not exist (create it on the host, or name another in the zone's net resource)",
            name=name,
        )
    if link.kind != "bridge":
        raise PlatformError("link '{name}' is not a bridge", name=name)
    return link


# -- one socket per call -----------------------------------------------------------------------------------


@contextmanager
def _rtnl(netns_fd: int | None = None) -> Iterator[Any]:
    """A pyroute2 socket of this network namespace, or of another one."""
    from pyroute2 import IPRoute  # type: ignore[import-untyped]

    # The kernel's own words (extended acknowledgements) come with every refusal.
    with IPRoute(fileno=_socket_in(netns_fd).detach(), ext_ack=True) as rtnl:
        yield rtnl


def _socket_in(netns_fd: int | None) -> socket.socket:
    if netns_fd is None:
        return _socket()
    home_fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        namespaces.setns(netns_fd, namespaces.NEWNET)
        try:
            return _socket()
        finally:
            namespaces.setns(home_fd, namespaces.NEWNET)
    finally:
        os.close(home_fd)


def _socket() -> socket.socket:
    return socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)


@contextmanager
def _explained(form: str, hints: Mapping[int, str] | None = None, /, **arguments: object) -> Iterator[None]:
    """Turn the kernel's refusal into the operator's words: what was tried, why not, and a hint where one is known."""
    from pyroute2.netlink.exceptions import NetlinkError  # type: ignore[import-untyped]

    try:
        yield
    except NetlinkError as error:
        why, detail = os.strerror(error.code), str(error.args[1])
        if detail != why:
            why = f"{why}: {detail.rstrip('.')}"
        if hint := (hints or {}).get(error.code):
            why = f"{why} ({hint})"
        raise PlatformError(form + ": {why}", **arguments, why=why) from error


def _NetlinkError() -> type[Exception]:
    from pyroute2.netlink.exceptions import NetlinkError

    return NetlinkError  # type: ignore[no-any-return]


def _find(rtnl: Any, name: str) -> Any:
    """The link of that name or alternative name, or None."""
    # The kernel looks a short name up among both kinds, in one request.
    kind = "ifname" if len(name.encode()) <= NAME_MAXIMUM else "altname"
    return _get(rtnl, **{kind: name})


def _get(rtnl: Any, **which: Any) -> Any:
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        return rtnl.link("get", **which)[0]
    except NetlinkError as error:
        if error.code == errno.ENODEV:
            return None
        raise


def _index(rtnl: Any, name: str) -> int:
    link = _find(rtnl, name)
    if link is None:
        raise PlatformError("link '{name}' does not exist", name=name)
    return int(link["index"])


def _kind(link: Any) -> str | None:
    information = link.get_attr("IFLA_LINKINFO")
    return information.get_attr("IFLA_INFO_KIND") if information else None


def _addresses(rtnl: Any) -> dict[str, str]:
    names = {link["index"]: link.get_attr("IFLA_IFNAME") for link in rtnl.get_links()}
    return {
        # IFA_LOCAL is the own end where a link has a peer address; IPv6 has only IFA_ADDRESS without one.
        (message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")): names.get(message["index"], "")
        for message in rtnl.get_addr()
    }


def _add_address(rtnl: Any, index: int, link: str, address: Any, *, by_choice: bool = False) -> None:
    hints = {
        errno.EACCES: "IPv6 is disabled on this link",
        errno.EPERM: "IPv6 is disabled on this link",
        errno.EEXIST: "the link has this address already",
    }
    with _explained("cannot set the address {address} on link '{link}'", hints, address=address, link=link):
        rtnl.addr(
            "add",
            index=index,
            address=str(address.ip),
            prefixlen=address.network.prefixlen,
            **({"flags": _IFA_F_NODAD} if address.version == 6 else {}),
            **({"preferred_lft": 0, "valid_lft": 0xFFFFFFFF} if address.version == 6 and by_choice else {}),
        )


def _interface(address: str) -> Any:
    import ipaddress

    try:
        return ipaddress.ip_interface(address)
    except ValueError:
        raise PlatformError("'{address}' is not an address", address=address) from None


def _random_mac() -> str:
    """A unicast address of the locally administered range."""
    octets = bytearray(os.urandom(6))
    octets[0] = (octets[0] & 0xFC) | 0x02
    return octets.hex(":")
