"""Faults at every step of a transition, planted in a supervisor before it serves (``tests.kit.nursery``).

A *point* is a moment in a worker: before an op acts (it is in the ledger already), or before one of the functions
below is called.  Points are numbered as a transition passes them, so a walk first runs the transition with a fault that
only writes the points down, and then once for each point and kind of fault.  Only ``perform`` is watched: the recovery
of what a fault has broken runs undisturbed.

A fault writes to a file of notes: NOTE one line for each point, all others one line when they strike, so that a walk
knows of a fault that did not.
"""

from __future__ import annotations

import enum
import functools
import mmap
import os
import select
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

from zonemgr.errors import PlatformError
from zonemgr.model import plan
from zonemgr.platform import live, undo
from zonemgr.store import change, snapshot
from zonemgr.store import instance as instances
from zonemgr.store.ledger import Ledger
from zonemgr.supervisor import boot, bringup, statehooks, teardown, worker
from zonemgr.supervisor.anchor import Anchor
from zonemgr.supervisor.transition import Transition

TEXT: Final = "a fault was planted here"


class Kind(enum.Enum):
    """What happens at the point."""

    NOTE = "note"  # nothing: the names of the points are written down
    FAIL = "fail"
    WORKER = "kill the worker"
    SUPERVISOR = "kill the supervisor"
    ZSCHED = "kill zsched"
    BOTH = "kill zsched, then the supervisor"


@dataclass(frozen=True, slots=True)
class Point:
    """A moment in a transition: what is about to happen, and whether there is a zsched to kill."""

    name: str
    has_zsched: bool

    @classmethod
    def all(cls, notes: Path) -> list[Point]:
        """What a fault of kind NOTE has written."""
        rows = (line.partition(" ") for line in notes.read_text().splitlines())
        return [cls(name, zsched == "1") for zsched, _, name in rows]


@dataclass(frozen=True)
class Fault:
    """One fault: at the ``number``-th point (from 0) that a worker performing ``command`` passes."""

    kind: str
    command: str
    notes: str  # a file, which is appended to
    number: int = -1

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))


# Each is a point whenever it is called.  Attributes of what the worker calls through, as "owner, name".
_FUNCTIONS: Final[tuple[tuple[Any, str], ...]] = (
    (statehooks, "pre"),
    (statehooks, "post"),
    (bringup, "_bring_up"),
    (bringup, "_verify"),
    (boot, "_in_zone_mounts"),
    (boot, "_check_init"),
    (statehooks, "run"),
    (boot, "_exec"),
    (teardown, "_kill_all"),
    (teardown, "take_back"),
    (teardown, "_unmount"),
    (teardown, "_dismiss"),
    (bringup._Builder, "_adopt_birth"),
    (bringup._Builder, "keep_console"),
    (bringup._Builder, "seal"),
    (bringup._Builder, "commit"),
    (snapshot, "create"),
    (snapshot, "write"),
    (change, "write"),
    (change, "forget"),
    (live, "perform"),
    (Anchor, "wake"),
    (snapshot, "destroy"),
    (instances, "write"),
    (instances, "forget"),
    (undo, "network"),
    (undo, "everything"),
    (Ledger, "undone"),
    (Ledger, "clear"),
    (Transition, "publish"),
)


class _Walker:
    """Counts points in the worker and does what the fault says."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self.kind = Kind(fault.kind)
        self.transition: Transition | None = None  # None: not in the worker that the fault is for
        self.passed = 0
        self.notes_fd = -1
        self.struck = mmap.mmap(-1, 1)  # shared with the workers: a fault strikes once in a supervisor's life

    def begin(self, transition: Transition) -> None:
        """The worker begins what the fault is for.  From here it may go where no file of the host has its name."""
        self.transition = transition
        self.notes_fd = os.open(
            self.fault.notes, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600
        )

    def pass_by(self, name: str) -> None:
        if self.transition is None:
            return
        number, self.passed = self.passed, self.passed + 1
        if self.kind is Kind.NOTE:
            self._note(f"{int(self._zsched() is not None)} {name}")
        elif number == self.fault.number and not self.struck[0]:
            self.struck[0] = 1
            self._note(name)
            self._strike()

    def _note(self, text: str) -> None:
        os.write(self.notes_fd, f"{text}\n".encode())

    def _strike(self) -> None:
        match self.kind:
            case Kind.FAIL:
                raise PlatformError(TEXT)
            case Kind.WORKER:
                _end(os.getpid())
            case Kind.SUPERVISOR:
                _end(os.getppid())
            case Kind.ZSCHED:
                self._kill_zsched()
            case Kind.BOTH:
                self._kill_zsched()
                _end(os.getppid())

    def _zsched(self) -> instances.Process | None:
        assert self.transition is not None
        instance = instances.read(self.transition.layout, self.transition.zonename)
        return instance.zsched if instance and instance.zsched and instance.zsched.alive else None

    def _kill_zsched(self) -> None:
        zsched = self._zsched()
        if zsched is not None:
            pid_fd = os.pidfd_open(zsched.pid)
            signal.pidfd_send_signal(pid_fd, signal.SIGKILL)
            select.select([pid_fd], [], [])
            os.close(pid_fd)


def _end(pid: int) -> NoReturn:
    """Kill, and never act again: the worker dies with its supervisor."""
    os.kill(pid, signal.SIGKILL)
    while True:
        signal.pause()


def plant(fault: Fault) -> None:
    """Plant a fault in this process, which is about to become a supervisor."""
    walker = _Walker(fault)
    for owner, name in _FUNCTIONS:
        setattr(owner, name, _watched(getattr(owner, name), name.strip("_"), walker))
    worker.perform = _watched_perform(worker.perform, walker)


def _watched(function: Callable[..., Any], name: str, walker: _Walker) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        walker.pass_by(_named(name, arguments))
        return function(*arguments, **options)

    return call


def _named(name: str, arguments: tuple[Any, ...]) -> str:
    if name == "run":
        return f"hook {arguments[1]}"
    if name == "write":
        phase = getattr(arguments[1], "phase", None)
        return f"record {phase.value}" if phase else "write snapshot"
    return name.replace("_", " ")


def _watched_perform(perform: Callable[..., bool], walker: _Walker) -> Callable[..., bool]:
    @functools.wraps(perform)
    def call(transition: Transition, procedure: Any) -> bool:
        def step(op: plan.Op) -> None:
            walker.pass_by(f"op {op.describe()}")

        if transition.command.value == walker.fault.command:
            transition.step = step
            walker.begin(transition)
        return perform(transition, procedure)

    return call
