"""Processes: making them in the right place, making them harmless before they go in, and telling them apart.

``clone3`` makes a child in new namespaces *and* in its cgroup in one step: moving it there later would cost a
grace period of the kernel (10 ms). A pid is always held as a pidfd, or as (pid, start time), which no later
process can share.

Deliberately not here: looking at other processes (``procfs``, which does without ctypes; its functions are
reachable here too), capabilities (``caps``), namespaces (``namespaces``), entering a zone (``enter``).
"""

from __future__ import annotations

import ctypes
import os
import resource
import select
import signal
from collections.abc import Iterable

from zonemgr.linux import libc
from zonemgr.linux.procfs import boot_id, command_name, describe_stuck, is_alive, pid_of, start_time

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
else:
    import _signal  # what ``signal`` wraps in enumerations

# What is passed on; everything below is public as well.
__all__ = ["boot_id", "command_name", "describe_stuck", "is_alive", "pid_of", "start_time"]

CLONE_PIDFD = 0x1000
CLONE_PARENT = 0x8000
CLONE_INTO_CGROUP = 0x2_0000_0000

# The score of what must not go before the zones do when the host has no memory left.
OOM_PROTECTED = -900

# Scheduling classes of Solaris and Linux.  Control groups share by weight among all of the first.
SCHEDULING = {
    **dict.fromkeys(("", "FSS", "TS", "IA", "FX"), os.SCHED_OTHER),
    "BATCH": os.SCHED_BATCH,
    "IDLE": os.SCHED_IDLE,
}

_MAX_FD = 0xFFFFFFFF
_KEYCTL_JOIN_SESSION_KEYRING = 1
_ENOSYS = 38


class _CloneArguments(ctypes.Structure):
    """struct clone_args of linux/sched.h, as far as cgroup."""

    _fields_ = [
        (name, ctypes.c_uint64)
        for name in (
            "flags",
            "pidfd",
            "child_tid",
            "parent_tid",
            "exit_signal",
            "stack",
            "stack_size",
            "tls",
            "set_tid",
            "set_tid_size",
            "cgroup",
        )
    ]


# -- making and leaving --------------------------------------------------------------------------------------


def fork() -> int:
    """A plain fork.  The child must leave by ``os._exit`` or an exec."""
    return os.fork()


def clone3(flags: int = 0, *, cgroup_fd: int | None = None, parent: bool = False) -> tuple[int, int]:
    """A child in new namespaces (``flags``) and, with ``cgroup_fd`` (a cgroup2 folder), in that cgroup from
    birth.

    Returns (pid, pidfd) in the parent and (0, -1) in the child. ``parent`` makes the caller's parent the
    child's parent. The child must leave by ``os._exit`` or an exec.
    """
    pidfd = ctypes.c_int(-1)
    arguments = _CloneArguments(flags=flags | CLONE_PIDFD, pidfd=ctypes.addressof(pidfd))
    if parent:
        arguments.flags |= CLONE_PARENT
    else:
        arguments.exit_signal = signal.SIGCHLD
    if cgroup_fd is not None:
        arguments.flags |= CLONE_INTO_CGROUP
        arguments.cgroup = cgroup_fd
    clone = libc.held_syscall("clone3")
    # The hooks of os.fork, without which the child's interpreter believes that it still is the parent's threads.
    ctypes.pythonapi.PyOS_BeforeFork()
    pid: int = clone(ctypes.byref(arguments), ctypes.sizeof(arguments))
    if pid == 0:
        ctypes.pythonapi.PyOS_AfterFork_Child()
        return 0, -1
    code = ctypes.get_errno()
    ctypes.pythonapi.PyOS_AfterFork_Parent()
    if pid < 0:
        raise libc.error("clone3", code)
    return pid, pidfd.value


def close_fds(keep: Iterable[int]) -> None:
    """Close every descriptor but these: what is not exec'ed is not protected by close-on-exec."""
    first = 0
    for descriptor in sorted({fd for fd in keep if fd >= 0}):
        if descriptor > first:
            libc.call("close_range", first, descriptor - 1, 0)
        first = descriptor + 1
    libc.call("close_range", first, _MAX_FD, 0)


