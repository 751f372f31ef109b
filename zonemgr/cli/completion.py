"""What may stand where on a command line, for the shell's completion: zones, brands, templates, config's words.

Loaded only when a shell asks (click's generator made the scripts in contrib/completions).  Starts nothing, changes
nothing, and has no answer rather than an error.
"""

from __future__ import annotations

import itertools
import os
import shlex
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import click
from click.shell_completion import CompletionItem
from click.types import StringParamType

from zonemgr.cli.output import Session
from zonemgr.errors import ZoneError
from zonemgr.store.paths import Layout

Source = Callable[[Layout, Sequence[str]], Iterable[str]]
ZONES: Final = ("NAME", "[NAME]", "NAME...", "[NAME...]", "SOURCE")
NEW_NAMES: Final = ("create", "import")  # whose NAME is not there yet


class Known(StringParamType):
    """A text of which some values are known."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        given = ctx.params.get(param.name or "") or ()
        before = [given] if isinstance(given, str) else list(given)
        try:
            found = self._source(_layout(ctx), before)
            return [CompletionItem(text) for text in sorted(set(found)) if text.startswith(incomplete)]
        except (ZoneError, OSError):
            return []


def prepare(command: click.Command, verb: str) -> None:
    """Give the parameters of a verb what is known of their values."""
    for parameter in command.params:
        kind = _kind(parameter, verb)
        if kind is not None:
            parameter.type = kind


def _kind(parameter: click.Parameter, verb: str) -> Known | click.Path | None:
    label = parameter.metavar or (parameter.name or "").upper()
    if isinstance(parameter, click.Argument):
        if label in ZONES:
            return None if verb in NEW_NAMES else Known(_zones)
        if label == "[PROPERTY=VALUE]...":
            return Known(_assignments)
        if label == "[COMMAND]...":
            return Known(_commands)
        if label == "VERB":
            return Known(_planned)
        if label == "STATE":
            return Known(lambda _layout, _before: ("incomplete", "configured", "installed"))
        return click.Path() if label == "NEWPATH" else None
    if label == "BRAND":
        return Known(_brands)
    if label == "TEMPLATE":
        return Known(_templates)
    if label.split("|")[0] in ("FILE", "FOLDER", "DIR", "ZONEPATH"):
        return click.Path(allow_dash=True)
    return None


def _layout(ctx: click.Context) -> Layout:
    """The instance that the words on the line name; click's own callbacks do not run now."""
    try:
        words = shlex.split(os.environ.get("COMP_WORDS", ""))
    except ValueError:  # an open quote
        words = []
    root = next((value for word, value in itertools.pairwise(words) if word == "--root"), None)
    if root is not None and os.path.isabs(root):
        return Layout.at(root)
    return ctx.find_object(Session).layout if ctx.find_object(Session) else Layout.at(None)  # type: ignore[union-attr]


def _zones(layout: Layout, before: Sequence[str]) -> Iterable[str]:
    from zonemgr.store import zones

    return (name for name in zones.names(layout) if name not in before)


def _brands(layout: Layout, _before: Sequence[str]) -> Iterable[str]:
    from zonemgr.brandkit import loader

    return (found.name for found in loader.discover(layout))


def _templates(layout: Layout, before: Sequence[str]) -> Iterable[str]:
    templates = (layout.etc / "templates").glob("*.toml")
    return [*(path.stem for path in templates), *_zones(layout, before)]


def _planned(_layout: Layout, _before: Sequence[str]) -> Iterable[str]:
    from zonemgr.cli.plan import VERBS

    return VERBS


def _assignments(_layout: Layout, _before: Sequence[str]) -> Iterable[str]:
    from zonemgr.model import schema

    return (f"{row.name}=" for row in schema.GLOBAL_PROPERTIES if row.name != "zonename")


def _commands(_layout: Layout, before: Sequence[str]) -> Iterable[str]:
    """The words of ``config``: those of the editor's prompt."""
    from zonemgr.cli.confighelp import candidates

    return candidates(list(before), None)
