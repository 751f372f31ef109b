"""Asking a zone's supervisor at its door, without the courtesy checks that the command makes first."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from tests.kit.instance import Instance
from zonemgr.errors import ZoneError
from zonemgr.model.states import Command
from zonemgr.wire import start, varlink
from zonemgr.wire.client import RemoteError

METHODS: Final[dict[Command, tuple[str, dict[str, Any]]]] = {
    Command.READY: ("Ready", {}),
    Command.BOOT: ("Boot", {}),
    Command.FORCEBOOT: ("Boot", {"force": True}),
    Command.REBOOT: ("Reboot", {}),
    Command.HALT: ("Halt", {}),
    Command.NOTE_UNINSTALLING: ("NoteUninstalling", {}),
    Command.MOUNT: ("Mount", {}),
    Command.FORCEMOUNT: ("Mount", {"force": True}),
    Command.UNMOUNT: ("Unmount", {}),
    Command.SHUTDOWN: ("Shutdown", {}),
    Command.APPLY: ("Apply", {}),
    Command.CONFIRM: ("Confirm", {}),
    Command.REVERT: ("Confirm", {"revert": True}),
}


@dataclass(frozen=True, slots=True)
class Answer:
    """How a request ended: refused or failed when not ``ok``."""

    ok: bool
    messages: tuple[str, ...]
    note: str | None = None

    @property
    def text(self) -> str:
        return "\n".join(self.messages)


def ask(
    instance: Instance,
    command: Command,
    zonename: str = "web",
    *,
    say: Callable[[str], None] = lambda _text: None,
    **parameters: Any,
) -> Answer:
    """Ask; a supervisor is started when there is none.  ``say`` hears lines as they come."""
    method, fixed = METHODS[command]
    heard: list[str] = []

    def hear(text: str) -> None:
        heard.append(text)
        say(text)

    try:
        reply = start.call(
            instance.layout,
            zonename,
            f"{varlink.ZONE}.{method}",
            {**fixed, **parameters},
            say=hear,
            on_reply=lambda values: hear(str(values["message"])) if values.get("message") else None,
        )
    except RemoteError as error:
        assert error.name == varlink.REFUSED, (error.name, error.parameters)
        return Answer(False, tuple(error.parameters["messages"]))
    except ZoneError as error:
        raise AssertionError(f"{command.value}: {error.text}; said before: {heard}") from error
    return Answer(True, tuple(reply.get("messages") or ()), reply.get("note"))


def state(instance: Instance, zonename: str = "web") -> dict[str, Any]:
    """What GetState answers."""
    reply = start.call(
        instance.layout, zonename, f"{varlink.ZONE}.GetState", {}, say=lambda _text: None, on_reply=None
    )
    zone = reply["zone"]
    assert isinstance(zone, dict)
    return zone


@contextmanager
def monitored(instance: Instance, zonename: str = "web") -> Iterator[socket.socket]:
    """Somebody monitors the zone, so that its supervisor stays.  The monitor's connection."""
    with start.connected(instance.layout, zonename, "door", lambda _text: None) as monitor:
        monitor.sendall(varlink.encode({"method": f"{varlink.ZONE}.Monitor", "more": True}))
        state(instance, zonename)  # it has been heard by then
        yield monitor
