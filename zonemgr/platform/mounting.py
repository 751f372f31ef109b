"""Mount ops: how each becomes part of the zone's tree.

Everything here runs in M0, the mount namespace that belongs to the host's user namespace, with host credentials
and inside the zone's network, ipc and cgroup namespaces (``runner`` enters and leaves).  A mount is always made
detached, as a descriptor, and then attached to a descriptor of its mount point, which was resolved inside the
zone's root without following a link.  So no name that a zone could have planted is ever resolved by the host.
"""

from __future__ import annotations

import errno
import fcntl
import glob
import json
import os
import stat
import struct
from collections.abc import Callable
from pathlib import Path

from zonemgr.errors import PlatformError, message
from zonemgr.linux import mounts, namespaces, paths, process, pty
from zonemgr.linux.hints import explain
from zonemgr.model import plan
from zonemgr.model.states import IDS_PER_ZONE
from zonemgr.platform import shift
from zonemgr.platform.stage import Stage
from zonemgr.store import zones

_TTY_GID = 5
_PTYS_MAX = 1024  # of one zone: the kernel's own limit is for all of them together

_FLAGS = {
    "ro": mounts.ATTR_RDONLY,
    "nosuid": mounts.ATTR_NOSUID,
    "nosetuid": mounts.ATTR_NOSUID,
    "nodev": mounts.ATTR_NODEV,
    "nodevices": mounts.ATTR_NODEV,
    "noexec": mounts.ATTR_NOEXEC,
    "noatime": mounts.ATTR_NOATIME,
}
_NO_FLAG = {"rw", "suid", "setuid", "dev", "devices", "exec", "atime", "bind", "rbind", "defaults"}


def split_options(options: tuple[str, ...]) -> tuple[int, dict[str, str | None]]:
    """Mount options as attribute flags and the rest, which is for the file system ("size=1M", "mode=755")."""
    flags, rest = 0, {}
    for option in options:
        if option in _FLAGS:
            flags |= _FLAGS[option]
        elif option not in _NO_FLAG:
            key, equals, value = option.partition("=")
            rest[key] = value if equals else None
    return flags, rest


def attach(
    stage: Stage, mount_fd: int, op_type: str, special: str, directory: str, make: str = "dir"
) -> None:
    """Attach a detached mount in the zone's tree, making the mount point when it is missing (reference, section
    3.2).
    """
    if not paths.check_mount_point(
        stage.root_fd, directory, type=op_type, special=special, display=stage.root
    ):
        try:
            paths.make_mount_point(stage.root_fd, directory, 0o755, kind=make, display=stage.root)
        except OSError as error:
            raise PlatformError("failed to create mount point: {why}", why=explain(error)) from None
        if not paths.check_mount_point(
            stage.root_fd, directory, type=op_type, special=special, display=stage.root
        ):
            raise PlatformError(
                "{root}{directory} is not a valid mount point", root=stage.root, directory=directory
            )
    target_fd = paths.open_beneath(stage.root_fd, directory, os.O_PATH)
    try:
        mounts.move_mount(mount_fd, target_fd)
    finally:
        os.close(target_fd)


# -- roots ------------------------------------------------------------------------------------------------------


def root_tree(op: plan.RootTree, stage: Stage) -> None:
    """The zone's own root, ids mapped, mounted over itself in M0."""
    tree_fd = mounts.open_tree(op.path, follow=False)
    try:
        _map_root(tree_fd, stage, op.path)
        mounts.set_attributes(tree_fd, set=mounts.ATTR_NODEV)
        _become_root(stage, tree_fd)
    finally:
        os.close(tree_fd)


def scratch_root(op: plan.ScratchRoot, stage: Stage) -> None:
    """The scratch zone's tmpfs, with the links that make the host's programs found."""
    options: dict[str, str | None] = {"mode": "755", "uid": str(stage.uid_base), "gid": str(stage.uid_base)}
    tree_fd = mounts.make_filesystem("tmpfs", options, attributes=mounts.ATTR_NODEV)
    try:
        _become_root(stage, tree_fd)
    finally:
        os.close(tree_fd)
    for link in op.links:
        name, _, target = link.partition(">")
        os.symlink(target, name, dir_fd=stage.root_fd)


