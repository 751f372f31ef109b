"""Which zone holds which address, and which port of the host: at most one each, also when two zones boot at once.

One file for the instance, ``/run/zonemgr/claims.json``, changed under the host's lock.  A claim counts as long as its
holder has a ledger: what a zone that was killed half-way has left behind is in there too, and is undone from there.
"""

from __future__ import annotations

from zonemgr.errors import PlatformError
from zonemgr.model import network
from zonemgr.store import hostledger
from zonemgr.store.files import read_json, write_json
from zonemgr.store.paths import Layout


def holders(layout: Layout) -> dict[str, str]:
    """Claim -> zone, for the claims of zones that live."""
    table = read_json(layout.run / "claims.json") or {}
    living = {zone for zone in table.values() if (layout.zone_run(zone) / "ledger.jsonl").exists()}
    return {claim: zone for claim, zone in table.items() if zone in living}


def take(layout: Layout, zonename: str, claim: str) -> None:
    """The zone holds the claim.  Raises PlatformError with the holder's name."""
    with hostledger.lock(layout):
        held = holders(layout)
        for other, zone in held.items():
            if zone != zonename and network.collide(claim, other):
                what = network.describe_claim(claim)
                raise PlatformError("{what} is in use by zone {zone}", what=what, zone=zone)
        if held.get(claim) != zonename:
            write_json(layout.run / "claims.json", {**held, claim: zonename})


def give_back(layout: Layout, zonename: str, claim: str) -> None:
    """The zone holds the claim no more; it may not have held it."""
    with hostledger.lock(layout):
        held = holders(layout)
        if held.get(claim) == zonename:
            del held[claim]
            write_json(layout.run / "claims.json", held)
