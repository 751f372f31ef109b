"""Taking things out of nftables by hand-made messages, for the end of a zone: chains and elements of sets and maps.

What is to go is known by name, and nothing has to be read before; nft(8) reads all tables of the host first, and
waits at its end until the kernel has forgotten what is gone.  Layouts and constants are those of
linux/netfilter/nfnetlink.h and nf_tables.h.  Deliberately not here: everything that adds (``nft``).
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from zonemgr.linux.rtnetlink import attribute, nested, text

BRIDGE, INET = 7, 1  # NFPROTO_*
_NETFILTER: Final = 12
_NFTABLES: Final = 10
_BATCH_BEGIN, _BATCH_END = 16, 17
_DEL_CHAIN, _DEL_RULE, _DEL_ELEMENT = 5, 8, 14
_CHAIN_TABLE, _CHAIN_NAME = 1, 3
_RULE_TABLE, _RULE_CHAIN = 1, 2
_ELEMENTS_TABLE, _ELEMENTS_SET, _ELEMENTS = 1, 2, 3
_ITEM, _KEY, _VALUE = 1, 1, 1
_NESTED: Final = 0x8000
_REQUEST, _ACK, _ERROR = 0x1, 0x4, 2
_HEAD = struct.Struct("=IHHII")
_ANSWER_S: Final = 30.0

_OPEN: Final[list[socket.socket]] = []  # see remove


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain, with all its rules."""

    family: int
    table: str
    name: str


@dataclass(frozen=True, slots=True)
class Element:
    """An element of a set or map, by its key (``key``)."""

    family: int
    table: str
    set_name: str
    key: bytes


def key(*parts: bytes) -> bytes:
    """The key of an element; in one of several parts each fills whole words of 4 bytes."""
    return parts[0] if len(parts) == 1 else b"".join(part + bytes(-len(part) % 4) for part in parts)


def link_key(name: str) -> bytes:
    """The key that a link's name is."""
    return name.encode().ljust(16, b"\0")


def remove(things: Sequence[Chain | Element]) -> bool:
    """Take all of them out, in their order.  False when the kernel did not, and so left everything as it was: one of
    them was not there, or is still needed.

    The socket stays open until the process ends: closing it waits while the kernel forgets what was taken out.
    """
    try:
        connection = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETFILTER)
    except OSError:
        return False  # this kernel has none
    connection.settimeout(_ANSWER_S)
    messages = [message for thing in things for message in _messages(thing)]
    begin = _message(_BATCH_BEGIN, _REQUEST, 0, 0, b"", _NFTABLES)
    end = _message(_BATCH_END, _REQUEST, len(messages) + 1, 0, b"", _NFTABLES)
    numbered = (
        _message(_NFTABLES << 8 | kind, _REQUEST | _ACK, number, family, body)
        for number, (kind, family, body) in enumerate(messages, 1)
    )
    try:
        connection.send(b"".join([begin, *numbered, end]))
        done = _all_done(connection, len(messages))
    except OSError:
        done = False
    if done:
        _OPEN.append(connection)
    else:
        connection.close()
    return done


def _messages(thing: Chain | Element) -> Iterable[tuple[int, int, bytes]]:
    if isinstance(thing, Chain):
        rules = text(_RULE_TABLE, thing.table) + text(_RULE_CHAIN, thing.name)
        yield _DEL_RULE, thing.family, rules
        yield _DEL_CHAIN, thing.family, text(_CHAIN_TABLE, thing.table) + text(_CHAIN_NAME, thing.name)
    else:
        item = nested(_ITEM | _NESTED, nested(_KEY | _NESTED, attribute(_VALUE, thing.key)))
        names = text(_ELEMENTS_TABLE, thing.table) + text(_ELEMENTS_SET, thing.set_name)
        yield _DEL_ELEMENT, thing.family, names + nested(_ELEMENTS | _NESTED, item)


def _message(kind: int, flags: int, number: int, family: int, body: bytes, resource: int = 0) -> bytes:
    payload = struct.pack(">BBH", family, 0, resource) + body
    return _HEAD.pack(_HEAD.size + len(payload), kind, flags, number, 0) + payload


def _all_done(connection: socket.socket, count: int) -> bool:
    """Each message is answered, and a batch with an error in it is as if it had not been sent."""
    answers = 0
    while answers < count:
        data = connection.recv(1 << 16)
        while data:
            length, kind, _flags, number, _port = _HEAD.unpack_from(data)
            if kind == _ERROR:
                (code,) = struct.unpack_from("=i", data, _HEAD.size)
                if code:
                    return False
                answers += number > 0
            data = data[(length + 3) & ~3 :]
    return True
