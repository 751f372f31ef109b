"""The frame of the command line: which verbs there are, the options all of them take, and the exit codes.

No verb is imported before it is called: ``--help`` reads the table below.  A verb is a click command in a file of its
family; it receives the :class:`zonemgr.cli.output.Session` through ``@click.pass_obj`` and raises ``ZoneError``.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import click

from zonemgr import __version__
from zonemgr.cli.output import Session, columns
from zonemgr.errors import Exit, PlatformError, StateError, ZoneError, locale_of_environment, message, speak


@dataclass(frozen=True, slots=True)
class Verb:
    """Where a verb lives and how it is introduced."""

    module: str
    attribute: str
    help: str
    example: str


def _verb(module: str, name: str, summary: str, example: str) -> Verb:
    return Verb(f"zonemgr.cli.{module}", name, summary, example)


SECTIONS: Final[Mapping[str, Mapping[str, Verb]]] = {
    "Make and change": {
        "create": _verb("create", "create", "Configure a new zone.", "zonemgr create web autoboot=true"),
        "config": _verb(
            "config", "config", "Show or change a zone's configuration.", "zonemgr config web info"
        ),
        "apply": _verb("apply", "apply", "Bring zones to what is configured.", "zonemgr apply web --confirm 60s"),
        "delete": _verb("delete", "delete", "Forget a zone's configuration.", "zonemgr delete web -F"),
        "verify": _verb("verify", "verify", "Check that a zone could be made here.", "zonemgr verify web"),
        "install": _verb("install", "install", "Give a zone its root.", "zonemgr install web"),
        "uninstall": _verb("uninstall", "uninstall", "Destroy a zone's root.", "zonemgr uninstall web -F"),
    },
    "Copy and carry": {
        "clone": _verb("clone", "clone", "Make a new zone from an installed one.", "zonemgr clone web web2"),
        "export": _verb(
            "archive", "export", "Write a zone as one archive.", "zonemgr export web -f web.tar.zst"
        ),
        "import": _verb(
            "archive", "import_zone", "Make a zone from an archive.", "zonemgr import -f web.tar.zst"
        ),
        "detach": _verb(
            "attach", "detach", "Take a zone's files out of this host's hands.", "zonemgr detach web"
        ),
        "attach": _verb("attach", "attach", "Take detached files back as a zone.", "zonemgr attach web"),
        "move": _verb(
            "move", "move", "Move a zone's files to another folder.", "zonemgr move web /zones/web"
        ),
        "rename": _verb("move", "rename", "Give a zone another name.", "zonemgr rename web www"),
        "mark": _verb("mark", "mark", "Correct the record of a zone's state.", "zonemgr mark web incomplete"),
    },
    "Run": {
        "ready": _verb("lifecycle", "ready", "Make a zone's platform, start nothing.", "zonemgr ready web"),
        "boot": _verb("lifecycle", "boot", "Start zones.", "zonemgr boot web db -- -s"),
        "reboot": _verb("lifecycle", "reboot", "Halt zones and start them again.", "zonemgr reboot web"),
        "halt": _verb("lifecycle", "halt", "Stop zones at once.", "zonemgr halt -a"),
        "shutdown": _verb("lifecycle", "shutdown", "Stop zones in good order.", "zonemgr shutdown web -t 30"),
        "confirm": _verb("live", "confirm", "Keep what apply has changed.", "zonemgr confirm web"),
        "mount": _verb("lifecycle", "mount", "Open a zone's root for maintenance.", "zonemgr mount web"),
        "unmount": _verb("lifecycle", "unmount", "End the maintenance of a zone.", "zonemgr unmount web"),
        "autoboot": _verb(
            "autoboot", "autoboot", "Start or stop zones with the host.", "zonemgr autoboot --stop"
        ),
        "sysboot": _verb("autoboot", "sysboot", "Prepare a zone that is not booted.", "zonemgr sysboot web"),
    },
    "Use": {
        "login": _verb(
            "login", "login", "Enter a zone or run a command in it.", "zonemgr login web -- uname -n"
        ),
        "console": _verb("console", "console", "Connect to a zone's console.", "zonemgr console web"),
    },
    "Look": {
        "list": _verb("list", "list_zones", "List zones and their states.", "zonemgr list -cv"),
        "stat": _verb("stat", "stat", "Show what zones use.", "zonemgr stat 5"),
        "events": _verb("events", "events", "Show what happens to zones.", "zonemgr events -f web"),
        "brands": _verb("brands", "brands", "List the brands found on this host.", "zonemgr brands"),
        "plan": _verb("plan", "plan", "Show what a verb would do.", "zonemgr plan boot web"),
        "trace": _verb(
            "trace", "trace", "Name the rule that stops a packet.", "zonemgr trace web tcp/80"
        ),
        "fsck": _verb("plan", "fsck", "Reconcile records with the kernel.", "zonemgr fsck"),
        "doctor": _verb("doctor", "doctor", "Say what this host lacks.", "zonemgr doctor"),
    },
}
VERBS: Final[Mapping[str, Verb]] = {
    name: verb for section in SECTIONS.values() for name, verb in section.items()
}


def _set_root(context: click.Context, _: click.Parameter, value: str | None) -> None:
    if value is not None:
        if not os.path.isabs(value):
            raise click.BadParameter("root path must be absolute.")
        context.ensure_object(Session).root = value


# What the reference does in an alternate root, and what looks at it.
IN_ALTERNATE_ROOT: Final = frozenset({"list", "login", "mount", "unmount"})


def _set_alternate(context: click.Context, _: click.Parameter, value: str | None) -> None:
    if value is None:
        return
    if not os.path.isabs(value):
        raise click.BadParameter("root path must be absolute.")
    if not os.path.isdir(value):
        raise click.BadParameter("root path must be a directory.")
    session = context.ensure_object(Session)
    if session.root is not None:
        raise click.UsageError("-R and --root are mutually exclusive")
    session.root, session.alternate = value, True


def _refuse_in_alternate_root(session: Session, verb: str) -> None:
    """Raises StateError for verbs that are not for alternate roots, PlatformError for a root that leads elsewhere."""
    if not session.alternate:
        return
    if verb not in IN_ALTERNATE_ROOT:
        raise StateError("cannot {verb} zone in alternate root", verb=verb)
    layout = session.layout
    for path in (layout.etc, layout.lib):
        if os.path.realpath(path) != os.fspath(path):
            raise PlatformError("{path} leads out of the alternate root", path=path)


def _set_json(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        context.ensure_object(Session).json = True


def _set_quiet(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        context.ensure_object(Session).quiet = True


def global_options() -> list[click.Parameter]:
    """The options that are accepted before and after the verb."""
    shared: dict[str, Any] = {"expose_value": False, "is_eager": True}
    return [
        click.Option(
            ["--root"], metavar="DIR", callback=_set_root, help="Use the instance below DIR.", **shared
        ),
        click.Option(["--json"], is_flag=True, callback=_set_json, help="Answer in JSON.", **shared),
        click.Option(
            ["-q", "--quiet"], is_flag=True, callback=_set_quiet, help="Say nothing on success.", **shared
        ),
    ]


class TailCommand(click.Command):
    """A verb that takes words after ``--`` which are not ours to parse.

    click drops the ``--``, and with it the difference between ``boot a b`` and ``boot a -- b``.  The words are in
    ``click.get_current_context().meta[TAIL]``, None when there was no ``--``.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        head, tail = self.split(ctx, args)
        ctx.meta[TAIL] = tail
        return super().parse_args(ctx, head)

    def split(self, ctx: click.Context, args: list[str]) -> tuple[list[str], list[str] | None]:
        """The words that are ours and those that are not."""
        if "--" not in args:
            return args, None
        at = args.index("--")
        return args[:at], args[at + 1 :]


