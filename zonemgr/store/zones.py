"""The zones of an instance: their configuration files and their index entries.

An entry holds what the configuration does not: the state on disk (configured, incomplete, installed), the uuid
and the id range, and enough (brand, zonepath) to list a zone whose file somebody has broken.  Files are read,
never edited here; ``config`` edits.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path

from zonemgr.errors import ConfigError, InternalError, NoSuchZoneError, PlatformError
from zonemgr.model import checks, network
from zonemgr.model.states import State
from zonemgr.model.zone import Zone
from zonemgr.store import events, files, toml
from zonemgr.store.locks import FileLock
from zonemgr.store.paths import Layout

ENTRY_VERSION = 1


@dataclass(frozen=True, slots=True)
class Entry:
    """A zone's line in the index.  ``idmap_marker`` says how its root is shifted (None: not at all)."""

    zonename: str
    state: State = State.CONFIGURED
    uuid: str = ""
    uid_base: int | None = None
    brand: str = ""
    zonepath: str = ""
    ip_type: str = "exclusive"
    idmap_marker: str | None = None
    layers: tuple[str, ...] = ()  # the frozen origins that its root lies on, the uppermost first
    label: str = ""  # of the configuration; not stored
    claims: tuple[str, ...] = ()  # likewise: addresses and ports that only one zone may have


def check_name(name: str) -> None:
    """Refuse what cannot be a zone's name.  Raises ConfigError."""
    try:
        checks.zone_name(name)
    except checks.Refused as refused:
        raise ConfigError("Bogus zone name: {why}", why=refused) from None


def names(layout: Layout) -> list[str]:
    """All configured zones, sorted; also those whose entry says there is something on disk but whose file is gone."""
    configured = _stems(layout.config("x").parent, ".toml")
    indexed = _stems(layout.state("x").parent, ".json")
    lost = [name for name in indexed - configured if _has_something(layout, name)]
    return sorted([*configured, *lost])


def _stems(folder: os.PathLike[str], suffix: str) -> set[str]:
    try:
        found = os.listdir(folder)
    except FileNotFoundError:
        return set()
    except OSError as error:
        raise PlatformError("cannot read {path}: {why}", path=folder, why=error.strerror) from error
    stems = (name.removesuffix(suffix) for name in found if name.endswith(suffix))
    return {stem for stem in stems if _is_name(stem)}


def _is_name(stem: str) -> bool:
    try:
        checks.zone_name(stem)
    except checks.Refused:
        return False
    return True


def _has_something(layout: Layout, name: str) -> bool:
    try:
        return _stored(layout, name).state is not State.CONFIGURED
    except PlatformError:
        return True


def exists(layout: Layout, name: str) -> bool:
    """Whether a zone of this name is configured (or was, and still has files)."""
    return _is_name(name) and (
        layout.config(name).exists() or (layout.state(name).exists() and _has_something(layout, name))
    )


def load(layout: Layout, name: str) -> Zone:
    """The zone's configuration.  Raises NoSuchZoneError, PlatformError, and ConfigError with file, line and key."""
    if not _is_name(name):
        raise NoSuchZoneError(name)
    path = layout.config(name)
    before = _stamp(path)
    read = _read.get(path)
    if read is not None and read[0] == before:
        return read[1]
    found = toml.read(path)
    if found is None:
        raise NoSuchZoneError(name)
    zone = from_table(layout, name, *found)
    if before is not None and before == _stamp(path):
        _read.clear()  # a process asks for one zone again and again, or for each zone once
        _read[path] = before, zone
    return zone


_read: dict[Path, tuple[tuple[int, int, int], Zone]] = {}  # the last configuration that was read; it is immutable


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """What changes with the file's content: files change by rename, and an editor changes the time."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def from_table(layout: Layout, name: str, table: dict[str, object], lines: toml.Lines) -> Zone:
    """The configuration in a table read from the zone's file (or about to be written to it)."""
    zone = Zone.from_table(
        table,
        filename=str(layout.config(name)),
        zonename=name,
        default_zonepath=str(layout.zonepath(name)),
        lines=lines,
    )
    return _seen_from_here(layout, zone, "zonepath" in table) if layout.alternate else zone


def _seen_from_here(layout: Layout, zone: Zone, names_zonepath: bool) -> Zone:
    """A zone of an alternate root: its paths begin there (reference, sections 0.1 and 3.3).

    Whoever wrote the configuration is not this system's administrator: devices and privileges of ours it cannot grant.
    """
    binds = tuple(
        dataclasses.replace(fs, special=f"{layout.root}{fs.special}")
        for fs in zone.fs
        if fs.type in ("bind", "lofs")
    )
    zonepath = f"{layout.root}{zone.zonepath}" if names_zonepath else zone.zonepath
    return dataclasses.replace(zone, fs=binds, zonepath=zonepath, privileged=False, device=(), limitpriv="")


