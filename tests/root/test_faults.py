"""The fault walk: each step of each transition fails once, and loses its worker, its supervisor and zsched once; every
second step loses both.

Whatever happened, the zone is in a state that the grid has commands for, it can be halted, nothing is left on the host,
and it boots.  The walks interleave the transitions, so that what takes a zone up for one fault proves that it still can
be taken up after another.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Final

import pytest

from tests.kit import leaks, victims
from tests.kit.faults import TEXT, Fault, Kind, Point
from tests.kit.instance import Failed, Instance
from tests.kit.nursery import Nursery
from tests.kit.waiting import until
from zonemgr.model.states import State
from zonemgr.store.observe import observe

pytestmark = [pytest.mark.requires("root", "userns", "mount", "net", "cgroup"), pytest.mark.long]

KINDS: Final = (Kind.FAIL, Kind.WORKER, Kind.SUPERVISOR, Kind.ZSCHED, Kind.BOTH)
# Whoever dies alone does so at every point; both together at every second one, unless one walks for long.
THOROUGH: Final = "ZONEMGR_STEPS" in os.environ
# What the supervisor that gets the fault is started for, where it is not the command itself.
BEFORE: Final = {"halt": "boot", "reboot": "boot", "unmount": "mount"}
# Where a command leads that nothing disturbs.
ENDS: Final = {"boot": State.RUNNING, "reboot": State.RUNNING, "ready": State.READY, "mount": State.MOUNTED}
# An interrupted reboot is taken back and the zone booted again: by the supervisor, or by its successor when it is gone.
COMES_BACK: Final = frozenset((Kind.WORKER, Kind.SUPERVISOR, Kind.BOTH))


@dataclass(frozen=True, slots=True)
class Case:
    """One fault."""

    command: str
    number: int
    point: Point

    def __str__(self) -> str:
        return f"{self.command}, point {self.number} ({self.point.name})"


class Walk:
    """One zone that is walked over and over with one kind of fault."""

    def __init__(self, instance: Instance, warm: Nursery, kind: Kind, tmp_path: Path) -> None:
        self.instance, self.warm, self.kind = instance, warm, kind
        self.notes = tmp_path / "notes"
        self.problems: list[str] = []
        shared = tmp_path / "shared"
        shared.mkdir()
        instance.configured("web")
        instance.run("config", "web", f"add fs dir=/srv special={shared} type=bind options=ro")
        instance.run("config", "web", "add capped-memory physical=256m; add capped-cpu ncpus=1")
        instance.run("install", "web")
        self.zonemgr("boot")  # what is made once for the host is there before anybody looks
        self.zonemgr("halt")
        self.before = self._look()

    def zonemgr(self, verb: str, fault: Fault | None = None, check: bool = True) -> str:
        faults = [fault.to_json()] if fault else []
        return self.warm.run(self.instance, verb, "web", check=check, faults=faults).stderr

    @property
    def state(self) -> State:
        return observe(self.instance.layout, "web").state

    def _look(self) -> leaks.Host:
        return leaks.look((self.instance.root,), lambda suffix: suffix == self.instance.suffix)

    def _left(self) -> list[str]:
        return leaks.left(self.before, (self.instance.root,), lambda suffix: suffix == self.instance.suffix)

    def cases(self, command: str) -> list[Case]:
        """A case for each point that the command passes; of those without a zsched none that would kill it."""
        self.notes.write_text("")
        self._reach(command, Fault(Kind.NOTE.value, command, str(self.notes)))
        self._down()
        points = Point.all(self.notes)
        assert len(points) > 10, f"{command} passes too few points: {points}"
        found = [
            Case(command, number, point)
            for number, point in enumerate(points)
            if point.has_zsched or self.kind not in (Kind.ZSCHED, Kind.BOTH)
        ]
        return found if self.kind is not Kind.BOTH or THOROUGH else found[::2]

    def _reach(self, command: str, fault: Fault) -> str:
        """Run the command in a supervisor with the fault; what it said.

        The last one leaves when it has been asked for nothing more: until then it would serve the next command too.
        """
        until(lambda: not victims.has_supervisor(self.instance), "the last supervisor to leave")
        if command in BEFORE:
            self.zonemgr(BEFORE[command], fault)
            assert self.state is ENDS[BEFORE[command]]
            fault_of_command = None
        else:
            fault_of_command = fault
        return self.zonemgr(command, fault_of_command, check=False)

    def _down(self) -> None:
        """Take the zone down, as an operator would."""
        if self.state.active:
            self.zonemgr("unmount" if self.state is State.MOUNTED else "halt")
        assert self.state is State.INSTALLED

    def strike(self, case: Case) -> None:
        """One fault and what must hold after it."""
        self.notes.write_text("")
        try:
            said = self._reach(case.command, Fault(self.kind.value, case.command, str(self.notes), case.number))
            found = self._wrong(case, said)
        except (Failed, AssertionError) as error:
            found = [str(error)]
        self.problems += [f"{case}: {line}" for line in found]
        if found:  # go on with the next case all the same
            for verb in ("unmount", "halt"):
                self.warm.run(self.instance, verb, "web", check=False)
            self.before = self._look()

    def _wrong(self, case: Case, said: str) -> list[str]:
        state = self.state
        if self.notes.read_text() != f"{case.point.name}\n":
            return [f"the fault did not strike: {self.notes.read_text()!r}; the zone is {state.label}; {said!r}"]
        found = []
        if self.kind is Kind.FAIL and TEXT not in said:
            found.append(f"the failure is not told: {said!r}")
        if case.command == "reboot" and self.kind in COMES_BACK:
            found += self._comes_back(said)
        self._down()
        return found + [f"left, after the fault left it {state.label}: {line}" for line in self._left()]

    def _comes_back(self, said: str) -> list[str]:
        if self.kind is not Kind.WORKER:  # a successor has been started, or nothing had been begun yet
            until(lambda: self.state is State.RUNNING, "the zone's next life, without a command")
            said += self.zonemgr("boot")
        return [] if self.state is State.RUNNING else [f"it did not come back, it is {self.state.label}: {said!r}"]

    def boots(self) -> None:
        """The zone boots and halts, whatever was before."""
        try:
            self.zonemgr("boot")
            assert self.state is State.RUNNING
            self._down()
        except (Failed, AssertionError) as error:
            self.problems.append(f"no boot after the last ones: {error}")

    def interleave(self, *commands: str) -> None:
        """Strike each case of the commands, in turn."""
        for cases in zip_longest(*map(self.cases, commands)):
            for case in cases:
                if case is not None:
                    self.strike(case)
            if not {"halt", "reboot"} & {case.command for case in cases if case is not None}:
                self.boots()  # otherwise those have booted it
        self.boots()
        assert not self.problems, f"{self.kind.value}:\n" + "\n".join(self.problems)


@pytest.fixture
def walk(instance: Instance, warm: Nursery, tmp_path: Path) -> Iterator[Callable[[Kind], Walk]]:
    yield lambda kind: Walk(instance, warm, kind, tmp_path)


@pytest.mark.parametrize("commands", ["boot halt", "ready reboot", "mount unmount"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_step(walk: Callable[[Kind], Walk], kind: Kind, commands: str) -> None:
    walk(kind).interleave(*commands.split())
