"""Holds the processes of a control group to a few addresses of the network stack that they share with the host.

The mechanism is a set of eBPF programs on the zone's cgroup2 folder, chosen by experiment among three:

* a network namespace with a macvlan: the host and its zones could not talk to each other, and a switch or cloud that
  knows one Ethernet address a port drops the zone's frames;
* a routed namespace with proxy ARP and NDP: needs the host to forward, which for IPv6 makes it a router for everybody
  and stops it from learning its own routes;
* programs on the control group: the zone is on the host's stack as the reference has it, nothing of the host's
  settings changes, and all goes with the folder.

A zone in a user namespace has no rights over the host's network namespace: it cannot configure addresses, open raw or
packet sockets, or take the programs off.  They do the rest.  Two **filters** see every IP packet of every socket of
the zone and pass only its own addresses, whatever call made it: they are the guarantee.  The **hooks** make ordinary
programs work within it: a bind to every address becomes one to the zone's (the first of the family, so that a
dual-stack wildcard is IPv6 where the zone has IPv6); unbound sockets connect and send from it; ports below 1024 are
the zone's to use; any 127.0.0.1 is an address of 127/8 that belongs to the zone alone, ::1 is not available.  Only
TCP, UDP and ping sockets can be made.

Not held: abstract unix sockets and what netlink tells about the host's links and sockets, which are the namespace's.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from zonemgr.linux import bpf

# -- an assembler for the few instructions that are needed --------------------------------------------------------

_R0, _R1, _R2, _R3, _R4, _R6, _R7, _R10 = 0, 1, 2, 3, 4, 6, 7, 10
_BIND, _LOAD_BYTES, _SET_RETVAL = 64, 26, 187  # helpers


@dataclass
class _Program:
    """Instructions with labels.  Register 6 holds the context from the beginning."""

    code: list[bytes] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    jumps: list[tuple[int, str]] = field(default_factory=list)
    _names: int = 0

    def emit(self, operation: int, to: int = 0, source: int = 0, offset: int = 0, constant: int = 0) -> None:
        self.code.append(struct.pack("=BBhI", operation, to | source << 4, offset, constant & 0xFFFFFFFF))

    def begin(self) -> None:
        self.emit(0xBF, _R6, _R1)

    def name(self) -> str:
        """A label that nothing else has."""
        self._names += 1
        return f"label{self._names}"

    def label(self, name: str) -> None:
        self.labels[name] = len(self.code)

    def field(self, to: int, offset: int) -> None:
        """A 32-bit field of the context."""
        self.emit(0x61, to, _R6, offset)

    def set_field(self, offset: int, value: int) -> None:
        self.emit(0xB4, _R3, constant=value)
        self.emit(0x63, _R6, _R3, offset)

    def stack(self, to: int, offset: int) -> None:
        """A 32-bit word of the stack, ``offset`` bytes below its top."""
        self.emit(0x61, to, _R10, -offset)

    def set_stack(self, offset: int, value: int) -> None:
        self.emit(0x62, _R10, offset=-offset, constant=value)

    def to_stack(self, to: int, offset: int) -> None:
        """An address on the stack."""
        self.emit(0xBF, to, _R10)
        self.emit(0x07, to, constant=-offset)

    def mask(self, register: int, bits: int) -> None:
        self.emit(0x54, register, constant=bits)

    def if_equal(self, register: int, value: int, label: str) -> None:
        self._jump(0x16, label, register, value)

    def if_other(self, register: int, value: int, label: str) -> None:
        self._jump(0x56, label, register, value)

    def go(self, label: str) -> None:
        self._jump(0x05, label)

    def _jump(self, operation: int, label: str, register: int = 0, value: int = 0) -> None:
        self.jumps.append((len(self.code), label))
        self.emit(operation, register, constant=value)

    def constant(self, to: int, value: int) -> None:
        self.emit(0xB7, to, constant=value)

    def call(self, helper: int) -> None:
        self.emit(0x85, constant=helper)

    def leave(self, value: int) -> None:
        self.constant(_R0, value)
        self.emit(0x95)

    def refuse(self, code: int) -> None:
        """The end of those who went to "no", if anybody did: the system call fails with this errno."""
        if not any(label == "no" for _place, label in self.jumps):
            return  # the kernel takes no program with instructions that nothing leads to
        self.label("no")
        self.constant(_R1, -code)
        self.call(_SET_RETVAL)
        self.leave(0)

    def assemble(self) -> bytes:
        for place, label in self.jumps:
            old = self.code[place]
            self.code[place] = old[:2] + struct.pack("=h", self.labels[label] - place - 1) + old[4:]
        return b"".join(self.code)


# -- addresses ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Own:
    """The zone's addresses as the kernel has them: 32-bit words in network order, read in the machine's."""

    four: tuple[int, ...]
    six: tuple[tuple[int, int, int, int], ...]
    loopback: int

    @classmethod
    def of(cls, addresses: Iterable[str], number: int) -> Own:
        """``number`` tells the zone from others of this host: its loopback address is made of it."""
        four, six = [], []
        for address in addresses:
            packed = ipaddress.ip_address(address).packed
            if len(packed) == 4:
                four.append(_words(packed)[0])
            else:
                six.append(_words(packed))
        (loopback,) = struct.unpack("=I", bytes((127, 64 | number >> 8 & 63, number & 255, 1)))
        return cls(tuple(four), tuple(six), loopback)  # type: ignore[arg-type]


def _words(packed: bytes) -> tuple[int, ...]:
    return struct.unpack(f"={len(packed) // 4}I", packed)


_LOCAL_MASK = _words(b"\xff\0\0\0")[0]
_LOCAL = _words(b"\x7f\0\0\0")[0]
_MAPPED = _words(b"\0\0\xff\xff")[0]
_FOUR, _SIX, _SOURCE4, _SOURCE6 = 4, 8, 40, 44  # fields of struct bpf_sock_addr

# -- the hooks ----------------------------------------------------------------------------------------------------

_YES: Final = 1
_YES_ANY_PORT: Final = 3  # and ports below 1024 without the capability


def _bind4(p: _Program, own: Own, offset: int = _FOUR) -> None:
    p.field(_R2, offset)
    for address in own.four:
        p.if_equal(_R2, address, "yes")
    p.if_equal(_R2, 0, "any")
    p.mask(_R2, _LOCAL_MASK)
    p.if_equal(_R2, _LOCAL, "local")
    p.go("no")
    p.label("local")
    p.set_field(offset, own.loopback)
    p.go("yes")
    p.label("any")
    if own.four:
        p.set_field(offset, own.four[0])
        p.go("yes")
    else:
        p.go("no")


def _bind_answers(p: _Program) -> None:
    p.refuse(errno.EADDRNOTAVAIL)
    p.label("yes")
    p.leave(_YES_ANY_PORT)


def bind4(own: Own) -> bytes:
    """A bind of an IPv4 socket."""
    p = _Program()
    p.begin()
    _bind4(p, own)
    _bind_answers(p)
    return p.assemble()


def bind6(own: Own) -> bytes:
    """A bind of an IPv6 socket, to an IPv4 address in disguise perhaps."""
    p = _Program()
    p.begin()
    for address in own.six:
        _if_six(p, _SIX, address, "yes")
    _if_six(p, _SIX, (0, 0, 0, 0), "any6")
    _if_mapped(p, _SIX, "mapped")
    p.go("no")
    p.label("any6")
    if own.six:
        for index, word in enumerate(own.six[0]):
            p.set_field(_SIX + 4 * index, word)
        p.go("yes")
    elif own.four:
        p.set_field(_SIX + 8, _MAPPED)
        p.set_field(_SIX + 12, own.four[0])
        p.go("yes")
    else:
        p.go("no")
    p.label("mapped")
    _bind4(p, own, _SIX + 12)
    _bind_answers(p)
    return p.assemble()


def _if_six(p: _Program, offset: int, words: tuple[int, ...], label: str) -> None:
    other = p.name()
    for index, word in enumerate(words):
        p.field(_R2, offset + 4 * index)
        p.if_other(_R2, word, other)
    p.go(label)
    p.label(other)


def _if_mapped(p: _Program, offset: int, label: str) -> None:
    other = p.name()
    for index, word in enumerate((0, 0, _MAPPED)):
        p.field(_R2, offset + 4 * index)
        p.if_other(_R2, word, other)
    p.go(label)
    p.label(other)


def connect4(own: Own) -> bytes:
    """A connect of an IPv4 socket: from the zone's address, and to its own loopback."""
    p = _Program()
    p.begin()
    _destination4(p, own, _FOUR)
    p.label("away")
    _bind_source4(p, own.four[0] if own.four else None)
    p.label("home")
    _bind_source4(p, own.loopback)
    p.refuse(errno.ENETUNREACH)
    return p.assemble()


