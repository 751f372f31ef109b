"""Executes a plan: each op is written to the ledger before it acts.

Nothing is undone here: whoever runs a plan and sees it fail calls ``undo.everything`` with the same ledger, in
the same or in another process, now or after a crash.  Mount ops run inside M0 and the zone's network, ipc and
cgroup namespaces; consecutive ones share one visit.
"""

from __future__ import annotations

import enum
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import groupby
from typing import Any

from zonemgr.errors import PlatformError, ZoneError
from zonemgr.linux import mounts, namespaces
from zonemgr.linux.hints import explain
from zonemgr.model import plan
from zonemgr.platform import devices, filesystems, firewall, furnishing, limits, machine, mounting, network
from zonemgr.platform.stage import Stage
from zonemgr.store.ledger import Ledger

Step = Callable[[plan.Op], None]
_KINDS = ("mnt", "net", "ipc", "cgroup")
_FLAGS = {
    "mnt": namespaces.NEWNS,
    "net": namespaces.NEWNET,
    "ipc": namespaces.NEWIPC,
    "cgroup": namespaces.NEWCGROUP,
}


# -- ops that are neither mounts nor network --------------------------------------------------------------------


def _make_cgroup(_op: plan.MakeCgroup, stage: Stage) -> None:
    stage.cgroup.create()
    limits.keep_off_others(stage.cgroup)


def _start_zsched(op: plan.StartZsched, stage: Stage) -> None:
    stage.expect(stage.start_zsched(op.hostname))


def _sysctls(op: plan.Sysctls, stage: Stage) -> None:
    """Settings of the zone's namespaces, through a procfs of our own: never through one that the zone could
    have replaced.
    """

    def act() -> None:
        proc_fd = mounts.make_filesystem("proc", {}, attributes=0)
        for setting in op.settings:
            name, _, value = setting.partition("=")
            try:
                _write_setting(proc_fd, name, value)
            except PermissionError:
                # Newer kernels let nobody set an ipc namespace but the root of its own user namespace.
                os.seteuid(stage.uid_base)
                _write_setting(proc_fd, name, value)
                os.seteuid(0)

    pid_fd = namespaces.open_ns(stage.born.init_pid, "pid")  # here: a sealed tree shows the zone's own /proc
    try:
        with inside(stage):
            filesystems.in_pid_namespace(pid_fd, act)
    finally:
        os.close(pid_fd)
    limits.note_settings(op, stage)


def _write_setting(proc_fd: int, name: str, value: str) -> None:
    descriptor = os.open(f"sys/{name}", os.O_WRONLY | os.O_CLOEXEC, dir_fd=proc_fd)
    try:
        os.write(descriptor, value.encode())
    finally:
        os.close(descriptor)


def _seal(_op: plan.Seal, stage: Stage) -> None:
    """Pivot M0 into the zone's tree; process 1, whose root it was, follows; then it takes its locked copy."""
    os.fchdir(stage.root_fd)
    mounts.pivot_root(".", ".")
    mounts.unmount(".", mounts.DETACH)
    os.chdir("/")
    mounts.set_propagation("/", mounts.SHARED, recursive=True)
    stage.seal()
    stage.sealed = True


_OUTSIDE: dict[type[plan.Op], Callable[[Any, Stage], None]] = {
    plan.MakeCgroup: _make_cgroup,
    plan.SetLimits: limits.set_limits,
    plan.DedicateCpus: limits.dedicate_cpus,
    plan.JoinPool: limits.join_pool,
    plan.SetProcessLimits: limits.set_process_limits,
    plan.SetQuota: limits.set_quota,
    plan.StartZsched: _start_zsched,
    plan.AllowDevices: devices.allow,
    plan.Sysctls: _sysctls,
    plan.Bridge: network.bridge,
    plan.Claim: network.claim,
    plan.Names: network.publish_names,
    plan.HostSetting: network.host_setting,
    plan.WayBack: network.way_back,
    plan.Veth: network.veth,
    plan.Macvlan: network.macvlan,
    plan.Bandwidth: network.bandwidth,
    plan.Admit: firewall.admit,
    plan.SharedAddress: network.shared_address,
    plan.HoldToAddresses: network.hold_to_addresses,
    plan.MoveLink: network.move_link,
    plan.ConfigureLink: network.configure_link,
    plan.Loopback: network.loopback,
    plan.Machine: machine.register,
}
_INSIDE: dict[type[plan.Op], Callable[[Any, Stage], None]] = {
    plan.Layers: mounting.root_layers,
    plan.RootTree: mounting.root_tree,
    plan.ScratchRoot: mounting.scratch_root,
    plan.Bind: mounting.bind,
    plan.FileSystem: filesystems.file_system,
    plan.KernelFileSystem: filesystems.kernel_file_system,
    plan.DeviceTree: devices.device_tree,
    plan.Console: devices.console,
    plan.Mask: furnishing.mask,
    plan.RunHost: furnishing.run_host,
    plan.HostId: furnishing.host_id,
    plan.OwnMounts: mounting.own_mounts,
    plan.ReadOnlyRoot: mounting.read_only_root,
    plan.Seal: _seal,
}
_HALVES: dict[type[plan.Op], tuple[Callable[..., AbstractContextManager[int]], Callable[..., None]]] = {
    plan.Bind: (mounting.detached_bind, mounting.attach_bind),
    plan.FileSystem: (filesystems.detached_file_system, filesystems.attach_file_system),
}