def stdio_to_null() -> None:
    """Put descriptors 0, 1 and 2 on /dev/null."""
    null_fd = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    for standard in (0, 1, 2):
        if standard == null_fd:
            os.set_inheritable(null_fd, True)
        else:
            os.dup2(null_fd, standard)
    if null_fd > 2:
        os.close(null_fd)


def reset_signals() -> None:
    """Every signal to its default, none blocked.  What Python itself ignores (SIGPIPE, SIGXFSZ) included."""
    # Not through ``signal.signal``, which makes an enumeration's member of each number: a fork between a warm process
    # and an exec pays for every page that it touches.
    for number in range(1, _signal.NSIG):
        if _signal.getsignal(number) not in (None, _signal.SIG_DFL):  # None: reserved by the C library
            _signal.signal(number, _signal.SIG_DFL)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, ())


# -- attributes of the calling process (prctl) ---------------------------------------------------------------


def load_prctl() -> None:
    """Load python-prctl now: a process that enters a zone's root must not import anything afterwards."""
    import prctl  # noqa: F401 - 2-6 ms, so not at the top: `list` needs this module and no prctl


def set_name(name: str) -> None:
    """Set the name that ``ps`` and ``/proc/PID/comm`` show; the kernel cuts it at 15 bytes."""
    import prctl

    prctl.set_name(name[:15])


def set_title(title: str) -> None:
    """Set the command line that ``ps`` shows, in the place of the arguments (a longer title is cut)."""
    import prctl

    prctl.set_proctitle(title)


def set_pdeathsig(number: int, parent_pid: int | None = None) -> None:
    """Have this signal sent to us when our parent ends; 0 takes it back.

    With ``parent_pid`` the parent is checked afterwards, and the signal sent by ourselves when it has gone
    already. The kernel forgets the setting when the process changes its ids.
    """
    import prctl

    prctl.set_pdeathsig(number)
    if number and parent_pid is not None and os.getppid() != parent_pid:
        os.kill(os.getpid(), number)


def set_child_subreaper(on: bool = True) -> None:
    """Become the parent of descendants whose own parent ends."""
    import prctl

    prctl.set_child_subreaper(on)


def set_dumpable(on: bool) -> None:
    """Whether others of our ids may trace us and read our /proc entries. The kernel resets it when ids
    change.
    """
    import prctl

    prctl.set_dumpable(on)


def set_no_new_privs() -> None:
    """No exec of ours, or of our children, can gain privileges from now on."""
    import prctl

    prctl.set_no_new_privs(1)


def set_personality(flags: int) -> None:
    """Set the execution domain's flags (personality(2)); they pass to what is exec'ed."""
    libc.call("personality", flags)


def set_keep_caps(on: bool) -> None:
    """Keep the permitted capabilities when the ids change from root; exec takes it back."""
    import prctl

    prctl.set_keepcaps(on)


