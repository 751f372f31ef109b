"""``login``: a shell or a command inside a zone, without a supervisor and without anything installed in the zone.

The zone never gets the operator's own descriptors, only pipes, or a pty of its own: a terminal could be steered, a
folder or a file that somebody redirected could be walked out of.  What a command prints and reads passes unchanged; its
exit status is ours, and 125 to 127 say that there was none (125 ours, 126 not executable, 127 not found).
"""

from __future__ import annotations

import enum
import os
import select
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Final

import click

from zonemgr.cli.console import check_zone
from zonemgr.cli.main import TailCommand, tail
from zonemgr.cli.output import Session
from zonemgr.cli.terminal import (
    CHUNK,
    PENDING_MAX,
    Escape,
    Keys,
    Relay,
    escape_character,
    raw,
    window,
    write_all,
)
from zonemgr.errors import Exit, NoSuchZoneError, UsageError, ZoneError, message
from zonemgr.linux import enter, passwd, process
from zonemgr.linux.cgroup.entry import entry_fd
from zonemgr.linux.enter import Child, EnterError, TrustedPath
from zonemgr.linux.passwd import Account
from zonemgr.model.states import GLOBAL_ZONE, State
from zonemgr.store import instance as instances
from zonemgr.store.instance import Instance
from zonemgr.store.observe import living_state

OURS: Final = 125  # the exit status when nothing could be run
FAILSAFE: Final = Account("root", 0, 0, (0,), "/", "/bin/sh")
FORWARDED: Final = (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP)
TTY_GROUP: Final = 5
USER_COMMAND_S: Final = 10.0  # for a brand's command that looks up a user in the zone
USER_LINE_MAX: Final = 4096
ZSCHED_S: Final = 20.0
HANG_UP_S: Final = 2.0  # for a shell to end in good order once its terminal has gone
_OPEN: Final = (State.RUNNING, State.MOUNTED)
TIOCGPTN: Final = 0x80045430  # the number of a pty; Python has no name for it


class LoginCommand(TailCommand):
    """NAME and options, then words of the zone: after ``--``, or from the second word that is no option."""

    def split(self, ctx: click.Context, args: list[str]) -> tuple[list[str], list[str] | None]:
        at, words = 0, 0
        while at < len(args):
            word = args[at]
            if word == "--":
                return args[:at], args[at + 1 :]
            if word.startswith("-") and word != "-":
                at += 1 + self._takes_next(word)
                continue
            words += 1
            if words == 2:
                return args[:at], args[at:]
            at += 1
        return args, None

    def _takes_next(self, word: str) -> bool:
        """The option's value is the next word."""
        valued = {
            text
            for parameter in self.params
            if isinstance(parameter, click.Option) and not parameter.is_flag
            for text in parameter.opts
        }
        if word.startswith("--"):
            return word in valued
        letters = word[1:]
        first = next((at for at, letter in enumerate(letters) if f"-{letter}" in valued), None)
        return first is not None and first == len(letters) - 1


class Trust(enum.Enum):
    """Whether a login takes the trusted path into an immutable zone (reference, section 11)."""

    NONE = ""
    TRUSTED = "T"  # what the zone may have written is not executed
    UNSAFE = "U"


@dataclass(frozen=True, slots=True)
class Entry:
    """A living zone, held by descriptors: nothing here can turn into another zone."""

    zonename: str
    instance: Instance
    init_pidfd: int
    root_fd: int
    cgroup_fd: int
    seccomp: bytes | None
    trusted: TrustedPath | None = None


@contextmanager
def opened(
    session: Session, zonename: str, instance: Instance, trusted: Trust = Trust.NONE
) -> Iterator[Entry]:
    """Take hold of the zone.  Raises ZoneError when it has just gone."""
    gone = ZoneError("the zone has just stopped")
    with ExitStack() as stack:
        if instance.init is None:
            raise gone
        try:
            pidfd = process.pidfd_open(instance.init.pid)
            stack.callback(os.close, pidfd)
            if not instance.init.alive:  # read after the pidfd was opened: it belongs to this very process
                raise gone
            root_fd = enter.open_root(pidfd)
            stack.callback(os.close, root_fd)
            cgroup_fd = entry_fd(instance.cgroup)
            stack.callback(os.close, cgroup_fd)
        except (ProcessLookupError, FileNotFoundError):
            raise gone from None
        view = None
        if trusted is not Trust.NONE:
            view = TrustedPath(_m0(session, zonename), instance.frozen, trusted is Trust.UNSAFE)
            stack.callback(os.close, view.m0_fd)
        yield Entry(zonename, instance, pidfd, root_fd, cgroup_fd, _filter(session, instance), view)


