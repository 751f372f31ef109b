"""The fault walk of ``apply``: each step of a change of a running zone fails once, and loses its worker and its
supervisor once, and its zsched, alone and with the supervisor.

Whatever happened, the zone runs on with the whole change or with nothing of it, what is recorded of it is what is
there, and the change can be made and taken back afterwards; without its zsched by a reboot.
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


# What only zsched can do for a change that is taken back.
STRANDED = "cannot take back all of the change: cannot mount /scratch again: the zone's zsched was killed"


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

    def severed(self, kind: Kind, number: int) -> list[str]:
        """One fault that takes zsched along, and what must be so after it; what is not."""
        try:
            self.boot(self.first)
            said = self.go(self.second, Fault(kind.value, "apply", str(self.notes), number), check=False)
            if " was not mounted any more" in said:
                return [f"what we have unmounted is laid to the zone: {said!r}"]
            victims.supervisor(self.web.instance)  # with both gone, the next command is who looks after it
            problems = self._stranded(said) if kind is Kind.BOTH and STRANDED in said else self._whole(said)
            if problems:
                return problems
            self.boot(self.second)
            assert self.web.record is None
            return [] if self.seen() == self.new else [f"not what a boot makes: {self.seen()}"]
        except (Failed, AssertionError) as error:
            return [str(error)]

    def _whole(self, said: str) -> list[str]:
        """All of the change or nothing of it is there, and there is no other."""
        until(lambda: self.web.record is None, f"the end of the change ({said!r})")
        seen = self.seen()
        if seen not in (self.old, self.new):
            return [f"half a change is left: {seen}"]
        refused = self.go(self.second if seen == self.old else self.first, check=False)
        if "only a reboot can change the zone" not in refused:
            return [f"a zone without its zsched can be changed: {refused!r}"]
        return []

    def _stranded(self, said: str) -> list[str]:
        """What was unmounted cannot come again, since who held the zone's namespaces is gone: all else is taken back,
        what is recorded is there, whoever asks is told the way out."""
        again = self.go(self.second, check=False)
        mounts, pids_max, listed, _frozen = self.seen()
        assert isinstance(mounts, list) and isinstance(listed, list)
        found = [line for line in (said, again) if STRANDED not in line or "a reboot of the zone mounts" not in line]
        if any(line.startswith(("/other ", "/scratch ", "/srv ")) for line in mounts):
            found.append(f"mounted: {mounts}")
        if any(directory in op for op in listed for directory in ('"/other"', '"/srv"')):
            found.append(f"listed: {listed}")
        return found if pids_max == self.old[1] else [*found, f"limit: {pids_max}"]

    def boot(self, text: str) -> None:
        """A new life with this configuration."""
        self.web.file.write_text(text)
        for verb in ("halt", "boot"):
            self.web.warm.run(self.web.instance, verb, "web")

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


@pytest.mark.parametrize("kind", [Kind.ZSCHED, Kind.BOTH], ids=lambda kind: kind.name)
def test_every_step_without_zsched(walk: Walk, kind: Kind) -> None:
    """At each the zone loses what holds its namespaces, and every second one its supervisor too."""
    points = walk.points()[: -1 : 2 if kind is Kind.BOTH else 1]
    problems = [f"{number} {name}: {line}" for number, name in points for line in walk.severed(kind, number)]
    assert not problems, f"{kind.value}:\n" + "\n".join(problems)
    walk.boot(walk.first)
    walk.go(walk.second)
    assert walk.seen() == walk.new
