"""A copy of our interpreter that nobody can write to, for processes that enter a zone without a user namespace.

A program of such a zone can have itself run by what enters it (``#!/proc/self/exe``, CVE-2019-5736), and then holds the
very file that the entering process was executed from.  In a zone with a user namespace that file belongs to nobody it
could become; in a privileged zone root may write to it, and it would be the host's Python.  So there it is a sealed
copy in memory.

Deliberately not here: who has to be sealed (``supervisor.program`` and ``cli.login`` say so).
"""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Mapping, Sequence
from typing import Final, NoReturn

_EXECUTABLE: Final = "/proc/self/exe"
_MFD_EXEC: Final = 0x10  # since Linux 6.3: says what a memory file was always allowed
_SEALS: Final = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_CHUNK: Final = 1 << 24


def is_sealed() -> bool:
    """Whether this process was executed from a copy that cannot be changed."""
    descriptor = os.open(_EXECUTABLE, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & _SEALS == _SEALS
    except OSError:  # no memory file
        return False
    finally:
        os.close(descriptor)


def execute(words: Sequence[str], environment: Mapping[str, str]) -> NoReturn:
    """Become the program of these words (the first is our interpreter), executed from a sealed copy.  OSError."""
    copy_fd = _memory_file()
    try:
        _copy_executable(copy_fd)
        fcntl.fcntl(copy_fd, fcntl.F_ADD_SEALS, _SEALS)
        os.execve(f"/proc/self/fd/{copy_fd}", list(words), environment)
    finally:
        os.close(copy_fd)


def run(words: Sequence[str], environment: Mapping[str, str]) -> int:
    """As ``execute``, in a child: for a process that somebody waits for in other ways than wait(2).

    Its exit status, as a shell counts.  Signals for this process alone are passed on.
    """
    from zonemgr.linux import process

    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            process.set_pdeathsig(signal.SIGHUP, parent)
            execute(words, environment)
        finally:
            os._exit(125)
    before = {
        number: signal.signal(number, lambda number, _frame: os.kill(pid, number))
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
    }
    before |= {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGQUIT)}
    try:
        return process.exit_status(os.waitpid(pid, 0)[1])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _memory_file() -> int:
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        return os.memfd_create("zonemgr", flags | _MFD_EXEC)
    except OSError:
        return os.memfd_create("zonemgr", flags)


def _copy_executable(copy_fd: int) -> None:
    source_fd = os.open(_EXECUTABLE, os.O_RDONLY | os.O_CLOEXEC)
    try:
        while os.sendfile(copy_fd, source_fd, None, _CHUNK):
            pass
    finally:
        os.close(source_fd)
