"""``clone``: a new zone from an installed one, by the cheapest way that the file system offers.

The copy is another machine: machine id, host keys, host name and leases are its own.  As with ``install``, the zone is
*incomplete* from the first change to the last.  A copy that fails or is interrupted is cleaned up, since all of it was
made here; what a brand's own hook made is cleaned up only when the hook says that this is safe.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import click

from zonemgr.brandkit.base import Brand, ZoneInfo
from zonemgr.brandkit.hooks import HookExit
from zonemgr.cli.install import (
    administration,
    at_rest,
    call_hook,
    check,
    forget,
    installed,
    mend,
    require_root,
    run_hook,
    say_of,
    undisturbed,
    verify_for,
)
from zonemgr.cli.output import Session
from zonemgr.errors import BrandError, Exit, PlatformError, StateError, message
from zonemgr.model.states import State
from zonemgr.model.zone import Zone
from zonemgr.store.paths import Layout

if TYPE_CHECKING:
    from zonemgr.brandkit.owners import Owners
    from zonemgr.brandkit.storage import Method
    from zonemgr.store.zones import Entry

POSTCLONE_FAILED: Final = "post-clone configuration failed."


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("source", metavar="SOURCE")
@click.argument("name", metavar="NAME")
@click.argument("arguments", metavar="[BRAND OPTIONS]", nargs=-1, type=click.UNPROCESSED)
@click.option(
    "-m",
    "--method",
    metavar="METHOD",
    help="btrfs, reflink or copy (default: the first that is possible), or overlay (SOURCE then shares its root too).",
)
@click.option(
    "-s", "--snapshot", metavar="DIR", help="What to copy: a snapshot of SOURCE's zonepath; SOURCE may run."
)
@click.pass_obj
def clone(
    session: Session,
    source: str,
    name: str,
    arguments: tuple[str, ...],
    method: str | None,
    snapshot: str | None,
) -> int:
    """Make zone NAME a copy of SOURCE, which is installed and does not run.

    A NAME that is not configured gets SOURCE's configuration with addresses, a path and a name of its own.
    """
    with session.acting_on(name):
        return _clone(session, source, name, arguments, method, snapshot)


def _clone(
    session: Session,
    source: str,
    name: str,
    arguments: Sequence[str],
    method: str | None,
    snapshot: str | None,
) -> int:
    from zonemgr.brandkit import storage
    from zonemgr.model.grid import name_check
    from zonemgr.store import zones

    wanted = storage.method_named(method)
    require_root("clone")
    name_check("clone", name)
    zones.check_name(name)
    if source == name:
        raise StateError("a zone cannot be cloned onto itself")
    if snapshot is not None:
        snapshot = _checked_snapshot(snapshot)
    mend(session, source)
    refuse_source(session.layout, source, may_run=snapshot is not None)
    configured_here = not zones.exists(session.layout, name)
    if configured_here:
        _configure(session, source, name)
    had_path = os.path.lexists(zones.read_entry(session.layout, name).zonepath)
    cloned = False
    try:
        with administration(session.layout, name), administration(session.layout, source):
            check(session, "clone", name)
            status = _Clone(session, source, name, snapshot).perform(arguments, wanted)
        cloned = status == Exit.OK
        return status
    finally:
        if configured_here and not cloned:
            with undisturbed():
                take_back_configuration(session.layout, name, had_path=had_path)


def _checked_snapshot(path: str) -> str:
    """Raises PlatformError for what cannot be a snapshot of a zonepath."""
    path = os.path.abspath(path)
    if not os.path.isdir(f"{path}/root") or os.path.islink(f"{path}/root"):
        raise PlatformError("{path} is no snapshot of a zonepath: there is no folder 'root' in it", path=path)
    return path


def refuse_source(layout: Layout, source: str, *, may_run: bool = False) -> None:
    """Only an installed zone can be copied, and only a snapshot of one that runs.  Raises ZoneError."""
    from zonemgr.model.grid import name_check
    from zonemgr.store import zones
    from zonemgr.store.observe import observe

    name_check("clone", source)
    state = zones.read_entry(layout, source).state if may_run else observe(layout, source).state
    if state.active:
        raise StateError("clone operation is invalid for {state} zones.", state=state.label)
    if state is not State.INSTALLED:
        raise StateError("zone {source} is {state}; installed is required.", source=source, state=state.label)


def _configure(session: Session, source: str, name: str) -> None:
    """The new zone's configuration, from its source's."""
    from zonemgr.store import config

    with config.edit_lock(session.layout):
        draft = config.Draft.new(session.layout, name, config.text_from_zone(session.layout, name, source))
        zone = draft.save_locked()
    addresses = ", ".join(address for link in zone.net for address in link.address)
    text = message("configured like {source}", source=source)
    if addresses:
        text = message("configured like {source}, at {addresses}", source=source, addresses=addresses)
    session.note(text, name)


def take_back_configuration(layout: Layout, name: str, *, had_path: bool) -> None:
    """Delete a configuration that was made for a zone which did not come to be, and its zonepath, unless there was one:
    as long as nothing is in it.
    """
    from zonemgr.store import config, zones

    if not zones.exists(layout, name):
        return
    entry = zones.read_entry(layout, name)
    if entry.state is State.CONFIGURED:
        config.delete(layout, name)
        if not had_path:
            with contextlib.suppress(OSError):
                os.rmdir(entry.zonepath)


class _Clone:
    """One clone, from the checks of the target on."""

    def __init__(self, session: Session, source: str, name: str, snapshot: str | None) -> None:
        from zonemgr.brandkit import loader
        from zonemgr.store import zones

        self.session = session
        self.layout = session.layout
        self.snapshot = snapshot
        self.source = zones.load(self.layout, source)
        self.zone = zones.load(self.layout, name)
        self.brand: Brand = loader.load(self.zone.brand, self.layout)
        self.info = ZoneInfo.of(self.zone, str(self.layout.root))

    def perform(self, arguments: Sequence[str], wanted: Method | None) -> int:
        """The exit status.  Raises ZoneError."""
        from zonemgr.store import idranges, zones

        refuse_source(self.layout, self.source.zonename, may_run=self.snapshot is not None)
        if self.source.brand != self.zone.brand:
            raise BrandError(
                "Zones '{source}' and '{target}' have different brand types.",
                source=self.source.zonename, target=self.zone.zonename,
            )  # fmt: skip
        verify_for(self.session, self.zone, "clone")
        for text in in_both(self.source, self.zone):
            self.session.message(
                message("WARNING: {text} is configured in both zones.", text=text), self.zone.zonename
            )
        entry = zones.set_state(self.layout, self.zone.zonename, State.INCOMPLETE)
        base = idranges.allocate(self.layout, self.zone.zonename, entry.uuid)
        zones.update_entry(
            self.layout, self.zone.zonename, uid_base=base, brand=self.zone.brand, zonepath=self.zone.zonepath
        )
        if self.brand.overrides("clone"):
            status = self._by_hook(arguments)
        else:
            self._by_copying(wanted)
            status = int(HookExit.OK)
        if status == HookExit.OK:
            self._become_another()
            deadline_s = self.brand.install_deadline_s
            if run_hook(self.session, self.brand, "postclone", self.info, arguments, deadline_s):
                raise BrandError(POSTCLONE_FAILED)
        return installed(self.session, self.info, status, "clone")

    def _by_hook(self, arguments: Sequence[str]) -> int:
        source = ZoneInfo.of(self.source, str(self.layout.root))
        return call_hook(
            self.session, self.brand, "clone", self.info, source, tuple(arguments),
            deadline_s=self.brand.install_deadline_s,
        )  # fmt: skip

    def _by_copying(self, wanted: Method | None) -> None:
        from zonemgr.brandkit import zonepath

        try:
            self._copy(wanted)
        except BaseException as error:
            with undisturbed():
                zonepath.cleanup(self.zone.zonepath, say_of(self.session, self.zone.zonename))
                forget(self.layout, self.zone.zonename)
            if isinstance(error, KeyboardInterrupt):
                self.session.message("interrupted: nothing of the clone is left", self.zone.zonename)
            if isinstance(error, OSError):
                raise PlatformError(
                    "cannot copy {path}: {why}",
                    path=error.filename or self.source.zonepath,
                    why=error.strerror,
                ) from error
            raise

    def _copy(self, wanted: Method | None) -> None:
        from zonemgr.store import zones

        entry = zones.read_entry(self.layout, self.source.zonename)
        if self.snapshot is not None:
            self._validate_snapshot(self.snapshot, entry)
            self._copy_root(dataclasses.replace(entry, zonepath=self.snapshot), wanted)
            return
        with at_rest(self.layout, entry.zonename):
            refuse_source(self.layout, entry.zonename)
            self._copy_root(entry, wanted)

    def _validate_snapshot(self, path: str, entry: Entry) -> None:
        """Raises ZoneError when the source's brand does not take it for one."""
        if entry.layers:
            raise PlatformError(
                "the source's root is in layers: a snapshot of its zonepath holds only one of them"
            )
        info = ZoneInfo.of(self.source, str(self.layout.root))
        if call_hook(
            self.session, self.brand, "validatesnap", info, path, deadline_s=self.brand.install_deadline_s
        ):
            raise BrandError("brand '{brand}' refuses the snapshot {path}", brand=self.brand.name, path=path)

    def _copy_root(self, source: Entry, wanted: Method | None) -> None:
        from zonemgr.brandkit import storage, zonepath
        from zonemgr.brandkit.storage import Method
        from zonemgr.cli.progress import progress

        name, target = self.zone.zonename, self.zone.zonepath
        zonepath.refuse_mounts(f"{source.zonepath}/root", say_of(self.session, name))
        choice = storage.choose(source, target, wanted)
        self.session.note(choice.cost, name)
        if choice.method is Method.OVERLAY:
            self._share(source)
            return
        about_snapshot = choice.method is Method.BTRFS and self.snapshot is None
        if about_snapshot:
            self._about_snapshot("presnap")
        with progress(self.session, f"cloning {self.source.zonename}", choice.size.size_bytes) as tick:
            storage.clone_root(
                source, target, choice.method, owners_of(self.layout, self.source.zonename), tick
            )
        if about_snapshot:
            self._about_snapshot("postsnap")

    def _share(self, source: Entry) -> None:
        """Source and clone go on above the source's root as it is now.  Raises ZoneError, OSError."""
        from zonemgr.brandkit import layers, relocate
        from zonemgr.store import zones

        if self.snapshot is not None:
            raise PlatformError("cannot clone by overlay: what a snapshot holds is not the source's to share")
        name = self.zone.zonename
        with undisturbed():
            shared = relocate.freeze(self.layout, source.zonename, say_of(self.session, name))
            zones.update_entry(self.layout, name, layers=shared)
            layers.new_root(self.zone.zonepath, layers.ROOT, shared[0])

    def _about_snapshot(self, hook: str) -> None:
        """What the brand does to the source around a snapshot."""
        source = ZoneInfo.of(self.source, str(self.layout.root))
        if call_hook(self.session, self.brand, hook, source, deadline_s=self.brand.install_deadline_s):
            raise BrandError("{hook} of brand '{brand}' failed", hook=hook, brand=self.brand.name)

    def _become_another(self) -> None:
        """The copy's own identity: what every root has, then what its brand knows of.  Raises BrandError."""
        hostname = self.zone.hostname or self.zone.zonename
        old = self.source.hostname or self.source.zonename
        reset_identity(self.session, self.brand, self.info, old, hostname)


