"""``detach`` and ``attach``: a zone's files leave one configuration, or host, and become another's.

Nothing of the root is copied or removed.  What an interrupted attach has done is done again by the next one; the zone
stays *configured* until all is in order.  An interrupted detach is finished or undone by whatever comes next.
"""

from __future__ import annotations

import dataclasses
import os
import stat
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, BinaryIO

import click

from zonemgr.brandkit.base import Brand, ZoneInfo
from zonemgr.brandkit.hooks import HookExit
from zonemgr.cli.install import (
    administration,
    check,
    forget,
    require_root,
    run_hook,
    say_of,
    undisturbed,
    verify_for,
)
from zonemgr.cli.output import Session
from zonemgr.errors import BrandError, ConfigError, Exit, PlatformError, UsageError, message
from zonemgr.model.states import State
from zonemgr.model.zone import Zone

if TYPE_CHECKING:
    from zonemgr.store.detached import Manifest

_options = {"ignore_unknown_options": True}


@click.command(context_settings=_options)
@click.argument("name", metavar="NAME")
@click.argument("arguments", metavar="[BRAND OPTIONS]", nargs=-1, type=click.UNPROCESSED)
@click.option("-n", "--dry-run", is_flag=True, help="Print what attach would be told, change nothing.")
@click.pass_obj
def detach(session: Session, name: str, arguments: tuple[str, ...], dry_run: bool) -> int:
    """Take an installed zone's files out of its configuration.  They stay where they are, ready for attach."""
    from zonemgr.store import detached, zones

    with session.acting_on(name):
        if dry_run:
            zones.load(session.layout, name)
            session.data(detached.Manifest.of(session.layout, name).text().rstrip("\n"))
            return Exit.OK
        check(session, "detach", name)
        with administration(session.layout, name, say_of(session, name)):
            check(session, "detach", name)
            return _detach(session, name, arguments)


def _detach(session: Session, name: str, arguments: Sequence[str]) -> int:
    from zonemgr.brandkit import loader, relocate, zonepath
    from zonemgr.cli.uninstall import claim, tell_supervisor
    from zonemgr.store import zones

    layout, say = session.layout, say_of(session, name)
    zone = zones.load(layout, name)
    brand = loader.load(zone.brand, layout)
    verify_for(session, zone, "detach")
    zonepath.refuse_mounts(zone.zonepath, say)
    if zones.read_entry(layout, name).layers:
        raise PlatformError("its root is in layers, some of which other zones share; export and import it instead")
    info = ZoneInfo.of(zone, str(layout.root))
    for hook in ("predetach", "detach"):
        status = run_hook(session, brand, hook, info, arguments, brand.install_deadline_s)
        if status:
            if status == HookExit.USAGE:
                return Exit.USAGE
            raise BrandError("{hook} of brand '{brand}' failed", hook=hook, brand=brand.name)
    tell_supervisor(layout, name)
    with undisturbed():
        relocate.detach(layout, name, lambda: claim(layout, name, "detach"), say)  # unless a boot has begun meanwhile
    return Exit.OK


@click.command(context_settings=_options)
@click.argument("name", metavar="NAME")
@click.argument("arguments", metavar="[BRAND OPTIONS]", nargs=-1, type=click.UNPROCESSED)
@click.option("-F", "--force", is_flag=True, help="Whatever lies there, without the brand's check.")
@click.option("-n", "--dry-run", "manifest", metavar="FILE|-", help="Only check a manifest (of detach -n).")
@click.option(
    "--from", "origin", metavar="ZONEPATH", help="Configure NAME from what detach has left in ZONEPATH."
)
@click.option("--trust", is_flag=True, help="With --from: keep settings that grant something of this host's.")
@click.pass_obj
def attach(
    session: Session,
    name: str,
    arguments: tuple[str, ...],
    force: bool,
    manifest: str | None,
    origin: str | None,
    trust: bool,
) -> int:
    """Make the files below a configured zone's zonepath, left by detach, the zone's own."""
    if force and manifest is not None:
        raise UsageError("-F and -n flags are mutually exclusive")
    with session.acting_on(name):
        if manifest is not None:
            return _check_manifest(session, name, manifest)
        require_root("attach")
        if origin is not None:
            _configure(session, name, origin, trust)
        check(session, "attach", name)
        with administration(session.layout, name, say_of(session, name)):
            check(session, "attach", name)
            return _attach(session, name, arguments, force)


def _attach(session: Session, name: str, arguments: Sequence[str], force: bool) -> int:
    from zonemgr.brandkit import loader, zonepath
    from zonemgr.store import detached, idranges, zones

    layout = session.layout
    zone = zones.load(layout, name)
    brand = loader.load(zone.brand, layout)
    verify_for(session, zone, "attach")
    manifest = _found(zone, force)
    zonepath.refuse_mounts(zone.zonepath, say_of(session, name))
    info = ZoneInfo.of(zone, str(layout.root))
    if not force:
        code = _hook(session, brand, "attach", info, arguments)
        if code != Exit.OK:
            return code
    if manifest is not None and manifest.shifted_by:
        _unshift(zone, manifest.shifted_by)
    with undisturbed():
        # The range first: a zone is never installed without ids of its own.
        base = idranges.allocate(layout, name, zones.read_entry(layout, name).uuid)
        zones.update_entry(
            layout, name, uid_base=base, idmap_marker=None, brand=zone.brand, zonepath=zone.zonepath
        )
        zones.set_state(layout, name, State.INSTALLED)
        detached.forget(zone.zonepath, keep=force)
    return Exit.OK if force else _postattach(session, brand, info, arguments, manifest)


