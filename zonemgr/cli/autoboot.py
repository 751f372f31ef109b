"""``sysboot`` and ``autoboot``: what the host's own start and stop do with zones (the reference's svc:/system/zones).

One zone's failure keeps no other zone from its boot, but those that require it; each result is told, kept for
``--status``, and counted in the exit status.  The order is ``model.order``'s: whoever waits for nobody goes at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import click

from zonemgr.cli.install import administration, call_hook, check, require_root, say_of
from zonemgr.cli.lifecycle import Request, perform
from zonemgr.cli.output import Session, columns
from zonemgr.errors import Exit, PlatformError, UsageError, ZoneError, message
from zonemgr.model import order
from zonemgr.model.states import State
from zonemgr.model.zone import Zone
from zonemgr.store import zones as stored
from zonemgr.store.observe import all_zones, state_of
from zonemgr.store.paths import Layout

AT_ONCE: Final = 8  # zones that are worked on side by side: each costs a supervisor of its own
STOP_S: Final = 90  # for stopping all zones
GRACE: Final = 0.75  # the part of the time for stopping that zones get to shut themselves down


@click.command()
@click.argument("name", metavar="NAME")
@click.pass_obj
def sysboot(session: Session, name: str) -> int:
    """Tell the brand of an installed zone that the host has booted, without booting the zone."""
    with session.acting_on(name):
        check(session, "sysboot", name)
        _sysboot(session, name)
    return Exit.OK


def _sysboot(session: Session, name: str) -> None:
    """Raises ZoneError."""
    from zonemgr.brandkit import loader
    from zonemgr.brandkit.base import ZoneInfo
    from zonemgr.store import settings, zones

    zone = zones.load(session.layout, name)
    brand = loader.load(zone.brand, session.layout)
    info = ZoneInfo.of(zone, str(session.layout.root))
    status = call_hook(session, brand, "sysboot", info, deadline_s=settings.load(session.layout).hook_s)
    if status:
        raise PlatformError("sysboot of brand '{brand}' failed", brand=brand.name)


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one zone."""

    zonename: str
    action: str
    ok: bool
    seconds: float
    messages: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


@click.command()
@click.option("--stop", is_flag=True, help="Shut all zones down, and halt those that do not end in time.")
@click.option(
    "-t",
    "--timeout",
    type=click.IntRange(min=1),
    metavar="SECONDS",
    help="With --stop: for all of it (default 90).",
)
@click.option("--status", is_flag=True, help="Show what the last autoboot did.")
@click.pass_obj
def autoboot(session: Session, stop: bool, timeout: int | None, status: bool) -> int:
    """Boot every installed zone with autoboot = true and what it requires, and tell the brands of the others that the
    host has booted.

    A zone boots after those that it requires or names in 'after', the others side by side, boot-priority high first.
    The exit status is 1 when a zone failed; all others are booted nevertheless.
    """
    if (status and stop) or (timeout and not stop):
        raise UsageError("--status goes with nothing, --timeout with --stop")
    if status:
        return _show(session, _recorded(session.layout))
    if stop:
        return stop_all(session, timeout or STOP_S)
    require_root("boot")
    _start_delegate(session)
    results = _start(session)
    _record(session.layout, results)
    return _told(session, results, "start")


def _told(session: Session, results: Sequence[Result], verb: str) -> int:
    """Name what failed; the exit status."""
    if session.json:
        session.emit([result.to_json() for result in results])
    failed = [result.zonename for result in results if not result.ok]
    if not failed:
        return Exit.OK
    for name in failed if verb == "halt" else ():
        session.message(message("Zone '{name}' failed to halt.", name=name))
    session.message(
        message(
            "{count} of {all} zones failed to {verb}: {names}",
            count=len(failed),
            all=len(results),
            verb=verb,
            names=" ".join(failed),
        )
    )
    return Exit.ERROR


