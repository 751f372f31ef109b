"""What a verb knows of its caller's wishes, and the only ways in which it speaks.

Data goes to standard output, messages to standard error as ``zonemgr: zone 'web': text``.  Colours, tables with
borders and progress bars are deliberately absent: people pipe this.
"""

from __future__ import annotations

import json
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final, NoReturn

from zonemgr.errors import Exit, InternalError, NoSuchZoneError, UsageError, ZoneError, message
from zonemgr.store.paths import Layout

_SAID_MAX: Final = 1000  # of a verb's messages, the last ones: what its result in JSON repeats


class Session:
    """One run of the program: where its zones are, and how it answers."""

    def __init__(self, program: str = "zonemgr") -> None:
        self.program = program
        self.root: str | None = None
        self.alternate = False  # the root is another system's
        self.json = False
        self.quiet = False
        self.printed = False  # there is something on standard output: the answer
        self._acted_on: str | None = None
        self._said: deque[str] = deque(maxlen=_SAID_MAX)
        self._layout: Layout | None = None

    @property
    def layout(self) -> Layout:
        """The paths of the instance that ``--root`` or the environment names."""
        if self._layout is None:
            self._layout = replace(Layout.at(self.root), alternate=self.alternate)
        return self._layout

    def data(self, text: str) -> None:
        """One line (or more) of what was asked for."""
        self.printed = True
        sys.stdout.write(text + "\n")

    def emit(self, value: Any, *, indent: int | None = 2) -> None:
        """What was asked for, as JSON.  ``indent=None`` makes the single line that a stream of records needs."""
        self.data(json.dumps(value, indent=indent, ensure_ascii=False, sort_keys=False))

    def message(self, text: str, zonename: str | None = None) -> None:
        """Something for the operator's eyes: a text that is made, or one that ``message`` knows."""
        about = message("zone '{zonename}': ", zonename=zonename) if zonename else ""
        for line in printable(message(text)).splitlines() or [""]:
            self._said.append(line)
            # In one piece: zones that boot side by side share the terminal.
            sys.stderr.write(f"{self.program}: {about}{line}\n")
        sys.stderr.flush()

    def note(self, text: str, zonename: str | None = None) -> None:
        """A message that ``-q`` silences."""
        if not self.quiet:
            self.message(text, zonename)

    def report(self, error: ZoneError, zonename: str | None = None) -> None:
        """A failure: one line, then one for each later failure that was noted on it."""
        if isinstance(error, InternalError):
            import traceback

            traceback.print_exception(error)
        self.message(error.text, None if isinstance(error, NoSuchZoneError) else zonename)
        for note in getattr(error, "__notes__", ()):
            self.message(f"  {note}", zonename)

    @contextmanager
    def acting_on(self, zonename: str) -> Iterator[None]:
        """As ``about``, for a verb that changes one zone and prints nothing: ``answer`` has its result."""
        self._acted_on = zonename
        with self.about(zonename):
            yield

    def answer(self, code: int) -> None:
        """At the end of a run: the result of a verb that printed nothing, as the verbs that run zones give theirs.  A
        command line that was wrong and a run that was interrupted have none.
        """
        if code not in (Exit.OK, Exit.ERROR, Exit.INTERNAL):
            return
        if self.json and self._acted_on is not None and not self.printed:
            said = list(self._said)
            self.emit([{"zonename": self._acted_on, "ok": code == Exit.OK, "note": None, "messages": said}])

    @contextmanager
    def about(self, zonename: str) -> Iterator[None]:
        """What fails in here concerns this zone: the failure is reported under its name and ends the program."""
        try:
            yield
        except UsageError:
            raise
        except ZoneError as error:
            self.report(error, zonename)
            sys.exit(int(error.exit_code))

    def confirm(self, question: str, *, force: bool) -> None:
        """Ask before something is destroyed.  Without a terminal only ``-F`` will do.  Raises UsageError."""
        if force:
            return
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise UsageError("{question} needs -F where nobody can be asked", question=f"“{question}”")
        if not self.agrees(question):
            sys.exit(int(Exit.ERROR))

    def agrees(self, question: str) -> bool:
        """Whether whoever is at the terminal says yes; the default is no."""
        print(f"{message(question)} (y/[n])? ", end="", file=sys.stderr, flush=True)
        answer = ""
        try:
            answer = sys.stdin.readline()
        finally:
            if not answer.endswith("\n"):
                print(file=sys.stderr)  # the line that the person has not ended
        return answer.strip().lower() in ("y", "yes")

    def fail(self, error: ZoneError, zonename: str | None = None) -> NoReturn:
        """Report and end the program."""
        self.report(error, zonename)
        sys.exit(int(error.exit_code))


def printable(text: str) -> str:
    """The text with control characters made visible: what a zone or a hook says must not steer the terminal."""
    return "".join(
        character if character in "\n\t" or character.isprintable() else f"\\x{ord(character):02x}"
        for character in text
    )


def columns(rows: Sequence[Sequence[str]], *, gap: int = 2) -> list[str]:
    """Rows of text aligned in columns; the last column is not padded."""
    if not rows:
        return []
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    pad = " " * gap
    return [
        pad.join(
            [*(cell.ljust(width) for cell, width in zip(row[:-1], widths, strict=False)), row[-1]]
        ).rstrip()
        for row in rows
    ]
