"""nftables by hand-made messages: what a zone adds to tables that are there, what it takes out, and one question.

What comes and goes is known, and nothing has to be read before; nft(8) reads all tables of the host first, and waits at
its end until the kernel has forgotten what is gone.  Layouts and constants are those of linux/netfilter/nfnetlink.h and
nf_tables.h.  What is made here is what nft makes of the same rules, so that it can show them.  Deliberately not here:
making tables, base chains and named sets, and whatever reads rules (``nft``).
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from zonemgr.linux.rtnetlink import attribute, attributes, nested, text

BRIDGE, INET, IPV4, IPV6 = 7, 1, 2, 10  # NFPROTO_*
LINK, NETWORK, TRANSPORT = 0, 1, 2  # NFT_PAYLOAD_*_HEADER
PROTOCOL, L4PROTO = 1, 16  # NFT_META_*
DROP, ACCEPT, GOTO = 0, 1, -4  # verdicts
IPV4_ADDRESS, IPV6_ADDRESS = 7, 8  # what nft calls the types of a set's keys
HOOK_FORWARD: Final = 2

_NETFILTER: Final = 12
_NFTABLES: Final = 10
_BATCH_BEGIN, _BATCH_END = 16, 17
_NEW_CHAIN, _GET_CHAIN, _DEL_CHAIN, _NEW_RULE, _DEL_RULE, _NEW_SET = 3, 4, 5, 6, 8, 9
_NEW_ELEMENT, _DEL_ELEMENT = 12, 14
_CHAIN_TABLE, _CHAIN_NAME, _CHAIN_HOOK, _HOOK_NUMBER = 1, 3, 4, 1
_RULE_TABLE, _RULE_CHAIN, _RULE_EXPRESSIONS, _RULE_USER_DATA = 1, 2, 4, 7
_SET_TABLE, _SET_NAME, _SET_FLAGS, _SET_KEY_TYPE, _SET_KEY_LENGTH, _SET_ID = 1, 2, 3, 4, 5, 10
_ELEMENTS_TABLE, _ELEMENTS_SET, _ELEMENTS, _ELEMENTS_SET_ID = 1, 2, 3, 4
_ITEM, _KEY, _DATA, _USER_DATA, _VALUE, _VERDICT = 1, 1, 2, 6, 1, 2
_VERDICT_CODE, _VERDICT_CHAIN = 1, 2
_EXPRESSION_NAME, _EXPRESSION_DATA = 1, 2
_ANONYMOUS, _CONSTANT = 0x1, 0x2
_ANONYMOUS_NAME: Final = "__set%d"  # the kernel puts a number there
_REGISTER: Final = 1
_INVERTED: Final = 1
_COMMENT_MAX: Final = 127
_NESTED: Final = 0x8000
_REQUEST, _ACK, _DUMP, _CREATE, _APPEND = 0x1, 0x4, 0x300, 0x400, 0x800
_ERROR, _DONE = 2, 3
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
    """An element of a set or map, by its key (``key``).  When added it may have data, or lead to a chain."""

    family: int
    table: str
    set_name: str
    key: bytes
    data: bytes = field(default=b"", compare=False)
    goto: str = field(default="", compare=False)
    comment: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Values:
    """Values that something is compared with, as a set without a name."""

    key_type: int
    values: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Match:
    """One condition of a rule: what is loaded (``payload``, ``meta``) is, or is not, this value, or one of these.

    ``mask``: as long as the value; only these bits count.
    """

    load: bytes
    value: bytes | Values
    equal: bool = True
    mask: bytes = b""


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule at the end of a chain: whatever meets all conditions is accepted or dropped."""

    family: int
    table: str
    chain: str
    matches: tuple[Match, ...]
    verdict: int
    comment: str = ""


def key(*parts: bytes) -> bytes:
    """The key of an element; in one of several parts each fills whole words of 4 bytes."""
    return parts[0] if len(parts) == 1 else b"".join(part + bytes(-len(part) % 4) for part in parts)


def link_key(name: str) -> bytes:
    """The key that a link's name is."""
    return name.encode().ljust(16, b"\0")


def payload(header: int, offset: int, length: int) -> bytes:
    """The expression that loads bytes of a packet."""
    words = (_big(1, _REGISTER), _big(2, header), _big(3, offset), _big(4, length))
    return _expression("payload", *words)


def meta(what: int) -> bytes:
    """The expression that loads what the kernel knows of a packet."""
    return _expression("meta", _big(1, _REGISTER), _big(2, what))