TAIL: Final = "zonemgr.tail"


def tail() -> tuple[str, ...] | None:
    """The words after ``--`` of the running verb."""
    words = click.get_current_context().meta.get(TAIL)
    return None if words is None else tuple(words)


READER_GONE: Final = 128 + 13  # as if SIGPIPE had ended it


@contextmanager
def _for_a_reader() -> Iterator[None]:
    """Where nobody reads any more, click would call it an error."""
    try:
        yield
    except BrokenPipeError:
        raise SystemExit(READER_GONE) from None


class LazyGroup(click.Group):
    """The verbs of the table, each imported when it is called."""

    def make_context(self, *args: Any, **more: Any) -> click.Context:
        with _for_a_reader():  # --help
            return super().make_context(*args, **more)

    def invoke(self, ctx: click.Context) -> Any:
        with _for_a_reader():
            return super().invoke(ctx)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return load(cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            ctx.fail(message("no such verb: {verb}{hint}", verb=args[0], hint=_nearest(args[0])))
        found = super().resolve_command(ctx, args)
        _refuse_in_alternate_root(ctx.ensure_object(Session), found[0] or "")
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(map(len, VERBS))
        for title, verbs in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), verb.help) for name, verb in verbs.items()])
        with formatter.section("Examples"):
            for line in columns(
                [["  " + verb.example, verb.help] for verb in map(VERBS.__getitem__, _SHOWN)]
            ):
                formatter.write(line + "\n")


_SHOWN: Final = ("create", "install", "boot", "list", "login", "halt")


def _nearest(word: str) -> str:
    import difflib

    close = difflib.get_close_matches(word, VERBS, n=1)
    return message(" (did you mean {near}?)", near=close[0]) if close else ""


def load(name: str) -> click.Command | None:
    """The verb of that name, with the global options and its example added."""
    verb = VERBS.get(name)
    if verb is None:
        return None
    return complete(getattr(importlib.import_module(verb.module), verb.attribute), name, verb)


