"""Editing a zone's file: comments, order and layout of everything that is not changed survive.

The text is edited, not regenerated.  A value is replaced in its own statement by tomlkit; tables are added and
removed as blocks of lines, because a comment above a table belongs to that table and not to the one before it.
A save is refused when somebody else saved in between.  Whether the result is a good configuration is asked of
``model.zone`` before anything is written.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from zonemgr.errors import ConfigError, NoSuchZoneError
from zonemgr.model import network, schema
from zonemgr.model.zone import Zone
from zonemgr.store import entries, events, files, toml, zones
from zonemgr.store.locks import FileLock
from zonemgr.store.paths import Layout
from zonemgr.store.toml import KeyPath, Statement


class Draft:
    """A zone's file being edited in memory.  ``save`` is the only method that writes."""

    def __init__(self, layout: Layout, zonename: str, text: str, digest: str | None) -> None:
        self.layout = layout
        self.zonename = zonename
        self.text = text
        self._saved = text
        self._digest = digest  # of the file as it was read; None: there was no file

    @classmethod
    def open(cls, layout: Layout, zonename: str) -> Draft:
        """The zone's present file.  Raises NoSuchZoneError, and ConfigError for malformed text."""
        zones.check_name(zonename)
        content = files.read_bytes(layout.config(zonename))
        if content is None:
            raise NoSuchZoneError(zonename)
        toml.parse(content, str(layout.config(zonename)))
        return cls(layout, zonename, content.decode().replace("\r\n", "\n"), _digest(content))

    @classmethod
    def new(cls, layout: Layout, zonename: str, text: str = "") -> Draft:
        """A file that is not there yet.  Raises ConfigError for a bad name or one in use."""
        zones.check_name(zonename)
        if zones.exists(layout, zonename):
            raise ConfigError("Zone name already in use")
        return cls(layout, zonename, text, None)

    @classmethod
    def instead(cls, layout: Layout, zonename: str, text: str) -> Draft:
        """This text instead of what the zone's file says now, were that ever so broken."""
        content = files.read_bytes(layout.config(zonename))
        draft = cls(layout, zonename, "", None if content is None else _digest(content))
        draft.text = text
        return draft

    @property
    def changed(self) -> bool:
        """Whether there is something to save."""
        return self.text != self._saved or self._digest is None

    @property
    def table(self) -> dict[str, Any]:
        """The text as plain values."""
        return self._parsed()[0]

    def _parsed(self) -> tuple[dict[str, Any], toml.Lines]:
        return toml.parse(self.text.encode(), str(self.layout.config(self.zonename)))

    def zone(self) -> Zone:
        """The configuration that the text makes.  Raises ConfigError; the place is told while it is the file's."""
        table, lines = self._parsed()
        if not self.changed:
            return zones.from_table(self.layout, self.zonename, table, lines)
        path = str(self.layout.zonepath(self.zonename))
        return Zone.from_table(table, filename="", zonename=self.zonename, default_zonepath=path)

    def replace(self, text: str) -> None:
        """Take another text instead (``create``, ``revert``)."""
        self.text = text

    def revert(self) -> None:
        """Back to what was last read or saved."""
        self.text = self._saved

    def save(self) -> Zone:
        """Check and write.  Raises ConfigError when the configuration is wrong or was changed by somebody else."""
        with edit_lock(self.layout):
            return self.save_locked()

    def save_locked(self, *, addresses_checked: bool = False) -> Zone:
        """``save`` for a caller who holds the ``edit_lock``, and perhaps has checked the addresses of all zones."""
        zone = self.zone()
        if not addresses_checked:
            check_addresses(self.layout, zone)
        path = self._real_path()
        self._refuse_lost_update(path)
        files.make_directory(path.parent)
        content = self.text.encode()
        mode = path.stat().st_mode & 0o777 if self._digest is not None else 0o644
        files.write_atomic(path, content, mode)
        change = "created" if self._digest is None else "changed"
        self._digest, self._saved = _digest(content), self.text
        _tell(self.layout, self.zonename, change)
        return zone

    def _real_path(self) -> Path:
        """Where the content is: a link to a file kept elsewhere stays a link."""
        return Path(os.path.realpath(self.layout.config(self.zonename)))

    def _refuse_lost_update(self, path: Path) -> None:
        content = files.read_bytes(path)
        now = None if content is None else _digest(content)
        if now == self._digest:
            return
        if self._digest is None:
            raise ConfigError("Zone name already in use")
        what = "deleted" if now is None else "changed"
        raise ConfigError(
            "somebody else has {what} the configuration meanwhile; nothing is saved (look at it, then try again)",
            what=what,
        )

    # Edits.  A path names a table: () is the top level, ("capped-memory",) or ("fs", 0) a resource.

    def set(self, path: KeyPath, key: str, value: object) -> None:
        """Set one value; the table at ``path`` must be there."""
        found = self._owner((*path, key))
        if found is None:
            self._insert(path, key, value)
            return
        self._rewrite(found, lambda table: _put(table, (*path, key)[len(found.prefix) :], value))

    def clear(self, path: KeyPath, key: str) -> None:
        """Remove one value, if it is there."""
        found = self._owner((*path, key))
        if found is None:
            return
        if len(found.keys) == 1 and found.keys[0] == (*path, key):
            self._delete(found.start, found.end)
            return
        self._rewrite(found, lambda table: _drop(table, (*path, key)[len(found.prefix) :]))

    def add(self, kind: str, values: Mapping[str, object], *, single: bool) -> None:
        """Add a resource: a table, or one more of an array of tables, after the last of its kind."""
        present = toml.statements(self.text)
        inline = next((found for found in present if (kind,) in found.keys and not found.is_header), None)
        if inline is not None and not single:
            self._rewrite(inline, lambda table: _put(table, (kind, len(table[kind])), dict(values)))
            return
        block = [
            f"[{kind}]" if single else f"[[{kind}]]",
            *(_statement(key, item) for key, item in values.items()),
        ]
        self._insert_block(present, kind, block)

    def remove(self, kind: str, index: int | None) -> None:
        """Remove a resource with the comment above it; ``index`` is None for a kind that occurs once."""
        path: KeyPath = (kind,) if index is None else (kind, index)
        block = [found for found in toml.statements(self.text) if found.prefix[: len(path)] == path]
        if not block or not block[0].is_header:
            self._remove_inline(path)
            return
        lines = self.text.split("\n")
        start, end = block[0].start, block[-1].end
        while start > 0 and lines[start - 1].lstrip().startswith("#"):
            start -= 1
        while start > 0 and not lines[start - 1].strip():
            start -= 1
        self._delete(start, end)

    def _remove_inline(self, path: KeyPath) -> None:
        """A resource written as ``capped-cpu = { ncpus = 1 }``, ``capped-cpu.ncpus = 1`` or ``fs = [{ ... }]``."""
        for found in reversed(toml.statements(self.text)):
            if path[:1] not in found.keys:
                continue
            if len(path) == 1 or len(self.table[str(path[0])]) == 1:
                self._delete(found.start, found.end)
            else:
                self._rewrite(found, lambda table: _drop(table, path))

    def _owner(self, path: KeyPath) -> Statement | None:
        """The statement that sets the value at ``path``, possibly inside an inline table or array."""
        table: Any = self.table
        for key in path:
            if not _has(table, key):
                return None
            table = table[key]
        best: tuple[int, Statement] | None = None
        for found in toml.statements(self.text):
            if found.is_header:
                continue
            for key_path in found.keys:
                matches = path[: len(key_path)] == key_path
                if matches and (best is None or len(key_path) > best[0]):
                    best = (len(key_path), found)
        return best[1] if best else None

    def _rewrite(self, found: Statement, change: Callable[[Any], None]) -> None:
        import tomlkit  # only for edits

        lines = self.text.split("\n")
        document = tomlkit.parse("\n".join(lines[found.start : found.end]) + "\n")
        change(document)
        lines[found.start : found.end] = tomlkit.dumps(document).rstrip("\n").split("\n")
        self.text = "\n".join(lines)

    def _insert(self, path: KeyPath, key: str, value: object) -> None:
        """A new key after the last of its table."""
        present = toml.statements(self.text)
        own = [found for found in present if found.prefix == path]
        lines = self.text.split("\n")
        if not own and path:
            # The table is written inline or by dotted keys: one more value goes into the statement that has it.
            found = next(found for found in reversed(present) if _sets(found, path))
            self._rewrite(found, lambda table: _put(table, (*path, key)[len(found.prefix) :], value))
            return
        at = own[-1].end if own else _before_tables(lines, present)
        self._put_lines(at, [_statement(key, value)], blank_after=not own and bool(present))

    def _insert_block(self, present: list[Statement], kind: str, block: list[str]) -> None:
        same = [found for found in present if found.prefix[:1] == (kind,)]
        lines = self.text.split("\n")
        at = same[-1].end if same else len(self.text.rstrip("\n").split("\n"))
        if not self.text.strip():
            self.text = "\n".join(block) + "\n"
            return
        self.text = "\n".join([*lines[:at], "", *block, *lines[at:]])
        if not self.text.endswith("\n"):
            self.text += "\n"

    def _put_lines(self, at: int, new: list[str], *, blank_after: bool) -> None:
        lines = self.text.split("\n")
        self.text = "\n".join([*lines[:at], *new, *([""] if blank_after else []), *lines[at:]])
        if not self.text.endswith("\n"):
            self.text += "\n"

    def _delete(self, start: int, end: int) -> None:
        lines = self.text.split("\n")
        kept = lines[:start] + lines[end:]
        self.text = "\n".join(kept).lstrip("\n") if start == 0 else "\n".join(kept)


