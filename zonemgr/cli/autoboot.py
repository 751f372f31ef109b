"""``sysboot`` and ``autoboot``: what the host's own start and stop do with zones (the reference's svc:/system/zones).

One zone's failure keeps no other zone from its boot; each result is told, kept for ``--status``, and counted in the
exit status.  Deliberately not here: an order among zones.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import click

from zonemgr.cli.install import administration, call_hook, check, require_root, say_of
from zonemgr.cli.lifecycle import Request, perform
from zonemgr.cli.output import Session, columns
from zonemgr.errors import Exit, PlatformError, UsageError, ZoneError, message
from zonemgr.model.states import State
from zonemgr.store.paths import Layout

AT_ONCE: Final = 8  # zones that are worked on side by side: each costs a supervisor of its own
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
    """Boot every installed zone with autoboot = true, and tell the brands of the others that the host has booted.

    The exit status is 1 when a zone failed; all others are booted nevertheless.
    """
    if (status and stop) or (timeout and not stop):
        raise UsageError("--status goes with nothing, --timeout with --stop")
    if status:
        return _show(session, _recorded(session.layout))
    require_root("stop" if stop else "boot")
    if not stop:
        _start_delegate(session)
    results = _stop(session, timeout or 90) if stop else _start(session)
    if not stop:
        _record(session.layout, results)
    if session.json:
        session.emit([result.to_json() for result in results])
    failed = [result.zonename for result in results if not result.ok]
    if failed:
        verb = "halt" if stop else "start"
        for name in failed if stop else ():
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
    return Exit.ERROR if failed else Exit.OK


def _start_delegate(session: Session) -> None:
    """The host has booted: users whom zones name are served again.  It leaves at once where none is."""
    from zonemgr.wire import start

    start.delegate(session.layout)


# -- start --------------------------------------------------------------------------------------------------------


def _start(session: Session) -> list[Result]:
    from zonemgr.store import zones
    from zonemgr.store.observe import all_zones

    boots: list[str] = []
    results: list[Result] = []
    for seen in all_zones(session.layout):
        name = seen.zonename
        try:
            _mend(session, name)
            state = zones.read_entry(session.layout, name).state
            if seen.state.active or state is not State.INSTALLED:
                continue
            if zones.load(session.layout, name).autoboot:
                boots.append(name)
            else:
                # Before any thread is started: a hook is a fork.
                results.append(_timed(session, name))
        except ZoneError as error:
            session.report(error, name)
            results.append(Result(name, "boot", False, 0.0, (error.text,)))
    request = Request("boot", "Boot")
    return results + _side_by_side([partial(_ask, session, name, request) for name in boots])


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


def _side_by_side(jobs: Sequence[Callable[[], Result]]) -> list[Result]:
    if len(jobs) < 2:
        return [job() for job in jobs]
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return [future.result() for future in [pool.submit(job) for job in jobs]]


# -- stop ---------------------------------------------------------------------------------------------------------


def _stop(session: Session, timeout_s: int) -> list[Result]:
    """Ask all living zones side by side; what is left after that is halted."""
    from zonemgr.store.observe import all_zones, state_of

    jobs: list[Callable[[], Result]] = []
    for seen in all_zones(session.layout):
        if seen.state.active:
            jobs.append(partial(_stop_one, session, seen.zonename, seen.state, timeout_s))
    results = _side_by_side(jobs)
    return [replace(done, ok=not state_of(session.layout, done.zonename).active) for done in results]


def _stop_one(session: Session, name: str, state: State, timeout_s: int) -> Result:
    if state is State.MOUNTED:
        return _ask(session, name, Request("unmount", "Unmount"))
    if state is State.RUNNING:
        grace_s = max(1, int(timeout_s * GRACE))
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
