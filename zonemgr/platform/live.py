"""Changes of a living zone: the steps of a ``model.delta``, each of which can be taken back.

A step is done as often as anybody likes: what is there already is not made again, what is gone is not taken away, so
that a successor need not know how far a killed predecessor came.  The ledger says what a successor may find: a thing
is listed before it is made and struck out after it is gone.

Mounts go through M0 and propagate into the zone, where they arrive with their flags locked.  What is seen in the zone
is read back.
"""

from __future__ import annotations

import dataclasses
import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from zonemgr.errors import PlatformError, ZoneError, message
from zonemgr.linux import mountinfo, mounts, netlink, paths
from zonemgr.linux.cgroup import Part
from zonemgr.linux.hints import explain
from zonemgr.model import plan
from zonemgr.model.delta import Step
from zonemgr.platform import devices, limits, network, runner, undo
from zonemgr.platform.stage import AppliedLimit, Stage
from zonemgr.store.ledger import Ledger

_MTU = 1500  # of a link for which nobody asked for another one
Act = Callable[[Any, Stage], None]


@dataclass(frozen=True, slots=True)
class Rule:
    """How a kind of op is made and taken away in a living zone, and how it is given other values."""

    make: Act
    take: Act
    rewrite: Callable[[Any, Any, Stage], None] | None = None


def perform(step: Step, stage: Stage, ledger: Ledger) -> None:
    """Do one step.  PlatformError says what did not work."""
    rule = RULES[type(step.op)]
    try:
        if step.new is not None:
            _list(ledger, step.new)
            if step.old is None:
                rule.make(step.new, stage)
            elif rule.rewrite is not None:
                rule.rewrite(step.old, step.new, stage)
        elif step.old is not None:
            rule.take(step.old, stage)
    except OSError as error:
        raise PlatformError("cannot {what}: {why}", what=step.describe(), why=explain(error)) from error
    if step.old is not None:
        _strike(ledger, step.old)


def _list(ledger: Ledger, op: plan.Op) -> None:
    if op.to_json() not in [_plain(table) for _number, table in ledger.pending()]:
        ledger.record(op.to_json())


def _strike(ledger: Ledger, op: plan.Op) -> None:
    for number, table in ledger.pending():
        if _plain(table) == op.to_json():
            ledger.undone(number)


def _plain(table: dict[str, Any]) -> dict[str, Any]:
    """An entry of the ledger as its op would be written now (lists and tuples are the same to JSON)."""
    return plan.from_json(table).to_json()


# -- mounts -----------------------------------------------------------------------------------------------------


def _mount(op: plan.Bind | plan.FileSystem, stage: Stage) -> None:
    if _is_mounted(op.directory, stage):
        return
    if stage.sealed_only:
        raise PlatformError(
            "cannot mount {dir} again: the zone's zsched was killed (a reboot of the zone mounts what its file says)",
            dir=op.directory,
        )
    runner.act(op, stage)
    seen = mountinfo.of_process(stage.born.init_pid)
    if seen and not any(mount.point == op.directory for mount in seen):
        raise PlatformError("{dir} does not appear in the zone", dir=op.directory)


def _unmount(op: plan.Bind | plan.FileSystem, stage: Stage) -> None:
    if not _is_mounted(op.directory, stage):
        if not stage.lazily:  # else it may never have been mounted
            stage.say(message("{dir} was not mounted any more: the zone has removed its folder", dir=op.directory))
        return
    seen = mountinfo.of_process(stage.born.init_pid)
    in_zone = next((mount for mount in reversed(seen) if mount.point == op.directory), None)
    on_it = next((mount for mount in seen if in_zone and mount.parent == in_zone.id), None)
    if on_it is not None and not stage.lazily:
        raise PlatformError(
            "cannot unmount {dir}: the zone has mounted {what} on it", dir=op.directory, what=on_it.point
        )
    try:
        with runner.inside(stage):
            _unmount_leaf(op.directory, stage)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        users = ", ".join(_users(in_zone.id, stage) if in_zone else []) or "the kernel"
        if not stage.lazily:
            raise PlatformError(
                "cannot unmount {dir}: it is in use by {users}", dir=op.directory, users=users
            ) from None
        stage.say(message("WARNING: {dir} is unmounted, but still in use by {users}", dir=op.directory, users=users))
        with runner.inside(stage):
            _unmount_leaf(op.directory, stage, mounts.DETACH)
    if in_zone and any(mount.id == in_zone.id for mount in mountinfo.of_process(stage.born.init_pid)):
        raise PlatformError("cannot unmount {dir}: the zone holds on to it", dir=op.directory)


def _is_mounted(directory: str, stage: Stage) -> bool:
    """Whether something is mounted there in M0, whose tree only we change."""
    with runner.inside(stage):
        try:
            leaf_fd = paths.open_beneath(stage.root_fd, directory, os.O_PATH)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            return False  # the zone has put a link in the place of its folder
        try:
            return mounts.is_mount_root(leaf_fd)
        finally:
            os.close(leaf_fd)


