"""``config``: show or change a zone's configuration by commands, given as arguments or in a file.

What the commands do is in ``editor``; asking for them one by one at a prompt is not part of this.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

import click

from zonemgr.cli import configtext
from zonemgr.cli.editor import Editor
from zonemgr.cli.output import Session
from zonemgr.errors import ConfigError, UsageError
from zonemgr.model.grid import name_check
from zonemgr.store import zones

COMMANDS_MAX_BYTES: Final = 1 << 20


class ConfigCommand(click.Command):
    """Takes the commands' own options (``-F``, ``-b``) as words, but the program's options from anywhere."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ours: list[str] = []
        words: list[str] = []
        rest = list(args)
        while rest:
            word = rest.pop(0)
            if word in ("--json", "-q", "--quiet", "-h", "-?", "--help") or word.startswith("--root="):
                ours.append(word)
            elif rest and (word == "--root" or (word == "-f" and len(words) < 2)):
                ours += [word, rest.pop(0)]
            else:
                words.append(word)
        return super().parse_args(ctx, [*ours, "--", *words] if words else ours)


@click.command(cls=ConfigCommand)
@click.argument("zonename", metavar="NAME")
@click.argument("words", metavar="[COMMAND]...", nargs=-1)
@click.option("-f", "file", metavar="FILE", help="Read the commands from FILE (- is standard input).")
@click.pass_obj
def config(session: Session, zonename: str, words: tuple[str, ...], file: str | None) -> None:
    """Show or change a zone's configuration with zonecfg's commands.

    Commands are set, clear, add, remove, select, info, export, verify, help and others; ';' separates them.  All of
    them are done and saved together, or nothing is.  Without any, commands are read at a prompt.

    \b
      zonemgr config web set autoboot=true
      zonemgr config web add fs dir=/srv special=/srv/web type=bind options=ro
      zonemgr config web "select fs dir=/srv; add options nosuid; end; info fs"
    """
    if words and file:
        raise UsageError("give commands or -f FILE, not both")
    with session.acting_on(zonename):
        name_check("config", zonename)
        zones.check_name(zonename)
        if not words and file is None and not sys.stdin.isatty():
            file = "-"  # nobody to ask: a script
        if not words and file is None:
            from zonemgr.cli.prompt import interactive  # only a person at a terminal needs it

            sys.exit(interactive(session, zonename))
        lines = (
            configtext.commands_of(words) if file is None else configtext.commands(_read(file), numbered=True)
        )
        Editor(session, zonename).run(lines)


def _read(file: str) -> str:
    try:
        if file == "-":
            data = sys.stdin.buffer.read(COMMANDS_MAX_BYTES + 1)
        else:
            with Path(file).open("rb") as stream:
                data = stream.read(COMMANDS_MAX_BYTES + 1)
        if len(data) > COMMANDS_MAX_BYTES:
            raise ConfigError("{file} is too large to be a zone's configuration", file=file)
        return data.decode()
    except OSError as error:
        raise ConfigError("cannot read {file}: {why}", file=file, why=error.strerror) from None
    except UnicodeDecodeError:
        raise ConfigError("{file} is not UTF-8 text", file=file) from None
