"""File-system ops: tmpfs and block devices of fs resources, and the kernel's own (proc, sysfs, devpts, cgroup2...).

As in ``mounting``, all of it runs in M0.  A kernel file system shows the namespaces of the process that makes it; for
proc that is a child in the zone's pid namespace.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from zonemgr.errors import PlatformError
from zonemgr.linux import mounts, namespaces, process
from zonemgr.linux.hints import explain
from zonemgr.model import plan
from zonemgr.platform.mounting import attach, map_ids, open_plainly, split_options
from zonemgr.platform.stage import TTY_GID, Stage

_PTYS_MAX = 1024  # of one zone: the kernel's own limit is for all of them together


def file_system(op: plan.FileSystem, stage: Stage) -> None:
    """A tmpfs or a block file system."""
    with detached_file_system(op, stage) as mount_fd:
        attach_file_system(op, stage, mount_fd)


def attach_file_system(op: plan.FileSystem, stage: Stage, mount_fd: int) -> None:
    """The second half of ``file_system``, in M0."""
    attach(stage, mount_fd, op.type, op.special, op.directory)


@contextmanager
def detached_file_system(op: plan.FileSystem, stage: Stage) -> Iterator[int]:
    """The first half of ``file_system``: the mount, made where the host's devices are to be seen."""
    flags, options = split_options(op.options)
    if op.type == "tmpfs":
        options.setdefault("uid", str(stage.uid_base))
        options.setdefault("gid", str(stage.uid_base))
    source = None if op.type == "tmpfs" else op.special
    loop_fd = -1
    try:
        if source is not None:
            _check(op)
            source, loop_fd = _block_device(source)
        try:
            mount_fd = mounts.make_filesystem(
                op.type, options, attributes=flags | mounts.ATTR_NODEV, source=source
            )
        except OSError as error:
            form = "cannot mount {special} on {directory}: {why}"
            if error.errno == errno.ENODEV:
                form = "cannot mount {special} on {directory}: invalid file-system type {type}"
            raise PlatformError(
                form, special=op.special, directory=op.directory, type=op.type, why=explain(error)
            ) from None
        try:
            if source is not None:
                map_ids(mount_fd, stage, op.special)
            yield mount_fd
        finally:
            os.close(mount_fd)
    finally:
        if loop_fd >= 0:
            os.close(loop_fd)


def _check(op: plan.FileSystem) -> None:
    """fsck, checking only, when the resource names a raw device (reference, section 3.3)."""
    if not op.raw:
        return
    program = f"fsck.{op.type}"
    quiet = [(os.POSIX_SPAWN_OPEN, descriptor, os.devnull, os.O_RDWR, 0) for descriptor in (0, 1, 2)]
    try:
        pid = os.posix_spawnp(program, [program, "-n", op.raw], os.environ, file_actions=quiet)
    except FileNotFoundError:
        return
    status = process.exit_status(os.waitpid(pid, 0)[1])
    if status:
        raise PlatformError(
            "fsck of '{raw}' failed with exit status {status}; run fsck manually",
            raw=op.raw,
            status=status,
        )


_LOOP_CTL_GET_FREE = 0x4C82
_LOOP_CONFIGURE = 0x4C0A
_LO_FLAGS_AUTOCLEAR = 4


def _block_device(special: str) -> tuple[str, int]:
    """The block device of a special: itself, or a loop device for a regular file (which clears itself at unmount)."""
    if not stat.S_ISREG(os.stat(special).st_mode):
        return special, -1
    backing_fd = open_plainly(special, os.O_RDWR)
    control_fd = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        for _attempt in range(16):
            device = f"/dev/loop{fcntl.ioctl(control_fd, _LOOP_CTL_GET_FREE)}"
            loop_fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
            info = struct.pack("QQQQQIIII", 0, 0, 0, 0, 0, 0, 0, 0, _LO_FLAGS_AUTOCLEAR).ljust(232, b"\0")
            config = struct.pack("II", backing_fd, 0) + info + bytes(64)
            try:
                fcntl.ioctl(loop_fd, _LOOP_CONFIGURE, config)
                return device, loop_fd
            except OSError:
                os.close(loop_fd)  # somebody else took this one between the two calls
        raise PlatformError("no free loop device for {special}", special=special)
    finally:
        os.close(control_fd)
        os.close(backing_fd)


def kernel_file_system(op: plan.KernelFileSystem, stage: Stage) -> None:
    """proc, sysfs, mqueue, devpts, cgroup2 of the zone's own namespaces."""
    attributes = mounts.ATTR_NOSUID | mounts.ATTR_NODEV | mounts.ATTR_NOEXEC
    if op.type == "devpts":
        attributes &= ~mounts.ATTR_NODEV
    if op.read_only:
        attributes |= mounts.ATTR_RDONLY
    options: dict[str, str | None] = {}
    if op.type == "devpts":
        options = {
            "mode": "620",
            "ptmxmode": "666",
            "max": str(_PTYS_MAX),
            "gid": str(stage.uid_base + TTY_GID),
        }

    def attached(mount_fd: int) -> None:
        try:
            attach(stage, mount_fd, op.type, op.type, op.directory)
        finally:
            os.close(mount_fd)

    def act() -> None:
        attached(mounts.make_filesystem(op.type, options, attributes=attributes))

    if op.type != "proc":
        act()
        return
    pid_fd = namespaces.open_ns(stage.born.init_pid, "pid")
    try:
        mount_fd = mounts.make_procfs(pid_fd, attributes)
        if mount_fd is not None:
            attached(mount_fd)
        else:  # procfs shows the pid namespace of the process that mounts it
            in_pid_namespace(pid_fd, act)
    finally:
        os.close(pid_fd)


def in_pid_namespace(pid_fd: int, act: Callable[[], None]) -> None:
    """Run ``act`` in a child that is in that pid namespace.  Its failure is raised here."""
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    home_fd = process.pidfd_open(os.getpid())  # not by way of /proc, which may be the zone's
    process.set_dumpable(False)  # as the child is to be from its first moment
    try:
        namespaces.setns(pid_fd, namespaces.NEWPID)  # for children alone; procfs goes by the process itself
        pid = process.fork()
        if pid == 0:
            _report(act, write_fd)
    finally:
        namespaces.setns(home_fd, namespaces.NEWPID)
        process.set_dumpable(True)
        os.close(home_fd)
        os.close(write_fd)
    with open(read_fd, "rb") as pipe:
        text = pipe.read()
    os.waitpid(pid, 0)
    if text:
        code, why = json.loads(text)
        raise PlatformError("{why}", why=why) if code is None else OSError(code, why)


def _report(act: Callable[[], None], write_fd: int) -> NoReturn:
    try:
        act()
    except PlatformError as error:
        os.write(write_fd, json.dumps([None, error.text]).encode())
    except OSError as error:
        os.write(write_fd, json.dumps([error.errno, error.strerror or str(error)]).encode())
    finally:
        os._exit(0)
