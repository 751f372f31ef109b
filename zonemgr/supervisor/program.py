"""The supervisor's programs: starting up, the one-shot verbs, and the messages of what failed on the way."""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NoReturn

from zonemgr.errors import Exit, ZoneError, locale_of_environment, message, speak
from zonemgr.linux import caps, process, sealed
from zonemgr.linux.cgroup import Part, ZoneCgroup, detect, supervisors
from zonemgr.model.states import GLOBAL_ZONE, State
from zonemgr.store import files, zones
from zonemgr.store import instance as instances
from zonemgr.store.instance import Phase
from zonemgr.store.locks import FileLock
from zonemgr.store.observe import state_of
from zonemgr.store.paths import Layout
from zonemgr.supervisor import log

LOCK_PATIENCE_S = 10.0  # a predecessor that is leaving lets go of its lock within this


def main(arguments: list[str]) -> int:
    """Run a verb; the exit status."""
    options = _options(arguments)
    if options.verb not in ("serve", "plan", "fsck", "delegate"):
        print("zonemgr.supervisor: serve NAME, plan VERB NAME, fsck or delegate", file=sys.stderr)
        return int(Exit.USAGE)
    layout = replace(Layout.at(options.root), alternate=options.alternate)
    speak(locale_of_environment())
    try:
        if options.verb == "serve":
            return serve(layout, options.words[0], options.ready_fd)
        if options.verb == "delegate":
            from zonemgr.supervisor import delegate

            return delegate.serve(layout, stay=options.stay)
        return _one_shot(layout, options)
    except ZoneError as error:
        print(f"zonemgr: {error.text}", file=sys.stderr)
        return int(error.exit_code)


def _one_shot(layout: Layout, options: _Options) -> int:
    from zonemgr.supervisor import oneshot

    try:
        if options.verb == "plan":
            code = oneshot.plan(layout, options.words[0], options.words[1], as_json=options.json)
        else:
            code = oneshot.fsck(layout, host=options.host, as_json=options.json)
        sys.stdout.flush()
    except BrokenPipeError:  # as the command line does: whoever reads it has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = 128 + signal.SIGPIPE
    return code


@dataclass
class _Options:
    """What the words of a program say."""

    verb: str = ""
    words: list[str] = field(default_factory=list)
    root: str | None = None
    alternate: bool = False
    ready_fd: int = -1
    json: bool = False
    host: bool = False
    stay: bool = False


def _options(arguments: list[str]) -> _Options:
    """Only we write these words: ``argparse`` would be a megabyte of every supervisor for them."""
    options = _Options()
    rest = iter(arguments)
    for word in rest:
        match word:
            case "--root":
                options.root = next(rest)
            case "--ready-fd":
                options.ready_fd = int(next(rest))
            case "--alternate" | "--json" | "--host" | "--stay":
                setattr(options, word[2:], True)
            case _ if not options.verb:
                options.verb = word
            case _:
                options.words.append(word)
    return options


