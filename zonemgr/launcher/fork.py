"""What becomes of a fork of the launcher: a run of the command line, or the supervisor of a zone.

The caller is checked as at a zone's door, and must be a process that a child of ours can pass for (``likeness``).
Nothing of one piece of work reaches another: each is a fork of the process that has only loaded the program.
"""

from __future__ import annotations

import atexit
import enum
import fcntl
import importlib
import io
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import NoReturn

from zonemgr.errors import Exit, ZoneError, locale_of_environment, speak
from zonemgr.launcher import likeness
from zonemgr.launcher.client import PROGRAMS
from zonemgr.launcher.likeness import Likeness, Manners, Unlike
from zonemgr.linux import process
from zonemgr.linux.cgroup import supervisors
from zonemgr.linux.cgroup.hierarchy import Hierarchy
from zonemgr.store.paths import Layout
from zonemgr.wire import launch, peers, start

REQUEST_S = 10.0  # for the whole of a request to arrive
_UTF_8 = ("utf-8", "utf8")


@dataclass(frozen=True, slots=True)
class Home:
    """What every fork knows of the launcher."""

    layout: Layout
    identity: str
    likeness: Likeness
    manners: Manners
    hierarchy: Hierarchy


class Place(enum.Enum):
    """The control group on cgroup2 that a fork was born into."""

    SUPERVISORS = "where supervisors belong"
    CALLER = "where the caller is"
    LAUNCHER = "beside the launcher"


def become(connection: socket.socket, home: Home, place: Place) -> NoReturn:
    """Be what the caller at the connection asks for.  Leaves without a word when the caller had better do it."""
    status = int(Exit.INTERNAL)
    try:
        process.close_fds([0, 1, 2, connection.fileno()])
        work = _accepted(connection, home, place)
        if work is not None:
            status = work()
            connection.sendall(launch.status_message(status), socket.MSG_NOSIGNAL)
    except (peers.CallerError, Unlike, OSError, ValueError):
        pass  # not wanted, or gone
    finally:
        if place is Place.SUPERVISORS:  # and no supervisor has come of it
            supervisors.leave("zonemgr" + home.layout.suffix, home.hierarchy)
        os._exit(status)


def _accepted(connection: socket.socket, home: Home, place: Place) -> Callable[[], int] | None:
    """What to do; None when the caller has lost its patience."""
    with peers.examined(connection) as (caller, folder_fd):
        theirs, manners = likeness.of(folder_fd)
        if theirs != home.likeness:
            raise Unlike("other credentials or namespaces")
    connection.settimeout(REQUEST_S)
    kind, who, words, environment = launch.decode(_receive(connection))
    if who != home.identity:
        raise Unlike("another installation")
    if kind == launch.SERVE:
        likeness.take_login(manners, home.manners)
        fds = _agreed(connection, 1)
        return _serve(connection, home, words[0], environment, fds[0], place) if fds else None
    if place is Place.SUPERVISORS or not _speaks_utf_8(environment):
        raise Unlike("another encoding")
    likeness.take_over(caller.pid, manners, home.manners, home.hierarchy)
    with ExitStack() as stack:
        handles = []
        if place is Place.LAUNCHER:
            handles.append(_open_place(manners, home.hierarchy))
            stack.callback(os.close, handles[0])
        fds = _agreed(connection, 4, handles)
    return _run(connection, manners, words, environment, fds) if fds else None


def _open_place(manners: Manners, hierarchy: Hierarchy) -> int:
    """The way into the caller's control group, for the caller: it moves us when we take long.  To be moved can take
    longer than a short run.
    """
    place = likeness.unified_path(manners.cgroups).lstrip("/")
    return os.open(hierarchy.unified() / place / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)


def _receive(connection: socket.socket) -> bytes:
    data = connection.recv(1 << 16)  # and no descriptors: the kernel closes them
    if len(data) < 4:
        raise ValueError("not a request")
    length = int.from_bytes(data[:4], "big")
    if length > launch.REQUEST_MAX:
        raise ValueError("too long a request")
    parts = [data[4:]]
    missing = length - len(parts[0])
    while missing > 0:
        more = connection.recv(min(missing, 1 << 20))
        if not more:
            raise ValueError("half a request")
        parts.append(more)
        missing -= len(more)
    return b"".join(parts)


def _agreed(connection: socket.socket, number: int, more: Sequence[int] = ()) -> list[int]:
    """Give the caller a handle on us, and more descriptors, and wait for the word to begin, which so many descriptors
    come with.  Empty when it does not come.
    """
    pid_fd = os.pidfd_open(os.getpid())
    rights = b"".join(fd.to_bytes(4, sys.byteorder) for fd in (pid_fd, *more))
    connection.sendmsg([b"H"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)], socket.MSG_NOSIGNAL)
    os.close(pid_fd)
    word, ancillary, flags, _address = connection.recvmsg(
        1, socket.CMSG_SPACE(launch.FDS_MAX * 4), socket.MSG_CMSG_CLOEXEC
    )
    connection.settimeout(None)
    fds = launch.received(ancillary)
    if word and (word != b"G" or len(fds) != number or flags & socket.MSG_CTRUNC):
        raise ValueError("not the word")
    return fds


