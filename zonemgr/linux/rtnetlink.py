"""The few rtnetlink messages of a zone's boot and halt, encoded by hand: links, addresses, default routes.

For everything rarer there is pyroute2, which takes 200 ms and 17 MB to load; a boot that needs none of it costs the
kernel's own work.  Several requests go out in one system call and are answered in one.  Constants and layouts are
those of linux/rtnetlink.h, if_link.h, if_addr.h and netlink.h.

Deliberately not here: what a message is for (``netlink``), and any attribute that nothing of ours uses.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from zonemgr.linux import namespaces

ADDRESS, IFNAME, MTU, LINK, MASTER, LINKINFO, AF_SPEC, NET_NS_FD = 1, 3, 4, 5, 10, 18, 26, 28
PROP_LIST, ALT_IFNAME = 52, 53
INFO_KIND, INFO_DATA, VETH_INFO_PEER, BR_STP_STATE = 1, 2, 1, 5
INET6_ADDR_GEN_MODE, ADDR_GEN_MODE_NONE = 8, 1
IFA_ADDRESS, IFA_LOCAL, IFA_FLAGS = 1, 2, 8
RTA_DST, RTA_OIF, RTA_GATEWAY = 1, 4, 5
NODAD: Final = 0x02
UP: Final = 1

_NEWLINK, _DELLINK, _GETLINK, _NEWADDR, _GETADDR, _NEWROUTE, _DELROUTE, _NEWLINKPROP = 16, 17, 18, 20, 22, 24, 25, 108
_REQUEST, _ACK, _EXCLUSIVE, _CREATE, _DUMP = 0x1, 0x4, 0x200, 0x400, 0x300
_ERROR, _DONE = 2, 3
_CAPPED, _TLVS = 0x100, 0x200  # flags of an error message
_ERROR_TEXT: Final = 1
_NESTED: Final = 0x8000
_SOL_NETLINK, _EXT_ACK, _STRICT = 270, 11, 12
_HEAD = struct.Struct("=IHHII")
_LINK_HEAD = struct.Struct("=BxHiII")
_ADDRESS_HEAD = struct.Struct("=BBBBi")
_ROUTE_HEAD = struct.Struct("=BBBBBBBBI")
_ATTRIBUTE = struct.Struct("=HH")
_BUFFER_BYTES: Final = 1 << 16
_TABLE_MAIN, _PROTOCOL_STATIC, _UNICAST, _LOCAL = 254, 4, 1, 2
ANSWER_S: Final = 30.0


class Refused(OSError):
    """The kernel said no; ``detail`` are its own words, where it has some (extended acknowledgements)."""

    def __init__(self, code: int, detail: str) -> None:
        super().__init__(code, os.strerror(code))
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Message:
    """One request, without its number."""

    kind: int
    flags: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Link:
    """A link as far as we look at it."""

    index: int
    kind: str
    up: bool


# -- attributes ---------------------------------------------------------------------------------------------------


def attribute(kind: int, payload: bytes) -> bytes:
    """One attribute, padded."""
    return _ATTRIBUTE.pack(4 + len(payload), kind) + payload + bytes(-len(payload) % 4)


def number(kind: int, value: int) -> bytes:
    """An attribute that is an unsigned 32-bit number."""
    return attribute(kind, value.to_bytes(4, "little"))


def text(kind: int, value: str) -> bytes:
    """An attribute that is a string."""
    return attribute(kind, value.encode() + b"\0")


def mac(value: str) -> bytes:
    """The attribute of an Ethernet address."""
    return attribute(ADDRESS, bytes.fromhex(value.replace(":", "")))


def nested(kind: int, *attributes: bytes) -> bytes:
    """An attribute that consists of others."""
    return attribute(kind, b"".join(attributes))


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The attributes in a message's tail."""
    at = 0
    while at + 4 <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < 4:
            return
        yield kind & 0x3FFF, data[at + 4 : at + length]
        at += (length + 3) & ~3


# -- messages -----------------------------------------------------------------------------------------------------