def _unmount_leaf(directory: str, stage: Stage, flags: int = 0) -> None:
    """By its folder's descriptor: no name that the zone could have replaced is resolved."""
    parent, _slash, leaf = directory.rpartition("/")
    parent_fd = paths.open_beneath(stage.root_fd, parent or "/", os.O_PATH | os.O_DIRECTORY)
    try:
        os.fchdir(parent_fd)
        mounts.unmount(leaf, flags)
    finally:
        os.chdir("/")
        os.close(parent_fd)


def _users(mount_id: int, stage: Stage) -> list[str]:
    """The zone's processes that have the mount open, as ``PID (NAME)``."""
    return [
        f"{pid} ({mountinfo.command(pid)})"
        for pid in stage.cgroup.pids(Part.PAYLOAD)
        if mountinfo.uses(pid, mount_id)
    ]


# -- the network ------------------------------------------------------------------------------------------------


def _remains(stage: Stage) -> undo.Remains:
    return undo.Remains(stage.layout, stage.zonename, stage.born.net_fd)


def _make_veth(op: plan.Veth, stage: Stage) -> None:
    if not netlink.link_exists(op.host_name):
        runner.act(op, stage)


def _change_veth(old: plan.Veth, new: plan.Veth, stage: Stage) -> None:
    from zonemgr.linux import links

    links.change_veth(
        new.host_name,
        new.zone_name,
        netns_fd=stage.born.net_fd,
        bridge=new.bridge,
        mtu=new.mtu or (_MTU if old.mtu else None),
        mac=new.mac,
    )
    if old.hairpin != new.hairpin:
        links.let_back(new.host_name, new.hairpin)


def _share(op: plan.SharedAddress, stage: Stage) -> None:
    ours = op.address in network.shared_addresses(stage.layout, stage.zonename)
    if not ours or netlink.addresses_in_use().get(op.address.partition("/")[0]) != op.link:
        runner.act(op, stage)


def _make_inside(op: plan.MoveLink | plan.Macvlan, stage: Stage) -> None:
    name = op.zone_name if isinstance(op, plan.Macvlan) else op.zone_name or op.name
    if not netlink.link_exists(name, stage.born.net_fd):
        runner.act(op, stage)


def _undo(op: plan.Op, stage: Stage) -> None:
    undo.one(op, _remains(stage))


def _again(_old: plan.Op, new: plan.Op, stage: Stage) -> None:
    """Made again, it replaces what is there."""
    runner.act(new, stage)


def _address(op: plan.ConfigureLink, stage: Stage) -> None:
    _readdress(plan.ConfigureLink(op.link, (), ()), op, stage)


def _unaddress(op: plan.ConfigureLink, stage: Stage) -> None:
    if netlink.link_exists(op.link, stage.born.net_fd):
        _readdress(op, plan.ConfigureLink(op.link, (), ()), stage)


def _readdress(old: plan.ConfigureLink, new: plan.ConfigureLink, stage: Stage) -> None:
    from zonemgr.linux import links

    network.refuse_taken([address for address in new.addresses if address not in old.addresses])
    links.reconfigure(
        stage.born.net_fd,
        new.link,
        gone=[address for address in old.addresses if address not in new.addresses],
        addresses=new.addresses,
        routers_gone=[router for router in old.routers if router not in new.routers],
        routers=new.routers,
    )


def _nothing(_op: plan.Op, _stage: Stage) -> None:
    """What zones share stays (``fsck --host`` removes it)."""


# -- limits, settings, devices ----------------------------------------------------------------------------------


def _limit(op: plan.SetLimits, stage: Stage) -> None:
    _relimit(plan.SetLimits(), op, stage)


def _unlimit(op: plan.SetLimits, stage: Stage) -> None:
    _relimit(op, plan.SetLimits(best_effort=True), stage)


def _relimit(old: plan.SetLimits, new: plan.SetLimits, stage: Stage) -> None:
    caps = ((_memory(old), _memory(new)), (old.swap_bytes, new.swap_bytes))
    lowered = [wanted is not None and (before is None or wanted < before) for before, wanted in caps]
    if any(lowered) and not stage.cgroup.on_v1("memory"):
        _make_fit(new, stage, *lowered)
    limits.set_limits(new, stage, living=True)


def _memory(op: plan.SetLimits) -> int | None:
    """The cap of memory alone: never above that of memory and swap together."""
    return min((cap for cap in (op.memory_bytes, op.swap_bytes) if cap is not None), default=None)


_TRIES = 5  # the zone may take again what the kernel took from it