def _sets(found: Statement, path: KeyPath) -> bool:
    """Whether the statement writes (a part of) the table at ``path``."""
    return not found.is_header and any(
        path[: len(key)] == key or key[: len(path)] == path for key in found.keys
    )


def _before_tables(lines: list[str], present: list[Statement]) -> int:
    """Where the first top-level key goes in a file that has none: above the first table and its comment."""
    if not present:
        return len("\n".join(lines).rstrip("\n").split("\n")) if any(line.strip() for line in lines) else 0
    at = present[0].start
    while at > 0 and lines[at - 1].lstrip().startswith("#"):
        at -= 1
    return at


def _has(table: Any, key: str | int) -> bool:
    if isinstance(key, int):
        return isinstance(table, list) and key < len(table)
    return isinstance(table, dict) and key in table


def _put(table: Any, path: KeyPath, value: object) -> None:
    for key in path[:-1]:
        table = table[key]
    if isinstance(path[-1], int):
        table.append(value)
    else:
        table[path[-1]] = value


def _drop(table: Any, path: KeyPath) -> None:
    for key in path[:-1]:
        table = table[key]
    del table[path[-1]]


def _statement(key: str, value: object) -> str:
    import tomlkit

    return tomlkit.dumps({key: value}).rstrip("\n")


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def edit_lock(layout: Layout) -> FileLock:
    """Serialises saves of all zones of an instance: an address is looked for and taken in one go."""
    return FileLock(layout.lib / "state/.config.lock", busy="another configuration is being saved")


