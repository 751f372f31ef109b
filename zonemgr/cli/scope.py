"""What the commands of ``config`` have in common: the words they take, the rows they name, the resource they are in."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from zonemgr.cli.output import Session
from zonemgr.errors import ConfigError, StateError, UsageError, message
from zonemgr.model import schema
from zonemgr.model.checks import Refused
from zonemgr.model.schema import Form, Property, Resource
from zonemgr.model.zone import Zone
from zonemgr.store.paths import Layout

FROZEN: Final = ("zonepath", "brand")  # from the moment that there is something on disk


def require_write_access(layout: Layout, verb: str) -> None:
    """Raises StateError for whoever cannot change the instance's configuration."""
    folder = layout.config("x").parent
    while not folder.exists():
        folder = folder.parent
    if not os.access(folder, os.W_OK):
        raise StateError("only a privileged user may {verb} a zone.", verb=verb)


def property_value(row: Property, text: str) -> object:
    """What a command's ``name=text`` puts into the file.  Raises ConfigError."""
    try:
        given = row.from_text(text)
        canonical = row.check(given)
    except Refused as refused:
        raise ConfigError("{name} {why}", name=row.name, why=refused) from None
    return canonical if isinstance(canonical, str) and row.form is Form.TEXT else given


def global_row(name: str) -> Property:
    """The global property of that name.  Raises ConfigError."""
    row = schema.global_property(name)
    if row is None:
        raise unknown("property", name, [row.name for row in schema.GLOBAL_PROPERTIES])
    return row


def unknown(what: str, name: str, valid: Sequence[str]) -> ConfigError:
    hint = schema.did_you_mean(name, valid)
    return ConfigError("unknown {what} '{name}'{hint}", what=what, name=name, hint=hint)


def check_brand(layout: Layout, brand: str) -> None:
    """The brand is there and sound.  Raises BrandError."""
    from zonemgr.brandkit import loader  # loads and runs the brand's file

    loader.load(brand, layout)


def check_zone(session: Session, zone: Zone) -> None:
    """The zone's brand is there and has nothing against the configuration.  Raises ZoneError.

    What the host does not have for it yet is a warning.
    """
    from zonemgr.brandkit import loader
    from zonemgr.brandkit.base import ZoneInfo
    from zonemgr.brandkit.verify import verify_configuration
    from zonemgr.store import settings
    from zonemgr.store.verify import pool_faults

    layout = session.layout
    brand = loader.load(zone.brand, layout)
    info = ZoneInfo.of(zone, str(layout.root))
    deadline_s = settings.load(layout).hook_s
    say = functools.partial(session.message, zonename=zone.zonename)
    verify_configuration(brand, info, deadline_s=deadline_s, say=say)
    for text in pool_faults(layout, zone):
        say(message("WARNING: {text}", text=text))


@dataclass(slots=True)
class Scope:
    """A resource being added (``index`` None, ``selected`` False) or changed."""

    kind: Resource
    values: dict[str, object] = field(default_factory=dict)
    selected: bool = False
    index: int | None = None

    def row(self, name: str) -> Property:
        row = self.kind.property(name)
        if row is None:
            raise unknown(f"property of {self.kind.name}", name, [row.name for row in self.kind.properties])
        return row


def kind_named(name: str) -> Resource:
    kind = schema.resource(name)
    if kind is None:
        raise unknown("resource type", name, list(schema.RESOURCES))
    return kind


def none(words: Sequence[str], command: str) -> None:
    if words:
        raise UsageError("{command} takes no arguments", command=command)


def options_of(
    words: Sequence[str], *, flags: str = "", valued: str = ""
) -> tuple[dict[str, str], list[str]]:
    """Options in front, as the commands of zonecfg have them.  Raises UsageError."""
    found: dict[str, str] = {}
    rest = list(words)
    while rest and rest[0].startswith("-") and len(rest[0]) > 1:
        word = rest.pop(0)
        for letter in word[1:]:
            if letter in valued and len(word) == 2 and rest:
                found[letter] = rest.pop(0)
            elif letter in flags:
                found[letter] = ""
            else:
                raise UsageError("unknown option or missing value: {word}", word=word)
    return found, rest