def _destination4(p: _Program, own: Own, offset: int) -> None:
    """Goes to "home" for the loopback, which it puts in place, and falls through for everything else."""
    away, local = p.name(), p.name()
    p.field(_R2, offset)
    p.if_equal(_R2, 0, local)
    p.mask(_R2, _LOCAL_MASK)
    p.if_other(_R2, _LOCAL, away)
    p.label(local)
    p.set_field(offset, own.loopback)
    p.go("home")
    p.label(away)


def _bind_source4(p: _Program, source: int | None) -> None:
    """Bind to the source unless the socket is bound already, and leave."""
    if source is None:
        p.go("no")
        return
    for offset, value in ((16, socket.AF_INET), (12, source), (8, 0), (4, 0)):
        p.set_stack(offset, value)
    _bind_to_stack(p, 16)


def _bind_to_stack(p: _Program, size: int) -> None:
    p.emit(0xBF, _R1, _R6)
    p.to_stack(_R2, size)
    p.constant(_R3, size)
    p.call(_BIND)
    p.leave(_YES)


def connect6(own: Own) -> bytes:
    """A connect of an IPv6 socket.  There is no loopback of the zone's own to lead it to."""
    p = _Program()
    p.begin()
    _if_mapped(p, _SIX, "mapped")
    for home in ((0, 0, 0, 0), (0, 0, 0, _words(b"\0\0\0\1")[0])):
        _if_six(p, _SIX, home, "no")
    _bind_source6(p, own.six[0] if own.six else None)
    p.label("mapped")
    _destination4(p, own, _SIX + 12)
    _bind_source6(p, (0, 0, _MAPPED, own.four[0]) if own.four else None)
    p.label("home")
    _bind_source6(p, (0, 0, _MAPPED, own.loopback))
    p.refuse(errno.ENETUNREACH)
    return p.assemble()


