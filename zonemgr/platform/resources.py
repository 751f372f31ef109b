"""The limits of a zone's configuration as ops of a plan.

Pure but for a few questions to the host (how many processes it can have, whether a folder has a quota).  Acting is
``limits``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from zonemgr.linux import budgets, quota
from zonemgr.model import plan, rlimits
from zonemgr.model.zone import CappedIo, Zone
from zonemgr.store.settings import Settings

OOM_SCORE_ADJ = 100  # before the host's own services, whose score is 0; after what the host itself marks


def limits(zone: Zone, settings: Settings, project: int) -> list[plan.Op]:
    """Everything that limits the zone as a whole or each of its processes."""
    zone = zone.with_controls()
    pool = [plan.JoinPool(zone.zonename, zone.pool, settings.pools.get(zone.pool, ""))] if zone.pool else []
    ops: list[plan.Op] = [*_dedicated(zone), *pool, cgroup_limits(zone, settings), process_limits(zone)]
    return [*ops, *_quota(zone, project)]


def cgroup_limits(zone: Zone, settings: Settings) -> plan.SetLimits:
    """The zone's limits.  max-processes alone becomes ten times as many threads (reference, section 3.1); a zone that
    says nothing gets the instance's default, so that its fork bomb ends before the host's processes do.
    """
    memory = zone.capped_memory
    pids = zone.max_lwps
    if pids is None and zone.max_processes is not None:
        pids = 10 * zone.max_processes
    return plan.SetLimits(
        memory_bytes=memory.physical if memory else None,
        swap_bytes=memory.swap if memory else None,
        cpus=zone.capped_cpu.ncpus if zone.capped_cpu else None,
        cpu_shares=zone.cpu_shares,
        pids=pids or settings.default_max_lwps or budgets.default_processes(),
        io_weight=zone.zfs_io_priority,
        io_throttles=tuple(map(_throttle, zone.capped_io)),
        huge_pages=tuple(f"{cap.pagesize}={cap.limit}" for cap in zone.capped_hugetlb),
        oom_group=bool(zone.oom_group),
        best_effort=zone.best_effort,
        optional=() if pids else ("max-lwps",),
    )


def _throttle(cap: CappedIo) -> str:
    names = ("read_bps", "write_bps", "read_iops", "write_iops")
    given = ((name.replace("_", "-"), getattr(cap, name)) for name in names)
    return " ".join((cap.device, *(f"{name}={value}" for name, value in given if value is not None)))


def process_limits(zone: Zone) -> plan.SetProcessLimits:
    """Every rlimit, so that nothing of the shell of whoever boots the zone gets into it."""
    chosen = dict(rlimits.RLIMITS)
    asked = set()
    if zone.capped_memory and zone.capped_memory.locked is not None:
        chosen["memlock"] = (str(zone.capped_memory.locked),) * 2
        asked.add("memlock")
    for limit in zone.rlimit:
        chosen[limit.name] = rlimits.pair(limit.name, limit.soft, limit.hard)
        asked.add(limit.name)
    return plan.SetProcessLimits(
        rlimits.to_words(chosen),
        tuple(sorted(asked)),
        OOM_SCORE_ADJ if zone.oom_score_adj is None else zone.oom_score_adj,
        zone.scheduling_class or "",
        zone.best_effort,
    )


def _dedicated(zone: Zone) -> Iterator[plan.DedicateCpus]:
    chosen = zone.dedicated_cpu
    if chosen is None:
        return
    for unit, wanted in chosen.wanted():
        yield plan.DedicateCpus(zone.zonename, unit, wanted, zone.best_effort)


def _quota(zone: Zone, project: int) -> Iterator[plan.SetQuota]:
    """Also where none is asked for any more and the folder still has one."""
    if zone.quota is not None or quota.is_held(zone.zonepath, project):
        yield plan.SetQuota(zone.zonepath, project, zone.quota, zone.best_effort)


def sysctls(zone: Zone) -> tuple[str, ...]:
    """System V limits as settings of the zone's ipc namespace (reference, section 10.2)."""
    zone = zone.with_controls()
    settings = []
    if zone.max_shm_memory is not None:
        page = os.sysconf("SC_PAGE_SIZE")
        settings += [
            f"kernel/shmmax={zone.max_shm_memory}",
            f"kernel/shmall={-(-zone.max_shm_memory // page)}",
        ]
    if zone.max_shm_ids is not None:
        settings.append(f"kernel/shmmni={zone.max_shm_ids}")
    if zone.max_msg_ids is not None:
        settings.append(f"kernel/msgmni={zone.max_msg_ids}")
    if zone.max_sem_ids is not None:
        settings.append(f"kernel/sem=32000 1024000000 500 {zone.max_sem_ids}")
    return tuple(settings)
