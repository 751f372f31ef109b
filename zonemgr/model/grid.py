"""What every command does in every state: one total table (zones reference, sections 1.5, 1.6 and 6.1).

``GRID`` is what a supervisor does, ``CLIENT_RULES`` are the courtesy checks a client makes before it asks.
Both are data.  Nothing here knows how a step is done; the supervisor and the worker do.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from zonemgr.errors import StateError, marked, message
from zonemgr.model.states import GLOBAL_ZONE, Command, Notice, State

RESERVED_PREFIX: Final = "SUNW"


class Step(enum.Enum):
    """One part of a transition, done by the worker."""

    READY = "ready"
    BOOT = "boot"
    HALT = "halt"
    MOUNT = "mount"
    UNMOUNT = "unmount"
    SHUTDOWN = "shutdown"
    NOTE_UNINSTALLING = "note_uninstalling"
    APPLY = "apply"
    CONFIRM = "confirm"
    REVERT = "revert"


@dataclass(frozen=True, slots=True)
class Procedure:
    """A sequence of steps with what the console is told.

    ``begins`` is told before the first step, ``succeeds`` after the last (``announced_after`` names an earlier step),
    ``fails`` after a failed step that is not in ``quiet``.  After a failed step in ``recovers`` the zone is halted
    before ``fails`` is told and the result of that halt is ignored.  ``rebooting`` halts keep what a reboot keeps.
    ``audit`` is the new state an audit record names; the failure of a step before ``audited_from`` writes none.
    """

    name: str
    steps: tuple[Step, ...]
    begins: Notice | None = None
    succeeds: Notice | None = None
    fails: Notice | None = None
    rebooting: bool = False
    recovers: frozenset[Step] = frozenset()
    quiet: frozenset[Step] = frozenset()
    announced_after: Step | None = None
    audit: str | None = None
    audited_from: Step | None = None
    accepts_arguments: bool = False

    @property
    def recovery(self) -> bool:
        """A failed bring-up is halted."""
        return bool(self.recovers)

    def failure_notice(self, step: Step) -> Notice | None:
        """What the console is told when ``step`` failed."""
        return None if step in self.quiet else self.fails

    def audits(self, failed: Step | None) -> bool:
        """Whether the outcome is worth an audit record (``failed``: the step that failed, None for success)."""
        if self.audit is None:
            return False
        if failed is None or self.audited_from is None:
            return True
        return self.steps.index(failed) >= self.steps.index(self.audited_from)


@dataclass(frozen=True, slots=True)
class Refuse:
    """The command is an error in this state; ``form`` takes ``command`` and ``state``."""

    form: str

    def text(self, state: State, command: Command) -> str:
        return message(self.form, command=command.value, state=state.label)


@dataclass(frozen=True, slots=True)
class Already:
    """Nothing to do: a success with a note."""

    form: str

    def text(self) -> str:
        return message(self.form)


@dataclass(frozen=True, slots=True)
class Run:
    """The command runs this procedure."""

    procedure: Procedure


Cell = Refuse | Already | Run

INVALID: Final = Refuse("{command} operation is invalid for zones in state '{state}'")

READY_INSTALLED: Final = Procedure("ready", (Step.READY,), succeeds=Notice.READIED)
BOOT_INSTALLED: Final = Procedure(
    "boot",
    (Step.READY, Step.BOOT),
    begins=Notice.BOOTING,
    fails=Notice.BOOTFAILED,
    recovers=frozenset({Step.READY, Step.BOOT}),
    audit="boot",
    accepts_arguments=True,
)
UNINSTALLING: Final = Procedure("note uninstalling", (Step.NOTE_UNINSTALLING,), begins=Notice.UNINSTALLING)
# A failed MOUNT leaves the scratch zone mounted: the administrator who asked for it looks at it and unmounts.
MOUNT: Final = Procedure(
    "mount", (Step.READY, Step.MOUNT), succeeds=Notice.READIED, announced_after=Step.READY
)
BOOT_READY: Final = Procedure(
    "boot of a ready zone",
    (Step.BOOT,),
    begins=Notice.BOOTING,
    fails=Notice.BOOTFAILED,
    rebooting=True,
    recovers=frozenset({Step.BOOT}),
    audit="boot",
    accepts_arguments=True,
)
HALT_READY: Final = Procedure("halt of a ready zone", (Step.HALT,), succeeds=Notice.HALTED)
UNMOUNT: Final = Procedure("unmount", (Step.UNMOUNT,), succeeds=Notice.HALTED)
READY_ACTIVE: Final = Procedure(
    "ready of an active zone",
    (Step.HALT, Step.READY),
    succeeds=Notice.READIED,
    fails=Notice.HALTED,
    rebooting=True,
    quiet=frozenset({Step.HALT}),
)
HALT_ACTIVE: Final = Procedure("halt", (Step.HALT,), succeeds=Notice.HALTED)
REBOOT: Final = Procedure(
    "reboot",
    (Step.HALT, Step.READY, Step.BOOT),
    begins=Notice.REBOOTING,
    fails=Notice.BOOTFAILED,
    rebooting=True,
    recovers=frozenset({Step.BOOT}),  # a failed READY has undone itself
    audit="reboot",
    audited_from=Step.BOOT,
    accepts_arguments=True,
)
# The zone's end arrives as an event of its own, with HALTED.
SHUTDOWN: Final = Procedure("shutdown", (Step.SHUTDOWN,))

# Changes of a living zone (reference, section 11: live reconfiguration).
APPLY: Final = Procedure("apply", (Step.APPLY,))
CONFIRM: Final = Procedure("confirm", (Step.CONFIRM,))
REVERT: Final = Procedure("revert", (Step.REVERT,))

PROCEDURES: Final = (
    READY_INSTALLED,
    BOOT_INSTALLED,
    UNINSTALLING,
    MOUNT,
    BOOT_READY,
    HALT_READY,
    UNMOUNT,
    READY_ACTIVE,
    HALT_ACTIVE,
    REBOOT,
    SHUTDOWN,
    APPLY,
    CONFIRM,
    REVERT,
)

_ALREADY_READY: Final = Already("zone is already ready")
_ALREADY_BOOTED: Final = Already("zone is already booted")
_ALREADY_HALTED: Final = Already("zone is already halted")
_ALREADY_UNMOUNTED: Final = Already("zone is already unmounted")
_AT_NEXT_BOOT: Final = Already("zone is not running: its configuration takes effect when it boots")
_CHANGES: Final[Mapping[Command, Cell]] = {
    Command.APPLY: Run(APPLY),
    Command.CONFIRM: Run(CONFIRM),
    Command.REVERT: Run(REVERT),
}

_INSTALLED: Final[Mapping[Command, Cell]] = {
    Command.READY: Run(READY_INSTALLED),
    Command.BOOT: Run(BOOT_INSTALLED),
    Command.FORCEBOOT: Run(BOOT_INSTALLED),
    Command.HALT: _ALREADY_HALTED,
    Command.NOTE_UNINSTALLING: Run(UNINSTALLING),
    Command.MOUNT: Run(MOUNT),
    Command.FORCEMOUNT: Run(MOUNT),
    Command.UNMOUNT: _ALREADY_UNMOUNTED,
    Command.SHUTDOWN: _ALREADY_HALTED,
    Command.APPLY: _AT_NEXT_BOOT,
}
_ACTIVE: Final[Mapping[Command, Cell]] = {
    Command.READY: Run(READY_ACTIVE),
    Command.BOOT: _ALREADY_BOOTED,
    Command.FORCEBOOT: _ALREADY_BOOTED,
    Command.REBOOT: Run(REBOOT),
    Command.HALT: Run(HALT_ACTIVE),
    Command.SHUTDOWN: Run(SHUTDOWN),
}
_ROWS: Final[Mapping[State, Mapping[Command, Cell]]] = {
    State.CONFIGURED: {},
    # A zone that broke while it was installed may be looked into by force, as if it were installed.
    State.INCOMPLETE: {
        Command.FORCEBOOT: _INSTALLED[Command.FORCEBOOT],
        Command.FORCEMOUNT: _INSTALLED[Command.FORCEMOUNT],
    },
    State.INSTALLED: _INSTALLED,
    State.READY: {
        Command.READY: _ALREADY_READY,
        Command.BOOT: Run(BOOT_READY),
        Command.FORCEBOOT: Run(BOOT_READY),
        Command.HALT: Run(HALT_READY),
        **_CHANGES,
    },
    State.RUNNING: {**_ACTIVE, **_CHANGES},
    State.SHUTTING_DOWN: _ACTIVE,
    State.DOWN: _ACTIVE,
    State.MOUNTED: {Command.UNMOUNT: Run(UNMOUNT)},
}

GRID: Final[Mapping[tuple[State, Command], Cell]] = {
    (state, command): _ROWS[state].get(command, INVALID) for state in State for command in Command
}


def decide(state: State, command: Command) -> Cell:
    """The cell for this state and command; there always is one."""
    return GRID[state, command]


def refusal(state: State, command: Command) -> str | None:
    """The text of the refusal, or None when the command is not refused."""
    cell = GRID[state, command]
    return cell.text(state, command) if isinstance(cell, Refuse) else None


def describe(cell: Cell) -> str:
    """A cell in a few words, for the documentation."""
    match cell:
        case Refuse():
            return "refused"
        case Already(form=form):
            return f"“{form}”"
        case Run(procedure=procedure):
            return procedure.name


def markdown_table() -> str:
    """The grid as a Markdown table, states down, commands across."""
    head = "| state | " + " | ".join(command.value for command in Command) + " |"
    rule = "|---" * (len(Command) + 1) + "|"
    rows = [
        f"| {state.label} | " + " | ".join(describe(GRID[state, command]) for command in Command) + " |"
        for state in State
    ]
    return "\n".join([head, rule, *rows]) + "\n"


class Live(enum.Enum):
    """What a client's command asks of the zone's life."""

    ANY = "any"
    NEEDED = "needed"
    FORBIDDEN = "forbidden"


@dataclass(frozen=True, slots=True)
class ClientRule:
    """The courtesy checks of one verb: life first, then the state on disk.

    ``refusals`` maps a state to the text that refuses it; ``forced`` replaces ``refusals`` when force is asked.
    Texts may hold ``{command}`` and ``{state}``.
    """

    live: Live = Live.ANY
    refusals: Mapping[State, str] | None = None
    forced: Mapping[State, str] | None = None


def _below(limit: State, text: str) -> Mapping[State, str]:
    return {state: text for state in State if state < limit}


def _all_but(allowed: State, text: str) -> Mapping[State, str]:
    return {state: text for state in State if state is not allowed}


_MUST_BE_INSTALLED: Final = marked("must be installed before {command}.")
_ALREADY_THERE: Final[Mapping[State, str]] = {
    State.INSTALLED: marked("is already installed."),
    State.INCOMPLETE: marked("zone is incomplete; uninstall required."),
}
_BOOTABLE: Final = _below(State.INSTALLED, _MUST_BE_INSTALLED)
_FORCIBLY_BOOTABLE: Final = _below(State.INCOMPLETE, _MUST_BE_INSTALLED)

CLIENT_RULES: Final[Mapping[str, ClientRule]] = {
    "reboot": ClientRule(Live.NEEDED),
    "shutdown": ClientRule(Live.NEEDED),
    "halt": ClientRule(),
    "apply": ClientRule(refusals=_BOOTABLE),
    "confirm": ClientRule(Live.NEEDED),
    "boot": ClientRule(refusals=_BOOTABLE, forced=_FORCIBLY_BOOTABLE),
    "ready": ClientRule(refusals=_BOOTABLE),
    "mount": ClientRule(Live.FORBIDDEN, _BOOTABLE, _FORCIBLY_BOOTABLE),
    "unmount": ClientRule(refusals=_all_but(State.MOUNTED, marked("must be mounted before {command}."))),
    "install": ClientRule(Live.FORBIDDEN, _ALREADY_THERE),
    "clone": ClientRule(Live.FORBIDDEN, _ALREADY_THERE),
    "uninstall": ClientRule(Live.FORBIDDEN, {State.CONFIGURED: marked("is already in state '{state}'.")}),
    "detach": ClientRule(Live.FORBIDDEN, _BOOTABLE),
    "move": ClientRule(Live.FORBIDDEN, _BOOTABLE),
    "attach": ClientRule(Live.FORBIDDEN, _ALREADY_THERE, {State.INSTALLED: marked("is already installed.")}),
    "mark": ClientRule(Live.FORBIDDEN),
    "rename": ClientRule(
        Live.FORBIDDEN, {State.INCOMPLETE: marked("zone is incomplete; uninstall required.")}
    ),
    "export": ClientRule(Live.FORBIDDEN, _BOOTABLE),
    "import": ClientRule(Live.FORBIDDEN, _ALREADY_THERE),
    "verify": ClientRule(refusals={State.INCOMPLETE: marked("zone is incomplete; uninstall required.")}),
    "sysboot": ClientRule(
        refusals=_all_but(State.INSTALLED, marked("{command} operation is invalid for {state} zones."))
    ),
}


def name_check(command: str, zonename: str) -> None:
    """Refuse the names no zone command may be given.  Raises StateError."""
    if zonename == GLOBAL_ZONE:
        raise StateError("{command} operation is invalid for the global zone.", command=command)
    if zonename.startswith(RESERVED_PREFIX):
        raise StateError("{command} operation is invalid for zones starting with SUNW.", command=command)


def client_check(command: str, live_state: State | None, index_state: State, force: bool = False) -> None:
    """The courtesy checks of one verb, in the reference's order (section 6.1).  Raises StateError.

    ``live_state`` is None for a zone that has no virtual platform.  The supervisor decides for itself anyway.
    """
    rule = CLIENT_RULES[command]
    state = index_state if live_state is None else live_state
    if rule.live is Live.NEEDED and live_state is None:
        raise StateError("not running")
    if rule.live is Live.FORBIDDEN and live_state is not None:
        raise StateError(
            "{command} operation is invalid for {state} zones.", command=command, state=state.label
        )
    refusals = rule.forced if force and rule.forced is not None else rule.refusals
    form = (refusals or {}).get(state)
    if form is not None:
        raise StateError(form, command=command, state=state.label)