def _hook(session: Session, brand: Brand, hook: str, info: ZoneInfo, arguments: Sequence[str]) -> Exit:
    """Run a hook that may refuse.  Raises BrandError when it does, but for wrong arguments."""
    status = run_hook(session, brand, hook, info, arguments, brand.install_deadline_s)
    if status not in (HookExit.OK, HookExit.USAGE):
        raise BrandError("{hook} of brand '{brand}' failed", hook=hook, brand=brand.name)
    return Exit.USAGE if status == HookExit.USAGE else Exit.OK


def _postattach(
    session: Session, brand: Brand, info: ZoneInfo, arguments: Sequence[str], manifest: Manifest | None
) -> int:
    """The brand's last word.  The reference answers a failure with success; a zone that is not there is none."""
    from zonemgr.store import detached

    try:
        code = _hook(session, brand, "postattach", info, arguments)
    except BrandError:
        code = Exit.ERROR
    if code != Exit.OK:
        with undisturbed():
            if manifest is not None:  # its owners have been moved already
                detached.write(info.zonepath, dataclasses.replace(manifest, shifted_by=0))
            forget(session.layout, info.zonename)
        session.message(
            message("postattach of brand '{brand}' failed: the zone is configured", brand=brand.name),
            info.zonename,
        )
    return code


def _found(zone: Zone, force: bool) -> Manifest | None:
    """What lies in the zonepath.  Raises ZoneError when that is not a zone's root."""
    from zonemgr.store import detached

    root = f"{zone.zonepath}/root"
    try:
        status = os.lstat(root)
    except OSError as error:
        raise PlatformError("{path}: {why}", path=root, why=error.strerror) from None
    if not stat.S_ISDIR(status.st_mode):
        raise PlatformError("{path} is not a directory.", path=root)
    if stat.S_IMODE(status.st_mode) != 0o755:
        raise PlatformError("{path} mode is not 0755.", path=root)
    try:
        manifest = detached.read(zone.zonepath)
    except ConfigError:
        if not force:
            raise
        return None
    if manifest is None and not force:
        raise PlatformError(
            "{path} is not a detached zone (use -F to attach it as it is)", path=zone.zonepath
        )
    owner = manifest.shifted_by if manifest is not None else 0
    if status.st_uid not in (0, owner):
        raise PlatformError("{path} is not owned by root.", path=root)
    if manifest is not None and manifest.brand != zone.brand and not force:
        raise BrandError(
            "the detached zone is of brand '{found}', the configuration says '{brand}'",
            found=manifest.brand, brand=zone.brand,
        )  # fmt: skip
    return manifest


def _unshift(zone: Zone, base: int) -> None:
    """Owners on disk become the zone's own again; begun anew when it was interrupted.  Raises ZoneError."""
    from zonemgr.brandkit import storage, tree
    from zonemgr.brandkit.owners import Owners

    try:
        with storage.folder(f"{zone.zonepath}/root") as fd:
            tree.move_owners(fd, Owners(base))
    except OSError as error:
        raise PlatformError(
            "cannot change owners below {path}: {why}", path=zone.zonepath, why=error.strerror
        ) from error


def _check_manifest(session: Session, name: str, filename: str) -> int:
    """``attach -n``: could a zone with this manifest live here?  Raises ZoneError."""
    from zonemgr.brandkit import loader
    from zonemgr.brandkit.verify import verify_brand
    from zonemgr.store import detached, settings, toml

    stream: BinaryIO = sys.stdin.buffer if filename == "-" else open(filename, "rb")  # noqa: SIM115
    with stream:
        content = stream.read(detached.LIMIT_BYTES + 1)
    if len(content) > detached.LIMIT_BYTES:
        raise ConfigError(
            "{filename} is larger than {limit} bytes", filename=filename, limit=detached.LIMIT_BYTES
        )
    manifest = detached.Manifest.parse(content, filename)
    table, lines = toml.parse(manifest.configuration.encode(), filename)
    zone = Zone.from_table(
        table, filename=filename, default_zonepath=str(session.layout.zonepath(name)), lines=lines
    )
    brand = loader.load(manifest.brand, session.layout)
    info = ZoneInfo.of(zone, str(session.layout.root))
    deadline_s = settings.load(session.layout).hook_s
    verify_brand(brand, info, "attach", deadline_s=deadline_s, say=say_of(session, name))
    return Exit.OK


def _configure(session: Session, name: str, origin: str, trust: bool) -> None:
    """The zone's configuration, from a manifest.  Raises ZoneError."""
    from zonemgr.cli.admission import configure
    from zonemgr.store import detached, zones

    zones.check_name(name)
    path = os.path.abspath(origin)
    manifest = detached.read(path)
    if manifest is None:
        raise PlatformError("{path} is not a detached zone", path=path)
    text = manifest.configuration
    configure(session, name, text, manifest.brand, manifest.bridge, zonepath=path, trust=trust)
