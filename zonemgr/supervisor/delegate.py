"""The door for users whom ``admin`` resources name: one process for each instance of zonemgr, while such users exist.

It is not the zones' own doors, which stay root's alone: anybody may connect here, and nobody gets an answer before the
kernel has told who it is.  What is asked is a command line of a few verbs (``model.delegation``); the configuration of
the zone says who may, each time anew, and what may be is run as a process of root's own, at pipes or a terminal that
are made here.  No descriptor, folder, variable or word of the user's reaches that process unexamined.

Each user has a budget of requests and of processes; what is not whole in time, too long, or nonsense is hung up on.
"""

from __future__ import annotations

import fcntl
import os
import pwd
import re
import select
import signal
import socket
import syslog
import termios
import time
from dataclasses import dataclass, field
from typing import Any, Final

from zonemgr.errors import Exit, NoSuchZoneError, UsageError, ZoneError, message
from zonemgr.linux import process
from zonemgr.linux.cgroup import detect, supervisors
from zonemgr.linux.inotify import Inotify
from zonemgr.model import delegation
from zonemgr.model.delegation import Demand
from zonemgr.store import zones
from zonemgr.store.locks import FileLock
from zonemgr.store.paths import Layout
from zonemgr.supervisor.loop import Loop
from zonemgr.wire import packets, peers, start

SOCKET: Final = start.DELEGATE_SOCKET
REQUEST_S: Final = 5.0  # for a request to be there
LOOK_S: Final = 60.0  # between two looks whether any user is still named
CONNECTIONS_MAX: Final = 64
OF_ONE_USER_MAX: Final = 8
BUDGET: Final = 20.0  # requests at once; one comes back each second
REFUSED_COSTS: Final = 2.0  # what is not allowed costs twice
_PLAIN: Final = re.compile(r"[A-Za-z0-9._@+-]{1,64}")


@dataclass
class Budget:
    """Requests that a user may still make."""

    left: float = BUDGET
    when: float = field(default_factory=time.monotonic)

    def spend(self, cost: float) -> float:
        """Seconds to wait; 0 when it was spent."""
        now = time.monotonic()
        self.left, self.when = min(BUDGET, self.left + now - self.when), now
        if self.left < cost:
            return cost - self.left
        self.left -= cost
        return 0.0


@dataclass
class _Session:
    """One connection and what runs for it."""

    connection: socket.socket
    uid: int
    pid: int = 0
    pid_fd: int = -1
    hang_up: bool = False  # what runs ends with the connection


