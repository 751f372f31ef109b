"""What differs between two configurations of a zone, property by property, and when each takes effect.

Pure.  ``apply`` shows these, and ``merged`` makes the configuration in which only some of them have happened.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from zonemgr.model import schema
from zonemgr.model.schema import Property, Resource, When
from zonemgr.model.zone import NetResource, Zone

_ORDER: Final = (When.LIVE, When.NEXT_BOOT, When.REINSTALL)
WHOLE: Final = ""  # a resource that is added or removed as a whole


@dataclass(frozen=True, slots=True)
class Change:
    """One difference.  ``kind`` is empty for a global property, ``key`` tells resources of a kind apart, ``name`` is
    the property, or WHOLE.  ``old`` and ``new`` are None where there is none.
    """

    kind: str
    key: str
    name: str
    old: Any
    new: Any
    when: When

    @property
    def label(self) -> str:
        """The property as the operator knows it: ``cpu-shares``, ``capped-memory physical``, ``fs /srv options``."""
        return " ".join(part for part in (self.kind, self.key, self.name) if part)


def between(old: Zone, new: Zone) -> tuple[Change, ...]:
    """Every difference, in the order of the schema."""
    changes = []
    for row in schema.GLOBAL_PROPERTIES:
        before, after = getattr(old, row.field), getattr(new, row.field)
        if before != after:
            changes.append(Change("", "", row.name, before, after, _when(row)))
    for kind in schema.RESOURCES.values():
        before, after = _items(kind, old), _items(kind, new)
        for key in dict.fromkeys((*before, *after)):
            changes += _of_resource(kind, key, before.get(key), after.get(key))
    return tuple(changes)


def merged(old: Zone, new: Zone, changes: Iterable[Change]) -> Zone:
    """The old configuration with these changes."""
    chosen: dict[tuple[str, str], set[str]] = {}
    for change in changes:
        chosen.setdefault((change.kind, change.key), set()).add(change.name)
    values: dict[str, Any] = {}
    for name in chosen.get(("", ""), ()):
        row = schema.global_property(name)
        assert row is not None
        values[row.field] = getattr(new, row.field)
    for kind in schema.RESOURCES.values():
        if any(of_kind == kind.name for of_kind, _key in chosen):
            values[kind.field] = _merged_items(kind, old, new, chosen)
    return dataclasses.replace(old, **values)


def _merged_items(kind: Resource, old: Zone, new: Zone, chosen: Mapping[tuple[str, str], set[str]]) -> Any:
    before, after = _items(kind, old), _items(kind, new)
    result = []
    for key in _in_order(tuple(before), tuple(after)):
        item = _merged_item(kind, before.get(key), after.get(key), chosen.get((kind.name, key), set()))
        if item is not None:
            result.append(item)
    if kind.single:
        return result[0] if result else None
    return tuple(result)


def _in_order(before: Sequence[str], after: Sequence[str]) -> list[str]:
    """The new order, with what is only in the old one behind what it was behind."""
    order = list(after)
    for index, key in enumerate(before):
        if key not in order:
            order.insert(order.index(before[index - 1]) + 1 if index else 0, key)
    return order


def _merged_item(kind: Resource, before: Any, after: Any, names: set[str]) -> Any:
    if WHOLE in names:
        return after
    if before is None or after is None or not names:
        return before
    values = {row.field: getattr(after, row.field) for row in kind.properties if row.name in names}
    return dataclasses.replace(before, **values)


def _of_resource(kind: Resource, key: str, before: Any, after: Any) -> list[Change]:
    shown = "" if kind.single else key
    if before is None or after is None:
        item = before or after
        given = [row for row in kind.properties if getattr(item, row.field) not in (None, ())]
        old, new = (_plain(kind, side) for side in (before, after))
        return [Change(kind.name, shown, WHOLE, old, new, _latest(given, kind))]
    return [
        Change(kind.name, shown, row.name, getattr(before, row.field), getattr(after, row.field), _when(row, kind))
        for row in kind.properties
        if getattr(before, row.field) != getattr(after, row.field)
    ]


def _latest(rows: Iterable[Property], kind: Resource) -> When:
    return max((_when(row, kind) for row in rows), key=_ORDER.index, default=When.LIVE)


def _when(row: Property, kind: Resource | None = None) -> When:
    """What has no effect yet cannot take effect now."""
    without_effect = not row.effect or (kind is not None and not kind.effect)
    return When.NEXT_BOOT if without_effect and row.when is When.LIVE else row.when


def _plain(kind: Resource, item: Any) -> dict[str, Any] | None:
    if item is None:
        return None
    values = {row.name: getattr(item, row.field) for row in kind.properties}
    return {name: value for name, value in values.items() if value not in (None, ())}


def _items(kind: Resource, zone: Zone) -> dict[str, Any]:
    """The resources of a kind, by what tells them apart."""
    value = getattr(zone, kind.field)
    if kind.single:
        return {} if value is None else {"": value}
    return {_key(kind, index, item): item for index, item in enumerate(value)}


def _key(kind: Resource, index: int, item: Any) -> str:
    if isinstance(item, NetResource):  # a link that nobody named has its place's name in the zone
        return item.linkname or item.physical or f"host{index}"
    values = (getattr(item, name.replace("-", "_")) for name in kind.key)
    return " ".join(str(value) for value in values if value not in (None, ()))