def _speaks_utf_8(environment: Mapping[bytes, bytes]) -> bool:
    """The encoding of file names and streams is chosen at an interpreter's start; ours was UTF-8."""
    names = (b"LC_ALL", b"LC_CTYPE", b"LANG")
    chosen = next((value for name in names if (value := environment.get(name))), b"C").decode(errors="replace")
    _, dot, encoding = chosen.partition(".")
    plain = chosen in ("C", "POSIX")
    return plain or (bool(dot) and encoding.partition("@")[0].lower() in _UTF_8)


def warm_up(home: Home, place: Place) -> None:
    """Do what any work would begin with, for a zone that is not there: what was touched once is not copied again."""
    nobody = "no-" + os.urandom(16).hex()
    folder_fd = os.open("/proc/self", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        likeness.of(folder_fd)
    finally:
        os.close(folder_fd)
    try:
        if place is Place.SUPERVISORS:
            from zonemgr.supervisor import program

            program.warm_up(home.layout, nobody)
        else:
            from zonemgr.cli import main

            main.warm_up(str(home.layout.root), nobody)
    except (ZoneError, OSError):
        pass  # as expected; and what is wrong with the instance is told to whoever asks for something


# -- a supervisor -----------------------------------------------------------------------------------------------


def _serve(
    connection: socket.socket,
    home: Home,
    zonename: str,
    environment: Mapping[bytes, bytes],
    ready_fd: int,
    place: Place,
) -> Callable[[], int]:
    def work() -> int:
        from zonemgr.supervisor import program

        def begun() -> None:
            connection.sendall(launch.status_message(int(Exit.OK)), socket.MSG_NOSIGNAL)
            connection.close()

        os.setsid()
        given = {os.fsdecode(name): os.fsdecode(value) for name, value in environment.items()}
        _set_environment({os.fsencode(k): os.fsencode(v) for k, v in start.environment(given).items()})
        speak(locale_of_environment())
        return program.serve(home.layout, zonename, ready_fd, begun if place is Place.SUPERVISORS else None)

    return work


# -- a run of the command line ----------------------------------------------------------------------------------


def _run(
    connection: socket.socket,
    manners: Manners,
    words: list[str],
    environment: Mapping[bytes, bytes],
    fds: list[int],
) -> Callable[[], int]:
    def work() -> int:
        *stdio, folder_fd = fds
        for number, fd in enumerate(stdio):
            os.dup2(fd, number)
        os.fchdir(folder_fd)
        for fd in fds:
            os.close(fd)
        os.setpgid(0, 0)
        likeness.take_signals(manners)
        _hang_up_with(connection)
        _set_environment(environment)
        time.tzset()
        _open_streams(environment)
        process.set_name(words[0])
        process.set_title(" ".join(words))
        return _main(words)

    return work


def _hang_up_with(connection: socket.socket) -> None:
    """Hang up when the caller dies.

    The kernel signals whatever happens at the connection, the caller's word to begin too, and that long after it was
    read: whoever sends may lose its processor before it has told.  So it is looked whether the caller has gone.
    """
    poll = select.poll()
    poll.register(connection, select.POLLRDHUP)

    def look(_number: int, _frame: object) -> None:
        if poll.poll(0):
            os.kill(os.getpid(), signal.SIGHUP)

    fd = connection.fileno()
    signal.signal(signal.SIGIO, look)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGIO,))
    fcntl.fcntl(fd, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_ASYNC)
    look(signal.SIGIO, None)  # before we had asked to be told


def _set_environment(environment: Mapping[bytes, bytes]) -> None:
    for name in os.environb.keys() - environment.keys():
        del os.environb[name]
    for name, value in environment.items():
        if os.environb.get(name) != value:
            os.environb[name] = value


def _open_streams(environment: Mapping[bytes, bytes]) -> None:
    """Standard streams as the interpreter makes them at its start, which was before these descriptors came."""
    names = (b"LC_ALL", b"LC_CTYPE", b"LANG")
    chosen = next((value for name in names if (value := environment.get(name))), b"C")
    errors = "surrogateescape" if chosen in (b"C", b"POSIX", b"C.UTF-8", b"C.utf8") else "strict"
    sys.stdin = _stream(0, "r", errors)
    sys.stdout = _stream(1, "w", errors)
    sys.stderr = _stream(2, "w", "backslashreplace")


def _stream(fd: int, mode: str, errors: str) -> io.TextIOWrapper:
    line_buffering = fd == 2 or os.isatty(fd)
    buffer = open(fd, mode + "b", closefd=False)  # noqa: SIM115 - for the life of the process
    return io.TextIOWrapper(buffer, encoding="utf-8", errors=errors, line_buffering=line_buffering)


def _main(words: list[str]) -> int:
    """Run the program; its exit status."""
    sys.argv = list(words)
    module, function = PROGRAMS[words[0]]
    code: object = 0
    try:
        getattr(importlib.import_module(module), function)()
    except SystemExit as leaving:
        code = leaving.code
    except BaseException:  # noqa: BLE001 - as the interpreter does with what nobody caught
        import traceback

        traceback.print_exc()
        code = 1
    return _ended(code)


def _ended(code: object) -> int:
    atexit._run_exitfuncs()
    status = code if isinstance(code, int) else 0 if code is None else 1
    try:
        if isinstance(code, str):
            print(code, file=sys.stderr)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    except OSError:
        status = status or 120  # as the interpreter has it
    return status & 0xFF