def read_entry(layout: Layout, name: str) -> Entry:
    """The zone's index entry; brand and zonepath come from the configuration while that can be read.

    Raises NoSuchZoneError, and PlatformError for a damaged entry.
    """
    return configured(layout, recorded(layout, name))


def configured(layout: Layout, entry: Entry) -> Entry:
    """The entry with what the zone's configuration says, as far as that can be read."""
    try:
        zone = load(layout, entry.zonename)
    except (ConfigError, NoSuchZoneError, PlatformError):
        return entry
    return dataclasses.replace(
        entry,
        brand=zone.brand,
        zonepath=zone.zonepath,
        ip_type=zone.ip_type,
        label=zone.label,
        claims=network.claims(zone),
    )


def damaged(layout: Layout, name: str) -> Entry:
    """What is known of a zone whose record on disk cannot be read: something of it may be there."""
    return configured(layout, Entry(name, state=State.INCOMPLETE))


def recorded(layout: Layout, name: str) -> Entry:
    """The entry as it is on disk: brand, zonepath and the like may have changed in the configuration since.

    Raises as ``read_entry`` does.
    """
    if not exists(layout, name):
        raise NoSuchZoneError(name)
    return _stored(layout, name)


def _stored(layout: Layout, name: str) -> Entry:
    path = layout.state(name)
    table = files.read_json(path)
    if table is None:
        return Entry(name)
    before = layout.root if layout.alternate else ""
    try:
        state = State.of(table["state"])
        base = table.get("uid_base")
        return Entry(
            zonename=name,
            state=state,
            uuid=str(table.get("uuid", "")),
            uid_base=None if base is None else int(base),
            brand=str(table.get("brand", "")),
            zonepath=f"{before}{table.get('zonepath', '')}",
            ip_type=str(table.get("ip_type", "exclusive")),
            idmap_marker=table.get("idmap_marker"),
            layers=tuple(f"{before}{layer}" for layer in table.get("layers", ())),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise PlatformError("{path} is damaged: {why!r}", path=path, why=error) from error


def index_lock(layout: Layout) -> FileLock:
    """The lock that serialises changes of index entries; held for moments only."""
    return FileLock(layout.lib / "state/.lock", busy="Locking index file: another process holds it")


def update_entry(layout: Layout, name: str, **changes: object) -> Entry:
    """Change fields of the entry (not the state: see ``set_state``) and write it."""
    if "state" in changes:
        raise InternalError("update_entry does not change states")
    with index_lock(layout):
        entry = dataclasses.replace(read_entry(layout, name), **changes)  # type: ignore[arg-type]
        _write(layout, entry)
    return entry


def put_entry(layout: Layout, entry: Entry) -> None:
    """Write a whole entry, of a zone that is coming under this name."""
    with index_lock(layout):
        _write(layout, entry)


def set_state(layout: Layout, name: str, state: State) -> Entry:
    """Write the zone's state on disk.  The uuid follows the reference, section 6.6: none while configured, a new one
    with every incomplete, kept from there to installed."""
    if state.active:
        raise InternalError("state {state} is never on disk", state=state.label)
    with index_lock(layout):
        before = read_entry(layout, name)
        entry = dataclasses.replace(before, state=state, uuid=_uuid_after(before, state))
        _write(layout, entry)
    if before.state is not state:
        record = {"type": "state", "zonename": name, "oldstate": before.state.label, "newstate": state.label}
        events.publish_best_effort(layout, record)
    return entry


def _uuid_after(entry: Entry, state: State) -> str:
    if state is State.CONFIGURED:
        return ""
    if state is State.INSTALLED and entry.uuid:
        return entry.uuid
    return _new_uuid()


def _new_uuid() -> str:
    """A random (version 4) uuid; the uuid module would cost more to import than these lines."""
    raw = bytearray(os.urandom(16))
    raw[6] = raw[6] & 0x0F | 0x40
    raw[8] = raw[8] & 0x3F | 0x80
    text = raw.hex()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def _write(layout: Layout, entry: Entry) -> None:
    if layout.alternate:
        raise InternalError("nothing is recorded in an alternate root")
    files.make_directory(layout.state(entry.zonename).parent)
    table = {"version": ENTRY_VERSION, **dataclasses.asdict(entry), "state": entry.state.label}
    del table["label"], table["claims"]
    files.write_json(layout.state(entry.zonename), table)


def forget_entry(layout: Layout, name: str) -> None:
    """Remove the entry of a zone that is being deleted."""
    with index_lock(layout):
        layout.state(name).unlink(missing_ok=True)
