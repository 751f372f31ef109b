"""``apply``: make what is so what is written.  With a folder: the configurations of a whole set of zones.

The verb is only its command line; how a set is compared and saved is in ``declared``.
"""

from __future__ import annotations

import click

from zonemgr.cli.output import Session
from zonemgr.errors import UsageError


@click.command()
@click.option(
    "-f", "--folder", metavar="FOLDER", help="A folder of zone files (NAME.toml), or one such file."
)
@click.option("-n", "--dry-run", is_flag=True, help="Show what would be done, and do nothing.")
@click.option("--delete", is_flag=True, help="Also delete configured zones that the folder does not name.")
@click.option("-F", "--force", is_flag=True, help="Do not ask.")
@click.pass_obj
def apply(session: Session, folder: str | None, dry_run: bool, delete: bool, force: bool) -> int:
    """Bring the configurations of zones to what the files of a folder say.

    What would change is shown first, property by property; on a terminal it is asked, elsewhere -F is needed.  All
    files are checked before anything is written, and each zone is changed as a whole or not at all.  A zone that the
    folder does not name is left alone, with --delete it goes, if nothing of it is installed.
    """
    from zonemgr.cli import declared

    if folder is None:
        raise UsageError("give a folder of zone files: apply -f FOLDER")
    return declared.run(session, folder, dry_run=dry_run, delete=delete, force=force)
