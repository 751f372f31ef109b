"""``brands``: every brand on this host, also the broken ones, with what is wrong with them."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import click

from zonemgr.cli.output import Session, columns
from zonemgr.errors import Exit, message

if TYPE_CHECKING:
    from zonemgr.brandkit.loader import Found


@click.command()
@click.pass_obj
def brands(session: Session) -> int:
    """List the brands found on this host.  The status is 1 when one of them is broken; one that is
    unusable is sound, but this host lacks something that its zones need."""
    from zonemgr.brandkit import loader

    found = [_usable(session, brand) for brand in loader.discover(session.layout)]
    if session.json:
        session.emit([loader.as_json(brand) for brand in found])
    else:
        rows = [[brand.name, brand.version or "-", brand.source, brand.state, brand.path] for brand in found]
        for line in columns([["NAME", "VERSION", "SOURCE", "STATE", "PATH"], *rows]):
            session.data(line)
    for brand in found:
        if brand.error:
            session.message(message("brand '{brand}': {why}", brand=brand.name, why=brand.error))
    return Exit.ERROR if any(brand.state == loader.BROKEN for brand in found) else Exit.OK


def _usable(session: Session, found: Found) -> Found:
    """The brand as it was found, unless this host lacks what its zones need."""
    from zonemgr.brandkit import loader
    from zonemgr.brandkit.verify import lacks

    if found.state != loader.OK:
        return found
    why = lacks(loader.load(found.name, session.layout))
    return dataclasses.replace(found, state="unusable", error=why) if why else found
