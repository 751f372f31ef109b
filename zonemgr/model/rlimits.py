"""The limits that each process of a zone begins with (setrlimit(2)): their names, and what a zone has that names none.

A zone must not depend on the shell of whoever booted it, so every one of them is set.  The defaults are what Linux
distributions give their services; numbers of processes and memory are the business of control groups, which hold a
zone as a whole.  Deliberately not here: setting them, and what this host lets us set (``platform``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

UNLIMITED: Final = "unlimited"

# name -> (soft, hard) by default
RLIMITS: Final[Mapping[str, tuple[str, str]]] = {
    "as": (UNLIMITED, UNLIMITED),
    "core": ("0", UNLIMITED),
    "cpu": (UNLIMITED, UNLIMITED),
    "data": (UNLIMITED, UNLIMITED),
    "fsize": (UNLIMITED, UNLIMITED),
    "memlock": ("8388608", "8388608"),
    "msgqueue": ("819200", "819200"),
    "nice": ("0", "0"),
    "nofile": ("1024", "524288"),
    "nproc": (UNLIMITED, UNLIMITED),
    "rss": (UNLIMITED, UNLIMITED),
    "rtprio": ("0", "0"),
    "rttime": (UNLIMITED, UNLIMITED),
    "sigpending": ("65536", "65536"),
    "stack": ("8388608", UNLIMITED),
}


def pair(name: str, soft: str | None, hard: str | None) -> tuple[str, str]:
    """(soft, hard) of a limit of which one side may be left open: the other side stands for it, as far as it can."""
    if soft is None and hard is None:
        return RLIMITS[name]
    if hard is None:
        assert soft is not None
        hard = max(soft, RLIMITS[name][1], key=_size)
    if soft is None:
        soft = min(hard, RLIMITS[name][0], key=_size)
    return soft, hard


def above(soft: str, hard: str) -> bool:
    """Whether the soft limit is more than the hard one."""
    return _size(soft) > _size(hard)


def _size(limit: str) -> float:
    return float("inf") if limit == UNLIMITED else int(limit)


def to_words(limits: Mapping[str, tuple[str, str]]) -> tuple[str, ...]:
    """``nofile=1024:524288`` for each, as records keep them."""
    return tuple(f"{name}={soft}:{hard}" for name, (soft, hard) in sorted(limits.items()))


def to_numbers(words: Iterable[str]) -> dict[str, tuple[int, int]]:
    """The inverse of ``to_words``, in the numbers of setrlimit(2): -1 is unlimited."""
    found = {}
    for word in words:
        name, _, values = word.partition("=")
        soft, _, hard = values.partition(":")
        found[name] = (-1 if soft == UNLIMITED else int(soft), -1 if hard == UNLIMITED else int(hard))
    return found
