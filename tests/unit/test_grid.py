"""The grid against the reference's table, written out once more cell by cell."""

from __future__ import annotations

import pytest

from zonemgr.errors import StateError
from zonemgr.model import grid
from zonemgr.model.grid import GRID, Already, Refuse, Run, Step
from zonemgr.model.states import Command, Notice, State

# Columns: ready boot forceboot reboot halt note_uninstalling mount forcemount unmount shutdown, and of ours
# apply confirm revert.
# A to J: the reference's procedures; inv: refused; -: already there.
EXPECTED = """
configured     inv inv inv inv inv inv inv inv inv inv inv inv inv
incomplete     inv inv B   inv inv inv inv D   inv inv inv inv inv
installed      A   B   B   inv -   C   D   D   -   -   -   inv inv
ready          -   E   E   inv F   inv inv inv inv inv K   L   M
running        H   -   -   J   I   inv inv inv inv S   K   L   M
shutting_down  H   -   -   J   I   inv inv inv inv S   inv inv inv
down           H   -   -   J   I   inv inv inv inv S   inv inv inv
mounted        inv inv inv inv inv inv inv inv G   inv inv inv inv
"""
LETTERS = {
    "A": grid.READY_INSTALLED,
    "B": grid.BOOT_INSTALLED,
    "C": grid.UNINSTALLING,
    "D": grid.MOUNT,
    "E": grid.BOOT_READY,
    "F": grid.HALT_READY,
    "G": grid.UNMOUNT,
    "H": grid.READY_ACTIVE,
    "I": grid.HALT_ACTIVE,
    "J": grid.REBOOT,
    "K": grid.APPLY,
    "L": grid.CONFIRM,
    "M": grid.REVERT,
    "S": grid.SHUTDOWN,
}
COLUMNS = [
    "ready",
    "boot",
    "forceboot",
    "reboot",
    "halt",
    "note_uninstalling",
    "mount",
    "forcemount",
    "unmount",
    "shutdown",
    "apply",
    "confirm",
    "revert",
]
ALREADY = {
    (State.INSTALLED, Command.HALT): "zone is already halted",
    (State.INSTALLED, Command.SHUTDOWN): "zone is already halted",
    (State.INSTALLED, Command.UNMOUNT): "zone is already unmounted",
    (State.READY, Command.READY): "zone is already ready",
    (State.INSTALLED, Command.APPLY): "zone is not running: its configuration takes effect when it boots",
    **{
        (state, command): "zone is already booted"
        for state in (State.RUNNING, State.SHUTTING_DOWN, State.DOWN)
        for command in (Command.BOOT, Command.FORCEBOOT)
    },
}


def expected_cells() -> dict[tuple[State, Command], str]:
    rows = [line.split() for line in EXPECTED.strip().splitlines()]
    return {
        (State.of(row[0]), Command(name)): letter for row in rows for name, letter in zip(COLUMNS, row[1:], strict=True)
    }


def test_the_grid_is_total() -> None:
    assert set(GRID) == {(state, command) for state in State for command in Command}
    assert set(expected_cells()) == set(GRID)


@pytest.mark.parametrize(("cell", "letter"), expected_cells().items(), ids=str)
def test_every_cell_is_that_of_the_reference(cell: tuple[State, Command], letter: str) -> None:
    found = grid.decide(*cell)
    if letter == "inv":
        assert isinstance(found, Refuse)
        state, command = cell
        expected = f"{command.value} operation is invalid for zones in state '{state.label}'"
        assert grid.refusal(*cell) == found.text(state, command) == expected
    elif letter == "-":
        assert found == Already(ALREADY[cell])
    else:
        assert found == Run(LETTERS[letter])
        assert grid.refusal(*cell) is None


def test_command_numbers_are_those_of_the_reference() -> None:
    assert [command.number for command in Command] == list(range(13))
    assert [command.value for command in sorted(Command, key=lambda found: found.number)] == [
        "ready", "boot", "forceboot", "reboot", "halt", "note_uninstalling", "mount", "forcemount", "unmount",
        "shutdown", "apply", "confirm", "revert",
    ]  # fmt: skip


def test_a_failed_boot_is_halted_and_told() -> None:
    boot = grid.BOOT_INSTALLED
    assert boot.begins is Notice.BOOTING
    assert boot.recovers == {Step.READY, Step.BOOT}
    assert boot.failure_notice(Step.READY) is Notice.BOOTFAILED
    assert boot.audits(Step.READY)


