"""Reading TOML with the standard library, and finding the line of a key when an error has to name it.

Reading is on the way to every boot, so nothing heavy is imported; editing, which keeps comments, is ``config``'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zonemgr.errors import ConfigError
from zonemgr.store.files import read_bytes

KeyPath = tuple[str | int, ...]


def read(path: Path) -> tuple[dict[str, Any], Lines] | None:
    """The table in the file and its line finder, or None when there is no file.  Raises ConfigError, PlatformError."""
    content = read_bytes(path)
    if content is None:
        return None
    return parse(content, str(path))


def parse(content: bytes, filename: str) -> tuple[dict[str, Any], Lines]:
    """The table in ``content``.  Raises ConfigError with file and line for malformed text."""
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError("{filename}: line {line}: not UTF-8 text", filename=filename, line=line) from None
    try:
        return _loads(text), Lines(text)
    except ValueError as error:
        raise _malformed(filename, text, str(error)) from None
    except RecursionError:
        raise ConfigError("{filename}: nested too deeply", filename=filename) from None


def _loads(text: str) -> dict[str, Any]:
    """Raises ValueError.  A supervisor without settings of its own never reads any: a megabyte less for each zone."""
    import tomllib

    return tomllib.loads(text)


def _malformed(filename: str, text: str, why: str) -> ConfigError:
    """tomllib's text ends in "(at line 3, column 5)" or "(at end of document)"; we say the line first."""
    reason, _, place = why.rpartition(" (at ")
    line = place.removeprefix("line ").partition(",")[0]
    number = int(line) if line.isdigit() else text.rstrip().count("\n") + 1
    return ConfigError("{filename}: line {line}: {why}", filename=filename, line=number, why=reason or why)


@dataclass(frozen=True, slots=True)
class Statement:
    """A table header or a key with its value, and the lines it takes: ``start`` up to, not including, ``end``, from 0.

    ``prefix`` is the path of the table it is in (of a header: that it opens), ``keys`` the paths that it sets.
    """

    prefix: KeyPath
    start: int
    end: int
    is_header: bool
    keys: tuple[KeyPath, ...] = ()


def statements(text: str) -> list[Statement]:
    """The statements of a well-formed text, in order."""
    found: list[Statement] = []
    counts: dict[KeyPath, int] = {}
    prefix: KeyPath = ()
    lines = split_lines(text)
    number = 0
    while number < len(lines):
        statement = lines[number].strip()
        if not statement or statement.startswith("#"):
            number += 1
        elif statement.startswith("["):
            prefix = _enter(statement, counts)
            found.append(Statement(prefix, number, number + 1, True))
            number += 1
        else:
            table, length = _complete(lines, number)
            keys = tuple((*prefix, *key) for key in _paths(table))
            found.append(Statement(prefix, number, number + length, False, keys))
            number += length
    return found


def split_lines(text: str) -> list[str]:
    """The lines as TOML counts them: ``str.splitlines`` would also split at form feeds and the like."""
    return text.replace("\r\n", "\n").split("\n")


class Lines:
    """Finds the line of a key.  The text is scanned only when the first error asks."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._index: dict[KeyPath, int] | None = None

    def find(self, path: KeyPath) -> int | None:
        """The line (from 1) on which the key at ``path`` is written, or None."""
        if self._index is None:
            self._index = _index(statements(self._text))
        return self._index.get(path)


def _index(found: list[Statement]) -> dict[KeyPath, int]:
    index: dict[KeyPath, int] = {}
    for statement in found:
        paths = list(statement.keys)
        if statement.is_header:
            paths = [statement.prefix]
            if isinstance(statement.prefix[-1], int):
                paths.append(statement.prefix[:-1])
        for path in paths:
            index.setdefault(path, statement.start + 1)
    return index


def _enter(header: str, counts: dict[KeyPath, int]) -> KeyPath:
    """The path of a table header; ``counts`` numbers the tables of each array."""
    is_array = header.startswith("[[")
    path = _header_keys(header)
    # A header below an array's element ([fs.more]) belongs to the element that came last.
    full: KeyPath = ()
    for key in path[:-1]:
        full = (*full, key)
        if full in counts:
            full = (*full, counts[full])
    full = (*full, path[-1])
    if is_array:
        counts[full] = counts.get(full, -1) + 1
        return (*full, counts[full])
    return full


def _header_keys(header: str) -> list[str]:
    """The keys of a header, unquoted: a header is a table of nothing, which tomllib can read."""
    keys: list[str] = []
    table: Any = _loads(header)
    while table:
        if isinstance(table, list):
            table = table[0]
            continue
        key = next(iter(table))
        keys.append(key)
        table = table[key]
    return keys


def _complete(lines: list[str], start: int) -> tuple[dict[str, Any], int]:
    """The statement that begins at ``start`` and how many lines it takes."""
    for end in range(start + 1, len(lines) + 1):
        try:
            return _loads("\n".join(lines[start:end])), end - start
        except ValueError:
            continue
    return {}, 1


def _paths(table: dict[str, Any]) -> list[KeyPath]:
    """The paths of all keys in a statement's table."""
    found: list[KeyPath] = []
    for key, value in table.items():
        found.append((key,))
        if isinstance(value, dict):
            found += [(key, *path) for path in _paths(value)]
    return found