def _start_delegate(session: Session) -> None:
    """The host has booted: users whom zones name are served again.  It leaves at once where none is."""
    from zonemgr.wire import start

    start.delegate(session.layout)


# -- start --------------------------------------------------------------------------------------------------------


def _start(session: Session) -> list[Result]:
    zones: dict[str, Zone] = {}
    results: list[Result] = []
    running: set[str] = set()
    for seen in all_zones(session.layout):
        try:
            _mend(session, seen.zonename)
            if seen.state.active:
                running.add(seen.zonename)
            elif stored.read_entry(session.layout, seen.zonename).state is State.INSTALLED:
                zones[seen.zonename] = stored.load(session.layout, seen.zonename)
        except ZoneError as error:
            session.report(error, seen.zonename)
            results.append(Result(seen.zonename, "boot", False, 0.0, (error.text,)))
    boots = order.with_needs([name for name, zone in zones.items() if zone.autoboot], zones)
    # Before any thread is started: a hook is a fork.
    results += [_timed(session, name) for name in zones if name not in boots]
    return results + _boot(session, {name: zones[name] for name in boots}, running)


def _boot(session: Session, zones: Mapping[str, Zone], running: set[str]) -> list[Result]:
    """Boot zones, each when what it waits for has come."""
    plan = order.of(zones)
    results = [
        _refused(session, name, message("the zone requires itself: {circle}", circle=" -> ".join(circle)))
        for name, circle in sorted(plan.circular.items())
    ]
    request = Request("boot", "Boot")
    awaited = {other for others in plan.before.values() for other in others}

    def boot(name: str, done: Mapping[str, Result]) -> Result:
        there = running | {other for other, result in done.items() if result.ok}
        missing = [other for other in zones[name].requires if other not in there]
        if missing:
            return _refused(session, name, message("requires what does not run: {zones}", zones=" ".join(missing)))
        result = _ask(session, name, request)
        return _awaited(session, result) if result.ok and name in awaited else result

    return results + in_order(plan.names, plan.before, boot)


def _awaited(session: Session, result: Result) -> Result:
    """Others come after this zone: they wait until it is ready, for a while."""
    from zonemgr.cli.follow import not_ready
    from zonemgr.store import readiness, settings

    began, limit_s = time.monotonic(), settings.load(session.layout).ready_s
    messages = result.messages
    if not readiness.wait(session.layout, result.zonename, limit_s):
        session.message(not_ready(limit_s), result.zonename)
        messages = (*messages, not_ready(limit_s))
    return replace(result, seconds=round(result.seconds + time.monotonic() - began, 3), messages=messages)


def _refused(session: Session, name: str, why: str) -> Result:
    session.message(why, name)
    return Result(name, "boot", False, 0.0, (why,))


def _mend(session: Session, name: str) -> None:
    """Finish or undo what a verb was doing with the zone when the host went down."""
    from zonemgr.store import journal

    if journal.pending(session.layout, name):
        with administration(session.layout, name, say_of(session, name)):
            return


def _timed(session: Session, name: str) -> Result:
    """The sysboot hook's result."""
    began = time.monotonic()
    messages: tuple[str, ...] = ()
    try:
        _sysboot(session, name)
    except ZoneError as error:
        session.report(error, name)
        messages = (error.text,)
    return Result(name, "sysboot", not messages, round(time.monotonic() - began, 3), messages)


def _ask(session: Session, name: str, request: Request) -> Result:
    """One request to one supervisor; what fails has been reported."""
    began = time.monotonic()
    talk = perform(session, name, request)
    seconds = round(time.monotonic() - began, 3)
    return Result(name, request.verb, talk.exit_code == Exit.OK, seconds, tuple(talk.messages))


