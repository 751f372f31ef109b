"""What ``config`` says about itself: its commands, and the schema's rows.  The manual pages are made from it too."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from zonemgr.errors import ConfigError
from zonemgr.model import schema
from zonemgr.model.schema import Property, Resource


@dataclass(frozen=True, slots=True)
class Help:
    """A command: how it is written, in the words of zonecfg, and what it does."""

    synopsis: str
    text: str


COMMANDS: Final[Mapping[str, Help]] = {
    "create": Help(
        "create [-F] [-b | -X | -t TEMPLATE | -a PATH]",
        "Begins a configuration: from the template default where there is one, -b and -X with nothing but a brand, -t"
        " from a template or another zone, -a from what a detached zone has left in PATH. -F overwrites.",
    ),
    "set": Help(
        "set property=value ...", "Gives a property a value, of the zone or of the resource one is in."
    ),
    "clear": Help("clear property", "Takes a property's value away."),
    "add": Help(
        "add resource [property=value ...]",
        "Begins a resource, which 'end' ends; with values it is all in one. Inside a resource, add PROPERTY VALUE adds"
        " to a list.",
    ),
    "select": Help("select resource property=value ...", "Opens the one resource that has these values."),
    "remove": Help(
        "remove [-F] resource [property=value ...]",
        "Removes the one resource that has these values, or without values all of a kind (-F does not ask). Inside a"
        " resource, remove PROPERTY VALUE takes something from a list.",
    ),
    "end": Help("end", "Ends a resource and takes it into the configuration."),
    "cancel": Help("cancel", "Leaves a resource and forgets what was done to it."),
    "info": Help(
        "info [resource [property=value ...] | property]", "Shows the configuration or a part of it."
    ),
    "export": Help("export [-f FILE]", "Writes commands that make the same configuration again."),
    "verify": Help("verify", "Checks the configuration as a whole, and says what has no effect yet."),
    "commit": Help("commit", "Saves the configuration, if it is good."),
    "revert": Help("revert [-F]", "Goes back to what was last saved."),
    "delete": Help("delete [-F]", "Deletes the zone's configuration, at once."),
    "exit": Help("exit [-F]", "Saves and leaves; -F asks nothing."),
    "help": Help("help [command | resource | property]", "Tells about one of these."),
}


def help_lines(words: Sequence[str]) -> list[str]:
    """The answer to ``help``.  Raises ConfigError for a word that is nothing."""
    if not words:
        return [
            "commands: " + ", ".join(COMMANDS),
            "properties: " + ", ".join(row.name for row in schema.GLOBAL_PROPERTIES),
            "resources: " + ", ".join(schema.RESOURCES),
        ]
    name = words[0]
    if name in COMMANDS:
        return [f"usage: {COMMANDS[name].synopsis}", COMMANDS[name].text]
    kind = schema.resource(name)
    if kind is not None:
        note = "" if kind.effect else " (no effect yet)"
        return [f"{kind.name}: {kind.help}{note}", *(_line(row, kind) for row in kind.properties)]
    row = schema.global_property(name)
    if row is not None:
        return [_line(row)]
    return [*_lines_in_resources(name)]


def _lines_in_resources(name: str) -> list[str]:
    """A property that only resources have."""
    lines = [
        f"{kind.name} {_line(row, kind)}"
        for kind in schema.RESOURCES.values()
        if (row := kind.property(name)) is not None
    ]
    if not lines:
        names = [*COMMANDS, *schema.RESOURCES, *(row.name for row in schema.GLOBAL_PROPERTIES)]
        hint = schema.did_you_mean(name, names)
        raise ConfigError("there is no help about '{name}'{hint}", name=name, hint=hint)
    return lines


def _line(row: Property, kind: Resource | None = None) -> str:
    return f"{row.name}: {row.help} ({', '.join(facts(row, kind))})"


def facts(row: Property, kind: Resource | None = None) -> list[str]:
    """What is to be known of a row besides its help text."""
    effective = row.effect and (kind is None or kind.effect)
    found = ["required"] if row.required else []
    found += [row.form.value, f"takes effect: {row.when.value}" if effective else "no effect yet"]
    if row.default not in (None, (), ""):
        default = str(row.default).lower() if isinstance(row.default, bool) else str(row.default)
        found.append(f"default: {default}")
    return found


def candidates(words: Sequence[str], kind: Resource | None) -> Iterable[str]:
    """What may follow these words of a command, inside a resource of this kind or outside of any."""
    if not words:
        return COMMANDS
    command = words[0]
    if command in ("add", "remove", "select", "info") and len(words) == 1 and kind is None:
        return schema.RESOURCES
    if command in ("set", "clear", "add", "remove", "info", "help") and kind is not None:
        return _names(kind.properties, command)
    if command in ("add", "remove", "select", "info") and len(words) > 1:
        named = schema.resource(words[1])
        return _names(named.properties, "set") if named else ()
    if command == "help":
        return [*COMMANDS, *schema.RESOURCES, *_names(schema.GLOBAL_PROPERTIES, command)]
    if command in ("set", "clear"):
        return _names(schema.GLOBAL_PROPERTIES, command)
    return ()


def _names(rows: Iterable[Property], command: str) -> list[str]:
    return [f"{row.name}=" if command == "set" else row.name for row in rows]
