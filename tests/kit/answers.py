"""What the program answers with ``--json`` is held against the table that the document is made from, whoever asks."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from zonemgr.cli import shapes
from zonemgr.errors import Exit

_VALUED = ("--root", "-R")


def check(words: Sequence[str], code: int, out: str) -> None:
    """Fails when ``zonemgr WORDS``, which ended with this status, printed what the document does not say."""
    ours = list(words[: words.index("--")] if "--" in words else words)
    verb = _verb(ours)
    if "--json" not in ours or verb is None or {"--help", "-h", "-?"} & {*ours}:
        return
    try:
        values = list(_values(out))
    except ValueError:
        assert _has_other_output(verb), f"zonemgr {' '.join(words)} printed no JSON: {out[:200]}"
        return
    if not values:
        assert code != Exit.OK or _has_other_output(verb), f"zonemgr {' '.join(words)} has no answer"
    for value in values:
        wrong = shapes.unlike(verb, value) and shapes.unlike(verb, value, line=True)
        assert not wrong, f"zonemgr {' '.join(words)}: {'; '.join(wrong)} (zonemgr/cli/shapes.py is the document)"


def _verb(words: Sequence[str]) -> str | None:
    if "--version" in words:
        return "--version"
    values = {number + 1 for number, word in enumerate(words) if word in _VALUED}
    return next((word for number, word in enumerate(words) if word[:1] != "-" and number not in values), None)


def _values(text: str) -> Iterator[Any]:
    """One JSON value after the other.  Raises ValueError for anything else."""
    decoder, rest = json.JSONDecoder(), text.lstrip()
    while rest:
        value, end = decoder.raw_decode(rest)
        yield value
        rest = rest[end:].lstrip()


def _has_other_output(verb: str) -> bool:
    """It has output that is no JSON, or may have none at all."""
    return any(verb in answer.verbs and (answer.shape is None or answer.lines) for answer in shapes.ANSWERS)
