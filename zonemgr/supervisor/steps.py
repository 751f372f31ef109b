"""The steps of a transition, one function each: what zone_ready, zone_bootup and zone_halt are to the reference
(section 2).

All of this runs in a worker: a process that is forked for one transition, may block, and reports to the
supervisor through its ``Reporter``.  A step returns normally when it worked and raises when it did not; hooks
get the names of the state at the request's arrival and of the command, as the reference's table has them.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zonemgr.brandkit import hooks, loader
from zonemgr.brandkit import verify as brands
from zonemgr.brandkit.base import Brand, ZoneInfo
from zonemgr.errors import BrandError, PlatformError, ZoneError, message
from zonemgr.linux import mounts, namespaces, paths, process, procfs, seccomp
from zonemgr.linux.cgroup import Part, ZoneCgroup, detect
from zonemgr.model import plan
from zonemgr.model.bootargs import BootArguments, filter_bootargs
from zonemgr.model.brandspec import InitProgram
from zonemgr.model.states import Command, Notice, State
from zonemgr.model.zone import Zone
from zonemgr.platform import compose, runner, undo
from zonemgr.platform.compose import Subject
from zonemgr.platform.stage import Born, Stage
from zonemgr.store import events, snapshot, verify, zoneids, zones
from zonemgr.store import instance as instances
from zonemgr.store.instance import Instance, Mode, Phase
from zonemgr.store.ledger import Ledger
from zonemgr.store.observe import living_state
from zonemgr.store.paths import Layout
from zonemgr.store.settings import Settings
from zonemgr.supervisor import init as initprogram
from zonemgr.supervisor import inzone, zsched
from zonemgr.supervisor.anchor import SOCKET, Anchor, Hello, StubError
from zonemgr.wire import packets

_WITHOUT_BRAND = frozenset({Command.HALT, Command.UNMOUNT})


class HookFailed(ZoneError):
    """A hook refused; its own words have already been passed on."""


@dataclass
class Transition:
    """One transition of one zone, as its worker sees it."""

    layout: Layout
    zonename: str
    settings: Settings
    state: State  # at the request's arrival: hooks are told this one
    command: Command
    arguments: str  # boot arguments of the request
    update: bool  # mount: ask for update mode
    say: Callable[[str], None]
    notice: Callable[[Notice, str], None]
    console_ready: Callable[[], None]  # zsched holds a new pty: the supervisor attaches
    recovering: bool = False  # a bring-up has failed before: teardown complains less
    upcall: bool = False
    successor: tuple[str, ...] = ()
    step: Callable[[plan.Op], None] | None = None
    quick_reboots: int = 0
    zone: Zone | None = field(default=None)
    _brand: Brand | None = field(default=None)

    @property
    def cgroup(self) -> ZoneCgroup:
        return ZoneCgroup(detect(), "zonemgr" + self.layout.suffix, self.zonename)

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.layout.zone_run(self.zonename) / "ledger.jsonl")

    def configuration(self) -> Zone:
        """The zone as it was frozen at ready, else as its file says now."""
        if self.zone is None:
            self.zone = snapshot.load(self.layout, self.zonename) or zones.load(self.layout, self.zonename)
        return self.zone

    @property
    def brand(self) -> Brand:
        """The zone's brand, loaded by the worker: whatever its file does, the supervisor lives.

        A zone whose brand is gone or broken can still be halted, without its hooks.
        """
        if self._brand is None:
            try:
                self._brand = loader.load(self.configuration().brand, self.layout)
            except BrandError as error:
                if self.command not in _WITHOUT_BRAND:
                    raise
                self.say(message("WARNING: {why}: going on without its hooks", why=error.text))
                self._brand = Brand(Path("/"))
        return self._brand

    def info(self) -> ZoneInfo:
        """What a brand is told of the zone."""
        zone = self.configuration()
        return ZoneInfo(
            zonename=self.zonename,
            zonepath=zone.zonepath,
            root=f"{zone.zonepath}/root",
            config=zone,
            layout_root=str(self.layout.root),
        )

    def publish(self, old: State, new: State, zone_id: int | None) -> None:
        """Tell followers of events that the state changed."""
        record = {"type": "state", "zonename": self.zonename, "oldstate": old.label, "newstate": new.label}
        events.publish_best_effort(self.layout, {**record, "zoneid": zone_id})


# -- hooks ------------------------------------------------------------------------------------------------------


def _hook(transition: Transition, name: str, call: Callable[[ZoneInfo], int | None]) -> None:
    """Run a brand method as a hook.  HookFailed unless it returns zero; its output goes to the requester."""
    if not transition.brand.overrides(name):
        return
    info = transition.info()
    full_name = f"brand '{transition.brand.name}' {name}"
    spoke = False

    def say(text: str) -> None:
        nonlocal spoke
        spoke = True
        transition.say(text)

    status = hooks.run_hook(
        lambda: call(info),
        name=full_name,
        zonename=transition.zonename,
        deadline_s=transition.settings.hook_s,
        say=say,
    )
    if status != 0 and spoke:
        raise HookFailed("{name} failed", name=full_name)
    if status != 0:
        raise ZoneError("{name} failed with exit status {status}", name=full_name, status=status)


def pre(transition: Transition, state: State, command: Command) -> None:
    """The hook before a step."""
    _hook(
        transition,
        "pre_statechange",
        lambda info: transition.brand.pre_statechange(info, state.label, command.value),
    )


def post(transition: Transition, state: State, command: Command) -> None:
    """The hook after a step."""
    _hook(
        transition,
        "post_statechange",
        lambda info: transition.brand.post_statechange(info, state.label, command.value),
    )


def _post_ignored(transition: Transition, state: State, command: Command) -> None:
    """The hook after a failure: its own failure changes nothing."""
    try:
        post(transition, state, command)
    except ZoneError:
        return  # the first failure is what the caller hears of


# -- ready ------------------------------------------------------------------------------------------------------


def ready(transition: Transition, mode: Mode) -> None:
    """zone_ready: hook, snapshot, platform, hook.  What failed is undone from the ledger before the error goes up."""
    transition.zone = None
    pre(transition, transition.state, Command.READY)
    try:
        _bring_up(transition, mode)
        post(transition, transition.state, Command.READY)
    except Exception:
        _post_ignored(transition, State.READY, Command.HALT)
        raise


def _bring_up(transition: Transition, mode: Mode) -> None:
    layout, zonename = transition.layout, transition.zonename
    zone = transition.zone = snapshot.create(layout, zonename)
    entry = zones.read_entry(layout, zonename)
    transition.recovering = True
    instance = _new_instance(transition, zone, mode, entry.uid_base or 0)
    ledger = transition.ledger
    try:
        _verify(transition, zone, "mount" if mode.alternate else "ready")
        subject = Subject(
            zone=zone,
            brand=transition.brand,
            data=str(transition.brand.folder),
            layout=layout,
            settings=transition.settings,
            mode=mode,
            uid_base=instance.uid_base,
            uuid=entry.uuid,
        )
        instances.write(layout, instance)
        builder = _Builder(transition, instance, subject.root)
        try:
            runner.run(compose.compose_ready(subject), builder.stage, ledger, step=transition.step)
            builder.commit()
        finally:
            builder.close()
    except Exception as error:  # also a full disk and a bug of ours: nothing may stay behind
        try:
            _take_back(transition, ledger)
        except (ZoneError, OSError) as second:
            error.add_note(str(second))
        raise
    transition.recovering = False
    living = State.MOUNTED if mode.alternate else State.READY
    transition.publish(State.INSTALLED, living, instance.zone_id)


def _verify(transition: Transition, zone: Zone, command: str) -> None:
    verify.verify_zone(
        transition.layout,
        zone,
        zones.read_entry(transition.layout, transition.zonename),
        command,
        transition.say,
    )
    verb = transition.command.value.removeprefix("force")
    limit_s = transition.settings.hook_s
    brands.verify_brand(transition.brand, transition.info(), verb, deadline_s=limit_s, say=transition.say)


def _new_instance(transition: Transition, zone: Zone, mode: Mode, uid_base: int) -> Instance:
    """The record of the life that begins: a new id and generation, also at each reboot."""
    brand = transition.brand
    allowed = brands.allowed(brand, zone, zone.limitpriv if mode is Mode.BOOT else "")
    cgroup = transition.cgroup
    return Instance(
        zonename=transition.zonename,
        generation=os.urandom(8).hex(),
        zone_id=zoneids.next_id(transition.layout),
        mode=mode,
        phase=Phase.MAKING,
        uid_base=0 if zone.privileged else uid_base,
        privileged=zone.privileged,
        root=f"{zone.zonepath}/{'lu' if mode.alternate else 'root'}",
        cgroup=str(cgroup.part_path(Part.PAYLOAD)),
        cgroups_v1=tuple(map(str, cgroup.v1_paths())),
        capabilities=tuple(sorted(allowed.capabilities)),
        seccomp=seccomp.DEFAULT_NAME,
        login_command=tuple(brand.login_command),
        forced_login_command=tuple(brand.forced_login_command),
        user_command=tuple(brand.user_command),
        restart=brand.restart,
        label=zone.label if brand.mandatory_label else "",
        brand=brand.name,
        ip_type=zone.ip_type,
        locked_bytes=zone.capped_memory.locked if zone.capped_memory and mode is Mode.BOOT else None,
        quick_reboots=transition.quick_reboots,
    )


class _Builder:
    """Makes zsched and what hangs on it, for one run of a plan."""

    def __init__(self, transition: Transition, instance: Instance, root: str) -> None:
        self.transition = transition
        self.instance = instance
        self.anchor: Anchor | None = None
        self.stage = Stage(
            layout=transition.layout,
            zonename=transition.zonename,
            root=root,
            uid_base=instance.uid_base,
            privileged=instance.privileged,
            cgroup=transition.cgroup,
            start_zsched=self.start_zsched,
            keep_console=self.keep_console,
            seal=self.seal,
            say=transition.say,
            shifted=zones.read_entry(transition.layout, transition.zonename).idmap_marker is not None,
        )

    def start_zsched(self, hostname: str) -> Born:
        """Fork zsched into the zone's manager cgroup; it gives birth to process 1; write the maps; record both."""
        cgroup, instance = self.transition.cgroup, self.instance
        ours, theirs = packets.pair()
        folder_fd = os.open(self.transition.layout.zone_run(instance.zonename), os.O_PATH | os.O_CLOEXEC)
        listener = packets.listen(folder_fd, SOCKET)
        os.close(folder_fd)
        manager_fd, payload_fd = cgroup.manager_fd(), cgroup.payload_fd()
        pid, zsched_fd = process.clone3(0, cgroup_fd=manager_fd)
        if pid == 0:
            zsched.main(
                zonename=instance.zonename,
                generation=instance.generation,
                listener=listener,
                creator=theirs,
                payload_fd=payload_fd,
                privileged=instance.privileged,
                successor=self.transition.successor,
            )
        packets.close_all([manager_fd, payload_fd, zsched_fd])
        listener.close()
        theirs.close()
        ours.settimeout(30)
        birth = packets.receive(ours)
        if birth is None or "born" not in birth[0]:
            why = birth[0].get("text") if birth else "zsched died"
            raise PlatformError("cannot make the zone's namespaces: {why}", why=why)
        self.anchor = Anchor(ours)
        return self._adopt_birth(pid, hostname)

    def _adopt_birth(self, zsched_pid: int, hostname: str) -> Born:
        assert self.anchor is not None
        hello = self.anchor.hello()
        init = instances.Process(hello.init_pid, procfs.start_time(hello.init_pid) or 0)
        keeper = instances.Process(zsched_pid, procfs.start_time(zsched_pid) or 0)
        self.instance = instances.write(self.transition.layout, self.instance.but(zsched=keeper, init=init))
        if not self.instance.privileged:
            namespaces.write_id_maps(hello.init_pid, self.instance.uid_base)
        self.transition.cgroup.join_v1(hello.init_pid)
        if self.transition.brand.delegate_cgroup:
            self.transition.cgroup.delegate(self.instance.uid_base)
        if self.transition.brand.cgroup == "v1":
            self.transition.cgroup.delegate_named(self.instance.uid_base)
        self.anchor.stub({"op": "identity", "hostname": hostname})
        kept = {"m0", "net", "user"}
        packets.close_all(fd for name, fd in hello.fds.items() if name not in kept)
        return Born(hello.init_pid, hello.fds["m0"], hello.fds["net"], hello.fds["user"])

    def keep_console(self, master_fd: int, slave_fd: int) -> None:
        """Hand the pty to zsched."""
        assert self.anchor is not None
        self.anchor.keep_console(master_fd, slave_fd)
        packets.close_all([master_fd, slave_fd])

    def seal(self) -> None:
        """Let process 1 take its locked copy of the finished tree."""
        assert self.anchor is not None
        self.anchor.stub({"op": "seal"})

    def commit(self) -> None:
        """All ops worked: record it, and let zsched live on without this worker."""
        assert self.anchor is not None
        self.instance = instances.write(self.transition.layout, self.instance.but(phase=Phase.READY))
        self.anchor.commit()
        self.transition.console_ready()

    def close(self) -> None:
        self.stage.close()
        if self.anchor is not None:
            self.anchor.close()


