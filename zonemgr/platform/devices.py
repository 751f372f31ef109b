"""/dev of a zone: a tmpfs with nodes of its own, and the console.

As in ``mounting``, all of it runs in M0, and everything is reached by descriptor.
"""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass

from zonemgr.errors import PlatformError
from zonemgr.linux import mounts, paths, pty
from zonemgr.linux.cgroup import Part
from zonemgr.linux.devicerules import DeviceNumber, restrict
from zonemgr.linux.hints import explain
from zonemgr.model import plan
from zonemgr.model.states import IDS_PER_ZONE
from zonemgr.platform.mounting import attach
from zonemgr.platform.stage import TTY_GID, Stage


def device_tree(op: plan.DeviceTree, stage: Stage) -> None:
    """A tmpfs on /dev with the zone's devices and links, and nothing else."""
    base = str(stage.uid_base)
    options: dict[str, str | None] = {
        "mode": "755",
        "size": "4m",
        "nr_inodes": "4096",
        "uid": base,
        "gid": base,
    }
    mount_fd = mounts.make_filesystem("tmpfs", options, attributes=mounts.ATTR_NOSUID | mounts.ATTR_NOEXEC)
    try:
        attach(stage, mount_fd, "dev", "tmpfs", "/dev")
        dev_fd = paths.open_beneath(stage.root_fd, "/dev", os.O_RDONLY | os.O_DIRECTORY)
    finally:
        os.close(mount_fd)
    try:
        for directory in ("pts", "shm", "mqueue"):
            _make_folder(dev_fd, directory, stage.uid_base)
        for link in op.links:
            path, _, target = link.partition(">")
            os.symlink(target, path, dir_fd=dev_fd)
            os.chown(path, stage.uid_base, stage.uid_base, dir_fd=dev_fd, follow_symlinks=False)
        for wanted in op.devices:
            for node in nodes_of(wanted):
                _device(dev_fd, node, stage)
    finally:
        os.close(dev_fd)


@dataclass(frozen=True, slots=True)
class Node:
    """A device of the host, and its name in the zone.  ``status`` is None for one that the host has not any more."""

    source: str
    name: str
    status: os.stat_result | None


def allow(op: plan.AllowDevices, stage: Stage) -> None:
    """Hold the zone's processes to its devices.  May be done again with others while the zone runs."""
    numbers = []
    for node in (node for wanted in op.devices for node in nodes_of(wanted)):
        if node.status is None:
            raise PlatformError("device {name} does not exist on the host", name=node.source)
        numbers.append(DeviceNumber.of(node.status))
    cgroup = stage.cgroup
    v1 = cgroup.hierarchy.controllers.get("devices")
    v1_folder = v1 / cgroup.base / cgroup.name if v1 else None
    restrict(cgroup.part_path(Part.PAYLOAD), v1_folder, numbers)


def nodes_of(wanted: str) -> list[Node]:
    """``NAME``, a shell pattern, or ``NAME>NAME IN THE ZONE``, looked up where the host's /dev is to be seen."""
    pattern, _, renamed = wanted.partition(">")
    matches = glob.glob(pattern, root_dir="/dev") if any(c in pattern for c in "*?[") else [pattern]
    found = []
    for match in matches:
        try:
            status = os.lstat(f"/dev/{match}")
        except FileNotFoundError:
            found.append(Node(f"/dev/{match}", renamed or match, None))
            continue
        if stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
            found.append(Node(f"/dev/{match}", renamed or match, status))
    return found


def change(gone: Iterable[Node], wanted: Iterable[Node], stage: Stage) -> None:
    """Other devices in a living zone's /dev, which its root may have rearranged: a link there is not followed.

    Idempotent.  A node that the zone has moved away is out of reach; who has a device open keeps it open.
    """
    dev_fd = paths.open_beneath(stage.root_fd, "/dev", os.O_RDONLY | os.O_DIRECTORY)
    try:
        for node in gone:
            _remove_device(dev_fd, node)
        for node in wanted:
            _device(dev_fd, node, stage)
    finally:
        os.close(dev_fd)


