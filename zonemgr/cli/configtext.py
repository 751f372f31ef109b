"""The language of ``config``: its words, and how a configuration is shown (``info``) and written out (``export``).

``export`` gives commands that make the same configuration again; ``info`` is for people.  Which command does what is
in ``config``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from zonemgr.errors import UsageError
from zonemgr.model import schema
from zonemgr.model.schema import Form, Property, Resource
from zonemgr.model.zone import Zone

_UNITS = (("T", 1 << 40), ("G", 1 << 30), ("M", 1 << 20), ("K", 1 << 10))
_OPENING, _CLOSING = "[(", "])"


@dataclass(frozen=True, slots=True)
class Line:
    """One command: its words, and the line it is on (from 1; 0 for the command line)."""

    words: tuple[str, ...]
    number: int = 0


def commands(text: str, *, numbered: bool = False) -> list[Line]:
    """The commands in a text: one a line, or several separated by ``;``.  Raises UsageError."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("#"):
            continue
        place = number if numbered else 0
        found += [Line(tuple(words), place) for words in _split(line, place) if words]
    return found


def commands_of(arguments: Iterable[str]) -> list[Line]:
    """The commands in a program's arguments.

    ``set autoboot=true`` is one command whose words the shell has split; ``;`` by itself (or at a word's end)
    begins another.  An argument that holds a whole command (``"set a=b; info"``) is read as text.
    """
    given = list(arguments)
    if given and any(character in given[0] for character in " \t;"):
        return [line for argument in given for line in commands(argument)]
    found: list[list[str]] = [[]]
    for argument in given:
        if argument == ";":
            found.append([])
        elif argument.endswith(";"):
            found[-1].append(argument[:-1])
            found.append([])
        else:
            found[-1].append(argument)
    return [Line(tuple(_joined(words))) for words in found if words]


def _split(line: str, number: int) -> Iterator[list[str]]:
    """The commands of one line, each as words; quotes keep blanks, brackets keep lists together."""
    words: list[str] = []
    word: str | None = None
    quote = ""
    depth = 0
    characters = iter(line)
    for character in characters:
        if quote:
            if character == quote:
                quote = ""
            elif character == "\\" and quote == '"':
                word = (word or "") + next(characters, "\\")
            else:
                word = (word or "") + character
        elif character in "\"'":
            quote = character
            word = word or ""
        elif depth == 0 and character in " \t;":
            if word is not None:
                words.append(word)
                word = None
            if character == ";":
                yield _joined(words)
                words = []
        else:
            depth += (character in _OPENING) - (character in _CLOSING and depth > 0)
            word = (word or "") + character
    if quote or depth:
        if number:
            raise UsageError("line {line}: a quote or bracket is not closed", line=number)
        raise UsageError("a quote or bracket is not closed")
    if word is not None:
        words.append(word)
    yield _joined(words)


def _joined(words: list[str]) -> list[str]:
    """``a = b`` is the same as ``a=b``."""
    found: list[str] = []
    for word in words:
        if found and (word == "=" or found[-1].endswith("\0")):
            found[-1] = found[-1].removesuffix("\0") + (word if word != "=" else "=\0")
        else:
            found.append(word)
    return [word.removesuffix("\0") for word in found]


