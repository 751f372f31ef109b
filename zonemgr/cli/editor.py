"""zonecfg's commands, one after the other, on a copy of the zone's file that is saved when all went well.

Everything here is refused or done as a whole: the first error ends the run and nothing is saved.  The supervisor is
not asked, a running zone keeps its snapshot.  The words are ``configtext``'s, the text of the file is ``store``'s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from zonemgr.cli import confighelp, configtext, controls
from zonemgr.cli.confighelp import help_lines
from zonemgr.cli.configtext import Line, assignments
from zonemgr.cli.output import Session
from zonemgr.cli.scope import (
    FROZEN,
    Scope,
    check_brand,
    check_zone,
    global_row,
    kind_named,
    none,
    options_of,
    property_value,
    require_write_access,
)
from zonemgr.errors import ConfigError, NoSuchZoneError, UsageError, ZoneError, message
from zonemgr.model import schema
from zonemgr.model.checks import Refused
from zonemgr.model.grid import name_check
from zonemgr.model.schema import Form, Property, Resource
from zonemgr.model.states import State
from zonemgr.model.zone import Zone, read_resource
from zonemgr.store import config as store
from zonemgr.store import zones
from zonemgr.store.config import Draft

NOT_CLEARABLE: Final = ("zonename", "zonepath", "brand")


class Editor:
    """One run of ``config``: a draft, the scope, and the commands."""

    def __init__(self, session: Session, zonename: str) -> None:
        self.session = session
        self.layout = session.layout
        self.zonename = zonename
        self.scope: Scope | None = None
        self.draft: Draft | None = None
        try:
            self.draft = Draft.open(self.layout, zonename)
        except NoSuchZoneError:
            if zones.exists(self.layout, zonename):
                raise ConfigError(
                    "the configuration file {path} is gone", path=self.layout.config(zonename)
                ) from None
        self.done = False
        self.new_name: str | None = None  # what the zone is called once this is saved

    @property
    def changed(self) -> bool:
        """Whether there is something to save."""
        return self.new_name is not None or (self.draft is not None and self.draft.changed)

    @property
    def state(self) -> State:
        """The zone's state on disk."""
        if not zones.exists(self.layout, self.zonename):
            return State.CONFIGURED
        return zones.read_entry(self.layout, self.zonename).state

    def edited(self) -> Draft:
        """The draft.  Raises NoSuchZoneError while there is none."""
        if self.draft is None:
            error = NoSuchZoneError(self.zonename)
            error.add_note("Use 'create' to begin configuring a new zone.")
            raise error
        return self.draft

    def run(self, lines: Sequence[Line]) -> None:
        """Run the commands, then save what they changed."""
        for line in lines:
            if self.done:
                break
            try:
                self.command(line.words)
            except ZoneError as error:
                if line.number:
                    error.args = (message("line {line}: {text}", line=line.number, text=error.args[0]),)
                raise
        if self.scope is not None:
            raise ConfigError("resource specification incomplete ('end' ends it); nothing is saved")
        if self.changed:
            self.commit(())

    def command(self, words: Sequence[str]) -> None:
        name, rest = words[0], words[1:]
        method = COMMANDS.get(name)
        if method is None:
            hint = schema.did_you_mean(name, COMMANDS)
            hint = hint or message(" (there are {names})", names=", ".join(COMMANDS))
            raise UsageError("no such command: {name}{hint}", name=name, hint=hint)
        method(self, rest)

    def global_only(self, command: str) -> None:
        if self.scope is not None:
            raise UsageError(
                "{command} is not for use inside a resource ('end' or 'cancel' leave it)", command=command
            )

    # Whole configurations.

    def create(self, words: Sequence[str]) -> None:
        self.global_only("create")
        options, rest = options_of(words, flags="FbX", valued="ta")
        if rest or len(options.keys() - {"F"}) > 1:
            raise usage("create")
        force = "F" in options
        require_write_access(self.layout, "create")
        if self.draft is not None and self.draft.changed and not force:
            raise ConfigError("Zone {name} already exists; -F overwrites it", name=self.zonename)
        if self.draft is not None:
            if self.state >= State.INSTALLED:
                raise ConfigError("Zone {name} already installed; create not allowed.", name=self.zonename)
            if not force:
                raise ConfigError("Zone {name} already exists; -F overwrites it", name=self.zonename)
            self.session.note(message("Zone {name} already exists; overwriting.", name=self.zonename))
        text = self._initial_text(options)
        if self.draft is None:
            self.draft = Draft.new(self.layout, self.zonename, text)
        else:
            self.draft.replace(text)

    def _initial_text(self, options: Mapping[str, str]) -> str:
        from zonemgr.store import settings

        layout = self.layout
        if "t" in options:
            return store.text_from_template(layout, self.zonename, options["t"])
        if "a" in options:
            return store.text_from_detached(layout, self.zonename, options["a"])
        blank = options.keys() & {"b", "X"}
        if not blank and store.has_template(layout, store.DEFAULT_TEMPLATE):
            return store.text_from_template(layout, self.zonename, store.DEFAULT_TEMPLATE)
        brand = settings.load(layout).default_brand
        return store.new_text(layout, self.zonename, brand=brand, net=not blank)

    def delete(self, words: Sequence[str]) -> None:
        self.global_only("delete")
        options, rest = options_of(words, flags="F")
        if rest:
            raise usage("delete")
        from zonemgr.cli.delete import delete_zone

        self.edited()
        delete_zone(self.session, self.zonename, force="F" in options)
        self.draft = None
        self.done = True

    def verify(self, words: Sequence[str]) -> None:
        none(words, "verify")
        self.global_only("verify")
        zone = self.edited().zone()
        check_zone(self.session, zone)
        store.check_addresses(self.layout, zone)
        for name in zone.without_effect():
            self.session.note(message("WARNING: {name} has no effect yet", name=name), self.zonename)

    def commit(self, words: Sequence[str]) -> None:
        none(words, "commit")
        self.verify(())
        if self.changed:
            require_write_access(self.layout, "configure")
        if self.edited().changed:
            self.edited().save()
            if self.edited().zone().admin:
                from zonemgr.wire.start import delegate

                delegate(self.layout)
        if self.new_name is not None:
            from zonemgr.cli.move import rename_zone

            rename_zone(self.session, self.zonename, self.new_name)
            self.zonename, self.new_name = self.new_name, None
            self.draft = Draft.open(self.layout, self.zonename)

    def revert(self, words: Sequence[str]) -> None:
        options, rest = options_of(words, flags="F")
        if rest or options.keys() - {"F"}:
            raise usage("revert")
        self.global_only("revert")
        self.edited().revert()
        self.new_name = None

    def exit(self, words: Sequence[str]) -> None:
        options_of(words, flags="F")
        self.global_only("exit")
        self.done = True

    def info(self, words: Sequence[str]) -> None:
        zone = self.edited().zone()
        if self.session.json:
            self.session.emit(_json_part(zone, words))
            return
        for line in self.info_lines(words):
            self.session.data(line)

    def info_lines(self, words: Sequence[str]) -> list[str]:
        """What ``info`` shows, line by line."""
        zone = self.edited().zone()
        if self.scope is not None and not words:
            rows = ((row, self.scope.values.get(row.name)) for row in self.scope.kind.properties)
            values = [f"\t{row.name}: {_shown(value)}" for row, value in rows if value is not None]
            return [f"{self.scope.kind.name}:", *values]
        if not words:
            return configtext.info(zone)
        kind = schema.resource(words[0])
        if kind is None:
            return configtext.info_globals(zone, global_row(words[0]).name)
        chosen = self._indexes(kind, assignments(words[1:]))
        if words[1:] and not chosen:
            raise ConfigError("No such resource with that id")
        found = [read_resource(kind, item) for item in self._written(kind)]
        return [line for index in chosen for line in configtext.info_resource(kind, found[index])]

    def export(self, words: Sequence[str]) -> None:
        options, rest = options_of(words, valued="f")
        if rest:
            raise usage("export")
        self.global_only("export")
        lines = configtext.export(self.edited().zone(), str(self.layout.zonepath(self.zonename)))
        text = "\n".join(lines)
        if "f" not in options:
            self.session.emit(lines) if self.session.json else self.session.data(text)
            return
        try:
            Path(options["f"]).write_text(text + "\n")
        except OSError as error:
            raise ConfigError("cannot write {path}: {why}", path=options["f"], why=error.strerror) from None

    # Properties.

    def set(self, words: Sequence[str]) -> None:
        options, rest = options_of(words, flags="F")
        if not rest:
            raise usage("set")
        for name, text in assignments(rest).items():
            if self.scope is not None:
                row = self.scope.row(name)
                self.scope.values[row.name] = property_value(row, text)
            else:
                self._set_global(name, text, force="F" in options)

    def _set_global(self, name: str, text: str, *, force: bool) -> None:
        draft = self.edited()
        row = global_row(name)
        value = property_value(row, text)
        if row.name == "zonename":
            self._rename(str(value))
            return
        if not (force and row.name == "zonepath"):  # for whoever has moved the files by other means
            self._refuse_frozen(row.name, value)
        if row.name == "brand":
            check_brand(self.layout, str(value))
        controls.assign(draft, row, value)

    def _refuse_frozen(self, name: str, value: object) -> None:
        if name not in FROZEN or self.state is State.CONFIGURED:
            return
        if getattr(self.edited().zone(), name) != value:
            how = "already installed" if self.state >= State.INSTALLED else "is incomplete"
            raise ConfigError(
                "Zone {zone} {how}; set {name} not allowed.", zone=self.zonename, how=how, name=name
            )

    def _rename(self, new_name: str) -> None:
        """``set zonename``: a configuration that was never saved gets the name at once, a zone when it is saved."""
        if new_name == self.zonename:
            self.new_name = None
            return
        name_check("rename", new_name)
        if zones.exists(self.layout, new_name):
            raise ConfigError("Zone name already in use")
        if zones.exists(self.layout, self.zonename):
            self.new_name = new_name
            return
        draft = self.edited()
        renamed = Draft.new(self.layout, new_name, draft.text)
        if draft.table.get("zonepath") == str(self.layout.zonepath(self.zonename)):
            renamed.set((), "zonepath", str(self.layout.zonepath(new_name)))
        renamed.set((), "zonename", new_name)
        self.zonename, self.draft = new_name, renamed

    def clear(self, words: Sequence[str]) -> None:
        if len(words) != 1:
            raise usage("clear")
        if self.scope is not None:
            row = self.scope.row(words[0])
            if row.required:
                raise ConfigError("Clearing this property is not allowed")
            self.scope.values.pop(row.name, None)
            return
        draft = self.edited()
        row = global_row(words[0])
        if row.name in NOT_CLEARABLE:
            raise ConfigError("Clearing this property is not allowed")
        controls.clear(draft, row)

    # Resources.

    def add(self, words: Sequence[str]) -> None:
        if not words:
            raise usage("add")
        if self.scope is not None:
            self._extend(self.scope, words)
            return
        draft = self.edited()
        kind = kind_named(words[0])
        if kind.single and kind.name in draft.table:
            raise ConfigError("The {kind} resource already exists.", kind=kind.name)
        if kind.single and self._written(kind):
            raise ConfigError(
                "The {kind} resource or a related resource control already exists.", kind=kind.name
            )
        self.scope = Scope(kind)
        if words[1:]:
            self._fill_and_end(words[1:])

    def _fill_and_end(self, words: Sequence[str]) -> None:
        """``add fs dir=/a ...`` in one command: when it fails there is no scope left open."""
        try:
            self.set(words)
            self.end(())
        except ZoneError:
            self.scope = None
            raise

    def _extend(self, scope: Scope, words: Sequence[str]) -> None:
        """``add PROPERTY VALUE`` inside a resource: one more value of a list."""
        row, new = self._list_change(scope, words, "add")
        present = _as_list(scope.values.get(row.name))
        self._assign_list(scope, row, [*present, *new])

    def _reduce(self, scope: Scope, words: Sequence[str]) -> None:
        """``remove PROPERTY VALUE`` inside a resource."""
        row, gone = self._list_change(scope, words, "remove")
        present = _as_list(scope.values.get(row.name))
        if not all(item in present for item in gone):
            raise ConfigError("No such property with that id")
        self._assign_list(scope, row, [item for item in present if item not in gone])

    def _list_change(self, scope: Scope, words: Sequence[str], verb: str) -> tuple[Property, list[Any]]:
        name, equals, text = words[0].partition("=")
        given = ([text] if equals else []) + list(words[1:])
        if not given:
            raise UsageError("{verb} property value", verb=verb)
        row = scope.row(name)
        if row.form is not Form.LIST:
            raise ConfigError("{name} takes one value: set {name}=VALUE", name=row.name)
        return row, [item for word in given for item in schema.split_list(word)]

    def _assign_list(self, scope: Scope, row: Property, items: list[Any]) -> None:
        try:
            row.check(items)
        except Refused as refused:
            raise ConfigError("{name} {why}", name=row.name, why=refused) from None
        scope.values[row.name] = items

    def select(self, words: Sequence[str]) -> None:
        self.global_only("select")
        if not words:
            raise usage("select")
        kind = kind_named(words[0])
        index = self._one(kind, assignments(words[1:]))
        item = self._written(kind)[index]
        values = {row.name: value for key, value in item.items() if (row := kind.property(key)) is not None}
        self.scope = Scope(kind, values, selected=True, index=None if kind.single else index)

    def cancel(self, words: Sequence[str]) -> None:
        none(words, "cancel")
        if self.scope is None:
            raise UsageError("cancel is for use inside a resource")
        self.scope = None

    def end(self, words: Sequence[str]) -> None:
        none(words, "end")
        scope = self.scope
        if scope is None:
            raise UsageError("end is for use inside a resource")
        read_resource(scope.kind, scope.values)
        self._refuse_duplicate(scope)
        draft = self.edited()
        if not scope.selected:
            draft.add(scope.kind.name, scope.values, single=scope.kind.single)
        else:
            self._rewrite(draft, scope)
        self.scope = None

    def _rewrite(self, draft: Draft, scope: Scope) -> None:
        """Only what differs is touched, so that the rest keeps its form and comments."""
        if controls.rewrite(draft, scope.kind, scope.index, scope.values):
            return
        name = scope.kind.name
        path = (name,) if scope.index is None else (name, scope.index)
        before = draft.table[name] if scope.index is None else draft.table[name][scope.index]
        for key, value in before.items():
            row = scope.kind.property(key)
            if row is None or row.name not in scope.values:
                draft.clear(path, key)
            elif scope.values[row.name] != value:
                draft.set(path, key, scope.values[row.name])
        present = {row.name for key in before if (row := scope.kind.property(key)) is not None}
        for row_name, value in scope.values.items():
            if row_name not in present:
                draft.set(path, row_name, value)

    def _refuse_duplicate(self, scope: Scope) -> None:
        kind = scope.kind
        if kind.single or len(kind.key) != 1:
            return
        key = kind.key[0]
        mine = store.canonical(kind, scope.values)[key]
        for index, item in enumerate(self._written(kind)):
            if index != scope.index and store.canonical(kind, item).get(key) == mine:
                raise ConfigError(
                    "A {kind} resource with the {key} '{mine}' already exists.",
                    kind=kind.name,
                    key=key,
                    mine=mine,
                )

    def remove(self, words: Sequence[str]) -> None:
        if self.scope is not None:
            self._reduce(self.scope, words or ("",))
            return
        options, rest = options_of(words, flags="F")
        if not rest:
            raise usage("remove")
        kind = kind_named(rest[0])
        draft = self.edited()
        if rest[1:]:
            chosen = [self._one(kind, assignments(rest[1:]))]
        else:
            chosen = self._indexes(kind, {})
            if not chosen:
                raise ConfigError("No such resource with that id")
            if len(chosen) > 1 and "F" not in options:
                raise ConfigError(
                    "There are multiple instances of this resource.  Either qualify the resource to"
                    " remove a single instance or use the -F option to remove all instances."
                )
        for index in reversed(chosen):
            controls.remove(draft, kind, index)

    def _one(self, kind: Resource, wanted: Mapping[str, str]) -> int:
        """The one resource with these values.  Raises ConfigError when there is none or more than one."""
        chosen = self._indexes(kind, wanted)
        if not chosen:
            raise ConfigError("No such resource with that id")
        if len(chosen) > 1:
            raise ConfigError(
                "more than one {kind} resource is like that: name more properties", kind=kind.name
            )
        return chosen[0]

    def _written(self, kind: Resource) -> list[Any]:
        """The resources of a kind, as the file has them by any name."""
        return controls.resources(kind, self.edited().table)

    def _indexes(self, kind: Resource, wanted: Mapping[str, str]) -> list[int]:
        """The positions of the resources with these values; a list is like a value that it holds."""
        given = {}
        for name, text in wanted.items():
            row = Scope(kind).row(name)
            given[row.name] = row.check(property_value(row, text))
        return [
            index
            for index, item in enumerate(self._written(kind))
            if all(_is_like(store.canonical(kind, item).get(name), value) for name, value in given.items())
        ]

    def help(self, words: Sequence[str]) -> None:
        for line in help_lines(words):
            self.session.data(line)


