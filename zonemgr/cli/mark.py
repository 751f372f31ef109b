"""``mark``: say what state a zone's files are in, when the record is wrong and somebody knows better."""

from __future__ import annotations

import click

from zonemgr.cli.install import administration, check, forget, say_of, undisturbed
from zonemgr.cli.output import Session
from zonemgr.errors import Exit, PlatformError, UsageError
from zonemgr.model.states import State


@click.command()
@click.argument("name", metavar="NAME")
@click.argument("state", metavar="STATE")
@click.option("-F", "--force", is_flag=True, help="Also configured and installed.")
@click.pass_obj
def mark(session: Session, name: str, state: str, force: bool) -> int:
    """Record that a zone is incomplete, with -F also configured or installed.  Its files stay as they are."""
    with session.acting_on(name):
        wanted = _state(state, force)
        check(session, "mark", name)
        with administration(session.layout, name, say_of(session, name)):
            check(session, "mark", name)
            with undisturbed():
                _mark(session, name, wanted)
    return Exit.OK


def _state(text: str, force: bool) -> State:
    allowed = (State.INCOMPLETE, State.CONFIGURED, State.INSTALLED) if force else (State.INCOMPLETE,)
    for state in allowed:
        if text == state.label:
            return state
    raise UsageError(
        "mark takes {states}, not '{text}'", states=" or ".join(state.label for state in allowed), text=text
    )


def _mark(session: Session, name: str, state: State) -> None:
    import os

    from zonemgr.cli.uninstall import claim
    from zonemgr.store import idranges, zones

    layout = session.layout
    zone = zones.load(layout, name)
    if state is State.INSTALLED and not os.path.isdir(f"{zone.zonepath}/root"):
        raise PlatformError("{path}/root is not there", path=zone.zonepath)
    entry = zones.read_entry(layout, name)
    if state is State.CONFIGURED and entry.layers:
        raise PlatformError("its root is in layers, which go when nothing names them: uninstall it instead")
    if entry.state is State.INSTALLED:
        claim(layout, name, "mark")  # not while it boots
    if state is State.CONFIGURED:
        forget(layout, name)
        return
    entry = zones.set_state(layout, name, State.INCOMPLETE)
    base = idranges.allocate(layout, name, entry.uuid)
    zones.update_entry(layout, name, uid_base=base, brand=zone.brand, zonepath=zone.zonepath)
    if state is State.INSTALLED:
        zones.set_state(layout, name, State.INSTALLED)
