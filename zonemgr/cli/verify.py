"""``verify``: whether a zone could be installed and booted on this host.  Changes nothing."""

from __future__ import annotations

import click

from zonemgr.cli.output import Session
from zonemgr.errors import message
from zonemgr.model.zone import Zone
from zonemgr.store.zones import Entry


@click.command()
@click.argument("name", metavar="NAME")
@click.pass_obj
def verify(session: Session, name: str) -> int:
    """Check a zone's configuration against this host: zonepath, file systems, links, brand, privileges."""
    from zonemgr.model.grid import client_check, name_check
    from zonemgr.store import observe, zones

    with session.acting_on(name):
        name_check("verify", name)
        seen = observe.observe(session.layout, name)
        client_check("verify", seen.state if seen.state.active else None, seen.state)
        zone = zones.load(session.layout, name)
        verify_all(session, zone, zones.read_entry(session.layout, name), "verify")
        for setting in zone.without_effect():
            session.message(message("WARNING: {setting} has no effect yet", setting=setting), name)
    return 0


def verify_all(session: Session, zone: Zone, entry: Entry, command: str) -> None:
    """Both halves of the verification, on behalf of a verb.  Raises ZoneError."""
    from zonemgr.brandkit import loader
    from zonemgr.brandkit.base import ZoneInfo
    from zonemgr.brandkit.verify import verify_brand
    from zonemgr.store import settings
    from zonemgr.store.verify import verify_zone

    def say(text: str) -> None:
        session.message(text, zone.zonename)

    layout = session.layout
    brand = loader.load(zone.brand, layout)
    verify_zone(layout, zone, entry, command, say)
    info = ZoneInfo.of(zone, str(layout.root))
    verify_brand(brand, info, command, deadline_s=settings.load(layout).hook_s, say=say)
