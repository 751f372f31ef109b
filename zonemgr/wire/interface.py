"""Reads varlink interface files, and checks what comes in against them.

The whole of the interface language is understood (nested structures, enumerations, maps, lists, maybe-types), so that
the ``.varlink`` file alone says what a method takes.  What goes out is not checked here; the tests do that.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

_TOKEN: Final = re.compile(r"\s+|#[^\n]*|->|\[string\]|\[\]|[?(),:]|[A-Za-z][A-Za-z0-9_.-]*")


class InterfaceError(ValueError):
    """An interface file is wrong: a fault of ours, found by the first test that loads it."""


class ParameterError(ValueError):
    """A value does not fit; the text is the path of the parameter (``zone.state``)."""


@dataclass(frozen=True, slots=True)
class Scalar:
    """bool, int, float, string or object."""

    name: str


@dataclass(frozen=True, slots=True)
class Maybe:
    item: Type


@dataclass(frozen=True, slots=True)
class List:
    item: Type


@dataclass(frozen=True, slots=True)
class Map:
    item: Type


@dataclass(frozen=True, slots=True)
class Enumeration:
    words: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Named:
    name: str


@dataclass(frozen=True, slots=True)
class Structure:
    fields: Mapping[str, Type]


Type = Scalar | Maybe | List | Map | Enumeration | Named | Structure

_SCALARS: Final[Mapping[str, tuple[type, ...]]] = {
    "bool": (bool,),
    "int": (int,),
    "float": (int, float),
    "string": (str,),
    "object": (dict, list, str, int, float, bool, type(None)),
}


@dataclass(frozen=True, slots=True)
class Method:
    takes: Structure
    gives: Structure


@dataclass(frozen=True, slots=True)
class Interface:
    """One parsed interface file, with its text."""

    name: str
    text: str
    types: Mapping[str, Type]
    methods: Mapping[str, Method]
    errors: Mapping[str, Structure]

    def check(self, expected: Type, value: object, path: str = "") -> None:
        """Raises ParameterError with the path of the first value that does not fit."""
        match expected:
            case Maybe(item=item):
                if value is not None:
                    self.check(item, value, path)
            case Named(name=name):
                self.check(self.types[name], value, path)
            case Structure(fields=fields):
                self._check_structure(fields, value, path)
            case List(item=item) if isinstance(value, list):
                for index, entry in enumerate(value):
                    self.check(item, entry, f"{path}[{index}]")
            case Map(item=item) if isinstance(value, dict):
                for key, entry in value.items():
                    self.check(item, entry, f"{path}[{key}]")
            case Enumeration(words=words) if value in words:
                pass
            case Scalar(name=name) if _is_scalar(name, value):
                pass
            case _:
                raise ParameterError(path)

    def _check_structure(self, fields: Mapping[str, Type], value: object, path: str) -> None:
        if not isinstance(value, dict):
            raise ParameterError(path)
        for name in value.keys() - fields.keys():
            raise ParameterError(_join(path, name))
        for name, expected in fields.items():
            self.check(expected, value.get(name), _join(path, name))


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _is_scalar(name: str, value: object) -> bool:
    if isinstance(value, bool):  # which Python takes for an int
        return name in ("bool", "object")
    return isinstance(value, _SCALARS[name])


class _Parser:
    def __init__(self, text: str) -> None:
        self._tokens = list(_tokens(text))
        self._at = 0

    def next(self) -> str:
        self._at += 1
        return self._tokens[self._at - 1] if self._at <= len(self._tokens) else ""

    def peek(self) -> str:
        return self._tokens[self._at] if self._at < len(self._tokens) else ""

    def expect(self, token: str) -> None:
        found = self.next()
        if found != token:
            raise InterfaceError(f"'{found}' where '{token}' was expected")

    def type(self) -> Type:
        match self.next():
            case "?":
                return Maybe(self.type())
            case "[]":
                return List(self.type())
            case "[string]":
                return Map(self.type())
            case "(":
                return self._members()
            case name if name in _SCALARS:
                return Scalar(name)
            case name if name[:1].isupper():
                return Named(name)
            case name:
                raise InterfaceError(f"'{name}' is not a type")

    def structure(self) -> Structure:
        self.expect("(")
        members = self._members()
        if not isinstance(members, Structure):
            raise InterfaceError("an enumeration where a structure was expected")
        return members

    def _members(self) -> Structure | Enumeration:
        """What follows an opening parenthesis; the first member decides which of the two it is."""
        fields: dict[str, Type] = {}
        words: list[str] = []
        while self.peek() != ")":
            word = self.next()
            if word in fields or word in words or not word[:1].isalpha():
                raise InterfaceError(f"'{word}' is no name for a member")
            if self.peek() == ":":
                self.next()
                fields[word] = self.type()
            else:
                words.append(word)
            if self.peek() != ")":
                self.expect(",")
        self.expect(")")
        if words and fields:
            raise InterfaceError("structure and enumeration in one")
        return Enumeration(tuple(words)) if words else Structure(fields)


def _tokens(text: str) -> Iterator[str]:
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise InterfaceError(f"cannot read '{text[at : at + 10]}'")
        at = match.end()
        if not match[0][0].isspace() and match[0][0] != "#":
            yield match[0]


def parse(text: str) -> Interface:
    """The interface in this text.  Raises InterfaceError."""
    parser = _Parser(text)
    parser.expect("interface")
    name = parser.next()
    if "." not in name:
        raise InterfaceError(f"'{name}' is no name for an interface")
    types: dict[str, Type] = {}
    methods: dict[str, Method] = {}
    errors: dict[str, Structure] = {}
    while keyword := parser.next():
        member = parser.next()
        if keyword == "type":
            types[member] = parser.type()
        elif keyword == "method":
            takes = parser.structure()
            parser.expect("->")
            methods[member] = Method(takes, parser.structure())
        elif keyword == "error":
            errors[member] = parser.structure()
        else:
            raise InterfaceError(f"'{keyword}' where type, method or error was expected")
    return Interface(name, text, types, methods, errors)


@cache
def load(name: str) -> Interface:
    """The interface of that name, from the file beside this one, which is read once in a process."""
    return parse((Path(__file__).parent / f"{name}.varlink").read_text("utf-8"))