class Starter:
    """Whoever started us, at the other end of a pipe: hears messages, and that we are ready."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        if descriptor >= 0:
            os.set_inheritable(descriptor, False)

    def say(self, text: str) -> None:
        self._write({"message": text})

    def ready(self) -> None:
        """Tell, and close the pipe."""
        self._write({"ready": True})
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    @property
    def descriptor(self) -> int:
        return self._descriptor

    def _write(self, record: dict[str, object]) -> None:
        if self._descriptor < 0:
            return
        try:
            os.write(self._descriptor, json.dumps(record).encode() + b"\n")
        except OSError:
            return  # it did not wait


def serve(
    layout: Layout, zonename: str, ready_fd: int = -1, begun: Callable[[], None] | None = None
) -> int:
    """Start up in the order of reference 4.2, then be the supervisor.

    The caller waits on the ready descriptor; this process ends as soon as the supervisor proper, its child in a
    cgroup of our own, exists.  Callable after a fork as well as after an exec.  With ``begun`` this process is in that
    cgroup already: it becomes the supervisor, and calls that as it would have ended.
    """
    starter = Starter(ready_fd)
    try:
        _check(layout, zonename)
        _seal(layout, zonename, starter)
        os.chdir("/")
        os.umask(0o022)
        if begun is not None:
            begun()
            _be_supervisor(layout, zonename, starter)
        base = "zonemgr" + layout.suffix
        hierarchy = detect()
        pid, pid_fd = supervisors.clone_into(hierarchy, base)
        if pid == 0:
            _be_supervisor(layout, zonename, starter)
        os.close(pid_fd)
        return int(Exit.OK)
    except ZoneError as error:
        starter.say(error.text)
        return int(Exit.ERROR)
    except OSError as error:
        starter.say(message("could not start the supervisor: {why}", why=error))
        return int(Exit.ERROR)


def warm_up(layout: Layout, zonename: str) -> None:
    """Begin as the supervisor of a zone that is not there.  Raises NoSuchZoneError."""
    _check(layout, zonename)


def _seal(layout: Layout, zonename: str, starter: Starter) -> None:
    """Before a zone without a user namespace: go on as the same program in an interpreter that nobody can write to."""
    if not _is_privileged(layout, zonename) or sealed.is_sealed():
        return
    from zonemgr.wire import start

    words = ["serve", zonename, "--root", str(layout.root), "--ready-fd", str(starter.descriptor)]
    if starter.descriptor >= 0:
        os.set_inheritable(starter.descriptor, True)
    sealed.execute(start.program("zonemgr.supervisor", *words), os.environ)


def _is_privileged(layout: Layout, zonename: str) -> bool:
    """As it lives, or as it would be made.  A configuration that cannot be read makes nothing."""
    instance = instances.read(layout, zonename)
    if instance is not None:
        return instance.privileged
    text = files.read_bytes(layout.config(zonename)) or b""
    if b"privileged" not in text and b"\\" not in text:
        return False  # the name is not even there, nor spelt with escapes: what is parsed here, stays in our memory
    try:
        return zones.load(layout, zonename).privileged
    except ZoneError:
        return False


def _check(layout: Layout, zonename: str) -> None:
    """The checks before anything is made, each with its own message."""
    if zonename == GLOBAL_ZONE:
        raise ZoneError("cannot manage the global zone")
    state = state_of(layout, zonename)
    if state < State.INCOMPLETE:
        raise ZoneError("cannot manage a zone which is in state '{state}'", state=state.label)
    if os.geteuid() != 0 or "sys_admin" not in caps.effective("self"):
        raise ZoneError("You lack sufficient privilege to run this command (all privs required)")
    folder = layout.zone_run(zonename)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)


def _be_supervisor(layout: Layout, zonename: str, starter: Starter) -> NoReturn:
    """The child: never returns."""
    status = 1
    try:
        if os.getsid(0) != os.getpid():
            os.setsid()
        process.close_fds([0, 1, 2, starter.descriptor])
        process.stdio_to_null()
        process.reset_signals()
        import signal

        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        process.set_name("zone-supervisor")
        process.set_title(f"zone-supervisor {zonename}")
        process.set_oom_score_adj(process.OOM_PROTECTED)
        supervisors.leave_v1()
        status = _supervise(layout, zonename, starter)
    except Exception as error:  # noqa: BLE001 - the last one who can tell anybody
        import traceback

        log.error(traceback.format_exc())
        starter.say(error.text if isinstance(error, ZoneError) else f"internal error: {error!r}")
    finally:
        _leave_supervisors(layout)
        os._exit(status)


def _supervise(layout: Layout, zonename: str, starter: Starter) -> int:
    from zonemgr.supervisor.serve import Supervisor

    log.begin(layout, zonename)
    lock = FileLock(layout.zone_run(zonename) / "lock")
    deadline = time.monotonic() + LOCK_PATIENCE_S
    while not lock.acquire(blocking=False):
        if time.monotonic() > deadline or _door_answers(layout, zonename):
            return 1  # another one serves: lose silently
        time.sleep(0.01)  # flock has no deadline
    try:
        _kill_leftover_work(layout, zonename)
        _warn(layout, zonename, starter)
        supervisor = Supervisor(layout, zonename, lock)
        supervisor.open()
        if (
            starter.descriptor < 0
        ):  # zsched started us, for what another one may have done meanwhile: wait for nobody
            supervisor.asked = True
            supervisor.loop.after(0, lambda: None)
        gc.collect()
        gc.freeze()
        starter.ready()
        supervisor.run()
    finally:  # by the one that holds the lock: one that lost has nothing to tidy up
        _leave_zone(layout, zonename)
    return 0


def _door_answers(layout: Layout, zonename: str) -> bool:
    """Whether the holder of the lock serves (one that is leaving has withdrawn its door)."""
    return (layout.zone_run(zonename) / "door").exists()


def _kill_leftover_work(layout: Layout, zonename: str) -> None:
    """A worker must not outlive its supervisor: see its cgroup empty before the ledger is read."""
    cgroup = ZoneCgroup(detect(), "zonemgr" + layout.suffix, zonename)
    cgroup.kill(Part.WORK)
    if not cgroup.wait_empty(Part.WORK, 30.0):
        raise ZoneError("an interrupted transition is stuck: {who}", who="; ".join(cgroup.stuck(Part.WORK)))


def _warn(layout: Layout, zonename: str, starter: Starter) -> None:
    """The WARNING of reference 4.3, when the zone has lived without a supervisor."""
    instance = instances.read(layout, zonename)
    if instance is None or instance.phase is Phase.MAKING:
        return
    state = state_of(layout, zonename)
    if state > State.INSTALLED:
        starter.say(
            message(
                "WARNING: zone is in state '{state}', but zoneadmd does not appear to be available; "
                "restarted zoneadmd to recover.",
                state=state.label,
            )
        )


def _leave_supervisors(layout: Layout) -> None:
    """The last supervisor of an instance leaves no folder behind."""
    try:
        supervisors.leave("zonemgr" + layout.suffix, detect())
    except (OSError, ZoneError):
        return  # nothing more can be done by a process that is leaving


def _leave_alternate_root(layout: Layout, zonename: str) -> None:
    """What the running system kept of another one's zone; the last zone's supervisor takes away the rest."""
    import shutil  # a megabyte that only an end needs

    shutil.rmtree(layout.zone_run(zonename), ignore_errors=True)
    if not os.listdir(layout.run / "zones"):
        shutil.rmtree(layout.run)


def _leave_zone(layout: Layout, zonename: str) -> None:
    """Nothing of a zone that has no platform stays, and no folder of one that was deleted."""
    try:
        if (
            instances.read(layout, zonename) is None
            and not (layout.zone_run(zonename) / "ledger.jsonl").exists()
        ):
            ZoneCgroup(detect(), "zonemgr" + layout.suffix, zonename).remove(0.5)
        if not zones.exists(layout, zonename):
            import shutil

            shutil.rmtree(layout.zone_run(zonename), ignore_errors=True)
        if layout.alternate and instances.read(layout, zonename) is None:
            _leave_alternate_root(layout, zonename)
    except (OSError, ZoneError):
        return  # nothing more can be done by a process that is leaving
