"""How far a hook has come: a line of its output that is meant for a bar on the operator's terminal, not for his eyes.

A hook calls ``report``; whoever runs it takes such lines out of what the hook says, and draws, or does nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

_MARK: Final = "\x1f"  # no line of a program begins with it
_TEXT_MAX: Final = 80


@dataclass(frozen=True, slots=True)
class Report:
    """``done`` of ``total`` (0: nobody knows how many there will be) of something, as the operator is told of it."""

    what: str
    done: int
    total: int


def report(what: str, done: int, total: int = 0) -> None:
    """Tell how far the work has come; ``what`` is a word or two, for example ``configuring packages``."""
    print(f"{_MARK}{done}/{total} {what}", flush=True)


def parse(line: str) -> Report | None:
    """The report in a line of output; None for what is to be read."""
    if not line.startswith(_MARK):
        return None
    numbers, _, what = line[len(_MARK) :].partition(" ")
    done, _, total = numbers.partition("/")
    if not (done.isdecimal() and total.isdecimal() and len(numbers) < 40):
        return Report("", 0, 0)
    return Report(what[:_TEXT_MAX], int(done), int(total))