def delete(layout: Layout, zonename: str) -> None:
    """Remove the zone's file and its entry; what is below its zonepath is left alone."""
    with edit_lock(layout):
        delete_locked(layout, zonename)


def delete_locked(layout: Layout, zonename: str) -> None:
    """``delete`` for a caller who holds the ``edit_lock``."""
    if not zones.exists(layout, zonename):
        raise NoSuchZoneError(zonename)
    layout.config(zonename).unlink(missing_ok=True)
    zones.forget_entry(layout, zonename)
    _forget_run_folder(layout, zonename)
    _tell(layout, zonename, "deleted")


def _forget_run_folder(layout: Layout, zonename: str) -> None:
    """The empty shell of the zone's run-time files; one that a supervisor holds, or a ledger needs, stays."""
    folder = layout.zone_run(zonename)
    lock = FileLock(folder / "lock")
    if not folder.is_dir() or (folder / "ledger.jsonl").exists() or not lock.acquire(blocking=False):
        return
    try:
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        lock.release()


def _tell(layout: Layout, zonename: str, change: str) -> None:
    events.publish_best_effort(layout, {"type": "config", "zonename": zonename, "change": change})


def check_addresses(layout: Layout, zone: Zone) -> None:
    """Refuse an address or a forwarded port that another zone has, or an address of the default bridge.  Raises
    ConfigError."""
    if network.claims(zone):
        _check_claims(layout, zone, entries.claims(layout))


def check_address_set(layout: Layout, zones_of_set: Iterable[Zone], changed: Collection[str]) -> None:
    """``check_addresses`` for those named, in the set of all zones as it is to be.  Raises ConfigError."""
    everybody = list(zones_of_set)
    taken = owners(everybody)
    for zone in everybody:
        if zone.zonename in changed:
            _check_claims(layout, zone, taken)


