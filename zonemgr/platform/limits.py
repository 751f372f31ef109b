"""Acts on the ops that limit a zone, reads back what the kernel made of each, and takes the CPUs back.

Every act is idempotent, and may be done again on a living zone with other values: with ``living`` what an op does not
name is lifted.  What the kernel cannot give is an error with the limit's name, unless the zone is content with the best
that can be had.
"""

from __future__ import annotations

import functools
import os
import resource
import stat
from collections.abc import Iterable
from typing import Any

from zonemgr.errors import PlatformError, message
from zonemgr.linux import caps, process, quota
from zonemgr.linux.cgroup import Hierarchy, Limits, Part, Throttle, ZoneCgroup, cpus
from zonemgr.linux.hints import explain
from zonemgr.model import plan, rlimits
from zonemgr.platform.stage import AppliedLimit, Stage
from zonemgr.store.cpus import Registry

# -- the zone's control groups --------------------------------------------------------------------------------------


def set_limits(op: plan.SetLimits, stage: Stage, *, living: bool = False) -> None:
    """Write the limits of the zone's control groups."""
    from zonemgr.linux.cgroup.limits import plain  # loads nothing by itself, but belongs to what does

    limits = Limits(
        memory_bytes=op.memory_bytes,
        swap_bytes=op.swap_bytes,
        cpus=op.cpus,
        cpu_shares=op.cpu_shares,
        pids=op.pids,
        cpu_ids=stage_cpus(stage) if living else None,
        io_weight=op.io_weight,
        io_throttles=_throttles(op, stage) or None,
        huge_pages=frozenset(map(_huge_page, op.huge_pages)) or None,
        oom_group=op.oom_group or None,
    )
    applied = stage.cgroup.apply(
        limits, best_effort=op.best_effort, clear=living, optional=frozenset(op.optional)
    )
    for one in applied:
        asked = None if one.name in op.optional else plain(one.wanted)
        stage.applied(AppliedLimit(one.name, asked, plain(one.effective), one.problem))
        if one.problem and one.name not in op.optional:
            stage.say(
                message("WARNING: the limit {name} does not hold: {why}", name=one.name, why=one.problem)
            )


def _throttles(op: plan.SetLimits, stage: Stage) -> frozenset[Throttle]:
    """With the numbers of the disks; what is on none is left out for a zone that is content with that."""
    found = set()
    for words in op.io_throttles:
        try:
            found.add(_throttle(words))
        except PlatformError as error:
            if not op.best_effort:
                raise
            stage.say(
                message("WARNING: the limit {name} does not hold: {why}", name="capped-io", why=error.text)
            )
            stage.applied(AppliedLimit("capped-io", list(op.io_throttles), None, error.text))
    return frozenset(found)


def _throttle(words: str) -> Throttle:
    path, *given = words.split(" ")
    values = dict(word.split("=") for word in given)
    names = ("read-bps", "write-bps", "read-iops", "write-iops")
    return Throttle(disk_of(path), *(int(values[name]) if name in values else None for name in names))


def _huge_page(words: str) -> tuple[int, int]:
    size, _, limit = words.partition("=")
    return int(size), int(limit)


def disk_of(path: str) -> str:
    """major:minor of the whole disk that a device is, or that a file or folder lies on.  PlatformError."""
    try:
        found = os.stat(path)
    except OSError as error:
        raise PlatformError("capped-io: {path}: {why}", path=path, why=error.strerror) from None
    number = found.st_rdev if stat.S_ISBLK(found.st_mode) else found.st_dev
    device = f"{os.major(number)}:{os.minor(number)}"
    if not os.path.exists(f"/sys/dev/block/{device}"):
        raise PlatformError("capped-io: {path} is not on a disk that can be limited", path=path)
    if not os.path.exists(f"/sys/dev/block/{device}/partition"):
        return device
    with open(f"/sys/dev/block/{device}/../dev", encoding="ascii") as file:
        return file.read().strip()


# -- CPUs of its own ------------------------------------------------------------------------------------------------


def dedicate_cpus(op: plan.DedicateCpus, stage: Stage) -> None:
    """Take CPUs for this zone alone, and have the others of the instance keep off them."""
    hierarchy, base = stage.cgroup.hierarchy, stage.cgroup.base
    registry = Registry(hierarchy)
    try:
        mine = registry.allocate(base, op.zonename, registry.choice(base, op.zonename, op.unit, op.wanted))
        _hold(stage.cgroup, registry, mine)
    except (ValueError, PlatformError, OSError) as error:
        why = explain(error) if isinstance(error, OSError) else str(error)
        if op.best_effort:
            stage.say(
                message("WARNING: the limit {name} does not hold: {why}", name="dedicated-cpu", why=why)
            )
            stage.applied(AppliedLimit("dedicated-cpu", f"{op.unit} {op.wanted}", None, why))
            return
        failure = PlatformError("{unit} {wanted}: {why}", unit=op.unit, wanted=op.wanted, why=why)
        failure.add_note("dedicated-cpu setting cannot be instantiated")
        raise failure from None
    stage.applied(AppliedLimit("dedicated-cpu", f"{op.unit} {op.wanted}", cpus.spell(mine)))