def _become_root(stage: Stage, tree_fd: int) -> None:
    """Attach the tree beside everything: the zone's folders on the host stay reachable below their own paths
    until the pivot.
    """
    place = stage.layout.zone_run(stage.zonename) / "tree"
    place.mkdir(mode=0o700, exist_ok=True)
    target_fd = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        mounts.move_mount(tree_fd, target_fd)
    finally:
        os.close(target_fd)
    stage.root_fd = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def _map_root(tree_fd: int, stage: Stage, path: str) -> None:
    """Map the root's ids at the mount, or on disk, once, where its file system cannot."""
    if stage.privileged or stage.shifted:
        return
    try:
        mounts.set_attributes(tree_fd, set=mounts.ATTR_IDMAP, userns_fd=stage.born.user_fd)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        stage.say(
            message("{path}: no id-mapped mounts on this file system: its owners are shifted once", path=path)
        )
        shift.shift_tree(Path(path), stage.uid_base)
        zones.update_entry(stage.layout, stage.zonename, idmap_marker=f"shifted by {stage.uid_base}")
        stage.shifted = True


def _map_ids(tree_fd: int, stage: Stage, what: str, recursive: bool = False) -> None:
    """Show the ids on disk as the zone's own.  PlatformError where the file system refuses."""
    if stage.privileged:
        return
    try:
        mounts.set_attributes(
            tree_fd, set=mounts.ATTR_IDMAP, userns_fd=stage.born.user_fd, recursive=recursive
        )
    except OSError as error:
        raise PlatformError(
            "cannot map ids on {what}: {why}",
            what=what,
            why=explain(error),
        ) from None


# -- binds and file systems -------------------------------------------------------------------------------------


def bind(op: plan.Bind, stage: Stage) -> None:
    """A host path in the zone's tree."""
    flags, rest = split_options(op.options)
    if rest:
        raise PlatformError("fs {dir}: unknown option '{option}'", dir=op.directory, option=next(iter(rest)))
    try:
        tree_fd = _open_special(op)
    except OSError as error:
        raise PlatformError(
            "cannot bind '{special}' on '{directory}': {why}",
            special=op.special,
            directory=op.directory,
            why=_why_not_opened(op, error),
        ) from None
    try:
        _map_bind(op, tree_fd, stage, flags)
        mounts.set_attributes(tree_fd, set=flags | mounts.ATTR_NODEV, recursive=op.recursive)
        attach(stage, tree_fd, "bind", op.special, op.directory, op.make)
    finally:
        os.close(tree_fd)


def _open_special(op: plan.Bind) -> int:
    """A detached copy of what is to be bound.  Where a zone can write, a link would lead to any folder of the host."""
    if not op.within:
        return mounts.open_tree(op.special, recursive=op.recursive)
    special_fd = open_plainly(op.special, os.O_PATH, op.within)
    try:
        return mounts.open_tree("", dir_fd=special_fd, empty_path=True, recursive=op.recursive)
    finally:
        os.close(special_fd)


def open_plainly(path: str, flags: int, within: str = "/") -> int:
    """Open a path of the host below a trusted folder.  OSError (ELOOP) when a link is in the way."""
    folder_fd = os.open(within, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return paths.open_beneath(folder_fd, path.removeprefix(within.rstrip("/")), flags)
    finally:
        os.close(folder_fd)


def _why_not_opened(op: plan.Bind, error: OSError) -> str:
    if error.errno == errno.ELOOP and op.within == "/":
        return message(
            "a symbolic link is in the way (name '{path}' itself)", path=os.path.realpath(op.special)
        )
    return explain(error)


def _map_bind(op: plan.Bind, tree_fd: int, stage: Stage, flags: int) -> None:
    if op.idmap == "none" or stage.privileged:
        return
    if stage.shifted and Path(op.special).is_relative_to(stage.root):
        return  # its ids on disk are the zone's already
    if op.idmap == "zone":
        try:
            _map_ids(tree_fd, stage, op.special, op.recursive)
        except PlatformError:
            if not flags & mounts.ATTR_RDONLY:
                raise  # read-only trees are shown unshifted instead: host owners appear as nobody
        return
    uid, _, gid = op.idmap.partition(":")
    owner_fd = namespaces.make_user_namespace(
        [(int(uid), stage.uid_base, 1)], [(int(gid or uid), stage.uid_base, 1)]
    )
    try:
        mounts.set_attributes(tree_fd, set=mounts.ATTR_IDMAP, userns_fd=owner_fd, recursive=op.recursive)
    except OSError as error:
        raise PlatformError(
            "cannot map the owner of '{special}': {why}",
            special=op.special,
            why=explain(error),
        ) from None
    finally:
        os.close(owner_fd)


def file_system(op: plan.FileSystem, stage: Stage) -> None:
    """A tmpfs or a block file system."""
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
                _map_ids(mount_fd, stage, op.special)
            attach(stage, mount_fd, op.type, op.special, op.directory)
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
            "gid": str(stage.uid_base + _TTY_GID),
        }

    def act() -> None:
        mount_fd = mounts.make_filesystem(op.type, options, attributes=attributes)
        try:
            attach(stage, mount_fd, op.type, op.type, op.directory)
        finally:
            os.close(mount_fd)

    if op.type == "proc":  # procfs shows the pid namespace of the process that mounts it
        in_pid_namespace(stage.born.init_pid, act)
    else:
        act()


