"""The launcher's own life: load everything once, then accept and fork until nobody comes any more.

It holds no state: killed at any moment, what its forks do goes on, their callers have handles on them, and the next
command starts without help, and another launcher.  It runs nothing of a caller's in its own process, and reads nothing
that a caller sends: its forks do.  No threads.
"""

from __future__ import annotations

import errno
import gc
import importlib
import os
import pkgutil
import select
import signal
import socket
import sys
import time
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Final, NoReturn

import zonemgr
from zonemgr.brandkit import loader
from zonemgr.errors import Exit, ZoneError
from zonemgr.launcher import fork, likeness, spare
from zonemgr.launcher.fork import Place
from zonemgr.launcher.start import LOCK
from zonemgr.linux import inotify, process
from zonemgr.linux.cgroup import detect, supervisors
from zonemgr.model.zone import Zone
from zonemgr.store import settings
from zonemgr.store.files import make_directory
from zonemgr.store.locks import FileLock
from zonemgr.store.paths import Layout
from zonemgr.supervisor import door
from zonemgr.wire import interface, launch, start, varlink

PREDECESSOR_S: Final = 10.0  # for one that leaves to be gone
SPARE_GONE_S: Final = 2.0  # for a spare that is not needed any more to be gone
FORKS_MAX: Final = 512  # at once; callers beyond them do without
_LULL_MS: Final = 500  # nobody has come for so long while others were at work, longer than most of what there is to do
_SPARED: Final = (Place.LAUNCHER, Place.SUPERVISORS)
_EARLY: Final = launch.NAME + ".new"  # the socket's name until it is complete
_CREDENTIALS: Final = 12
_SYSTEMD_FD: Final = 3
# Loaded by hand or on demand: test support, the programs themselves, and what only draws on a terminal.
_LEFT_OUT: Final = ("__main__", "conformance", "conformance_suite", "conformance_bench", "statview")
# What functions of ours import when they are called, beyond our own modules.
_BESIDES: Final = (
    "argparse",
    "difflib",
    "encodings.ascii",
    "hashlib",
    "ipaddress",
    "shutil",
    "stat",
    "tempfile",
    "textwrap",
    "threading",
    "tomllib",
    "traceback",
)
_SAMPLES: Final = (
    """
    brand = "native"
    limitpriv = "default,!net_raw"
    [[net]]
    anet = "zbr0"
    address = ["10.91.0.10/24", "fd91::10/64"]
    defrouter = "10.91.0.1"
    [[fs]]
    dir = "/srv"
    special = "/srv/web"
    type = "bind"
    options = ["ro", "nosuid"]
    [capped-memory]
    physical = "512M"
    [capped-cpu]
    ncpus = 1.5
    """,
)
_OF_OTHERS: Final = ("click", "cgroupspy", "prctl", "tomlkit")  # a new version of these is a new program too


def main(arguments: list[str]) -> int:
    """Be the launcher of an instance; the exit status."""
    if len(arguments) != 2 or arguments[0] != "--root":
        print("usage: python -m zonemgr.launcher --root DIR", file=sys.stderr)
        return int(Exit.USAGE)
    layout = Layout.at(arguments[1])
    try:
        return _main(layout)
    except ZoneError as error:
        print(f"zonemgr-launcher: {error.text}", file=sys.stderr)
        return int(error.exit_code)


def _main(layout: Layout) -> int:
    os.chdir("/")
    os.umask(0o022)
    given = _given_listener()
    make_directory(layout.run)
    lock = FileLock(layout.run / LOCK)
    if not _is_the_only_one(lock, given) or (given is None and _is_listened_at(layout)):
        return int(Exit.OK)
    idle_s = settings.load(layout).launcher_idle_s
    process.reset_signals()
    signal.signal(signal.SIGTERM, _leave_early)
    try:
        if given is None:
            _leave_the_caller(layout, lock)
        else:
            _turn_away(given)  # who started us by knocking need not wait until we are warm
        return Launcher(layout, lock, given).serve(idle_s)
    finally:
        if given is None:
            supervisors.leave("zonemgr" + layout.suffix, detect())


def _leave_early(_number: int, _frame: object) -> NoReturn:
    """Told to go while there is no loop yet that would hear of it: our cgroup goes with us all the same."""
    raise SystemExit(int(Exit.OK))


