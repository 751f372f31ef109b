"""The step ready: zone_ready of the reference (section 2.2), for a boot as for a scratch zone.

A plan is composed and run against a zsched that is born for it; a failure takes everything back from the ledger.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

from zonemgr.brandkit import verify as brands
from zonemgr.errors import PlatformError, ZoneError, marked
from zonemgr.linux import namespaces, procfs, sealed, seccomp
from zonemgr.linux.cgroup import Part
from zonemgr.model import bootargs
from zonemgr.model.states import Command, State
from zonemgr.model.zone import SecurityFlags, Zone
from zonemgr.platform import compose, runner
from zonemgr.platform.compose import Subject
from zonemgr.platform.stage import Born, Stage
from zonemgr.store import filters, idranges, snapshot, verify, zoneids, zones
from zonemgr.store import instance as instances
from zonemgr.store.instance import Instance, Mode, Phase
from zonemgr.store.locks import use_lock
from zonemgr.store.zones import Entry
from zonemgr.supervisor import statehooks, teardown
from zonemgr.supervisor.anchor import SOCKET, Anchor
from zonemgr.supervisor.transition import Transition
from zonemgr.wire import packets

_NO_NAMESPACES = marked("cannot make the zone's namespaces: {why}")


def ready(transition: Transition, mode: Mode) -> None:
    """zone_ready: hook, snapshot, platform, hook.  What failed is undone from the ledger before the error goes up."""
    transition.zone = None
    statehooks.pre(transition, transition.state, Command.READY)
    try:
        with use_lock(transition.layout, transition.zonename, shared=False):
            _bring_up(transition, mode)
        statehooks.post(transition, transition.state, Command.READY)
    except Exception:
        statehooks.post_ignored(transition, State.READY, Command.HALT)
        raise


def _bring_up(transition: Transition, mode: Mode) -> None:
    layout, zonename = transition.layout, transition.zonename
    zone = transition.zone = snapshot.create(layout, zonename)
    entry = zones.read_entry(layout, zonename)
    transition.recovering = True
    instance = _new_instance(transition, zone, mode, _uid_base(transition, entry))
    ledger = transition.ledger
    try:
        if zone.privileged and not sealed.is_sealed():
            raise PlatformError(
                "the zone has become privileged while its supervisor was running: disconnect what is connected to "
                "it (console, events), and try again"
            )
        subject = Subject(
            zone=zone,
            brand=transition.brand,
            data=str(transition.brand.folder),
            layout=layout,
            settings=transition.settings,
            mode=mode,
            uid_base=instance.uid_base,
            uuid=entry.uuid,
            layers=entry.layers,
            writable=_wants_writable(transition),
        )
        instance = instance.but(frozen=compose.frozen_folders(subject))
        filters.program(layout, instance)  # what cannot be compiled is told before anything is made
        instances.write(layout, instance)
        builder = _Builder(transition, instance, subject.root)
        try:
            birth = compose.compose_birth(subject)
            runner.run(birth, builder.stage, ledger, step=transition.step)
            _verify(transition, zone, "mount" if mode.alternate else "ready")  # while zsched makes the namespaces
            rest = compose.compose_ready(subject)[len(birth) :]
            runner.run(rest, builder.stage, ledger, step=transition.step)
            builder.commit()
        finally:
            builder.close()
    except Exception as error:  # also a full disk and a bug of ours: nothing may stay behind
        try:
            teardown.take_back(transition, ledger)
        except (ZoneError, OSError) as second:
            error.add_note(str(second))
        raise
    transition.recovering = False
    living = State.MOUNTED if mode.alternate else State.READY
    transition.publish(State.INSTALLED, living, instance.zone_id)


def _wants_writable(transition: Transition) -> bool:
    """``boot -w``: of this request alone, never of the configuration, or the next boot would be as writable."""
    return bootargs.wants_writable(transition.arguments)


def _uid_base(transition: Transition, entry: Entry) -> int:
    """The zone's own range; that of another system's zone may be somebody else's here, so it gets one for a while."""
    if not transition.layout.alternate:
        return entry.uid_base or 0
    if entry.idmap_marker:
        raise PlatformError("the owners of its root were moved on disk: only its own system can mount it")
    return idranges.allocate(transition.layout, transition.zonename, entry.uuid)


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
    info = transition.info()
    brands.verify_brand(transition.brand, info, verb, deadline_s=limit_s, say=transition.say, here=True)


