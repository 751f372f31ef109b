"""The programs under their Solaris names and syntax: ``zoneadm``, ``zonecfg``, ``zlogin``, ``zonename``.

They translate words and call the same verbs; a Solaris option that has no meaning here is refused by name.
"""

from __future__ import annotations

import getopt
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, NoReturn

from zonemgr.cli import main as frame
from zonemgr.cli.output import Session
from zonemgr.errors import Exit, UsageError, ZoneError
from zonemgr.model.states import GLOBAL_ZONE

ZONEADM_USAGE: Final = (
    "usage: zoneadm [-z zone] list [-cinpv]\n"
    "       zoneadm {-z zone|-u uuid} subcommand [option ...] [-- boot argument ...]\n"
    "subcommands: attach boot clone detach halt install list mark mount move ready reboot shutdown\n"
    "             sysboot uninstall unmount verify"
)
ZLOGIN_USAGE: Final = (
    "usage: zlogin [ -dnQCES ] [ -e cmdchar ] [ -l user ] zonename [ command [ args ... ] ]\n"
)


def _options(arguments: Sequence[str], letters: str) -> tuple[list[tuple[str, str]], list[str]]:
    try:
        return getopt.getopt(list(arguments), letters)
    except getopt.GetoptError as error:
        raise UsageError("{why}", why=error.msg) from None


def zoneadm_words(arguments: Sequence[str], zone_of: Callable[[str], str | None]) -> list[str] | None:
    """The words of ``zonemgr`` that mean the same; None when help was asked for.

    ``zone_of`` finds the zone with a uuid.  Raises UsageError.
    """
    options, rest = _options(arguments, "z:u:R:?")
    zone: str | None = None
    for option, value in options:
        if option == "-?":
            return None
        if option == "-R":
            raise UsageError(
                "-R: alternate roots are not served; --root of zonemgr names an instance of its own"
            )
        zone = value if option == "-z" else zone_of(value) or zone
    if not rest or rest[0] == "help":
        return None
    verb, words = rest[0], rest[1:]
    if verb not in frame.VERBS:
        raise UsageError("{verb}: unknown subcommand", verb=verb)
    if verb == "list":
        return ["list", *words, *([zone] if zone else [])]
    if zone is None:
        raise UsageError("no zone specified")
    if verb == "clone":
        return ["clone", *words, zone]
    return [verb, zone, *(_boot_words(words) if verb == "boot" else words)]


def _boot_words(words: Sequence[str]) -> list[str]:
    """``boot -s`` is the old way to write ``boot -- -s``."""
    at = words.index("--") if "--" in words else len(words)
    ours, arguments = list(words[:at]), list(words[at + 1 :])
    if "-s" in ours:
        ours.remove("-s")
        arguments.insert(0, "-s")
    return [*ours, *(["--", *arguments] if arguments else [])]


def zonecfg_words(arguments: Sequence[str]) -> list[str]:
    """``zonecfg -z web [-f file | command]`` in words of ``zonemgr``.  Raises UsageError."""
    options, rest = _options(arguments, "z:f:")
    given = dict(options)
    if "-z" not in given:
        raise UsageError("no zone specified")
    file_words = ["-f", given["-f"]] if "-f" in given else []
    return ["config", given["-z"], *file_words, *rest]


@dataclass(slots=True)
class Login:
    """What a command line of ``zlogin`` asks for."""

    zone: str
    console: bool = False
    options: list[str] = field(default_factory=list)
    command: str | None = None

    def words(self) -> list[str]:
        """The same in words of ``zonemgr``; a command is one line for a shell, as it is there."""
        if self.console:
            return ["console", *self.options, self.zone]
        tail = [] if self.command is None else ["--", "/bin/sh", "-c", self.command]
        return ["login", *self.options, self.zone, *tail]


def zlogin(arguments: Sequence[str]) -> Login:
    """Read a command line of ``zlogin``.  Raises UsageError with the reference's texts."""
    options, rest = _options(arguments, "e:l:dnQCES")
    if not rest:
        raise UsageError("no zone specified")
    given = {option for option, _ in options}
    if "-C" in given:
        conflicts = {
            "-l may not be specified for console login": "-l" in given,
            "-n may not be specified for console login": "-n" in given,
            "-S may not be specified for console login": "-S" in given,
            "Commands may not be specified for console login.": len(rest) > 1,
        }
        for text, there in conflicts.items():
            if there:
                raise UsageError(text)
    elif "-d" in given:
        raise UsageError("-d may only be specified for console login")
    passed = [word for pair in options if pair[0] != "-C" for word in pair if word]
    return Login(rest[0], "-C" in given, passed, " ".join(rest[1:]) if len(rest) > 1 else None)


def _run(session: Session, words: Callable[[], list[str] | None], usage: str) -> NoReturn:
    try:
        translated = words()
    except ZoneError as error:
        session.report(error)
        sys.exit(int(error.exit_code))
    if translated is None:
        session.data(usage)
        sys.exit(int(Exit.USAGE))  # the reference's quirk: help is a usage error
    frame.run(frame.program, translated, session)
    raise AssertionError("run does not return")


def zoneadm() -> NoReturn:
    """The ``zoneadm`` program."""
    session = Session("zoneadm")

    def zone_of(uuid: str) -> str | None:
        from zonemgr.store.observe import all_zones

        return next((zone.zonename for zone in all_zones(session.layout) if zone.uuid == uuid), None)

    _run(session, lambda: zoneadm_words(sys.argv[1:], zone_of), ZONEADM_USAGE)


def zonecfg() -> NoReturn:
    """The ``zonecfg`` program."""
    _run(Session("zonecfg"), lambda: zonecfg_words(sys.argv[1:]), "")


def zlogin_program() -> NoReturn:
    """The ``zlogin`` program."""
    session = Session("zlogin")
    try:
        asked = zlogin(sys.argv[1:])
    except UsageError as error:
        session.report(error)
        sys.stderr.write(ZLOGIN_USAGE)
        sys.exit(int(Exit.USAGE))
    _run(session, asked.words, "")


def zonename() -> NoReturn:
    """The ``zonename`` program: on the host there is only one answer."""
    session = Session("zonename")
    words = sys.argv[1:]
    if words not in ([], ["-t"]):
        session.message("usage: zonename [-t]")
        sys.exit(int(Exit.USAGE))
    session.data("shared" if words else GLOBAL_ZONE)
    sys.exit(int(Exit.OK))