def _make_fit(new: plan.SetLimits, stage: Stage, less_memory: bool, less_of_both: bool) -> None:
    """Have the kernel take from the zone what it uses beyond its new caps, and refuse them where it cannot.

    cgroup v2 itself would kill processes for their memory, and leave in swap what is there.
    """
    memory, both = _memory(new), new.swap_bytes
    # What is taken from memory goes there, or finds no room.
    stage.cgroup.limit_swap(None if both is None else both - (memory or 0))
    for _ in range(_TRIES):
        usage = stage.cgroup.usage()
        used = usage.memory_bytes or 0
        in_all = used + (usage.swap_bytes or 0)
        beyond = used - memory if less_memory and memory is not None else 0
        beyond_both = in_all - both if less_of_both and both is not None else 0
        if max(beyond, beyond_both) <= 0:
            return
        stage.cgroup.reclaim(max(beyond, beyond_both))
    if beyond > 0:
        raise PlatformError("cannot limit memory to {wanted} bytes: the zone uses {used}", wanted=memory, used=used)
    raise PlatformError(
        "cannot limit memory and swap to {wanted} bytes: the zone uses {used}", wanted=both, used=in_all
    )


def _share_cpus(op: plan.DedicateCpus, stage: Stage) -> None:
    _undo(op, stage)
    stage.applied(AppliedLimit("dedicated-cpu", None, None))


def _leave_pool(op: plan.JoinPool, stage: Stage) -> None:
    _undo(op, stage)
    stage.applied(AppliedLimit("pool", None, None))


def _lift_quota(op: plan.SetQuota, stage: Stage) -> None:
    limits.set_quota(dataclasses.replace(op, limit_bytes=None), stage)


def _unset(op: plan.Sysctls, stage: Stage) -> None:
    _reset(op, plan.Sysctls(()), stage)


def _reset(old: plan.Sysctls, new: plan.Sysctls, stage: Stage) -> None:
    """What is not set any more gets the value that a new namespace has."""
    names = {setting.partition("=")[0] for setting in new.settings}
    gone = [name for name in (setting.partition("=")[0] for setting in old.settings) if name not in names]
    runner.act(plan.Sysctls((*new.settings, *(f"{name}={DEFAULTS[name]}" for name in gone))), stage)
    limits.forget_settings(gone, stage)


# include/uapi/linux/{shm,msg,sem}.h: what every new ipc namespace begins with.
DEFAULTS = {
    "kernel/shmmax": 2**64 - 2**24 - 1,
    "kernel/shmall": 2**64 - 2**24 - 1,
    "kernel/shmmni": 4096,
    "kernel/msgmni": 32000,
    "kernel/sem": "32000 1024000000 500 32000",
}


def _retree(old: plan.DeviceTree, new: plan.DeviceTree, stage: Stage) -> None:
    """The host's devices are looked up before the zone is entered."""
    before, after = ([node for wanted in op.devices for node in devices.nodes_of(wanted)] for op in (old, new))
    kept = {node.name for node in after}
    known = {node.name for node in before}
    with runner.inside(stage):
        devices.change(
            [node for node in before if node.name not in kept],
            [node for node in after if node.name not in known],
            stage,
        )


def _impossible(op: plan.Op, _stage: Stage) -> None:
    raise PlatformError("cannot do or undo {what} in a living zone", what=op.describe())


RULES: dict[type[plan.Op], Rule] = {
    plan.Bind: Rule(_mount, _unmount),
    plan.FileSystem: Rule(_mount, _unmount),
    plan.Bridge: Rule(runner.act, _nothing),
    plan.HostSetting: Rule(runner.act, _nothing),
    plan.WayBack: Rule(runner.act, _nothing),
    plan.Claim: Rule(runner.act, _undo),
    plan.Names: Rule(runner.act, _undo, _again),
    plan.Guard: Rule(runner.act, _undo, _again),
    plan.Translate: Rule(runner.act, _undo),
    plan.Forward: Rule(runner.act, _undo),
    plan.Admit: Rule(runner.act, _undo),
    plan.Veth: Rule(_make_veth, _undo, _change_veth),
    plan.Macvlan: Rule(_make_inside, _undo),
    plan.Bandwidth: Rule(runner.act, _undo, _again),
    plan.SharedAddress: Rule(_share, _undo),
    plan.HoldToAddresses: Rule(runner.act, _impossible, _again),
    plan.MoveLink: Rule(_make_inside, _undo),
    plan.ConfigureLink: Rule(_address, _unaddress, _readdress),
    plan.AllowDevices: Rule(runner.act, _impossible, _again),
    plan.DedicateCpus: Rule(runner.act, _share_cpus, _again),
    plan.JoinPool: Rule(runner.act, _leave_pool, _again),
    plan.SetProcessLimits: Rule(_impossible, _impossible, limits.change_process_limits),
    plan.SetQuota: Rule(runner.act, _lift_quota, _again),
    plan.SetLimits: Rule(_limit, _unlimit, _relimit),
    plan.Sysctls: Rule(runner.act, _unset, _reset),
    plan.DeviceTree: Rule(_impossible, _impossible, _retree),
}


def failure(error: Exception) -> ZoneError:
    """What the operator is told of a step that failed."""
    return error if isinstance(error, ZoneError) else PlatformError("{why}", why=error)
