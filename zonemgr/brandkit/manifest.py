"""Brands without Python: a folder with ``brand.toml`` and, in ``hooks/``, one program for each hook that it has.

What ``brand.toml`` declares is what a class would, under the same names; lists become tuples or sets, tables become
mounts, devices, links, restart policies.  ``[hooks]`` may name other programs and words than ``hooks/NAME``.  The class
made from it goes the way of every other brand: it is checked, and its hooks run in children with deadlines.

A program is told everything twice: as words and in its environment, by name and, for programs ported from Solaris, by
number.  ``numbers = true`` makes the words of the state-change hooks ``STATE COMMAND ALTROOT`` in numbers.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from zonemgr.brandkit import contract, trust
from zonemgr.brandkit.base import HOOKS, Brand, ZoneInfo
from zonemgr.errors import BrandError
from zonemgr.model.brandspec import DeviceLink, DeviceRule, PlatformMount, PrivilegeSets, RestartPolicy
from zonemgr.model.states import Command, State

PYTHON_ONLY: Final = frozenset({"init_program"})  # answers with an object
PROGRAMS: Final = tuple(name for name in HOOKS if name not in PYTHON_ONLY)
_OWN_KEYS: Final = ("hooks", "numbers")
_PLACEHOLDER: Final = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, slots=True)
class _Program:
    """The program of one hook.  ``numbers``: states and commands as words are Solaris' numbers."""

    hook: str
    words: tuple[str, ...]
    folder: Path
    numbers: bool

    def run(self, brand: Brand, zone: ZoneInfo | None, words: Sequence[str], facts: Mapping[str, str]) -> None:
        """Become the program: we are a child that lives for this one call."""
        folder = str(self.folder)
        known = {"data": folder, **({} if zone is None else _tokens(zone))}
        argv = [_fill(word, known) for word in self.words] + list(words)
        environment = {
            **os.environ,
            "ZONEMGR_BRAND": brand.name,
            "ZONEMGR_BRAND_FOLDER": folder,
            "ZONEMGR_HOOK": self.hook,
            **facts,
            **({} if zone is None else _about(zone)),
        }
        try:
            os.execve(argv[0], argv, environment)
        except OSError as error:
            raise BrandError("cannot run {path}: {why}", path=argv[0], why=error.strerror) from error


def _tokens(zone: ZoneInfo) -> Mapping[str, str]:
    return {"zonename": zone.zonename, "zonepath": zone.zonepath, "root": zone.root}


def _fill(word: str, known: Mapping[str, str]) -> str:
    return _PLACEHOLDER.sub(lambda match: known.get(match[1], match[0]), word)


def _about(zone: ZoneInfo) -> Mapping[str, str]:
    """The zone in the environment.  ZONEMGR_ROOT leads a zonemgr that the program calls to the right instance."""
    return {
        "ZONEMGR_ZONENAME": zone.zonename,
        "ZONEMGR_ZONEPATH": zone.zonepath,
        "ZONEMGR_ZONEROOT": zone.root,
        "ZONEMGR_ALTROOT": zone.altroot,
        "ZONEMGR_ROOT": zone.layout_root,
        "ZONEMGR_CONFIG": _config_file(zone),
    }


def _config_file(zone: ZoneInfo) -> str:
    """The configuration as JSON, in a file that only this program sees and that is gone with it."""
    fd = os.memfd_create("zone", 0)  # inherited: the program opens it by its name
    with open(fd, "w", closefd=False) as file:
        json.dump(zone.config.to_json(), file)
    os.lseek(fd, 0, os.SEEK_SET)
    return f"/proc/self/fd/{fd}"


# -- one method for each kind of hook -------------------------------------------------------------------------------


def _with_arguments(program: _Program) -> Callable[..., None]:
    def method(self: Brand, zone: ZoneInfo, arguments: Sequence[str]) -> None:
        program.run(self, zone, arguments, {})

    return method


