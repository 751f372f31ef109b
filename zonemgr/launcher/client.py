"""The programs that people call, ``zonemgr`` and its Solaris names: thin, since most of a short run is its start.

The work goes to the launcher, whose fork does it with our descriptors, words, environment and limits, as if it were
our child: signals that reach us reach it, its exit status is ours, and our death is its hang-up.  Where there is no
launcher, or none that could pass for us, this process does the work itself; nothing is written twice.

Imports nothing that a bare interpreter has not built in but ``wire.launch``: ``posix`` and ``_signal`` in place of
``os`` and ``signal``, and not even ``__future__``, which is a module like any other, looked for in three folders.
"""

import posix
import sys

from zonemgr.wire import launch

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Callable
    from typing import NoReturn
else:
    import _signal  # what ``signal`` wraps in enumerations

PACKAGE = __file__.rpartition("/launcher/")[0]  # as absolute as the interpreter makes it
PROGRAMS = {  # a program's name -> the function that it is
    "zonemgr": ("zonemgr.cli.main", "main"),
    "zoneadm": ("zonemgr.cli.solaris", "zoneadm"),
    "zonecfg": ("zonemgr.cli.solaris", "zonecfg"),
    "zlogin": ("zonemgr.cli.solaris", "zlogin_program"),
    "zonename": ("zonemgr.cli.solaris", "zonename"),
    "zonestat": ("zonemgr.cli.solaris", "zonestat"),
}
_TRANSITION = b"ZONEMGR_IN_TRANSITION"
_COMPLETION = b"_ZONEMGR_COMPLETE"  # a shell asks what could be typed: nobody has run anything yet
_NEED_A_TERMINAL = frozenset(("config", "zonecfg"))  # line editing and job control: their own terminal
# Passed on to the run alone, and to all that it has started, as a terminal would.
_ALONE = (_signal.SIGTERM, _signal.SIGUSR1, _signal.SIGUSR2, _signal.SIGHUP)
_GROUP = (_signal.SIGINT, _signal.SIGQUIT, _signal.SIGWINCH, _signal.SIGTSTP, _signal.SIGCONT)


def zonemgr() -> "NoReturn":
    """The ``zonemgr`` program."""
    main("zonemgr")


def zoneadm() -> "NoReturn":
    """The ``zoneadm`` program."""
    main("zoneadm")


def zonecfg() -> "NoReturn":
    """The ``zonecfg`` program."""
    main("zonecfg")


def zlogin() -> "NoReturn":
    """The ``zlogin`` program."""
    main("zlogin")


def zonename() -> "NoReturn":
    """The ``zonename`` program."""
    main("zonename")


def zonestat() -> "NoReturn":
    """The ``zonestat`` program."""
    main("zonestat")


def main(program: str) -> "NoReturn":
    """Run one of the programs to its exit status."""
    switch = posix.environ.get(launch.SWITCH.encode(), b"").decode("latin-1")
    warm = switch != "no" and posix.geteuid() == 0 and _TRANSITION not in posix.environ and not _is_watched(sys.argv)
    root = _root(sys.argv[1:])
    if warm and not _needs_a_terminal(program, sys.argv[1:]):
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
        _hand_over(program, root, launch.patience_s(switch))
        _signal.signal(_signal.SIGINT, _signal.default_int_handler)
        if switch == "must":
            sys.stderr.write("zonemgr: no launcher does this\n")
            sys.exit(3)
    _do_it_here(program, root if warm and _COMPLETION not in posix.environ else None)


def _root(words: list[str]) -> str:
    """The instance that the words name, as far as finding its launcher goes: a wrong guess finds none, or one that
    does the same work.
    """
    for at, word in enumerate(words):
        if word == "--":
            break
        if word == "--root" and at + 1 < len(words):
            return words[at + 1]
        if word.startswith("--root="):
            return word[7:]
    return launch.decoded(posix.environ.get(b"ZONEMGR_ROOT") or b"/")


def _is_watched(words: list[str]) -> bool:
    """systemd waits to hear from this very process that the zone runs: ``boot --wait`` in a unit."""
    return "--wait" in words and b"NOTIFY_SOCKET" in posix.environ


