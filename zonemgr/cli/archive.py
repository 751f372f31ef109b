"""``export`` and ``import``: a whole zone as one stream, to and from a file or a pipe.  Nothing is spooled.

What an archive says is a claim of whoever made it: the configuration in it grants nothing of this host's unless the
administrator trusts it.  As with ``install``, an imported zone is *incomplete* until all of it has arrived and its
digest was right; a failure takes everything back.
"""

from __future__ import annotations

import os
import resource
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import click

from zonemgr.brandkit.base import ZoneInfo
from zonemgr.cli.install import (
    administration,
    at_rest,
    check,
    forget,
    require_root,
    run_hook,
    say_of,
    undisturbed,
    verify_for,
)
from zonemgr.cli.output import Session
from zonemgr.errors import BrandError, Exit, NoSuchZoneError, PlatformError, UsageError
from zonemgr.model.states import State
from zonemgr.store.paths import Layout

if TYPE_CHECKING:
    from zonemgr.brandkit.archive import Archive
    from zonemgr.model.zone import Zone

MEMORY_MAX: Final = 512 << 20  # what reading an archive may take: one that is made to need more is refused
DRAIN_MAX: Final = 64 << 20  # what may follow the archive in its stream: padding


# -- export -------------------------------------------------------------------------------------------------------


@click.command("export")
@click.argument("name", metavar="NAME")
@click.option("-f", "--file", "filename", metavar="FILE|-", default="-", help="Where to (default: standard output).")
@click.pass_obj
def export(session: Session, name: str, filename: str) -> int:
    """Write an installed zone that does not run, with its configuration, as one archive.

    It is a tar archive, compressed as FILE's name says (.tar, .tar.gz, .tar.zst), else by zstd where there is one.
    """
    with session.acting_on(name):
        if filename == "-" and sys.stdout.isatty():
            raise UsageError("an archive is not for a terminal: give a file with -f, or a pipe")
        session.printed = filename == "-"  # the archive itself
        check(session, "export", name)
        layout = session.layout
        with administration(layout, name, say_of(session, name)), at_rest(layout, name):
            check(session, "export", name)
            with _target(filename) as fd:
                _export(session, name, fd, filename)
    return Exit.OK


def _export(session: Session, name: str, fd: int, filename: str) -> None:
    from zonemgr.brandkit import archive, layers, tree, zonepath
    from zonemgr.brandkit.compression import Kind, compressed
    from zonemgr.cli.clone import owners_of
    from zonemgr.cli.progress import progress
    from zonemgr.store import files, settings, zones

    layout = session.layout
    zone = zones.load(layout, name)
    entry = zones.read_entry(layout, name)
    zonepath.refuse_mounts(zone.zonepath, say_of(session, name))
    try:
        with layers.opened_root(entry) as root_fd:
            size = tree.measure(root_fd).size_bytes
            manifest = archive.Manifest(
                zonename=name,
                brand=zone.brand,
                uuid=entry.uuid,
                hostname=zone.hostname or name,
                configuration=(files.read_bytes(layout.config(name)) or b"").decode(),
                bridge=settings.load(layout).bridge,
                size_bytes=size,
                created=int(time.time()),
            )
            with progress(session, f"exporting {name}", size) as tick, compressed(fd, Kind.of_name(filename)) as out:
                archive.write(out, manifest, root_fd, owners_of(layout, name), tick)
    except OSError as error:
        raise PlatformError("cannot export to {path}: {why}", path=filename, why=error.strerror or error) from error


