"""The zone's door: clients connect, ask, are answered, and may watch what happens (reference 4.1).

Calls that change the zone become requests for whoever serves; the others are answered here.  It never blocks.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from zonemgr import __version__
from zonemgr.errors import Exit
from zonemgr.linux.inotify import Inotify
from zonemgr.model.states import Command
from zonemgr.store import events
from zonemgr.store.paths import Layout
from zonemgr.supervisor import log
from zonemgr.supervisor.loop import Loop
from zonemgr.supervisor.request import Request
from zonemgr.wire.peers import CallerError
from zonemgr.wire.server import Call, Introspection, Listener, Peer

INTERFACE: Final = "org.zonemgr.Zone"
REFUSED: Final = f"{INTERFACE}.Refused"

_COMMANDS: Final = {
    "Ready": (Command.READY, Command.READY),
    "Boot": (Command.BOOT, Command.FORCEBOOT),
    "Reboot": (Command.REBOOT, Command.REBOOT),
    "Halt": (Command.HALT, Command.HALT),
    "Shutdown": (Command.SHUTDOWN, Command.SHUTDOWN),
    "Mount": (Command.MOUNT, Command.FORCEMOUNT),
    "Unmount": (Command.UNMOUNT, Command.UNMOUNT),
    "NoteUninstalling": (Command.NOTE_UNINSTALLING, Command.NOTE_UNINSTALLING),
}  # method -> what it asks for, without and with ``force``


class Door:
    """The door of one zone.  ``describe`` tells the zone's state, ``ask`` takes a request."""

    def __init__(
        self,
        loop: Loop,
        layout: Layout,
        zonename: str,
        run_fd: int,
        describe: Callable[[], dict[str, Any]],
        ask: Callable[[Request], None],
    ) -> None:
        self.visited = False  # somebody who had asked something has gone
        self._loop = loop
        self._layout = layout
        self._zonename = zonename
        self._describe = describe
        self._ask = ask
        self._introspection = Introspection("zonemgr", __version__, (INTERFACE,))
        self._peers: set[Peer] = set()
        self._callers: set[Peer] = set()  # those that have asked something
        self._monitors: list[Call] = []
        self._follower: events.Follower | None = None
        self._inotify: Inotify | None = None
        self._listener = Listener(run_fd, "door")
        loop.watch(self._listener.fileno(), self._accept)

    @property
    def watched(self) -> bool:
        """Whether somebody follows the zone's events."""
        return bool(self._monitors)

    @property
    def unsent(self) -> bool:
        """Whether an answer is still on its way."""
        return any(peer.wants_write for peer in self._peers)

    def close(self) -> None:
        """Take the door away: who comes now starts a successor; who is in the queue gets an empty reply."""
        self._listener.withdraw()
        self._loop.forget(self._listener.fileno())
        self._listener.close()

    # -- answers ------------------------------------------------------------------------------------------------

    def progress(self, call: Call, text: str) -> None:
        """A line for the caller while the work goes on.  Whoever asked may be long gone."""
        if not call.gone:
            call.reply({"message": text}, continues=True)
            self._watch(call.peer)

    def answer(
        self,
        call: Call,
        ok: bool,
        messages: list[str],
        note: str | None = None,
        result: Mapping[str, Any] | None = None,
    ) -> None:
        """The outcome; ``result`` is what the method gives besides the messages."""
        if call.gone:
            return
        peer, descriptor = call.peer, call.peer.fileno()
        if ok:
            reply: dict[str, Any] = {**(result or {}), "messages": messages}
            call.reply({**reply, "note": note} if note else reply)
        else:
            call.error(REFUSED, {**(result or {}), "code": int(Exit.ERROR), "messages": messages})
        self._settle(peer, descriptor)

    # -- peers --------------------------------------------------------------------------------------------------

    def _accept(self, _events: int) -> None:
        try:
            peer = self._listener.accept()
        except CallerError as error:
            log.error(error.text)
            return
        if peer is not None:
            self._peers.add(peer)
            self._watch(peer)

    def _watch(self, peer: Peer) -> None:
        if not peer.closed:
            descriptor = peer.fileno()
            self._loop.watch(descriptor, lambda events: self._ready(peer, descriptor, events), peer.events)

    def _ready(self, peer: Peer, descriptor: int, poll_events: int) -> None:
        calls = peer.readable() if poll_events & (select.POLLIN | select.POLLHUP | select.POLLERR) else []
        if poll_events & (select.POLLHUP | select.POLLERR) and not calls and not peer.closed:
            peer.close()
        for call in calls:
            self._call(call)
        if poll_events & select.POLLOUT and not peer.closed:
            peer.writable()
        self._settle(peer, descriptor)

    def _settle(self, peer: Peer, descriptor: int) -> None:
        """Poll for what the peer wants now, or forget it."""
        if peer.closed:
            self._loop.forget(descriptor)
            self._peers.discard(peer)
            if peer in self._callers:  # also one that only looked: nobody may come after it
                self._callers.discard(peer)
                self.visited = True
            self._monitors = [call for call in self._monitors if not call.gone]
        else:
            self._watch(peer)

    # -- calls --------------------------------------------------------------------------------------------------

    def _call(self, call: Call) -> None:
        method = self._introspection.handle(call)
        self._callers.add(call.peer)
        if method is None:
            return
        if method == "GetState":
            call.reply({"zone": self._describe()})
        elif method == "Monitor":
            self._monitor(call)
        elif method == "Apply":
            given = call.parameters
            dry_run, confirm_s = bool(given.get("dry_run")), given.get("confirm")
            self._ask(Request(Command.APPLY, dry_run=dry_run, confirm_s=confirm_s, call=call))
        elif method == "Confirm":
            self._ask(Request(Command.REVERT if call.parameters.get("revert") else Command.CONFIRM, call=call))
        else:
            given = call.parameters
            command = _COMMANDS[method][bool(given.get("force"))]
            arguments, update = str(given.get("args") or ""), bool(given.get("update"))
            self._ask(Request(command, arguments, update, given.get("timeout"), call))

    def _monitor(self, call: Call) -> None:
        if not call.more:
            call.error("org.varlink.service.ExpectedMore")
            return
        if self._follower is None:
            self._inotify = Inotify(self._layout.run)  # before the first look, so that nothing falls between
            self._follower = events.Follower(self._layout)
            self._loop.watch(self._inotify.fileno(), self._events_changed)
        self._monitors.append(call)

    def _events_changed(self, _events: int) -> None:
        assert self._inotify is not None
        self._inotify.wait(0)
        self._tell_events()

    def _tell_events(self) -> None:
        assert self._follower is not None
        for record in self._follower.poll():
            if record.get("zonename") == self._zonename:
                self._tell_monitors(record)

    def settled(self) -> None:
        """Nothing is under way or waits any more: tell those who monitor, after the events of what was.

        Who came after the last of these events, while the request was still under way, would wait for another for ever.
        """
        if self._monitors:
            self._tell_events()
            self._tell_monitors({"time": round(time.time(), 3), "type": "settled", "zonename": self._zonename})

    def _tell_monitors(self, record: Mapping[str, Any]) -> None:
        for call in self._monitors:
            if not call.gone:
                peer, descriptor = call.peer, call.peer.fileno()
                call.reply({"event": record}, continues=True)
                self._settle(peer, descriptor)
