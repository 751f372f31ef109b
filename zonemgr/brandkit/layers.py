"""Roots in layers: a zone's root as an overlay upon frozen origins, which the zones cloned from it share.

A clone by overlay freezes the source's root: it becomes an *origin*, a folder beside the source's zonepath that nobody
writes any more, and source and clone go on above it, each with a root of its own that holds what differs.  A zone's
index entry names the origins that its root lies on, the uppermost first; one that no entry names is removed.

On disk owners are as ever the zone's own.  The platform maps the ids of every layer and mounts the overlay on top, the
kernel mapping none on an overlay itself; here, for verbs and hooks, the layers are put together unmapped and out of
everybody else's sight.  While a zone is up its root has one writer: hooks then see it read-only.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from zonemgr.brandkit import zonepath as zonepaths
from zonemgr.brandkit.base import ZoneInfo
from zonemgr.brandkit.owners import attributes
from zonemgr.errors import NoSuchZoneError, PlatformError
from zonemgr.linux import mounts, namespaces
from zonemgr.linux.overlay import LAYERS_MAX, assemble, opened
from zonemgr.store import files, journal, zones
from zonemgr.store.locks import FileLock
from zonemgr.store.observe import state_of
from zonemgr.store.paths import Layout
from zonemgr.store.zones import Entry

ROOT: Final = "root"
WORK: Final = "work"  # the overlay's own folder in a zonepath
NEW_ROOT: Final = "root.new"
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def origins_beside(layout: Layout, zonepath: str) -> str:
    """The folder of origins that were frozen from this zonepath: beside it, under a name that no zone can have."""
    return f"{os.path.dirname(zonepath)}/.zonemgr-origins{layout.suffix}"


# -- putting layers together ------------------------------------------------------------------------------------


@contextmanager
def opened_root(entry: Entry) -> Iterator[int]:
    """A descriptor of a zone's root for reading, all layers seen as one.  Raises PlatformError, OSError."""
    root = f"{entry.zonepath}/{ROOT}"
    if not entry.layers:
        try:
            fd = os.open(root, _FOLDER)
        except OSError as error:
            raise PlatformError("{path}: {why}", path=root, why=error.strerror) from error
    else:
        with opened(root, *entry.layers) as descriptors:
            mount_fd = assemble(None, descriptors)
        try:
            fd = os.open(".", _FOLDER, dir_fd=mount_fd)
        finally:
            os.close(mount_fd)
    try:
        yield fd
    finally:
        os.close(fd)


def has_layers(zone: ZoneInfo) -> bool:
    """Whether its root lies on origins."""
    try:
        return bool(zones.read_entry(zone.layout, zone.zonename).layers)
    except (NoSuchZoneError, PlatformError):
        return False  # nothing is known of layers


def show(zone: ZoneInfo) -> None:
    """Let this process alone see a root in layers whole, at its place.  Raises PlatformError, OSError.

    For a process with one thread that will not mount anything for others: its mount namespace is its own from here on.
    """
    layout = zone.layout
    try:
        entry = zones.read_entry(layout, zone.zonename)
    except (NoSuchZoneError, PlatformError):
        return  # nothing is known of layers
    if not entry.layers:
        return
    root, work = f"{entry.zonepath}/{ROOT}", f"{entry.zonepath}/{WORK}"
    namespaces.unshare(namespaces.NEWNS)
    mounts.set_propagation("/", mounts.PRIVATE, recursive=True)
    Path(work).mkdir(0o700, exist_ok=True)
    with opened(root, work, *entry.layers) as (root_fd, work_fd, *lower_fds):
        if state_of(layout, zone.zonename).active:
            mount_fd = assemble(None, [root_fd, *lower_fds])
        else:
            mount_fd = assemble((root_fd, work_fd), lower_fds)
        mounts.move_mount(mount_fd, root_fd)
        os.close(mount_fd)


def obstacle(source: Entry, target_zonepath: str) -> str | None:
    """Why the source's root cannot become an origin below a root in the target's zonepath, or None.  Tried."""
    if source.idmap_marker:
        return "the owners of the source's root were moved on disk"
    if len(source.layers) >= LAYERS_MAX:
        return f"the source's root is in {len(source.layers)} layers already"
    if os.stat(source.zonepath).st_dev != os.stat(os.path.dirname(source.zonepath)).st_dev:
        return "the source's zonepath is a file system of its own"
    for path in (source.zonepath, target_zonepath):
        with opened(path) as (fd,):
            if not mounts.supports_idmap(fd):
                return "the file system maps no ids"
    return _try_overlay(source, target_zonepath)


def _try_overlay(source: Entry, target_zonepath: str) -> str | None:
    trial, work = f"{target_zonepath}/{NEW_ROOT}", f"{target_zonepath}/{WORK}"
    fd = os.open(target_zonepath, _FOLDER)
    try:
        for path in (trial, work):
            os.mkdir(path, 0o700)
        with opened(trial, work, f"{source.zonepath}/{ROOT}") as (trial_fd, work_fd, lower_fd):
            mount_fd = assemble((trial_fd, work_fd), [lower_fd])
            try:
                if os.fstatvfs(mount_fd).f_flag & os.ST_RDONLY:
                    return "an overlay upon this file system cannot be written"
            finally:
                os.close(mount_fd)
    except OSError as error:
        return f"no overlay here: {error.strerror}"
    finally:
        for name in (NEW_ROOT, WORK):
            zonepaths.remove(fd, name)
        os.close(fd)
    return None


