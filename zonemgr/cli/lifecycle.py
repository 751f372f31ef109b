"""The verbs that a zone's supervisor performs: ready, boot, reboot, halt, shutdown, mount, unmount.

Several zones are asked side by side.  The checks made here are a courtesy; the supervisor decides.  An interrupted
verb lets go of the supervisor, which finishes what it was asked for.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, TypeVar

import click

from zonemgr.cli.main import TailCommand, tail
from zonemgr.cli.output import Session
from zonemgr.cli.progress import count_down
from zonemgr.errors import (
    Exit,
    InternalError,
    PlatformError,
    StateError,
    UsageError,
    ZoneError,
    locale_of_environment,
    message,
)
from zonemgr.model.grid import client_check, name_check
from zonemgr.model.states import BOOTARGS_MAX, State
from zonemgr.store.paths import Layout
from zonemgr.wire import varlink
from zonemgr.wire.client import RemoteError

INTERRUPTED: Final = 130


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked of one zone: the verb as messages name it, and the call.  ``then`` follows when it worked."""

    verb: str
    method: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    then: Request | None = None

    @property
    def force(self) -> bool:
        return bool(self.parameters.get("force"))


# What -a means: the zones in a state which the verb is for.
ALL: Final[Mapping[str, frozenset[State]]] = {
    "ready": frozenset({State.INSTALLED}),
    "boot": frozenset({State.INSTALLED, State.READY}),
    "reboot": frozenset({State.RUNNING}),
    "halt": frozenset({State.READY, State.RUNNING, State.SHUTTING_DOWN, State.DOWN}),
    "shutdown": frozenset({State.RUNNING}),
    "mount": frozenset({State.INSTALLED}),
    "unmount": frozenset({State.MOUNTED}),
}


class Conversation:
    """One zone's part of a verb: what its supervisor said, and how it ended."""

    def __init__(self, session: Session, zonename: str) -> None:
        self.session = session
        self.zonename = zonename
        self.messages: list[str] = []
        self.note: str | None = None
        self.result: Mapping[str, Any] = {}  # the last reply's parameters
        self.asked = False
        self.exit_code: int | None = None  # None: under way

    def hear(self, text: str) -> None:
        """A line from the supervisor; with ``-q`` it is kept until something fails."""
        self.messages.append(text)
        if not self.session.quiet:
            self.session.message(text, self.zonename)

    def hear_reply(self, reply: Mapping[str, Any]) -> None:
        if reply.get("message"):
            self.hear(str(reply["message"]))

    def catch_up(self, messages: Sequence[str]) -> None:
        """The last reply repeats everything: hear what was lost because we read too slowly."""
        unheard = list(self.messages)
        for text in messages:
            if text in unheard:
                unheard.remove(text)
            else:
                self.hear(text)

    def finish(self, note: str | None) -> None:
        self.note = note
        if note and note not in self.messages:
            self.session.note(note, self.zonename)

    def fail(self, error: ZoneError) -> None:
        if self.session.quiet:
            for text in self.messages:
                self.session.message(text, self.zonename)
        self.messages += error.text.splitlines()
        if error.text:
            self.session.report(error, self.zonename)
        self.exit_code = int(error.exit_code)

    def to_json(self) -> dict[str, Any]:
        return {
            "zonename": self.zonename,
            "ok": self.exit_code == Exit.OK,
            "note": self.note,
            "messages": self.messages,
        }


class _SupervisorRefused(ZoneError):
    """The supervisor said no; its texts have been heard."""

    def __init__(self, exit_code: int) -> None:
        super().__init__("")
        self.exit_code = Exit.INTERNAL if exit_code == Exit.INTERNAL else Exit.ERROR


def require_root(verb: str) -> None:
    """Raises StateError for everybody but root."""
    if os.geteuid() != 0:
        raise StateError("only a privileged user may {verb} a zone.", verb=verb)


def converse(layout: Layout, talk: Conversation, request: Request) -> None:
    """One request to the supervisor, after the courtesy checks.  Raises ZoneError."""
    from zonemgr.store.observe import state_of

    zonename = talk.zonename
    name_check(request.verb, zonename)
    _mend(layout, talk)
    state = state_of(layout, zonename)
    client_check(request.verb, state if state.active else None, state, request.force)
    if request.then is not None and request.then.verb == "boot":
        _refuse_no_return(layout, talk)
    talk.finish(_ask(layout, talk, request))