def complete(command: click.Command, name: str, verb: Verb) -> click.Command:
    """A verb's own command with what the frame adds to every verb."""
    taken = {text for parameter in command.params for text in parameter.opts}
    command.params.extend(option for option in global_options() if not taken & set(option.opts))
    command.name = name
    command.short_help = verb.help
    command.help = command.help or verb.help
    command.epilog = command.epilog or f"Example: {verb.example}"
    if "_ZONEMGR_COMPLETE" in os.environ:  # a shell asks what may stand where
        from zonemgr.cli import completion

        completion.prepare(command, name)
    return command


CONTEXT: Final[Mapping[str, Any]] = {"help_option_names": ["-h", "-?", "--help"]}

program = LazyGroup(
    "zonemgr",
    params=[
        *global_options(),
        click.Option(
            ["-R"],
            metavar="DIR",
            expose_value=False,
            callback=_set_alternate,
            help="Mount zones of another system, whose root is DIR (mount, unmount, login and list only).",
        ),
        click.Option(
            ["--version"],
            is_flag=True,
            expose_value=False,
            help="Show the version.",
            callback=lambda context, _, wanted: _version(context) if wanted else None,
        ),
    ],
    help="Zones for Linux: Solaris-like zones on namespaces and cgroups.",
    epilog="zonemgr VERB --help tells more about a verb.",
    context_settings=dict(CONTEXT),
)


def _version(context: click.Context) -> None:
    session = context.ensure_object(Session)
    if session.json:
        from zonemgr.cli import shapes

        session.emit({"zonemgr": __version__, "json": shapes.VERSION})
    else:
        session.data(f"zonemgr {__version__}")
    context.exit(0)


def main(arguments: Sequence[str] | None = None) -> None:
    """The ``zonemgr`` program."""
    run(program, sys.argv[1:] if arguments is None else arguments, Session())


def warm_up(root: str, zonename: str) -> None:
    """Go the way of a command to a zone that is not there, to where standard error is told so."""
    words = ["--root", root, "login", zonename, "--", "true"]
    program.main(words, prog_name=program.name, obj=Session(), standalone_mode=False)


def run(command: click.Command, arguments: Sequence[str], session: Session) -> None:
    """Run a command to its exit status (design, section 10).  Does not return."""
    code: int | None = Exit.INTERNAL
    speak(locale_of_environment())
    try:
        code = _delegated(arguments, session) if os.geteuid() else None
        if code is None:
            code = _result(command, arguments, session)
            session.answer(code)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has gone (``| head``).  Python would complain once more at exit, so its stdout leads nowhere now.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = READER_GONE
    sys.exit(int(code))


def _delegated(arguments: Sequence[str], session: Session) -> int | None:
    """What a user who is not root may have done by root; None for everything else."""
    from zonemgr.cli import delegated

    return delegated.attempt(session, arguments)


def _result(command: click.Command, arguments: Sequence[str], session: Session) -> int:
    try:
        result = command.main(list(arguments), prog_name=session.program, obj=session, standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return Exit.USAGE
    except click.UsageError as error:
        hint = message(" (see {command} --help)", command=error.ctx.command_path) if error.ctx else ""
        session.message(_usage(error) + hint)
        return Exit.USAGE
    except click.ClickException as error:
        session.message(error.format_message())
        return Exit.ERROR
    except (click.Abort, KeyboardInterrupt):
        return 128 + 2
    except SystemExit as end:  # what was wrong has been reported (Session.about), or it is another program's status
        return end.code if isinstance(end.code, int) else Exit.OK if end.code is None else Exit.ERROR
    except ZoneError as error:
        session.report(error)
        return error.exit_code
    except BrokenPipeError:
        raise
    except OSError as error:
        session.message(
            message("{what}: {why}", what=error.filename or session.program, why=error.strerror or error)
        )
        return Exit.ERROR
    except Exception:  # noqa: BLE001 - the one place where a bug of ours becomes an exit status
        import traceback

        traceback.print_exc()
        session.message("internal error: this is a bug of zonemgr")
        return Exit.INTERNAL
    return result if isinstance(result, int) else Exit.OK


def _usage(error: click.UsageError) -> str:
    """What is wrong with the command line, in the caller's language where click's text can be told apart."""
    if isinstance(error, click.NoSuchOption):
        near = message(" (did you mean {near}?)", near=error.possibilities[0]) if error.possibilities else ""
        return message("No such option '{option}'{hint}", option=error.option_name, hint=near)
    if isinstance(error, click.MissingParameter) and error.param is not None:
        return message(
            "Missing argument {name}", name=error.param.make_metavar(error.ctx or program_context())
        )
    return error.format_message().rstrip(".")


def program_context() -> click.Context:
    """A context for what is asked outside of a run."""
    return click.Context(program, info_name="zonemgr")
