"""``create``: a zone's configuration begins.  Nothing else is made on disk here: that is ``install``."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import click

from zonemgr.cli.configtext import assignments
from zonemgr.cli.output import Session
from zonemgr.cli.scope import check_brand, check_zone, global_row, property_value, require_write_access
from zonemgr.errors import ConfigError, UsageError, ZoneError, message
from zonemgr.model.grid import name_check
from zonemgr.model.zone import Zone
from zonemgr.store import config as store
from zonemgr.store import zones
from zonemgr.store.config import Draft


@click.command()
@click.argument("zonename", metavar="NAME")
@click.argument("properties", metavar="[PROPERTY=VALUE]...", nargs=-1)
@click.option("-b", "--brand", metavar="BRAND", help="The zone's brand (default: native).")
@click.option(
    "-t", "--template", metavar="TEMPLATE", help="Begin with a template or another zone's configuration."
)
@click.option(
    "--from",
    "source",
    metavar="FILE",
    help="Begin with a Solaris or illumos zone's XML file or zonecfg export text (- is standard input).",
)
@click.option("--no-net", is_flag=True, help="Without the automatic link on the host's bridge.")
@click.pass_obj
def create(
    session: Session,
    zonename: str,
    properties: tuple[str, ...],
    brand: str | None,
    template: str | None,
    source: str | None,
    no_net: bool,
) -> None:
    """Configure a new zone.

    It gets a network link on the host's bridge with the lowest free addresses, unless told otherwise.  `zonemgr config`
    changes what was made, `zonemgr install` gives the zone its root.  Where there is a template named default, a zone
    begins with that.
    """
    if template is not None and (brand is not None or no_net):
        raise UsageError("-t cannot be given together with -b or --no-net: the template says both")
    if source is not None and template is not None:
        raise UsageError("--from cannot be given together with -t")
    given = assignments(properties)
    with session.acting_on(zonename):
        name_check("create", zonename)
        zones.check_name(zonename)
        require_write_access(session.layout, "create")
        zone = _create(session, zonename, given, brand, template, not no_net and source is None)
        if source is not None:
            zone = _apply_foreign(session, zonename, source) or zone
    if session.json:
        session.emit(zone.to_json())
        return
    addresses = ", ".join(address for link in zone.net for address in link.address)
    if addresses:
        session.note(message("configured at {addresses}", addresses=addresses), zonename)
    else:
        session.note("configured", zonename)
    for name in zone.without_effect() if source is None else ():  # otherwise it was told when that was saved
        session.note(message("WARNING: {name} has no effect yet", name=name), zonename)


def _create(
    session: Session,
    zonename: str,
    given: Mapping[str, str],
    brand: str | None,
    template: str | None,
    net: bool,
) -> Zone:
    from zonemgr.store import settings

    layout = session.layout
    with store.edit_lock(layout):
        if zones.exists(layout, zonename):
            raise ConfigError("Zone name already in use")
        if template is None and brand is None and net and store.has_template(layout, store.DEFAULT_TEMPLATE):
            template = store.DEFAULT_TEMPLATE
        if template is not None:
            text = store.text_from_template(layout, zonename, template)
        else:
            wanted = brand or given.get("brand") or settings.load(layout).default_brand
            check_brand(layout, wanted)
            text = store.new_text(layout, zonename, brand=wanted, net=net)
        draft = Draft.new(layout, zonename, text)
        for name, value in given.items():
            row = global_row(name)
            draft.set((), row.name, property_value(row, value))
        check_zone(session, draft.zone())
        return draft.save_locked()


def _apply_foreign(session: Session, zonename: str, source: str) -> Zone | None:
    """Carry a foreign configuration over, resource by resource, and tell what could not be.

    Nothing of it can be half: a file that cannot be read at all leaves no zone behind.
    """
    from zonemgr.cli.editor import Editor
    from zonemgr.cli.foreign import translate
    from zonemgr.store import settings

    try:
        text = _foreign_text(source)
        made = translate(text, bridge=settings.load(session.layout).bridge, links=_links())
    except ZoneError:
        store.delete(session.layout, zonename)
        raise
    editor = Editor(session, zonename)
    for number, words in made.commands:
        try:
            editor.command(words)
        except ZoneError as error:
            made.report(
                number, message("{command}: {why}, left out", command=" ".join(words), why=error.text)
            )
    for report in made.reports:
        session.message(report, zonename)
    try:
        if editor.edited().changed:
            editor.commit(())
    except ZoneError:
        store.delete(session.layout, zonename)
        raise
    return editor.edited().zone()


def _foreign_text(source: str) -> str:
    from zonemgr.cli.foreign import SIZE_MAX

    try:
        if source == "-":
            data = sys.stdin.buffer.read(SIZE_MAX + 1)
        else:
            with Path(source).open("rb") as file:
                data = file.read(SIZE_MAX + 1)
    except OSError as error:
        raise ConfigError("cannot read {file}: {why}", file=source, why=error.strerror) from None
    if len(data) > SIZE_MAX:
        raise ConfigError("{file} is too large to be a zone's configuration", file=source)
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise ConfigError("{file} is not UTF-8 text", file=source) from None


def _links() -> list[str]:
    """The host's network links."""
    return [path.name for path in Path("/sys/class/net").iterdir()]