def add(things: Sequence[Chain | Rule | Element]) -> None:
    """Add all of them, in their order, or nothing; a chain that is there already is emptied.

    OSError when the kernel refuses: ENOENT when a table, set or map is not there.
    """
    messages: list[_Order] = []
    for thing in things:
        messages += _adding(thing, len(messages))
    connection = _connected()
    try:
        _commit(connection, messages)
    finally:
        connection.close()


def remove(things: Sequence[Chain | Element]) -> bool:
    """Take all of them out, in their order.  False when the kernel did not, and so left everything as it was: one of
    them was not there, or is still needed.

    The socket stays open until the process ends: closing it waits while the kernel forgets what was taken out.
    """
    try:
        connection = _connected()
    except OSError:
        return False  # this kernel has none
    try:
        _commit(connection, [message for thing in things for message in _removing(thing)])
    except OSError:
        connection.close()
        return False
    _OPEN.append(connection)
    return True


def tables_with_hook(family: int, hook: int) -> set[str]:
    """The tables of a family that have a base chain at this hook.  OSError."""
    with _connected() as connection:
        connection.send(_message(_NFTABLES << 8 | _GET_CHAIN, _REQUEST | _DUMP, 1, family, b""))
        found: set[str] = set()
        for kind, body in _answers(connection):
            if kind == _DONE:
                return found
            chain = dict(attributes(body[4:]))
            place = dict(attributes(chain.get(_CHAIN_HOOK, b"")))
            if int.from_bytes(place.get(_HOOK_NUMBER, b"\xff" * 4), "big") == hook:
                found.add(chain[_CHAIN_TABLE].rstrip(b"\0").decode())
    return found


# -- messages -----------------------------------------------------------------------------------------------------

_Order = tuple[int, int, int, bytes]  # kind, flags, family, attributes


def _adding(thing: Chain | Rule | Element, number: int) -> Iterator[_Order]:
    match thing:
        case Chain():
            yield _NEW_CHAIN, _CREATE, thing.family, text(_CHAIN_TABLE, thing.table) + text(_CHAIN_NAME, thing.name)
            yield _DEL_RULE, 0, thing.family, text(_RULE_TABLE, thing.table) + text(_RULE_CHAIN, thing.name)
        case Rule():
            conditions = []
            for at, condition in enumerate(thing.matches):
                if isinstance(condition.value, Values):
                    set_id = number << 8 | at
                    yield from _values(thing, condition.value, set_id)
                    conditions += [condition.load, _lookup(set_id, condition.equal)]
                else:
                    conditions += [condition.load, *_compare(condition.value, condition.equal, condition.mask)]
            conclusion = nested(2 | _NESTED, nested(_VERDICT | _NESTED, *_verdict(thing.verdict)))
            expressions = (*conditions, _expression("immediate", _big(1, 0), conclusion))
            body = text(_RULE_TABLE, thing.table) + text(_RULE_CHAIN, thing.chain)
            body += nested(_RULE_EXPRESSIONS | _NESTED, *expressions) + _comment(_RULE_USER_DATA, thing.comment)
            yield _NEW_RULE, _CREATE | _APPEND, thing.family, body
        case Element():
            data = nested(_VERDICT | _NESTED, *_verdict(GOTO, thing.goto)) if thing.goto else b""
            data = data or (attribute(_VALUE, thing.data) if thing.data else b"")
            item = _item(thing.key, nested(_DATA | _NESTED, data) if data else b"", thing.comment)
            names = text(_ELEMENTS_TABLE, thing.table) + text(_ELEMENTS_SET, thing.set_name)
            yield _NEW_ELEMENT, _CREATE, thing.family, names + nested(_ELEMENTS | _NESTED, item)


def _removing(thing: Chain | Element) -> Iterator[_Order]:
    if isinstance(thing, Chain):
        yield _DEL_RULE, 0, thing.family, text(_RULE_TABLE, thing.table) + text(_RULE_CHAIN, thing.name)
        yield _DEL_CHAIN, 0, thing.family, text(_CHAIN_TABLE, thing.table) + text(_CHAIN_NAME, thing.name)
    else:
        names = text(_ELEMENTS_TABLE, thing.table) + text(_ELEMENTS_SET, thing.set_name)
        yield _DEL_ELEMENT, 0, thing.family, names + nested(_ELEMENTS | _NESTED, _item(thing.key))


