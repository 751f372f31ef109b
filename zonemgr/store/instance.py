"""The record of a living zone: what was made for it in this boot of the host, and how far it got.

``/run/zonemgr/instances/NAME.json`` is world-readable (``list`` works for everybody) and written by rename, by one
writer at a time: the worker of the transition under way.  It is a *claim*: every reader checks it against the kernel
(boot id of the host, start time of each pid), and what is observed wins.  ``observe`` does that.
"""

from __future__ import annotations

import dataclasses
import enum
import os
from dataclasses import dataclass
from typing import Any

from zonemgr.errors import PlatformError
from zonemgr.linux.procfs import boot_id, is_alive
from zonemgr.model.brandspec import RestartPolicy
from zonemgr.store.files import read_json, write_json
from zonemgr.store.paths import Layout

VERSION = 1


class Mode(enum.Enum):
    """Why the platform was made (reference, section 3: the mount modes)."""

    BOOT = "boot"
    SCRATCH = "scratch"
    UPDATE = "update"

    @property
    def alternate(self) -> bool:
        """A zone mounted for maintenance: no network, no limits, no init."""
        return self is not Mode.BOOT


class Phase(enum.Enum):
    """How far the platform has come.  Only MAKING and HALTING are unstable: a successor acts on them."""

    MAKING = "making"
    READY = "ready"
    BOOTING = "booting"
    RUNNING = "running"
    HALTING = "halting"


@dataclass(frozen=True, slots=True)
class Process:
    """A process that cannot be confused with a later one of the same pid."""

    pid: int
    start_time: int  # clock ticks since the host booted, from /proc/PID/stat

    @property
    def alive(self) -> bool:
        return is_alive(self.pid, self.start_time)


@dataclass(frozen=True, slots=True)
class Instance:
    """One life of a zone, from ready to halt.  ``generation`` is the reference's uniqid: new with every life."""

    zonename: str
    generation: str
    zone_id: int
    mode: Mode
    phase: Phase
    uid_base: int  # host id of the zone's root; 0 for a privileged zone
    privileged: bool
    root: str  # the zone's root on the host, for display and checks
    cgroup: str  # the payload's folder in the cgroup2 tree
    cgroups_v1: tuple[str, ...] = ()  # the zone's folders in v1 hierarchies
    zsched: Process | None = None
    init: Process | None = None
    capabilities: tuple[str, ...] = ()  # the bounding set
    filtered: bool = True  # there is a system call filter; the next four are what differs from the default one
    denied_rights: tuple[str, ...] = ()
    seccomp_calls: tuple[str, ...] = ()
    locked_flags: tuple[str, ...] = ()
    may_mount: bool = True
    personality: int = 0  # personality(2) of each process
    frozen: tuple[str, ...] = ()  # folders that file-mac-profile made read-only
    login_command: tuple[str, ...] = ()
    forced_login_command: tuple[str, ...] = ()
    user_command: tuple[str, ...] = ()
    label: str = ""  # mandatory label of every process; empty: none
    restart: RestartPolicy = dataclasses.field(default_factory=RestartPolicy)  # what follows when init ends
    brand: str = ""
    ip_type: str = "exclusive"
    no_new_privs: bool = False
    rlimits: tuple[str, ...] = ()  # "nofile=1024:524288": what each process begins with
    oom_score_adj: int | None = None  # likewise
    scheduling_class: str = ""  # likewise
    limits: tuple[dict[str, Any], ...] = ()  # each limit as configured and as the kernel holds it
    halted_by: str = ""  # why the teardown began, for the successor that finishes it
    booted_s: float = 0.0  # CLOCK_MONOTONIC of the last boot, for the brake on reboot loops
    notifies: bool = False  # its init tells when it is ready (``store.readiness``)
    quick_reboots: int = 0  # reboots in a row that came too soon after their boot
    version: int = VERSION
    boot_id: str = dataclasses.field(default_factory=boot_id)

    def but(self, **changes: Any) -> Instance:
        """A copy with these fields changed."""
        return dataclasses.replace(self, **changes)


_FIELDS = tuple(field.name for field in dataclasses.fields(Instance))


def _to_json(instance: Instance) -> dict[str, Any]:
    table = {name: getattr(instance, name) for name in _FIELDS}
    for name in ("zsched", "init", "restart"):
        if table[name] is not None:
            table[name] = dataclasses.asdict(table[name])
    table["mode"], table["phase"] = instance.mode.value, instance.phase.value
    return table


def _process(table: dict[str, int] | None) -> Process | None:
    return Process(table["pid"], table["start_time"]) if table else None


_TUPLES = tuple(
    field.name for field in dataclasses.fields(Instance) if str(field.type).startswith("tuple[")
)


def _from_json(table: dict[str, Any]) -> Instance:
    values = {key: value for key, value in table.items() if key in _FIELDS}
    for name in _TUPLES:
        values[name] = tuple(values.get(name, ()))
    values["restart"] = RestartPolicy(**table.get("restart", {}))
    values["mode"], values["phase"] = Mode(table["mode"]), Phase(table["phase"])
    values["zsched"], values["init"] = _process(table.get("zsched")), _process(table.get("init"))
    return Instance(**values)


def read(layout: Layout, zonename: str) -> Instance | None:
    """The zone's record, or None when it has none or the record is of an earlier boot of the host.

    PlatformError when it is damaged.
    """
    path = layout.instance(zonename)
    table = read_json(path)
    try:
        return _from_json(table) if table and table.get("boot_id") == boot_id() else None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise PlatformError("{path} is damaged: {why!r}", path=path, why=error) from error


def write(layout: Layout, instance: Instance) -> Instance:
    """Store the record (atomically) and return it."""
    path = layout.instance(instance.zonename)
    table = _to_json(instance)
    try:
        write_json(path, table, 0o644, durable=False)
    except PlatformError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)  # the first zone of this boot of the host
        write_json(path, table, 0o644, durable=False)
    return instance


def forget(layout: Layout, zonename: str) -> None:
    """Remove the record: the zone has no platform any more."""
    layout.instance(zonename).unlink(missing_ok=True)


def count(layout: Layout) -> int:
    """How many zones have a record, which costs next to nothing."""
    try:
        return sum(name.endswith(".json") for name in os.listdir(layout.run / "instances"))
    except FileNotFoundError:
        return 0


def names(layout: Layout) -> list[str]:
    """All zones that have a record."""
    folder = layout.run / "instances"
    return sorted(path.stem for path in folder.glob("*.json")) if folder.is_dir() else []
