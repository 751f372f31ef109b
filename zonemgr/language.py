"""Catalogues of messages in other languages: ``locale/LANGUAGE.po``, in gettext's own format, read as they are.

Loaded only for a caller whose language is not English.  A message that no catalogue has stays English.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Callable, Iterator
from pathlib import Path

FOLDER = Path(__file__).parent / "locale"


@functools.lru_cache(maxsize=4)
def translation(locale: str) -> Callable[[str], str] | None:
    """What makes a format of this locale's language out of an English one; None when there is no catalogue."""
    for name in _candidates(locale):
        try:
            text = (FOLDER / f"{name}.po").read_text("utf-8")
        except OSError:
            continue
        catalogue = {english: other for english, other in entries(text) if english and other}
        return lambda form: catalogue.get(form, form)
    return None


def _candidates(locale: str) -> Iterator[str]:
    """``de_AT.UTF-8@euro``: de_AT, then de.  Nothing that could be another file's path."""
    match = re.match(r"([a-z]{2,3})(_[A-Z]{2})?(?![^.@])", locale)
    if match:
        yield from dict.fromkeys((match[0], match[1]))


def entries(text: str) -> Iterator[tuple[str, str]]:
    """(msgid, msgstr) of a catalogue; entries marked fuzzy are left out."""
    for block in re.split(r"\n\s*\n", text):
        parts: dict[str, str] = {}
        current = ""
        fuzzy = False
        for line in block.splitlines():
            if line.startswith("#"):
                fuzzy = fuzzy or (line.startswith("#,") and "fuzzy" in line)
                continue
            word, _, rest = line.partition(" ")
            if word in ("msgid", "msgstr"):
                current, line = word, rest
                parts[current] = ""
            if current and line.startswith('"'):
                parts[current] += ast.literal_eval(line)
        if not fuzzy and "msgid" in parts:
            yield parts["msgid"], parts.get("msgstr", "")
