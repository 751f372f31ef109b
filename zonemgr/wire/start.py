"""Calls to a zone's supervisor, which is started when there is none (reference, section 4.1).

The supervisor is a program of its own.  It says that it is ready, or why it is not, in JSON lines on a pipe: any number
of ``{"message": text}``, then ``{"ready": true}``; end of file without that means that it gave up.  A supervisor that
finds another one serving gives up without a word and with status 0, and the other one is asked.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import zonemgr
from zonemgr.errors import PlatformError, StateError, ZoneError
from zonemgr.store.files import make_directory
from zonemgr.store.locks import FileLock
from zonemgr.store.paths import Layout
from zonemgr.wire import launch
from zonemgr.wire.client import Client, EmptyReply, connect
from zonemgr.wire.varlink import Message

START_S: Final = 180.0  # for a supervisor to become ready, recovery of what it finds included
PATIENCE_S: Final = 90.0  # for finding a supervisor that answers, starts included
REAP_S: Final = 5.0  # for a program that has nothing left to do but to end
BACKOFF_S: Final = 0.05  # between two starts that found a supervisor in its last moments
LINE_MAX: Final = 64 * 1024
TRANSITION_VARIABLE: Final = "ZONEMGR_IN_TRANSITION"

# The signals that Python ignores, or a caller did (nohup): their disposition would be inherited.
DEFAULTS: Final = (
    signal.SIGPIPE,
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGCHLD,
)
PASSED_ON: Final = ("LANG", "LANGUAGE")  # and what begins with one of these:
PASSED_ON_PREFIXES: Final = ("LC_", "ZONEMGR_")

Say = Callable[[str], None]

_BOOTSTRAP: Final = (
    "import runpy,sys;sys.path.insert(0,sys.argv.pop(1));runpy.run_module({!r},{{}},'__main__',True)"
)


DELEGATE_SOCKET: Final = "admin"  # in the instance's run folder; users whom admin resources name connect to it


def delegate(layout: Layout) -> None:
    """Start the process that serves such users, unless there is one.  Nobody waits for it."""
    words = program("zonemgr.supervisor", "delegate", "--root", str(layout.root))
    null = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in (0, 1, 2)]
    os.posix_spawn(
        words[0], words, environment(), file_actions=null, setsid=True, setsigmask=(), setsigdef=DEFAULTS
    )


def program(module: str, *arguments: str) -> list[str]:
    """The words that run one of our programs in an interpreter that ignores the caller's environment and folder."""
    home = Path(zonemgr.__file__).resolve().parent.parent
    if home.name in ("site-packages", "dist-packages"):
        return [sys.executable, "-I", "-m", module, *arguments]
    return [sys.executable, "-I", "-c", _BOOTSTRAP.format(module), str(home), *arguments]  # a checkout


def program_named(name: str, *arguments: str) -> list[str]:
    """As ``program``, for one of the programs that people call, by its name (``zonemgr``, ``zlogin``)."""
    home = str(Path(zonemgr.__file__).resolve().parent.parent)
    code = f"import sys;sys.path.append(sys.argv.pop(1));from zonemgr.launcher.client import {name};{name}()"
    return [sys.executable, "-I", "-c", code, home, *arguments]


