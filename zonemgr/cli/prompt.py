"""The interactive editor: zonecfg's prompt (reference, sections 7.1 and 7.2).

The commands are ``editor``'s; here is what only a person at a terminal needs: prompts that show the scope, history and
completion, questions, going on after an error, and a last chance for what was not saved.  Nothing reaches the zone's
file before ``commit`` or ``exit``.  The exit status is 1 when any command failed, also when the save worked.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from zonemgr.cli import configtext
from zonemgr.cli.confighelp import candidates
from zonemgr.cli.editor import Editor
from zonemgr.cli.output import Session
from zonemgr.cli.scope import require_write_access
from zonemgr.errors import Exit, InternalError, StateError, UsageError, ZoneError, message
from zonemgr.model import schema
from zonemgr.model.states import State

CHANGING: Final = frozenset(
    (
        "create",
        "delete",
        "set",
        "clear",
        "add",
        "select",
        "remove",
        "end",
        "cancel",
        "commit",
        "revert",
        "verify",
    )
)
HISTORY_LINES: Final = 1000


class Prompt:
    """One interactive run of ``config``."""

    def __init__(self, session: Session, editor: Editor) -> None:
        self.session = session
        self.editor = editor
        self.failed = False
        self.read_only = False

    def run(self) -> int:
        """Read and obey commands until exit or the end of input.  Returns the exit status."""
        self._welcome()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a stray Ctrl-C must not lose an hour of editing
        with _Readline(self):
            while not self.editor.done:
                line = self._line()
                if line is None:
                    if self._leave(force=False):
                        break
                    continue
                self._obey(line)
        return int(Exit.ERROR if self.failed else Exit.OK)

    def _welcome(self) -> None:
        name = self.editor.zonename
        if self.editor.draft is None:
            self.session.message(message("{name}: No such zone configured", name=name))
            self.session.message("Use 'create' to begin configuring a new zone.")
        try:
            require_write_access(self.session.layout, "configure")
        except StateError:
            self.read_only = True
            self.session.message("WARNING: you do not have write access to this zone's configuration file;")
            self.session.message("going into read-only mode.")

    @property
    def text(self) -> str:
        """``zonecfg:web> `` or, inside a resource, ``zonecfg:web:fs> ``."""
        scope = f":{self.editor.scope.kind.name}" if self.editor.scope else ""
        return f"zonecfg:{self.editor.zonename}{scope}> "

    def _line(self) -> str | None:
        try:
            return input(self.text)
        except EOFError:
            self.session.data("")
            return None
        except UnicodeDecodeError:
            self._fail(UsageError("that is not UTF-8 text"))
            return ""

    # -- commands -------------------------------------------------------------------------------------------

    def _obey(self, text: str) -> None:
        """All commands of a line, up to the first that fails."""
        try:
            for line in configtext.commands(text):
                self._command(line.words[0], line.words[1:])
                if self.editor.done:
                    return
        except _Declined:
            self.session.message("nothing is changed")
        except ZoneError as error:
            self._fail(error)
        except Exception as error:  # noqa: BLE001 - a bug of ours must not lose an hour of editing either
            bug = InternalError("internal error: this is a bug of zonemgr")
            bug.__cause__ = error
            self._fail(bug)

    def _fail(self, error: ZoneError) -> None:
        self.failed = True
        self.session.report(error)

    def _command(self, name: str, words: tuple[str, ...]) -> None:
        if self.read_only and name in CHANGING:
            raise StateError(
                "{zonename}: cannot {name} in read-only mode.", zonename=self.editor.zonename, name=name
            )
        if name == "exit":
            self._leave(force="-F" in words)
        elif name == "info" and sys.stdout.isatty() and not self.session.json:
            self._page(words)
        else:
            self.editor.command((name, *self._answered(name, words)))

    def _answered(self, name: str, words: tuple[str, ...]) -> tuple[str, ...]:
        """A command that would want -F: ask the question instead, and give it -F when the answer is yes."""
        question = self._question(name, words)
        if question is None or "-F" in words:
            return words
        if not self._yes(question):
            raise _Declined()
        return ("-F", *words)

    def _question(self, name: str, words: tuple[str, ...]) -> str | None:
        editor = self.editor
        if name == "create" and editor.draft is not None and editor.state < State.INSTALLED:
            return message("Zone {zonename} already exists; create anyway", zonename=editor.zonename)
        if name == "revert" and editor.changed:
            return message("Are you sure you want to revert")
        if name == "delete" and editor.draft is not None and editor.state is State.CONFIGURED:
            return message("Are you sure you want to delete zone {zonename}", zonename=editor.zonename)
        if name == "remove" and editor.scope is None and len(words) == 1 and editor.draft is not None:
            kind = schema.resource(words[0])
            if kind is not None and not kind.single and len(editor.draft.table.get(kind.name, ())) > 1:
                return message("Are you sure you want to remove ALL '{kind}' resources", kind=kind.name)
        return None

    def _yes(self, question: str) -> bool:
        while True:
            try:
                answer = input(f"{question} (y/[n])? ").strip().lower()
            except EOFError:
                return False
            except UnicodeDecodeError:
                continue
            if answer in ("", "n", "no"):
                return False
            if answer in ("y", "yes"):
                return True

    def _leave(self, *, force: bool) -> bool:
        """Save and end; when that cannot be, ask whether to end all the same."""
        editor = self.editor
        if editor.scope is not None:
            if not force and not self._yes(message("Resource incomplete; really quit")):
                return False
            editor.scope = None
        if editor.changed and not self.read_only:
            try:
                editor.commit(())
            except ZoneError as error:
                self._fail(error)
                if not force and not self._yes(message("Configuration not saved; really quit")):
                    return False
        editor.done = True
        return True

    def _page(self, words: tuple[str, ...]) -> None:
        """``info`` through a pager when it is longer than the window."""
        import shutil

        import click

        lines = self.editor.info_lines(words)
        if len(lines) < shutil.get_terminal_size().lines:
            self.session.data("\n".join(lines))
        else:
            click.echo_via_pager("\n".join(lines) + "\n")

    # -- completion -----------------------------------------------------------------------------------------

    def candidates(self, words: list[str]) -> Iterable[str]:
        """What may follow these words."""
        return candidates(words, self.editor.scope.kind if self.editor.scope else None)


class _Declined(Exception):
    """The answer was no."""


class _Readline:
    """Line editing with history and completion, where the interpreter has it and a person is there."""

    def __init__(self, prompt: Prompt) -> None:
        self._prompt = prompt
        self._matches: list[str] = []
        self._history = Path(os.environ.get("HOME") or "/root") / ".zonecfg_history"

    def __enter__(self) -> None:
        try:
            import readline
        except ImportError:
            return
        readline.set_completer(self._complete)
        readline.set_completer_delims(" \t;")
        readline.set_history_length(HISTORY_LINES)
        readline.parse_and_bind("tab: complete")
        try:
            readline.read_history_file(self._history)
        except OSError:
            return  # there is none yet

    def _complete(self, text: str, state: int) -> str | None:
        import readline

        if state == 0:
            before = readline.get_line_buffer()[: readline.get_begidx()].rpartition(";")[2].split()
            found = [word for word in self._prompt.candidates(before) if word.startswith(text)]
            self._matches = [word if word.endswith("=") else f"{word} " for word in found]
        return self._matches[state] if state < len(self._matches) else None

    def __exit__(self, *_: object) -> None:
        try:
            import readline

            readline.write_history_file(self._history)
        except (ImportError, OSError):
            return  # a home that cannot be written keeps no history


def interactive(session: Session, zonename: str) -> int:
    """Edit a zone at the prompt.  Returns the exit status."""
    return Prompt(session, Editor(session, zonename)).run()