# -- freezing ---------------------------------------------------------------------------------------------------


def freeze(layout: Layout, name: str, claim: Callable[[], None]) -> None:
    """Make the zone's root an origin, unless nothing was written since it last became one.

    ``claim`` makes the zone incomplete.  The caller holds its administration lock, and mends what the journal says
    whatever happens: that ends the work (``relocate.freeze``).  Raises ZoneError, OSError.
    """
    entry = zones.read_entry(layout, name)
    root = f"{entry.zonepath}/{ROOT}"
    if entry.layers and not os.listdir(root):
        return
    origin = f"{origins_beside(layout, entry.zonepath)}/{os.urandom(8).hex()}/{ROOT}"
    journal.begin(layout, name, {"verb": "freeze", "origin": origin, "uuid": entry.uuid})
    claim()
    for folder in (os.path.dirname(os.path.dirname(origin)), os.path.dirname(origin)):
        _make_private(folder)
    new_root(entry.zonepath, NEW_ROOT, root)
    os.rename(root, origin)  # the deciding step
    files.sync_directory(Path(origin).parent)


def _make_private(folder: str) -> None:
    """A folder that only root can look into.  What is there already may be somebody else's: /tmp is for everybody."""
    try:
        os.mkdir(folder, 0o700)
    except FileExistsError:
        if not _is_private(folder):
            raise PlatformError(
                "{path} is in the way: it is not a folder of root's alone", path=folder
            ) from None


def _is_private(folder: str) -> bool:
    """Whether the folder is root's alone, no link, so that nobody else can have put it or anything below it there."""
    try:
        status = os.lstat(folder)
    except FileNotFoundError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == 0 and stat.S_IMODE(status.st_mode) == 0o700


def new_root(zonepath: str, name: str, like: str) -> None:
    """An empty folder with the mode, owner and attributes of another: what an overlay's root shows are the upper's."""
    path = f"{zonepath}/{name}"
    os.mkdir(path, 0o700)
    with opened(like) as (fd,):
        status = os.fstat(fd)
        extended = attributes(f"/proc/self/fd/{fd}")
    os.chown(path, status.st_uid, status.st_gid)
    for attribute, value in extended.items():
        os.setxattr(path, attribute, value)
    os.chmod(path, stat.S_IMODE(status.st_mode))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def recover(layout: Layout, name: str, origin: str) -> None:
    """Finish a freezing whose deciding step was taken, undo any other.  The zone's state is the caller's."""
    entry = zones.read_entry(layout, name)
    root = f"{entry.zonepath}/{ROOT}"
    if os.path.lexists(origin):
        if not os.path.lexists(root):
            os.rename(f"{entry.zonepath}/{NEW_ROOT}", root)
            files.sync_directory(Path(entry.zonepath))
        if origin not in entry.layers:
            zones.update_entry(layout, name, layers=(origin, *entry.layers))
        return
    _remove(f"{entry.zonepath}/{NEW_ROOT}")
    if _is_private(os.path.dirname(os.path.dirname(origin))):
        _remove(os.path.dirname(origin))


# -- origins that nobody needs ----------------------------------------------------------------------------------


def release(layout: Layout, name: str) -> None:
    """The zone's root is gone: so are the origins that no other zone lies on.  Raises OSError, ZoneError."""
    entry = zones.read_entry(layout, name)
    folders = {os.path.dirname(os.path.dirname(layer)) for layer in entry.layers}
    if entry.zonepath:
        folders.add(origins_beside(layout, entry.zonepath))
    for folder in folders:
        collect(layout, folder, without=name)
    if entry.layers:
        zones.update_entry(layout, name, layers=())


def collect(layout: Layout, folder: str, *, without: str = "") -> list[str]:
    """Remove the origins in a folder that no zone (but ``without``) lies on; their names."""
    if not _is_private(folder):
        return []  # there is none, or it is not ours
    with FileLock(layout.lib / "state/.origins.lock"):
        try:
            used = users(layout)
        except PlatformError:
            return []  # an entry that cannot be read may name any of them
        found = []
        for name in sorted(os.listdir(folder)):
            if not used.get(f"{folder}/{name}/{ROOT}", set()) - {without}:
                _remove(f"{folder}/{name}")
                found.append(name)
        try:
            os.rmdir(folder)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.ENOENT):
                raise
    return found


def users(layout: Layout) -> dict[str, set[str]]:
    """Origins and the zones that lie on them; one that is being frozen just now counts.  Raises PlatformError."""
    found: dict[str, set[str]] = {}
    for name in zones.names(layout):
        try:
            layers = zones.read_entry(layout, name).layers
        except NoSuchZoneError:
            continue  # it went while we looked
        record = journal.pending(layout, name)
        if record is not None and record.get("verb") == "freeze":
            layers = (record["origin"], *layers)
        for layer in layers:
            found.setdefault(layer, set()).add(name)
    return found


def _remove(path: str) -> None:
    """Remove a folder with all that is in it; nothing happens when it is missing."""
    try:
        fd = os.open(os.path.dirname(path), _FOLDER)
    except FileNotFoundError:
        return
    try:
        zonepaths.remove(fd, os.path.basename(path))
    finally:
        os.close(fd)
