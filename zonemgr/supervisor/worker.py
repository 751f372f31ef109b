"""Workers: one forked process a transition, which may block while the supervisor serves on.

The worker lives with its hooks in the zone's ``work`` cgroup and dies with its supervisor.  It speaks packets:
``say`` (a line for the requester), ``result`` (what else it is answered), ``notice`` (for the console), ``zsched``
(fork one; it speaks to the worker itself), ``console`` (zsched holds a new pty), and last ``done``.  One that ends
without ``done`` has crashed, and what it did is taken back from the ledger by another.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from zonemgr.brandkit import verify as brands
from zonemgr.errors import InternalError, PlatformError, ZoneError, message
from zonemgr.linux import audit, process
from zonemgr.linux.cgroup import Part
from zonemgr.model.grid import REBOOT, Procedure, Step
from zonemgr.model.states import Command, Notice
from zonemgr.store import instance as instances
from zonemgr.store import snapshot
from zonemgr.store.instance import Mode, Phase
from zonemgr.supervisor import boot, bringup, change, log, shutdown, statehooks, teardown
from zonemgr.supervisor.statehooks import HookFailed
from zonemgr.supervisor.transition import Transition
from zonemgr.wire import packets

_NOT_WORTH_SAYING = "unable to get zoneid"  # the halt after a failed bring-up finds nothing: reference 1.5 B


@dataclass
class Worker:
    """The supervisor's end of a running worker."""

    pid: int
    pid_fd: int
    sock: socket.socket
    done: dict[str, Any] | None = None
    killed: bool = False  # it, or what it had left behind, with its whole cgroup

    def close(self) -> None:
        os.close(self.pid_fd)
        self.sock.close()


def start(
    transition: Transition, job: Callable[[Transition, Reporter], bool], drop: Callable[[], None]
) -> Worker:
    """Fork a worker for a job.  ``drop`` runs first in the child: it lets go of what only the supervisor may hold."""
    ours, theirs = packets.pair()
    transition.cgroup.create_work()
    work_fd = transition.cgroup.work_fd()
    parent = os.getpid()
    pid, pid_fd = process.clone3(0, cgroup_fd=work_fd)
    if pid == 0:
        _be_worker(transition, job, drop, theirs, parent)
    os.close(work_fd)
    theirs.close()
    ours.setblocking(False)
    return Worker(pid, pid_fd, ours)


class Reporter:
    """What a worker tells its supervisor."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._offered = False  # a pty that the supervisor has not said to have taken

    def say(self, text: str) -> None:
        packets.send(self._sock, {"say": message(text)})

    def notice(self, notice: Notice, arguments: str = "") -> None:
        packets.send(self._sock, {"notice": notice.name, "arguments": arguments})

    def console_ready(self) -> None:
        """Tell the supervisor of the new pty."""
        packets.send(self._sock, {"console": True})
        self._offered = True

    def console_taken(self) -> None:
        """Wait until it has taken what it was told of: nothing that the zone prints may precede that."""
        if self._offered:
            self._offered = False
            packets.receive(self._sock)

    def fork_zsched(self, birth: dict[str, Any], fds: Iterable[int]) -> None:
        """Have the supervisor fork it.  How that went is told on the descriptors (``zsched.fork``)."""
        packets.send(self._sock, {"zsched": birth}, fds)

    def result(self, result: dict[str, Any]) -> None:
        """What the answer holds besides the messages."""
        packets.send(self._sock, {"result": result})

    def done(self, ok: bool) -> None:
        packets.send(self._sock, {"done": True, "ok": ok})


def _be_worker(
    transition: Transition,
    job: Callable[[Transition, Reporter], bool],
    drop: Callable[[], None],
    sock: socket.socket,
    supervisor_pid: int,
) -> None:
    """The child: never returns."""
    status = 1
    try:
        process.set_pdeathsig(signal.SIGKILL, supervisor_pid)
        process.set_name("zone-worker")
        process.set_title(f"zone-worker {transition.zonename} {transition.command.value}")
        process.set_oom_score_adj(0)  # hooks are not what the supervisor is protected for
        signal.set_wakeup_fd(-1)
        drop()
        process.close_fds([0, 1, 2, sock.fileno()])
        process.reset_signals()
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        gc.disable()  # it ends before there is much to collect, and looking for it touches what is shared
        reporter = Reporter(sock)
        transition.say, transition.notice = reporter.say, reporter.notice
        transition.console_ready, transition.console_taken = reporter.console_ready, reporter.console_taken
        transition.result = reporter.result
        transition.fork_zsched = reporter.fork_zsched
        try:
            ok = job(transition, reporter)
        except ZoneError as error:
            _explain(transition, error)
            ok = False
        except Exception:  # noqa: BLE001 - a bug of ours becomes a failed transition
            import traceback

            text = traceback.format_exc()
            log.error(text)
            transition.say(message("internal error: {why}", why=text.strip().splitlines()[-1]))
            ok = False
        reporter.console_taken()
        reporter.done(ok)
        status = 0
    finally:
        os._exit(status)


def _explain(transition: Transition, error: ZoneError) -> None:
    """The error and what failed after it, one line each; a hook has spoken for itself."""
    if not isinstance(error, HookFailed) and error.text != _NOT_WORTH_SAYING:
        transition.say(error.text)
    for note in getattr(error, "__notes__", ()):
        transition.say(note)


# -- jobs -------------------------------------------------------------------------------------------------------


def procedure_job(procedure: Procedure) -> Callable[[Transition, Reporter], bool]:
    """The job that runs a procedure of the grid."""

    def job(transition: Transition, _reporter: Reporter) -> bool:
        return perform(transition, procedure)

    return job


def perform(transition: Transition, procedure: Procedure) -> bool:
    """Run the steps of a procedure with its notices, recovery and audit.  True when all steps worked."""
    if procedure is REBOOT and not transition.upcall and not _can_come_back(transition):
        return False
    if procedure.begins is not None:
        shown = (
            transition.arguments if transition.state.active else ""
        )  # the reference shows none before ready
        transition.notice(procedure.begins, shown if procedure.accepts_arguments else "")
    failed: Step | None = None
    for step in procedure.steps:
        try:
            _step(transition, procedure, step)
        except Exception as error:  # noqa: BLE001 - whatever it is, what was begun is taken back
            failed = step
            _fail(transition, procedure, step, _as_zone_error(error))
            break
        if procedure.announced_after is step and procedure.succeeds is not None:
            transition.notice(procedure.succeeds, "")
    if failed is None and procedure.announced_after is None and procedure.succeeds is not None:
        transition.notice(procedure.succeeds, "")
    if procedure.audits(failed):
        audit.record(transition.zonename, procedure.audit or "", failed is None)
    return failed is None


def _can_come_back(transition: Transition) -> bool:
    """A zone that runs is not taken down by a slip in its file.  The zone's own order has ended its init already."""
    try:
        brands.check_next(transition.layout, transition.zonename, transition.say)
    except (ZoneError, OSError) as error:
        _explain(transition, _as_zone_error(error))
        transition.say(message("the zone is not rebooted, and runs on as it is"))
        return False
    return True


