"""Process 1 of a zone while it is parked, and its last steps before it becomes the brand's init.

The stub is born by ``clone3`` into all of the zone's namespaces but the mount namespace, with its program
already in memory, and obeys one message after the other on its only channel.  It runs as root of the zone, so
it imports nothing, looks nothing up and opens nothing by name that the zone could have planted, except the init
that it execs.  When its channel ends it waits for ever: it never runs on by itself (the zone's teardown kills
it).
"""

from __future__ import annotations

import os
import resource
import signal
import socket
from collections.abc import Callable
from typing import Any

from zonemgr.linux import caps, labels, namespaces, process, pty, seccomp
from zonemgr.model.states import PARKED_NAME
from zonemgr.supervisor import reaper
from zonemgr.wire import packets


class StageError(Exception):
    """A step failed: the operator's name of the step, and why."""

    def __init__(self, stage: str, error: OSError) -> None:
        super().__init__(stage)
        self.stage = stage
        self.error = error


class _Stage:
    """Names the step that is under way, so that a child can report it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, OSError):
            raise StageError(self.name, error) from None


def run(channel: socket.socket) -> None:
    """Be the parked process 1.  Never returns."""
    process.set_name(PARKED_NAME)
    process.set_title(PARKED_NAME)  # nothing of the host's paths shows in the zone's ps
    process.set_dumpable(False)
    process.close_fds([channel.fileno()])
    process.stdio_to_null()
    process.reset_signals()
    while True:
        packet = packets.receive(channel)
        if packet is None:
            _wait_for_ever()
            return
        head, fds, tail = packet
        try:
            answer = _OBEY[head["op"]](head, fds, tail, channel)
        except StageError as failure:
            answer = {"stage": failure.stage, "errno": failure.error.errno}
        except Exception as failure:  # noqa: BLE001 - a bug of ours must reach somebody
            answer = {"stage": head["op"], "errno": getattr(failure, "errno", 0), "text": repr(failure)}
        packets.close_all(fds)
        packets.send(channel, answer)


def _wait_for_ever() -> None:
    while True:
        signal.pause()


def _identity(head: dict[str, Any], fds: list[int], _tail: bytes, _channel: socket.socket) -> dict[str, Any]:
    """The id maps are written: become root of the zone.  Its host name comes here, since only the zone may set it.

    The descriptors are the ``tasks`` of the zone's folders on v1, opened by the host's root, whose right counts.
    """
    with _Stage("control groups"):
        for tasks_fd in fds:
            os.write(tasks_fd, b"0")
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    process.set_dumpable(False)  # a change of ids resets it to the host's default
    # Only now, in our places in the v1 hierarchies too: made at birth, it would show the host's control groups.
    namespaces.unshare(namespaces.NEWCGROUP)
    namespaces.set_hostname(head["hostname"])
    return {"ok": True}


def _seal(_head: dict[str, Any], _fds: list[int], _tail: bytes, _channel: socket.socket) -> dict[str, Any]:
    """Take an own copy of the finished mount tree: every mount arrives locked, as a slave of the tree that
    zsched holds.
    """
    namespaces.unshare(namespaces.NEWNS)
    os.chdir("/")
    return {"ok": True}


def _boot(head: dict[str, Any], fds: list[int], tail: bytes, channel: socket.socket) -> dict[str, Any]:
    """Become init.  Returns only when that failed; success closes the channel, which closes on exec."""
    (slave,) = fds
    reaped = head.get("reaped", False)
    os.umask(0o022)
    if not reaped:
        with _Stage("console"):
            os.setsid()
            _open_console(slave, head.get("terminal", True))
        process.close_fds([0, 1, 2, channel.fileno()])
        fds.clear()
    if head.get("label"):
        with _Stage(
            "label"
        ):  # before our credentials change; nothing of the zone has run that could fake its /proc
            labels.set_for_exec(labels.Module(head["label_module"]), head["label"])
    with _Stage("keyring"):
        process.new_session_keyring("zone")
    with _Stage("limits"):
        for number, pair in process.rlimits(head.get("rlimits", ())):
            resource.setrlimit(number, pair)
    with _Stage("capabilities"):
        caps.drop_bounding(frozenset(head["capabilities"]))
    if head.get("personality"):
        process.set_personality(head["personality"])
    if head["no_new_privs"]:
        process.set_no_new_privs()
    if tail:
        with _Stage("seccomp"):  # while we have sys_admin, which the zone may not
            seccomp.install(tail)
    with _Stage("capabilities"):
        caps.limit_to(frozenset(head["capabilities"]))
    candidates = head.get("candidates") or [head["init"]]
    with _Stage("exec"):
        if reaped:
            _boot_below(head, candidates, slave)
        process.reset_signals()
        reaper.execute(candidates, head["arguments"], head["environment"])
    return {"stage": "exec", "errno": 0}


def _open_console(slave: int, terminal: bool) -> None:
    if terminal:
        pty.set_controlling(slave)
    for standard in (0, 1, 2):
        os.dup2(slave, standard)


def _boot_below(head: dict[str, Any], candidates: list[str], slave: int) -> None:
    """Start a program that is no init, and be its process 1.  Never returns; closing the channel tells of success."""
    program = reaper.Program(
        candidates=candidates,
        arguments=head["arguments"],
        environment=head["environment"],
        folder=head["folder"],
        uid=head["uid"],
        gid=head["gid"],
        groups=head["groups"],
    )
    pid = reaper.start(program, lambda: _open_console(slave, head["terminal"]))
    process.set_name("init")
    process.set_title("init")
    reaper.reap(pid)


_OBEY: dict[str, Callable[[dict[str, Any], list[int], bytes, socket.socket], dict[str, Any]]] = {
    "identity": _identity,
    "seal": _seal,
    "boot": _boot,
}
