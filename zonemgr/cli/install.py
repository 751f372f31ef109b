"""``install``, and what verbs that change a zone's files have in common.  No supervisor is needed.

The brand does the work in a hook.  The zone is *incomplete* from the first change on the disk to the last, so that
whatever interrupts us, ``uninstall`` is the way out.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import click

from zonemgr.brandkit.base import Brand, ZoneInfo
from zonemgr.brandkit.hooks import HookExit
from zonemgr.cli.output import Session
from zonemgr.errors import BrandError, BusyError, Exit, StateError, ZoneError, message
from zonemgr.model.states import State
from zonemgr.model.zone import Zone
from zonemgr.store.files import make_directory
from zonemgr.store.locks import FileLock
from zonemgr.store.observe import Observation
from zonemgr.store.paths import Layout

BUSY = "another zonemgr may have an operation in progress."


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("name", metavar="NAME")
@click.argument("arguments", metavar="[BRAND OPTIONS]", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def install(session: Session, name: str, arguments: tuple[str, ...]) -> int:
    """Give a configured zone its root.  What follows NAME is for the zone's brand."""
    with session.acting_on(name):
        return _install(session, name, arguments)


# -- what such verbs share ---------------------------------------------------------------------------------------------


def require_root(verb: str) -> None:
    """Raises StateError for everybody but root."""
    if os.geteuid() != 0:
        raise StateError("only a privileged user may {verb} a zone.", verb=verb)


def check(session: Session, verb: str, name: str) -> Observation:
    """The courtesy checks of section 6.1 of the reference.  Raises ZoneError."""
    from zonemgr.model.grid import client_check, name_check
    from zonemgr.store.observe import observe
    from zonemgr.wire.start import refuse_from_within

    require_root(verb)
    name_check(verb, name)
    mend(session, name)
    seen = observe(session.layout, name)
    client_check(verb, seen.state if seen.state.active else None, seen.state)
    refuse_from_within(name)
    return seen


def mend(session: Session, name: str) -> None:
    """Finish or undo first what an interrupted verb has left of the zone.  Raises ZoneError."""
    from zonemgr.store import journal

    if journal.pending(session.layout, name):
        with administration(session.layout, name, say_of(session, name)):
            pass  # whoever takes the lock mends


@contextmanager
def administration(layout: Layout, name: str, say: Callable[[str], None] = lambda _: None) -> Iterator[None]:
    """The zone's administration lock; who finds it taken is told so at once.  Raises BusyError.

    What an interrupted verb has left of the zone (see ``relocate``) is finished or undone first.
    """
    from zonemgr.store import journal

    make_directory(layout.zone_run(name), 0o700)
    lock = FileLock(layout.zone_run(name) / "admin.lock")
    if not lock.acquire(blocking=False):
        raise BusyError(BUSY)
    try:
        if journal.pending(layout, name):
            _mend(layout, name, say)
        yield
    finally:
        lock.release()


@contextmanager
def at_rest(layout: Layout, name: str) -> Iterator[None]:
    """In here nothing brings the zone up: its files are being read.  Raises BusyError when it just comes up."""
    from zonemgr.store.locks import use_lock

    with use_lock(layout, name, shared=True):
        yield


def _mend(layout: Layout, name: str, say: Callable[[str], None]) -> None:
    from zonemgr.brandkit import relocate

    say(message("mending what an interrupted move, rename, clone or detach has left"))
    with undisturbed():
        relocate.recover(layout, name, say)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Signals from the terminal are not for us while a hook works on the disk."""
    numbers = (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP)
    previous = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def say_of(session: Session, name: str) -> Callable[[str], None]:
    """What a hook prints, at the operator's terminal."""
    return lambda text: session.message(text, name)


def run_hook(
    session: Session, brand: Brand, hook: str, info: ZoneInfo, arguments: Sequence[str], deadline_s: float
) -> int:
    """Run a hook that takes its verb's arguments; its exit status (see ``call_hook``)."""
    return call_hook(session, brand, hook, info, tuple(arguments), deadline_s=deadline_s)