def test_a_reboot_whose_halt_fails_is_told_but_neither_halted_again_nor_audited() -> None:
    reboot = grid.REBOOT
    assert reboot.steps == (Step.HALT, Step.READY, Step.BOOT)
    assert reboot.failure_notice(Step.HALT) is Notice.BOOTFAILED
    assert Step.HALT not in reboot.recovers
    assert not reboot.audits(Step.HALT)
    assert not reboot.audits(Step.READY)
    assert reboot.audits(Step.BOOT)
    assert reboot.audits(None)
    assert reboot.rebooting


def test_ready_of_a_running_zone_is_silent_when_the_halt_fails() -> None:
    assert grid.READY_ACTIVE.failure_notice(Step.HALT) is None
    assert grid.READY_ACTIVE.failure_notice(Step.READY) is Notice.HALTED


def test_a_plain_ready_tells_nothing_when_it_fails() -> None:
    assert grid.READY_INSTALLED.failure_notice(Step.READY) is None
    assert not grid.READY_INSTALLED.recovery


def test_only_boots_and_reboots_are_audited() -> None:
    assert {procedure.name for procedure in grid.PROCEDURES if procedure.audits(None)} == {
        "boot",
        "boot of a ready zone",
        "reboot",
    }


def test_the_documented_table_has_a_row_for_every_state() -> None:
    lines = grid.markdown_table().splitlines()
    assert len(lines) == 2 + len(State)
    assert all(line.count("|") == len(Command) + 2 for line in lines)


CLIENT_CASES = [
    ("reboot", None, State.INSTALLED, False, "not running"),
    ("reboot", State.RUNNING, State.INSTALLED, False, None),
    ("shutdown", None, State.INSTALLED, False, "not running"),
    ("halt", None, State.INSTALLED, False, None),
    ("halt", None, State.CONFIGURED, False, None),
    ("boot", None, State.CONFIGURED, False, "must be installed before boot."),
    ("boot", None, State.INCOMPLETE, False, "must be installed before boot."),
    ("boot", None, State.INCOMPLETE, True, None),
    ("boot", None, State.CONFIGURED, True, "must be installed before boot."),
    ("boot", State.RUNNING, State.INSTALLED, False, None),
    ("ready", None, State.INCOMPLETE, True, "must be installed before ready."),
    ("mount", State.RUNNING, State.INSTALLED, False, "mount operation is invalid for running zones."),
    ("mount", None, State.INCOMPLETE, True, None),
    ("unmount", None, State.INSTALLED, False, "must be mounted before unmount."),
    ("unmount", State.MOUNTED, State.INSTALLED, False, None),
    ("install", None, State.INSTALLED, False, "is already installed."),
    ("install", None, State.INCOMPLETE, False, "zone is incomplete; uninstall required."),
    ("install", None, State.CONFIGURED, False, None),
    ("uninstall", None, State.CONFIGURED, False, "is already in state 'configured'."),
    ("uninstall", State.DOWN, State.INSTALLED, True, "uninstall operation is invalid for down zones."),
    ("detach", None, State.INCOMPLETE, False, "must be installed before detach."),
    ("attach", None, State.INCOMPLETE, False, "zone is incomplete; uninstall required."),
    ("attach", None, State.INCOMPLETE, True, None),
    ("verify", None, State.INCOMPLETE, False, "zone is incomplete; uninstall required."),
    ("verify", State.RUNNING, State.INSTALLED, False, None),
    ("sysboot", None, State.CONFIGURED, False, "sysboot operation is invalid for configured zones."),
    ("mark", State.READY, State.INSTALLED, False, "mark operation is invalid for ready zones."),
]  # fmt: skip


@pytest.mark.parametrize(("command", "live", "index", "force", "text"), CLIENT_CASES)
def test_client_checks(command: str, live: State | None, index: State, force: bool, text: str | None) -> None:
    if text is None:
        grid.client_check(command, live, index, force)
        return
    with pytest.raises(StateError) as caught:
        grid.client_check(command, live, index, force)
    assert caught.value.text == text


def test_the_global_zone_and_reserved_names_take_no_commands() -> None:
    grid.name_check("boot", "web")
    with pytest.raises(StateError, match="boot operation is invalid for the global zone."):
        grid.name_check("boot", "global")
    with pytest.raises(StateError, match="halt operation is invalid for zones starting with SUNW."):
        grid.name_check("halt", "SUNWlu-web")