def _bind_source6(p: _Program, source: tuple[int, ...] | None) -> None:
    if source is None:
        p.go("no")
        return
    for index, value in enumerate((socket.AF_INET6, 0, *source, 0)):
        p.set_stack(28 - 4 * index, value)
    _bind_to_stack(p, 28)


def sendmsg4(own: Own) -> bytes:
    """A datagram of an unconnected IPv4 socket, whatever source it asks for."""
    p = _Program()
    p.begin()
    _destination4(p, own, _FOUR)
    if own.four:
        p.field(_R2, _SOURCE4)
        for address in own.four:
            p.if_equal(_R2, address, "yes")
        p.set_field(_SOURCE4, own.four[0])
        p.go("yes")
    else:
        p.go("no")
    p.label("home")
    p.set_field(_SOURCE4, own.loopback)
    p.label("yes")
    p.leave(_YES)
    p.refuse(errno.ENETUNREACH)
    return p.assemble()


def sendmsg6(own: Own) -> bytes:
    """A datagram of an unconnected IPv6 socket; one to an IPv4 address in disguise comes to ``sendmsg4``."""
    p = _Program()
    p.begin()
    if own.six:
        for address in own.six:
            _if_six(p, _SOURCE6, address, "yes")
        for index, word in enumerate(own.six[0]):
            p.set_field(_SOURCE6 + 4 * index, word)
        p.label("yes")
        p.leave(_YES)
    else:
        p.go("no")
        p.refuse(errno.ENETUNREACH)
    return p.assemble()