def call_hook(
    session: Session, brand: Brand, hook: str, info: ZoneInfo, *arguments: object, deadline_s: float
) -> int:
    """Run a hook of the brand; its exit status.  One that did not end by itself has been reported, and is fatal."""
    from zonemgr.brandkit.hooks import HookError, run_brand_hook
    from zonemgr.cli.progress import Bar

    say, bar = say_of(session, info.zonename), Bar(session)
    try:
        with undisturbed():
            return run_brand_hook(
                brand, hook, info, *arguments, deadline_s=deadline_s, say=say, reported=bar.show
            )
    except HookError as error:
        session.report(error, info.zonename)
        return HookExit.FATAL
    finally:
        bar.close()


# -- install ----------------------------------------------------------------------------------------------------


def _install(session: Session, name: str, arguments: Sequence[str]) -> int:
    from zonemgr.brandkit import loader
    from zonemgr.store import idranges, zones

    layout = session.layout
    check(session, "install", name)
    zone = zones.load(layout, name)
    brand = loader.load(zone.brand, layout)
    if not brand.overrides("install"):
        raise BrandError("Missing brand install command.")
    with administration(layout, name):
        check(session, "install", name)  # once more: whoever held the lock may have installed it
        verify_for(session, zone, "install")
        entry = zones.set_state(layout, name, State.INCOMPLETE)
        base = idranges.allocate(layout, name, entry.uuid)
        zones.update_entry(layout, name, uid_base=base, brand=zone.brand, zonepath=zone.zonepath)
        info = ZoneInfo.of(zone, str(layout.root))
        status = run_hook(session, brand, "install", info, arguments, brand.install_deadline_s)
        status = installed(session, info, status, "install")
        return status or finish(session, brand, "postinstall", info, arguments)


def verify_for(session: Session, zone: Zone, verb: str) -> None:
    """Verify, which also makes the zonepath; a zonepath that was made for nothing goes again.  Raises ZoneError."""
    from zonemgr.cli.verify import verify_all
    from zonemgr.store import zones

    was_there = os.path.lexists(zone.zonepath)
    try:
        verify_all(session, zone, zones.read_entry(session.layout, zone.zonename), verb)
    except (ZoneError, KeyboardInterrupt):
        if not was_there and os.path.lexists(zone.zonepath):
            os.rmdir(zone.zonepath)
        raise


def installed(session: Session, info: ZoneInfo, status: int, verb: str) -> int:
    """What the exit status of an install or clone hook makes of the zone (reference, section 6.4)."""
    from zonemgr.brandkit import zonepath
    from zonemgr.store import zones

    layout, name = session.layout, info.zonename
    if status == HookExit.OK:
        zones.set_state(layout, name, State.INSTALLED)
        return Exit.OK
    # The reference leaves a zone whose install options were wrong incomplete.  Nothing was made: no reason to.
    if status in (HookExit.USAGE, HookExit.NOT_COMPLETED):
        with undisturbed():
            zonepath.cleanup(info.zonepath, say_of(session, name))
            forget(layout, name)
        return Exit.USAGE if status == HookExit.USAGE else Exit.ERROR
    raise BrandError("{verb} of brand '{brand}' failed; uninstall cleans up", verb=verb, brand=info.config.brand)


def finish(session: Session, brand: Brand, hook: str, info: ZoneInfo, arguments: Sequence[str]) -> int:
    """Run the hook that follows install or clone.  Raises BrandError, the zone being incomplete, when it fails."""
    from zonemgr.store import zones

    if run_hook(session, brand, hook, info, arguments, brand.install_deadline_s):
        zones.set_state(session.layout, info.zonename, State.INCOMPLETE)
        raise BrandError("{hook} of brand '{brand}' failed; uninstall cleans up", hook=hook, brand=brand.name)
    return Exit.OK


def forget(layout: Layout, name: str) -> None:
    """The zone is configured again: nothing is on the disk, and its ids are free for others."""
    from zonemgr.brandkit import relocate

    relocate.forget(layout, name)