def link_head(index: int = 0, flags: int = 0, change: int = 0) -> bytes:
    """The head that every message about a link has; ``change`` says which of the flags are meant."""
    return _LINK_HEAD.pack(socket.AF_UNSPEC, 0, index, flags, change)


def new_link(*parts: bytes, flags: int = 0) -> Message:
    """Make a link, which must not be there yet."""
    return Message(_NEWLINK, _CREATE | _EXCLUSIVE, link_head(0, flags, flags) + b"".join(parts))


def veth(name: str, peer: Sequence[bytes], *parts: bytes) -> Message:
    """Make a pair of links; ``peer`` are the attributes of the other one."""
    data = nested(INFO_DATA, attribute(VETH_INFO_PEER, link_head() + b"".join(peer)))
    return new_link(text(IFNAME, name), nested(LINKINFO, text(INFO_KIND, "veth"), data), *parts)


def set_link(*parts: bytes, index: int = 0, up: bool | None = None) -> Message:
    """Change a link, by its index or by a name among the attributes."""
    flags = UP if up else 0
    return Message(_NEWLINK, 0, link_head(index, flags, 0 if up is None else UP) + b"".join(parts))


def delete_link(index: int) -> Message:
    """Delete a link, and so its peer."""
    return Message(_DELLINK, 0, link_head(index))


def add_altname(name: str, altname: str) -> Message:
    """Give a link one more name."""
    listed = attribute(PROP_LIST | _NESTED, text(ALT_IFNAME, altname))
    return Message(_NEWLINKPROP, _CREATE | _EXCLUSIVE, link_head() + text(IFNAME, name) + listed)


def add_address(index: int, packed: bytes, prefix: int) -> Message:
    """Give a link an address, ready for use at once (no detection of duplicates)."""
    family = socket.AF_INET if len(packed) == 4 else socket.AF_INET6
    parts = attribute(IFA_LOCAL, packed) + attribute(IFA_ADDRESS, packed)
    flags = 0 if len(packed) == 4 else NODAD
    head = _ADDRESS_HEAD.pack(family, prefix, flags, 0, index)
    return Message(_NEWADDR, _CREATE | _EXCLUSIVE, head + parts)


def add_default_route(index: int, gateway: bytes) -> Message:
    """Route what is for nobody near through a router."""
    family = socket.AF_INET if len(gateway) == 4 else socket.AF_INET6
    head = _ROUTE_HEAD.pack(family, 0, 0, 0, _TABLE_MAIN, _PROTOCOL_STATIC, 0, _UNICAST, 0)
    return Message(_NEWROUTE, _CREATE | _EXCLUSIVE, head + attribute(RTA_GATEWAY, gateway) + number(RTA_OIF, index))


def local_route(index: int, address: bytes, *, add: bool) -> Message:
    """Whether what comes in by a link for this IPv6 address, though another link has it, is for the host itself.

    In the main table: what the host itself sends there finds the address's own route first.
    """
    head = _ROUTE_HEAD.pack(socket.AF_INET6, 128, 0, 0, _TABLE_MAIN, _PROTOCOL_STATIC, 0, _LOCAL, 0)
    parts = attribute(RTA_DST, address) + number(RTA_OIF, index)
    return Message(_NEWROUTE if add else _DELROUTE, _CREATE | _EXCLUSIVE if add else 0, head + parts)


# -- the socket ---------------------------------------------------------------------------------------------------


