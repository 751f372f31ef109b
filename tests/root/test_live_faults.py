"""The fault walk of ``apply``: each step of a change of a running zone fails once, and loses its worker and its
supervisor once.

Whatever happened, the zone runs on with the whole change or with nothing of it, what is recorded of it is what is
there, and the change can be made and taken back afterwards.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kit import victims
from tests.kit.faults import TEXT, Fault, Kind, Point
from tests.kit.instance import Failed, Instance
from tests.kit.nursery import Nursery
from tests.kit.waiting import until
from tests.root.test_live_change import Web, shared_fs
from zonemgr.model.zone import Zone
from zonemgr.store import snapshot

pytestmark = pytest.mark.requires("root", "userns", "mount", "net", "cgroup")


class Walk:
    """One zone whose change is made and taken back over and over."""

    def __init__(self, web: Web, notes: Path) -> None:
        self.web, self.notes = web, notes
        self.web.configure("", '[[fs]]\ndir = "/scratch"\ntype = "tmpfs"\n')
        self.web.apply()
        self.first = self.web.file.read_text()
        self.second = self.first.replace("/scratch", "/other").replace("[[net]]", f"{shared_fs(web)}\n[[net]]", 1)
        self.second = "max-lwps = 345\n" + self.second
        self.old = self.seen()
        self.go(self.second)
        self.new = self.seen()
        assert self.old != self.new
        self.go(self.first)
        assert self.seen() == self.old

    def seen(self) -> tuple[object, ...]:
        """What is there, and what is recorded of it."""
        return self.web.mounts(), self.web.pids_max(), self.web.listed(), self.frozen()

    def frozen(self) -> Zone | None:
        return snapshot.load(self.web.instance.layout, "web")

    def go(self, text: str, fault: Fault | None = None, check: bool = True) -> str:
        """Apply a configuration; with a fault in a supervisor that is started for it."""
        self.web.file.write_text(text)
        if fault is not None:
            victims.kill(victims.supervisor(self.web.instance))
        faults = [fault.to_json()] if fault else []
        done = self.web.warm.run(self.web.instance, "apply", "web", check=check, faults=faults)
        return done.stderr

    def points(self) -> list[tuple[int, str]]:
        self.notes.write_text("")
        self.go(self.second, Fault(Kind.NOTE.value, "apply", str(self.notes)))
        names = [point.name for point in Point.all(self.notes)]
        self.go(self.first)
        assert len(names) > 15
        return list(enumerate(names))

    def case(self, kind: Kind, number: int) -> list[str]:
        """One fault, and what must be so after it; what is not."""
        try:
            said = self.go(self.second, Fault(kind.value, "apply", str(self.notes), number), check=False)
            if kind is Kind.FAIL and TEXT not in said:
                return [f"the failure is not told: {said!r}"]
            until(lambda: self.web.record is None, "the end of the change")
            seen = self.seen()
            if seen == self.new and kind is not Kind.FAIL:
                self.go(self.first)
            elif seen != self.old:
                return [f"half a change, or a failed one, is left: {seen}"]
            return []
        except (Failed, AssertionError) as error:
            return [str(error)]


@pytest.fixture
def walk(instance: Instance, warm: Nursery, tmp_path: Path) -> Walk:
    shared = tmp_path / "shared"
    shared.mkdir()
    instance.running("web")
    return Walk(Web(instance, warm, shared), tmp_path / "points")


@pytest.mark.parametrize("kind", [Kind.FAIL, Kind.WORKER, Kind.SUPERVISOR], ids=lambda kind: kind.name)
def test_every_step(walk: Walk, kind: Kind) -> None:
    """Of those that a killed supervisor leaves only every second: each costs the start of a cold one.  At the last
    one zsched is told that all is over; whether it hears that changes nothing.
    """
    points = walk.points()[: -1 : 2 if kind is Kind.SUPERVISOR else 1]
    problems = [f"{number} {name}: {line}" for number, name in points for line in walk.case(kind, number)]
    assert not problems, f"{kind.value}:\n" + "\n".join(problems)
    walk.go(walk.second)
    assert walk.seen() == walk.new
    walk.go(walk.first)
    assert walk.seen() == walk.old
