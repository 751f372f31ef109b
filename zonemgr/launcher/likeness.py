"""Whether a fork of the launcher can pass for a child of the caller, and making it so.

What a process inherits and cannot give itself (namespaces, root, capabilities, no_new_privs, seccomp, the label of a
security module) must be alike, else the caller does its work itself.  What can be given is given: control groups,
limits, priority, masks, signal dispositions.  All of it is read from the caller's folder in /proc, which is held open;
nothing is taken on the caller's word.
"""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from zonemgr.linux.cgroup.hierarchy import Hierarchy, join_tasks

_NAMESPACES: Final = ("mnt", "net", "uts", "ipc", "pid", "user", "cgroup", "time")
_ALIKE: Final = (
    "Uid",
    "Gid",
    "CapInh",
    "CapPrm",
    "CapEff",
    "CapBnd",
    "CapAmb",
    "NoNewPrivs",
    "Seccomp",
    "Seccomp_filters",
)
_LIMITS: Final = tuple(
    getattr(resource, name) for name in sorted(dir(resource)) if name.startswith("RLIMIT_") and name != "RLIMIT_OFILE"
)
_FILES: Final = ("attr/current", "personality")  # what of these is missing on a host is missing for all


class Unlike(Exception):
    """The fork cannot pass for the caller's child."""


@dataclass(frozen=True, slots=True)
class Likeness:
    """What must be alike."""

    namespaces: tuple[int, ...]
    root: tuple[int, int]
    credentials: tuple[str, ...]
    files: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Manners:
    """What a fork can take over.  Signals are bit masks, as /proc has them."""

    umask: int
    groups: tuple[int, ...]
    ignored: int
    blocked: int
    cgroups: str
    oom_score_adj: str
    loginuid: str


def of(folder_fd: int) -> tuple[Likeness, Manners]:
    """Of the process whose folder in /proc this is.  OSError when it has gone."""
    status = _status(folder_fd)
    root = os.stat("root", dir_fd=folder_fd)
    likeness = Likeness(
        namespaces=tuple(_namespace(folder_fd, kind) for kind in _NAMESPACES),
        root=(root.st_dev, root.st_ino),
        credentials=tuple(status.get(name, "") for name in _ALIKE),
        files=tuple(_text(folder_fd, name) for name in _FILES),
    )
    manners = Manners(
        umask=int(status["Umask"], 8),
        groups=tuple(map(int, status["Groups"].split())),
        ignored=int(status["SigIgn"], 16),
        blocked=int(status["SigBlk"], 16),
        cgroups=_text(folder_fd, "cgroup"),
        oom_score_adj=_text(folder_fd, "oom_score_adj"),
        loginuid=_text(folder_fd, "loginuid"),
    )
    return likeness, manners


def own() -> tuple[Likeness, Manners]:
    """Of this process."""
    folder_fd = os.open("/proc/self", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return of(folder_fd)
    finally:
        os.close(folder_fd)


def _namespace(folder_fd: int, kind: str) -> int:
    try:
        return os.stat(f"ns/{kind}", dir_fd=folder_fd).st_ino
    except FileNotFoundError:
        return 0  # a kernel without this kind


def _status(folder_fd: int) -> Mapping[str, str]:
    lines = (line.partition(":") for line in _text(folder_fd, "status").splitlines())
    return {name: value.strip() for name, _, value in lines}


def _text(folder_fd: int, name: str) -> str:
    try:
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder_fd)
    except FileNotFoundError:
        return ""
    try:
        return os.read(fd, 16384).decode(errors="surrogateescape").rstrip("\0\n")
    except OSError:
        return ""  # no security module answers
    finally:
        os.close(fd)


# -- making it so -----------------------------------------------------------------------------------------------


def unified_path(cgroups: str) -> str:
    """The place on cgroup2 in the text of a cgroup file."""
    return next((line[3:] for line in cgroups.splitlines() if line.startswith("0::")), "/")


def take_over(pid: int, theirs: Manners, mine: Manners, hierarchy: Hierarchy) -> None:
    """Make this process as the caller is, but for its place on cgroup2.

    Raises Unlike when something cannot be given.
    """
    try:
        _join_v1(theirs.cgroups, mine.cgroups, hierarchy)
        if theirs.groups != mine.groups:
            os.setgroups(theirs.groups)
        take_login(theirs, mine)
        if theirs.oom_score_adj != mine.oom_score_adj:
            Path("/proc/self/oom_score_adj").write_text(theirs.oom_score_adj)
        _take_limits(pid)
        _take_schedule(pid)
    except (OSError, ValueError) as error:
        raise Unlike(str(error)) from error
    os.umask(theirs.umask)


def take_login(theirs: Manners, mine: Manners) -> None:
    """Audit records are to name the login session of the caller.  OSError where that is fixed for ever."""
    if theirs.loginuid != mine.loginuid:
        Path("/proc/self/loginuid").write_text(theirs.loginuid)


def _join_v1(theirs: str, mine: str, hierarchy: Hierarchy) -> None:
    for line in set(theirs.splitlines()) - set(mine.splitlines()):
        _, names, path = line.split(":", 2)
        mount = next((hierarchy.controllers[name] for name in names.split(",") if name in hierarchy.controllers), None)
        if mount is not None:
            join_tasks(mount / path.lstrip("/"), 0)


def _take_limits(pid: int) -> None:
    for limit in _LIMITS:
        wanted = resource.prlimit(pid, limit)
        if wanted != resource.getrlimit(limit):
            resource.setrlimit(limit, wanted)


def _take_schedule(pid: int) -> None:
    nice = os.getpriority(os.PRIO_PROCESS, pid)
    if nice != os.getpriority(os.PRIO_PROCESS, 0):
        os.setpriority(os.PRIO_PROCESS, 0, nice)
    cpus = os.sched_getaffinity(pid)
    if cpus != os.sched_getaffinity(0):
        os.sched_setaffinity(0, cpus)
    policy = os.sched_getscheduler(pid)
    if policy != os.sched_getscheduler(0):
        os.sched_setscheduler(0, policy, os.sched_getparam(pid))


def take_signals(theirs: Manners) -> None:
    """Ignore and block what the caller does; the rest as a fresh interpreter has it."""
    # Masks from before Python began; what it ignores by itself it ignores here too.
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        wanted = signal.SIG_IGN if theirs.ignored >> (number - 1) & 1 else signal.SIG_DFL
        try:
            signal.signal(number, wanted)
        except (OSError, ValueError):
            continue  # reserved by the C library
    if not theirs.ignored >> (signal.SIGINT - 1) & 1:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    blocked = {number for number in signal.valid_signals() if theirs.blocked >> (number - 1) & 1}
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
