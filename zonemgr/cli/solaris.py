"""The programs under their Solaris names and syntax: ``zoneadm``, ``zonecfg``, ``zlogin``, ``zonename``, ``zoneadmd``.

They translate words and call the same verbs, with the usage texts and exit codes that scripts expect (reference,
sections 6.1, 7.1, 8): ``zoneadm help`` and ``-?`` print the usage and return 2, ``-?`` of a sub-command returns 0.  A
Solaris option that has no meaning here is refused by name.
"""

from __future__ import annotations

import getopt
import os
import re
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NoReturn

from zonemgr.cli import main as frame
from zonemgr.cli.output import Session
from zonemgr.errors import Exit, UsageError, ZoneError, locale_of_environment, marked, message, speak
from zonemgr.model.states import GLOBAL_ZONE

UUID: Final = r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"


@dataclass(frozen=True, slots=True)
class Subcommand:
    """One of zoneadm's: how it is written, what it does, and whether it is shown."""

    synopsis: str
    help: str
    private: bool = False


SUBCOMMANDS: Final[Mapping[str, Subcommand]] = {
    "help": Subcommand("help", "Prints this text."),
    "boot": Subcommand(
        "boot [-f] [-s] [-- boot_argument ...]", "Boots the zone; words after -- are for its init."
    ),
    "halt": Subcommand("halt", "Stops the zone at once and takes its platform down."),
    "ready": Subcommand("ready", "Makes the zone's platform and starts nothing in it."),
    "shutdown": Subcommand(
        "shutdown [-r [-- boot_argument ...]]", "Stops the zone in good order; -r boots it again."
    ),
    "reboot": Subcommand("reboot [-- boot_argument ...]", "Halts the zone and boots it again."),
    "list": Subcommand(
        "list [-cinpv]",
        "Lists the living zones; -i adds the installed, -c all others; -v is a table, -p is for programs.",
    ),
    "verify": Subcommand("verify", "Checks that the zone can be made on this host."),
    "install": Subcommand("install [brand options]", "Gives the zone its root."),
    "uninstall": Subcommand("uninstall [-F] [brand options]", "Destroys the zone's root; -F does not ask."),
    "clone": Subcommand(
        "clone [-m method] [-s snapshot] [brand options] zonename",
        "Makes the zone's root from that of another zone.",
    ),
    "move": Subcommand("move zonepath", "Moves the zone's files to another folder."),
    "detach": Subcommand("detach [-n] [brand options]", "Takes the zone's files out of this host's hands."),
    "attach": Subcommand(
        "attach [-F] [-n manifest] [brand options]", "Takes detached files back as the zone."
    ),
    "mark": Subcommand("mark incomplete", "Records that the zone's installation is incomplete."),
    "apply": Subcommand("apply [-n]", "Changes the running zone to what its configuration says."),
    "mount": Subcommand("mount [-f]", "Opens the zone's root for maintenance.", private=True),
    "unmount": Subcommand("unmount", "Ends the maintenance.", private=True),
    "sysboot": Subcommand("sysboot", "Tells the zone's brand that the host has booted.", private=True),
}
ALTERNATE: Final = ("mount", "unmount")  # what can be done in an alternate root
ZONEADM_USAGE: Final = (
    "usage:\tzoneadm help",
    "\tzoneadm [-z zonename] [-u uuid-match] list",
    "\tzoneadm {-z zonename|-u uuid-match} <subcommand>",
)
ZONECFG_USAGE: Final = (
    "usage:\tzonecfg help",
    "\tzonecfg {-z zonename|-u uuid-match}\t\t\t(interactive)",
    "\tzonecfg {-z zonename|-u uuid-match} <command>",
    "\tzonecfg {-z zonename|-u uuid-match} -f <command-file>",
)
ZLOGIN_USAGE: Final = "usage: zlogin [ -dnQCES ] [ -e cmdchar ] [ -l user ] zonename [ command [ args ... ] ]"
ZONEADMD_USAGE: Final = ("Usage: zoneadmd -z zonename", "\tNote: zoneadmd should not be run directly.")

ZoneOf = Callable[[str], str | None]


class Asked(Exception):
    """A usage text was asked for, or is all that can be answered."""

    def __init__(self, lines: Sequence[str], status: int, *, error: bool = False) -> None:
        super().__init__()
        self.lines = lines
        self.status = status
        self.error = error  # it goes to standard error


def usage_of_zoneadm() -> list[str]:
    """The whole usage text: what ``zoneadm help`` prints."""
    shown = [subcommand for subcommand in SUBCOMMANDS.values() if not subcommand.private]
    lines = [*ZONEADM_USAGE, "", "Subcommands are:", ""]
    for subcommand in shown:
        lines += [subcommand.synopsis, f"\t{subcommand.help}"]
    return lines


def _short(lines: Sequence[str] = ()) -> list[str]:
    shown = [subcommand.synopsis for subcommand in SUBCOMMANDS.values() if not subcommand.private]
    return [*lines, *ZONEADM_USAGE, "", "Subcommands are:", "", *shown]