def environment(given: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What a supervisor inherits: nothing of the caller's but the language and our own switches."""
    kept = {
        name: value
        for name, value in given.items()
        if name in PASSED_ON or name.startswith(PASSED_ON_PREFIXES)
    }
    kept.pop(TRANSITION_VARIABLE, None)
    return {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **kept}


def door(layout: Layout, zonename: str) -> Path:
    """The zone's door."""
    return layout.zone_run(zonename) / "door"


def call(
    layout: Layout,
    zonename: str,
    method: str,
    parameters: Mapping[str, Any],
    *,
    say: Say,
    on_asked: Callable[[], None] = lambda: None,
    on_reply: Callable[[Message], None] | None = None,
) -> Message:
    """Ask the zone's supervisor, starting it when there is none; the last reply's parameters.

    ``say`` gets what a starting supervisor tells; ``on_asked`` is called once the request has been sent, after which
    the supervisor goes on whatever becomes of us; ``on_reply`` gets the replies before the last.
    Raises RemoteError, ZoneError.
    """
    refuse_from_within(zonename)
    for connection in _connections(layout, zonename, "door", say):
        with Client(connection) as client:
            on_asked()
            try:
                return client.call(method, parameters, more=on_reply is not None, on_reply=on_reply)
            except EmptyReply:
                continue  # it was about to leave
    raise ZoneError("no supervisor of the zone stays long enough to answer")


def refuse_from_within(zonename: str) -> None:
    """A hook that commands its own zone would wait for itself.  Raises StateError."""
    if os.environ.get(TRANSITION_VARIABLE) == zonename:
        raise StateError("a hook cannot command the zone whose transition it is part of")


def connected(layout: Layout, zonename: str, name: str, say: Say) -> socket.socket:
    """A connection to one of the supervisor's sockets by its name ("console"); it is started when there is none."""
    refuse_from_within(zonename)
    for connection in _connections(layout, zonename, name, say):
        return connection
    raise ZoneError("no supervisor of the zone stays long enough to answer")


def _connections(layout: Layout, zonename: str, name: str, say: Say) -> Iterator[socket.socket]:
    """Connections to successive supervisors, until patience ends; the caller closes them."""
    path = layout.zone_run(zonename) / name
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        connection = _try(path)
        if connection is not None:
            yield connection
        elif not start(layout, zonename, say):
            time.sleep(BACKOFF_S)


def _try(path: Path) -> socket.socket | None:
    try:
        return connect(path)
    except (FileNotFoundError, ConnectionRefusedError):
        return None
    except OSError as error:
        raise PlatformError("cannot reach the supervisor: {why}", why=error.strerror) from error


def _serves(layout: Layout, zonename: str) -> bool:
    connection = _try(door(layout, zonename))
    if connection is not None:
        connection.close()
    return connection is not None


def start(layout: Layout, zonename: str, say: Say) -> bool:
    """Start the zone's supervisor.  False when it left without a word: another one serves, or is about to leave.

    Raises PlatformError "could not start the supervisor" when it failed; ``say`` has got the reasons.
    """
    folder = layout.zone_run(zonename)
    make_directory(folder, 0o700)
    busy = "another process has been starting the zone's supervisor for too long"
    with FileLock(folder / "start.lock", busy=busy, deadline_s=START_S + 5):
        # Somebody may have been faster, before us or (one started by other means) while ours was starting.
        return _serves(layout, zonename) or _start(layout, zonename, say) or _serves(layout, zonename)


def _start(layout: Layout, zonename: str, say: Say) -> bool:
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    try:
        # Not one of 0 to 2, which the child gets anew; and not close-on-exec, which dup2 onto itself would leave.
        ready_fd = fcntl.fcntl(write_fd, fcntl.F_DUPFD_CLOEXEC, 10)
        try:
            starting = _handed_over(layout, zonename, ready_fd) or _Child(_spawn(layout, zonename, ready_fd))
        finally:
            os.close(ready_fd)
            os.close(write_fd)
        return _await(read_fd, starting, say)
    finally:
        os.close(read_fd)


class _Child:
    """A program of our own that starts the supervisor, and ends as soon as that is done."""

    def __init__(self, pid: int) -> None:
        self._pid = pid

    def status(self) -> int:
        """Wait for its end."""
        return os.waitpid(self._pid, 0)[1]

    def leave(self) -> None:
        """It has nothing left to do."""
        pid_fd = os.pidfd_open(self._pid)
        try:
            if select.select([pid_fd], [], [], REAP_S)[0]:
                os.waitpid(self._pid, 0)
        finally:
            os.close(pid_fd)

    def kill(self) -> None:
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)


class _Work:
    """A fork of the launcher that does the same."""

    def __init__(self, work: launch.Work) -> None:
        self._work = work

    def status(self) -> int:
        try:
            status = self._work.wait(REAP_S)
        except TimeoutError:
            status = None
        self._work.close()
        return 1 if status is None else status

    def leave(self) -> None:
        self._work.close()

    def kill(self) -> None:
        signal.pidfd_send_signal(self._work.pid_fd, signal.SIGKILL)
        self._work.close()


def _handed_over(layout: Layout, zonename: str, ready_fd: int) -> _Work | None:
    """Let the launcher start it.  None when there is none."""
    switch = os.environ.get(launch.SWITCH, "")
    if switch == "no":
        return None
    variables = {os.fsencode(name): os.fsencode(value) for name, value in environment().items()}
    who = launch.identity(os.path.dirname(os.path.abspath(zonemgr.__file__)))
    patience_s = launch.patience_s(switch)
    work = launch.ask(str(layout.run), launch.SERVE, who, [zonename], variables, [ready_fd], patience_s)
    if work is None:
        return None
    try:
        work.go()
    except OSError:
        work.close()
        return None
    return _Work(work)


def _spawn(layout: Layout, zonename: str, ready_fd: int) -> int:
    child_fd = 3
    arguments = ["serve", zonename, *layout.words, "--ready-fd", str(child_fd)]
    words = program("zonemgr.supervisor", *arguments)
    # Standard error stays: what the interpreter itself says before the supervisor can speak is worth reading.
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
        (os.POSIX_SPAWN_DUP2, ready_fd, child_fd),
    ]
    # A session of its own at once: a Ctrl-C at the caller's terminal is not meant for it.
    return os.posix_spawn(
        words[0],
        words,
        environment(),
        file_actions=actions,
        setsid=True,
        setsigmask=(),
        setsigdef=DEFAULTS,
    )


def _await(read_fd: int, starting: _Child | _Work, say: Say) -> bool:
    said = False
    try:
        for line in _lines(read_fd):
            if line.get("ready"):
                starting.leave()
                return True
            if "message" in line:
                said = True
                say(str(line["message"]))
    except TimeoutError:
        starting.kill()
        raise PlatformError("the supervisor did not become ready within {s:.0f} s", s=START_S) from None
    if starting.status() != 0 or said:
        raise PlatformError("could not start the supervisor")
    return False


def _lines(read_fd: int) -> Iterator[dict[str, Any]]:
    """JSON lines until end of file.  Raises TimeoutError when nothing more comes in time."""
    deadline = time.monotonic() + START_S
    poll = select.poll()
    poll.register(read_fd, select.POLLIN)
    rest = b""
    while poll.poll(max(0.0, (deadline - time.monotonic()) * 1000)):
        data = os.read(read_fd, 4096)
        if not data:
            return
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            yield json.loads(line)
        if len(rest) > LINE_MAX:
            raise PlatformError("the starting supervisor talks nonsense")
    raise TimeoutError