def _needs_a_terminal(program: str, words: list[str]) -> bool:
    """The run would read from the terminal of a session that a fork of the launcher is not in."""
    if program in _NEED_A_TERMINAL or _NEED_A_TERMINAL.intersection(words):
        return posix.isatty(0)
    try:
        return posix.isatty(0) and posix.tcgetpgrp(0) != posix.getpgrp()  # in the background: the terminal stops us
    except OSError:
        return False  # not the terminal of our session


# -- through the launcher ---------------------------------------------------------------------------------------


def _hand_over(program: str, root: str, patience_s: float) -> None:
    """Let the launcher do it, and end as it ended.  Returns when nothing was done."""
    try:
        folder_fd = posix.open(".", posix.O_PATH | posix.O_DIRECTORY | posix.O_CLOEXEC)
    except OSError:
        return
    words = [program, *sys.argv[1:]]
    work = launch.ask(
        launch.run_folder(root),
        launch.RUN,
        launch.identity(PACKAGE),
        words,
        dict(posix.environ),
        [0, 1, 2, folder_fd],
        patience_s,
    )
    if work is None:
        posix.close(folder_fd)
        return
    pid = _pid_of(work.pid_fd)
    _relay_signals(work, pid)
    try:
        work.go()
    except OSError:
        for number in (*_ALONE, *_GROUP):
            if _signal.getsignal(number) not in (_signal.SIG_IGN, None):
                _signal.signal(number, _signal.SIG_DFL)
        work.close()
        return
    _end_as(work.wait_at_home(pid))


def _relay_signals(work: launch.Work, pid: int) -> None:
    """What reaches us is for the run; what we ignore it ignores too."""

    def alone(number: int, _frame: object) -> None:
        _quietly(lambda: _signal.pidfd_send_signal(work.pid_fd, number))

    def group(number: int, _frame: object) -> None:
        stopping = number == _signal.SIGTSTP
        sent = _signal.SIGSTOP if stopping else number
        if _quietly(lambda: _signal.pidfd_send_signal(work.pid_fd, 0)):
            _quietly(lambda: posix.killpg(pid, sent))
        if stopping:
            posix.kill(posix.getpid(), _signal.SIGSTOP)

    for numbers, handler in ((_ALONE, alone), (_GROUP, group)):
        for number in numbers:
            if _signal.getsignal(number) is not _signal.SIG_IGN:
                _signal.signal(number, handler)


def _quietly(act: "Callable[[], object]") -> bool:
    """It may have ended meanwhile."""
    try:
        act()
    except OSError:
        return False
    return True


def _pid_of(pid_fd: int) -> int:
    fd = posix.open(f"/proc/self/fdinfo/{pid_fd}", posix.O_RDONLY | posix.O_CLOEXEC)
    text = posix.read(fd, 4096)
    posix.close(fd)
    return int(text.partition(b"\nPid:")[2].split(None, 1)[0])


def _end_as(status: int | None) -> "NoReturn":
    """Without the interpreter's tidying up: nothing of ours is buffered."""
    if status is None:
        posix.write(2, b"zonemgr: what this command came to is not known: its process has vanished\n")
        status = 3
    if status > launch.SIGNALLED:
        number = status - launch.SIGNALLED
        _quietly(lambda: _signal.signal(number, _signal.SIG_DFL))
        posix.kill(posix.getpid(), number)
        status = 128 + number
    posix._exit(status)


# -- without it -------------------------------------------------------------------------------------------------


def _do_it_here(program: str, root: str | None) -> "NoReturn":
    """Do the work in this process; afterwards, with a root, see to it that the next run finds a launcher."""
    if sys.flags.no_site:
        import site

        site.main()
    from importlib import import_module

    sys.argv[0] = program
    module, function = PROGRAMS[program]
    try:
        getattr(import_module(module), function)()
    except SystemExit as leaving:
        if root is not None and leaving.code in (0, None):
            from zonemgr.launcher import start

            sys.stdout.flush()
            start.in_background(root)
        raise
    sys.exit(0)
