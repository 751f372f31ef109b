"""``plan`` and ``fsck``: what a verb would do, and whether what is there is what should be there.

Both need the platform, which the command line does not import: a supervisor program of one shot does the work, speaks
for itself, and hands back its exit status.
"""

from __future__ import annotations

import os
import signal
import sys

import click

from zonemgr.cli.output import Session
from zonemgr.errors import UsageError
from zonemgr.model.grid import name_check
from zonemgr.store.paths import Layout

VERBS = ("ready", "boot", "reboot", "halt", "mount", "unmount")


def one_shot(session: Session, *words: str) -> int:
    """Run the supervisor program with these words on our own standard streams; its exit status."""
    from zonemgr.wire.start import program

    options = ["--root", str(session.layout.root), *(["--json"] if session.json else [])]
    command = program("zonemgr.supervisor", *words, *options)
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.posix_spawn(command[0], command, os.environ, setsigdef=[signal.SIGPIPE])
    while True:
        try:
            _, status = os.waitpid(pid, 0)
        except KeyboardInterrupt:
            continue  # it got the signal as well, and decides
        code = os.waitstatus_to_exitcode(status)
        return code if code >= 0 else 128 - code


def check_zone(layout: Layout, verb: str, name: str) -> None:
    """Refuse a name that cannot be meant.  Raises ZoneError."""
    from zonemgr.errors import NoSuchZoneError
    from zonemgr.store.zones import exists

    name_check(verb, name)
    if not exists(layout, name):
        raise NoSuchZoneError(name)


@click.command()
@click.argument("verb", metavar="VERB")
@click.argument("name", metavar="NAME")
@click.pass_obj
def plan(session: Session, verb: str, name: str) -> int:
    """Show, and do not do, what ready, boot, reboot, halt, mount or unmount would do to the kernel for a zone."""
    if verb not in VERBS:
        raise UsageError("no plan for {verb}: one of {verbs}", verb=verb, verbs=", ".join(VERBS))
    with session.about(name):
        check_zone(session.layout, "plan", name)
    return one_shot(session, "plan", verb, name)


@click.command()
@click.option("--host", is_flag=True, help="Also remove shared objects of the host that no zone uses.")
@click.pass_obj
def fsck(session: Session, host: bool) -> int:
    """Reconcile what is recorded about zones with what the kernel has."""
    return one_shot(session, "fsck", *(["--host"] if host else []))