def _m0(session: Session, zonename: str) -> int:
    """The file tree of the zone that its zsched holds.  OSError, ZoneError."""
    from zonemgr.wire import packets

    folder_fd = os.open(session.layout.zone_run(zonename), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        connection = packets.connect(folder_fd, "zsched", ZSCHED_S)
    finally:
        os.close(folder_fd)
    with connection:
        packets.send(connection, {"op": "hello"})
        answer = packets.receive(connection)
    if answer is None:
        raise ZoneError("the zone has just stopped")
    held = dict(zip(answer[0]["fds"], answer[1], strict=True))
    m0_fd: int = held.pop("m0")
    packets.close_all(held.values())
    return m0_fd


def _filter(session: Session, instance: Instance) -> bytes | None:
    from zonemgr.store import filters

    return filters.program(session.layout, instance)


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to run."""

    account: Account
    argv: tuple[str, ...]
    tty: bool

    def environment(self) -> dict[str, str]:
        """The whole environment: nothing of the caller's but, for a terminal, its kind and the language."""
        base = {
            "PATH": enter.DEFAULT_PATH,
            "HOME": self.account.home,
            "USER": self.account.name,
            "LOGNAME": self.account.name,
            "SHELL": self.account.shell,
            "container": "zonemgr",
        }
        passed = {name: os.environ[name] for name in ("TERM", "LANG") if name in os.environ}
        return {**base, **({"TERM": "dumb", **passed} if self.tty else {})}


def wish(
    entry: Entry,
    user: str | None,
    words: Sequence[str] | None,
    *,
    failsafe: bool,
    tty: bool,
    line: bool = False,
) -> Wish:
    """What the options and words mean in this zone.  Raises ZoneError for an unknown user.

    ``line``: the words are a line for the user's shell, which for root is no login shell (reference, section 8).
    """
    account = FAILSAFE if failsafe else _account(entry, "root" if user is None else user)
    if words and line:
        login = () if account.uid == 0 else ("-l",)
        return Wish(account, (account.shell, *login, "-c", " ".join(words)), tty)
    if words:
        return Wish(account, tuple(words), tty)
    instance = entry.instance
    brands_own = (user and instance.forced_login_command) or instance.login_command
    if tty and brands_own and not failsafe:
        # The brand's login program changes to the user itself, and so starts as root.
        argv = _filled(brands_own, account.name)
        return Wish(Account(account.name, 0, 0, (0,), account.home, account.shell), argv, tty)
    return Wish(account, (account.shell, *(() if failsafe else ("-l",))), tty)


def _filled(words: Sequence[str], user: str) -> tuple[str, ...]:
    """A brand's command with its placeholders filled in."""
    known = (("{user}", user), ("{zonename}", GLOBAL_ZONE))
    return tuple(_replaced(word, known) for word in words)


def _replaced(word: str, known: Sequence[tuple[str, str]]) -> str:
    for old, new in known:
        word = word.replace(old, new)
    return word


def _account(entry: Entry, user: str) -> Account:
    """Who the user is in the zone: by the brand's own command where it has one, else by the zone's files."""
    words = entry.instance.user_command
    name, _, group = user.partition(":")
    if not words or name.isdigit():
        return passwd.find_account(entry.root_fd, user)
    line = _output(entry, _filled(words, name))
    fields = line.split(":")
    if len(fields) != 7 or not (fields[2].isdigit() and fields[3].isdigit()):
        raise ZoneError("the zone knows no user '{user}'", user=name)
    if group:
        return passwd.find_account(entry.root_fd, f"{fields[2]}:{group}")
    uid, gid = int(fields[2]), int(fields[3])
    return Account(fields[0], uid, gid, (gid,), fields[5] or "/", fields[6] or "/bin/sh")


def _output(entry: Entry, argv: tuple[str, ...]) -> str:
    """The first line that a command prints in the zone, as its root; empty when it fails or takes too long."""
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    null_fd = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        child = spawn(entry, Wish(FAILSAFE, argv, tty=False), (null_fd, write_fd, null_fd))
    except EnterError as error:
        raise ZoneError("{why}", why=error.text) from error
    finally:
        os.close(write_fd)
        os.close(null_fd)
    with open(read_fd, "rb", buffering=0) as pipe:
        if not process.wait_pidfd(child.pidfd, USER_COMMAND_S):
            child.signal(signal.SIGKILL)
        status = child.wait()
        os.set_blocking(read_fd, False)
        data = (pipe.read(USER_LINE_MAX) or b"") if status == 0 else b""
    return data.decode(errors="replace").partition("\n")[0]


def spawn(entry: Entry, wanted: Wish, stdio: tuple[int, int, int]) -> Child:
    """Start it in the zone."""
    instance, account = entry.instance, wanted.account
    return enter.spawn_in_zone(
        entry.init_pidfd,
        argv=wanted.argv,
        env=wanted.environment(),
        cwd=account.home,
        uid=account.uid,
        gid=account.gid,
        groups=account.groups,
        capabilities=frozenset(instance.capabilities),
        seccomp=entry.seccomp,
        label=instance.label,
        no_new_privs=instance.no_new_privs,
        personality=instance.personality,
        trusted=entry.trusted,
        stdio=stdio,
        tty_slave=wanted.tty,
        cgroup_fd=entry.cgroup_fd,
        v1_folders=instance.cgroups_v1,
        fall_back_to_root=True,
        die_with_parent=True,
        rlimits=instance.rlimits,
        oom_score_adj=instance.oom_score_adj,
        scheduling_class=instance.scheduling_class,
    )


# -- with pipes ---------------------------------------------------------------------------------------------------


class Pipes:
    """Moves bytes between our standard streams and the command's, until the command has ended.

    What the command leaves running may keep its pipes; it is not waited for.  Signals go to the command's group.
    """

    def __init__(self, start: Callable[[tuple[int, int, int]], Child], *, keyboard_fd: int) -> None:
        self._keyboard_fd = keyboard_fd
        self._pending = bytearray()
        self._typing = True
        read_fd, self._stdin_fd = os.pipe2(os.O_CLOEXEC)
        out_fd, out_write_fd = os.pipe2(os.O_CLOEXEC)
        error_fd, error_write_fd = os.pipe2(os.O_CLOEXEC)
        self._screens = {out_fd: 1, error_fd: 2}
        try:
            self.child = start((read_fd, out_write_fd, error_write_fd))
        finally:
            for descriptor in (read_fd, out_write_fd, error_write_fd):
                os.close(descriptor)
        for descriptor in (self._stdin_fd, out_fd, error_fd):
            os.set_blocking(descriptor, False)

    def run(self) -> int:
        """The command's exit status."""
        with _signals() as wake_fd:
            while not self._turn(wake_fd):
                pass
        for read_fd in list(self._screens):
            while self._show(read_fd):
                pass
        return self.child.wait()

    def _turn(self, wake_fd: int) -> bool:
        """One round; True when the command has ended."""
        poll = select.poll()
        poll.register(wake_fd, select.POLLIN)
        poll.register(self.child, select.POLLIN)
        for read_fd in self._screens:
            poll.register(read_fd, select.POLLIN)
        if self._stdin_fd >= 0:
            poll.register(self._stdin_fd, select.POLLOUT if self._pending else 0)
        if self._typing and len(self._pending) < PENDING_MAX:
            poll.register(self._keyboard_fd, select.POLLIN)
        ready = dict(poll.poll())
        if wake_fd in ready:
            for number in os.read(wake_fd, 64):
                if number in FORWARDED:
                    self.child.signal(number)
        if self._stdin_fd in ready:
            self._feed()
        if self._keyboard_fd in ready:
            self._type()
        for read_fd in list(self._screens):
            if read_fd in ready:
                self._show(read_fd)
        return self.child.pidfd in ready

    def _type(self) -> None:
        try:
            data = os.read(self._keyboard_fd, CHUNK)
        except BlockingIOError:
            return
        self._pending += data
        self._typing = bool(data)
        if not self._typing and not self._pending:
            self._close_stdin()

    def _feed(self) -> None:
        try:
            sent = os.write(self._stdin_fd, self._pending) if self._pending else 0
        except BlockingIOError:
            return
        except OSError:  # the command reads no more
            self._pending.clear()
            self._typing = False
            self._close_stdin()
            return
        if not self._pending:  # polled without wanting to write: the reader has gone
            self._typing = False
            self._close_stdin()
            return
        del self._pending[:sent]
        if not self._pending and not self._typing:
            self._close_stdin()

    def _close_stdin(self) -> None:
        if self._stdin_fd >= 0:
            os.close(self._stdin_fd)
            self._stdin_fd = -1

    def _show(self, read_fd: int) -> bool:
        """Pass on what there is; False when there is no more."""
        try:
            data = os.read(read_fd, 4 * CHUNK)
        except BlockingIOError:
            return False
        try:
            write_all(self._screens[read_fd], data)
        except BrokenPipeError:
            data = b""  # our reader has gone: the command learns it from its next write
        if not data:
            os.close(read_fd)
            del self._screens[read_fd]
        return bool(data)


@contextmanager
def _signals() -> Iterator[int]:
    """A descriptor that tells the numbers of the signals which are the command's to have."""
    wake_fd, signal_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    before = {number: signal.signal(number, lambda _number, _frame: None) for number in FORWARDED}
    old_fd = signal.set_wakeup_fd(signal_fd, warn_on_full_buffer=False)
    try:
        yield wake_fd
    finally:
        signal.set_wakeup_fd(old_fd)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(wake_fd)
        os.close(signal_fd)


def piped(entry: Entry, wanted: Wish, *, no_stdin: bool) -> int:
    """Run it with pipes; the exit status."""
    keyboard_fd = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC) if no_stdin else 0
    base, account = entry.instance.uid_base, wanted.account

    def start(stdio: tuple[int, int, int]) -> Child:
        for descriptor in stdio:  # so that the command may open /dev/stdin, /dev/stdout and /dev/stderr
            os.fchown(descriptor, base + account.uid, base + account.gid)
        return spawn(entry, wanted, stdio)

    return Pipes(start, keyboard_fd=keyboard_fd).run()