# -- boot -------------------------------------------------------------------------------------------------------


def boot(transition: Transition) -> None:
    """zone_bootup: hook, in-zone mounts, the brand's boot command, exec of init, hook."""
    pre(transition, transition.state, Command.BOOT)
    try:
        _boot(transition)
        post(transition, transition.state, Command.BOOT)
    except Exception:
        _post_ignored(transition, State.RUNNING, Command.HALT)
        raise


def _boot(transition: Transition) -> None:
    layout, zonename, brand = transition.layout, transition.zonename, transition.brand
    instance = instances.read(layout, zonename)
    if instance is None:
        raise PlatformError("unable to get zoneid: no such zone is ready")
    zone = transition.configuration()
    words = filter_bootargs(transition.arguments, zone.bootargs)
    for text in words.messages:
        transition.say(text)
    if words.bad:
        transition.notice(Notice.BADARGS, " ".join(words.bad))
    program = _init_program(transition, words)
    init, arguments = program.path, program.arguments
    anchor = Anchor.connect(layout, zonename)
    try:
        hello = anchor.hello()
        try:
            born = Born(hello.init_pid, hello.fds["m0"], hello.fds["net"], hello.fds["user"])
            stage = _late_stage(transition, instance, born)
            _in_zone_mounts(transition, stage, instance, init, arguments)
            if "/" in init:
                _check_init(stage, instance.root, init)
            _hook(transition, "boot", brand.boot)
            instance = instances.write(layout, instance.but(phase=Phase.BOOTING, booted_s=time.monotonic()))
            uuid = zones.read_entry(layout, zonename).uuid
            rules = seccomp.default_filter(layout.run / "seccomp")
            _exec(anchor, initprogram.boot_message(program, instance, uuid), rules, hello.fds["slave"])
        finally:
            hello.close()
    finally:
        anchor.close()
    instances.write(layout, instance.but(phase=Phase.RUNNING))
    transition.publish(State.READY, State.RUNNING, instance.zone_id)


