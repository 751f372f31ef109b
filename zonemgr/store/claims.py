"""Which zone holds which address, and which port of the host: at most one each, also when two zones boot at once.

A file for each claim in ``/run/zonemgr/claims``, with the holder's name in it, changed under the host's lock: what a
boot costs does not grow with the number of zones.  A claim counts as long as its holder has a ledger: what a zone that
was killed half-way has left behind is in there too, and is undone from there.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from zonemgr.errors import PlatformError
from zonemgr.model import network
from zonemgr.store import hostledger
from zonemgr.store.files import make_directory, read_bytes, write_atomic
from zonemgr.store.paths import Layout

_SLASH = "_"  # of a claim, in its file's name; neither addresses nor ports have one


def holders(layout: Layout, claim: str) -> Iterator[str]:
    """The living zones that hold the claim, or one that cannot be held beside it."""
    for other in _rivals(layout, claim):
        zone = (read_bytes(_place(layout, other)) or b"").decode(errors="replace")
        if zone and (layout.zone_run(zone) / "ledger.jsonl").exists():
            yield zone


def _rivals(layout: Layout, claim: str) -> Iterable[str]:
    """The claims that could be in the way: of an address it is that one, of a port all that begin alike."""
    if not network.is_port(claim):
        return (claim,)
    return (other for other in _all(layout) if network.collide(claim, other))


def _all(layout: Layout) -> Iterator[str]:
    try:
        names = os.listdir(_folder(layout))
    except FileNotFoundError:
        return iter(())
    return (name.replace(_SLASH, "/") for name in names if not name.startswith("."))


def take(layout: Layout, zonename: str, claim: str) -> None:
    """The zone holds the claim.  Raises PlatformError with the holder's name."""
    with hostledger.lock(layout):
        for zone in holders(layout, claim):
            if zone != zonename:
                what = network.describe_claim(claim)
                raise PlatformError("{what} is in use by zone {zone}", what=what, zone=zone)
        make_directory(_folder(layout))
        write_atomic(_place(layout, claim), zonename, durable=False)


def give_back(layout: Layout, zonename: str, claim: str) -> None:
    """The zone holds the claim no more; it may not have held it."""
    with hostledger.lock(layout):
        if read_bytes(_place(layout, claim)) == zonename.encode():
            _place(layout, claim).unlink(missing_ok=True)


def _folder(layout: Layout) -> Path:
    return layout.run / "claims"


def _place(layout: Layout, claim: str) -> Path:
    return _folder(layout) / claim.replace("/", _SLASH)
