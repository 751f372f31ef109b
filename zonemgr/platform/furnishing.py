"""What the zone is shown of its manager and of the kernel: /run/host, the hostid, masks over /proc and /sys.

As in ``mounting``, all of it runs in M0.  The covers of masks come from descriptors of our own, never from a path in
the zone.
"""

from __future__ import annotations

import os
import stat
import struct

from zonemgr.errors import PlatformError
from zonemgr.linux import mounts, notify, paths
from zonemgr.model import plan
from zonemgr.platform.mounting import attach, bind
from zonemgr.platform.stage import Stage

_OS_RELEASE_MAX = 16 << 10


def run_host(op: plan.RunHost, stage: Stage) -> None:
    """/run/host, a small read-only tmpfs, as systemd's CONTAINER_INTERFACE describes it."""
    options: dict[str, str | None] = {
        "mode": "755",
        "size": "64k",
        "uid": str(stage.uid_base),
        "gid": str(stage.uid_base),
    }
    mount_fd = mounts.make_filesystem("tmpfs", options, attributes=mounts.ATTR_NOSUID | mounts.ATTR_NODEV)
    try:
        attach(stage, mount_fd, "tmpfs", "tmpfs", "/run/host")
        folder_fd = paths.open_beneath(stage.root_fd, "/run/host", os.O_RDONLY | os.O_DIRECTORY)
        try:
            _write(folder_fd, "container-manager", b"zonemgr\n", stage.uid_base)
            _write(folder_fd, "container-uuid", op.uuid.encode() + b"\n", stage.uid_base)
            _write(folder_fd, "os-release", _os_release(), stage.uid_base)
            if op.notify:
                stage.notify_fd = notify.listen(folder_fd, stage.uid_base)
        finally:
            os.close(folder_fd)
        mounts.set_attributes(mount_fd, set=mounts.ATTR_RDONLY)
    finally:
        os.close(mount_fd)


def _os_release() -> bytes:
    """What the host is, which may be another distribution than the zone: M0 still has its files."""
    try:
        with open("/etc/os-release", "rb") as stream:
            return stream.read(_OS_RELEASE_MAX)
    except FileNotFoundError:
        return b""


def host_id(op: plan.HostId, stage: Stage) -> None:
    """A 4-byte /etc/hostid, in the byte order the C library reads, bound from the zone's run folder."""
    path = stage.layout.zone_run(stage.zonename) / "hostid"
    path.write_bytes(struct.pack("=I", op.value))
    path.chmod(0o444)
    bind(plan.Bind(str(path), "/etc/hostid", ("ro", "nosuid"), idmap="none", make="file"), stage)


def _write(folder_fd: int, name: str, data: bytes, owner: int) -> None:
    descriptor = os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o444, dir_fd=folder_fd)
    try:
        os.write(descriptor, data)
        os.fchown(descriptor, owner, owner)
    finally:
        os.close(descriptor)


def mask(op: plan.Mask, stage: Stage) -> None:
    """Hide and freeze parts of /proc and /sys.  The covers come from descriptors of our own, never from a path
    in the zone.
    """
    for path in op.paths:
        _cover(path, stage)
    for path in op.read_only:
        target_fd = _open_existing(path, stage)
        if target_fd is None:
            continue
        try:
            tree_fd = mounts.open_tree("", dir_fd=target_fd, empty_path=True)
            try:
                mounts.set_attributes(tree_fd, set=mounts.ATTR_RDONLY)
                mounts.move_mount(tree_fd, target_fd)
            finally:
                os.close(tree_fd)
        finally:
            os.close(target_fd)


def _open_existing(path: str, stage: Stage) -> int | None:
    try:
        return paths.open_beneath(stage.root_fd, path, os.O_PATH)
    except FileNotFoundError:
        return None


def _cover(path: str, stage: Stage) -> None:
    target_fd = _open_existing(path, stage)
    if target_fd is None:
        return
    attributes = mounts.ATTR_RDONLY | mounts.ATTR_NOSUID | mounts.ATTR_NODEV | mounts.ATTR_NOEXEC
    try:
        if stat.S_ISDIR(os.fstat(target_fd).st_mode):
            cover_fd = mounts.make_filesystem("tmpfs", {"size": "0", "nr_inodes": "1"}, attributes=attributes)
        else:
            null_fd = os.open("/dev/null", os.O_PATH | os.O_CLOEXEC)
            info = os.fstat(null_fd)
            if not stat.S_ISCHR(info.st_mode) or info.st_rdev != os.makedev(1, 3):
                raise PlatformError("the host's /dev/null is not the null device")
            cover_fd = mounts.open_tree("", dir_fd=null_fd, empty_path=True)
            os.close(null_fd)
            mounts.set_attributes(cover_fd, set=mounts.ATTR_RDONLY | mounts.ATTR_NOSUID | mounts.ATTR_NOEXEC)
        try:
            mounts.move_mount(cover_fd, target_fd)
        finally:
            os.close(cover_fd)
    finally:
        os.close(target_fd)