def set_oom_score_adj(value: int, pid: int | None = None) -> None:
    """How soon the kernel ends the process (the caller) when the host has no memory left: from -1000, never, to 1000.

    To go below what it is now takes sys_resource; without it things stay as they are.
    """
    fd = os.open(f"/proc/{pid or 'self'}/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, str(value).encode())
    except PermissionError:
        return
    finally:
        os.close(fd)


def set_schedule(name: str, pid: int) -> None:
    """The Solaris scheduling class as a policy of Linux, at an ordinary priority and on every CPU that the process may
    use: nothing of the shell of whoever boots the zone stays.
    """
    os.sched_setscheduler(pid, SCHEDULING.get(name, os.SCHED_OTHER), os.sched_param(0))
    os.sched_setaffinity(pid, range(os.sysconf("SC_NPROCESSORS_CONF")))
    try:
        os.setpriority(os.PRIO_PROCESS, pid, 0)
    except PermissionError:
        return  # a host without sys_nice: it stays as nice as we are


def rlimits(words: Iterable[str]) -> list[tuple[int, tuple[int, int]]]:
    """``nofile=1024:524288``, as records keep limits, in the numbers of setrlimit(2)."""
    found = []
    for word in words:
        name, _, values = word.partition("=")
        soft, _, hard = values.partition(":")
        pair = (-1 if soft == "unlimited" else int(soft), -1 if hard == "unlimited" else int(hard))
        found.append((getattr(resource, f"RLIMIT_{name.upper()}"), pair))
    return found


def raise_rlimits() -> None:
    """Allow children everything that we could, as far as we could: the limits that they get are set in them.

    Of what the kernel counts for a user namespace as a whole, its maker's soft limit is the most that there will be.
    """
    for number in {value for name, value in vars(resource).items() if name.startswith("RLIMIT_")}:
        soft, hard = resource.getrlimit(number)
        whole = number in (resource.RLIMIT_MSGQUEUE, resource.RLIMIT_SIGPENDING, resource.RLIMIT_MEMLOCK)
        try:
            resource.setrlimit(number, (-1 if whole else soft, -1))
        except (OSError, ValueError):  # not allowed, or (files) with a limit of its own
            if whole:
                resource.setrlimit(number, (hard, hard))


def prlimit(pid: int, number: int, pair: tuple[int, int] | None = None) -> tuple[int, int]:
    """Another process's limit, after it was given ``pair``.  ProcessLookupError, PermissionError, ValueError.

    That takes sys_resource or the process's own user: without the one, our real user becomes the other for a moment
    (the effective one stays root).  Then a hard limit can only go down.
    """
    wanted = () if pair is None else (pair,)
    try:
        resource.prlimit(pid, number, *wanted)
        return resource.prlimit(pid, number)
    except PermissionError:
        uid, gid = _real_ids(pid)
    try:
        os.setresgid(gid, -1, -1)
        os.setresuid(uid, -1, -1)
        resource.prlimit(pid, number, *wanted)
        return resource.prlimit(pid, number)
    finally:
        os.setresuid(0, -1, -1)
        os.setresgid(0, -1, -1)
        set_dumpable(False)


def _real_ids(pid: int) -> tuple[int, int]:
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
            words = {
                line.split(":")[0]: line.split()[1] for line in file if line.startswith(("Uid:", "Gid:"))
            }
    except FileNotFoundError:
        raise ProcessLookupError(3, os.strerror(3)) from None
    return int(words["Uid"]), int(words["Gid"])


def oom_score_adj(pid: int) -> int:
    """What ``set_oom_score_adj`` has set."""
    with open(f"/proc/{pid}/oom_score_adj", encoding="ascii") as file:
        return int(file.read())


def new_session_keyring(name: str) -> None:
    """Join a fresh session keyring.  A kernel without keyrings has nothing to keep apart."""
    try:
        libc.call("keyctl", _KEYCTL_JOIN_SESSION_KEYRING, libc.text("keyctl", name), 0, 0, 0)
    except OSError as error:
        if error.errno != _ENOSYS:
            raise


# -- other processes -----------------------------------------------------------------------------------------


def pidfd_open(pid: int) -> int:
    """A handle on a process.  ProcessLookupError when there is none."""
    return os.pidfd_open(pid)


def pidfd_signal(pidfd: int, number: int) -> None:
    """Send a signal; a process that has ended needs none any more."""
    try:
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return


def wait_pidfd(pidfd: int, timeout_s: float | None = None) -> bool:
    """Wait until the process has ended.  False when the time is up."""
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(None if timeout_s is None else max(0, int(timeout_s * 1000))))


def wait_program(pid: int, deadline_s: float) -> int:
    """Wait for a child to end; kill it after its deadline.  Its exit status, or minus the signal that ended it."""
    pid_fd = pidfd_open(pid)
    try:
        if not wait_pidfd(pid_fd, deadline_s):
            pidfd_signal(pid_fd, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    finally:
        os.close(pid_fd)


def exit_status(wait_status: int) -> int:
    """What a shell would show for a status of ``os.waitpid``: the exit status, or 128 + the signal."""
    code = os.waitstatus_to_exitcode(wait_status)
    return code if code >= 0 else 128 - code
