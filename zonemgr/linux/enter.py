"""Starting a command inside a zone: the child that goes in, and the order in which it gives everything up.

The child is born in the zone's pid namespace and cgroup, as the caller's own child, so its exit status
arrives exactly and no process of ours stays between. Before it enters the other namespaces it is
non-dumpable, in a session of its own, and holds no descriptor but those it needs: a process of the zone could
otherwise reach the host through it. From then on nothing is imported, loaded, translated or looked up. A step
that fails is reported as (stage, errno) through a pipe that closes on exec.

Deliberately not here: the pty's traffic (``cli``), accounts (``passwd``), and what the zone's limits are.
"""

from __future__ import annotations

import enum
import fcntl
import os
import resource
import select
import signal
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from zonemgr.errors import PlatformError
from zonemgr.linux import caps, libc, namespaces, process, pty
from zonemgr.linux.cgroup.hierarchy import write_file
from zonemgr.linux.hints import explain

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ENTER_TIMEOUT_S = 30.0  # from birth to exec

_ABOVE_STDIO = 10
_REPORT = struct.Struct("=Bi")
_ENOENT, _ESRCH, _ENOMEM, _EACCES, _ENOTDIR = 2, 3, 12, 13, 20
_ETIMEDOUT, _ESTALE = 110, 116


class Stage(enum.Enum):
    """The steps of the child, in their order; the value names the step to the operator and in the table of
    hints.
    """

    STDIO = "stdio"
    CGROUP = "cgroup"
    LIMITS = "limits"
    LABEL = "label"
    TERMINAL = "terminal"
    NAMESPACES = "namespaces"
    USER = "user"
    KEYRING = "keyring"
    CAPABILITIES = "capabilities"
    SECCOMP = "seccomp"
    CWD = "cwd"
    EXEC = "exec"


_STAGES = tuple(Stage)


class EnterError(PlatformError):
    """A command could not be started in the zone. ``exit_status`` is what login returns: 125, or 126/127
    for the command.
    """

    def __init__(self, stage: Stage, code: int, command: str) -> None:
        why = explain(OSError(code, os.strerror(code)), stage.value) if code else "unexpected failure"
        form = "{command}: {why}" if stage is Stage.EXEC else "cannot enter the zone: {stage}: {why}"
        super().__init__(form, command=command, stage=stage.value, why=why)
        self.stage = stage
        self.errno = code

    @property
    def exit_status(self) -> int:
        """What a shell would return: 127 for a command that is not there, 126 for one that cannot run; 125
        for us.
        """
        if self.stage is not Stage.EXEC:
            return 125
        return 127 if self.errno == _ENOENT else 126


@dataclass(frozen=True, slots=True)
class TrustedPath:
    """How to enter an immutable zone so that its root can be written (``trusted``)."""

    m0_fd: int
    frozen: tuple[str, ...]
    unsafe: bool


@dataclass(frozen=True, slots=True)
class Child:
    """A command that runs in a zone; the pid is the host's."""

    pid: int
    pidfd: int

    def fileno(self) -> int:
        """For poll: readable when the command has ended."""
        return self.pidfd

    def wait(self) -> int:
        """Wait for its end and return its exit status, or 128 + the signal that killed it."""
        return process.exit_status(os.waitpid(self.pid, 0)[1])

    def signal(self, number: int) -> None:
        """Signal its process group, which it leads (before ``wait`` only: later the number may be
        another's).
        """
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            return

    def close(self) -> None:
        """Close the pidfd."""
        os.close(self.pidfd)


@dataclass(frozen=True, slots=True)
class _Orders:
    """All that the child needs, prepared before it is born."""

    zone_pidfd: int
    flags: int
    programs: tuple[bytes, ...]
    argv: tuple[bytes, ...]
    env: dict[bytes, bytes]
    cwd: bytes
    fall_back_to_root: bool
    uid: int
    gid: int
    groups: tuple[int, ...]
    capabilities: frozenset[str]
    no_new_privs: bool
    install_filter: Callable[[], None] | None
    personality: int
    rlimits: tuple[tuple[int, tuple[int, int]], ...]
    oom_score_adj: int | None
    scheduling_class: str
    v1_folders: tuple[str, ...]
    take_label: Callable[[], None] | None
    stdio: tuple[int, int, int]
    tty_slave: bool
    die_with: int  # pidfd of the caller, or -1
    m0_fd: int  # for the trusted path, or -1
    take_view: Callable[[int], None] | None


# -- joining -------------------------------------------------------------------------------------------------