def owners(some: Iterable[Zone]) -> dict[str, set[str]]:
    """Which zones claim what."""
    found: dict[str, set[str]] = {}
    for zone in some:
        for claim in network.claims(zone):
            found.setdefault(claim, set()).add(zone.zonename)
    return found


def _check_claims(layout: Layout, zone: Zone, taken: Mapping[str, set[str]]) -> None:
    from zonemgr.store import settings

    mine = network.claims(zone)
    wanted = settings.load(layout)
    for address in wanted.bridge_address:
        bare = address.partition("/")[0]
        if bare in mine and any(link.anet == wanted.bridge for link in zone.net):
            raise ConfigError(
                "net: {address} is the address of the bridge {bridge}", address=bare, bridge=wanted.bridge
            )
    for claim in sorted(mine):
        for other in sorted(_rivals(claim, taken) - {zone.zonename}):
            if network.is_port(claim):
                what = network.describe_claim(claim)
                raise ConfigError("forward: {what} leads to zone '{other}'", what=what, other=other)
            raise ConfigError("net: {address} is configured in zone '{other}' too", address=claim, other=other)


def _rivals(claim: str, taken: Mapping[str, set[str]]) -> set[str]:
    """The zones whose claims collide with this one."""
    if not network.is_port(claim):
        return taken.get(claim, set())
    return {name for other, names in taken.items() if network.collide(claim, other) for name in names}


def free_addresses(layout: Layout, zonename: str) -> tuple[list[str], list[str]]:
    """(addresses with prefix lengths, routers) for a new link on the default bridge: in each of the bridge's networks
    the lowest that no other zone has.  Raises ConfigError when a network is full."""
    import ipaddress

    from zonemgr.store import settings

    claimed = entries.claims(layout).items()
    others = [claim for claim, names in claimed if names - {zonename} and not network.is_port(claim)]
    taken = set(map(ipaddress.ip_address, others))
    found: list[str] = []
    routers: list[str] = []
    wanted = settings.load(layout)
    for text in wanted.bridge_address:
        router = ipaddress.ip_interface(text)
        hosts = _pool(router.network, wanted.address_pool)
        free = next((host for host in hosts if host != router.ip and host not in taken), None)
        if free is None:
            raise ConfigError(
                "no address is left in {network} (bridge-address in {file} may be a larger network)",
                network=router.network,
                file=layout.settings,
            )
        found.append(f"{free}/{router.network.prefixlen}")
        routers.append(str(router.ip))
    return found, routers


def _pool(net: Any, ranges: tuple[str, ...]) -> Iterator[Any]:
    """The addresses of a net that zones may get: all of its hosts, or those in its ranges of the pool."""
    import ipaddress

    mine = [bounds for text in ranges if (bounds := _bounds(text))[0].version == net.version]
    if not mine:
        yield from net.hosts()
        return
    for first, last in mine:
        low = max(int(first), int(net.net_address) + 1)
        high = min(int(last), int(net.broadcast_address) - (net.version == 4))
        yield from (ipaddress.ip_address(number) for number in range(low, high + 1))


def _bounds(text: str) -> tuple[Any, Any]:
    import ipaddress

    if "-" in text:
        first, _, last = text.partition("-")
        return ipaddress.ip_address(first), ipaddress.ip_address(last)
    network = ipaddress.ip_network(text)
    return network.network_address, network.broadcast_address


def new_text(layout: Layout, zonename: str, *, brand: str, net: bool) -> str:
    """A new zone's file.  With ``net``: one link on the default bridge.  The caller holds the ``edit_lock``."""
    from zonemgr.store import settings

    text = (
        f"# Zone {zonename}.  `zonemgr config {zonename}` changes this file, and so may you;"
        " comments are kept.\n"
        + _statement("zonename", zonename)
        + "\n"
        + _statement("zonepath", str(layout.zonepath(zonename)))
        + "\n"
        + _statement("brand", brand)
        + "\nautoboot = false\n"
    )
    if not net:
        return text
    found, routers = free_addresses(layout, zonename)
    link = {"anet": settings.load(layout).bridge, "address": found, "defrouter": routers}
    lines = [_statement(key, value) for key, value in link.items()]
    return "\n".join([text, "# A link of its own on the host's bridge.", "[[net]]", *lines]) + "\n"