def in_pid_namespace(init_pid: int, act: Callable[[], None]) -> None:
    """Run ``act`` in a child that is in the zone's pid namespace.  Its failure is raised here."""
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    pid = process.fork()
    if pid == 0:
        status = 1
        try:
            process.set_dumpable(False)
            pid_fd = namespaces.open_ns(init_pid, "pid")
            namespaces.setns(pid_fd, namespaces.NEWPID)
            status = _run_grandchild(act, write_fd)
        except OSError as error:
            os.write(write_fd, json.dumps([error.errno, str(error)]).encode())
        finally:
            os._exit(status)
    os.close(write_fd)
    with open(read_fd, "rb") as pipe:
        text = pipe.read()
    os.waitpid(pid, 0)
    if text:
        code, why = json.loads(text)
        raise PlatformError("{why}", why=why) if code is None else OSError(code, why)


def _run_grandchild(act: Callable[[], None], write_fd: int) -> int:
    pid = process.fork()
    if pid == 0:
        try:
            act()
        except PlatformError as error:
            os.write(write_fd, json.dumps([None, error.text]).encode())
        except OSError as error:
            os.write(write_fd, json.dumps([error.errno, error.strerror or str(error)]).encode())
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# -- /dev, /run/host, masks -------------------------------------------------------------------------------------


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
        for name in op.devices:
            _device(dev_fd, name, stage)
    finally:
        os.close(dev_fd)


def _make_folder(parent_fd: int, name: str, owner: int) -> None:
    os.mkdir(name, 0o755, dir_fd=parent_fd)
    os.chown(name, owner, owner, dir_fd=parent_fd)


def _device(dev_fd: int, wanted: str, stage: Stage) -> None:
    """``NAME``, a shell pattern, or ``NAME>NAME IN THE ZONE``."""
    pattern, _, renamed = wanted.partition(">")
    matches = glob.glob(pattern, root_dir="/dev") if any(c in pattern for c in "*?[") else [pattern]
    for match in matches:
        source, name = f"/dev/{match}", renamed or match
        try:
            status = os.lstat(source)
        except FileNotFoundError:
            raise PlatformError("device {name} does not exist on the host", name=source) from None
        if not (stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode)):
            continue
        folder_fd = _device_folder(dev_fd, name.split("/")[:-1], stage.uid_base)
        try:
            _make_device(source, status, folder_fd, name.rpartition("/")[2], stage)
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
    bind of the host's node would show its owner as nobody, and let nobody but the host's root open it.
    """
    try:
        os.mknod(name, status.st_mode, status.st_rdev, dir_fd=folder_fd)
    except FileExistsError:
        return  # two rules name the same device
    except OSError as error:
        raise PlatformError("cannot make device {name}: {why}", name=source, why=explain(error)) from None
    uid, gid = (stage.uid_base + owner % IDS_PER_ZONE for owner in (status.st_uid, status.st_gid))
    os.chown(name, uid, gid, dir_fd=folder_fd, follow_symlinks=False)
    os.chmod(name, stat.S_IMODE(status.st_mode), dir_fd=folder_fd)  # mknod heeds the umask


def console(_op: plan.Console, stage: Stage) -> None:
    """The zone's console: a new pty of its own devpts, opened by descriptor and never by a name in the zone."""
    devpts_fd = paths.open_beneath(stage.root_fd, "/dev/pts", os.O_RDONLY | os.O_DIRECTORY)
    dev_fd = paths.open_beneath(stage.root_fd, "/dev", os.O_RDONLY | os.O_DIRECTORY)
    try:
        master_fd = pty.open_master_in(devpts_fd)
        slave_fd = pty.open_peer(master_fd)
        os.fchown(slave_fd, stage.uid_base, stage.uid_base + _TTY_GID)
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
        finally:
            os.close(folder_fd)
        mounts.set_attributes(mount_fd, set=mounts.ATTR_RDONLY)
    finally:
        os.close(mount_fd)


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
