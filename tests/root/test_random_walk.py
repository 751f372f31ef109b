"""A zone is taken up and down, changed, and robbed of its processes at random; in the end nothing is left.

The walk is decided by its seed alone, which a failure names: ``ZONEMGR_SEED=n`` repeats it, ``ZONEMGR_STEPS=n`` makes
it as long as one likes (contrib/test --long takes a thousand).  A process dies where a transition passes a point of
``tests.kit.faults``, or between two commands.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from tests.kit import leaks, victims
from tests.kit.faults import Fault, Kind
from tests.kit.instance import Instance
from tests.kit.nursery import Nursery
from tests.kit.waiting import until
from zonemgr.model.states import State
from zonemgr.store import instance as instances
from zonemgr.store.observe import observe

pytestmark = [pytest.mark.requires("root", "userns", "mount", "net", "cgroup"), pytest.mark.long]

STEPS: Final = int(os.environ.get("ZONEMGR_STEPS", "60"))
SEED: Final = int(os.environ.get("ZONEMGR_SEED", "4"))
POINTS: Final = 100  # a little more than the longest transition passes
DEADLY: Final = (Kind.FAIL, Kind.WORKER, Kind.SUPERVISOR, Kind.ZSCHED, Kind.BOTH)
COMMANDS: Final = ("boot", "boot", "halt", "reboot", "ready", "mount", "unmount", "shutdown")
RESTS: Final = (State.INSTALLED, State.READY, State.MOUNTED, State.RUNNING)


class Walk:
    """A zone, a source of chance, and what has been done."""

    def __init__(self, instance: Instance, warm: Nursery, notes: Path, seed: int) -> None:
        self.instance, self.warm, self.notes = instance, warm, notes
        self.chance = random.Random(seed)
        self.done: list[str] = []

    @property
    def state(self) -> State:
        return observe(self.instance.layout, "web").state

    def step(self) -> None:
        """Something, and then the zone is in a state that has a way out."""
        action = self.chance.choices((self.command, self.change, self.kill), (6, 2, 2))[0]
        action()
        assert self.state in (*RESTS, State.SHUTTING_DOWN, State.DOWN)

    def command(self) -> None:
        """A transition, in every other case with a fault somewhere.  It may well be refused."""
        verb = self.chance.choice(COMMANDS)
        faults = []
        if self.chance.random() < 0.5:
            kind, number = self.chance.choice(DEADLY), self.chance.randrange(POINTS)
            # The supervisor that is started may be for this command or, when it stays, for a later one.
            command = self.chance.choice((verb, *COMMANDS))
            faults = [Fault(kind.value, command, str(self.notes), number).to_json()]
            self.done.append(f"{verb} with {kind.name} at {number} of {command}")
        else:
            self.done.append(verb)
        self.warm.run(self.instance, verb, "web", check=False, faults=faults)

    def change(self) -> None:
        """Another configuration, which a running zone takes over at once as far as it can."""
        self._config(
            self.chance.choice(
                (
                    f"select capped-memory; set physical={self.chance.randrange(64, 512)}m; end",
                    f"select capped-cpu; set ncpus={self.chance.randrange(1, 40) / 10}; end",
                    f"set bootargs=\"-m verbose {self.chance.randrange(100)}\"",
                )
            )
        )
        if self.state is State.RUNNING:
            self.done.append("apply")
            self.warm.run(self.instance, "apply", "web", check=False)

    def _config(self, text: str) -> None:
        self.done.append(text)
        self.warm.run(self.instance, "config", "web", text)

    def kill(self) -> None:
        """One of the zone's processes dies between two commands."""
        find: Callable[[instances.Instance], instances.Process | None]
        name, find = self.chance.choice(
            (("zsched", lambda record: record.zsched), ("init", lambda record: record.init))
        )
        record = instances.read(self.instance.layout, "web")
        process = find(record) if record else None
        self.done.append(f"kill {name if process else 'nobody'}")
        if process is not None and process.alive:
            victims.kill(process.pid)
        if self.chance.random() < 0.5 and victims.has_supervisor(self.instance):
            self.done.append("kill the supervisor")
            victims.kill(victims.supervisor(self.instance))

    def end(self) -> None:
        """Down, by what an operator types."""
        for verb in ("unmount", "halt"):
            self.warm.run(self.instance, verb, "web", check=False)
        until(lambda: self.state is State.INSTALLED, "the end of the zone")


def test_nothing_is_left_after_a_random_life(instance: Instance, warm: Nursery, tmp_path: Path) -> None:
    instance.configured("web")
    instance.run("config", "web", "add capped-memory physical=256m; add capped-cpu ncpus=1")
    instance.run("install", "web")
    instance.run("boot", "web")
    instance.run("halt", "web")
    before = leaks.look((instance.root,), lambda suffix: suffix == instance.suffix)
    walk = Walk(instance, warm, tmp_path / "notes", SEED)
    try:
        for _ in range(STEPS):
            walk.step()
        walk.end()
        assert instance.run("fsck").stderr == ""
        assert instance.json("fsck") == []
        assert leaks.left(before, (instance.root,), lambda suffix: suffix == instance.suffix) == []
        instance.run("boot", "web")
        assert walk.state is State.RUNNING
    except Exception as error:
        error.add_note(f"ZONEMGR_SEED={SEED}, after: " + "; ".join(walk.done))
        raise
