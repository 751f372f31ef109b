"""Every cell of the grid against living zones: the answer, its text, and the state that the zone is in afterwards.

Each state is brought about as it is on a real host: ``incomplete`` by an install that fails, ``shutting_down`` by a
process that waits for a frozen file system, ``down`` by a brand whose halt command fails, ``configured`` with a
supervisor by an uninstall while somebody monitors it.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.kit import door, processes, victims
from tests.kit.brands import Traced
from tests.kit.instance import Instance
from tests.kit.waiting import until
from zonemgr.model.grid import GRID, Already, Refuse, Run
from zonemgr.model.states import Command, State
from zonemgr.store import instance as instances
from zonemgr.store.observe import state_of

pytestmark = pytest.mark.requires("root", "mount", "net", "cgroup")

_FIFREEZE, _FITHAW = 0xC0045877, 0xC0045878

# What the reference says, written down once more by hand: the grid must not be its own proof.
INVALID = "invalid"
NOTHING_WAITS = "no change"
CHANGES = (Command.APPLY, Command.CONFIRM, Command.REVERT)
EXPECTED: dict[State, dict[Command, str]] = {
    State.INSTALLED: {Command.HALT: "zone is already halted", Command.SHUTDOWN: "zone is already halted",
                      Command.UNMOUNT: "zone is already unmounted", Command.REBOOT: INVALID,
                      Command.APPLY: "zone is not running: its configuration takes effect when it boots",
                      Command.CONFIRM: INVALID, Command.REVERT: INVALID},
    State.READY: {Command.READY: "zone is already ready", Command.REBOOT: INVALID, Command.NOTE_UNINSTALLING: INVALID,
                  Command.MOUNT: INVALID, Command.FORCEMOUNT: INVALID, Command.UNMOUNT: INVALID,
                  Command.SHUTDOWN: INVALID},
    State.MOUNTED: {command: INVALID for command in Command if command is not Command.UNMOUNT},
    State.CONFIGURED: dict.fromkeys(Command, INVALID),
    State.INCOMPLETE: {command: INVALID for command in Command
                       if command not in (Command.FORCEBOOT, Command.FORCEMOUNT)},
}  # fmt: skip
for _state in (State.RUNNING, State.SHUTTING_DOWN, State.DOWN):
    EXPECTED[_state] = {
        Command.BOOT: "zone is already booted", Command.FORCEBOOT: "zone is already booted",
        Command.NOTE_UNINSTALLING: INVALID, Command.MOUNT: INVALID, Command.FORCEMOUNT: INVALID,
        Command.UNMOUNT: INVALID,
        **(dict.fromkeys(CHANGES, INVALID) if _state is not State.RUNNING else {}),
    }  # fmt: skip


class Matrix:
    """The zone "web", and which cells have been walked with it."""

    def __init__(self, instance: Instance) -> None:
        self.instance = instance
        self.walked: set[tuple[State, Command]] = set()

    @property
    def state(self) -> State:
        """As everybody sees it."""
        return state_of(self.instance.layout, "web")

    def ask(self, command: Command) -> door.Answer:
        self.walked.add((self.state, command))
        return door.ask(self.instance, command)

    def still(self, state: State) -> None:
        """All commands that leave this state alone do so, and say what they should."""
        told = [command for command in Command if not isinstance(GRID[state, command], Run)]
        assert set(told) == set(EXPECTED[state])
        for command in told:
            answer = self.ask(command)
            wanted = EXPECTED[state][command]
            if wanted is INVALID:
                text = f"{command.value} operation is invalid for zones in state '{state.label}'"
                assert (answer.ok, answer.messages) == (False, (text,)), command
                assert isinstance(GRID[state, command], Refuse)
            else:
                assert (answer.ok, answer.messages, answer.note) == (True, (wanted,), wanted), command
                assert isinstance(GRID[state, command], Already)
            assert self.state is state, command

    def does(self, command: Command, state: State) -> None:
        """The command works and the zone is in this state afterwards."""
        answer = self.ask(command)
        assert answer.ok, (command, answer.messages)
        assert self.state is state, command

    def fails(self, command: Command, state: State, *texts: str) -> None:
        """The command fails with these words in its messages, and the zone stays in this state."""
        answer = self.ask(command)
        assert not answer.ok, command
        for text in texts:
            assert text in answer.text, (command, answer.messages)
        assert self.state is state, command

    def is_complete(self, *states: State) -> None:
        """Every command has been given in these states."""
        left = [(state.label, command.value) for state in states for command in Command
                if (state, command) not in self.walked]  # fmt: skip
        assert not left


@pytest.fixture
def matrix(instance: Instance) -> Matrix:
    return Matrix(instance)


def test_installed_ready_running_and_mounted(matrix: Matrix, instance: Instance) -> None:
    instance.installed()
    with door.monitored(instance):
        matrix.still(State.INSTALLED)
        matrix.does(Command.NOTE_UNINSTALLING, State.INSTALLED)

        matrix.does(Command.READY, State.READY)
        matrix.still(State.READY)
        matrix.does(Command.APPLY, State.READY)
        for command in (Command.CONFIRM, Command.REVERT):
            matrix.fails(command, State.READY, NOTHING_WAITS)
        matrix.does(Command.HALT, State.INSTALLED)
        matrix.does(Command.READY, State.READY)
        matrix.does(Command.BOOT, State.RUNNING)
        matrix.still(State.RUNNING)
        matrix.does(Command.APPLY, State.RUNNING)
        for command in (Command.CONFIRM, Command.REVERT):
            matrix.fails(command, State.RUNNING, NOTHING_WAITS)
        matrix.does(Command.READY, State.READY)
        matrix.does(Command.FORCEBOOT, State.RUNNING)
        matrix.does(Command.REBOOT, State.RUNNING)
        matrix.does(Command.HALT, State.INSTALLED)

        matrix.does(Command.BOOT, State.RUNNING)
        matrix.does(Command.SHUTDOWN, State.INSTALLED)
        matrix.does(Command.FORCEBOOT, State.RUNNING)
        matrix.does(Command.HALT, State.INSTALLED)

        matrix.does(Command.FORCEMOUNT, State.MOUNTED)
        matrix.does(Command.UNMOUNT, State.INSTALLED)
        matrix.does(Command.MOUNT, State.MOUNTED)
        matrix.still(State.MOUNTED)
        matrix.does(Command.UNMOUNT, State.INSTALLED)
    matrix.is_complete(State.INSTALLED, State.READY, State.RUNNING, State.MOUNTED)


def test_configured_with_a_supervisor_that_somebody_monitors(matrix: Matrix, instance: Instance) -> None:
    instance.installed()
    with door.monitored(instance):
        instance.run("uninstall", "-F", "web")
        assert door.state(instance)["state"] == "configured"
        matrix.still(State.CONFIGURED)
    matrix.is_complete(State.CONFIGURED)


def test_a_configured_zone_gets_no_supervisor(instance: Instance) -> None:
    instance.configured()
    for verb in ("halt", "boot", "unmount", "ready", "mount", "reboot", "shutdown"):
        done = instance.run(verb, "web", check=1)
        assert len(done.stderr.splitlines()) <= 2
        assert done.stderr.startswith("zonemgr: ")
    done = instance.run("halt", "web", check=1)
    assert "cannot manage a zone which is in state 'configured'" in done.stderr


def test_incomplete(matrix: Matrix, instance: Instance) -> None:
    brand = Traced(instance)
    brand.script({"install": "fail"})
    instance.configured("web", "-b", brand.name)
    instance.run("install", "web", check=1)
    assert matrix.state is State.INCOMPLETE
    matrix.still(State.INCOMPLETE)
    matrix.does(Command.FORCEBOOT, State.RUNNING)
    matrix.does(Command.HALT, State.INCOMPLETE)
    matrix.does(Command.FORCEMOUNT, State.MOUNTED)
    matrix.does(Command.UNMOUNT, State.INCOMPLETE)
    matrix.is_complete(State.INCOMPLETE)


def test_down(matrix: Matrix, instance: Instance) -> None:
    brand = Traced(instance)
    instance.running("web", "-b", brand.name)
    brand.script({"halt": "fail"})
    for command in (Command.HALT, Command.READY, Command.REBOOT):
        matrix.fails(
            command,
            State.DOWN,
            "brand 'traced' halt failed with exit status 1",
            "unable to destroy zone",
        )
    matrix.fails(Command.SHUTDOWN, State.DOWN, "unable to shutdown zone")
    matrix.still(State.DOWN)

    brand.script()
    matrix.does(Command.REBOOT, State.RUNNING)
    brand.script({"halt": "fail"})
    matrix.fails(Command.HALT, State.DOWN)
    brand.script()
    matrix.does(Command.READY, State.READY)
    matrix.does(Command.BOOT, State.RUNNING)
    brand.script({"halt": "fail"})
    matrix.fails(Command.HALT, State.DOWN)
    brand.script()
    matrix.does(Command.HALT, State.INSTALLED)
    matrix.is_complete(State.DOWN)


@pytest.fixture
def frozen_zone(instance: Instance, tmp_path: Path) -> Instance:
    """A running zone with a file system of its own at /data that can be frozen, and a patience of one second."""
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(8 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-O", "^has_journal", image], check=True)
    instance.layout.etc.mkdir(parents=True, exist_ok=True)
    instance.layout.settings.write_text("kill-s = 1\n")
    instance.configured()
    instance.run("config", "web", "add", "fs", "dir=/data", f"special={image}", "type=ext4")
    instance.run("install", "web")
    instance.run("boot", "web")
    return instance


@contextmanager
def frozen(instance: Instance) -> Iterator[None]:
    """/data is frozen, and a process of the zone is stuck in a write to it."""
    record = instances.read(instance.layout, "web")
    assert record is not None and record.init is not None
    data = os.open(f"/proc/{record.init.pid}/root/data", os.O_RDONLY | os.O_DIRECTORY)
    writer = None
    try:
        fcntl.ioctl(data, _FIFREEZE, 0)
        writer = instance.popen("login", "web", "--", "/bin/sh", "-c", "echo > /data/x")
        until(lambda: _stuck(Path(record.cgroup)), "a process of the zone waiting for the frozen file system")
        yield
    finally:
        fcntl.ioctl(data, _FITHAW, 0)
        os.close(data)
        if writer is not None:
            writer.send_signal(signal.SIGKILL)
            writer.communicate()


def _stuck(cgroup: Path) -> bool:
    return any(processes.read(pid, "stat").rpartition(")")[2].startswith(" D") for pid in victims.members(cgroup))


@pytest.mark.requires("loop")
def test_shutting_down(matrix: Matrix, frozen_zone: Instance) -> None:
    instance = frozen_zone
    with frozen(instance):
        for command in (Command.HALT, Command.READY, Command.REBOOT):
            matrix.fails(command, State.SHUTTING_DOWN, "unable to shutdown zone: still there: ", "(sh)")
        matrix.fails(Command.SHUTDOWN, State.SHUTTING_DOWN, "unable to shutdown zone")
        matrix.still(State.SHUTTING_DOWN)
    matrix.does(Command.REBOOT, State.RUNNING)
    with frozen(instance):
        matrix.fails(Command.HALT, State.SHUTTING_DOWN)
    matrix.does(Command.READY, State.READY)
    matrix.does(Command.BOOT, State.RUNNING)
    with frozen(instance):
        matrix.fails(Command.HALT, State.SHUTTING_DOWN)
    matrix.does(Command.HALT, State.INSTALLED)
    matrix.is_complete(State.SHUTTING_DOWN)