def _init_program(transition: Transition, words: BootArguments) -> InitProgram:
    """What process 1 becomes: the brand's choice with the boot arguments, or the init that was asked for (``-i``)."""
    if words.init:
        return InitProgram(words.init, words.words)
    program = initprogram.program_of(transition.brand, transition.info())
    if program.reaped:
        if words.words:
            transition.say("WARNING: the program of this zone takes no boot arguments")
        return program
    return dataclasses.replace(program, arguments=(*program.arguments, *words.words))


def _late_stage(transition: Transition, instance: Instance, born: Born) -> Stage:
    """A stage for ops on a zone that is ready already: nothing is to be made, everything is there."""

    def impossible(*_: object) -> None:
        raise PlatformError("a ready zone has its namespaces already")

    stage = Stage(
        layout=transition.layout,
        zonename=transition.zonename,
        root=instance.root,
        uid_base=instance.uid_base,
        privileged=instance.privileged,
        cgroup=transition.cgroup,
        start_zsched=impossible,  # type: ignore[arg-type]
        keep_console=impossible,
        seal=impossible,
        say=transition.say,
    )
    stage.set_born(born)
    return stage


def _in_zone_mounts(
    transition: Transition, stage: Stage, instance: Instance, init: str, arguments: tuple[str, ...]
) -> None:
    entry_subject = Subject(
        zone=transition.configuration(),
        brand=transition.brand,
        data=str(transition.brand.folder),
        layout=transition.layout,
        settings=transition.settings,
        mode=instance.mode,
        uid_base=instance.uid_base,
        uuid="",
    )
    ops = [
        op for op in compose.compose_boot(entry_subject, init, arguments) if not isinstance(op, plan.ExecInit)
    ]
    if not ops:
        return
    with runner.inside(stage):
        stage.root_fd = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        runner.run(ops, stage, transition.ledger, step=transition.step)
    except ZoneError as error:
        error.add_note("unable to mount filesystems")
        raise
    finally:
        os.close(stage.root_fd)
        stage.root_fd = -1


