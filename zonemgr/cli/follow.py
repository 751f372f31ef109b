"""Staying with zones: ``boot --wait-ready`` until they are ready, ``boot --wait`` until they are down.

The latter is for programs that take the end of their child for the end of a zone, as systemd's units do
(contrib/systemd/zone@.service).  Whoever stays does nothing for the zones: it may be killed, and another one may stay
with them.
"""

from __future__ import annotations

import contextlib
import math
import os
import socket
import time
from collections.abc import Sequence

from zonemgr.cli.output import Session
from zonemgr.errors import Exit, NoSuchZoneError, message
from zonemgr.model.states import Command, State
from zonemgr.store import files, readiness
from zonemgr.store.observe import state_of
from zonemgr.store.paths import Layout
from zonemgr.wire import start, varlink
from zonemgr.wire.client import Client, EmptyReply, LostReply


def until_ready(session: Session, names: Sequence[str], limit_s: float | None = None) -> int:
    """Wait until zones that have just been booted are ready.  The exit status; those that are late have been named."""
    from zonemgr.store import settings

    limit_s = settings.load(session.layout).ready_s if limit_s is None else limit_s
    deadline = time.monotonic() + limit_s
    status = int(Exit.OK)
    for name in names:
        if not readiness.wait(session.layout, name, deadline - time.monotonic()):
            session.message(not_ready(limit_s), name)
            status = int(Exit.ERROR)
    return status


def not_ready(limit_s: float) -> str:
    """What is said of a zone that did not become ready."""
    return message("the zone has not become ready within {seconds:g} seconds", seconds=limit_s)


def stay(session: Session, names: Sequence[str]) -> None:
    """Tell the service manager when the zones are ready, and return when all of them are down."""
    if all(readiness.wait(session.layout, name, math.inf) for name in names):
        tell_manager(f"READY=1\nSTATUS=running: {' '.join(names)}")
    for name in names:
        while _is_up(session.layout, name):
            _await_change(session, name)
    tell_manager("STOPPING=1")


def tell_manager(text: str) -> None:
    """sd_notify(3), where somebody listens."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as to:
        to.sendto(text.encode(), address.replace("@", "\0", 1) if address.startswith("@") else address)


def _is_up(layout: Layout, name: str) -> bool:
    """Whether the zone has a platform, or is about to have one again: between the halves of a reboot it has none."""
    try:
        with Client(start.door(layout, name)) as client:
            zone = client.call(f"{varlink.ZONE}.GetState", {})["zone"]
        return bool(zone["under_way"] or zone["waiting"]) or State.of(zone["state"]).active
    except (OSError, EmptyReply, LostReply):
        pass  # nobody is there to be asked
    try:
        return state_of(layout, name).active or _comes_back(layout, name)
    except NoSuchZoneError:
        return False


def _comes_back(layout: Layout, name: str) -> bool:
    """Whether a supervisor was killed between the halves of a reboot.  Another one, once started, boots the zone."""
    intent = files.read_json(layout.intent(name)) or {}
    return intent.get("command") == Command.REBOOT.value


def _await_change(session: Session, name: str) -> None:
    """Return when something has happened to the zone, or to its supervisor, which is started when there is none."""

    def say(text: str) -> None:
        session.message(text, name)

    with Client(start.connected(session.layout, name, "door", say)) as client:
        events = client.listen(f"{varlink.ZONE}.Monitor")
        if not _is_up(session.layout, name):  # what happened before we listened is not told
            return
        with contextlib.suppress(EmptyReply, LostReply):
            for reply in events:
                if reply.get("event", {}).get("type") in ("state", "settled"):
                    return
