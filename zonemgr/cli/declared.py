"""A set of zones declared in a folder: compared with what is configured, shown as a plan, and saved zone by zone.

Nothing is written before every file was found good and the set as a whole possible (no address twice, no brand
missing, nothing frozen changed).  What was shown is what is done: when somebody edits in between, nothing is.
"""

from __future__ import annotations

import enum
import os
import signal
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from zonemgr.cli.output import Session
from zonemgr.cli.scope import FROZEN, check_zone, require_write_access
from zonemgr.errors import ConfigError, Exit, PlatformError, StateError, ZoneError, message
from zonemgr.model import changes
from zonemgr.model.grid import name_check
from zonemgr.model.states import State
from zonemgr.model.zone import Zone
from zonemgr.store import config as store
from zonemgr.store import files, idranges, observe, toml, zones
from zonemgr.store.config import Draft
from zonemgr.store.paths import Layout

SUFFIX: Final = ".toml"
FILE_MAX: Final = 1 << 20


class Action(enum.Enum):
    """What becomes of a zone."""

    CREATE = "create"
    CHANGE = "change"
    DELETE = "delete"
    KEEP = "keep"


@dataclass(frozen=True, slots=True)
class Difference:
    """One property or resource: ``old`` or ``new`` is None where there is none."""

    what: str
    old: Any
    new: Any
    when: str  # it takes effect, in a zone that runs

    def describe(self) -> str:
        if self.old is None:
            return f"{self.what}: {_shown(self.new)}"
        if self.new is None:
            return f"{self.what}: removed"
        return f"{self.what}: {_shown(self.old)} -> {_shown(self.new)}"


@dataclass(frozen=True, slots=True)
class Item:
    """One zone of the plan; ``text`` is the file's."""

    zonename: str
    action: Action
    differences: tuple[Difference, ...] = ()
    running: bool = False
    text: str = ""

    def lines(self) -> Iterator[str]:
        running = self.running and self.action is Action.CHANGE
        note = message(
            " (it is running: 'apply {zonename}' or its next boot brings it there)", zonename=self.zonename
        )
        yield f"{self.action.value} {self.zonename}{note if running else ''}"
        for difference in self.differences:
            yield f"    {difference.describe()}"

    def to_json(self) -> dict[str, Any]:
        found = [
            {"property": part.what, "old": part.old, "new": part.new, "when": part.when}
            for part in self.differences
        ]
        return {
            "zonename": self.zonename,
            "action": self.action.value,
            "running": self.running,
            "changes": found,
        }


def run(session: Session, folder: str, *, dry_run: bool, delete: bool, force: bool) -> int:
    """All of ``apply -f``; the exit status.  Raises ZoneError when the set as a whole is refused."""
    wanted = read(session.layout, Path(folder))
    items = plan(session.layout, wanted, delete=delete)
    _ask_brands(session, wanted, items)
    changing = [item for item in items if item.action is not Action.KEEP]
    if session.json:
        if dry_run:
            session.emit(_report(items, {}))
    else:
        for line in _summary(items):
            session.data(line)
    if dry_run or not changing:
        if session.json and not dry_run:
            session.emit(_report(items, {}))
        return Exit.OK
    require_write_access(session.layout, "configure")
    session.confirm("Apply these changes", force=force)
    with store.edit_lock(session.layout):
        if plan(session.layout, read(session.layout, Path(folder)), delete=delete) != items:
            raise ConfigError("somebody else has changed something meanwhile; nothing is done (look again)")
        outcomes = _carry_out(session, changing)
    if session.json:
        session.emit(_report(items, outcomes))
    return Exit.OK if not any(outcomes.values()) else Exit.ERROR


def _report(items: Sequence[Item], outcomes: Mapping[str, str | None]) -> dict[str, Any]:
    """``error`` is None for what was done, and there only when something was tried."""
    found = []
    for item in items:
        tried = {"error": outcomes[item.zonename]} if item.zonename in outcomes else {}
        found.append({**item.to_json(), **tried})
    return {"applied": bool(outcomes), "zones": found}


