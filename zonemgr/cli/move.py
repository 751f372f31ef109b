"""``move`` and ``rename``: the same zone in another place or under another name, with the ids and identity it has."""

from __future__ import annotations

import dataclasses
import os

import click

from zonemgr.brandkit.base import ZoneInfo
from zonemgr.cli.install import administration, check, say_of, undisturbed, verify_for
from zonemgr.cli.output import Session
from zonemgr.errors import ConfigError, PlatformError, UsageError
from zonemgr.model.states import State
from zonemgr.model.zone import Zone


@click.command()
@click.argument("name", metavar="NAME")
@click.argument("path", metavar="NEWPATH")
@click.pass_obj
def move(session: Session, name: str, path: str) -> int:
    """Move an installed zone's files to NEWPATH, which does not exist or is an empty folder.

    Within a file system this is a rename, across file systems a copy, after which the old files are removed.
    """
    with session.acting_on(name):
        check(session, "move", name)
        with administration(session.layout, name, say_of(session, name)):
            check(session, "move", name)
            _move(session, name, path)
    return 0


def _move(session: Session, name: str, path: str) -> None:
    from zonemgr.brandkit import relocate, zonepath
    from zonemgr.cli.progress import progress
    from zonemgr.model import schema
    from zonemgr.store import zones

    layout, say = session.layout, say_of(session, name)
    row = schema.global_property("zonepath")
    assert row is not None
    try:
        target = str(row.check(path)).rstrip("/")
    except ValueError as refused:
        raise UsageError("zonepath {why}", why=refused) from None
    zone = zones.load(layout, name)
    refuse_target(zone.zonepath, target)
    zonepath.refuse_mounts(zone.zonepath, say)
    there = dataclasses.replace(zone, zonepath=target)
    try:
        with progress(session, f"moving {name}", _size(zone.zonepath, target)) as tick:
            relocate.move(layout, name, target, lambda: verify_for(session, there, "move"), say, tick)
    except BaseException as error:
        _take_back(session, name)
        if isinstance(error, OSError):
            raise PlatformError(
                "could not move zone to {path}: {why}", path=target, why=error.strerror or error
            ) from error
        if isinstance(error, KeyboardInterrupt):
            session.message("interrupted", name)
        raise


def _take_back(session: Session, name: str) -> None:
    from zonemgr.brandkit import relocate

    with undisturbed():
        relocate.recover(session.layout, name, say_of(session, name))


def refuse_target(zonepath: str, target: str) -> None:
    """Raises PlatformError unless the target can become a zonepath."""
    if os.path.realpath(target) == os.path.realpath(zonepath):
        raise PlatformError("{path} is where the zone is", path=target)
    if os.path.commonpath((os.path.realpath(target), os.path.realpath(zonepath))) in (
        os.path.realpath(target),
        os.path.realpath(zonepath),
    ):
        raise PlatformError("could not move zone to {path}: one path lies within the other", path=target)
    if not os.path.lexists(target):
        return
    if os.path.islink(target) or not os.path.isdir(target):
        raise PlatformError("{path} is not a directory.", path=target)
    if os.listdir(target):
        raise PlatformError("could not move zone to {path}: directory not empty", path=target)


def _size(source: str, target: str) -> int | None:
    """What there is to copy, when it has to be copied."""
    from zonemgr.brandkit import storage, tree

    above = os.path.dirname(target)
    while not os.path.isdir(above):
        above = os.path.dirname(above)
    if os.stat(above).st_dev == os.stat(source).st_dev:
        return None
    with storage.folder(f"{source}/root") as fd:
        return tree.measure(fd).size_bytes


@click.command()
@click.argument("name", metavar="NAME")
@click.argument("new_name", metavar="NEWNAME")
@click.pass_obj
def rename(session: Session, name: str, new_name: str) -> int:
    """Give a zone that does not run another name.  A zonepath in the default place is renamed with it."""
    with session.acting_on(name):
        rename_zone(session, name, new_name)
    return 0


def rename_zone(session: Session, name: str, new_name: str) -> None:
    """All of ``rename``.  Raises ZoneError."""
    from zonemgr.model.grid import name_check
    from zonemgr.store import zones

    check(session, "rename", name)
    name_check("rename", new_name)
    zones.check_name(new_name)
    layout, say = session.layout, say_of(session, name)
    with administration(layout, name, say), administration(layout, new_name, say):
        check(session, "rename", name)
        if zones.exists(layout, new_name):
            raise ConfigError("Zone name already in use")
        _rename(session, name, new_name)


def _rename(session: Session, name: str, new_name: str) -> None:
    from zonemgr.brandkit import relocate, zonepath
    from zonemgr.cli.uninstall import tell_supervisor
    from zonemgr.store import zones

    layout, say = session.layout, say_of(session, name)
    zone = zones.load(layout, name)
    zonepath.refuse_mounts(zone.zonepath, say)
    tell_supervisor(layout, name)
    try:
        relocate.rename(layout, name, new_name, say)
    except BaseException as error:
        _take_back(session, name)
        if isinstance(error, OSError):
            raise PlatformError(
                "could not rename the zone: {path}: {why}", path=error.filename, why=error.strerror
            ) from error
        raise
    _tell_root(session, zone, new_name)


def _tell_root(session: Session, zone: Zone, new_name: str) -> None:
    """The host name in the root's own files, where the zone's name is its host name."""
    from zonemgr.brandkit import identity
    from zonemgr.brandkit.hooks import run_hook
    from zonemgr.store import zones

    entry = zones.read_entry(session.layout, new_name)
    if zone.hostname is not None or entry.state is not State.INSTALLED:
        return
    say = say_of(session, new_name)
    info = ZoneInfo.of(zones.load(session.layout, new_name), str(session.layout.root))
    run_hook(
        lambda: identity.rename(info.root, zone.zonename, new_name),
        name="the change of the host name",
        deadline_s=30,
        say=say,
        zone=info,
    )

