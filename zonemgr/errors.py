"""The error family, and the one function through which every operator message is made.

A message is a constant format with named arguments, so that it can be translated and compared.  Which language it is
made in is the process's affair: ``speak`` is called once by a command, and for each request by a supervisor, which
does one thing at a time.  Nothing below ``cli`` and ``supervisor`` prints or logs: it raises one of these.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_translated: Callable[[str], str] | None = (
    None  # the one global: every message is made in the caller's language
)


class Exit(enum.IntEnum):
    """Exit codes of every program (design, section 10)."""

    OK = 0
    ERROR = 1
    USAGE = 2
    INTERNAL = 3


def message(form: str, /, **arguments: object) -> str:
    """Make one operator message from a constant format and named arguments (str.format syntax)."""
    if _translated is not None:
        form = _translated(form)
    return form.format(**arguments) if arguments else form


def marked(form: str) -> str:
    """Marks a format that stands in a table, for the catalogues; ``message`` translates it when it is used."""
    return form


def speak(locale: str | None) -> None:
    """Make messages in the language of this locale (``de_DE.UTF-8``) from now on.  English costs nothing."""
    global _translated
    _translated = None
    if locale and not locale.startswith(("C.", "en", "POSIX")) and locale != "C":
        from zonemgr import language

        _translated = language.translation(locale)


@contextmanager
def speaking(locale: str | None) -> Iterator[None]:
    """``speak`` for a while."""
    global _translated
    before = _translated
    speak(locale)
    try:
        yield
    finally:
        _translated = before


def locale_of_environment() -> str | None:
    """The caller's locale, by what decides for gettext too."""
    return next(filter(None, map(os.environ.get, ("LC_ALL", "LC_MESSAGES", "LANG"))), None)


class ZoneError(Exception):
    """Something the operator has to know: one clear line that names the thing, and where known a way out."""

    exit_code = Exit.ERROR

    def __init__(self, form: str, /, **arguments: object) -> None:
        super().__init__(message(form, **arguments))
        self.form = form
        self.arguments = arguments

    @property
    def text(self) -> str:
        """The message without the notes that later failures have added."""
        return str(self.args[0])


class UsageError(ZoneError):
    """The command line itself is wrong."""

    exit_code = Exit.USAGE


class ConfigError(ZoneError):
    """A configuration is refused; the text names file, line, key and the nearest valid key where it can."""


class StateError(ZoneError):
    """The grid refuses a command in the zone's present state."""


class BrandError(ZoneError):
    """A brand is missing, broken, or one of its hooks failed."""


class PlatformError(ZoneError):
    """The kernel refused a part of the virtual platform."""


class BusyError(ZoneError):
    """Somebody else holds the lock."""


class InternalError(ZoneError):
    """A bug of ours: the only failure that shows a traceback."""

    exit_code = Exit.INTERNAL


class NoSuchZoneError(ZoneError):
    """No zone of that name is configured."""

    def __init__(self, zonename: str) -> None:
        super().__init__("{zonename}: No such zone configured", zonename=zonename)
