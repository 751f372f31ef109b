"""Nothing grows: 200 times boot and halt, and 50 reboots, of one zone under one supervisor."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.kit import door, leaks, victims
from tests.kit.console import Console
from tests.kit.instance import Instance
from tests.kit.waiting import until
from zonemgr.model.states import Command

pytestmark = [pytest.mark.requires("root", "userns", "mount", "net", "cgroup"), pytest.mark.long]

WARM_UP = 20
CYCLES = 200
REBOOTS = 50
PAGE_NOISE_KB = 256  # the allocator's, not a leak's: 180 cycles that lose 2 KiB each are seen


@dataclass(frozen=True)
class Size:
    """A process: its open descriptors, and its memory without what is read from files (others map that or do not)."""

    descriptors: int
    anonymous_kb: int

    @classmethod
    def of(cls, pid: int) -> Size:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        anonymous = sum(int(kb) for kb in re.findall(r"^(?:Anonymous|Swap): +(\d+) kB", text, re.MULTILINE))
        return cls(len(list(Path(f"/proc/{pid}/fd").iterdir())), anonymous)

    def has_grown(self, later: Size) -> bool:
        return later.descriptors > self.descriptors or later.anonymous_kb > self.anonymous_kb + PAGE_NOISE_KB


@dataclass(frozen=True)
class Sizes:
    """The supervisor and zsched of a running zone, and everything on the host."""

    supervisor: Size
    zsched: Size
    host: dict[str, int]

    @classmethod
    def of(cls, instance: Instance) -> Sizes:
        host = leaks.look((instance.root,), lambda suffix: suffix == instance.suffix)
        counts = {kind: len(things) for kind, things in host.things.items()}
        return cls(Size.of(victims.supervisor(instance)), Size.of(victims.zsched(instance)), counts)

    def grown(self, later: Sizes) -> list[str]:
        """What has become more, or larger."""
        pairs = {"supervisor": (self.supervisor, later.supervisor), "zsched": (self.zsched, later.zsched)}
        found = [f"{name}: {old} -> {new}" for name, (old, new) in pairs.items() if old.has_grown(new)]
        more = {kind: count for kind, count in later.host.items() if count > self.host[kind]}
        return found + [f"{kind}: {self.host[kind]} -> {count}" for kind, count in more.items()]


def stays(instance: Instance, before: Sizes) -> None:
    """Everything is as it was, once what belongs to the last answer has been closed."""
    last: list[str] = []

    def settled() -> bool:
        last[:] = before.grown(Sizes.of(instance))
        return not last

    try:
        until(settled, "the size of before", deadline_s=5)
    except AssertionError:
        raise AssertionError(f"grown: {last}") from None


def does(instance: Instance, command: Command) -> None:
    answer = door.ask(instance, command)
    assert answer.ok, answer.messages


def cycle(instance: Instance, console: Console, times: int) -> None:
    """Halt and boot; the zone runs before and after."""
    for _ in range(times):
        does(instance, Command.HALT)
        does(instance, Command.BOOT)
        console.notices()


def test_nothing_grows(instance: Instance) -> None:
    instance.running()
    with Console(instance) as console:  # keeps the supervisor while the zone is halted
        cycle(instance, console, WARM_UP)
        pid, before = victims.supervisor(instance), Sizes.of(instance)
        cycle(instance, console, CYCLES - WARM_UP)
        assert victims.supervisor(instance) == pid
        stays(instance, before)
        for _ in range(REBOOTS):
            does(instance, Command.REBOOT)
            console.notices()
        assert victims.supervisor(instance) == pid
        stays(instance, before)
    assert victims.record(instance).zone_id == 1 + CYCLES + REBOOTS