COMMANDS: Final[Mapping[str, Callable[[Editor, Sequence[str]], None]]] = {
    "create": Editor.create,
    "set": Editor.set,
    "clear": Editor.clear,
    "add": Editor.add,
    "select": Editor.select,
    "remove": Editor.remove,
    "end": Editor.end,
    "cancel": Editor.cancel,
    "info": Editor.info,
    "export": Editor.export,
    "verify": Editor.verify,
    "commit": Editor.commit,
    "revert": Editor.revert,
    "delete": Editor.delete,
    "exit": Editor.exit,
    "help": Editor.help,
}


def _as_list(value: object) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _shown(value: object) -> str:
    """A value of the file as ``info`` shows it while the resource is open."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return "[" + ",".join(map(str, value)) + "]" if isinstance(value, list) else str(value)


def usage(command: str) -> UsageError:
    """The error of a command that was not written as it is used."""
    return UsageError("usage: {synopsis}", synopsis=confighelp.COMMANDS[command].synopsis)


def _is_like(present: object, wanted: object) -> bool:
    if isinstance(wanted, tuple) and isinstance(present, tuple):
        return set(wanted) <= set(present)
    return present == wanted


def _json_part(zone: Zone, words: Sequence[str]) -> object:
    table = zone.to_json()
    if not words:
        return table
    kind = schema.resource(words[0])
    return table.get(global_row(words[0]).name if kind is None else kind.name)