def _is_the_only_one(lock: FileLock, given: socket.socket | None) -> bool:
    """Whether the launcher is ours to be.  One that started by itself leaves when systemd's socket takes the place of
    its own, which may be only just now.
    """
    deadline = time.monotonic() + PREDECESSOR_S
    while not lock.acquire(blocking=False):
        if given is None:
            return False
        _turn_away(given)
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)  # flock has no deadline
    return True


def _is_listened_at(layout: Layout) -> bool:
    """Whether somebody listens at the instance's socket, which without a launcher can only be systemd: its own launcher
    is started by our knocking.
    """
    caller = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    folder_fd = os.open(layout.run, os.O_PATH | os.O_CLOEXEC)
    try:
        caller.setblocking(False)
        caller.connect(f"/proc/self/fd/{folder_fd}/{launch.NAME}")
    except BlockingIOError:
        return True  # so many have knocked already
    except OSError:
        return False  # nothing there, or what a killed one has left
    finally:
        os.close(folder_fd)
        caller.close()
    return True


def _given_listener() -> socket.socket | None:
    """The socket that systemd listens at for us (sd_listen_fds(3))."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or os.environ.get("LISTEN_FDS") != "1":
        return None
    os.set_inheritable(_SYSTEMD_FD, False)
    listener = socket.socket(fileno=_SYSTEMD_FD)
    listener.setblocking(False)
    return listener


def _turn_away(listener: socket.socket) -> None:
    """Whoever waits gets an end of file, and does without us."""
    while True:
        try:
            listener.accept()[0].close()
        except BlockingIOError:
            return


def _leave_the_caller(layout: Layout, lock: FileLock) -> None:
    """Go on in a session and a cgroup of our own; the process that was started ends.

    After ``exec`` of a newer version we are in both already.
    """
    base = "zonemgr" + layout.suffix
    place = f"/{base}/{supervisors.LAUNCHER}"
    if likeness.unified_path(Path("/proc/self/cgroup").read_text()) == place:
        return
    pid, _pid_fd = supervisors.clone_into(detect(), base, supervisors.LAUNCHER)
    if pid:
        os._exit(int(Exit.OK))
    os.setsid()
    supervisors.leave_v1()


class Launcher:
    """See the module.  ``serve`` is its life."""

    def __init__(self, layout: Layout, lock: FileLock, given: socket.socket | None) -> None:
        self.layout = layout
        self.lock = lock
        self.given = given
        self.forks: dict[int, socket.socket] = {}  # pid -> a copy of the connection, for its death to be told
        self.spares: dict[Place, spare.Spare] = {}
        self.sparing = True  # until one cannot be had; from the next caller on it is tried again
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        process.stdio_to_null()
        # python-prctl finds the place of the title by the environment's, once: before anybody changes the environment.
        process.set_title("zonemgr-launcher")
        process.set_name("zone-launcher")
        os.pwrite(lock.fileno(), b"%d\n" % os.getpid(), 0)  # for people and tests
        _load()
        _warm_up()
        self.stamps = dict(_stamps())
        self.program = _watched(self.stamps)
        mine, manners = likeness.own()
        package = os.path.dirname(os.path.abspath(zonemgr.__file__))
        self.home = fork.Home(layout, launch.identity(package), mine, manners, detect())
        self.place: tuple[int, int] | None = None  # our own socket's device and inode
        self.folder = inotify.Inotify(layout.run, inotify.DELETE)
        self.listener = given or self._listen()
        self.wake_fd = self._hear_of_children()

    def _listen(self) -> socket.socket:
        """The socket appears when we are warm, and not before: nobody waits for us."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        early = self.layout.run / _EARLY
        early.unlink(missing_ok=True)
        folder_fd = os.open(self.layout.run, os.O_PATH | os.O_CLOEXEC)
        mask = os.umask(0o177)
        listener.bind(f"/proc/self/fd/{folder_fd}/{_EARLY}")
        os.umask(mask)
        os.close(folder_fd)
        listener.listen(128)
        listener.setblocking(False)
        self.place = _place(early.lstat())
        try:
            self._take_the_place(early)
        finally:
            early.unlink()
        return listener

    def _take_the_place(self, early: Path) -> None:
        """In place of what a killed one has left.  systemd may have begun to listen there while we were getting warm:
        then we are not needed.
        """
        path = self.layout.run / launch.NAME
        while True:
            try:
                return path.hardlink_to(early)
            except FileExistsError:
                if _is_listened_at(self.layout):
                    raise SystemExit(int(Exit.OK)) from None
                path.unlink(missing_ok=True)

    def _withdraw(self) -> None:
        """Remove our own socket, and none that has taken its place."""
        if self._is_in_place():
            (self.layout.run / launch.NAME).unlink(missing_ok=True)

    def _is_in_place(self) -> bool:
        try:
            return self.place == _place((self.layout.run / launch.NAME).lstat())
        except FileNotFoundError:
            return False

    def _hear_of_children(self) -> int:
        wake_fd, signal_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(signal_fd, warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, lambda _number, _frame: None)
        return wake_fd

    # -- the loop -----------------------------------------------------------------------------------------------

    def serve(self, idle_s: int) -> int:
        """Accept and fork, until nobody has come for so long, or we are told to go."""
        gc.collect()
        gc.freeze()
        poll = select.poll()
        poll.register(self.listener, select.POLLIN)
        poll.register(self.wake_fd, select.POLLIN)
        poll.register(self.folder, select.POLLIN)
        while True:
            lacking = [place for place in _SPARED if place not in self.spares and self.sparing]
            ready = dict(poll.poll(self._patience_ms(idle_s, bool(lacking))))
            if lacking and not ready:
                self._make_spare(lacking[0])
                continue
            if not ready and not self.forks:
                break
            if self.folder.fileno() in ready and self._is_cut_off():
                break
            if self.wake_fd in ready:
                if signal.SIGTERM in os.read(self.wake_fd, 4096):
                    break
                self._reap()
            if self.listener.fileno() in ready:
                self._accept()
        self._withdraw()
        self._drop_spares()
        return int(Exit.OK)

    def _patience_ms(self, idle_s: int, lacking: bool) -> int | None:
        """How long to wait for somebody.  A spare is made when nobody is kept waiting by it."""
        if lacking:
            return _LULL_MS if self.forks else 1
        return idle_s * 1000 if idle_s and not self.forks else None

    def _is_cut_off(self) -> bool:
        """Somebody has removed the socket, with the folder of an instance that is over: nobody can come any more."""
        removed = any(event.name == launch.NAME for event in self.folder.read())
        return removed and not self._is_in_place()  # that of a killed one has gone too

    def _accept(self) -> None:
        try:
            connection, _address = self.listener.accept()
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.ECONNABORTED, errno.EINTR):
                return
            raise
        self.sparing = True
        if self._is_stale():
            connection.close()
            self._renew()
        peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS)
        pid, uid = (int.from_bytes(peer[at : at + 4], sys.byteorder) for at in (0, 4))
        if uid != 0 or not pid or len(self.forks) >= FORKS_MAX:
            connection.close()
            return
        try:
            self._fork(connection, pid)
        except (OSError, ValueError):  # no memory, no process, or a caller that has gone
            connection.close()

    def _fork(self, connection: socket.socket, peer_pid: int) -> None:
        """By a spare, or a fork: of a run into the caller's cgroup, for what it uses is the caller's; of a supervisor
        into its own at once.
        """
        supervisor = launch.wants_supervisor(connection)
        ready = self.spares.pop(Place.SUPERVISORS if supervisor else Place.LAUNCHER, None)
        pid = ready.pid if ready is not None and ready.give(connection) else 0
        if not pid:
            if supervisor:
                pid, pid_fd = supervisors.clone_into(self.home.hierarchy, "zonemgr" + self.layout.suffix)
            else:
                pid, pid_fd = self._fork_beside(connection, peer_pid)
            if pid == 0:
                self._drop()
                fork.become(connection, self.home, Place.SUPERVISORS if supervisor else Place.CALLER)
            os.close(pid_fd)
        if supervisor:
            connection.close()  # a supervisor is no work of ours: it says itself that it has begun
        else:
            self.forks[pid] = connection

    def _fork_beside(self, connection: socket.socket, peer_pid: int) -> tuple[int, int]:
        """Into the caller's cgroup."""
        place = likeness.unified_path(Path(f"/proc/{peer_pid}/cgroup").read_text())
        folder = self.home.hierarchy.unified() / place.lstrip("/")
        folder_fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return process.clone3(0, cgroup_fd=folder_fd)
        finally:
            os.close(folder_fd)

    def _drop(self) -> None:
        """In a fork: give up what is the launcher's own."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def _make_spare(self, place: Place) -> None:
        self._wake_the_forgotten()
        try:
            self.spares[place] = spare.make(self.home, place, self._drop)
        except OSError:  # no memory or no process
            self.sparing = False

    def _wake_the_forgotten(self) -> None:
        """Whoever was stopped sees now that its caller has gone, and leaves: it would keep us here for ever."""
        poll = select.poll()
        for connection in self.forks.values():
            poll.register(connection, 0)  # its end alone
        ended = {fd for fd, _events in poll.poll(0)}
        for pid, connection in self.forks.items():
            if connection.fileno() in ended:
                os.kill(pid, signal.SIGCONT)

    def _drop_spares(self) -> None:
        """See them gone, with the folder of supervisors if it is empty then."""
        spares, self.spares = self.spares, {}
        pid_fds = [pid_fd for one in spares.values() if (pid_fd := _handle(one.pid)) is not None]
        for one in spares.values():
            one.close()
        for pid_fd in pid_fds:
            process.pidfd_signal(pid_fd, signal.SIGCONT)  # one that was stopped would stay
            process.wait_pidfd(pid_fd, SPARE_GONE_S)
            os.close(pid_fd)

    def _reap(self) -> None:
        """Whoever ended by a signal could not say so itself."""
        while True:
            try:
                pid, wait_status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            connection = self.forks.pop(pid, None)
            if connection is None:
                self._forget_spare(pid)
                continue  # or of before an exec
            if os.WIFSIGNALED(wait_status):
                try:
                    connection.send(
                        launch.status_message(launch.SIGNALLED + os.WTERMSIG(wait_status)),
                        socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT,
                    )
                except OSError:
                    pass  # the caller has gone too
            connection.close()

    def _forget_spare(self, pid: int) -> None:
        for place, one in list(self.spares.items()):
            if one.pid == pid:
                one.close()
                del self.spares[place]
                self.sparing = False  # something is wrong here: not again and again

    # -- a new version ------------------------------------------------------------------------------------------

    def _is_stale(self) -> bool:
        """The program on disk is another one than we have loaded: looked at when something has happened there."""
        if self.program is not None and not self.program.wait(0):
            return False
        return any(_stamp(path) != stamp for path, stamp in self.stamps.items())

    def _renew(self) -> None:
        """Become what is installed now.  Meanwhile there is no launcher."""
        self._withdraw()
        if self.given is not None:
            os._exit(int(Exit.OK))  # systemd starts us again
        words = start.program("zonemgr.launcher", "--root", str(self.layout.root))
        os.execv(words[0], words)


def _place(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _handle(pid: int) -> int | None:
    try:
        return process.pidfd_open(pid)
    except OSError:
        return None  # it has ended


def _load() -> None:
    """Every module of ours, and what they import late."""
    for name in _BESIDES:
        importlib.import_module(name)
    for module in pkgutil.walk_packages(zonemgr.__path__, "zonemgr.", onerror=lambda _name: None):
        if module.name.rpartition(".")[2] not in _LEFT_OUT and not module.name.startswith("zonemgr.brands"):
            importlib.import_module(module.name)


def _warm_up() -> None:
    """Do once what every fork would do at first: compile patterns, load the shipped brands, look at the host."""
    loader.preload()
    detect()
    for name in (varlink.SERVICE, door.INTERFACE):
        interface.load(name)
    for text in _SAMPLES:
        Zone.from_table(tomllib.loads(text), filename="sample", zonename="sample", default_zonepath="/sample")


def _stamps() -> Iterator[tuple[str, tuple[int, int, int]]]:
    """Our own loaded files, and the heads of the packages that we need; whichever changes, we are out of date."""
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "zonemgr" or name in _OF_OTHERS or name.startswith(loader.MODULE_PREFIX):
            path = _file_of(module)
            if path and (stamp := _stamp(path)):
                yield path, stamp
    if stamp := _stamp(sys.executable):
        yield sys.executable, stamp


def _watched(files: Iterable[str]) -> inotify.Inotify | None:
    """A watch on the folders of these files, and on those of what links among them lead to; None where the host gives
    none.
    """
    names = {os.path.dirname(path) for file in files for path in (file, os.path.realpath(file))}
    package = os.path.dirname(os.path.abspath(zonemgr.__file__))
    mask = inotify.CHANGES | inotify.ATTRIB | inotify.MOVE_SELF
    try:
        watch = inotify.Inotify(os.path.dirname(package), mask)
        for name in names:
            watch.add(name, mask)
    except OSError:
        return None
    return watch


def _file_of(module: ModuleType) -> str | None:
    return getattr(module, "__file__", None)


def _stamp(path: str) -> tuple[int, int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
