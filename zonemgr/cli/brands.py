"""``brands``: every brand on this host, also the broken ones, with what is wrong with them."""

from __future__ import annotations

import click

from zonemgr.cli.output import Session, columns
from zonemgr.errors import Exit


@click.command()
@click.pass_obj
def brands(session: Session) -> int:
    """List the brands found on this host.  The status is 1 when one of them is broken."""
    from zonemgr.brandkit import loader

    found = loader.discover(session.layout)
    if session.json:
        session.emit([loader.as_json(brand) for brand in found])
    else:
        rows = [[brand.name, brand.version or "-", brand.source, brand.state, brand.path] for brand in found]
        for line in columns([["NAME", "VERSION", "SOURCE", "STATE", "PATH"], *rows]):
            session.data(line)
    for brand in found:
        if brand.error:
            session.message(f"brand '{brand.name}': {brand.error}")
    return Exit.ERROR if any(brand.error for brand in found) else Exit.OK