def _mend(layout: Layout, talk: Conversation) -> None:
    """An interrupted verb may have left the zone incomplete for a moment only: it is finished or undone first."""
    from zonemgr.store import journal

    if os.geteuid() == 0 and journal.pending(layout, talk.zonename):
        from zonemgr.cli.install import administration

        with administration(layout, talk.zonename, talk.hear):
            pass


def _refuse_no_return(layout: Layout, talk: Conversation) -> None:
    """Before a zone is shut down to be booted again: whether it could be, as ``reboot`` does.  Raises StateError."""
    from zonemgr.brandkit.verify import check_next

    try:
        check_next(layout, talk.zonename, talk.hear)
    except ZoneError as error:
        talk.hear(error.text)
        raise StateError("the zone is not rebooted, and runs on as it is") from error


def _ask(layout: Layout, talk: Conversation, request: Request) -> str | None:
    from zonemgr.wire.start import call

    def asked() -> None:
        talk.asked = True

    heard = len(talk.messages)
    try:
        reply = call(
            layout,
            talk.zonename,
            f"{varlink.ZONE}.{request.method}",
            {**request.parameters, "locale": locale_of_environment()},
            say=talk.hear,
            on_asked=asked,
            on_reply=talk.hear_reply,
        )
    except RemoteError as error:
        raise _explained(talk, request, error) from error
    talk.result = reply
    talk.catch_up([*talk.messages[:heard], *(reply.get("messages") or ())])
    return reply.get("note")


def _explained(talk: Conversation, request: Request, error: RemoteError) -> ZoneError:
    """What a varlink error means to the operator."""
    if error.name == varlink.REFUSED:
        talk.result = error.parameters
        talk.catch_up(error.parameters.get("messages") or ())
        return _SupervisorRefused(int(error.parameters.get("code", 1)))
    if error.name == varlink.PERMISSION_DENIED:
        return StateError("only a privileged user may {verb} a zone.", verb=request.verb)
    return PlatformError(
        "the supervisor does not understand {method}: {name} {details}",
        method=request.method,
        name=error.name,
        details=dict(error.parameters) or "",
    )


def perform(session: Session, zonename: str, request: Request) -> Conversation:
    """All of a verb for one zone; reports what fails."""
    talk = Conversation(session, zonename)
    _perform(talk, request)
    return talk


def _perform(talk: Conversation, request: Request | None) -> None:
    try:
        while request is not None:
            converse(talk.session.layout, talk, request)
            request = request.then
        talk.exit_code = Exit.OK
    except ZoneError as error:
        talk.fail(error)
    except OSError as error:
        talk.fail(PlatformError("{what}: {why}", what=error.filename or "cannot ask", why=error.strerror))
    except Exception as error:  # noqa: BLE001 - one zone's mishap must not hide what became of the others
        internal = InternalError("internal error: this is a bug of zonemgr")
        internal.__cause__ = error
        talk.fail(internal)


def run(session: Session, zonenames: Sequence[str], request: Request, jobs: int | None = None) -> int:
    """Ask all zones, so many of them at once; the exit status."""
    talks, code = answers(session, zonenames, request, jobs)
    if session.json and code != INTERRUPTED:
        session.emit([talk.to_json() for talk in talks])
    return code


def answers(
    session: Session, zonenames: Sequence[str], request: Request, jobs: int | None = None
) -> tuple[list[Conversation], int]:
    """As ``run``, but the answers are the caller's to show: what each supervisor said, and the exit status."""
    require_root(request.verb)
    talks = [Conversation(session, zonename) for zonename in dict.fromkeys(zonenames)]
    try:
        with count_down(session, request.verb, len(talks)) as tick:
            _run([partial(_perform, talk, request) for talk in talks], jobs or jobs_at_once(), tick)
    except KeyboardInterrupt:
        _let_go(session, talks, request)
        return talks, INTERRUPTED
    return talks, max((talk.exit_code or 0 for talk in talks), default=0)


def jobs_at_once() -> int:
    """Zones that are worked on side by side: enough to keep every processor busy while some of them wait."""
    return max(4, 2 * len(os.sched_getaffinity(0)))