def _remove_device(dev_fd: int, node: Node) -> None:
    """Remove the node if it still is that device."""
    try:
        folder_fd = paths.open_beneath(dev_fd, os.path.dirname(node.name) or "/", os.O_PATH | os.O_DIRECTORY)
    except OSError:
        return
    try:
        leaf = os.path.basename(node.name)
        there = os.stat(leaf, dir_fd=folder_fd, follow_symlinks=False)
        if there.st_rdev and (node.status is None or there.st_rdev == node.status.st_rdev):
            os.unlink(leaf, dir_fd=folder_fd)
    except FileNotFoundError:
        return
    finally:
        os.close(folder_fd)


def _make_folder(parent_fd: int, name: str, owner: int) -> None:
    os.mkdir(name, 0o755, dir_fd=parent_fd)
    os.chown(name, owner, owner, dir_fd=parent_fd, follow_symlinks=False)


def _device(dev_fd: int, node: Node, stage: Stage) -> None:
    if node.status is None:
        raise PlatformError("device {name} does not exist on the host", name=node.source)
    folder_fd = _device_folder(dev_fd, node.name.split("/")[:-1], stage.uid_base)
    try:
        _make_device(node.source, node.status, folder_fd, node.name.rpartition("/")[2], stage)
    finally:
        os.close(folder_fd)


def _device_folder(dev_fd: int, parts: list[str], owner: int) -> int:
    """A descriptor of a folder below the zone's /dev, which is made when it is missing (``snd/*``, ``dri/*``)."""
    folder_fd = os.dup(dev_fd)
    for part in parts:
        try:
            _make_folder(folder_fd, part, owner)
        except FileExistsError:
            pass  # an earlier device made it
        next_fd = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder_fd)
        os.close(folder_fd)
        folder_fd = next_fd
    return folder_fd


def _make_device(source: str, status: os.stat_result, folder_fd: int, name: str, stage: Stage) -> None:
    """A node of our own for the device, owned in the zone as on the host.

    The tmpfs was mounted with the host's credentials, so its nodes work, though the zone itself may make none.  A
    bind of the host's node would show its owner as nobody, and let nobody but the host's root open it.  The mode is
    right from the start: a name in a living zone's /dev may be another thing a moment later.
    """
    previous = os.umask(0)
    try:
        os.mknod(name, status.st_mode, status.st_rdev, dir_fd=folder_fd)
    except FileExistsError:
        there = os.stat(name, dir_fd=folder_fd, follow_symlinks=False)
        if (stat.S_IFMT(there.st_mode), there.st_rdev) == (stat.S_IFMT(status.st_mode), status.st_rdev):
            return  # two rules name the same device
        raise PlatformError("cannot make device {name}: the zone has something else there", name=source) from None
    except OSError as error:
        raise PlatformError("cannot make device {name}: {why}", name=source, why=explain(error)) from None
    finally:
        os.umask(previous)
    uid, gid = (stage.uid_base + owner % IDS_PER_ZONE for owner in (status.st_uid, status.st_gid))
    os.chown(name, uid, gid, dir_fd=folder_fd, follow_symlinks=False)


def console(_op: plan.Console, stage: Stage) -> None:
    """The zone's console: a new pty of its own devpts, opened by descriptor and never by a name in the zone."""
    devpts_fd = paths.open_beneath(stage.root_fd, "/dev/pts", os.O_RDONLY | os.O_DIRECTORY)
    dev_fd = paths.open_beneath(stage.root_fd, "/dev", os.O_RDONLY | os.O_DIRECTORY)
    try:
        master_fd = pty.open_master_in(devpts_fd)
        slave_fd = pty.open_peer(master_fd)
        os.fchown(slave_fd, stage.uid_base, stage.uid_base + TTY_GID)
        os.fchmod(slave_fd, 0o620)
        os.close(
            os.open("console", os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600, dir_fd=dev_fd)
        )
        tree_fd = mounts.open_tree("", dir_fd=slave_fd, empty_path=True)
        target_fd = os.open("console", os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dev_fd)
        try:
            mounts.move_mount(tree_fd, target_fd)
        finally:
            os.close(tree_fd)
            os.close(target_fd)
    finally:
        os.close(devpts_fd)
        os.close(dev_fd)
    stage.keep_console(master_fd, slave_fd)
