"""The minimal process 1 of a zone whose program is no init, such as an application from an image.

It is the parked process itself, which goes on instead of becoming something else: nothing has to be in the zone,
and nothing of the host's is shown to it.  It reaps what it inherits, passes every signal on to the program, and ends
when the program ends, with its status (128 and the signal's number for one that was killed), and the zone with it.

The program is a child with a session, and mostly the console as its terminal.  Nothing here imports, opens or looks
anything up: the files that it would find are the zone's.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

from zonemgr.linux import process

_ALL = frozenset(range(1, signal.NSIG)) - {signal.SIGKILL, signal.SIGSTOP}


@dataclass(frozen=True, slots=True)
class Program:
    """What the child becomes."""

    candidates: Sequence[str]
    arguments: list[str]
    environment: dict[str, str]
    folder: str
    uid: int
    gid: int
    groups: Sequence[int]


def start(program: Program, open_terminal: Callable[[], None]) -> int:
    """Start the program; its pid, when it has been exec'ed.  Raises OSError with what kept it from starting.

    From here on every signal to the caller waits for ``reap``.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _ALL)
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    pid = process.fork()
    if pid == 0:
        _become(program, open_terminal, read_fd, write_fd)
    os.close(write_fd)
    report = os.read(read_fd, 4)
    os.close(read_fd)
    if report:
        os.waitpid(pid, 0)
        code = int.from_bytes(report, "little")
        raise OSError(code, os.strerror(code))
    return pid


def _become(program: Program, open_terminal: Callable[[], None], read_fd: int, write_fd: int) -> NoReturn:
    try:
        os.setsid()
        open_terminal()
        process.close_fds([0, 1, 2, write_fd])
        os.setgroups(program.groups)
        os.setresgid(program.gid, program.gid, program.gid)
        os.setresuid(program.uid, program.uid, program.uid)
        os.chdir(program.folder)
        if not os.getcwd().startswith("/"):
            raise FileNotFoundError(2, "")
        process.reset_signals()
        execute(program.candidates, program.arguments, program.environment)
    except OSError as error:
        os.write(write_fd, (error.errno or 5).to_bytes(4, "little"))
    finally:
        os._exit(127)


def execute(candidates: Sequence[str], arguments: list[str], environment: dict[str, str]) -> None:
    """Exec the first candidate that there is.  Raises OSError."""
    failure = OSError(2, os.strerror(2))
    for path in candidates:
        try:
            os.execve(path, arguments, environment)
        except OSError as error:
            if error.errno not in (2, 13, 20):  # not there, not for us, a file among its folders
                raise
            failure = error if error.errno == 13 else failure
    raise failure


def reap(pid: int) -> NoReturn:
    """Be process 1 until the program has ended."""
    process.close_fds([])
    while True:
        number = signal.sigwait(_ALL)
        if number != signal.SIGCHLD:
            _pass_on(pid, number)
        while (ended := _next_ended()) is not None:
            if ended[0] == pid:
                os._exit(process.exit_status(ended[1]))


def _pass_on(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return  # it has just ended


def _next_ended() -> tuple[int, int] | None:
    try:
        pid, status = os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return None
    return (pid, status) if pid else None
