"""The supervisor of one zone (the reference's zoneadmd, sections 1.4, 4 and 5).

Four jobs: it takes requests at the door and runs them one at a time, each in a worker; it serves the console;
it hears from zsched how init ended; it publishes what happens.  The chief constraint: it may be killed at any
moment and the zone runs on, so everything that matters is in the kernel, in zsched, in the instance record and
in the ledger, and nothing here is more than a way to get at them.  It never blocks, for nobody.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import deque
from typing import Any, Final

from zonemgr.errors import ConfigError, ZoneError, message, speak, speaking
from zonemgr.linux import ksm, process
from zonemgr.linux.cgroup import Part, ZoneCgroup, detect
from zonemgr.model.brandspec import Fate, RestartPolicy
from zonemgr.model.grid import Already, Procedure, Refuse, Run, Step, decide
from zonemgr.model.states import BOOTARGS_MAX, Command, Notice, State
from zonemgr.store import change, events, files, readiness, settings
from zonemgr.store import instance as instances
from zonemgr.store.instance import Instance, Phase
from zonemgr.store.ledger import Ledger
from zonemgr.store.locks import FileLock
from zonemgr.store.observe import Observation, life_of, observe, state_of
from zonemgr.store.paths import Layout
from zonemgr.supervisor import flight, guard, log, zsched
from zonemgr.supervisor import worker as workers
from zonemgr.supervisor.console import Console, ConsoleLog
from zonemgr.supervisor.door import Door
from zonemgr.supervisor.guard import Guard
from zonemgr.supervisor.lifeline import Lifeline
from zonemgr.supervisor.loop import Loop, Timer
from zonemgr.supervisor.request import BOOTS, BRINGS_UP, CHANGES, Request
from zonemgr.supervisor.transition import Transition
from zonemgr.supervisor.worker import Worker
from zonemgr.wire import packets, start

PROTOCOL: Final = 1
WORK_GONE_S: Final = 10.0  # for what was killed with a worker
IDLE_S: Final = 60.0  # a supervisor that nobody ever asks anything leaves
IN_ALTERNATE_ROOT: Final = frozenset(
    {Command.MOUNT, Command.FORCEMOUNT, Command.UNMOUNT, Command.NOTE_UNINSTALLING}
)
MESSAGES_MAX: Final = (
    1000  # lines that one request may produce; a hook that never stops must not fill our memory
)


class Supervisor:
    """See the module.  ``run`` is its life; the caller holds the zone's lock and has published nothing yet."""

    def __init__(self, layout: Layout, zonename: str, lock: FileLock) -> None:
        self.layout = layout
        self.zonename = zonename
        self.lock = lock
        self.loop = Loop(log.error)
        self.queue: deque[Request] = deque()
        self.worker: Worker | None = None
        self.guard: Guard | None = None
        self.current: Request | None = None
        self.procedure: Procedure | None = None
        self.deadline: Timer | None = None
        self.shutting: Request | None = None
        self.shutting_timer: Timer | None = None
        self.quick_reboots = 0
        self.reverting: Timer | None = None
        self.asked = False
        self.leaving = False
        self.offered = False  # our memory, to be merged with that of others
        self.run_fd = os.open(layout.zone_run(zonename), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.console = Console(
            self.loop,
            self.run_fd,
            ConsoleLog(layout.zone_log(zonename)),
            self._after_client,
            served=not layout.alternate,
        )
        self.lifeline = Lifeline(self.loop, layout, zonename, self.console, self._init_ended, self._init_told)
        self.door: Door | None = None

    # -- life -----------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Adopt what lives, then open the door: whoever finds it finds the console too."""
        process.set_child_subreaper()
        self.loop.watch_children(self.lifeline.reap)
        self.loop.when_idle(self._idle)
        self._adopt()
        self.door = Door(self.loop, self.layout, self.zonename, self.run_fd, self._describe, self._ask)
        self.loop.after(IDLE_S, self._nobody_asked)

    def run(self) -> None:
        """Serve until there is nothing left to supervise."""
        self._next()
        self.loop.run()

    def _nobody_asked(self) -> None:
        self.asked = True

    def _idle(self) -> None:
        """After each round: leave when the exit rule says so (reference 4.4)."""
        assert self.door is not None
        if self.leaving:
            if not self.door.unsent:
                self.loop.stop()
            return
        busy = self.worker or self.queue or self.shutting or self.console.client or self.door.watched
        if busy or not (self.asked or self.door.visited) or self.door.unsent:
            return
        if self._state() < State.READY:
            self._leave()
        elif not self.offered:
            self.offered = True
            ksm.offer()

    def _leave(self) -> None:
        """Take the door away first."""
        assert self.door is not None
        self.leaving = True
        self.door.close()
        self.console.close()
        self.loop.after(1.0, self.loop.stop)
        self._idle()

    def _state(self) -> State:
        try:
            return state_of(self.layout, self.zonename)
        except ZoneError:
            return State.CONFIGURED  # it was deleted meanwhile

    # -- adoption -------------------------------------------------------------------------------------------

    def _adopt(self) -> None:
        """Go on where a killed predecessor stopped: attach to zsched, and finish or undo what was under way."""
        intent = files.read_json(self._intent_path) or {}
        instance = instances.read(self.layout, self.zonename)
        pending = Ledger(self.layout.zone_run(self.zonename) / "ledger.jsonl").pending()
        again = None
        if intent.get("command") == Command.REBOOT.value:
            arguments, killed = intent.get("arguments", ""), intent.get("killed", 0) + 1
            again = Request(Command.BOOT, arguments=arguments, killed=killed)
        if instance is None and not pending:
            self._intent_path.unlink(missing_ok=True)
            if again is not None:  # it died between the two halves of a reboot
                self._remember(again)
                self.queue.append(again)
            return
        state = self._state()
        if instance is not None and instance.phase is Phase.BOOTING and state is State.RUNNING:
            instance = instances.write(self.layout, instance.but(phase=Phase.RUNNING))
        half_booted = state is State.READY and intent.get("command") in BOOTS
        if instance is not None and instance.phase in (Phase.READY, Phase.RUNNING) and not half_booted:
            self._intent_path.unlink(missing_ok=True)
            self._take_change_back()
            if self.lifeline.attach():
                return
            if instance.init is not None and instance.init.alive:
                self.lifeline.watch_orphan(
                    instance.generation, instance.init.pid
                )  # zsched is gone and init lives on
                return
        self.asked = True
        if again is not None:
            self._remember(again)
        self.queue.append(Request(None, after=again))

    # -- changes of the living zone ---------------------------------------------------------------------------

    def _take_change_back(self) -> None:
        """A change that waits for its confirmation is taken back when its time is over, an unfinished one now."""
        if self.reverting is not None:
            self.reverting.cancel()
            self.reverting = None
        record = change.read(self.layout, self.zonename)
        if record is not None:
            self.reverting = self.loop.after(record.left_s, lambda: self._enqueue(Request(Command.REVERT)))

    # -- init's end: the upcalls ----------------------------------------------------------------------------

    def _init_ended(self, generation: str, ended: dict[str, int]) -> None:
        """reboot(2) in the zone shows as HUP (restart) or INT (halt); all else is the death of init.  What follows
        is the brand's restart policy, as the zone's record has it.
        """
        killed = ended["code"] in (os.CLD_KILLED, os.CLD_DUMPED)
        how = {signal.SIGHUP: "reboot", signal.SIGINT: "halt"}.get(ended["status"]) if killed else None  # type: ignore[call-overload]
        text = how or (
            f"killed by signal {ended['status']}" if killed else f"exited with status {ended['status']}"
        )
        instance = instances.read(self.layout, self.zonename)
        if instance is None or instance.phase is Phase.HALTING:
            return  # our own halt killed it, or finds it dead
        record = flight.of(instance, text)
        events.publish_best_effort(self.layout, {"type": "init", "zonename": self.zonename, **record})
        if "oom_kills" in record:
            log.error(message("init {why}", why=record["ended"]))
        fate = _fate(instance.restart, how, killed or ended["status"] != 0)
        if self.shutting is not None and how != "reboot":
            fate = "halt"  # it was told to end
        command = Command.REBOOT if fate == "reboot" else Command.HALT
        request = Request(command, generation=generation)
        delay_s = self._brake() if command is Command.REBOOT else 0.0
        if delay_s:
            log.error(message("zone reboots too often: waiting {delay:.0f} seconds", delay=delay_s))
            self.loop.after(delay_s, lambda: self._enqueue(request))
        else:
            self._enqueue(request)

    def _init_told(self, generation: str, said: dict[str, Any]) -> None:
        """The zone's init has told how far it is, to us or while nobody listened."""
        instance = instances.read(self.layout, self.zonename)
        told = readiness.Told(generation, bool(said["ready"]), bool(said["stopping"]), str(said["status"]))
        if instance is None or instance.generation != generation:
            return
        known = readiness.read(self.layout, instance)
        if (known.ready, known.stopping) == (told.ready, told.stopping):
            return
        readiness.write(self.layout, self.zonename, told)
        if told.ready and not known.ready:
            record = {"type": "ready", "zonename": self.zonename, "zoneid": instance.zone_id}
            status = {"status": told.status} if told.status else {}
            events.publish_best_effort(self.layout, {**record, **status})

    def _brake(self) -> float:
        """Seconds to wait before this reboot: none for the first quick ones, then twice as long each time."""
        instance = instances.read(self.layout, self.zonename)
        if instance is None:
            return 0.0
        policy = instance.restart
        quick = instance.quick_reboots + 1 if time.monotonic() - instance.booted_s < policy.quick_s else 0
        self.quick_reboots = quick  # the worker writes it down with the next life
        return policy.delay_s(quick)

    # -- requests, one at a time ----------------------------------------------------------------------------

    def _ask(self, request: Request) -> None:
        """Somebody at the door wants something done."""
        self.asked = True
        if len(request.arguments) > BOOTARGS_MAX:
            with speaking(request.locale):
                self._finish(request, False, [message("Boot argument list too long")])
        else:
            self._enqueue(request)

    def _enqueue(self, request: Request) -> None:
        wanted = request.command is Command.HALT and not request.upcall
        if wanted and self.current is not None and self.worker is not None:
            again, self.current.after = self.current.after, None
            if again is not None:  # what is being taken back stays down
                self._forget()
                with speaking(again.locale):
                    cancelled = message("{command} was cancelled by halt", command=Command.REBOOT.value)
                self._finish(again, False, [*again.messages, cancelled])
            if self.current.command in BRINGS_UP and not self.current.failure:
                self._cancel(message("{command} was cancelled by halt", command=self.current.command.value))
        self.queue.append(request)
        self._next()

    def _describe(self) -> dict[str, Any]:
        seen = _observed(self.layout, self.zonename)
        instance = seen.instance if seen else None
        init = instance.init.pid if instance and instance.init else None
        told = readiness.of(self.layout, seen) if seen else None
        return {
            "protocol": PROTOCOL,
            "zonename": self.zonename,
            "state": seen.state.label if seen else State.CONFIGURED.label,
            "zone_id": seen.zone_id if seen else None,
            "brand": seen.brand if seen else None,
            "uuid": seen.uuid if seen else None,
            "under_way": self.current.command.value if self.current and self.current.command else None,
            "waiting": len(self.queue),
            "supervisor_pid": os.getpid(),
            "init_pid": init,
            "console_pid": self.console.client.pid if self.console.client else None,
            "generation": instance.generation if instance else None,
            "unconfirmed": self._unconfirmed(),
            "ready": told.ready if told else None,
            "status": told.status if told else None,
        }

    def _unconfirmed(self) -> int | None:
        record = change.read(self.layout, self.zonename)
        waits = record is not None and record.phase is change.Phase.UNCONFIRMED
        return round(record.left_s) if record is not None and waits else None

    def _next(self) -> None:
        """Begin the next request, if none is under way."""
        while self.queue and self.worker is None and not self.leaving:
            request = self.queue.popleft()
            try:
                self._begin(request)
            except ZoneError as error:
                self._finish(request, False, [error.text])
            except OSError as error:
                self._finish(request, False, [str(error)])
            if request.reboot is not None and self.worker is None:
                self._forget()  # nothing has begun, nor will it
        if self.door is not None and self.worker is None and not self.queue:
            self.door.settled()

    def _begin(self, request: Request) -> None:
        speak(request.locale)  # for all that is said until the next request begins, in the worker too
        state, instance = _life_of(self.layout, self.zonename)
        if request.command is None:
            self._start(request, state, None)
            return
        if request.generation is not None:
            if instance is None or instance.generation != request.generation or not state.active:
                return  # the life that it speaks of is over
            if instance.phase is Phase.HALTING:
                return  # init ended because somebody halts the zone, who has had an answer
        if self.layout.alternate and request.command not in IN_ALTERNATE_ROOT:
            text = message("cannot {verb} zone in alternate root", verb=request.command.value)
            self._finish(request, False, [text])
            return
        cell = decide(state, request.command)
        if isinstance(cell, Refuse):
            self._finish(request, False, [cell.text(state, request.command)])
        elif isinstance(cell, Already):
            self._finish(request, True, [cell.text()], note=cell.text())
        elif cell.procedure.steps == (Step.SHUTDOWN,) and self.shutting is not None:
            self._finish(request, False, [message("shutdown already in progress")])
        else:
            self._start(request, state, cell)

    def _start(self, request: Request, state: State, cell: Run | None) -> None:
        """Fork a worker for the request."""
        limits = self._settings(request)
        transition = Transition(
            layout=self.layout,
            zonename=self.zonename,
            settings=limits,
            state=state,
            command=request.command or Command.HALT,
            arguments=request.arguments,
            update=request.update,
            say=_nothing,
            notice=_nothing,
            console_ready=_nothing,
            console_taken=_nothing,
            fork_zsched=_nothing,
            quick_reboots=self.quick_reboots if request.upcall else 0,
            upcall=request.upcall,
            dry_run=request.dry_run,
            confirm_s=request.confirm_s,
        )
        job = workers.procedure_job(cell.procedure) if cell else workers.recover
        self._remember(request)
        self.current, self.procedure = request, cell.procedure if cell else None
        self.worker = workers.start(transition, job, self.lock.forget)
        self.loop.watch(self.worker.sock.fileno(), self._worker_ready)
        self.deadline = self.loop.after(limits.transition_s, self._overdue)

    def _remember(self, request: Request) -> None:
        """For a successor.  Between the halves of a reboot there is no zsched that would start one: a guard does."""
        files.write_json(self._intent_path, request.intent, durable=False)
        reboot = request.reboot
        if reboot is None or self.guard is not None or (reboot.killed or 0) >= guard.SUCCESSORS_MAX:
            return
        try:
            self.guard = guard.post(self.zonename, successor_command(self.layout, self.zonename), self.lock.forget)
        except OSError as error:  # the reboot needs none
            log.error(str(error))

    def _forget(self) -> None:
        """What was under way is over."""
        if self.guard is not None:
            self.guard.dismiss()
            self.guard = None
        self._intent_path.unlink(missing_ok=True)

    def _settings(self, request: Request) -> settings.Settings:
        """The instance's settings.  A file that is broken must not keep a zone from being halted: then the defaults."""
        try:
            return settings.load(self.layout)
        except ConfigError as error:
            if request.command not in (None, Command.HALT, Command.UNMOUNT, Command.SHUTDOWN):
                raise
            request.messages.append(message("WARNING: {why}: going on with the defaults", why=error.text))
            return settings.defaults(self.layout)

    @property
    def _intent_path(self) -> Any:
        return self.layout.intent(self.zonename)

    def _overdue(self) -> None:
        self._cancel("the transition has passed its deadline")

    def _cancel(self, why: str) -> None:
        """End the transition under way; what it did is taken back."""
        if self.worker is None or self.current is None:
            return
        self.current.failure = why
        self._work_cgroup_kill()

    def _work_cgroup_kill(self) -> None:
        assert self.worker is not None
        self.worker.killed = True
        self._cgroup.kill(Part.WORK)

    @property
    def _cgroup(self) -> ZoneCgroup:
        return ZoneCgroup(detect(), "zonemgr" + self.layout.suffix, self.zonename)

    def _worker_ready(self, _events: int) -> None:
        worker = self.worker
        if worker is None:
            return
        try:
            packet = packets.receive(worker.sock)
        except BlockingIOError:
            return
        except OSError:
            packet = None
        if packet is None:
            self._worker_ended()
            return
        self._hear(worker, packet[0], packet[1])
        if worker.done is not None:
            self._worker_ended()

    def _hear(self, worker: Worker, head: dict[str, Any], fds: list[int]) -> None:
        """One packet of a worker."""
        if "say" in head:
            self._say(head["say"])
        elif "result" in head and self.current is not None:
            self.current.result = head["result"]
        elif "notice" in head:
            self.console.notice(Notice[head["notice"]], head["arguments"])
        elif "zsched" in head:
            successor = successor_command(self.layout, self.zonename)
            zsched.fork(self.zonename, head["zsched"], fds, successor, self.lock.forget)
        elif "console" in head:
            self.lifeline.attach()
            with contextlib.suppress(OSError):  # it has died meanwhile, which is told next
                packets.send(worker.sock, {"ok": True})
        elif "done" in head:
            worker.done = head

    def _say(self, text: str) -> None:
        """A line for the requester while the work goes on; an upcall's go to the system log."""
        request = self.current
        assert request is not None
        if len(request.messages) == MESSAGES_MAX:
            text = message("(further output is not shown)")
        elif len(request.messages) > MESSAGES_MAX:
            return
        request.messages.append(text)
        if request.call is None:
            log.error(text)
        elif self.door is not None:
            self.door.progress(request.call, text)

    def _worker_ended(self) -> None:
        worker, request = self.worker, self.current
        if worker is None or request is None:
            return
        done = worker.done
        if done is None:
            while self._read_more(worker):
                pass
            done = worker.done
        self.current = None
        self.loop.forget(worker.sock.fileno())
        self.loop.watch(worker.pid_fd, lambda _events: self._worker_left())
        if self.deadline is not None:
            self.deadline.cancel()
        if request.after is None:  # else the rest of a reboot is still to come
            self._forget()
        if done is None:
            self._crashed(request)
        else:
            self._worked(request, bool(done["ok"]))

    def _worker_left(self) -> None:
        """It is out of its cgroup; what was killed with it may take a moment more."""
        assert self.worker is not None
        self.loop.forget(self.worker.pid_fd)
        self._next_when_empty(time.monotonic() + WORK_GONE_S)

    def _next_when_empty(self, give_up: float) -> None:
        """The next worker needs a new folder, so this one empty: a folder that was killed once kills for good."""
        assert self.worker is not None
        if self.worker.killed and time.monotonic() < give_up and not self._cgroup.wait_empty(Part.WORK, 0):
            self.loop.after(0.005, lambda: self._next_when_empty(give_up))
            return
        self.worker.close()
        self.worker = None
        self._next()

    def _read_more(self, worker: Worker) -> bool:
        """What a worker said just before it died."""
        try:
            packet = packets.receive(worker.sock)
        except OSError:
            return False
        if packet is None:
            return False
        if "zsched" in packet[0]:  # nobody is left to make a zone with it
            packets.close_all(packet[1])
            return True
        with contextlib.suppress(BrokenPipeError):  # it waits for no answer any more
            self._hear(worker, packet[0], packet[1])
        return True

    def _crashed(self, request: Request) -> None:
        """A worker ended without a result: take back what it did, then answer."""
        if request.command is None:  # the recovery itself was killed: the next command tries again
            self._recovered(request, False)
            return
        self._work_cgroup_kill()
        instance = instances.read(self.layout, self.zonename)
        untouched = (
            instance is not None and instance.phase is Phase.RUNNING and self._state() is State.RUNNING
        )
        if request.command is Command.REBOOT and not request.failure and not untouched:
            self._boot_again(request)
            return
        request.messages.append(
            request.failure or message("the transition was interrupted; what it had done is taken back")
        )
        if request.command in CHANGES:
            if request.command is not Command.REVERT:  # else the next supervisor or change tries again
                self._take_change_back()
        elif not untouched:  # who asked is answered when it is so
            self.queue.appendleft(Request(None, failed=request))
            return
        self._finish(request, False, request.messages)

    def _boot_again(self, request: Request) -> None:
        """A zone that was to come back does so, however its reboot ended: the boot answers who asked."""
        text = message("the reboot was interrupted; the zone is taken down and booted again")
        again = Request(
            Command.BOOT,
            arguments=request.arguments,
            call=request.call,
            messages=[*request.messages, text],
            killed=0,
        )
        self._remember(again)
        if again.call is None:
            log.error(text)
        elif self.door is not None:
            self.door.progress(again.call, text)
        self.queue.appendleft(Request(None, after=again))

    def _recovered(self, request: Request, ok: bool) -> None:
        """What was interrupted is taken back, or not; then what was to follow, if something was."""
        again = request.after
        if request.failed is not None:
            self._finish(request.failed, False, [*request.failed.messages, *request.messages])
        if again is not None and ok:
            self.queue.appendleft(again)
        elif again is not None:
            self._forget()
            self._finish(again, False, [*again.messages, *request.messages])
        self._finish(request, ok, request.messages)

    def _worked(self, request: Request, ok: bool) -> None:
        if ok and self.procedure is not None and self.procedure.steps == (Step.SHUTDOWN,):
            self._wait_for_shutdown(request)
            return
        if request.command in CHANGES and (ok or request.command is Command.APPLY):
            self._take_change_back()
        if request.command is None:
            self._recovered(request, ok)
        else:
            self._finish(request, ok, request.messages)
        if self.shutting is not None and self._state() <= State.INSTALLED:
            self._shut_down(True)

    def _finish(self, request: Request, ok: bool, messages: list[str], note: str | None = None) -> None:
        """Answer the request.  Whoever asked may be long gone."""
        call = request.call
        if call is None:
            if not ok:
                for text in messages:
                    log.error(text)
            return
        assert self.door is not None
        self.door.answer(call, ok, messages, note, request.result)

    # -- graceful shutdown (reference 1.6) ------------------------------------------------------------------

    def _wait_for_shutdown(self, request: Request) -> None:
        """The command has run; the zone's end comes as an upcall, or the patience ends."""
        patience_s = request.timeout_s or self._settings(request).shutdown_s
        self.shutting = request
        self.shutting_timer = self.loop.after(patience_s, lambda: self._shut_down(False))
        if self._state() <= State.INSTALLED:
            self._shut_down(True)

    def _shut_down(self, ok: bool) -> None:
        request, self.shutting = self.shutting, None
        if self.shutting_timer is not None:
            self.shutting_timer.cancel()
        if request is not None:
            with speaking(request.locale):
                failure = [] if ok else [message("unable to shutdown zone")]
                self._finish(request, ok, [*request.messages, *failure])

    def _after_client(self) -> None:
        self.asked = True


def _fate(policy: RestartPolicy, how: str | None, failed: bool) -> Fate:
    """What becomes of the zone: ``how`` is what it asked for itself, None when its init just ended."""
    if how is not None:
        return policy.rebooted if how == "reboot" else "halt"
    return policy.failed if failed else policy.ended


def _nothing(*_arguments: object) -> None:
    """Filled in by the worker."""


def _observed(layout: Layout, zonename: str) -> Observation | None:
    try:
        return observe(layout, zonename)
    except ZoneError:
        return None


def _life_of(layout: Layout, zonename: str) -> tuple[State, Instance | None]:
    try:
        return life_of(layout, zonename)
    except ZoneError:
        return State.CONFIGURED, None


def successor_command(layout: Layout, zonename: str) -> tuple[str, ...]:
    """The command that starts a supervisor for the zone, for zsched to run when nobody is there."""
    return tuple(start.program("zonemgr.supervisor", "serve", zonename, *layout.words))
