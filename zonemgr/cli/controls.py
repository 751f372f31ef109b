"""Resource controls that are also properties, for the editor (reference, section 7.3): ``max-lwps = 200`` and an rctl
``zone.max-lwps`` are one setting.  It is found by either name and stays written as it was where that can say it.

Which control is which property is ``schema``'s; only controls of the property's own form (one value, its action) are
meant here, any other is a control of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zonemgr.cli.scope import property_value
from zonemgr.errors import ConfigError
from zonemgr.model import schema
from zonemgr.model.schema import CONTROL_ALIASES, RCTL, ControlAlias, Property, Resource
from zonemgr.store.config import Draft, canonical
from zonemgr.store.toml import KeyPath


def key_of(table: Mapping[str, Any], row: Property) -> str:
    """The property's name as the file has it: its own, or the one of its aliases that is used."""
    return next((name for name in row.aliases if name in table), row.name)


def alias_of(row: Property) -> ControlAlias | None:
    """The control that this global property is."""
    return next((one for one in CONTROL_ALIASES if one.resource is None and one.field == row.name), None)


def _row(alias: ControlAlias) -> tuple[KeyPath, Property]:
    """The property and the table it is in."""
    path: KeyPath = () if alias.resource is None else (alias.resource,)
    kind = schema.RESOURCES[alias.resource] if alias.resource else None
    row = kind.property(alias.field) if kind else schema.global_property(alias.field)
    assert row is not None
    return path, row


def _property(table: Mapping[str, Any], alias: ControlAlias) -> Any:
    """The property's number, or None: not set, or wrong."""
    path, row = _row(alias)
    for key in path:
        table = table.get(str(key)) or {}
    try:
        return row.check(table[key_of(table, row)])
    except (KeyError, ValueError):
        return None


def _named(table: Mapping[str, Any], alias: ControlAlias) -> int | None:
    """The position of the control of this name."""
    controls = table.get(RCTL.name, [])
    return next((at for at, item in enumerate(controls) if item.get("name") == alias.rctl), None)


def _said(alias: ControlAlias, item: Mapping[str, Any]) -> Any:
    """The property's number that a control says, or None: it is of another name or form."""
    values = canonical(RCTL, item)
    value = values.get("value")
    if values.get("name") != alias.rctl or not isinstance(value, tuple) or len(value) != 1:
        return None
    if value[0].action != alias.action:
        return None
    return value[0].limit if alias.scale == 1 else value[0].limit / alias.scale


def _value(alias: ControlAlias, number: Any) -> list[str]:
    return [f"(priv=privileged,limit={round(number * alias.scale)},action={alias.action})"]


def written(table: Mapping[str, Any], alias: ControlAlias) -> tuple[int, Any] | None:
    """(position, number) of the control where it says the property.  Raises ConfigError when there is one of another
    form."""
    at = _named(table, alias)
    if at is None:
        return None
    number = _said(alias, table[RCTL.name][at])
    if number is None:
        raise ConfigError(
            "{property}: An incompatible rctl already exists for this property", property=alias.field
        )
    return at, number


def resources(kind: Resource, table: Mapping[str, Any]) -> list[Any]:
    """The resources of a kind: controls with those that are set as properties after them; of a kind that occurs once
    also what controls say of it."""
    present = table.get(kind.name)
    if kind is RCTL:
        found = ((alias, _property(table, alias)) for alias in CONTROL_ALIASES)
        return [
            *(present or []),
            *(
                {"name": alias.rctl, "value": _value(alias, number)}
                for alias, number in found
                if number is not None and _named(table, alias) is None
            ),
        ]
    if not kind.single:
        return list(present or [])
    said = {field: number for field, (_, number) in _parts(kind, table).items()}
    return [{**said, **(present or {})}] if present is not None or said else []