def _as_zone_error(error: Exception) -> ZoneError:
    """What the operator is told; of a bug of ours the system log gets all."""
    if isinstance(error, ZoneError):
        return error
    found: ZoneError
    if isinstance(error, OSError):
        found = PlatformError("{why}", why=error)
    else:
        import traceback

        log.error("".join(traceback.format_exception(error)))
        found = InternalError("internal error: {kind}: {why}", kind=type(error).__name__, why=error)
    for note in getattr(error, "__notes__", ()):
        found.add_note(note)
    return found


def _step(transition: Transition, procedure: Procedure, step: Step) -> None:
    match step:
        case Step.READY:
            alternate = Step.MOUNT in procedure.steps
            bringup.ready(transition, bringup.mount_mode(transition) if alternate else Mode.BOOT)
        case Step.BOOT:
            boot.boot(transition)
        case Step.HALT:
            teardown.halt(transition, rebooting=procedure.rebooting)
        case Step.UNMOUNT:
            teardown.halt(transition)
        case Step.MOUNT:
            bringup.mount(transition)
        case Step.SHUTDOWN:
            shutdown.shutdown(transition)
        case Step.NOTE_UNINSTALLING:
            pass  # the notice is all there is to it
        case Step.APPLY:
            change.apply(transition)
        case Step.CONFIRM:
            change.confirm(transition)
        case Step.REVERT:
            change.revert(transition)


def _fail(transition: Transition, procedure: Procedure, step: Step, error: ZoneError) -> None:
    """Say why, halt what was brought up when the procedure says so, then tell the console."""
    _explain(transition, error)
    if step in procedure.recovers:
        transition.recovering = True
        try:
            teardown.halt(transition, rebooting=procedure.rebooting)
        except Exception as second:  # noqa: BLE001
            found = _as_zone_error(second)
            if found.text != error.text:  # a brand that cannot be loaded says so once
                _explain(transition, found)
    notice = procedure.failure_notice(step)
    if notice is not None:
        transition.notice(notice, "")


def recover(transition: Transition, _reporter: Reporter) -> bool:
    """Take back what an interrupted transition left, whoever began it; the zone ends installed (or stuck, with
    its name).
    """
    transition.cgroup.kill(Part.PAYLOAD)
    transition.recovering = True
    instance = instances.read(transition.layout, transition.zonename)
    halting = instance is not None and instance.phase is Phase.HALTING
    teardown.teardown(transition)
    snapshot.destroy(transition.layout, transition.zonename)
    statehooks.post(transition, transition.state, Command.HALT)
    transition.notice(Notice.HALTED if halting else Notice.BOOTFAILED, "")
    return True
