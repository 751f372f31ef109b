"""Boot arguments: what of a request or of the ``bootargs`` property reaches the zone's init (reference, 2.4).

There is no quoting: words are separated by blanks and tabs.  Nothing in here is fatal; what is wrong is left out,
listed and told.  The blank padding that Solaris leaves in the text is not copied: words are joined by one blank.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from zonemgr.errors import UsageError
from zonemgr.model.states import BOOTARGS_MAX

_FLAGS = frozenset("fsw")
_WITH_VALUE = frozenset("im")


@dataclass(frozen=True, slots=True)
class BootArguments:
    """``init``: another path of init.  ``words`` reach init; ``bad`` did not, or were not understood.

    ``messages`` are for whoever asked; the console is told of ``bad`` whenever ``invalid``.
    """

    init: str | None = None
    words: tuple[str, ...] = ()
    bad: tuple[str, ...] = ()
    messages: tuple[str, ...] = ()
    invalid: bool = False

    @property
    def arguments(self) -> str:
        """The words as one text."""
        return " ".join(self.words)


@dataclass(slots=True)
class _Collected:
    init: str | None = None
    words: list[str] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)
    writable: bool = False


def join(words: Iterable[str]) -> str:
    """The request a client makes of the words after ``--``.  Raises UsageError when there are too many."""
    joined = " ".join(words)
    if len(joined) > BOOTARGS_MAX:
        raise UsageError("Boot argument list too long")
    return joined


def filter_bootargs(requested: str, configured: str) -> BootArguments:
    """What of the arguments is used.  ``requested`` replaces ``configured``, never merges with it."""
    text = requested if requested.strip(" \t") else configured
    if len(text) > BOOTARGS_MAX:
        return BootArguments(messages=("boot argument string too long",), invalid=True)
    words = text.replace("\t", " ").split(" ")
    words = [word for word in words if word]
    if words and not words[0].startswith("-"):
        words = words[1:]  # a boot file: Linux zones have none either
    found = _Collected()
    operands = _options(words, found)
    messages: tuple[str, ...] = ()
    if operands:
        found.bad += operands
        messages = (f"WARNING: Unused or invalid boot arguments `{' '.join(found.bad)}'.",)
    return BootArguments(found.init, tuple(found.words), tuple(found.bad), messages, bool(found.bad))


def wants_writable(requested: str) -> bool:
    """Whether ``-w`` was asked for: an immutable zone boots with a writable root, once."""
    found = _Collected()
    _options(requested.split(), found)
    return found.writable


def _options(words: list[str], found: _Collected) -> list[str]:
    """Take options as getopt(3) does with ``fi:m:s``, up to the first operand; returns the operands."""
    position = 0
    while position < len(words):
        word = words[position]
        if word == "--":
            return words[position + 1 :]
        if not word.startswith("-") or word == "-":
            return words[position:]
        position += 1
        following = words[position] if position < len(words) else None
        if _cluster(word[1:], following, found):
            position += 1
    return []


def _cluster(letters: str, following: str | None, found: _Collected) -> bool:
    """The options of one word such as ``-sm``.  True when the following word was used up as a value."""
    for index, letter in enumerate(letters):
        if letter in _WITH_VALUE:
            rest = letters[index + 1 :]
            value = rest or following
            if value is None:
                found.words.append(f"-{letter}")
                found.bad.append(f"-{letter}")
            elif letter == "i":
                found.init = value
            else:
                found.words += ["-m", value]
            return not rest and value is not None
        found.writable = found.writable or letter == "w"
        if letter == "s":
            found.words.append("-s")
        elif letter not in _FLAGS:
            found.words.append(f"-{letter}")
            found.bad.append(f"-{letter}")
    return False
