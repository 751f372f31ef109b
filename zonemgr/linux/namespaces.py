"""Namespaces: leaving, entering, comparing them, and the id maps of user namespaces.

Deliberately not here: the order in which a zone takes them, which is what keeps the host safe
(``supervisor.zsched``).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence

from zonemgr.linux import libc, process

NEWTIME = 0x00000080
NEWNS = 0x00020000
NEWCGROUP = 0x02000000
NEWUTS = 0x04000000
NEWIPC = 0x08000000
NEWUSER = 0x10000000
NEWPID = 0x20000000
NEWNET = 0x40000000

# The names under /proc/PID/ns, in the order in which they are entered by one setns of a pidfd.
KINDS = {
    "user": NEWUSER,
    "cgroup": NEWCGROUP,
    "ipc": NEWIPC,
    "uts": NEWUTS,
    "net": NEWNET,
    "pid": NEWPID,
    "mnt": NEWNS,
    "time": NEWTIME,
}

IdMap = Sequence[tuple[int, int, int]]


def unshare(flags: int) -> None:
    """Leave these namespaces for new ones."""
    libc.call("unshare", flags)


def setns(fd: int, flags: int = 0) -> None:
    """Enter a namespace (a descriptor of ``open_ns``), or with a pidfd all the namespaces of ``flags`` at
    once.
    """
    libc.call("setns", fd, flags)


def open_ns(pid: int | str, kind: str) -> int:
    """A descriptor of a process's namespace; ``pid`` may be "self"."""
    return os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)


def same_namespace(pid: int | str, kind: str, other_pid: int | str) -> bool:
    """Whether two processes share a namespace."""
    first, second = (os.stat(f"/proc/{one}/ns/{kind}") for one in (pid, other_pid))
    return (first.st_dev, first.st_ino) == (second.st_dev, second.st_ino)


def set_hostname(name: str) -> None:
    """Set the host name of the caller's uts namespace (the kernel takes at most 64 bytes)."""
    encoded = libc.text("sethostname", name)
    libc.call("sethostname", encoded, len(encoded))


def _write_map(pid: int, name: str, rows: IdMap) -> None:
    data = "".join(f"{inside} {outside} {count}\n" for inside, outside, count in rows)
    descriptor = os.open(f"/proc/{pid}/{name}", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, data.encode())  # one write: the kernel takes no second
    except OSError as error:
        raise libc.error(name, error.errno or 0) from None
    finally:
        os.close(descriptor)


def write_id_maps(pid: int, base: int, count: int = 65536) -> None:
    """Map the ids 0.. of the process's new user namespace to ``count`` ids of the host from ``base`` on."""
    _write_map(pid, "uid_map", [(0, base, count)])
    _write_map(pid, "gid_map", [(0, base, count)])


def make_user_namespace(uid_map: IdMap, gid_map: IdMap) -> int:
    """A descriptor of a new user namespace with these maps (rows: inside, outside, count) and no process
    in it.
    """
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    try:
        pid, pidfd = process.clone3(NEWUSER)
        if pid == 0:
            _wait_and_leave(read_fd, write_fd)
        try:
            _write_map(pid, "uid_map", uid_map)
            _write_map(pid, "gid_map", gid_map)
            return open_ns(pid, "user")
        finally:
            process.pidfd_signal(pidfd, signal.SIGKILL)
            os.waitpid(pid, 0)
            os.close(pidfd)
    finally:
        os.close(read_fd)
        os.close(write_fd)


def _wait_and_leave(read_fd: int, write_fd: int) -> None:
    """Hold the namespace until killed, or until whoever wanted it is gone."""
    try:
        os.close(write_fd)
        os.read(read_fd, 1)
    finally:
        os._exit(0)