def _options(arguments: Sequence[str], letters: str) -> tuple[list[tuple[str, str]], list[str]]:
    try:
        return getopt.getopt(list(arguments), letters)
    except getopt.GetoptError as error:
        raise UsageError("{why}", why=error.msg) from None


# -- zoneadm ----------------------------------------------------------------------------------------------------


def zoneadm_words(arguments: Sequence[str], zone_of: ZoneOf) -> list[str]:
    """The words of ``zonemgr`` that mean the same.  Raises ZoneError, and Asked when a usage text is the answer.

    ``zone_of`` finds the zone with a uuid.
    """
    options, rest = _options(arguments, "z:u:R:?")
    zone: str | None = None
    alternate: str | None = None
    for option, value in options:
        if option == "-?":
            raise Asked(usage_of_zoneadm(), Exit.USAGE)
        if option == "-R":
            alternate = check_root(value)
        elif option == "-z":
            zone = value
        else:
            zone = _by_uuid(value, zone_of) or zone
    if not rest:
        raise Asked(_short(), Exit.USAGE, error=True)
    verb, words = rest[0], rest[1:]
    if verb == "help":
        raise Asked(usage_of_zoneadm(), Exit.USAGE)
    if verb not in SUBCOMMANDS:
        raise Asked(
            _short([message("zoneadm: {verb}: unknown subcommand", verb=verb)]), Exit.USAGE, error=True
        )
    if _wants_help(words):
        subcommand = SUBCOMMANDS[verb]
        raise Asked([f"usage:\t{subcommand.synopsis}", f"\t{subcommand.help}"], Exit.OK)
    if alternate is not None and verb not in (*ALTERNATE, "list"):
        raise ZoneError("cannot {verb} zone in alternate root", verb=verb)
    return _translated(verb, words, zone, alternate)


def _translated(verb: str, words: list[str], zone: str | None, alternate: str | None) -> list[str]:
    root = [] if alternate is None else ["-R", alternate]
    if verb == "list":
        return [*root, "list", *words, *([zone] if zone else [])]
    if zone is None:
        raise ZoneError("no zone specified")
    if verb == "clone":
        return ["clone", *words, zone]
    return [*root, verb, zone, *(_boot_words(words) if verb == "boot" else words)]


def _wants_help(words: Sequence[str]) -> bool:
    return "-?" in (words[: words.index("--")] if "--" in words else words)


def check_root(path: str) -> str:
    """An alternate root that is given.  Raises UsageError."""
    if not os.path.isabs(path):
        raise UsageError("root path must be absolute.")
    if not os.path.isdir(path):
        raise UsageError("root path must be a directory.")
    return path


def _by_uuid(uuid: str, zone_of: ZoneOf) -> str | None:
    if not re.fullmatch(UUID, uuid):
        raise UsageError("illegal UUID value specified")
    return zone_of(uuid.lower())


def _boot_words(words: Sequence[str]) -> list[str]:
    """``boot -s`` is the old way to write ``boot -- -s``."""
    at = words.index("--") if "--" in words else len(words)
    ours, arguments = list(words[:at]), list(words[at + 1 :])
    if "-s" in ours:
        ours.remove("-s")
        arguments.insert(0, "-s")
    return [*ours, *(["--", *arguments] if arguments else [])]


# -- zonecfg ----------------------------------------------------------------------------------------------------


def zonecfg_words(arguments: Sequence[str], zone_of: ZoneOf) -> list[str]:
    """``zonecfg -z web [-f file | command]`` in words of ``zonemgr``.  Raises ZoneError, Asked."""
    if list(arguments[:1]) == ["help"]:
        from zonemgr.cli.confighelp import help_lines

        raise Asked(help_lines(arguments[1:]), Exit.OK)
    options, rest = _options(arguments, "z:u:f:R:r?")
    zone: str | None = None
    file: str | None = None
    for option, value in options:
        if option == "-?":
            raise Asked(ZONECFG_USAGE, Exit.USAGE)
        if option == "-r":
            raise UsageError(
                "-r: change the configuration, then bring the running zone to it: zonemgr apply NAME"
            )
        if option == "-R":
            check_root(value)
            raise UsageError(
                "-R: zones are not configured in an alternate root (zonemgr --root names an instance)"
            )
        if option == "-f":
            file = value
        else:
            zone = value if option == "-z" else _by_uuid(value, zone_of) or zone
    if zone is None:
        raise Asked(ZONECFG_USAGE, Exit.USAGE, error=True)
    return ["config", zone, *([] if file is None else ["-f", file]), *rest]


# -- zlogin -----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Login:
    """What a command line of ``zlogin`` asks for."""

    zone: str
    console: bool = False
    options: list[str] = field(default_factory=list)
    command: str | None = None

    def words(self) -> list[str]:
        """The same in words of ``zonemgr``; a command is one line for the user's shell, as it is there."""
        if self.console:
            return ["console", *self.options, self.zone]
        tail = [] if self.command is None else ["--line", self.zone, "--", self.command]
        return ["login", *self.options, *(tail or [self.zone])]