def _hold(cgroup: ZoneCgroup, registry: Registry, mine: cpus.CPUS) -> None:
    """The others make room first: on the way no CPU belongs to two."""
    spread(registry, cgroup.base)
    cgroup.apply(Limits(cpu_ids=mine))
    if "cpuset" not in cgroup.hierarchy.controllers:
        cpus.partition(_folders(cgroup), mine, _of_instance(registry, cgroup.base))


def _folders(cgroup: ZoneCgroup) -> list[Any]:
    return [cgroup.path.parent, cgroup.path, cgroup.part_path(Part.PAYLOAD)]


def _of_instance(registry: Registry, base: str) -> cpus.CPUS:
    mine = (share for share in registry.shares() if share.base == base and not share.pool)
    return frozenset().union(*(share.numbers for share in mine))


def spread(registry: Registry, base: str) -> None:
    """Hold every zone of the instance that has no CPUs of its own to those that nobody has, or its pool's of them."""
    with registry.lock():
        dedicated = registry.dedicated()
        shares = [share for share in registry.shares() if share.base == base]
        own = {share.zonename for share in shares if not share.pool}
        pools = {share.zonename: share.numbers for share in shares if share.pool}
        for zonename in cpus.zones_of(registry.hierarchy, base):
            if zonename not in own:
                cpus.keep_off(registry.hierarchy, base, zonename, dedicated, pools.get(zonename, frozenset()))


def join_pool(op: plan.JoinPool, stage: Stage) -> None:
    """Hold the zone to the CPUs of its pool.  Where there is none the zone has the CPUs that all have (reference 3.1,
    step 10 d).
    """
    base, registry = stage.cgroup.base, Registry(stage.cgroup.hierarchy)
    ids = cpus.parse(op.cpus) & cpus.online()
    why = message("[pools] in zonemgr.toml names no CPU for it that this host has")
    if ids:
        registry.join(base, op.zonename, ids)
        held = cpus.shared(cpus.online(), registry.dedicated(), ids)
        try:
            stage.cgroup.apply(Limits(cpu_ids=held))
        except PlatformError as error:
            why = error.text
        else:
            stage.applied(AppliedLimit("pool", op.pool, cpus.spell(held)))
            return
    release_cpus(stage.cgroup.hierarchy, stage.cgroup)
    stage.say(message("WARNING: unable to bind to pool '{pool}'; using default pool: {why}", pool=op.pool, why=why))
    stage.applied(AppliedLimit("pool", op.pool, None, why))


def keep_off_others(cgroup: ZoneCgroup) -> None:
    """A zone that has just been made keeps off the CPUs of others."""
    registry = Registry(cgroup.hierarchy)
    if not registry.path.exists():
        return
    with registry.lock():
        dedicated = registry.dedicated(but=(cgroup.base, cgroup.name))
        if dedicated:
            cpus.keep_off(cgroup.hierarchy, cgroup.base, cgroup.name, dedicated)


def stage_cpus(stage: Stage) -> cpus.CPUS | None:
    """The CPUs that the zone is to be held to, for a change that writes every limit anew."""
    registry = Registry(stage.cgroup.hierarchy)
    if not registry.path.exists():
        return None
    mine = registry.of(stage.cgroup.base, stage.cgroup.name)
    dedicated, pool = registry.dedicated(), registry.pool_of(stage.cgroup.base, stage.cgroup.name)
    return mine or (cpus.shared(cpus.online(), dedicated, pool) if dedicated or pool else None)


def release_cpus(hierarchy: Hierarchy, cgroup: ZoneCgroup) -> None:
    """Give the zone's CPUs back to the others.  Idempotent."""
    registry = Registry(hierarchy)
    if not registry.release(cgroup.base, cgroup.name):
        return
    if "cpuset" not in hierarchy.controllers:
        cpus.dissolve(_folders(cgroup), _of_instance(registry, cgroup.base))
    spread(registry, cgroup.base)


# -- System V objects -----------------------------------------------------------------------------------------------

_SETTINGS = {
    "kernel/shmmax": "max-shm-memory",
    "kernel/shmmni": "max-shm-ids",
    "kernel/msgmni": "max-msg-ids",
    "kernel/sem": "max-sem-ids",
}


def note_settings(op: plan.Sysctls, stage: Stage) -> None:
    """Record the limits among settings that the kernel has just taken (it refuses what it would change)."""
    for setting in op.settings:
        name, _, value = setting.partition("=")
        if name in _SETTINGS:
            held = int(value.split()[-1])
            stage.applied(AppliedLimit(_SETTINGS[name], held, held))


def forget_settings(names: Iterable[str], stage: Stage) -> None:
    """These settings are those of any new namespace again."""
    for name in names:
        if name in _SETTINGS:
            stage.applied(AppliedLimit(_SETTINGS[name], None, None))


# -- its processes --------------------------------------------------------------------------------------------------