@contextmanager
def _target(filename: str) -> Iterator[int]:
    """Where an archive goes.  A regular file has its name only when it is complete.  Raises PlatformError."""
    if filename == "-":
        yield sys.stdout.fileno()
        return
    path = os.path.abspath(filename)
    try:
        if os.path.lexists(path):
            if stat.S_ISREG(os.stat(path).st_mode):
                raise PlatformError("{path} exists already; it is not overwritten", path=filename)
            fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOCTTY)
            new = False
        else:
            # Without a name nothing is left of it if we are killed; only root may read what passwords are in.
            fd = os.open(os.path.dirname(path), os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
            new = True
    except OSError as error:
        raise PlatformError("cannot write {path}: {why}", path=filename, why=error.strerror) from error
    try:
        yield fd
        if new:
            _publish(fd, path)
    finally:
        os.close(fd)


def _publish(fd: int, path: str) -> None:
    try:
        os.fsync(fd)
        # With a descriptor Python calls linkat, which follows the link in /proc; without one it would link that link.
        os.link(f"/proc/self/fd/{fd}", path, src_dir_fd=fd, follow_symlinks=True)
    except OSError as error:
        raise PlatformError("cannot write {path}: {why}", path=path, why=error.strerror) from error


# -- import -------------------------------------------------------------------------------------------------------


@click.command("import")
@click.argument("name", metavar="[NAME]", required=False)
@click.option("-f", "--file", "filename", metavar="FILE|-", default="-", help="Where from (default: standard input).")
@click.option(
    "--trust", is_flag=True, help="Keep what grants something of this host's: settings, device nodes, any owner."
)
@click.pass_obj
def import_zone(session: Session, name: str | None, filename: str, trust: bool) -> int:
    """Make a zone from an archive of export.  NAME: another name than the one it had.

    A NAME that is configured keeps its configuration; else the archive's is used, without what grants something of
    this host's.  A zone that comes under another name, or beside its original, gets an identity of its own.
    """
    require_root("import")
    from zonemgr.brandkit import archive
    from zonemgr.brandkit.compression import expanded

    if filename == "-" and sys.stdin.isatty():
        raise UsageError("an archive does not come from a terminal: give a file with -f, or a pipe")
    fd = os.dup(0) if filename == "-" else os.open(filename, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        with _bounded_memory(), expanded(fd) as stream:
            opened = archive.Archive(stream)
            try:
                wanted = name or opened.manifest.zonename
                with session.acting_on(wanted):
                    _import(session, wanted, opened, trust)
            finally:
                opened.close()
            _drain(stream.read)
    finally:
        os.close(fd)
    return Exit.OK


@contextmanager
def _bounded_memory() -> Iterator[None]:
    """Reading must not take the host's memory, whatever an archive says of its own sizes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as stream:
        used = int(stream.read().split()[0]) * resource.getpagesize()
    limit = used + MEMORY_MAX
    if soft == resource.RLIM_INFINITY or limit < soft:
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _drain(read: Callable[[int], bytes]) -> None:
    """Take what is left in the pipe, so that whoever fills it can end in peace."""
    left = DRAIN_MAX
    while left > 0:
        chunk = read(1 << 16)
        if not chunk:
            return
        left -= len(chunk)


def _import(session: Session, name: str, opened: Archive, trust: bool) -> None:
    from zonemgr.cli.admission import configure
    from zonemgr.cli.clone import take_back_configuration
    from zonemgr.model.grid import name_check
    from zonemgr.store import zones

    layout, manifest = session.layout, opened.manifest
    name_check("import", name)
    zones.check_name(name)
    beside = _is_beside_its_original(layout, manifest.uuid)
    configured_here = not zones.exists(layout, name)
    if configured_here:
        configure(
            session, name, manifest.configuration, manifest.brand, manifest.bridge, zonepath=None, trust=trust
        )
    had_path = os.path.lexists(zones.read_entry(layout, name).zonepath)
    imported = False
    try:
        with administration(layout, name, say_of(session, name)):
            check(session, "import", name)
            _unpack(session, name, opened, trust, beside)
        imported = True
    finally:
        if configured_here and not imported:
            with undisturbed():
                take_back_configuration(layout, name, had_path=had_path)


def _is_beside_its_original(layout: Layout, uuid: str) -> bool:
    """Whether the zone that the archive was made of is on this host too."""
    from zonemgr.store import zones

    for name in zones.names(layout):
        try:
            if uuid and zones.read_entry(layout, name).uuid == uuid:
                return True
        except (NoSuchZoneError, PlatformError):
            continue
    return False


def _unpack(session: Session, name: str, opened: Archive, trust: bool, beside: bool) -> None:
    """The zone's root, from the stream.  A failure leaves the zone as it was: configured."""
    from zonemgr.brandkit import loader, zonepath
    from zonemgr.store import idranges, zones

    layout, say = session.layout, say_of(session, name)
    zone = zones.load(layout, name)
    brand = loader.load(zone.brand, layout)
    if zone.brand != opened.manifest.brand:
        raise BrandError(
            "the archive holds a zone of brand '{found}', the configuration says '{brand}'",
            found=opened.manifest.brand, brand=zone.brand,
        )  # fmt: skip
    verify_for(session, zone, "import")
    entry = zones.set_state(layout, name, State.INCOMPLETE)
    base = idranges.allocate(layout, name, entry.uuid)
    zones.update_entry(layout, name, uid_base=base, brand=zone.brand, zonepath=zone.zonepath)
    try:
        _extract(session, zone, opened, trust)
        info = ZoneInfo.of(zone, str(layout.root))
        if beside or name != opened.manifest.zonename:
            from zonemgr.cli.clone import reset_identity

            session.note("it gets an identity of its own: machine id, host keys, host name", name)
            reset_identity(session, brand, info, opened.manifest.hostname, zone.hostname or name)
        if run_hook(session, brand, "attach", info, (), brand.install_deadline_s):
            raise BrandError("attach of brand '{brand}' failed", brand=brand.name)
    except BaseException as error:
        with undisturbed():
            zonepath.cleanup(zone.zonepath, say)
            forget(layout, name)
        if isinstance(error, OSError):
            where = error.filename or zone.zonepath
            raise PlatformError("cannot import to {path}: {why}", path=where, why=error.strerror) from error
        if isinstance(error, KeyboardInterrupt):
            session.message("interrupted: nothing of the zone is left", name)
        raise
    zones.set_state(layout, name, State.INSTALLED)


def _extract(session: Session, zone: Zone, opened: Archive, trust: bool) -> None:
    from zonemgr.brandkit import storage
    from zonemgr.cli.progress import progress

    say = say_of(session, zone.zonename)
    total = opened.manifest.size_bytes
    with (
        progress(session, f"importing {zone.zonename}", total) as tick,
        storage.folder(zone.zonepath) as zonepath_fd,
    ):
        opened.extract(zonepath_fd, say, trust=trust, tick=tick)
        storage.sync(zonepath_fd)