_CONSOLE_CONFLICTS: Final = (
    ("-l", marked("-l may not be specified for console login")),
    ("-n", marked("-n may not be specified for console login")),
    ("-S", marked("-S may not be specified for console login")),
)


def zlogin(arguments: Sequence[str]) -> Login:
    """Read a command line of ``zlogin``.  Raises UsageError with the reference's texts."""
    options, rest = _options(arguments, "e:l:dnQCESTU")
    given = {option for option, _ in options}
    if "-C" in given:
        for option, text in _CONSOLE_CONFLICTS:
            if option in given:
                raise UsageError(text)
        if len(rest) > 1:
            raise UsageError("Commands may not be specified for console login.")
    elif "-d" in given:
        raise UsageError("-d may only be specified for console login")
    if {"-S", "-l"} <= given:
        raise UsageError("-l may not be specified for failsafe login")
    if not rest:
        raise UsageError("no zone specified")
    passed = [word for pair in options if pair[0] != "-C" for word in pair if word]
    return Login(rest[0], "-C" in given, passed, " ".join(rest[1:]) if len(rest) > 1 else None)


# -- the programs -----------------------------------------------------------------------------------------------


def _zone_of(session: Session) -> ZoneOf:
    def find(uuid: str) -> str | None:
        from zonemgr.store.observe import all_zones

        return next((zone.zonename for zone in all_zones(session.layout) if zone.uuid == uuid), None)

    return find


def _run(session: Session, words: Callable[[], list[str]]) -> NoReturn:
    speak(locale_of_environment())
    try:
        translated = words()
    except Asked as asked:
        print("\n".join(asked.lines), file=sys.stderr if asked.error else sys.stdout)
        sys.exit(int(asked.status))
    except ZoneError as error:
        session.fail(error)
    frame.run(frame.program, translated, session)
    raise AssertionError("run does not return")


def zoneadm() -> NoReturn:
    """The ``zoneadm`` program."""
    session = Session("zoneadm")
    # Somebody who hangs up must not leave a zone half installed; files are made as everybody expects them.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    os.umask(0o022)
    _run(session, lambda: zoneadm_words(sys.argv[1:], _zone_of(session)))


def zonecfg() -> NoReturn:
    """The ``zonecfg`` program."""
    session = Session("zonecfg")
    _run(session, lambda: zonecfg_words(sys.argv[1:], _zone_of(session)))


def zlogin_program() -> NoReturn:
    """The ``zlogin`` program."""
    session = Session("zlogin")
    speak(locale_of_environment())
    try:
        asked = zlogin(sys.argv[1:])
    except UsageError as error:
        session.report(error)
        print(ZLOGIN_USAGE, file=sys.stderr)
        sys.exit(int(Exit.USAGE))
    _run(session, asked.words)


def zonename() -> NoReturn:
    """The ``zonename`` program: on the host there is only one answer."""
    session = Session("zonename")
    speak(locale_of_environment())
    words = sys.argv[1:]
    if words not in ([], ["-t"]):
        session.message("usage: zonename [-t]")
        sys.exit(int(Exit.USAGE))
    session.data("shared" if words else GLOBAL_ZONE)
    sys.exit(int(Exit.OK))


def zonestat() -> NoReturn:
    """The ``zonestat`` program."""
    from zonemgr.cli import zonestat as program

    session = Session("zonestat")
    speak(locale_of_environment())
    try:
        asked = program.parse(sys.argv[1:])
    except UsageError as error:
        session.report(error)
        sys.stderr.write(program.USAGE + "\n")
        sys.exit(int(Exit.USAGE))
    try:
        sys.exit(program.run(session, session.layout, asked))
    except ZoneError as error:
        session.report(error)
        sys.exit(int(error.exit_code))


def zoneadmd() -> NoReturn:
    """The ``zoneadmd`` program: have the zone's supervisor started, and end when it serves (reference, 4.2)."""
    session = Session("zoneadmd")
    speak(locale_of_environment())
    try:
        options, rest = _options(sys.argv[1:], "z:")
    except UsageError:
        options, rest = [], []
    zone = dict(options).get("-z")
    if zone is None or rest:
        print("\n".join(ZONEADMD_USAGE), file=sys.stderr)
        sys.exit(int(Exit.USAGE))
    try:
        _serve(session, zone)
    except ZoneError as error:
        session.fail(error, zone)
    sys.exit(int(Exit.OK))


def _serve(session: Session, zone: str) -> None:
    from zonemgr.store import zones
    from zonemgr.wire.start import start

    if zone == GLOBAL_ZONE:
        raise ZoneError("cannot manage the global zone")
    if not zones.exists(session.layout, zone):
        raise ZoneError("could not manage {zone}: No such zone configured", zone=zone)
    if os.geteuid() != 0:
        raise ZoneError("You lack sufficient privilege to run this command (all privs required)")
    start(session.layout, zone, lambda text: session.message(text, zone))