def set_process_limits(op: plan.SetProcessLimits, stage: Stage) -> None:
    """Decide what each process begins with: process 1 takes it when it becomes init, and who enters later too."""
    _decide(op, stage)
    process.set_oom_score_adj(op.oom_score_adj, stage.born.init_pid)
    if op.scheduling_class and op.scheduling_class not in process.SCHEDULING:
        stage.say(message("WARNING: unable to set scheduling-class '{name}'", name=op.scheduling_class))
    else:
        stage.scheduling_class = op.scheduling_class
    process.set_schedule(stage.scheduling_class, stage.born.init_pid)


def change_process_limits(old: plan.SetProcessLimits, new: plan.SetProcessLimits, stage: Stage) -> None:
    """Set what differs at once, in a living zone, on the processes that still have what process 1 has: what a process
    chose for itself stays.
    """
    _decide(new, stage)
    pid = stage.born.init_pid
    others = [other for other in stage.cgroup.pids(Part.PAYLOAD) if other != pid]
    before = rlimits.to_numbers(old.limits)
    for name, pair in rlimits.to_numbers(new.limits).items():
        if before.get(name) != pair:
            _change(name, rlimits.to_numbers([f"{name}={stage.rlimits[name]}"])[name], pid, others)
    for name in set(old.asked) - set(new.asked):
        stage.applied(AppliedLimit(f"rlimit {name}", None, None))
    if old.oom_score_adj != new.oom_score_adj:
        _set_oom_score(new.oom_score_adj, pid, others)


def _decide(op: plan.SetProcessLimits, stage: Stage) -> None:
    for name, wanted in rlimits.to_numbers(op.limits).items():
        held = _within(name, wanted, required=name in op.asked and not op.best_effort)
        if name in op.asked:
            problem = (
                "" if held == wanted else message("this host allows no more than {most}", most=_spell(held))
            )
            stage.applied(AppliedLimit(f"rlimit {name}", _spell(wanted), _spell(held), problem))
        stage.rlimits[name] = _spell(held)
    stage.oom_score_adj = op.oom_score_adj


def _within(name: str, wanted: tuple[int, int], *, required: bool) -> tuple[int, int]:
    """As much of a limit as we can give: more than our own hard limit takes sys_resource, which containers lack."""
    most = _most(name)
    held = (_least(wanted[0], most), _least(wanted[1], most))
    if required and held != wanted:
        raise PlatformError(
            "cannot apply the limit rlimit {name}={wanted}: this host allows no more than {most}",
            name=name,
            wanted=_spell(wanted),
            most=_spell((most,)),
        )
    return held


@functools.cache
def _may_raise() -> bool:
    return "sys_resource" in caps.effective("self")


def _most(name: str) -> int:
    if not _may_raise():
        return resource.getrlimit(getattr(resource, f"RLIMIT_{name.upper()}"))[1]
    if name != "nofile":
        return -1
    with open("/proc/sys/fs/nr_open", encoding="ascii") as file:
        return int(file.read())


def _change(name: str, held: tuple[int, int], pid: int, others: Iterable[int]) -> None:
    number = getattr(resource, f"RLIMIT_{name.upper()}")
    before = process.prlimit(pid, number)
    try:
        process.prlimit(pid, number, held)
    except PermissionError:
        raise PlatformError(
            "cannot raise the limit rlimit {name} of living processes: that takes CAP_SYS_RESOURCE on the host",
            name=name,
        ) from None
    for other in others:
        try:
            if process.prlimit(other, number) == before:
                process.prlimit(other, number, held)
        except (ProcessLookupError, PermissionError):
            continue  # it has ended, or changes its user just now


def _set_oom_score(value: int, pid: int, others: Iterable[int]) -> None:
    before = process.oom_score_adj(pid)
    process.set_oom_score_adj(value, pid)
    for other in others:
        try:
            if process.oom_score_adj(other) == before:
                process.set_oom_score_adj(value, other)
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended


def _least(one: int, other: int) -> int:
    return min((value for value in (one, other) if value != -1), default=-1)


def _spell(pair: Iterable[int]) -> str:
    return ":".join(rlimits.UNLIMITED if value == -1 else str(value) for value in pair)


# -- its disk space -------------------------------------------------------------------------------------------------


def set_quota(op: plan.SetQuota, stage: Stage) -> None:
    """Hold the zonepath to its quota."""
    try:
        held = quota.hold(op.path, op.project, op.limit_bytes)
    except OSError as error:
        why = _no_quota(op.path, error)
        if op.best_effort or op.limit_bytes is None:
            stage.say(message("WARNING: the limit {name} does not hold: {why}", name="quota", why=why))
            stage.applied(AppliedLimit("quota", op.limit_bytes, None, why))
            return
        raise PlatformError(
            "cannot apply the limit quota={wanted}: {why}", wanted=op.limit_bytes, why=why
        ) from None
    stage.applied(AppliedLimit("quota", op.limit_bytes, held.limit_bytes))


def _no_quota(path: str, error: OSError) -> str:
    if not quota.lacks(error):
        return explain(error)
    return message(
        "the file system of {path} keeps no quotas (ext4: tune2fs -O project,quota while it is not mounted;"
        " then, as on xfs, mount it with prjquota; btrfs: btrfs quota enable)",
        path=path,
    )
