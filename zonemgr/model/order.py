"""In which order zones start and stop with the host: who must be there before whom (``requires``, ``after``).

Pure.  ``requires`` is a need: without it the zone does not start.  ``after`` only orders those that start anyway.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

from zonemgr.model.zone import Zone

PRIORITIES: Final = ("high", "normal", "low")


@dataclass(frozen=True, slots=True)
class Order:
    """``before``: zone -> those that must have come first; ``circular``: zone -> the circle of needs it is in, which
    keeps it from starting; ``names``: all others, who is more important first.
    """

    names: tuple[str, ...]
    before: Mapping[str, frozenset[str]]
    circular: Mapping[str, tuple[str, ...]]

    def reversed(self) -> Mapping[str, frozenset[str]]:
        """As ``before``, for stopping: zone -> those that must have gone first."""
        return {
            name: frozenset(other for other, needs in self.before.items() if name in needs) for name in self.names
        }


def of(zones: Mapping[str, Zone]) -> Order:
    """The order among these zones.  A circle that ``after`` takes part in is broken there."""
    needs = {name: frozenset(zone.requires).intersection(zones) for name, zone in zones.items()}
    wishes = {name: needs[name] | frozenset(zone.after).intersection(zones) for name, zone in zones.items()}
    circular = {name: circle for name in zones if (circle := _circle(name, needs))}
    names = sorted(zones.keys() - circular.keys(), key=lambda name: (_rank(zones[name]), name))
    before = {name: needs[name].intersection(names) for name in names}
    for name in names:
        for other in sorted(wishes[name].intersection(names) - before[name]):
            if name != other and not _reaches(other, name, before):
                before[name] |= {other}
    return Order(tuple(names), before, circular)


def with_needs(wanted: Collection[str], zones: Mapping[str, Zone]) -> set[str]:
    """The wanted zones, and what they require, and what that requires."""
    found: set[str] = set()
    queue = list(wanted)
    while queue:
        name = queue.pop()
        if name not in found:
            found.add(name)
            queue += [other for other in zones[name].requires if other in zones]
    return found


def _rank(zone: Zone) -> int:
    return PRIORITIES.index(zone.boot_priority or "normal")


def _reaches(start: str, goal: str, before: Mapping[str, frozenset[str]]) -> bool:
    """Whether ``start`` waits for ``goal``, directly or through others."""
    seen: set[str] = set()
    queue = [start]
    while queue:
        name = queue.pop()
        if name == goal:
            return True
        if name not in seen:
            seen.add(name)
            queue += before.get(name, ())
    return False


def _circle(name: str, needs: Mapping[str, frozenset[str]]) -> tuple[str, ...]:
    """The way from a zone back to itself, if there is one."""
    paths: list[tuple[str, ...]] = [(name,)]
    seen: set[str] = set()
    while paths:
        path = paths.pop()
        for other in sorted(needs.get(path[-1], ())):
            if other == name:
                return (*path, name)
            if other not in seen:
                seen.add(other)
                paths.append((*path, other))
    return ()
