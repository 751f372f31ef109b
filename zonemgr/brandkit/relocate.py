"""Moving a zone to another folder or name, its root to a frozen origin, or its files out of its hands, so that any
interruption can be mended.

The journal comes first, the zone is *incomplete* meanwhile (nobody can boot it), and one step decides: the
configuration with the new path (move), the removal of the old configuration (rename), the zone's being incomplete
(detach).  Before it everything is taken
back, after it everything is finished, by ``recover``, which is also what a failure calls.
"""

from __future__ import annotations

import dataclasses
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from zonemgr.brandkit import layers, storage, zonepath
from zonemgr.brandkit.owners import AS_THEY_ARE
from zonemgr.brandkit.tree import Tick
from zonemgr.brandkit.zonepath import Say
from zonemgr.errors import PlatformError, StateError, message
from zonemgr.model.states import State
from zonemgr.store import config, detached, events, files, idranges, journal, zones
from zonemgr.store.observe import state_of
from zonemgr.store.paths import Layout
from zonemgr.store.zones import Entry

_NOT_BY_RENAME: Final = frozenset((errno.EXDEV, errno.EBUSY))


def move(layout: Layout, name: str, target: str, prepare: Callable[[], None], say: Say, tick: Tick) -> None:
    """Move an installed zone's files to ``target``, a folder that is absent or empty.

    ``prepare`` makes and verifies the folder.  The caller holds the administration lock.  Raises ZoneError, OSError.
    """
    entry = zones.read_entry(layout, name)
    record = {
        "verb": "move",
        "from": entry.zonepath,
        "to": target,
        "made": not os.path.lexists(target),
        "uuid": entry.uuid,
    }
    journal.begin(layout, name, record)
    prepare()
    _claim(layout, name)
    if not _renamed(entry.zonepath, target):
        if entry.layers:
            raise PlatformError("its root is in layers, which stay on their file system; export and import it instead")
        _copy(entry.zonepath, target, say, tick)
    _set_zonepath(layout, name, target)
    recover(layout, name, say)


def _renamed(source: str, target: str) -> bool:
    """Whether renaming could do it."""
    mode = os.stat(target).st_mode
    os.rmdir(target)
    try:
        os.rename(source, target)
    except OSError as error:
        if error.errno not in _NOT_BY_RENAME:
            raise
        os.mkdir(target, mode & 0o777)
        os.chmod(target, mode & 0o777)
        return False
    files.sync_directory(Path(source).parent)
    files.sync_directory(Path(target).parent)
    return True


def _copy(source: str, target: str, say: Say, tick: Tick) -> None:
    say(message("Moving across file systems; copying zonepath {source}...", source=source))
    with storage.folder(source) as source_fd, storage.folder(target) as target_fd:
        for name in zonepath.STANDARD_ENTRIES:
            if os.path.isdir(f"{source}/{name}") and not os.path.islink(f"{source}/{name}"):
                storage.copy_entry(source_fd, target_fd, name, AS_THEY_ARE, tick=tick)
        storage.sync(target_fd)


def _claim(layout: Layout, name: str) -> None:
    """Make the zone incomplete, unless a boot was faster.  Raises StateError."""
    zones.set_state(layout, name, State.INCOMPLETE)
    state = state_of(layout, name)
    if state.active:
        raise StateError("the zone is {state}", state=state.label)


def _set_zonepath(layout: Layout, name: str, path: str) -> None:
    """The deciding step of a move."""
    with config.edit_lock(layout):
        draft = config.Draft.open(layout, name)
        draft.set((), "zonepath", path)
        draft.save_locked()
    zones.update_entry(layout, name, zonepath=path)


def rename(layout: Layout, name: str, new_name: str, say: Say) -> None:
    """Give a zone another name; a zonepath in the default place goes with it.

    The caller holds the administration locks of both names.  Raises ZoneError, OSError.
    """
    with config.edit_lock(layout):
        entry = zones.read_entry(layout, name)
        moves = entry.zonepath == str(layout.zonepath(name))
        target = str(layout.zonepath(new_name)) if moves else entry.zonepath
        if moves and os.path.lexists(target):
            raise PlatformError("could not move zone to {path}: it exists already", path=target)
        record = {
            "verb": "rename",
            "new_name": new_name,
            "from": entry.zonepath,
            "to": target,
            "state": entry.state.label,
            "uuid": entry.uuid,
        }
        journal.begin(layout, name, record)
        if entry.state is State.INSTALLED:
            _claim(layout, name)
        _write_under_new_name(layout, entry, new_name, target)
        idranges.rename(layout, name, new_name)
        if moves and os.path.lexists(entry.zonepath):
            os.rename(entry.zonepath, target)
        layout.config(name).unlink()  # the deciding step
        files.sync_directory(layout.config(name).parent)
    recover(layout, name, say)


def _write_under_new_name(layout: Layout, entry: Entry, new_name: str, target: str) -> None:
    draft = config.Draft.open(layout, entry.zonename)
    renamed = config.Draft.new(layout, new_name, draft.text)
    renamed.set((), "zonename", new_name)
    if target != entry.zonepath and "zonepath" in draft.table:
        renamed.set((), "zonepath", target)
    renamed.zone()  # raises when it makes no sense under the new name
    # The entry first: a new name that is only configured would look like a zone that nothing belongs to.
    state = State.CONFIGURED if entry.state is State.CONFIGURED else State.INCOMPLETE
    zones.put_entry(layout, dataclasses.replace(entry, zonename=new_name, zonepath=target, state=state))
    files.write_atomic(layout.config(new_name), renamed.text)


