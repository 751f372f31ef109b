"""CPUs of the host by number, core and socket, and control groups that are held to some of them or keep off others.

On cgroup2 (Linux 6.7 and later) the CPUs become a partition of their own, which nothing else of the host runs in.
Elsewhere the zones of this instance keep off each other's CPUs, and only what the host itself starts may run there.

Deliberately not here: which zone has which CPUs (``store.cpus``).
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from zonemgr.errors import message
from zonemgr.linux.cgroup.hierarchy import Hierarchy, write_file

CPUS = frozenset[int]
_SYSTEM: Final = Path("/sys/devices/system/cpu")
NOT_ZONES: Final = frozenset({"_supervisors"})


def parse(text: str) -> CPUS:
    """``0-3,6`` as numbers."""
    found: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.strip().partition("-")
        if first:
            found |= set(range(int(first), int(last or first) + 1))
    return frozenset(found)


def spell(cpus: Iterable[int]) -> str:
    """The inverse of ``parse``, without ranges."""
    return ",".join(map(str, sorted(cpus)))


def online(system: Path = _SYSTEM) -> CPUS:
    """The CPUs that the host runs on."""
    return parse((system / "online").read_text())


def places(system: Path = _SYSTEM) -> dict[int, tuple[int, int]]:
    """CPU -> (socket, core).  Cores are counted through all sockets, from 0, as ``cores`` of a configuration does."""
    raw = {}
    for cpu in sorted(online(system)):
        topology = system / f"cpu{cpu}" / "topology"
        raw[cpu] = tuple(_number(topology / name) for name in ("physical_package_id", "core_id"))
    order = {place: index for index, place in enumerate(sorted(set(raw.values())))}
    return {cpu: (place[0], order[place]) for cpu, place in raw.items()}


def _number(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0  # a kernel that shows no topology has one socket


def _cpuset_root(hierarchy: Hierarchy) -> Path | None:
    return hierarchy.controllers.get("cpuset")


def partition(folders: list[Path], cpus: CPUS, shared: CPUS) -> bool:
    """Make the last of these cgroup2 folders a partition of the CPUs.  Each folder above it must reserve them, and the
    first, which zones share, what all of them have (``shared``).  False: this kernel has no partitions there.
    """
    leaf = folders[-1]
    if not (leaf / "cpuset.cpus.exclusive").exists():
        return False
    try:
        write_file(folders[0] / "cpuset.cpus.exclusive", spell(shared | cpus))
        for folder in folders[1:]:
            write_file(folder / "cpuset.cpus.exclusive", spell(cpus))
        write_file(leaf / "cpuset.cpus.partition", "root")
        held = (leaf / "cpuset.cpus.partition").read_text().strip() == "root"
    except OSError:
        held = False
    if not held:
        dissolve(folders, shared)
    return held


def dissolve(folders: list[Path], shared: CPUS) -> None:
    """Take a partition back; what is gone already is passed over."""
    steps = [
        (folders[-1] / "cpuset.cpus.partition", "member"),
        *((folder / "cpuset.cpus.exclusive", "\n") for folder in reversed(folders[1:])),
        (folders[0] / "cpuset.cpus.exclusive", spell(shared) or "\n"),
    ]
    for path, text in steps:
        try:
            write_file(path, text)
        except OSError:
            continue


def shared(every: CPUS, dedicated: CPUS, pool: CPUS) -> CPUS:
    """Where a zone without CPUs of its own may run: on its pool's (empty: it is in none), as long as one is left."""
    return (every & pool) - dedicated or every - dedicated


def keep_off(hierarchy: Hierarchy, base: str, zonename: str, dedicated: CPUS, pool: CPUS = frozenset()) -> None:
    """Hold one zone of the instance to the CPUs of its pool that no zone has for itself.  A zone that is gone is passed
    over."""
    mount = _cpuset_root(hierarchy)
    try:
        if mount is not None:
            write_file(mount / base / zonename / "cpuset.cpus", spell(shared(_root_cpus(mount), dedicated, pool)))
            return
        path = hierarchy.unified() / base / zonename / "payload" / "cpuset.cpus"
        if path.exists() and (dedicated or pool):
            write_file(path, spell(shared(online(), dedicated, pool)))
        elif path.exists():
            lift(path)
    except (FileNotFoundError, NotADirectoryError):
        return


def lift(path: Path, system: Path = _SYSTEM) -> None:
    """Hold a cgroup2 folder to no CPUs any more.  Older kernels do not let a folder with processes have none of its own
    again (ENOSPC): there it gets every CPU that this host can ever have, which comes to the same.
    """
    try:
        write_file(path, "\n")
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        write_file(path, (system / "possible").read_text())


def _root_cpus(mount: Path) -> CPUS:
    return parse((mount / "cpuset.cpus").read_text())


def zones_of(hierarchy: Hierarchy, base: str) -> list[str]:
    """The zones of an instance that have control groups."""
    folder = hierarchy.unified() / base
    try:
        return sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name not in NOT_ZONES)
    except FileNotFoundError:
        return []


def choose(unit: str, wanted: str, free: CPUS, where: dict[int, tuple[int, int]]) -> CPUS:
    """The CPUs that a ``dedicated-cpu`` resource asks for, out of the free ones.  ValueError says what is wrong.

    ``ncpus`` takes as many of its range as there are, whole cores first, from the end of the host (whose own work is
    mostly at its beginning).
    """
    if unit == "ncpus":
        low, _, high = wanted.partition("-")
        order = sorted(free, key=lambda cpu: (where[cpu], cpu), reverse=True)
        if len(order) < int(low):
            raise ValueError(
                message("{wanted} CPUs are wanted and {count} are free", wanted=low, count=len(order))
            )
        return frozenset(order[: int(high or low)])
    numbers = parse(wanted)
    index = {"sockets": 0, "cores": 1}.get(unit)
    chosen = {cpu for cpu in where if (cpu if index is None else where[cpu][index]) in numbers}
    there = {cpu if index is None else where[cpu][index] for cpu in where}
    if missing := numbers - there:
        raise ValueError(message("the host has no {unit} {numbers}", unit=unit, numbers=spell(missing)))
    if taken := chosen - free:
        raise ValueError(message("CPUs {numbers} are not free", numbers=spell(taken)))
    return frozenset(chosen)


def choose_again(unit: str, wanted: str, free: CPUS, held: CPUS, where: dict[int, tuple[int, int]]) -> CPUS:
    """As ``choose``, for a zone that may hold some: they are kept if they still are what is wanted, since a reboot must
    not move it.  For a number, one CPU at least stays with everybody else.
    """
    if unit != "ncpus":
        return choose(unit, wanted, free & where.keys(), where)
    low, _, high = wanted.partition("-")
    if held <= free and int(low) <= len(held) <= int(high or low):
        return held
    spare = min(free & where.keys(), key=lambda cpu: (where[cpu], cpu), default=-1)
    return choose(unit, wanted, (free & where.keys()) - {spare}, where)