def _check_init(stage: Stage, root: str, init: str) -> None:
    """The init must be there and executable, resolved inside the zone's root (reference 2.3, step 8)."""
    import stat

    with runner.inside(stage):
        root_fd = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            init_fd = paths.open_beneath(root_fd, init, os.O_PATH, no_symlinks=False)
            mode = os.fstat(init_fd).st_mode
            os.close(init_fd)
        except OSError as error:
            raise PlatformError(
                "could not stat {path}: {why}", path=root + init, why=os.strerror(error.errno or 0)
            ) from None
        finally:
            os.close(root_fd)
    if not stat.S_ISREG(mode) or not mode & 0o100:
        raise PlatformError("{path} is not executable", path=root + init)


def _exec(anchor: Anchor, order: dict[str, Any], rules: bytes, slave_fd: int) -> None:
    """Send the boot message; process 1 execs, or says which step failed."""
    init = order["init"]
    try:
        anchor.stub(order, (slave_fd,), rules)
    except StubError as error:
        if error.stage == "exec" and error.errno:
            raise PlatformError(
                "unable to boot zone: {init}: {why}", init=init, why=os.strerror(error.errno)
            ) from None
        raise PlatformError("unable to boot zone: {why}", why=error.text) from None


# -- halt -------------------------------------------------------------------------------------------------------