def freeze(layout: Layout, name: str, say: Say) -> tuple[str, ...]:
    """Make an installed zone's root an origin that it shares with a clone; the layers of both.

    The caller holds the administration lock.  Raises ZoneError, OSError.
    """
    try:
        layers.freeze(layout, name, lambda: _claim(layout, name))
    finally:
        recover(layout, name, say)
    return zones.read_entry(layout, name).layers


def detach(layout: Layout, name: str, claim: Callable[[], None], say: Say) -> None:
    """Leave the manifest in an installed zone's zonepath, and have the zone configured.

    ``claim`` makes the zone incomplete.  The caller holds the administration lock.  Raises ZoneError, OSError.
    """
    entry = zones.read_entry(layout, name)
    manifest = detached.Manifest.of(layout, name)
    journal.begin(layout, name, {"verb": "detach", "from": entry.zonepath, "uuid": entry.uuid})
    try:
        detached.write(entry.zonepath, manifest)
        claim()
    finally:
        recover(layout, name, say)


def forget(layout: Layout, name: str) -> None:
    """The zone is configured again: nothing on the disk is its own, and its ids are free for others."""
    # The state last: whoever dies before it leaves a zone that can be uninstalled, which releases once more.
    layers.release(layout, name)
    zones.update_entry(layout, name, uid_base=None, idmap_marker=None)
    idranges.release(layout, name)
    zones.set_state(layout, name, State.CONFIGURED)


# -- mending ----------------------------------------------------------------------------------------------------


def recover(layout: Layout, name: str, say: Say) -> None:
    """Finish or undo what a journal says; nothing happens without one.  Raises ZoneError, OSError."""
    record = journal.pending(layout, name)
    if record is None:
        return
    if record["verb"] == "move":
        _recover_move(layout, record, say)
    elif record["verb"] == "rename":
        _recover_rename(layout, record)
    elif record["verb"] == "freeze" and zones.exists(layout, name):
        layers.recover(layout, name, record["origin"])
        _restore_state(layout, name, State.INSTALLED, record["uuid"])
    elif record["verb"] == "detach" and zones.exists(layout, name):
        _recover_detach(layout, record)
    journal.end(layout, record["zonename"])


def _recover_move(layout: Layout, record: dict[str, Any], say: Say) -> None:
    name, source, target = record["zonename"], record["from"], record["to"]
    if not zones.exists(layout, name):
        return
    entry = zones.read_entry(layout, name)
    if entry.zonepath == target:
        zones.update_entry(layout, name, zonepath=target)
        if os.path.lexists(source):
            say(message("Cleaning up zonepath {source}...", source=source))
            zonepath.cleanup(source, say)
    elif os.path.lexists(f"{target}/root") and not os.path.lexists(source):
        os.rename(target, source)
        _keep_folder(record, target)
    else:
        _empty(target)
        if record["made"] and os.path.isdir(target) and not os.listdir(target):
            os.rmdir(target)
        else:
            _keep_folder(record, target)
    _restore_state(layout, name, State.INSTALLED, record["uuid"])


def _empty(target: str) -> None:
    """Take away what was copied; the folder itself may be somebody else's."""
    if not os.path.lexists(target):
        return
    with storage.folder(target) as fd:
        for name in zonepath.STANDARD_ENTRIES:
            zonepath.remove(fd, name)


def _keep_folder(record: dict[str, Any], target: str) -> None:
    """An empty folder that was there before is there afterwards."""
    if not record["made"] and not os.path.lexists(target):
        os.mkdir(target, 0o700)


def _restore_state(layout: Layout, name: str, state: State, uuid: str) -> None:
    if zones.read_entry(layout, name).state is not state:
        zones.set_state(layout, name, state)
    zones.update_entry(layout, name, uuid=uuid)


def _recover_rename(layout: Layout, record: dict[str, Any]) -> None:
    name, new_name = record["zonename"], record["new_name"]
    state = State.of(record["state"])
    if layout.config(name).is_file():
        if (
            record["from"] != record["to"]
            and not os.path.lexists(record["from"])
            and os.path.lexists(record["to"])
        ):
            os.rename(record["to"], record["from"])
        idranges.rename(layout, new_name, name)
        layout.config(new_name).unlink(missing_ok=True)
        zones.forget_entry(layout, new_name)
        _restore_state(layout, name, state, record["uuid"])
        return
    zones.forget_entry(layout, name)
    _restore_state(layout, new_name, state, record["uuid"])
    _rename_log(layout, name, new_name)
    events.publish_best_effort(
        layout, {"type": "config", "zonename": new_name, "change": "renamed", "oldname": name}
    )


def _recover_detach(layout: Layout, record: dict[str, Any]) -> None:
    """Finished once the zone was incomplete, unless a boot was faster."""
    name = record["zonename"]
    state = zones.read_entry(layout, name).state
    detached.tidy(record["from"])
    if state is State.INCOMPLETE and not state_of(layout, name).active:
        forget(layout, name)
    elif state is not State.CONFIGURED:
        _restore_state(layout, name, State.INSTALLED, record["uuid"])
        detached.forget(record["from"])


def _rename_log(layout: Layout, name: str, new_name: str) -> None:
    """Its console's past goes with the zone; nothing depends on it."""
    if layout.zone_log(name).is_dir() and not layout.zone_log(new_name).exists():
        os.rename(layout.zone_log(name), layout.zone_log(new_name))
