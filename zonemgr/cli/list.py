"""``list``: which zones there are and how they are (reference, section 6.3).  Starts nothing and needs no privilege."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import click

from zonemgr.cli.output import Session, printable
from zonemgr.errors import Exit, NoSuchZoneError, PlatformError, UsageError, ZoneError
from zonemgr.model.states import GLOBAL_ZONE, State
from zonemgr.store import readiness
from zonemgr.store.observe import Observation, all_zones, observe
from zonemgr.store.paths import Layout

_LINE = "{:>4} {:<16} {:<10} {:<30} {:<8} {:<6}"


@dataclass(frozen=True, slots=True)
class Row:
    """One zone as it is listed."""

    zonename: str
    state: State
    zone_id: int | None
    zonepath: str
    uuid: str
    brand: str
    ip_type: str
    label: str = ""  # the zone's mandatory label, or the one that it is to have
    limits: tuple[dict[str, Any], ...] = ()  # of a living zone: as configured, and as the kernel holds them
    told: readiness.Told | None = None  # of a zone that runs: whether it is ready, and what its init says

    @property
    def id_text(self) -> str:
        return "-" if self.zone_id is None else str(self.zone_id)

    @property
    def ip_text(self) -> str:
        return "excl" if self.ip_type == "exclusive" else self.ip_type

    def plain(self) -> str:
        return self.zonename

    def verbose(self) -> str:
        path = printable(self.zonepath)
        return _LINE.format(self.id_text, self.zonename, self.state.label, path, self.brand, self.ip_text)

    @property
    def ready_text(self) -> str:
        return "-" if self.told is None else "yes" if self.told.ready else "no"

    def parsable(self) -> str:
        """Fields may be added at the end; only the path can hold a colon."""
        path = printable(self.zonepath).replace(":", "\\:")
        fields = [self.id_text, self.zonename, self.state.label, path, self.uuid, self.brand, self.ip_text]
        label = printable(self.label).replace(":", "\\:")
        return ":".join([*fields, label] if label else fields)

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.zone_id,
            "zonename": self.zonename,
            "state": self.state.label,
            "zonepath": self.zonepath,
            "uuid": self.uuid or None,
            "brand": self.brand,
            "ip-type": self.ip_type,
            "label": self.label or None,
            "limits": list(self.limits),
            "ready": self.told.ready if self.told else None,
            "status": (self.told.status if self.told else "") or None,
        }


HEADER = _LINE.format("ID", "NAME", "STATUS", "PATH", "BRAND", "IP")
GLOBAL = Row(GLOBAL_ZONE, State.RUNNING, 0, "/", "", "host", "shared", told=readiness.Told("", ready=True))


def row(layout: Layout, seen: Observation) -> Row:
    """What is listed of an observed zone."""
    return Row(
        seen.zonename,
        seen.state,
        seen.zone_id,
        seen.zonepath,
        seen.uuid,
        seen.brand,
        seen.ip_type,
        seen.label,
        seen.instance.limits if seen.instance and seen.state.active else (),
        readiness.of(layout, seen),
    )


def select(zones: Sequence[Row], minimum: State) -> list[Row]:
    """The living zones first, by id, whatever their state; then the others from the minimum state up, by name."""
    living = sorted((zone for zone in zones if zone.state.active), key=lambda zone: zone.zone_id or 0)
    others = [zone for zone in zones if not zone.state.active and zone.state >= minimum]
    return living + sorted(others, key=lambda zone: zone.zonename)


def _named(session: Session, layout: Layout, names: Sequence[str]) -> tuple[list[Row], int]:
    """The named zones in the order they were named, and the exit status."""
    rows: list[Row] = []
    status = int(Exit.OK)
    for name in dict.fromkeys(names):
        if name == GLOBAL_ZONE:
            rows.append(GLOBAL)
            continue
        try:
            rows.append(row(layout, observe(layout, name)))
        except ZoneError as error:
            session.report(error, None if isinstance(error, NoSuchZoneError) else name)
            status = int(Exit.ERROR)
    return rows, status


@click.command()
@click.argument("names", metavar="[NAME...]", nargs=-1)
@click.option("-c", "--configured", is_flag=True, help="All zones that are configured.")
@click.option("-i", "--installed", is_flag=True, help="All zones that are installed.")
@click.option("-v", "--verbose", is_flag=True, help="A table with ids, states, paths, brands.")
@click.option("-p", "--parsable", is_flag=True, help="id:name:state:path:uuid:brand:ip[:label]")
@click.option("-n", "--no-global", is_flag=True, help="Leave out the global zone.")
@click.pass_obj
def list_zones(
    session: Session,
    names: tuple[str, ...],
    configured: bool,
    installed: bool,
    verbose: bool,
    parsable: bool,
    no_global: bool,
) -> int:
    """List zones: the living ones, or with -i and -c also those on disk, or those that are named."""
    if verbose and parsable:
        raise ZoneError("list -p and -v are mutually exclusive.")
    if names and (configured or installed):
        raise UsageError("-c and -i do not go with zone names")
    if names:
        rows, status = _named(session, session.layout, names)
    else:
        minimum = State.CONFIGURED if configured else State.INSTALLED if installed else State.READY
        damaged: dict[str, PlatformError] = {}
        found = select([row(session.layout, seen) for seen in all_zones(session.layout, damaged)], minimum)
        wrong = sorted(damaged.keys() - {zone.zonename for zone in found if zone.state.active})
        for name in wrong:
            session.report(damaged[name], name)
        rows, status = [*([] if no_global else [GLOBAL]), *found], int(Exit.ERROR if wrong else Exit.OK)
    show(session, rows, verbose=verbose, parsable=parsable)
    return status


def show(session: Session, rows: Sequence[Row], *, verbose: bool, parsable: bool) -> None:
    """Print the rows in the form that was asked for."""
    if session.json:
        session.emit([zone.to_json() for zone in rows])
        return
    if not verbose:
        for zone in rows:
            session.data(zone.parsable() if parsable else zone.plain())
    elif rows:
        more = _more_columns(rows)
        session.data(" ".join([HEADER, *more]))
        for zone in rows:
            session.data(" ".join([zone.verbose(), *(text(zone) for text in more.values())]))


def _more_columns(rows: Sequence[Row]) -> dict[str, Callable[[Row], str]]:
    """Beyond those of the reference, where there is something to tell: who is not ready yet, and labels."""
    found: dict[str, Callable[[Row], str]] = {}
    if any(zone.ready_text == "no" for zone in rows):
        found["READY"] = lambda zone: f"{zone.ready_text:<5}"
    if any(zone.label for zone in rows):
        found["LABEL"] = lambda zone: printable(zone.label) or "-"
    return found