def text_from_template(layout: Layout, zonename: str, template: str) -> str:
    """A new zone's file from ``templates/TEMPLATE.toml`` or from another zone's file.  Raises ConfigError.

    What only one zone can have is not taken over: name, path, host name, host id; a link on the default bridge gets
    addresses of its own, any other link of a zone loses its own.
    """
    path = layout.etc / "templates" / f"{template}.toml"
    source = files.read_bytes(path) if _is_plain(template) else None
    is_zone = source is None
    if source is None:
        path = layout.config(template)
        source = files.read_bytes(path) if _is_plain(template) else None
    if source is None:
        raise ConfigError("there is neither a template nor a zone named '{template}'", template=template)
    return _adapted(layout, zonename, source, path, is_zone)


DEFAULT_TEMPLATE: Final = "default"  # what a new zone begins with, where the administrator has written it


def has_template(layout: Layout, name: str) -> bool:
    """Whether there is a template of this name."""
    return (layout.etc / "templates" / f"{name}.toml").is_file()


def text_from_detached(layout: Layout, zonename: str, zonepath: str) -> str:
    """A new zone's file from what a detached zone has left in its zonepath.  Raises ConfigError."""
    from zonemgr.store import detached

    manifest = detached.read(zonepath)
    if manifest is None:
        raise ConfigError("{path} is not a detached zone", path=zonepath)
    text = _adapted(
        layout, zonename, manifest.configuration.encode(), detached.marker(zonepath), is_zone=False
    )
    draft = Draft(layout, zonename, text, None)
    draft.set((), "zonepath", zonepath)
    return draft.text


def text_from_zone(layout: Layout, zonename: str, source: str) -> str:
    """A new zone's file from another zone's, as ``text_from_template``.  Raises NoSuchZoneError, ConfigError."""
    path = layout.config(source)
    content = files.read_bytes(path)
    if content is None:
        raise NoSuchZoneError(source)
    return _adapted(layout, zonename, content, path, is_zone=True)


def _adapted(layout: Layout, zonename: str, source: bytes, path: Path, is_zone: bool) -> str:
    toml.parse(source, str(path))
    draft = Draft(layout, zonename, source.decode().replace("\r\n", "\n"), None)
    for key in ("zonename", "zonepath", *(("hostname", "hostid") if is_zone else ())):
        draft.clear((), key)
    draft.set((), "zonename", zonename)
    if is_zone:
        renew_addresses(draft)
    else:
        complete_addresses(draft)
    return draft.text


def _is_plain(name: str) -> bool:
    return "/" not in name and not name.startswith(".")


def complete_addresses(draft: Draft) -> None:
    """Addresses for the first link on the default bridge, if the template leaves them open."""
    from zonemgr.store import settings

    bridge = settings.load(draft.layout).bridge
    for index, link in enumerate(draft.table.get("net", [])):
        if link.get("anet", link.get("lower-link")) == bridge:
            if not link.keys() & {"address", "allowed-address", "defrouter"}:
                found, routers = free_addresses(draft.layout, draft.zonename)
                draft.set(("net", index), "address", found)
                draft.set(("net", index), "defrouter", routers)
            return


def renew_addresses(draft: Draft) -> None:
    """Addresses of its own for the first link on the default bridge; other links lose theirs."""
    from zonemgr.store import settings

    bridge = settings.load(draft.layout).bridge
    given = False
    for index, link in enumerate(draft.table.get("net", [])):
        for key in ("address", "allowed-address", "defrouter", "mac-address", "mac-addr"):
            draft.clear(("net", index), key)
        if link.get("anet", link.get("lower-link")) == bridge and not given:
            given = True
            found, routers = free_addresses(draft.layout, draft.zonename)
            draft.set(("net", index), "address", found)
            draft.set(("net", index), "defrouter", routers)
    for index in reversed(range(len(draft.table.get("forward", [])))):
        draft.remove("forward", index)  # a port of the host leads to one zone


def canonical(kind: schema.Resource, table: Mapping[str, Any]) -> dict[str, object]:
    """A resource's values as its checks make them, for comparison; wrong ones stay as they are."""
    result: dict[str, object] = {}
    for key, value in table.items():
        row = kind.property(key)
        if row is None:
            continue
        try:
            result[row.name] = row.check(value)
        except ValueError:
            result[row.name] = value
    return result