def halt(transition: Transition, *, rebooting: bool = False) -> None:
    """zone_halt: hook, teardown, snapshot away, hook.  A failed hook refuses the halt; a failed teardown leaves the
    zone shutting_down or down, where halt may be tried again."""
    pre(transition, transition.state, Command.HALT)
    try:
        if not teardown(transition):
            raise PlatformError("unable to get zoneid")
    except Exception as error:
        if not transition.recovering:
            error.add_note("unable to destroy zone")
        raise
    try:
        snapshot.destroy(transition.layout, transition.zonename)
    except OSError as error:
        transition.say(message("destroying snapshot: {why}, ignoring", why=error.strerror))
    post(transition, transition.state, Command.HALT)


def teardown(transition: Transition) -> bool:
    """vplat_teardown, in the reference's order (3.5).  Every part may be run again; the first real obstacle
    ends it.  False when there was nothing to tear down.
    """
    layout, zonename = transition.layout, transition.zonename
    instance = instances.read(layout, zonename)
    ledger = transition.ledger
    if instance is None and not ledger.pending():
        return False
    old = _published_state(instance) if instance else None
    if instance is not None:
        if instance.phase is not Phase.HALTING:
            instance = instances.write(layout, instance.but(phase=Phase.HALTING))
            transition.publish(old or State.READY, State.SHUTTING_DOWN, instance.zone_id)
        _kill_all(transition, instance)
        _hook(transition, "halt", transition.brand.halt)
    _take_back(transition, ledger)
    transition.publish(State.SHUTTING_DOWN, State.INSTALLED, instance.zone_id if instance else None)
    return True