def recvmsg4(own: Own) -> bytes:
    """Who a datagram is from: the zone's loopback shows as the one that its programs know."""
    p = _Program()
    p.begin()
    p.field(_R2, _FOUR)
    p.if_other(_R2, own.loopback, "yes")
    p.set_field(_FOUR, _words(b"\x7f\0\0\1")[0])
    p.label("yes")
    p.leave(_YES)
    return p.assemble()


def create(_own: Own) -> bytes:
    """A new internet socket: TCP, UDP, and the ping that needs no privilege."""
    p = _Program()
    p.begin()
    p.field(_R2, 12)
    p.field(_R3, 8)
    p.if_equal(_R3, socket.SOCK_RAW, "no")
    for protocol in (socket.IPPROTO_TCP, socket.IPPROTO_UDP, socket.IPPROTO_ICMP, socket.IPPROTO_ICMPV6):
        p.if_equal(_R2, protocol, "yes")
    p.label("no")
    p.leave(0)
    p.label("yes")
    p.leave(_YES)
    return p.assemble()


# -- the filters --------------------------------------------------------------------------------------------------


def _packets(own: Own, four: int, six: int) -> bytes:
    """Pass packets whose address at these places of the IP header is the zone's."""
    p = _Program()
    p.begin()
    p.field(_R2, 16)  # the packet's protocol
    p.if_equal(_R2, socket.htons(0x0800), "four")
    p.if_equal(_R2, socket.htons(0x86DD), "six")
    p.go("no")
    p.label("four")
    _load(p, four, 4)
    p.stack(_R2, 16)
    for address in (*own.four, own.loopback):
        p.if_equal(_R2, address, "yes")
    p.go("no")
    p.label("six")
    _load(p, six, 16)
    for words in own.six:
        other = p.name()
        for index, word in enumerate(words):
            p.stack(_R2, 16 - 4 * index)
            p.if_other(_R2, word, other)
        p.go("yes")
        p.label(other)
    p.label("no")
    p.leave(0)
    p.label("yes")
    p.leave(_YES)
    return p.assemble()


def _load(p: _Program, offset: int, size: int) -> None:
    p.emit(0xBF, _R1, _R6)
    p.constant(_R2, offset)
    p.to_stack(_R3, 16)
    p.constant(_R4, size)
    p.call(_LOAD_BYTES)
    p.if_other(_R0, 0, "no")


def egress(own: Own) -> bytes:
    """What the zone sends."""
    return _packets(own, 12, 8)


def ingress(own: Own) -> bytes:
    """What the zone gets: a socket that listens without a bind listens on every address of the host."""
    return _packets(own, 16, 24)


# -- loading ------------------------------------------------------------------------------------------------------

_SKB, _SOCK, _SOCK_ADDR = 8, 9, 18  # kinds of programs
# What is loaded, its kind, and where it is attached; the guarantee comes first.
_HOOKS: Final[tuple[tuple[Callable[[Own], bytes], int, int], ...]] = (
    (egress, _SKB, 1),
    (ingress, _SKB, 0),
    (create, _SOCK, 2),
    (bind4, _SOCK_ADDR, 8),
    (bind6, _SOCK_ADDR, 9),
    (connect4, _SOCK_ADDR, 10),
    (connect6, _SOCK_ADDR, 11),
    (sendmsg4, _SOCK_ADDR, 14),
    (sendmsg6, _SOCK_ADDR, 15),
    (recvmsg4, _SOCK_ADDR, 19),
)


def hold(folder: str | os.PathLike[str], addresses: Iterable[str], number: int) -> None:
    """Hold everything in the cgroup2 folder to these addresses, in place of what it was held to before.

    ``number``: tells the zone from the host's others.  OSError: EINVAL for a kernel that lacks a hook, EPERM.
    """
    own = Own.of(addresses, number)
    for assemble, kind, place in _HOOKS:
        bpf.run_on((kind, place), folder, [assemble(own)])
