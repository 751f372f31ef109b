"""``uninstall``: a zone's root goes, its configuration stays.  The way out of *incomplete*.

A brand that cannot be used any more must not make its zones immortal: with -F its part is left out.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from zonemgr.brandkit.base import ZoneInfo
from zonemgr.cli.install import administration, check, forget, run_hook, say_of, undisturbed
from zonemgr.cli.output import Session
from zonemgr.errors import BrandError, Exit, StateError, ZoneError, message
from zonemgr.model.states import State
from zonemgr.store.observe import Observation
from zonemgr.store.paths import Layout

NOTE_S = 5.0  # how long a supervisor is given to say goodbye to its console
NO_TERMINAL = "Input not from terminal and -F not specified: uninstall not done."


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("name", metavar="NAME")
@click.argument("arguments", metavar="[BRAND OPTIONS]", nargs=-1, type=click.UNPROCESSED)
@click.option("-F", "--force", is_flag=True, help="Do not ask.")
@click.pass_obj
def uninstall(session: Session, name: str, arguments: tuple[str, ...], force: bool) -> int:
    """Destroy a zone's root and all that is in it.  The configuration stays."""
    with session.acting_on(name):
        return _uninstall(session, name, arguments, force)


def _uninstall(session: Session, name: str, arguments: Sequence[str], force: bool) -> int:
    seen = check(session, "uninstall", name)
    if not force and not _confirmed(session, name):
        return Exit.OK
    tell_supervisor(session.layout, name)
    with administration(session.layout, name, say_of(session, name)):
        seen = check(session, "uninstall", name)
        _destroy(session, seen, arguments, force)
    return Exit.OK


def _confirmed(session: Session, name: str) -> bool:
    """Ask; the default is no.  Raises StateError when there is nobody to be asked."""
    if not sys.stdin.isatty():
        raise StateError(NO_TERMINAL)
    return session.agrees(message("Are you sure you want to uninstall zone {zonename}", zonename=name))


def tell_supervisor(layout: Layout, name: str) -> None:
    """A supervisor that still lives tells its console client and leaves.  Whether it does changes nothing for us."""
    from zonemgr.wire import varlink
    from zonemgr.wire.client import Client, EmptyReply, RemoteError, connect

    try:
        connection = connect(layout.zone_run(name) / "door")
        connection.settimeout(NOTE_S)
        with Client(connection) as client:
            client.call(f"{varlink.ZONE}.NoteUninstalling", {})
    except (OSError, EmptyReply, RemoteError, ZoneError):
        return


def _destroy(session: Session, seen: Observation, arguments: Sequence[str], force: bool) -> None:
    from zonemgr.brandkit import zonepath
    from zonemgr.store import zones

    layout, name = session.layout, seen.zonename
    say = say_of(session, name)
    where = zones.read_entry(layout, name).zonepath
    zonepath.refuse_mounts(f"{where}/root", say)
    _brand_part(session, "preuninstall", seen, arguments, force)
    claim(layout, name, "uninstall")
    _brand_part(session, "uninstall", seen, arguments, force)
    with undisturbed():
        zonepath.cleanup(where, say)
        forget(layout, name)


def claim(layout: Layout, name: str, verb: str) -> None:
    """Make the zone incomplete, unless a boot was faster: it may have begun since we looked.  Raises StateError."""
    from zonemgr.store import zones
    from zonemgr.store.observe import state_of

    before = zones.read_entry(layout, name)
    zones.set_state(layout, name, State.INCOMPLETE)
    state = state_of(layout, name)
    if state.active:
        zones.set_state(layout, name, before.state)
        zones.update_entry(layout, name, uuid=before.uuid)
        raise StateError("{verb} operation is invalid for {state} zones.", verb=verb, state=state.label)


def _brand_part(
    session: Session, hook: str, seen: Observation, arguments: Sequence[str], force: bool
) -> None:
    """A hook of the brand's.  Raises ZoneError when it fails, unless that is not to matter."""
    from zonemgr.brandkit import loader
    from zonemgr.store import zones

    layout, name = session.layout, seen.zonename
    if hook == "preuninstall" and seen.state is not State.INSTALLED:
        return
    try:
        zone = zones.load(layout, name)
        brand = loader.load(zone.brand, layout)
        info = ZoneInfo.of(zone, str(layout.root))
        status = run_hook(session, brand, hook, info, arguments, brand.uninstall_deadline_s)
        if status:
            raise BrandError("{hook} of brand '{brand}' failed", hook=hook, brand=brand.name)
    except ZoneError as error:
        if not force:
            raise
        session.message(message("{why}, ignoring", why=error.text), name)