class Rtnl:
    """One socket, in this or another network namespace; close it, or use it as a context manager."""

    def __init__(self, netns_fd: int | None = None) -> None:
        self._socket = _socket_in(netns_fd)
        self._number = 0

    def ask(self, *messages: Message) -> list[Refused | None]:
        """Send requests in one go; each one's fate, in their order.  All of them are tried."""
        first = self._number + 1
        data = b"".join(self._numbered(message, _ACK) for message in messages)
        self._socket.send(data)
        fates: list[Refused | None] = []
        while len(fates) < len(messages):
            for kind, flags, number, body in self._receive():
                if kind == _ERROR and number == first + len(fates):
                    fates.append(_fate(flags, body))
        return fates

    def must(self, *messages: Message) -> None:
        """Send requests in one go.  Refused when one of them was, of which others may have been granted."""
        for fate in self.ask(*messages):
            if fate is not None:
                raise fate

    def find(self, name: str) -> Link | None:
        """The link of this name or alternative name."""
        which = IFNAME if len(name.encode()) < 16 else ALT_IFNAME
        self._socket.send(self._numbered(Message(_GETLINK, 0, link_head() + text(which, name)), 0))
        for kind, flags, _number, body in self._receive():
            if kind == _NEWLINK:
                return _link(body)
            fate = _fate(flags, body)
            if fate is not None and fate.errno != errno.ENODEV:
                raise fate
        return None

    def addresses(self) -> Iterator[tuple[bytes, int]]:
        """Every address of the namespace, packed, with its link's index."""
        self._socket.send(self._numbered(Message(_GETADDR, _DUMP, _ADDRESS_HEAD.pack(0, 0, 0, 0, 0)), 0))
        while True:
            for kind, flags, _number, body in self._receive():
                if kind == _DONE:
                    return
                if kind == _ERROR and (fate := _fate(flags, body)):
                    raise fate
                found = dict(attributes(body[_ADDRESS_HEAD.size :]))
                # IFA_LOCAL is the own end where a link has a peer address; IPv6 has only IFA_ADDRESS without one.
                address = found.get(IFA_LOCAL) or found.get(IFA_ADDRESS)
                if address:
                    yield address, _ADDRESS_HEAD.unpack_from(body)[4]

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _numbered(self, message: Message, flags: int) -> bytes:
        self._number += 1
        length = _HEAD.size + len(message.body)
        head = _HEAD.pack(length, message.kind, _REQUEST | flags | message.flags, self._number, 0)
        return head + message.body + bytes(-length % 4)

    def _receive(self) -> list[tuple[int, int, int, bytes]]:
        """The messages of one datagram: kind, flags, number, body."""
        data = self._socket.recv(_BUFFER_BYTES)
        found, at = [], 0
        while at + _HEAD.size <= len(data):
            length, kind, flags, number, _port = _HEAD.unpack_from(data, at)
            found.append((kind, flags, number, data[at + _HEAD.size : at + length]))
            at += (length + 3) & ~3
        return found


def _link(body: bytes) -> Link:
    _family, _type, index, flags, _change = _LINK_HEAD.unpack_from(body)
    found = dict(attributes(body[_LINK_HEAD.size :]))
    kind = dict(attributes(found.get(LINKINFO, b""))).get(INFO_KIND, b"")
    return Link(index, kind.rstrip(b"\0").decode(errors="replace"), bool(flags & UP))


def _fate(flags: int, body: bytes) -> Refused | None:
    (code,) = struct.unpack_from("=i", body)
    if code == 0:
        return None
    detail = ""
    if flags & _TLVS:
        (length,) = struct.unpack_from("=I", body, 4)
        tail = body[4 + (_HEAD.size if flags & _CAPPED else (length + 3) & ~3) :]
        detail = dict(attributes(tail)).get(_ERROR_TEXT, b"").rstrip(b"\0").decode(errors="replace")
    return Refused(-code, detail)


def _socket_in(netns_fd: int | None) -> socket.socket:
    """The socket belongs to the namespace that its maker is in, for ever."""
    if netns_fd is None:
        return _open()
    home_fd = namespaces.open_ns("self", "net")
    try:
        namespaces.setns(netns_fd, namespaces.NEWNET)
        try:
            return _open()
        finally:
            namespaces.setns(home_fd, namespaces.NEWNET)
    finally:
        os.close(home_fd)


def _open() -> socket.socket:
    opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    opened.settimeout(ANSWER_S)
    opened.setsockopt(_SOL_NETLINK, _EXT_ACK, 1)
    opened.setsockopt(_SOL_NETLINK, _STRICT, 1)
    return opened
