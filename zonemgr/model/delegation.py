"""What a user whom an ``admin`` resource names may ask for, as data and without asking anybody (reference, 7.4 and 8).

The words are those of the command line.  Whoever serves them runs them as root, so a word passes only when this table
has it: the verb, its options, and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from zonemgr.errors import StateError, UsageError
from zonemgr.model.checks import Refused, zone_name

# For each right, those that include it.
SUFFICIENT: Final[Mapping[str, frozenset[str]]] = {
    "login": frozenset({"login", "manage"}),
    "manage": frozenset({"manage"}),
    "clonefrom": frozenset({"clonefrom"}),
}
WORDS_MAX: Final = 64
LENGTH_MAX: Final = 4096  # of all words together


@dataclass(frozen=True, slots=True)
class Verb:
    """``right`` on the zone it is about.  ``flags`` stand alone, ``valued`` take the next word."""

    right: str
    flags: frozenset[str] = frozenset()
    valued: frozenset[str] = frozenset()
    words: bool = False  # words of the zone's own may follow: boot arguments, a command


_LOGIN_FLAGS: Final = frozenset({"-S", "-n", "-t", "-E", "-Q"})
VERBS: Final[Mapping[str, Verb]] = {
    "ready": Verb("manage"),
    "boot": Verb("manage", frozenset({"-f"}), words=True),
    "reboot": Verb("manage", frozenset({"-f"}), words=True),
    "halt": Verb("manage"),
    "shutdown": Verb("manage", frozenset({"-r"}), words=True),
    "console": Verb("manage", frozenset({"-E", "-Q", "-d"}), frozenset({"-e"})),
    "login": Verb("login", _LOGIN_FLAGS, frozenset({"-l", "-e"}), words=True),
    "clone": Verb("manage"),
}


@dataclass(frozen=True, slots=True)
class Demand:
    """What is asked: ``needs`` are the rights, zone and right each, all of which the user must have."""

    verb: str
    zonename: str
    options: tuple[str, ...]
    user: str | None
    words: tuple[str, ...]
    source: str | None = None  # of a clone

    @property
    def needs(self) -> tuple[tuple[str, str], ...]:
        own = (self.zonename, VERBS[self.verb].right)
        return (own,) if self.source is None else (own, (self.source, "clonefrom"))


def demand(words: Sequence[str]) -> Demand:
    """What the words of a command line ask for.  UsageError for what cannot be delegated."""
    if len(words) > WORDS_MAX or sum(map(len, words)) > LENGTH_MAX or any("\0" in word for word in words):
        raise UsageError("too many words")
    verb = VERBS.get(words[0]) if words else None
    if verb is None:
        raise UsageError("only root may do this")
    options, names, rest, user = _split(words[0], verb, list(words[1:]))
    wanted = 2 if words[0] == "clone" else 1
    if len(names) != wanted:
        raise UsageError("{verb} for another user takes {count} zone name", verb=words[0], count=wanted)
    for name in names:
        try:
            zone_name(name)
        except Refused as refused:
            raise UsageError("{why}", why=refused) from None
    return Demand(words[0], names[-1], tuple(options), user, tuple(rest), names[0] if wanted == 2 else None)


def _split(
    name: str, verb: Verb, words: list[str]
) -> tuple[list[str], list[str], list[str], str | None]:
    """Options, zone names, words of the zone's own, and the user that -l names."""
    options: list[str] = []
    names: list[str] = []
    user = None
    while words:
        word = words.pop(0)
        if word == "--":
            break
        if names and name == "login":
            words.insert(0, word)
            break
        if not word.startswith("-") or word == "-":
            names.append(word)
        elif word in verb.flags:
            options.append(word)
        elif word in verb.valued and words:
            value = words.pop(0)
            if word == "-l":
                user = value
            options += [word, value]
        else:
            raise UsageError("{verb}: option {option} is for root only", verb=name, option=word)
    if words and not verb.words:
        raise UsageError("{verb}: nothing may follow the zone's name", verb=name)
    return options, names, words, user


def command(asked: Demand, rights: frozenset[str], *, terminal: bool) -> list[str]:
    """The words that root runs.  ``rights`` are the user's on the zone.

    Who may ``login`` and not ``manage`` gets no more than a login program, which asks for a password of the zone's.
    """
    if asked.verb != "login" or "manage" in rights:
        names = [asked.source] if asked.source else []
        tail = ["--", *asked.words] if asked.words else []
        return [asked.verb, *asked.options, *names, asked.zonename, *tail]
    if asked.words or not terminal or set(asked.options) & {"-S", "-n"}:
        raise StateError("it takes the right to manage the zone to run a command in it")
    if asked.user is not None and not re.fullmatch(r"[a-zA-Z_][\w.-]{0,63}", asked.user):
        raise UsageError("'{user}' is not the name of a user", user=asked.user)
    return ["login", "-t", asked.zonename, "--", "login", *([asked.user] if asked.user else [])]


def refusal(user: str, asked: Demand) -> StateError:
    """The reference's words; the same for a zone that does not exist, which is none of the user's business."""
    return StateError(
        "User {user} is not authorized to {command} this zone.", user=user, command=_SAID.get(asked.verb, asked.verb)
    )


_SAID: Final = {"login": "login to", "console": "use the console of"}