def _values(rule: Rule, values: Values, set_id: int) -> Iterator[_Order]:
    """The set without a name, which goes with its rule."""
    names = text(_SET_TABLE, rule.table) + text(_SET_NAME, _ANONYMOUS_NAME)
    shape = _big(_SET_FLAGS, _ANONYMOUS | _CONSTANT) + _big(_SET_KEY_TYPE, values.key_type)
    shape += _big(_SET_KEY_LENGTH, len(values.values[0])) + _big(_SET_ID, set_id)
    yield _NEW_SET, _CREATE, rule.family, names + shape
    names = text(_ELEMENTS_TABLE, rule.table) + text(_ELEMENTS_SET, _ANONYMOUS_NAME) + _big(_ELEMENTS_SET_ID, set_id)
    yield _NEW_ELEMENT, _CREATE, rule.family, names + nested(_ELEMENTS | _NESTED, *map(_item, values.values))


def _item(key: bytes, data: bytes = b"", comment: str = "") -> bytes:
    parts = nested(_KEY | _NESTED, attribute(_VALUE, key)) + data + _comment(_USER_DATA, comment)
    return nested(_ITEM | _NESTED, parts)


def _compare(value: bytes, equal: bool, mask: bytes) -> Iterator[bytes]:
    if mask:
        words = (_big(1, _REGISTER), _big(2, _REGISTER), _big(3, len(mask)))
        nothing = nested(5 | _NESTED, attribute(_VALUE, bytes(len(mask))))
        yield _expression("bitwise", *words, nested(4 | _NESTED, attribute(_VALUE, mask)), nothing)
    operator = 0 if equal else 1
    yield _expression("cmp", _big(1, _REGISTER), _big(2, operator), nested(3 | _NESTED, attribute(_VALUE, value)))


def _lookup(set_id: int, equal: bool) -> bytes:
    flags = () if equal else (_big(5, _INVERTED),)
    return _expression("lookup", text(1, _ANONYMOUS_NAME), _big(2, _REGISTER), _big(4, set_id), *flags)


def _verdict(code: int, chain: str = "") -> Iterator[bytes]:
    yield attribute(_VERDICT_CODE, code.to_bytes(4, "big", signed=True))
    if chain:
        yield text(_VERDICT_CHAIN, chain)


def _expression(name: str, *words: bytes) -> bytes:
    return nested(_ITEM | _NESTED, text(_EXPRESSION_NAME, name), nested(_EXPRESSION_DATA | _NESTED, *words))


def _comment(kind: int, words: str) -> bytes:
    """As nft keeps it: the kernel does not look at it."""
    if not words:
        return b""
    kept = words.encode()[:_COMMENT_MAX] + b"\0"
    return attribute(kind, bytes([0, len(kept)]) + kept)


def _big(kind: int, value: int) -> bytes:
    return attribute(kind, value.to_bytes(4, "big"))


def _message(kind: int, flags: int, number: int, family: int, body: bytes, resource: int = 0) -> bytes:
    payload = struct.pack(">BBH", family, 0, resource) + body
    return _HEAD.pack(_HEAD.size + len(payload), kind, flags, number, 0) + payload


# -- the conversation ---------------------------------------------------------------------------------------------


def _connected() -> socket.socket:
    connection = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETFILTER)
    connection.settimeout(_ANSWER_S)
    return connection


def _commit(connection: socket.socket, orders: Sequence[_Order]) -> None:
    """One batch: a single order that is refused leaves everything as it was.

    Refusals are told in the orders' order, each by itself; success is told for the last alone, since the answers to
    many would not fit into what the kernel keeps for us.
    """
    if not orders:
        return
    begin = _message(_BATCH_BEGIN, _REQUEST, 0, 0, b"", _NFTABLES)
    end = _message(_BATCH_END, _REQUEST, len(orders) + 1, 0, b"", _NFTABLES)
    numbered = (
        _message(_NFTABLES << 8 | kind, _REQUEST | flags | (_ACK if number == len(orders) else 0), number, family, body)
        for number, (kind, flags, family, body) in enumerate(orders, 1)
    )
    connection.send(b"".join([begin, *numbered, end]))
    next(_answers(connection))


def _answers(connection: socket.socket) -> Iterator[tuple[int, bytes]]:
    """Kind and body of each answer that is not about a batch's frame.  OSError for one that is an error."""
    while True:
        data = memoryview(connection.recv(1 << 18))
        if not data:
            raise OSError(errno.EPIPE, os.strerror(errno.EPIPE))
        while data:
            length, kind, _flags, number, _port = _HEAD.unpack_from(data)
            if kind == _ERROR:
                (code,) = struct.unpack_from("=i", data, _HEAD.size)
                if code:
                    raise OSError(-code, os.strerror(-code))
            if number:
                yield kind, bytes(data[_HEAD.size : length])
            data = data[(length + 3) & ~3 :]
