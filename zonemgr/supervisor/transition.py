"""What one transition of one zone is to its worker: what was asked, whom to tell, and where the zone's things are."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from zonemgr.brandkit import loader
from zonemgr.brandkit.base import Brand, ZoneInfo
from zonemgr.errors import BrandError, message
from zonemgr.linux.cgroup import ZoneCgroup, detect
from zonemgr.model import plan
from zonemgr.model.states import Command, Notice, State
from zonemgr.model.zone import Zone
from zonemgr.store import events, snapshot, zones
from zonemgr.store.ledger import Ledger
from zonemgr.store.paths import Layout
from zonemgr.store.settings import Settings

_WITHOUT_BRAND = frozenset({Command.HALT, Command.UNMOUNT})


@dataclass
class Transition:
    """One transition of one zone, as its worker sees it."""

    layout: Layout
    zonename: str
    settings: Settings
    state: State  # at the request's arrival: hooks are told this one
    command: Command
    arguments: str  # boot arguments of the request
    update: bool  # mount: ask for update mode
    say: Callable[[str], None]
    notice: Callable[[Notice, str], None]
    console_ready: Callable[[], None]  # zsched holds a new pty: the supervisor attaches
    console_taken: Callable[[], None]  # waits until it has
    fork_zsched: Callable[[dict[str, Any], Iterable[int]], None]  # see ``zsched.fork``
    recovering: bool = False  # a bring-up has failed before: teardown complains less
    upcall: bool = False
    step: Callable[[plan.Op], None] | None = None
    quick_reboots: int = 0
    dry_run: bool = False  # apply: only say what would be done
    confirm_s: float | None = None  # apply: take it back after that time, unless it is confirmed
    result: Callable[[dict[str, Any]], None] = field(default=lambda _result: None)  # what the answer holds besides text
    zone: Zone | None = field(default=None)
    _brand: Brand | None = field(default=None)

    @cached_property
    def cgroup(self) -> ZoneCgroup:
        return ZoneCgroup(detect(), "zonemgr" + self.layout.suffix, self.zonename)

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.layout.zone_run(self.zonename) / "ledger.jsonl")

    def configuration(self) -> Zone:
        """The zone as it was frozen at ready, else as its file says now."""
        if self.zone is None:
            self.zone = snapshot.load(self.layout, self.zonename) or zones.load(self.layout, self.zonename)
        return self.zone

    @property
    def brand(self) -> Brand:
        """The zone's brand, loaded by the worker: whatever its file does, the supervisor lives.

        A zone whose brand is gone or broken can still be halted, without its hooks.
        """
        if self._brand is None:
            try:
                self._brand = loader.load(self.configuration().brand, self.layout)
            except BrandError as error:
                if self.command not in _WITHOUT_BRAND:
                    raise
                self.say(message("WARNING: {why}: going on without its hooks", why=error.text))
                self._brand = Brand(Path("/"))
        return self._brand

    def info(self) -> ZoneInfo:
        """What a brand is told of the zone."""
        zone = self.configuration()
        return ZoneInfo(
            zonename=self.zonename,
            zonepath=zone.zonepath,
            root=f"{zone.zonepath}/root",
            config=zone,
            layout_root=str(self.layout.root),
            altroot=str(self.layout.root) if self.layout.alternate else "",
        )

    def publish(self, old: State, new: State, zone_id: int | None) -> None:
        """Tell followers of events that the state changed."""
        record = {"type": "state", "zonename": self.zonename, "oldstate": old.label, "newstate": new.label}
        events.publish_best_effort(self.layout, {**record, "zoneid": zone_id})