def _run(jobs: Sequence[Callable[[], None]], at_once: int, tick: Callable[[int], None]) -> None:
    if len(jobs) == 1:
        jobs[0]()
        return
    import threading  # 5 ms that a single zone need not pay

    waiting = iter(jobs)
    turn = threading.Lock()

    def work() -> None:
        while True:
            with turn:
                job = next(waiting, None)
            if job is None:
                return
            job()
            with turn:
                tick(1)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(at_once, len(jobs)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _let_go(session: Session, talks: Sequence[Conversation], request: Request) -> None:
    for talk in talks:
        if talk.exit_code is None:
            session.message(_farewell(session, talk, request), talk.zonename)


def _farewell(session: Session, talk: Conversation, request: Request) -> str:
    """What becomes of the request that nobody waits for any more, and what may be done about it."""
    if not talk.asked:
        return message("interrupted before anything was asked")
    if request.verb in ("ready", "boot"):
        return message(
            "interrupted: the {verb} goes on ({program} halt {zonename} cancels it)",
            verb=request.verb,
            program=session.program,
            zonename=talk.zonename,
        )
    if request.parameters.get("confirm"):
        return message(
            "interrupted: the {verb} goes on, and is taken back unless it is confirmed ({program} confirm {zonename})",
            verb=request.verb,
            program=session.program,
            zonename=talk.zonename,
        )
    return message("interrupted: the {verb} goes on", verb=request.verb)


@dataclass(frozen=True, slots=True)
class Choice:
    """The zones that a command line names: by their names, by patterns, by their brand, or all of them."""

    names: tuple[str, ...]
    everything: bool
    brand: str | None
    jobs: int | None

    def zones(self, session: Session, verb: str) -> Sequence[str]:
        """The zones.  Those that nobody has named are the ones in a state which the verb is for.  Raises UsageError,
        ZoneError.
        """
        patterns = [name for name in self.names if _PATTERN.intersection(name)]
        if self.everything and self.names:
            raise UsageError("give either zone names or -a")
        if not (self.everything or self.names or self.brand):
            raise UsageError("no zone specified")
        if not (self.everything or patterns or self.brand):
            return self.names
        return self._found(session, verb, patterns)

    def _found(self, session: Session, verb: str, patterns: Sequence[str]) -> Sequence[str]:
        from fnmatch import fnmatchcase

        from zonemgr.store.observe import all_zones

        zones = all_zones(session.layout)
        for pattern in patterns:
            if not any(fnmatchcase(seen.zonename, pattern) for seen in zones):
                raise ZoneError("no zone's name matches '{pattern}'", pattern=pattern)
        named = set(self.names).difference(patterns)
        meant = [
            seen
            for seen in zones
            if seen.state in ALL[verb]
            and (self.brand is None or seen.brand == self.brand)
            and (not self.names or any(fnmatchcase(seen.zonename, pattern) for pattern in patterns))
        ]
        if self.brand is not None and named:
            meant += [seen for seen in zones if seen.zonename in named and seen.brand == self.brand]
            named = set()
        found = [*(name for name in self.names if name in named), *(seen.zonename for seen in meant)]
        if not found:
            session.note(message("there is no zone to {verb}", verb=verb))
        return found

    def perform(self, session: Session, request: Request) -> int:
        """All of a verb; the exit status."""
        return run(session, self.zones(session, request.verb), request, self.jobs)


_PATTERN: Final = frozenset("*?[")  # none of which a zone's name can contain


def boot_arguments(words: Sequence[str] | None) -> str | None:
    """The words after ``--`` as one string, None when there was no ``--``.  Raises UsageError, ZoneError."""
    if words is None:
        return None
    text = " ".join(words)
    if len(text) > BOOTARGS_MAX:
        raise ZoneError("Boot argument list too long")
    return text


def _no_tail(verb: str) -> None:
    if tail() is not None:
        raise UsageError("{verb} takes no arguments after --", verb=verb)


Verb = TypeVar("Verb", bound=Callable[..., int])


def _which(verb: Verb) -> Verb:
    """The words that say which zones are meant, as one argument: a Choice."""

    @functools.wraps(verb)
    def call(
        names: tuple[str, ...], everything: bool, brand: str | None, jobs: int | None, **options: Any
    ) -> int:
        session: Session = click.get_current_context().obj
        return verb(session, Choice(names, everything, brand, jobs), **options)

    for add in (
        click.option(
            "-j", "--jobs", type=click.IntRange(1, 1000), metavar="N", help="So many zones at once."
        ),
        click.option(
            "-b", "--brand", metavar="BRAND", help="The zones of this brand (of those that are named)."
        ),
        click.option("-a", "--all", "everything", is_flag=True, help="All zones in a state for it."),
        click.argument("names", metavar="NAME...", nargs=-1),
    ):
        call = add(call)
    return call  # type: ignore[return-value]


@click.command(cls=TailCommand)
@_which
def ready(session: Session, which: Choice) -> int:
    """Make the virtual platform of zones (file systems, network, limits) without starting a process."""
    _no_tail("ready")
    return which.perform(session, Request("ready", "Ready"))


@click.command(cls=TailCommand)
@_which
@click.option("-f", "--force", is_flag=True, help="Also boot a zone whose installation is incomplete.")
@click.option("--wait", is_flag=True, help="Stay until the zones are down; tell systemd when they are ready.")
@click.option("--wait-ready", is_flag=True, help="Stay until their inits say that they are ready (ready-s at most).")
def boot(session: Session, which: Choice, force: bool, wait: bool, wait_ready: bool) -> int:
    """Start zones.  Words after -- are boot arguments: -m OPTION, -i INIT, -s, and what init understands."""
    request = Request("boot", "Boot", {"args": boot_arguments(tail()), "force": force or None})
    if wait and wait_ready:
        raise UsageError("--wait and --wait-ready are mutually exclusive")
    if not (wait or wait_ready):
        return which.perform(session, request)
    from zonemgr.cli import follow

    names = which.zones(session, "boot")
    code = run(session, names, request, which.jobs)
    if code == Exit.OK and wait_ready:
        return follow.until_ready(session, names)
    if code == Exit.OK:
        follow.stay(session, names)
    return code


@click.command(cls=TailCommand)
@_which
def reboot(session: Session, which: Choice) -> int:
    """Halt zones and boot them again, without asking their processes (shutdown -r asks)."""
    request = Request("reboot", "Reboot", {"args": boot_arguments(tail())})
    return which.perform(session, request)


@click.command(cls=TailCommand)
@_which
def halt(session: Session, which: Choice) -> int:
    """Stop everything in zones at once and take their platforms down.  Cancels a boot that is under way."""
    _no_tail("halt")
    return which.perform(session, Request("halt", "Halt"))


@click.command(cls=TailCommand)
@_which
@click.option("-r", "--reboot", "again", is_flag=True, help="Boot again afterwards; boot arguments after --.")
@click.option("-t", "--timeout", type=click.IntRange(min=1), metavar="SECONDS", help="How long to wait.")
def shutdown(session: Session, which: Choice, again: bool, timeout: int | None) -> int:
    """Ask zones to shut themselves down, and wait for them.  A zone that does not is left running.

    With -a (and no more) it is how the host stops its zones: a zone that does not end in time is halted, and what is
    left after that is named.  -t is the time for all of it, then.
    """
    if not again:
        _no_tail("shutdown without -r")
        if which.everything and which.brand is None:
            from zonemgr.cli import autoboot

            return autoboot.stop_all(session, timeout or autoboot.STOP_S)
    then = Request("boot", "Boot", {"args": boot_arguments(tail())}) if again else None
    request = Request("shutdown", "Shutdown", {"timeout": timeout}, then)
    return which.perform(session, request)


@click.command(cls=TailCommand)
@_which
@click.option("-f", "--force", is_flag=True, help="Also a zone whose installation is incomplete.")
@click.option(
    "-u", "--update", is_flag=True, help="Open the root itself for changes, not a scratch zone beside it."
)
def mount(session: Session, which: Choice, force: bool, update: bool) -> int:
    """Open the roots of zones for maintenance: no network, no limits, no init; login works."""
    _no_tail("mount")
    request = Request("mount", "Mount", {"update": update or None, "force": force or None})
    return which.perform(session, request)


@click.command(cls=TailCommand)
@_which
def unmount(session: Session, which: Choice) -> int:
    """End the maintenance of zones that were mounted."""
    _no_tail("unmount")
    return which.perform(session, Request("unmount", "Unmount"))