class Delegate:
    """The program.  ``run`` is its life."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.loop = Loop(lambda text: syslog.syslog(syslog.LOG_ERR, text))
        self.sessions: dict[int, _Session] = {}
        self.budgets: dict[int, Budget] = {}
        folder_fd = os.open(layout.run, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self.listener = packets.listen(folder_fd, SOCKET)
            os.chmod(SOCKET, 0o666, dir_fd=folder_fd)
        finally:
            os.close(folder_fd)
        self.listener.setblocking(False)
        self.loop.watch(self.listener.fileno(), self._accept)
        self.loop.after(LOOK_S, self._look)
        self.changed = False  # a configuration was, and whether anybody is named has not been looked at since
        self.changes = Inotify(layout.config("any").parent)
        self.loop.watch(self.changes.fileno(), self._changed)

    def run(self) -> None:
        """Serve until no zone names a user any more."""
        try:
            self.loop.run()
        finally:
            (self.layout.run / SOCKET).unlink(missing_ok=True)

    def _changed(self, _events: int) -> None:
        """A configuration was written or removed: the last one that names a user, perhaps."""
        self.changes.wait(0)
        self.changed = True
        self._leave_unless_wanted()

    def _leave_unless_wanted(self) -> None:
        """After a change, once nobody is served: a change may come while somebody still is."""
        if self.changed and not self.sessions:
            self.changed = False
            if not wanted(self.layout):
                self.loop.stop()

    def _look(self) -> None:
        self.budgets = {uid: budget for uid, budget in self.budgets.items() if budget.left < BUDGET}
        if wanted(self.layout) or self.sessions:
            self.loop.after(LOOK_S, self._look)
        else:
            self.loop.stop()

    # -- connections ----------------------------------------------------------------------------------------

    def _accept(self, _events: int) -> None:
        try:
            connection, _address = self.listener.accept()
        except OSError:
            return
        connection.setblocking(False)
        try:
            caller = peers.check_user(connection)
        except peers.CallerError as error:
            syslog.syslog(syslog.LOG_NOTICE, error.text)
            connection.close()
            return
        mine = sum(session.uid == caller.uid for session in self.sessions.values())
        if len(self.sessions) >= CONNECTIONS_MAX or mine >= OF_ONE_USER_MAX:
            _answer(connection, {"refused": message("too many sessions"), "code": int(Exit.ERROR)})
            connection.close()
            return
        session = _Session(connection, caller.uid)
        descriptor = connection.fileno()
        self.sessions[descriptor] = session
        self.loop.watch(descriptor, lambda events: self._ready(session, events))
        self.loop.after(REQUEST_S, lambda: self._impatient(session))

    def _impatient(self, session: _Session) -> None:
        if session.pid == 0:
            self._drop(session)

    def _drop(self, session: _Session) -> None:
        """The connection is over; a session at a terminal gets its hang-up, other work goes on."""
        descriptor = session.connection.fileno()
        if descriptor < 0:
            return
        self.loop.forget(descriptor)
        self.sessions.pop(descriptor, None)
        session.connection.close()
        if session.pid and session.hang_up:
            process.pidfd_signal(session.pid_fd, signal.SIGHUP)
        self._leave_unless_wanted()

    def _ready(self, session: _Session, events: int) -> None:
        if session.pid or not events & select.POLLIN:
            self._drop(session)  # it has gone, or says more than there is to say
            return
        try:
            packet = packets.receive(session.connection)
        except (OSError, ValueError):
            packet = None
        if packet is None:
            self._drop(session)
            return
        head, fds, _tail = packet
        packets.close_all(fds)
        try:
            self._serve(session, head)
        except ZoneError as error:
            _answer(session.connection, {"refused": error.text, "code": int(error.exit_code)})
            self._drop(session)

    # -- requests -------------------------------------------------------------------------------------------

    def _serve(self, session: _Session, head: dict[str, Any]) -> None:
        self._spend(session.uid, 1.0)
        words = head.get("words")
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise UsageError("not a request")
        asked = delegation.demand(words)
        user = _user(session.uid)
        rights = self._authorised(session.uid, user, asked)
        terminal = bool(head.get("terminal")) and asked.verb in ("login", "console")
        command = delegation.command(asked, rights, terminal=terminal)
        syslog.syslog(
            syslog.LOG_NOTICE,
            message("user {user} ({uid}): {verb} {zone}",
                    user=user, uid=session.uid, verb=asked.verb, zone=asked.zonename),
        )  # fmt: skip
        self._run(session, command, _environment(head), terminal)

    def _spend(self, uid: int, cost: float) -> None:
        wait_s = self.budgets.setdefault(uid, Budget()).spend(cost)
        if wait_s:
            raise ZoneError("too many requests: try again in {seconds:.0f} s", seconds=wait_s + 0.5)

    def _authorised(self, uid: int, user: str, asked: Demand) -> frozenset[str]:
        """The user's rights on the zone that the demand is about.  Raises StateError without those it needs."""
        for zonename, right in asked.needs:
            if not rights_of(self.layout, zonename, uid) & delegation.SUFFICIENT[right]:
                self._spend(uid, REFUSED_COSTS - 1.0)
                syslog.syslog(
                    syslog.LOG_WARNING,
                    message("user {user} ({uid}) may not {verb} zone {zone}",
                            user=user, uid=uid, verb=asked.verb, zone=zonename),
                )  # fmt: skip
                raise delegation.refusal(user, asked)
        return rights_of(self.layout, asked.zonename, uid)

    def _run(self, session: _Session, command: list[str], environment: dict[str, str], terminal: bool) -> None:
        words = start.program_named("zonemgr", "--root", str(self.layout.root), *command)
        ours, theirs = _terminal() if terminal else _pipes()
        try:
            pid = os.fork()
            if pid == 0:
                _become(words, environment, theirs, terminal)
            session.pid, session.pid_fd, session.hang_up = pid, os.pidfd_open(pid), terminal
            self.loop.watch(session.pid_fd, lambda _events: self._ended(session))
            _answer(session.connection, {"started": "terminal" if terminal else "pipes"}, ours)
        finally:
            packets.close_all({*ours, *theirs})

    def _ended(self, session: _Session) -> None:
        self.loop.forget(session.pid_fd)
        os.close(session.pid_fd)
        status = process.exit_status(os.waitpid(session.pid, 0)[1])
        session.hang_up = False
        if session.connection.fileno() >= 0:
            _answer(session.connection, {"status": status})
            self._drop(session)