# -- with a terminal ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Manners:
    """How an interactive login behaves at the operator's end."""

    escape: int | None
    banner: bool


def interactive(entry: Entry, wanted: Wish, manners: Manners) -> int:
    """Run it at a pty of the zone's own; the exit status."""
    from zonemgr.linux import pty

    base = entry.instance.uid_base
    try:
        master_fd, slave_fd = pty.open_pair_below(
            entry.root_fd, uid=base + wanted.account.uid, gid=base + TTY_GROUP
        )
    except OSError as error:
        raise ZoneError("no terminal to be had in the zone: {why}", why=error.strerror) from error
    name = f"pts/{_number(master_fd)}"
    size = window(0) or window(1)
    if size:
        pty.set_window(master_fd, *size)
    try:
        child = spawn(entry, wanted, (slave_fd, slave_fd, slave_fd))
    finally:
        os.close(slave_fd)
    if manners.banner:
        write_all(1, f"[Connected to zone '{entry.zonename}' {name}]\n".encode())
    with raw(0):
        relay = Relay(
            master_fd,
            Escape(manners.escape, Keys.of(0)),
            lambda rows, columns: pty.set_window(master_fd, rows, columns),
            ended_fd=child.pidfd,
        )
        left = relay.run()
    os.close(master_fd)  # a shell that is still there gets its hang-up
    status = _parted(child) if left else child.wait()
    if manners.banner:
        write_all(2, f"\n[Connection to zone '{entry.zonename}' {name} closed]\n".encode())
    return status


