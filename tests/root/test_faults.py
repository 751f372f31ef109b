"""The fault walk: each step of boot, halt and reboot fails once, and loses its worker, supervisor and zsched
once.

Whatever happened, the zone is in a state that the grid has commands for, ``halt`` and then ``boot`` and
``halt`` work, and nothing is left on the host.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kit import leaks
from tests.kit.faults import TEXT, Fault, Kind
from tests.kit.instance import Failed, Instance
from tests.kit.nursery import Nursery
from zonemgr.model.states import State
from zonemgr.store.observe import observe

pytestmark = [pytest.mark.requires("root", "userns", "mount", "net", "cgroup"), pytest.mark.long]

ENDS = {"boot": State.RUNNING, "halt": State.INSTALLED, "reboot": State.RUNNING, "ready": State.READY}


class Walk:
    """One zone that is walked over and over."""

    def __init__(self, instance: Instance, warm: Nursery, tmp_path: Path) -> None:
        self.instance, self.warm = instance, warm
        self.notes = tmp_path / "points"
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
        done = self.warm.run(
            self.instance, verb, "web", check=check, faults=[fault.to_json()] if fault else []
        )
        return done.stderr

    @property
    def state(self) -> State:
        return observe(self.instance.layout, "web").state

    def _look(self) -> leaks.Host:
        return leaks.look((self.instance.root,), lambda suffix: suffix == self.instance.suffix)

    def _left(self) -> list[str]:
        return leaks.left(self.before, (self.instance.root,), lambda suffix: suffix == self.instance.suffix)

    def points(self, command: str) -> list[tuple[int, str]]:
        """The points that a command passes; of equal ones in a row only the first and the last."""
        self.notes.write_text("")
        self._reach(command, Fault(Kind.NOTE.value, command, notes=str(self.notes)))
        self.end()
        names = list(enumerate(self.notes.read_text().splitlines()))
        assert len(names) > 10
        return [
            (number, name)
            for number, name in names
            if not (0 < number < len(names) - 1 and names[number - 1][1] == name == names[number + 1][1])
        ]

    def _reach(self, command: str, fault: Fault) -> str:
        """Run the command in a supervisor with the fault; what it said."""
        if command in ("halt", "reboot"):
            self.zonemgr("boot", fault)
            return self.zonemgr(command, check=False)
        return self.zonemgr(command, fault, check=False)

    def end(self) -> None:
        if self.state.active:
            self.zonemgr("halt")
        assert self.state is State.INSTALLED

    def case(self, command: str, kind: Kind, number: int) -> list[str]:
        """One fault and what must work after it; what did not."""
        try:
            said = self._reach(command, Fault(kind.value, command, number))
            state = self.state
            if kind is Kind.FAIL and TEXT not in said:
                return [f"the failure is not told: {said!r}"]
            self.end()
            problems = [f"after halt: {line}" for line in self._left()]
            if state is not State.RUNNING:  # else a successor has booted it already
                self.zonemgr("boot")
                if self.state is not State.RUNNING:
                    problems.append(f"boot ended {self.state.label}")
                self.zonemgr("halt")
                problems += [f"after boot and halt: {line}" for line in self._left()]
            return [f"{line} (the fault left it {state.label})" for line in problems]
        except (Failed, AssertionError) as error:
            return [str(error)]

    def walk(self, command: str, kind: Kind) -> None:
        problems: list[str] = []
        points = self.points(command)
        for number, name in points[::2] if command == "reboot" else points:
            if name.startswith(("op ", "undone")) and (kind is Kind.BOTH or command == "reboot"):
                continue  # walked by others
            found = self.case(command, kind, number)
            problems += [f"{number} {name}: {line}" for line in found]
            if found:
                self._recover()
        assert not problems, f"{kind.value}:\n" + "\n".join(problems)

    def _recover(self) -> None:
        """Go on with the next case after one that went wrong."""
        self.warm.run(self.instance, "halt", "web", check=False)
        self.before = self._look()


@pytest.fixture
def walk(instance: Instance, warm: Nursery, tmp_path: Path) -> Walk:
    return Walk(instance, warm, tmp_path)


@pytest.mark.parametrize(
    "kind", [Kind.FAIL, Kind.WORKER, Kind.SUPERVISOR, Kind.ZSCHED, Kind.BOTH], ids=lambda k: k.name
)
@pytest.mark.parametrize("command", ["boot", "halt"])
def test_every_step(walk: Walk, command: str, kind: Kind) -> None:
    walk.walk(command, kind)


@pytest.mark.parametrize("kind", [Kind.WORKER, Kind.SUPERVISOR], ids=lambda k: k.name)
def test_a_reboot(walk: Walk, kind: Kind) -> None:
    """Its two halves have been walked; here it is one transition."""
    walk.walk("reboot", kind)
