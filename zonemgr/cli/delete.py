"""``delete``: a zone's configuration ends.  What is below its zonepath is left alone: that is ``uninstall``'s."""

from __future__ import annotations

import click

from zonemgr.cli.output import Session
from zonemgr.cli.scope import require_write_access
from zonemgr.errors import NoSuchZoneError, PlatformError, StateError, message
from zonemgr.model.grid import name_check
from zonemgr.model.states import State
from zonemgr.store import config as store
from zonemgr.store import idranges, observe, zones


@click.command()
@click.argument("zonename", metavar="NAME")
@click.option("-F", "--force", is_flag=True, help="Do not ask, and do it although the zone is installed.")
@click.pass_obj
def delete(session: Session, zonename: str, force: bool) -> None:
    """Forget a zone's configuration.

    The zone must be uninstalled; -F forgets an installed one and leaves its files where they are.
    """
    with session.acting_on(zonename):
        name_check("delete", zonename)
        delete_zone(session, zonename, force=force)


def delete_zone(session: Session, zonename: str, *, force: bool) -> None:
    """Check, ask, delete.  Raises ZoneError."""
    layout = session.layout
    if not zones.exists(layout, zonename):
        raise NoSuchZoneError(zonename)
    require_write_access(layout, "delete")
    damaged = False
    try:
        entry = zones.read_entry(layout, zonename)
    except PlatformError as error:
        if not force:
            error.add_note(message("delete -F forgets the zone, and leaves its files where they are"))
            raise
        entry, damaged = zones.damaged(layout, zonename), True
    try:
        state = observe.state_of(layout, zonename)
    except PlatformError:
        state = entry.state
    if state.active:
        raise StateError("delete operation is invalid for {state} zones.", state=state.label)
    if state is not State.CONFIGURED and not force:
        raise StateError(
            "Zone {zonename} not in configured state; delete not allowed.  Use -F to force delete.",
            zonename=zonename,
        )
    if entry.layers:
        raise StateError("its root is in layers, which go when nothing names them: uninstall it first")
    session.confirm(
        message("Are you sure you want to delete zone {zonename}", zonename=zonename), force=force
    )
    store.delete(layout, zonename)
    if entry.uid_base is not None or damaged:
        idranges.release(layout, zonename)
    if state is not State.CONFIGURED:
        session.note(message("the files below {path} are left where they are", path=entry.zonepath), zonename)