def _of_zone(program: _Program) -> Callable[..., None]:
    def method(self: Brand, zone: ZoneInfo) -> None:
        program.run(self, zone, (), {})

    return method


def _of_state(program: _Program) -> Callable[..., None]:
    def method(self: Brand, zone: ZoneInfo, state: str, command: str) -> None:
        numbers = str(State.of(state).value), str(Command(command).number)
        words = (*numbers, zone.altroot) if program.numbers else (state, command)
        facts = {
            "ZONEMGR_STATE": state,
            "ZONEMGR_COMMAND": command,
            "ZONEMGR_STATE_NUMBER": numbers[0],
            "ZONEMGR_COMMAND_NUMBER": numbers[1],
        }
        program.run(self, zone, words, facts)

    return method


def _lacks(program: _Program) -> Callable[..., None]:
    def method(self: Brand) -> None:
        program.run(self, None, (), {})

    return method


def _verify(program: _Program) -> Callable[..., None]:
    def method(self: Brand, zone: ZoneInfo, command: str) -> None:
        program.run(self, zone, (command,), {"ZONEMGR_COMMAND": command})

    return method


def _query(program: _Program) -> Callable[..., None]:
    def method(self: Brand, zone: ZoneInfo, what: str) -> None:
        program.run(self, zone, (what,), {})

    return method


def _clone(program: _Program) -> Callable[..., None]:
    def method(self: Brand, zone: ZoneInfo, source: ZoneInfo, arguments: Sequence[str]) -> None:
        facts = {"ZONEMGR_SOURCE": source.zonename, "ZONEMGR_SOURCE_ZONEROOT": source.root}
        program.run(self, zone, (*arguments, source.zonename), facts)

    return method


_SPECIAL: Final[Mapping[str, Callable[[_Program], Callable[..., None]]]] = {
    "lacks": _lacks,
    "verify": _verify,
    "query": _query,
    "clone": _clone,
    "pre_statechange": _of_state,
    "post_statechange": _of_state,
}


def _method(program: _Program) -> Callable[..., None]:
    takes_arguments = "arguments" in getattr(Brand, program.hook).__code__.co_varnames
    return _SPECIAL.get(program.hook, _with_arguments if takes_arguments else _of_zone)(program)


# -- reading --------------------------------------------------------------------------------------------------------


def read(path: Path, root: Path | None = None) -> type[Brand]:
    """The class that a ``brand.toml`` describes; its values are checked by ``contract``.  ``root`` is that of the
    instance whose administrator put it there; None when it is ours.  Raises BrandError.
    """
    table = _table(path)
    for key in table:
        if key not in contract.CHECKS and key not in _OWN_KEYS:
            hint = contract.did_you_mean(key, [*contract.CHECKS, *_OWN_KEYS])
            raise BrandError("{path}: unknown key '{key}'{hint}", path=path, key=key, hint=hint)
    numbers = table.pop("numbers", False)
    if not isinstance(numbers, bool):
        raise BrandError("{path}: numbers is neither true nor false", path=path)
    programs = dict(_programs(path, table.pop("hooks", {})))
    if root is not None:
        for words in programs.values():
            _check_words(words, path.parent, root)
    try:
        declared = {key: _value(key, value) for key, value in table.items()}
    except (TypeError, ValueError) as error:
        raise BrandError("{path}: {why}", path=path, why=error) from None
    methods = {hook: _method(_Program(hook, words, path.parent, numbers)) for hook, words in programs.items()}
    return type("Folder", (Brand,), {"__module__": __name__, **declared, **methods})


