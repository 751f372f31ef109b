"""What a supervisor is asked to do, by a client at the door or by zsched (an upcall)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from zonemgr.model.states import Command
from zonemgr.wire.server import Call

BRINGS_UP: Final = frozenset(
    {
        Command.READY,
        Command.BOOT,
        Command.FORCEBOOT,
        Command.REBOOT,
        Command.MOUNT,
        Command.FORCEMOUNT,
    }
)
CHANGES: Final = frozenset({Command.APPLY, Command.CONFIRM, Command.REVERT})
BOOTS: Final = frozenset(command.value for command in (Command.BOOT, Command.FORCEBOOT, Command.REBOOT))


@dataclass
class Request:
    """Something to be done: asked for at the door, or by zsched (an upcall, which has a generation and no call)."""

    command: Command | None  # None: take back what an interrupted transition left
    arguments: str = ""
    update: bool = False
    timeout_s: float | None = None
    call: Call | None = None
    generation: str | None = None
    messages: list[str] = field(default_factory=list)
    result: dict[str, Any] = field(default_factory=dict)  # what the answer holds besides the messages
    failure: str = ""  # set when the outcome is decided before the work is finished
    dry_run: bool = False
    confirm_s: float | None = None
    after: Request | None = None  # what to do next, when the recovery of an interrupted reboot is over
    failed: Request | None = None  # whose work this takes back; it is answered when that is done
    killed: int | None = None  # of a boot that completes a reboot: so many supervisors were killed over that

    @property
    def locale(self) -> str | None:
        """The language of whoever asked."""
        asked = self.failed or self.after or self
        given = None if asked.call is None else asked.call.parameters.get("locale")
        return str(given) if given else None

    @property
    def upcall(self) -> bool:
        return self.call is None

    @property
    def reboot(self) -> Request | None:
        """The reboot that this is, or is a part of."""
        whole = self.after or self
        return whole if whole.command is Command.REBOOT or whole.killed is not None else None

    @property
    def intent(self) -> dict[str, Any]:
        """What a successor must know of the request under way."""
        whole = self.reboot
        if whole is not None:
            return {
                "command": Command.REBOOT.value,
                "arguments": whole.arguments,
                "killed": whole.killed or 0,
            }
        return {"command": self.command.value if self.command else "", "arguments": self.arguments}