# -- who may ----------------------------------------------------------------------------------------------------


def wanted(layout: Layout) -> bool:
    """Whether any zone names a user."""
    return any(_admins(layout, name) for name in zones.names(layout))


def rights_of(layout: Layout, zonename: str, uid: int) -> frozenset[str]:
    """What a user may do with a zone.  A name that the host does not know is nobody's."""
    found: set[str] = set()
    for admin in _admins(layout, zonename):
        try:
            if pwd.getpwnam(admin.user).pw_uid == uid:
                found.update(admin.auths)
        except KeyError:
            continue
    return frozenset(found)


def _admins(layout: Layout, zonename: str) -> tuple[Any, ...]:
    try:
        return zones.load(layout, zonename).admin
    except (NoSuchZoneError, ZoneError):
        return ()  # what cannot be read authorises nobody


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


# -- what runs --------------------------------------------------------------------------------------------------


def _environment(head: dict[str, Any]) -> dict[str, str]:
    """Nothing of the user's but the kind of terminal and the language, if they are plain words."""
    given = {name: head.get(name.lower()) for name in ("TERM", "LANG")}
    plain = {name: text for name, text in given.items() if isinstance(text, str) and _PLAIN.fullmatch(text)}
    return {**start.environment({}), "TERM": "dumb", **plain}


def _pipes() -> tuple[list[int], list[int]]:
    """(the user's ends, ours) of standard input, output and error."""
    (in_read, in_write), (out_read, out_write), (err_read, err_write) = (os.pipe2(os.O_CLOEXEC) for _ in range(3))
    return [in_write, out_read, err_read], [in_read, out_write, err_write]


def _terminal() -> tuple[list[int], list[int]]:
    master_fd, slave_fd = os.openpty()
    return [master_fd], [slave_fd]


def _become(words: list[str], environment: dict[str, str], fds: list[int], terminal: bool) -> None:
    """The child: root's own process.  Never returns."""
    try:
        os.setsid()
        if terminal:
            fcntl.ioctl(fds[0], termios.TIOCSCTTY, 0)
        for standard, descriptor in enumerate(fds if len(fds) == 3 else fds * 3):
            os.dup2(descriptor, standard)
        process.reset_signals()
        process.close_fds([0, 1, 2])
        os.umask(0o022)
        os.execve(words[0], words, environment)
    finally:
        os._exit(int(Exit.INTERNAL))


def _answer(connection: socket.socket, head: dict[str, Any], fds: list[int] | None = None) -> None:
    try:
        packets.send(connection, head, fds or ())
    except OSError:
        return  # it has gone, or does not read: it will be dropped


def serve(layout: Layout, *, stay: bool = False) -> int:
    """Start the program, away from whoever starts it: in our own control group, without its descriptors.

    ``stay`` is for a service manager, which sees to all that: be the program, and wait while another process is it.
    """
    if not wanted(layout):
        return int(Exit.OK)
    base = "zonemgr" + layout.suffix
    if stay:
        status = _serve(layout, patient=True)
        supervisors.leave(base, detect())  # who was killed before us could not
        return status
    pid, pid_fd = supervisors.clone_into(detect(), base)
    if pid == 0:
        status = int(Exit.INTERNAL)
        try:
            os.setsid()
            process.close_fds([0, 1, 2])
            process.stdio_to_null()
            supervisors.leave_v1()
            status = _serve(layout)
        finally:
            supervisors.leave(base, detect())
            os._exit(status)
    os.close(pid_fd)
    return int(Exit.OK)


def _serve(layout: Layout, *, patient: bool = False) -> int:
    """Be the program, unless another process is it, or nobody is named any more."""
    lock = FileLock(layout.run / f"{SOCKET}.lock")
    if not lock.acquire(blocking=patient) or not wanted(layout):
        return int(Exit.OK)
    syslog.openlog("zonemgr", syslog.LOG_PID, syslog.LOG_AUTH)
    os.chdir("/")
    os.umask(0o022)
    process.set_name("zone-delegate")
    process.set_title("zone-delegate")
    process.set_dumpable(False)
    Delegate(layout).run()
    return int(Exit.OK)