def _parts(kind: Resource, table: Mapping[str, Any]) -> dict[str, tuple[int, Any]]:
    """By property: what controls say of a resource that occurs once, and where."""
    found = {}
    for alias in CONTROL_ALIASES:
        at = _named(table, alias) if alias.resource == kind.name else None
        number = None if at is None else _said(alias, table[RCTL.name][at])
        if at is not None and number is not None:
            found[alias.field] = (at, number)
    return found


def assign(draft: Draft, row: Property, value: object) -> None:
    """Set a global property, in its control if it is written as one.  Raises ConfigError."""
    table, alias = draft.table, alias_of(row)
    key = key_of(table, row)
    found = written(table, alias) if alias is not None and key not in table else None
    if alias is None or found is None:
        draft.set((), key, value)
    else:
        draft.set((RCTL.name, found[0]), "value", _value(alias, row.check(value)))


def clear(draft: Draft, row: Property) -> None:
    """Clear a global property, however it is written.  Raises ConfigError."""
    table, alias = draft.table, alias_of(row)
    key = key_of(table, row)
    found = written(table, alias) if alias is not None and key not in table else None
    if found is None:
        draft.clear((), key)
    else:
        draft.remove(RCTL.name, found[0])


def remove(draft: Draft, kind: Resource, index: int) -> None:
    """Remove the resource at this position of ``resources``."""
    table = draft.table
    if kind is RCTL and index >= len(table.get(RCTL.name, [])):
        _unset(draft, resources(kind, table)[index]["name"])
    elif not kind.single:
        draft.remove(kind.name, index)
    else:
        for at in sorted((at for at, _ in _parts(kind, table).values()), reverse=True):
            draft.remove(RCTL.name, at)
        if kind.name in table:
            draft.remove(kind.name, None)


def _unset(draft: Draft, name: str) -> None:
    """Clear the property that the control of this name is, and its table if that was all of it."""
    path, row = _row(next(one for one in CONTROL_ALIASES if one.rctl == name))
    if path and len(draft.table[str(path[0])]) == 1:
        draft.remove(str(path[0]), None)
    else:
        table = draft.table if not path else draft.table[str(path[0])]
        draft.clear(path, key_of(table, row))


def rewrite(draft: Draft, kind: Resource, index: int | None, values: Mapping[str, object]) -> bool:
    """Change a selected resource that is written, in part or as a whole, by its other name; whether it was that, so
    that nothing is left to do.  Raises ConfigError."""
    table = draft.table
    if kind is RCTL and index is not None and index >= len(table.get(RCTL.name, [])):
        before = resources(kind, table)[index]
        _rewrite_property(draft, str(before["name"]), values)
        return True
    if not kind.single:
        return False
    left = dict(values)
    now = canonical(kind, values)
    gone = []
    for field, (at, number) in _parts(kind, table).items():
        if now.get(field) == number:
            del left[field]
        else:
            gone.append(at)
    if len(left) == len(values) and not gone:
        return False
    for at in sorted(gone, reverse=True):
        draft.remove(RCTL.name, at)
    if not left and kind.name in table:
        draft.remove(kind.name, None)
    elif left and kind.name not in table:
        draft.add(kind.name, left, single=True)
    elif left:
        for key in [key for key in table[kind.name] if (row := kind.property(key)) and row.name not in left]:
            draft.clear((kind.name,), key)
        for name, value in left.items():
            row = kind.property(name)
            assert row is not None
            draft.set((kind.name,), key_of(table[kind.name], row), value)
    return True


def _rewrite_property(draft: Draft, name: str, values: Mapping[str, object]) -> None:
    alias = next(one for one in CONTROL_ALIASES if one.rctl == name)
    number = _said(alias, values)
    if number is None:  # what it says now is more than the property can say
        _unset(draft, name)
        draft.add(RCTL.name, values, single=False)
        return
    path, row = _row(alias)
    table = draft.table if not path else draft.table[str(path[0])]
    draft.set(path, key_of(table, row), property_value(row, str(number)))