def namespaces_to_join(pidfd: int) -> int:
    """The flags of all namespaces in which the process differs from the caller, its pid namespace left
    out.
    """
    pid = process.pid_of(pidfd)
    flags = 0
    for kind, flag in namespaces.KINDS.items():
        if kind not in ("pid", "time") and not namespaces.same_namespace(pid, kind, "self"):
            flags |= flag
    if process.wait_pidfd(pidfd, 0):  # what was compared may have been a later process of that number
        raise libc.error("enter", _ESTALE)
    return flags


def forbid_imports() -> None:
    """Make every later import fail: the files it would find are the zone's."""
    sys.path.clear()
    sys.meta_path.clear()
    sys.path_hooks.clear()
    sys.path_importer_cache.clear()


def join(pidfd: int, flags: int) -> None:
    """Enter these namespaces of a process, for good. The caller has one thread and holds nothing that the
    zone may not have.
    """
    process.set_dumpable(False)
    forbid_imports()
    namespaces.setns(pidfd, flags)


def open_root(pidfd: int) -> int:
    """A descriptor (O_PATH) of the root folder of a zone's process."""
    root_fd = os.open(f"/proc/{process.pid_of(pidfd)}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    if process.wait_pidfd(pidfd, 0):
        os.close(root_fd)
        raise libc.error("enter", _ESTALE)
    return root_fd


# -- the caller's side ---------------------------------------------------------------------------------------


def _candidates(command: str, env: Mapping[str, str]) -> tuple[bytes, ...]:
    """Where a command may be: itself when it has a slash, else in each folder of the new environment's
    PATH.
    """
    if "/" in command:
        return (libc.text("exec", command),)
    folders = env.get("PATH", DEFAULT_PATH).split(":")
    return tuple(libc.text("exec", f"{folder}/{command}") for folder in folders if folder.startswith("/"))


def spawn_in_zone(
    init_pidfd: int,
    *,
    argv: Sequence[str],
    env: Mapping[str, str],
    cwd: str = "/",
    uid: int = 0,
    gid: int = 0,
    groups: Sequence[int] = (),
    capabilities: frozenset[str],
    seccomp: bytes | None = None,
    label: str = "",
    no_new_privs: bool = False,
    stdio: tuple[int, int, int] = (0, 1, 2),
    tty_slave: bool = False,
    cgroup_fd: int | None = None,
    v1_folders: Sequence[str] = (),
    fall_back_to_root: bool = False,
    die_with_parent: bool = False,
    personality: int = 0,
    rlimits: Sequence[str] = (),
    oom_score_adj: int | None = None,
    scheduling_class: str = "",
    trusted: TrustedPath | None = None,
    timeout_s: float = ENTER_TIMEOUT_S,
) -> Child:
    """Start a command in the zone whose process 1 is ``init_pidfd``; returns when it has been exec'ed.

    The caller has root's capabilities on the host. All ids are the zone's own; ``env`` is the whole environment.
    ``cgroup_fd``: the payload's cgroup2 folder, where the child is born; ``v1_folders``: the zone's control groups
    on v1, which it joins. ``label``: the mandatory label that the command runs under. ``tty_slave``: descriptor 0
    becomes the controlling terminal. ``rlimits``, ``oom_score_adj`` and ``scheduling_class``: as the zone's record
    has them; ``personality``: flags of personality(2). ``fall_back_to_root``: "/" when ``cwd`` cannot be entered.
    EnterError names the stage; OSError when the child could not be born.
    """
    if not argv or not argv[0]:
        raise EnterError(Stage.EXEC, _ENOENT, "")
    orders = _Orders(
        zone_pidfd=init_pidfd,
        flags=namespaces_to_join(init_pidfd) & ~(namespaces.NEWNS if trusted else 0),
        programs=_candidates(argv[0], env),
        argv=tuple(libc.text("exec", word) for word in argv),
        env={libc.text("exec", key): libc.text("exec", value) for key, value in env.items()},
        cwd=libc.text("cwd", cwd),
        fall_back_to_root=fall_back_to_root,
        uid=uid,
        gid=gid,
        groups=tuple(groups),
        capabilities=capabilities,
        no_new_privs=no_new_privs,
        install_filter=_filter_installer(seccomp),
        take_label=_label_taker(label),
        stdio=stdio,
        tty_slave=tty_slave,
        die_with=process.pidfd_open(os.getpid()) if die_with_parent else -1,
        m0_fd=trusted.m0_fd if trusted else -1,
        take_view=_view_taker(trusted),
        personality=personality,
        rlimits=tuple(process.rlimits(rlimits)),
        oom_score_adj=oom_score_adj,
        scheduling_class=scheduling_class,
        v1_folders=tuple(v1_folders),
    )
    try:
        return _spawn(orders, cgroup_fd, timeout_s)
    finally:
        if orders.die_with >= 0:
            os.close(orders.die_with)


def _filter_installer(program: bytes | None) -> Callable[[], None] | None:
    if program is None:
        return None
    from zonemgr.linux import seccomp  # only where there is a filter, and before the zone is entered

    return lambda: seccomp.install(program)


def _view_taker(trusted: TrustedPath | None) -> Callable[[int], None] | None:
    if trusted is None:
        return None
    from zonemgr.linux.trusted import take_view

    return lambda m0_fd: take_view(m0_fd, trusted.frozen, trusted.unsafe)


def _label_taker(label: str) -> Callable[[], None] | None:
    if not label:
        return None
    from zonemgr.linux import labels

    module = labels.active()
    if module is None:
        raise PlatformError(
            "the zone has the label '{label}', which no module of the kernel knows", label=label
        )
    return lambda: labels.set_for_exec(module, label)


def _spawn(orders: _Orders, cgroup_fd: int | None, timeout_s: float) -> Child:
    process.load_prctl()
    process.set_dumpable(
        False
    )  # here already: the child is in the zone's pid namespace from its first instant
    report_read, report_write = os.pipe2(os.O_CLOEXEC)
    try:
        try:
            pid, pidfd = _birth(orders, cgroup_fd)
            if pid == 0:
                _Child(orders, report_write).run()
        finally:
            os.close(report_write)
        child = Child(pid, pidfd)
        try:
            failure = _read_report(report_read, timeout_s)
            if failure is not None:
                raise EnterError(*failure, os.fsdecode(orders.argv[0]))
        except BaseException:
            process.pidfd_signal(pidfd, signal.SIGKILL)
            child.wait()
            child.close()
            raise
        return child
    finally:
        os.close(report_read)


def _birth(orders: _Orders, cgroup_fd: int | None) -> tuple[int, int]:
    """Clone into the zone's pid namespace and cgroup. The caller's own later children go where they always
    went.
    """
    if orders.take_view is not None:
        return process.clone3(namespaces.NEWPID, cgroup_fd=cgroup_fd)
    home_fd = namespaces.open_ns("self", "pid_for_children")
    child = False
    try:
        namespaces.setns(orders.zone_pidfd, namespaces.NEWPID)
        try:
            pid, pidfd = process.clone3(cgroup_fd=cgroup_fd)
            child = pid == 0
            return pid, pidfd
        finally:
            if not child:
                namespaces.setns(home_fd, namespaces.NEWPID)
    except OSError as error:
        if error.errno in (_ESRCH, _ENOMEM) and process.wait_pidfd(orders.zone_pidfd, 0):
            raise libc.error("enter", _ESTALE) from None
        raise
    finally:
        if not child:
            os.close(home_fd)


def _read_report(read_fd: int, timeout_s: float) -> tuple[Stage, int] | None:
    poller = select.poll()
    poller.register(read_fd, select.POLLIN)
    if not poller.poll(int(timeout_s * 1000)):
        return Stage.EXEC, _ETIMEDOUT
    data = os.read(read_fd, _REPORT.size)
    if len(data) != _REPORT.size:
        return None
    number, code = _REPORT.unpack(data)
    return _STAGES[number], code


# -- the child's side ----------------------------------------------------------------------------------------


class _Child:
    """The child between its birth and its exec.  ``stage`` is the step under way, for the report."""

    def __init__(self, orders: _Orders, report_fd: int) -> None:
        self.orders = orders
        self.report_fd = report_fd
        self.zone_fd = orders.zone_pidfd
        self.parent_fd = orders.die_with
        self.m0_fd = orders.m0_fd
        self.stage = Stage.STDIO

    def run(self) -> None:
        """Become the command.  Never returns."""
        try:
            self._prepare()
            self._go_in()
            self._give_up()
            self._change_folder()
            self._exec()
        except OSError as error:
            self._report(error.errno or 0)
        except BaseException:  # noqa: BLE001 - a bug must not look like a command that has started
            self._report(0)
        finally:
            os._exit(125)

    def _report(self, code: int) -> None:
        os.write(self.report_fd, _REPORT.pack(_STAGES.index(self.stage), code))

    def _prepare(self) -> None:
        """Still in the host's file tree: an own session, the right descriptors and no other, our place in
        the cgroups.
        """
        process.set_dumpable(False)
        os.setsid()
        self._take_stdio()
        process.reset_signals()
        self.stage = Stage.CGROUP
        for folder in self.orders.v1_folders:
            write_file(Path(folder, "tasks"), "0")  # moved by another process, we would wait for a grace period
        self.stage = Stage.LIMITS
        if self.orders.oom_score_adj is not None:
            process.set_oom_score_adj(self.orders.oom_score_adj)
        if self.orders.scheduling_class:
            process.set_schedule(self.orders.scheduling_class, 0)
        for number, pair in self.orders.rlimits:
            resource.setrlimit(number, pair)
        if self.orders.take_label is not None:
            self.stage = Stage.LABEL  # through the host's /proc, and before our credentials change
            self.orders.take_label()
        if self.orders.tty_slave:
            self.stage = Stage.TERMINAL
            pty.set_controlling(0)

    def _take_stdio(self) -> None:
        """Our own descriptors first go up, out of the way: the caller may have had 0 to 2 closed."""
        self.report_fd, self.zone_fd = map(_move_up, (self.report_fd, self.zone_fd))
        self.parent_fd = _move_up(self.parent_fd) if self.parent_fd >= 0 else -1
        self.m0_fd = _move_up(self.m0_fd) if self.m0_fd >= 0 else -1
        wanted = [_move_up(descriptor) for descriptor in self.orders.stdio]
        for standard, descriptor in enumerate(wanted):
            os.dup2(descriptor, standard)
        ours = (self.report_fd, self.zone_fd, self.parent_fd, self.m0_fd)
        process.close_fds([0, 1, 2, *ours])

    def _go_in(self) -> None:
        self.stage = Stage.NAMESPACES
        if self.orders.take_view is not None:
            self.orders.take_view(self.m0_fd)
            os.close(self.m0_fd)
        join(self.zone_fd, self.orders.flags)
        os.close(self.zone_fd)
        os.umask(0o022)

    def _give_up(self) -> None:
        """Ids, capabilities and system calls, in the only order in which each step still may be done.

        The bounding set needs setpcap; the ids then go, with the permitted set kept so that a filter can be
        loaded (sys_admin) after the session keyring has been made, which belongs to the user and which the
        filter forbids.
        """
        orders = self.orders
        self.stage = Stage.CAPABILITIES
        caps.drop_bounding(orders.capabilities)
        process.set_keep_caps(True)
        self.stage = Stage.USER
        os.setgroups(orders.groups)
        os.setresgid(orders.gid, orders.gid, orders.gid)
        os.setresuid(orders.uid, orders.uid, orders.uid)
        process.set_dumpable(False)  # the change of ids has reset it to the host's default
        self.stage = Stage.CAPABILITIES
        caps.raise_permitted()
        self.stage = Stage.KEYRING
        process.new_session_keyring("zone")
        if orders.personality:
            process.set_personality(orders.personality)
        if orders.no_new_privs:
            process.set_no_new_privs()
        if orders.install_filter is not None:
            self.stage = Stage.SECCOMP
            orders.install_filter()
        self.stage = Stage.CAPABILITIES
        process.set_keep_caps(False)
        caps.limit_to(orders.capabilities if orders.uid == 0 else frozenset())
        self._die_with_parent()

    def _die_with_parent(self) -> None:
        """Only now: the kernel forgets this with each change of ids. The parent is outside our pid
        namespace.
        """
        if self.parent_fd < 0:
            return
        process.set_pdeathsig(signal.SIGKILL)
        if process.wait_pidfd(self.parent_fd, 0):
            os._exit(125)
        os.close(self.parent_fd)

    def _change_folder(self) -> None:
        self.stage = Stage.CWD
        try:
            os.chdir(self.orders.cwd)
        except OSError:
            if not self.orders.fall_back_to_root:
                raise
            os.chdir("/")
        if not os.getcwd().startswith("/"):  # outside our root: refused, or "(unreachable)"
            raise libc.error("getcwd", _ENOENT)

    def _exec(self) -> None:
        self.stage = Stage.EXEC
        failure = _ENOENT
        for program in self.orders.programs:
            try:
                os.execve(program, self.orders.argv, self.orders.env)
            except OSError as error:
                if error.errno not in (_ENOENT, _ENOTDIR, _EACCES):
                    raise
                failure = _EACCES if _EACCES in (error.errno, failure) else failure
        raise libc.error("exec", failure)


def _move_up(descriptor: int) -> int:
    """A copy of the descriptor above the standard ones, closed by exec."""
    return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _ABOVE_STDIO)
