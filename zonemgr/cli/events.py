"""``events``: what happened to zones, and with ``-f`` what happens, as it happens.

It reads the instance's event file, so it also sees zones without a supervisor and what the command line changed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

import click

from zonemgr.cli.output import Session, printable
from zonemgr.store.events import follow, recorded

_LEADING = ("time", "type", "zonename", "oldstate", "newstate")


def describe(event: Mapping[str, Any]) -> str:
    """One event for people: when, whose, what, and what else is known as name=value."""
    import time

    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(float(event.get("time", 0))))
    what = str(event.get("type", "?"))
    if "newstate" in event:
        what += f" {event.get('oldstate', '?')} -> {event['newstate']}"
    rest = " ".join(f"{name}={_value(value)}" for name, value in event.items() if name not in _LEADING)
    return printable(f"{when}  {event.get('zonename') or '-':<16} {what}  {rest}".rstrip())


def _value(value: object) -> str:
    import json

    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


@click.command()
@click.argument("names", metavar="[NAME...]", nargs=-1)
@click.option("-f", "--follow", "following", is_flag=True, help="Wait for more.")
@click.option("-a", "--all", "everything", is_flag=True, help="With -f: begin with what is recorded.")
@click.pass_obj
def events(session: Session, names: tuple[str, ...], following: bool, everything: bool) -> None:
    """Show the recorded events of zones, or with -f those that happen from now on."""
    source: Iterator[dict[str, Any]]
    source = follow(session.layout, from_start=everything) if following else recorded(session.layout)
    for event in source:
        if names and event.get("zonename") not in names:
            continue
        if session.json:
            session.emit(event, indent=None)
        else:
            session.data(describe(event))
        if following:
            sys.stdout.flush()
