"""Takes back what a ledger lists, newest first.

Every undo is idempotent and needs nothing but the op itself and the kernel, so that any process can finish what
another one began.  All undos run; the failures are collected, never swallowed, and an op that could not be
undone stays in the ledger.  Mounts need no undo: they live in M0 and go with it.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from zonemgr.errors import PlatformError, ZoneError
from zonemgr.linux import namespaces, netlink
from zonemgr.linux.cgroup import ZoneCgroup, detect
from zonemgr.linux.hints import explain
from zonemgr.model import plan
from zonemgr.platform import firewall, machine
from zonemgr.platform.limits import release_cpus
from zonemgr.platform.network import moved_links, shared_addresses, shared_file
from zonemgr.store import claims, names
from zonemgr.store.files import read_json
from zonemgr.store.ledger import Ledger
from zonemgr.store.paths import Layout

LINK_RETURNS_S = 10.0
LINK_VANISHES_S = 0.1


@dataclass
class Remains:
    """What an undo may still need of the living: the zone's network namespace, while zsched holds it."""

    layout: Layout
    zonename: str
    net_fd: int | None = None
    rebooting: bool = False  # the zone comes back at once: what it has of the host's is kept for it
    unfiltered: list[plan.Op] = field(default_factory=list)  # filter ops that are being undone, or have been
    filters_gone: Callable[[], None] | None = None  # waits for that

    @property
    def cgroup(self) -> ZoneCgroup:
        return ZoneCgroup(detect(), "zonemgr" + self.layout.suffix, self.zonename)


def _claim(op: plan.Claim, remains: Remains) -> None:
    claims.give_back(remains.layout, remains.zonename, op.claim)


def _names(op: plan.Names, remains: Remains) -> None:
    names.withdraw(remains.layout, op.zonename)


def _filter(op: plan.Op, remains: Remains) -> None:
    wait, remains.filters_gone = remains.filters_gone, None
    if wait is not None:
        begun, remains.unfiltered = remains.unfiltered, []
        wait()
        remains.unfiltered = begun
    if op not in remains.unfiltered:
        firewall.undo(op, remains.layout.suffix)


def _admit(op: plan.Admit, remains: Remains) -> None:
    firewall.undo_admit(op, remains.layout.suffix)


def _veth(op: plan.Veth, remains: Remains) -> None:
    """It goes with the zone's network namespace, 2 ms after that, while to delete it takes 15; of a zone that lives on
    it is taken.
    """
    if remains.net_fd is not None or not _vanishes(op.host_name):
        netlink.delete_link(op.host_name)


def _vanishes(name: str) -> bool:
    """Whether a link is gone, or goes by itself at once."""
    deadline = time.monotonic() + LINK_VANISHES_S
    while _has_index(name):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.001)
    return True


def _has_index(name: str) -> bool:
    """Asked without netlink, which would wait for the kernel to have tidied up."""
    try:
        return socket.if_nametoindex(name) > 0
    except OSError:
        return False


def _macvlan(op: plan.Macvlan, remains: Remains) -> None:
    """It goes with the zone's network namespace; of a zone that lives on it is taken."""
    if remains.net_fd is not None:
        netlink.delete_link(op.zone_name, remains.net_fd)


def _bandwidth(op: plan.Bandwidth, _remains: Remains) -> None:
    from zonemgr.linux import links

    links.lift_bandwidth(op.link, op.return_link)


def _shared_address(op: plan.SharedAddress, remains: Remains) -> None:
    if op.address in shared_addresses(remains.layout, remains.zonename):
        netlink.remove_address(op.link, op.address)