def quoted(value: str) -> str:
    """The value as a word of a command."""
    if value and not any(character in " \t;\"'\\[]()#," for character in value):
        return value
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def shown(row: Property, value: Any) -> str:
    """A value as ``info`` shows it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return "[" + ",".join(str(item) for item in value) + "]"
    if row.form is Form.SIZE:
        return size_text(value)
    if row.form is Form.DECIMAL:
        return f"{value:.2f}"
    if row.name == "hostid":
        return f"{value:x}"
    return str(value)


def exported(row: Property, value: Any) -> str:
    """A value as ``export`` writes it, without loss."""
    if isinstance(value, tuple):
        return "[" + ",".join(str(item) for item in value) + "]"
    if row.form is Form.DECIMAL:
        return repr(value)
    return quoted(shown(row, value))


def size_text(size_bytes: int) -> str:
    """A size with the largest unit that divides it."""
    for unit, factor in _UNITS:
        if size_bytes and size_bytes % factor == 0:
            return f"{size_bytes // factor}{unit}"
    return str(size_bytes)


# Properties that are controls underneath: shown in brackets, and only when they are set.
_ALIASES = frozenset(alias.field for alias in schema.CONTROL_ALIASES if alias.resource is None)
_ALWAYS = frozenset({
    "zonename", "zonepath", "brand", "autoboot", "bootargs", "pool", "limitpriv", "scheduling-class", "ip-type",
    "hostid", "fs-allowed",
})  # fmt: skip
_SHOWN_WHEN_UNSET = {"fs": ("raw",), "net": ("defrouter",)}


def info_globals(zone: Zone, only: str | None = None) -> list[str]:
    """``property: value`` lines."""
    lines = []
    for row in schema.GLOBAL_PROPERTIES:
        value = getattr(zone, row.field)
        if only is not None and row.name != only:
            continue
        unset = value is None or value in ((), "")
        if row.name in _ALIASES:
            if not unset or only:
                lines.append(f"[{row.name}: {'' if unset else shown(row, value)}]")
        elif row.name in _ALWAYS or value != row.default or only:
            lines.append(f"{row.name}:" + ("" if unset else f" {shown(row, value)}"))
    return lines


def info_resource(kind: Resource, item: Any) -> list[str]:
    """A resource: its kind, then its properties with a tab in front."""
    lines = [f"{kind.name}:"]
    brackets = {alias.field for alias in schema.CONTROL_ALIASES if alias.resource == kind.name}
    for row in kind.properties:
        value = getattr(item, row.field)
        if value is None or value == ():
            if row.name in _SHOWN_WHEN_UNSET.get(kind.name, ()):
                lines.append(f"\t{row.name} not specified")
            continue
        text = f"{row.name}: {shown(row, value)}"
        lines.append(f"\t[{text}]" if row.name in brackets else f"\t{text}")
    return lines


def resources_of(zone: Zone, kind: Resource) -> list[Any]:
    """The zone's resources of a kind."""
    value = getattr(zone, kind.field)
    if kind.single:
        return [] if value is None else [value]
    return list(value)


def info(zone: Zone) -> list[str]:
    """The whole configuration."""
    lines = info_globals(zone)
    for kind in schema.RESOURCES.values():
        for item in resources_of(zone, kind):
            lines += info_resource(kind, item)
    return lines


def export(zone: Zone, default_zonepath: str) -> list[str]:
    """Commands that make this configuration again, for this or another name.

    A zonepath that is only the default is left out, so that the text fits another zone.
    """
    lines = ["create -b"]
    for row in schema.GLOBAL_PROPERTIES:
        value = getattr(zone, row.field)
        if row.name == "zonename" or value is None or value in ((), ""):
            continue
        if row.name == "zonepath" and value == default_zonepath:
            continue
        if row.name in ("autoboot", "ip-type") or value != row.default:
            lines.append(f"set {row.name}={exported(row, value)}")
    for kind in schema.RESOURCES.values():
        for item in resources_of(zone, kind):
            lines += _export_resource(kind, item)
    return lines


def _export_resource(kind: Resource, item: Any) -> list[str]:
    lines = [f"add {kind.name}"]
    for row in kind.properties:
        value = getattr(item, row.field)
        if value is None or value == ():
            continue
        if isinstance(value, tuple):
            lines += [f"add {row.name} {_list_item(entry)}" for entry in value]
        else:
            lines.append(f"set {row.name}={exported(row, value)}")
    return [*lines, "end"]


def _list_item(entry: object) -> str:
    text = str(entry)
    return text if text.startswith("(") else quoted(text)


def assignments(words: Iterable[str]) -> Mapping[str, str]:
    """``name=value`` words.  Raises UsageError."""
    found: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise UsageError("'{word}' is not of the form property=value", word=word)
        if name in found:
            raise UsageError("{name} is given twice", name=name)
        found[name] = value
    return found