@contextmanager
def without_imports() -> Iterator[None]:
    """Refuse to load modules: once M0 is sealed its files are the zone's, and would run as root of the host."""
    finders = sys.meta_path[:]
    sys.meta_path.clear()
    try:
        yield
    finally:
        sys.meta_path[:] = finders


@contextmanager
def inside(stage: Stage) -> Iterator[None]:
    """Visit M0 and the zone's namespaces with host credentials; the way home is kept open and taken whatever
    happens.
    """
    home = {kind: namespaces.open_ns("self", kind) for kind in _KINDS}
    try:
        for kind in _KINDS[1:]:
            away_fd = namespaces.open_ns(stage.born.init_pid, kind)
            try:
                namespaces.setns(away_fd, _FLAGS[kind])
            finally:
                os.close(away_fd)
        with without_imports():
            namespaces.setns(stage.born.m0_fd, _FLAGS["mnt"])
            yield
    finally:
        for kind, home_fd in home.items():
            namespaces.setns(home_fd, _FLAGS[kind])
            os.close(home_fd)
        os.chdir("/")


def run(
    ops: Iterable[plan.Op], stage: Stage, ledger: Ledger, *, step: Step | None = None
) -> None:
    """Execute ops in order.  ``step`` is told of each op after it is in the ledger and before it acts.

    PlatformError with the op's description when the kernel refuses; what was done stays in the ledger, and a birth may
    be under way (``Stage.close`` waits for it).
    """
    for place, group in groupby(_placed(ops, stage.sealed), key=lambda pair: pair[0]):
        _PLACES[place](tuple(op for _place, op in group), stage, ledger, step)


class _Place(enum.Enum):
    """Where an op acts."""

    OUTSIDE = "outside"
    INSIDE = "inside"
    FILTER = "filter"  # in one batch with its neighbours
    BOTH = "both"  # made outside, attached inside: the host's paths are not to be seen from a sealed tree


def _placed(ops: Iterable[plan.Op], sealed: bool) -> Iterator[tuple[_Place, plan.Op]]:
    for op in ops:
        yield _place(op, sealed), op
        sealed = sealed or isinstance(op, plan.Seal)


def _place(op: plan.Op, sealed: bool) -> _Place:
    if sealed and type(op) in _HALVES:
        return _Place.BOTH
    if isinstance(op, plan.FILTERS):
        return _Place.FILTER
    return _Place.INSIDE if type(op) in _INSIDE else _Place.OUTSIDE


def _outside(ops: Sequence[plan.Op], stage: Stage, ledger: Ledger, step: Step | None) -> None:
    for op in ops:
        ledger.record(op.to_json())
        if step is not None:
            step(op)
        act(op, stage)


def _inside(ops: Sequence[plan.Op], stage: Stage, ledger: Ledger, step: Step | None) -> None:
    """All are listed first: the ledger's file has no name in a sealed tree."""
    for op in ops:
        ledger.record(op.to_json())
    with inside(stage):
        for op in ops:
            if step is not None:
                step(op)
            _act(op, _INSIDE[type(op)], stage)


def _filter(ops: Sequence[plan.Op], stage: Stage, ledger: Ledger, step: Step | None) -> None:
    for op in ops:
        ledger.record(op.to_json())
        if step is not None:
            step(op)
    firewall.add(ops, stage)


_PLACES = {
    _Place.OUTSIDE: _outside,
    _Place.INSIDE: _inside,
    _Place.FILTER: _filter,
    _Place.BOTH: _outside,
}


def act(op: plan.Op, stage: Stage) -> None:
    """One op, which the caller has listed in the ledger."""
    match _place(op, stage.sealed):
        case _Place.BOTH:
            _act(op, _in_halves, stage)
        case _Place.INSIDE:
            with inside(stage):
                _act(op, _INSIDE[type(op)], stage)
        case _Place.FILTER:
            firewall.add([op], stage)
        case _Place.OUTSIDE:
            _act(op, _OUTSIDE[type(op)], stage)


def _in_halves(op: plan.Op, stage: Stage) -> None:
    make, attach = _HALVES[type(op)]
    with make(op, stage) as mount_fd, inside(stage):
        attach(op, stage, mount_fd)


def _act(op: plan.Op, acts: Callable[[Any, Stage], None], stage: Stage) -> None:
    try:
        acts(op, stage)
    except ZoneError:
        raise
    except OSError as error:
        raise PlatformError("cannot {what}: {why}", what=op.describe(), why=explain(error)) from error