def _published_state(instance: Instance) -> State | None:
    """The state that followers of events know: init's own end is not told to them before its consequences."""
    if instance.phase in (Phase.BOOTING, Phase.RUNNING) and not instance.mode.alternate:
        return State.RUNNING
    if instance.phase is Phase.READY:
        return State.MOUNTED if instance.mode.alternate else State.READY
    return living_state(instance)


def _kill_all(transition: Transition, instance: Instance) -> None:
    """Kill every process of the zone and see it empty, or name who is stuck."""
    cgroup = transition.cgroup
    deadline = time.monotonic() + transition.settings.kill_s
    while True:
        cgroup.kill(Part.PAYLOAD)
        _kill_init(instance)
        left_s = deadline - time.monotonic()
        if cgroup.wait_empty(Part.PAYLOAD, min(1.0, max(left_s, 0.01))):
            return
        if left_s <= 0:
            raise PlatformError(
                "unable to shutdown zone: still there: {stuck}", stuck="; ".join(cgroup.stuck(Part.PAYLOAD))
            )


def _kill_init(instance: Instance) -> None:
    """Killing process 1 ends its pid namespace, also what a privileged guest moved out of its cgroup."""
    if instance.init is None or not instance.init.alive:
        return
    try:
        init_fd = process.pidfd_open(instance.init.pid)
    except ProcessLookupError:
        return
    try:
        if instance.init.alive:
            process.pidfd_signal(init_fd, signal.SIGKILL)
    except ProcessLookupError:
        return
    finally:
        os.close(init_fd)


def _take_back(transition: Transition, ledger: Ledger) -> None:
    """Network first, while zsched holds the namespace; then file systems and zsched; then everything else."""
    layout, zonename = transition.layout, transition.zonename
    cgroup = transition.cgroup
    cgroup.kill(Part.PAYLOAD)
    living = _living_anchor(layout, zonename)
    failures: list[ZoneError] = []
    if living is not None:
        anchor, hello = living
        try:
            remains = undo.Remains(layout, zonename, hello.fds["net"])
            failures = _undo_network(transition, remains)
            ledger = transition.ledger
            if not failures:
                _unmount(transition, ledger, hello.fds["m0"])
        finally:
            hello.close()
        if not failures:
            _dismiss(anchor)
    if not failures:
        cgroup.kill(Part.MANAGER)
        cgroup.wait_empty(Part.MANAGER, 10.0)
        cgroup.wait_empty(Part.PAYLOAD, 10.0)
        failures = undo.everything(ledger, undo.Remains(layout, zonename))
    if failures:
        first = failures[0]
        for other in failures[1:]:
            first.add_note(other.text)
        raise first
    instances.forget(layout, zonename)
    (layout.zone_run(zonename) / SOCKET).unlink(missing_ok=True)


