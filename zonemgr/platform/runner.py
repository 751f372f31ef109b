"""Executes a plan: each op is written to the ledger before it acts.

Nothing is undone here: whoever runs a plan and sees it fail calls ``undo.everything`` with the same ledger, in
the same or in another process, now or after a crash.  Mount ops run inside M0 and the zone's network, ipc and
cgroup namespaces; consecutive ones share one visit.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import groupby
from typing import Any

from zonemgr.errors import PlatformError, ZoneError
from zonemgr.linux import mounts, namespaces
from zonemgr.linux.hints import explain
from zonemgr.model import plan
from zonemgr.platform import devices, filesystems, firewall, furnishing, limits, mounting, network
from zonemgr.platform.stage import Stage
from zonemgr.store.ledger import Ledger

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
    stage.set_born(stage.start_zsched(op.hostname))


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

    with inside(stage):
        filesystems.in_pid_namespace(stage.born.init_pid, act)
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


_OUTSIDE: dict[type[plan.Op], Callable[[Any, Stage], None]] = {
    plan.MakeCgroup: _make_cgroup,
    plan.SetLimits: limits.set_limits,
    plan.DedicateCpus: limits.dedicate_cpus,
    plan.SetProcessLimits: limits.set_process_limits,
    plan.SetQuota: limits.set_quota,
    plan.StartZsched: _start_zsched,
    plan.AllowDevices: devices.allow,
    plan.Sysctls: _sysctls,
    plan.Bridge: network.bridge,
    plan.Claim: network.claim,
    plan.HostSetting: network.host_setting,
    plan.Veth: network.veth,
    plan.Macvlan: network.macvlan,
    plan.Bandwidth: network.bandwidth,
    plan.Admit: firewall.admit,
    plan.SharedAddress: network.shared_address,
    plan.HoldToAddresses: network.hold_to_addresses,
    plan.MoveLink: network.move_link,
    plan.ConfigureLink: network.configure_link,
    plan.Loopback: network.loopback,
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
    ops: Iterable[plan.Op], stage: Stage, ledger: Ledger, *, step: Callable[[plan.Op], None] | None = None
) -> None:
    """Execute ops in order.  ``step`` is told of each op after it is in the ledger and before it acts.

    PlatformError with the op's description when the kernel refuses; what was done stays in the ledger.
    """
    for acts, group in groupby(ops, key=_acts_of):
        if acts is _INSIDE:
            with inside(stage):
                _run(group, _INSIDE, stage, ledger, step)
        elif acts is None:
            _filter(list(group), stage, ledger, step)
        else:
            _run(group, acts, stage, ledger, step)


def _acts_of(op: plan.Op) -> dict[type[plan.Op], Callable[[Any, Stage], None]] | None:
    """The table that the op is in; None for what is done in one batch with its neighbours."""
    if isinstance(op, plan.FILTERS):
        return None
    return _INSIDE if type(op) in _INSIDE else _OUTSIDE


def _filter(
    ops: list[plan.Op], stage: Stage, ledger: Ledger, step: Callable[[plan.Op], None] | None
) -> None:
    for op in ops:
        ledger.record(op.to_json())
        if step is not None:
            step(op)
    firewall.apply(ops, stage)


def _run(
    ops: Iterable[plan.Op],
    acts: dict[type[plan.Op], Callable[[Any, Stage], None]],
    stage: Stage,
    ledger: Ledger,
    step: Callable[[plan.Op], None] | None,
) -> None:
    for op in ops:
        ledger.record(op.to_json())
        if step is not None:
            step(op)
        try:
            acts[type(op)](op, stage)
        except ZoneError:
            raise
        except OSError as error:
            raise PlatformError("cannot {what}: {why}", what=op.describe(), why=explain(error)) from error