def _summary(items: Sequence[Item]) -> Iterator[str]:
    for item in items:
        yield from item.lines()
    counts = [(action, sum(item.action is action for item in items)) for action in Action]
    yield ", ".join(f"{count} to {action.value}" for action, count in counts if count) or "no zones"


# -- the set ----------------------------------------------------------------------------------------------------


def read(layout: Layout, folder: Path) -> dict[str, tuple[Zone, str]]:
    """The configuration and the text of each file.  Raises ConfigError with the faults of all of them."""
    wanted: dict[str, tuple[Zone, str]] = {}
    faults: list[ZoneError] = []
    for path in _files(folder):
        name = path.name.removesuffix(SUFFIX)
        try:
            name_check("apply", name)
            zones.check_name(name)
            wanted[name] = _declared(layout, name, path)
        except ZoneError as error:
            text = error.text if error.text.startswith(str(path)) else f"{path}: {error.text}"
            faults.append(ConfigError("{text}", text=text))
    _raise_all(faults)
    return wanted


def _files(folder: Path) -> list[Path]:
    try:
        if not folder.is_dir():
            if folder.name.endswith(SUFFIX) and folder.exists():
                return [folder]
            raise ConfigError("{folder}: neither a folder nor a zone's file (NAME.toml)", folder=folder)
        return sorted(path for path in folder.iterdir() if path.name.endswith(SUFFIX) and path.name[0] != ".")
    except OSError as error:
        raise ConfigError("cannot read {folder}: {why}", folder=folder, why=error.strerror) from error


def _declared(layout: Layout, name: str, path: Path) -> tuple[Zone, str]:
    content = _content(path)
    table, lines = toml.parse(content, str(path))
    zone = Zone.from_table(
        table, filename=str(path), zonename=name, default_zonepath=str(layout.zonepath(name)), lines=lines
    )
    return zone, content.decode().replace("\r\n", "\n")