def reset_identity(session: Session, brand: Brand, info: ZoneInfo, old: str, hostname: str) -> None:
    """Give a root an identity of its own.  In a child: the root may be hostile.  Raises BrandError."""
    from zonemgr.brandkit import identity
    from zonemgr.brandkit.hooks import HookError, run_brand_hook, run_hook
    from zonemgr.store import settings

    say = say_of(session, info.zonename)
    deadline_s = settings.load(session.layout).hook_s
    try:
        with undisturbed():
            status = run_hook(
                lambda: identity.reset(info.root, old, hostname),
                name="the change of identity",
                deadline_s=deadline_s,
                say=say,
                zone=info,
            ) or run_brand_hook(brand, "unconfigure", info, deadline_s=deadline_s, say=say)
    except HookError as error:
        session.report(error, info.zonename)
        status = HookExit.FATAL
    if status:
        raise BrandError(POSTCLONE_FAILED)


def owners_of(layout: Layout, name: str) -> Owners:
    """How the ids in the zone's root on disk become the zone's own."""
    from zonemgr.brandkit.owners import Owners
    from zonemgr.store import zones

    entry = zones.read_entry(layout, name)
    return Owners(entry.uid_base or 0) if entry.idmap_marker else Owners()


def in_both(source: Zone, target: Zone) -> Iterator[str]:
    """What two zones cannot both use, or only if their administrator means it."""
    for what, of in _SHARED.items():
        for thing in sorted(of(source) & of(target)):
            yield f"{what} '{thing}'"


def _writable(zone: Zone) -> set[str]:
    return {fs.special for fs in zone.fs if fs.special.startswith("/") and not fs.read_only}


_SHARED: Final[Mapping[str, Callable[[Zone], set[str]]]] = {
    "fs special": _writable,
    "network address": lambda zone: {text.partition("/")[0] for link in zone.net for text in link.address},
    "physical link": lambda zone: {link.physical for link in zone.net if link.physical},
    "Ethernet address": lambda zone: {link.mac_address for link in zone.net if link.mac_address},
    "device": lambda zone: {device.match for device in zone.device},
    "dataset": lambda zone: {dataset.name for dataset in zone.dataset},
}
