"""Mount ops: how each becomes part of the zone's tree.

Everything here runs in M0, the mount namespace that belongs to the host's user namespace, with host credentials
and inside the zone's network, ipc and cgroup namespaces (``runner`` enters and leaves).  A mount is always made
detached, as a descriptor, and then attached to a descriptor of its mount point, which was resolved inside the
zone's root without following a link.  So no name that a zone could have planted is ever resolved by the host.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zonemgr.errors import PlatformError, message
from zonemgr.linux import mounts, namespaces, overlay, paths
from zonemgr.linux.hints import explain
from zonemgr.model import plan
from zonemgr.model.states import IDS_PER_ZONE
from zonemgr.platform import shift
from zonemgr.platform.stage import Stage
from zonemgr.store import zones

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


_SPARE_ID = (
    0xFFFFFFF0  # what the host's root, who makes the overlay's own files, is called on the disk of a layer
)


def root_layers(op: plan.Layers, stage: Stage) -> None:
    """The overlay on the zonepath's root in M0.  Its layers have their ids mapped: on it the kernel maps none.

    Whoever made the overlay writes its bookkeeping, so the map has to have a name for the host's root.
    """
    if not stage.privileged:
        rows = [(0, stage.uid_base, IDS_PER_ZONE), (_SPARE_ID, 0, 1)]
        user_fd = namespaces.make_user_namespace(rows, rows)
        try:
            for path in (op.zonepath, *op.layers):
                _map_in_place(path, user_fd)
        finally:
            os.close(user_fd)
    with overlay.opened(op.root, op.work, *op.layers) as (root_fd, work_fd, *lower_fds):
        mount_fd = overlay.assemble((root_fd, work_fd), lower_fds, mounts.ATTR_NODEV)
        try:
            mounts.move_mount(mount_fd, root_fd)
        finally:
            os.close(mount_fd)
    stage.shifted = True


def _map_in_place(path: str, user_fd: int) -> None:
    """Cover a folder with itself, its ids mapped."""
    with overlay.opened(path) as (place_fd,):
        tree_fd = mounts.open_tree("", dir_fd=place_fd, empty_path=True)
        try:
            mounts.set_attributes(tree_fd, set=mounts.ATTR_IDMAP, userns_fd=user_fd)
            mounts.move_mount(tree_fd, place_fd)
        finally:
            os.close(tree_fd)


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


def map_ids(tree_fd: int, stage: Stage, what: str, recursive: bool = False) -> None:
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


def own_mounts(op: plan.OwnMounts, stage: Stage) -> None:
    """A folder mounted over itself, ids mapped as the root is.  A root that lacks one needs none."""
    for directory in op.directories:
        folder_fd = _own_folder(directory, stage)
        if folder_fd is None:
            continue
        try:
            tree_fd = mounts.open_tree("", dir_fd=folder_fd, empty_path=True)
            try:
                mounts.move_mount(tree_fd, folder_fd)
            finally:
                os.close(tree_fd)
        finally:
            os.close(folder_fd)


def read_only_root(op: plan.ReadOnlyRoot, stage: Stage) -> None:
    """Freeze the zone's own folders.  Last of all mounts, since mount points are made in the root until then."""
    for directory in op.directories:
        folder_fd = _own_folder(directory, stage)
        if folder_fd is None:
            continue
        try:
            mounts.set_attributes(folder_fd, set=mounts.ATTR_RDONLY)
        except OSError as error:
            if error.errno != errno.EINVAL:  # of an optional mount that is not there: a part of the root, then
                raise
        finally:
            os.close(folder_fd)


def _own_folder(directory: str, stage: Stage) -> int | None:
    """A descriptor of a folder below the zone's root; None when there is none.  OSError (ELOOP) for a link."""
    try:
        return paths.open_beneath(stage.root_fd, directory, os.O_PATH | os.O_DIRECTORY)
    except FileNotFoundError:
        return None


# -- binds -------------------------------------------------------------------------------------


def bind(op: plan.Bind, stage: Stage) -> None:
    """A host path in the zone's tree."""
    with detached_bind(op, stage) as tree_fd:
        attach_bind(op, stage, tree_fd)


def attach_bind(op: plan.Bind, stage: Stage, tree_fd: int) -> None:
    """The second half of ``bind``, in M0."""
    attach(stage, tree_fd, "bind", op.special, op.directory, op.make)


@contextmanager
def detached_bind(op: plan.Bind, stage: Stage) -> Iterator[int]:
    """The first half of ``bind``: what is bound, where the host's paths are to be seen."""
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
        yield tree_fd
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
    if stage.shifted and op.within not in ("", "/"):
        return  # of the zone's own root: its ids on disk are the zone's already
    if op.idmap == "zone":
        try:
            map_ids(tree_fd, stage, op.special, op.recursive)
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
