"""The cluster brand: native, for zones that a cluster framework moves between hosts.

It differs from native in one thing: the framework is told of every change.  Each executable in
``/etc/zonemgr/cluster.d`` is run in the order of names with ``HOOK STATE COMMAND ZONENAME ZONEPATH`` (a ``-`` where a
hook has no state or command) and the same in its environment; the first that fails fails the hook.  So a framework can
fence: its program refuses ``pre_statechange`` for a zone that another host runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from zonemgr.brandkit import Brand, ZoneInfo
from zonemgr.brandkit.dropins import run_folder

FOLDER = "etc/zonemgr/cluster.d"


class Cluster(Brand):
    """See the file's docstring."""

    base = "native"
    name = "cluster"
    summary = "native, with the programs in /etc/zonemgr/cluster.d told of every change"

    scratch_mount = True

    def verify(self, zone: ZoneInfo, command: str) -> int | None:
        """The framework is asked after native has nothing against it."""
        return super().verify(zone, command) or self._tell(zone, "verify", "-", command)

    def pre_statechange(self, zone: ZoneInfo, state: str, command: str) -> int | None:
        """Where a framework fences."""
        return self._tell(zone, "pre_statechange", state, command)

    def post_statechange(self, zone: ZoneInfo, state: str, command: str) -> int | None:
        """Where a framework learns what became of it."""
        return self._tell(zone, "post_statechange", state, command)

    def sysboot(self, zone: ZoneInfo) -> int | None:
        """The host has booted: a framework decides where the zone is to run."""
        return self._tell(zone, "sysboot")

    def boot(self, zone: ZoneInfo) -> int | None:
        """The last word before init."""
        return self._tell(zone, "boot")

    def halt(self, zone: ZoneInfo) -> int | None:
        """The zone has no process any more: its storage may go elsewhere."""
        return self._tell(zone, "halt")

    def postattach(self, zone: ZoneInfo, arguments: Sequence[str]) -> int | None:
        """The zone has come here."""
        return self._tell(zone, "postattach")

    def predetach(self, zone: ZoneInfo, arguments: Sequence[str]) -> int | None:
        """The zone is about to leave."""
        return self._tell(zone, "predetach")

    def _tell(self, zone: ZoneInfo, hook: str, state: str = "-", command: str = "-") -> int:
        if zone.altroot:  # of another system, whose framework does not run here: the zone is a native one
            return 0
        return run_folder(Path(zone.layout_root, FOLDER), zone, hook, state, command)