def _content(path: Path) -> bytes:
    """A plain file's content: no pipe to wait for, no device, nothing endless."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ConfigError("{path}: not a plain file", path=path)
            data = file.read(FILE_MAX + 1)
    except OSError as error:
        raise ConfigError("{path}: cannot be read: {why}", path=path, why=error.strerror) from error
    if len(data) > FILE_MAX:
        raise ConfigError("{path}: too large to be a zone's configuration", path=path)
    return data


# -- the plan ---------------------------------------------------------------------------------------------------


def plan(layout: Layout, wanted: Mapping[str, tuple[Zone, str]], *, delete: bool) -> list[Item]:
    """What is to be done, by name.  Raises ZoneError with everything that speaks against it."""
    items: list[Item] = []
    faults: list[ZoneError] = []
    present = set(zones.names(layout))
    for name in sorted({*wanted, *(present if delete else ())}):
        try:
            if name not in wanted:
                items.append(_deletion(layout, name))
                continue
            items.append(_item(layout, name, *wanted[name], exists=name in present))
        except ZoneError as error:
            faults.append(StateError("zone '{name}': {why}", name=name, why=error.text))
    gone = {item.zonename for item in items if item.action is Action.DELETE}
    result = {name: zone for name, (zone, _text) in wanted.items()}
    for name in present - set(result) - gone:
        try:
            result[name] = zones.load(layout, name)
        except ZoneError:
            continue  # a broken file is no reason to keep the others from working
    try:
        store.check_address_set(layout, result.values(), set(wanted))
    except ZoneError as error:
        faults.append(error)
    _raise_all(faults)
    return items


def _ask_brands(session: Session, wanted: Mapping[str, tuple[Zone, str]], items: Sequence[Item]) -> None:
    """Whether each brand is there and agrees.  Raises ZoneError with everything that they say."""
    faults: list[ZoneError] = []
    for item in items:
        if item.action in (Action.CREATE, Action.CHANGE):
            try:
                check_zone(session, wanted[item.zonename][0])
            except ZoneError as error:
                faults.append(StateError("zone '{name}': {why}", name=item.zonename, why=error.text))
    _raise_all(faults)


def _item(layout: Layout, name: str, zone: Zone, text: str, *, exists: bool) -> Item:
    if not exists:
        given = differences(Zone(name, str(layout.zonepath(name))), zone)
        return Item(name, Action.CREATE, given, text=text)
    seen = observe.observe(layout, name)
    before = _present(layout, name)
    found = differences(before or Zone(name, str(layout.zonepath(name))), zone)
    frozen = [part.what for part in found if part.what in FROZEN]
    entry = zones.read_entry(layout, name)
    if frozen and entry.state is not State.CONFIGURED:
        how = "already installed" if entry.state >= State.INSTALLED else "is incomplete"
        raise ConfigError("Zone {zone} {how}; set {name} not allowed.", zone=name, how=how, name=frozen[0])
    same = text == (files.read_bytes(layout.config(name)) or b"").decode(errors="replace").replace(
        "\r\n", "\n"
    )
    action = Action.KEEP if same or not (found or before is None) else Action.CHANGE
    return Item(name, action, found, seen.state.active, text)


def _present(layout: Layout, name: str) -> Zone | None:
    """The present configuration; None when its file is broken or gone, which the new one then repairs."""
    try:
        return zones.load(layout, name)
    except ZoneError:
        return None


def _deletion(layout: Layout, name: str) -> Item:
    state = observe.state_of(layout, name)
    if state is not State.CONFIGURED:
        raise StateError("is {state}, and so is not deleted (uninstall it first)", state=state.label)
    return Item(name, Action.DELETE)


def differences(old: Zone, new: Zone) -> tuple[Difference, ...]:
    """What differs between two configurations, in the order of the schema."""
    found = (change for change in changes.between(old, new) if (change.kind, change.name) != ("", "zonename"))
    return tuple(
        Difference(change.label, _plain(change.old), _plain(change.new), change.when.value)
        for change in found
    )


def _plain(value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value if value is None or isinstance(value, (bool, int, float)) else str(value)


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return "[" + ", ".join(map(_shown, value)) + "]"
    if isinstance(value, dict):
        return ", ".join(f"{key}={_shown(item)}" for key, item in value.items())
    return '""' if value == "" else str(value)


# -- doing it ---------------------------------------------------------------------------------------------------


def _carry_out(session: Session, items: Sequence[Item]) -> dict[str, str | None]:
    """What became of each zone: None, or why not.  The caller holds the edit lock."""
    outcomes: dict[str, str | None] = {}
    try:
        for item in items:
            with _uninterrupted():
                outcomes[item.zonename] = _one(session, item)
    except KeyboardInterrupt:
        done = sum(error is None for error in outcomes.values())
        session.message(
            message("interrupted: {done} of {all} zones are as declared", done=done, all=len(items))
        )
        raise
    return outcomes


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C waits until one zone is done, so that each is either as declared or as it was."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _one(session: Session, item: Item) -> str | None:
    layout, name = session.layout, item.zonename
    try:
        if item.action is Action.DELETE:
            has_ids = zones.read_entry(layout, name).uid_base is not None
            store.delete_locked(layout, name)
            if has_ids:
                idranges.release(layout, name)
            return None
        if item.action is Action.CREATE:
            draft = Draft.new(layout, name, item.text)
        else:
            draft = Draft.instead(layout, name, item.text)
        draft.save_locked(addresses_checked=True)
    except (ZoneError, OSError) as error:
        problem = error if isinstance(error, ZoneError) else PlatformError("{why}", why=error)
        session.report(problem, name)
        return problem.text
    return None


def _raise_all(faults: Sequence[ZoneError]) -> None:
    """One error with all of them: whoever repairs a set of files wants to see every fault at once."""
    if not faults:
        return
    first = type(faults[0])("{text}", text=faults[0].text)
    for fault in faults[1:]:
        first.add_note(fault.text)
    raise first
