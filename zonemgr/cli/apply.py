"""``apply``: make what is so what is written.  With names: running zones; with a folder: the configurations of a set.

The verb is only its command line; how a set is compared and saved is in ``declared``, how a running zone is changed in
``live``.
"""

from __future__ import annotations

import click

from zonemgr.cli.output import Session
from zonemgr.errors import UsageError


@click.command()
@click.argument("names", metavar="[NAME...]", nargs=-1)
@click.option(
    "-f", "--folder", metavar="FOLDER", help="A folder of zone files (NAME.toml), or one such file."
)
@click.option("-n", "--dry-run", is_flag=True, help="Show what would be done, and do nothing.")
@click.option("--confirm", "patience", metavar="TIME", help="Revert after TIME (60s, 5m), unless it is confirmed.")
@click.option("--delete", is_flag=True, help="With -f: delete configured zones that the folder does not name.")
@click.option("-F", "--force", is_flag=True, help="With -f: do not ask.")
@click.pass_obj
def apply(
    session: Session,
    names: tuple[str, ...],
    folder: str | None,
    dry_run: bool,
    patience: str | None,
    delete: bool,
    force: bool,
) -> int:
    """Bring running zones to their configurations, or with -f the configurations of zones to what files say.

    A running zone gets what can be changed without a reboot: limits, file systems, links, addresses, devices.  Each
    property that differs is shown as applied, pending (until the next boot) or failed; when one fails, what was applied
    is taken back.  With --confirm the change reverts by itself, unless 'zonemgr confirm' follows in time.

    With -f, what would change is shown first, property by property; on a terminal it is asked, elsewhere -F is needed.
    All files are checked before anything is written, and each zone is changed as a whole or not at all.  A zone that
    the folder does not name is left alone, with --delete it goes, if nothing of it is installed.
    """
    if (folder is None) == (not names):
        raise UsageError("give either zone names, or a folder of zone files: apply -f FOLDER")
    if folder is None:
        if delete or force:
            raise UsageError("--delete and -F go with -f")
        from zonemgr.cli import live

        return live.apply(session, names, dry_run=dry_run, patience=patience)
    if patience is not None:
        raise UsageError("--confirm is for running zones")
    from zonemgr.cli import declared

    return declared.run(session, folder, dry_run=dry_run, delete=delete, force=force)
