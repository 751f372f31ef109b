"""``apply NAME`` and ``confirm``: a running zone is brought to its configuration, and the change is kept.

The supervisor decides what can be done while the zone runs, and does all of that or nothing; here it is shown property
by property.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import click

from zonemgr.cli.lifecycle import INTERRUPTED, Conversation, Request, answers, run
from zonemgr.cli.output import Session, columns
from zonemgr.errors import Exit, UsageError

_UNITS: Final[Mapping[str, int]] = {"s": 1, "m": 60, "h": 3600}
_SHOWN_MAX: Final = 60  # characters of a value in the table


def seconds(text: str) -> int:
    """``60``, ``60s``, ``2m`` or ``1h`` as seconds.  Raises UsageError."""
    number, unit = (text[:-1], text[-1]) if text[-1:] in _UNITS else (text, "s")
    if not number.isdigit() or not int(number):
        raise UsageError("'{text}' is not a time such as 60s, 5m or 1h", text=text)
    return int(number) * _UNITS[unit]


def apply(session: Session, names: Sequence[str], *, dry_run: bool, patience: str | None) -> int:
    """All of ``apply NAME...``; the exit status."""
    if dry_run and patience is not None:
        raise UsageError("--dry-run changes nothing that could be confirmed")
    parameters = {"dry_run": dry_run or None, "confirm": None if patience is None else seconds(patience)}
    talks, code = answers(session, names, Request("apply", "Apply", parameters))
    if code == INTERRUPTED:
        return code
    if session.json:
        session.emit([{**talk.to_json(), **_given(talk)} for talk in talks])
        return code
    for talk in talks:
        _show(session, talk, dry_run=dry_run, several=len(talks) > 1)
    return code


def _given(talk: Conversation) -> dict[str, Any]:
    return {"changes": talk.result.get("changes") or [], "steps": talk.result.get("steps") or []}


def _show(session: Session, talk: Conversation, *, dry_run: bool, several: bool) -> None:
    changes: Sequence[Mapping[str, Any]] = _given(talk)["changes"]
    if not changes:
        if talk.exit_code == Exit.OK and not talk.note:
            session.note("nothing to apply: the zone is as it is configured", talk.zonename)
        return
    head = ["PROPERTY", "OLD", "NEW", "WHEN", "STATE", "WHY"]
    rows = [
        [
            change["property"],
            _value(change.get("old")),
            _value(change.get("new")),
            change["when"],
            "would be applied" if dry_run and change["state"] == "applied" else change["state"],
            change.get("why") or "",
        ]
        for change in changes
    ]
    if several:
        head, rows = ["ZONE", *head], [[talk.zonename, *row] for row in rows]
    for line in columns([head, *rows]):
        session.data(line)


def _value(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, dict):
        text = " ".join(f"{name}={_value(item)}" for name, item in value.items())
    elif isinstance(value, list):
        text = ",".join(map(_value, value)) or "-"
    else:
        text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _SHOWN_MAX else f"{text[: _SHOWN_MAX - 3]}..."


@click.command()
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@click.option("--revert", is_flag=True, help="Take the change back at once, instead.")
@click.pass_obj
def confirm(session: Session, names: tuple[str, ...], revert: bool) -> int:
    """Keep the change that 'zonemgr apply --confirm' has made to running zones."""
    request = Request("confirm", "Confirm", {"revert": revert or None})
    return run(session, names, request)