def _parted(child: Child) -> int:
    """The operator has left; what ignores the hang-up ends with us, by the signal it asked the kernel for."""
    if process.wait_pidfd(child.pidfd, HANG_UP_S):
        child.wait()
    return int(Exit.OK)


def _number(master_fd: int) -> int:
    """The pty's number in the devpts it belongs to."""
    import fcntl
    import struct

    number: int = struct.unpack("I", fcntl.ioctl(master_fd, TIOCGPTN, bytes(4)))[0]
    return number


# -- the verb -----------------------------------------------------------------------------------------------------


def living(session: Session, zonename: str) -> Instance:
    """The record of a zone that can be entered.  Raises ZoneError with the reference's texts."""
    instance = instances.read(session.layout, zonename)
    if instance is not None and instance.zonename == zonename and os.geteuid() == 0:
        if living_state(instance) in _OPEN:
            return instance  # no configuration is read: a running zone goes by its record alone
    seen = check_zone(session, zonename)
    if seen.state not in _OPEN or seen.instance is None:
        raise ZoneError(
            "login allowed only to running zones ({zone} is '{state}').",
            zone=zonename,
            state=seen.state.label,
        )
    return seen.instance


def log_in(
    session: Session,
    zonename: str,
    words: Sequence[str] | None,
    *,
    user: str | None = None,
    failsafe: bool = False,
    no_stdin: bool = False,
    tty: bool = False,
    line: bool = False,
    manners: Manners,
    trusted: Trust = Trust.NONE,
) -> int:
    """Everything of a login after its command line; the exit status."""
    # Under its Solaris name the program has that one's exit codes: 1 for ours, and 0 after every session.
    solaris = session.program == "zlogin"
    ours = int(Exit.ERROR) if solaris else OURS
    try:
        instance = living(session, zonename)
        if instance.privileged and not _is_sealed():
            return _sealed(session)
        if trusted is not Trust.NONE and not instance.frozen:
            raise ZoneError("the trusted path is for immutable zones, and all of this one's root can be written")
        with opened(session, zonename, instance, trusted) as entry:
            plain = failsafe or (trusted is Trust.TRUSTED and user is None)  # no profile that the zone has written
            wanted = wish(entry, user, words, failsafe=plain, tty=tty, line=line)
            sys.stdout.flush()
            if tty:
                status = interactive(entry, wanted, manners)
                return int(Exit.OK) if solaris else status
            return piped(entry, wanted, no_stdin=no_stdin)
    except UsageError:
        raise
    except EnterError as error:
        if solaris:
            session.message(message("could not enter zone {zone}: {why}", zone=zonename, why=error.text))
            return ours
        session.report(error, zonename)
        return error.exit_status
    except ZoneError as error:
        session.report(error, None if solaris or isinstance(error, NoSuchZoneError) else zonename)
        return ours
    except OSError as error:
        session.report(ZoneError("cannot enter the zone: {why}", why=error), zonename)
        return ours