def _new_instance(transition: Transition, zone: Zone, mode: Mode, uid_base: int) -> Instance:
    """The record of the life that begins: a new id and generation, also at each reboot."""
    brand = transition.brand
    allowed = brands.allowed(brand, zone, zone.limitpriv if mode is Mode.BOOT else "")
    cgroup = transition.cgroup
    flags = zone.security_flags or SecurityFlags()
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
        denied_rights=tuple(sorted(allowed.denied)),
        seccomp_calls=zone.seccomp,
        locked_flags=flags.always_on,
        may_mount="-" not in zone.fs_allowed,
        personality=sum(seccomp.SWITCHES[flag] for flag in flags.off_at_first),
        no_new_privs=zone.no_new_privs,
        login_command=tuple(brand.login_command),
        forced_login_command=tuple(brand.forced_login_command),
        user_command=tuple(brand.user_command),
        restart=brand.restart,
        label=zone.label if brand.mandatory_label else "",
        brand=brand.name,
        ip_type=zone.ip_type,
        quick_reboots=transition.quick_reboots,
        notifies=brand.notifies and mode is Mode.BOOT,
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

    def start_zsched(self, hostname: str) -> Callable[[], Born]:
        """Have zsched forked into its cgroup, where it gives birth to process 1.  What is returned waits for that,
        writes the maps and records both.
        """
        cgroup, instance = self.transition.cgroup, self.instance
        ours, theirs = packets.pair()
        folder_fd = os.open(self.transition.layout.zone_run(instance.zonename), os.O_PATH | os.O_CLOEXEC)
        listener = packets.listen(folder_fd, SOCKET)
        os.close(folder_fd)
        manager_fd, payload_fd = cgroup.manager_fd(), cgroup.payload_fd()
        birth = {
            "generation": instance.generation,
            "owner": None if instance.privileged else instance.uid_base,
            "shared_net": instance.ip_type == "shared" and not instance.mode.alternate,
        }
        self.transition.fork_zsched(birth, (listener.fileno(), theirs.fileno(), payload_fd, manager_fd))
        packets.close_all([manager_fd, payload_fd])
        listener.close()
        theirs.close()
        ours.settimeout(30)
        self.anchor = Anchor(ours)
        return lambda: self._await_birth(ours, hostname)

    def _await_birth(self, zsched: socket.socket, hostname: str) -> Born:
        try:
            answer = packets.receive(zsched)
            if answer is None or "born" not in answer[0]:
                why = answer[0].get("text") if answer else "zsched died"
                raise PlatformError(_NO_NAMESPACES, why=why)
            return self._adopt_birth(int(answer[0]["zsched"]), hostname)
        except OSError as error:  # it was killed meanwhile, with process 1
            raise PlatformError(_NO_NAMESPACES, why=error) from None

    def _adopt_birth(self, zsched_pid: int, hostname: str) -> Born:
        assert self.anchor is not None
        hello = self.anchor.hello()
        init = instances.Process(hello.init_pid, procfs.start_time(hello.init_pid) or 0)
        keeper = instances.Process(zsched_pid, procfs.start_time(zsched_pid) or 0)
        self.instance = instances.write(self.transition.layout, self.instance.but(zsched=keeper, init=init))
        if not self.instance.privileged:
            namespaces.write_id_maps(hello.init_pid, self.instance.uid_base)
        if self.transition.brand.delegate_cgroup:
            self.transition.cgroup.delegate(self.instance.uid_base)
        if self.transition.brand.cgroup == "v1":
            self.transition.cgroup.delegate_named(self.instance.uid_base)
        tasks_fds = self.transition.cgroup.v1_tasks_fds()
        try:
            self.anchor.stub({"op": "identity", "hostname": hostname}, tuple(tasks_fds))
        finally:
            packets.close_all(tasks_fds)
        kept = {"m0", "net", "user"}
        packets.close_all(fd for name, fd in hello.fds.items() if name not in kept)
        return Born(hello.init_pid, hello.fds["m0"], hello.fds["net"], hello.fds["user"])

    def keep_console(self, master_fd: int, slave_fd: int) -> None:
        """Hand the pty to zsched, and the socket that init notifies, if there is one."""
        assert self.anchor is not None
        fds = (master_fd, slave_fd, *self.stage.take_notify())
        self.anchor.keep_console(*fds)
        packets.close_all(fds)

    def seal(self) -> None:
        """Let process 1 take its locked copy of the finished tree."""
        assert self.anchor is not None
        self.anchor.stub({"op": "seal"})

    def commit(self) -> None:
        """All ops worked: record it, and let zsched live on without this worker."""
        assert self.anchor is not None
        stage = self.stage
        self.instance = instances.write(
            self.transition.layout,
            self.instance.but(
                phase=Phase.READY,
                limits=tuple(limit.to_json() for limit in stage.limits.values()),
                rlimits=tuple(f"{name}={pair}" for name, pair in stage.rlimits.items()),
                oom_score_adj=stage.oom_score_adj,
                scheduling_class=stage.scheduling_class,
            ),
        )
        self.anchor.commit()
        self.transition.console_ready()

    def close(self) -> None:
        self.stage.close()
        if self.anchor is not None:
            self.anchor.close()


def mount(transition: Transition) -> None:
    """After ready in an alternate mode there is nothing left to mount: the plan has made the whole scratch zone."""


def mount_mode(transition: Transition) -> Mode:
    """Scratch for brands that ask for it, update for all others (reference 1.5 D)."""
    return Mode.UPDATE if transition.update or not transition.brand.scratch_mount else Mode.SCRATCH