def _move_link(op: plan.MoveLink, remains: Remains) -> None:
    """The link must come back under its own name; without a namespace to fetch it from, the kernel returns it."""
    before = (read_json(moved_links(remains.layout, remains.zonename)) or {}).get(op.name) or {}
    if not before and remains.net_fd is None:
        return  # it never moved, as far as anybody knows; if it did, the kernel returns it by itself
    try:
        if remains.net_fd is not None:
            home_fd = namespaces.open_ns("self", "net")
            try:
                if not netlink.return_link(remains.net_fd, op.name, home_fd, **before):
                    return  # it never came into the zone, or the zone has deleted it
            finally:
                os.close(home_fd)
        _wait_for_link(op.name)
    except (OSError, ZoneError) as error:
        why = explain(error) if isinstance(error, OSError) else error.text
        raise PlatformError(
            "datalinks remain in zone after shutdown: {name} ({why})", name=op.name, why=why
        ) from None


def _wait_for_link(name: str) -> None:
    deadline = time.monotonic() + LINK_RETURNS_S
    while not netlink.link_exists(name):
        if time.monotonic() > deadline:
            raise PlatformError("it has not come back within {seconds:g} seconds", seconds=LINK_RETURNS_S)
        time.sleep(
            0.05
        )  # the kernel returns links of a dead namespace in its own time, and tells only netlink


def _cgroup(_op: plan.MakeCgroup, remains: Remains) -> None:
    remains.cgroup.remove_platform()


def _dedicated_cpus(_op: plan.DedicateCpus, remains: Remains) -> None:
    if not remains.rebooting:
        release_cpus(remains.cgroup.hierarchy, remains.cgroup)


def _pool(_op: plan.JoinPool, remains: Remains) -> None:
    release_cpus(remains.cgroup.hierarchy, remains.cgroup)


_UNDO: dict[type[plan.Op], Callable[[Any, Remains], None]] = {
    plan.Claim: _claim,
    plan.Names: _names,
    **dict.fromkeys(plan.FILTERS, _filter),
    plan.Admit: _admit,
    plan.Veth: _veth,
    plan.Macvlan: _macvlan,
    plan.Bandwidth: _bandwidth,
    plan.SharedAddress: _shared_address,
    plan.MoveLink: _move_link,
    plan.MakeCgroup: _cgroup,
    plan.DedicateCpus: _dedicated_cpus,
    plan.JoinPool: _pool,
    plan.Machine: machine.forget,
}


def one(op: plan.Op, remains: Remains) -> None:
    """Undo one op.  OSError or ZoneError when that fails."""
    undo = _UNDO.get(type(op))
    if undo is not None:
        undo(op, remains)


def begin(ledger: Ledger, remains: Remains) -> None:
    """Begin with the filter ops, which take as long as all others and need not wait for them; ``everything`` finishes
    them.
    """
    remains.unfiltered = [op for _number, op in _pending(ledger) if isinstance(op, plan.FILTERS)]
    remains.filters_gone = firewall.start_undo(remains.unfiltered, remains.layout.suffix)


def network(ledger: Ledger, remains: Remains) -> list[ZoneError]:
    """Undo the network ops alone, while zsched still holds the zone's network namespace (reference 3.5, step 6)."""
    kinds = (plan.Bandwidth, plan.MoveLink)
    return _undo([item for item in _pending(ledger) if isinstance(item[1], kinds)], ledger, remains)


def everything(ledger: Ledger, remains: Remains) -> list[ZoneError]:
    """Undo all that is pending.  Returns the failures; the ledger file is gone when there are none."""
    failures = _undo(_pending(ledger), ledger, remains)
    if not failures:
        moved_links(remains.layout, remains.zonename).unlink(missing_ok=True)
        shared_file(remains.layout, remains.zonename).unlink(missing_ok=True)
        ledger.clear()
    return failures


def _pending(ledger: Ledger) -> list[tuple[int, plan.Op]]:
    return [(number, plan.from_json(table)) for number, table in ledger.pending()]


def _undo(items: list[tuple[int, plan.Op]], ledger: Ledger, remains: Remains) -> list[ZoneError]:
    failures: list[ZoneError] = []
    for number, op in items:
        try:
            one(op, remains)
            ledger.undone(number)
        except ZoneError as error:
            failures.append(error)
        except OSError as error:
            failures.append(
                PlatformError("cannot undo {what}: {why}", what=op.describe(), why=explain(error))
            )
    return failures