def _is_sealed() -> bool:
    from zonemgr.linux import sealed

    return sealed.is_sealed()


def _sealed(session: Session) -> int:
    """Into a zone without a user namespace goes only an interpreter that nobody can write to: the same run in one."""
    from zonemgr.linux import sealed
    from zonemgr.wire import launch, start

    words = start.program_named(session.program, *sys.argv[1:])
    return sealed.run(words, {**os.environ, launch.SWITCH: "no"})


def check_conflicts(conflicts: Mapping[str, bool]) -> None:
    """Raises UsageError with the text of the first conflict that is there."""
    for text, there in conflicts.items():
        if there:
            raise UsageError(text)


@click.command(cls=LoginCommand)
@click.argument("name")
@click.option(
    "-l", "--user", metavar="USER", help="Be this user of the zone (name or number, :GROUP after it)."
)
@click.option("-S", "--failsafe", is_flag=True, help="A plain /bin/sh, for a zone whose files are broken.")
@click.option("-T", "trust", flag_value="T", help="By the trusted path: write to an immutable zone.")
@click.option("-U", "trust", flag_value="U", help="As -T, and run also what the zone may have written.")
@click.option("-n", "no_stdin", is_flag=True, help="Nothing to read for the command.")
@click.option("-t", "--tty", is_flag=True, help="A terminal for the command as well.")
@click.option("-e", "escape", default="~", metavar="C", help=r"The escape character (\ooo is octal).")
@click.option("-E", "no_escape", is_flag=True, help="No escape character.")
@click.option("-Q", "no_banner", is_flag=True, help="No line at the beginning and the end.")
@click.option("--line", is_flag=True, hidden=True, help="The words are a line for the user's shell.")
@click.pass_obj
def login(
    session: Session,
    name: str,
    user: str | None,
    failsafe: bool,
    no_stdin: bool,
    tty: bool,
    escape: str,
    no_escape: bool,
    no_banner: bool,
    line: bool,
    trust: str | None,
) -> int:
    """Enter a zone: a shell at a terminal, or a command with its exact exit status (125 to 127: it did not run)."""
    words = tail()
    with_tty = tty or (not words and os.isatty(0))
    check_conflicts(
        {
            "-l may not be specified for failsafe login": failsafe and user is not None,
            "-n may not be specified for interactive login": no_stdin and with_tty,
        }
    )
    manners = Manners(None if no_escape else escape_character(escape), not (no_banner or session.quiet))
    return log_in(
        session,
        name,
        words,
        user=user,
        failsafe=failsafe,
        no_stdin=no_stdin,
        tty=with_tty,
        line=line,
        manners=manners,
        trusted=Trust(trust or ""),
    )