def in_order(
    names: Sequence[str],
    before: Mapping[str, frozenset[str]],
    work: Callable[[str, Mapping[str, Result]], Result],
) -> list[Result]:
    """Work on all zones side by side, on each when those before it are done; ``work`` is told of their results."""
    from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

    done: dict[str, Result] = {}
    waiting = list(names)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        under_way: dict[Future[Result], str] = {}
        while waiting or under_way:
            for name in [name for name in waiting if before[name] <= done.keys()]:
                waiting.remove(name)
                under_way[pool.submit(work, name, dict(done))] = name
            for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                done[under_way.pop(future)] = future.result()
    return [done[name] for name in names]


# -- stop ---------------------------------------------------------------------------------------------------------


def stop_all(session: Session, timeout_s: int = STOP_S) -> int:
    """Shut down every living zone, and halt those that do not end in time; the exit status.

    A zone goes before those that it waits for when they start.  All of it takes no longer than ``timeout_s``, but for
    what the kernel does not let go of.
    """
    require_root("stop")
    deadline = time.monotonic() + timeout_s
    living = {seen.zonename: seen.state for seen in all_zones(session.layout) if seen.state.active}
    zones = {name: zone for name in living if (zone := _configured(session, name)) is not None}
    plan = order.of(zones)
    before = {**dict.fromkeys(living, frozenset()), **plan.reversed()}
    layers = _depth(before)

    def stop(name: str, _done: Mapping[str, Result]) -> Result:
        left_s = max(1.0, deadline - time.monotonic())
        grace_s = max(1, int(left_s * GRACE / layers[name]))
        graceful = living[name] is State.RUNNING and not (name in zones and zones[name].autoshutdown == "halt")
        return _stop_one(session, name, living[name], grace_s if graceful else None)

    results = in_order(sorted(living), before, stop)
    results = [replace(done, ok=not state_of(session.layout, done.zonename).active) for done in results]
    return _told(session, results, "halt")


def _configured(session: Session, name: str) -> Zone | None:
    """The zone's configuration; what cannot be read keeps no zone from being stopped."""
    try:
        return stored.load(session.layout, name)
    except ZoneError:
        return None


def _depth(before: Mapping[str, frozenset[str]]) -> dict[str, int]:
    """How many zones go one after the other from this one on, itself included: they share the time that is left."""
    behind: dict[str, set[str]] = {name: set() for name in before}
    for name, others in before.items():
        for other in others:
            behind[other].add(name)
    depths: dict[str, int] = {}

    def depth(name: str) -> int:
        if name not in depths:
            depths[name] = 1 + max((depth(other) for other in behind[name]), default=0)
        return depths[name]

    return {name: depth(name) for name in before}


def _stop_one(session: Session, name: str, state: State, grace_s: int | None) -> Result:
    """Ask first, if there is a time for it."""
    if state is State.MOUNTED:
        return _ask(session, name, Request("unmount", "Unmount"))
    if grace_s is not None:
        asked = _ask(session, name, Request("shutdown", "Shutdown", {"timeout": grace_s}))
        if asked.ok:
            return asked
    return _ask(session, name, Request("halt", "Halt"))


# -- the record ---------------------------------------------------------------------------------------------------


def _record(layout: Layout, results: Sequence[Result]) -> None:
    from zonemgr.store import files

    files.make_directory(layout.run)
    table = {"version": 1, "time": round(time.time()), "results": [result.to_json() for result in results]}
    files.write_json(layout.run / "autoboot.json", table)


def _recorded(layout: Layout) -> dict[str, Any]:
    from zonemgr.store import files

    found = files.read_json(layout.run / "autoboot.json")
    if found is None:
        raise PlatformError("there was no autoboot since the host has booted")
    return found


def _show(session: Session, table: dict[str, Any]) -> int:
    results = table["results"]
    if session.json:
        session.emit(table)
    else:
        rows = [
            [item["zonename"], item["action"], "ok" if item["ok"] else "failed", " / ".join(item["messages"])]
            for item in results
        ]
        for line in columns([["ZONE", "ACTION", "RESULT", "SAID"], *rows]):
            session.data(line)
    return Exit.OK if all(item["ok"] for item in results) else Exit.ERROR