def _undo_network(transition: Transition, remains: undo.Remains) -> list[ZoneError]:
    """In a child of its own when the zone is to come back: the next zsched is a fork of ours, and would keep for its
    whole life what netlink loads (12 MB)."""
    if transition.command not in (Command.REBOOT, Command.READY):
        return undo.network(transition.ledger, remains)
    import json

    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    pid = process.fork()
    if pid == 0:
        status = 1
        try:
            failures = undo.network(transition.ledger, remains)
            os.write(write_fd, json.dumps([failure.text for failure in failures]).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(write_fd)
    with open(read_fd, "rb") as pipe:
        text = pipe.read()
    if os.waitpid(pid, 0)[1]:
        return [PlatformError("unable to unconfigure network interfaces in zone")]
    return [PlatformError("{why}", why=why) for why in json.loads(text)]


def _living_anchor(layout: Layout, zonename: str) -> tuple[Anchor, Hello] | None:
    """zsched and what it holds; None when it is gone, or goes while it is asked (its creator has just left it)."""
    try:
        anchor = Anchor.connect(layout, zonename)
    except OSError:
        return None
    try:
        return anchor, anchor.hello()
    except OSError:
        anchor.close()
        return None


def _dismiss(anchor: Anchor) -> None:
    try:
        anchor.quit()
    except OSError:
        return  # it was gone already
    finally:
        anchor.close()


def _unmount(transition: Transition, ledger: Ledger, m0_fd: int) -> None:
    """Unmount block file systems of fs resources, newest first, so that they are clean when halt returns.

    Everything else of the tree goes with M0.
    """
    ops = [plan.from_json(table) for _number, table in ledger.pending()]
    wanted = [op for op in ops if isinstance(op, plan.FileSystem) and op.type != "tmpfs"]
    if not wanted:
        return
    home_fd = namespaces.open_ns("self", "mnt")
    try:
        with runner.without_imports():
            namespaces.setns(m0_fd, namespaces.NEWNS)
            for op in wanted:
                _unmount_one(op.directory)
    finally:
        namespaces.setns(home_fd, namespaces.NEWNS)
        os.close(home_fd)


def _unmount_one(directory: str) -> None:
    try:
        mounts.unmount(directory, mounts.NOFOLLOW)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EINVAL):  # not mounted (any more)
            return
        try:
            mounts.unmount(directory, mounts.NOFOLLOW | mounts.DETACH)
        except OSError:
            raise PlatformError("unable to unmount '{path}'", path=directory) from None


# -- the others -------------------------------------------------------------------------------------------------


def mount(transition: Transition) -> None:
    """After ready in an alternate mode there is nothing left to mount: the plan has made the whole scratch zone."""


def shutdown(transition: Transition) -> None:
    """Run the brand's shutdown command in the zone and wait for the command (not for the zone: reference 1.6)."""
    instance = instances.read(transition.layout, transition.zonename)
    brand = transition.brand
    if instance is None or instance.init is None:
        raise PlatformError("unable to shutdown zone")
    program = initprogram.program_of(brand, transition.info())
    if not program.shutdown_command and program.shutdown_signal:
        init_fd = inzone.open_init(instance)
        process.pidfd_signal(init_fd, _signal_number(program.shutdown_signal))
        os.close(init_fd)
        return
    deadline_s = transition.settings.hook_s
    try:
        status = inzone.run(
            transition.layout, instance, program.shutdown_command, say=transition.say, deadline_s=deadline_s
        )
    except (ZoneError, OSError) as error:
        raise PlatformError("unable to shutdown zone: {why}", why=error) from None
    taken_along = (signal.SIGHUP, signal.SIGTERM, signal.SIGKILL)
    if status and status - 128 not in taken_along:  # the zone's end may well take the command with it
        raise PlatformError("unable to shutdown zone")


def _signal_number(name: str) -> int:
    """The number of ``SIGTERM`` or ``SIGRTMIN+3``."""
    base, _, offset = name.partition("+")
    return int(signal.Signals[base]) + int(offset or 0)


def mount_mode(transition: Transition) -> Mode:
    """Scratch for brands that ask for it, update for all others (reference 1.5 D)."""
    return Mode.UPDATE if transition.update or not transition.brand.scratch_mount else Mode.SCRATCH