def _table(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise BrandError("{path}: {why}", path=path, why=error.strerror) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BrandError("{path}: {why}", path=path, why=error) from None


def _programs(path: Path, named: object) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(hook, words) of each program: those in the folder, and over them those that the manifest names."""
    folder = path.parent / trust.HOOKS_FOLDER
    for name in sorted(os.listdir(folder)) if folder.is_dir() else []:
        if name.startswith(".") or (folder / name).is_dir():
            continue  # what programs share
        _check_hook(name, folder / name)
        if not os.access(folder / name, os.X_OK):
            raise BrandError("{path} is not executable", path=folder / name)
        yield name, (str(folder / name),)
    if not isinstance(named, dict):
        raise BrandError("{path}: hooks is not a table", path=path)
    for name, words in named.items():
        _check_hook(name, path)
        yield name, _words(path, name, words)


def _check_words(words: tuple[str, ...], folder: Path, root: Path) -> None:
    """The program is root's alone, and what of the brand's folder it is given: a script, for one."""
    for at, word in enumerate(words):
        if not at or word.startswith("{data}/"):
            trust.check_found(Path(_fill(word, {"data": str(folder)})), root)


def _words(path: Path, hook: str, words: object) -> tuple[str, ...]:
    if not isinstance(words, list) or not words or any(not isinstance(word, str) for word in words):
        raise BrandError("{path}: hooks.{hook} is not a list of words", path=path, hook=hook)
    for word in words:
        for name in _PLACEHOLDER.findall(word):
            if name not in contract.PLACEHOLDERS:
                hint = contract.did_you_mean(name, contract.PLACEHOLDERS)
                raise BrandError(
                    "{path}: hooks.{hook}: {{{name}}} is not known{hint}",
                    path=path, hook=hook, name=name, hint=hint,
                )  # fmt: skip
    if not words[0].startswith(("/", "{data}/")):
        raise BrandError("{path}: hooks.{hook}: '{word}' is not an absolute path", path=path, hook=hook, word=words[0])
    return tuple(words)


def _check_hook(name: str, path: Path) -> None:
    if name in PYTHON_ONLY:
        raise BrandError("{path}: {name} cannot be a program: it takes a brand.py", path=path, name=name)
    if name not in PROGRAMS:
        hint = contract.did_you_mean(name, PROGRAMS)
        raise BrandError("{path}: '{name}' is no hook{hint}", path=path, name=name, hint=hint)


def _value(key: str, value: object) -> object:
    """A TOML value as the class would have it; one of the wrong type stays as it is, for ``contract`` to refuse.

    Raises TypeError for a table with keys that its kind does not have.
    """
    maker = _MAKERS.get(key)
    if maker and isinstance(value, list) and all(isinstance(item, dict) for item in value):
        return tuple(_make(key, maker, item) for item in value)
    if key == "restart" and isinstance(value, dict):
        return _make(key, RestartPolicy, value)
    if key == "ip_type_privileges" and isinstance(value, dict):
        return {name: _make(f"{key}.{name}", PrivilegeSets, sets) for name, sets in value.items()}
    if isinstance(value, list):
        as_set = key == "ip_types" or key.endswith("_privileges")
        return _frozen(value) if as_set else tuple(value)
    return value


_MAKERS: Final[Mapping[str, type[Any]]] = {
    **dict.fromkeys(("mounts", "zone_mounts", "more_mounts", "more_zone_mounts"), PlatformMount),
    **dict.fromkeys(("devices", "more_devices"), DeviceRule),
    **dict.fromkeys(("links", "more_links"), DeviceLink),
}


def _make(key: str, maker: type[Any], table: object) -> object:
    if not isinstance(table, dict):
        raise TypeError(f"{key} is not a table")
    fields = maker.__dataclass_fields__
    for name in table:
        if name not in fields:
            raise TypeError(f"{key}: unknown key '{name}'{contract.did_you_mean(name, fields)}")
    sets = maker is PrivilegeSets
    values = {k: (_frozen(v) if sets else tuple(v)) if isinstance(v, list) else v for k, v in table.items()}
    try:
        return maker(**values)
    except TypeError as error:
        raise TypeError(f"{key}: {str(error).partition('() ')[2] or error}") from None


def _frozen(items: list[Any]) -> object:
    return frozenset(items) if all(isinstance(item, str) for item in items) else items
