"""One-shot programs that need the platform: ``plan`` (what a verb would do) and ``fsck`` (records against the
kernel).
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict, dataclass

from zonemgr.brandkit import loader
from zonemgr.brandkit.base import ZoneInfo
from zonemgr.errors import Exit, PlatformError, UsageError, ZoneError
from zonemgr.linux import netlink, nft
from zonemgr.linux.cgroup import Part, ZoneCgroup, detect
from zonemgr.model import plan as plans
from zonemgr.model.bootargs import filter_bootargs
from zonemgr.model.brandspec import InitProgram
from zonemgr.model.states import State
from zonemgr.model.zone import Zone
from zonemgr.platform import compose, firewall, network, undo
from zonemgr.store import hostledger, readiness, settings, snapshot, zones
from zonemgr.store import instance as instances
from zonemgr.store.instance import Instance, Mode
from zonemgr.store.ledger import Ledger
from zonemgr.store.locks import FileLock
from zonemgr.store.observe import living_state
from zonemgr.store.paths import Layout
from zonemgr.supervisor import init

UNKNOWN_BASE = 524288  # shown for a zone that has no id range yet


# -- plan -------------------------------------------------------------------------------------------------------


def plan(layout: Layout, verb: str, zonename: str, *, as_json: bool) -> int:
    """Print what a verb would do to the zone now.  Changes nothing."""
    made = _plan(layout, verb, zonename)
    if as_json:
        print(json.dumps({"verb": verb, **made.to_json()}, indent=2))
        return int(Exit.OK)
    print(f"# {verb} {zonename}: {len(made.ready) + len(made.boot)} steps")
    for number, op in enumerate((*made.ready, *made.boot), 1):
        print(f"{number:3}. {op.describe()}")
    return int(Exit.OK)


def _plan(layout: Layout, verb: str, zonename: str) -> plans.Plan:
    if verb in ("halt", "unmount"):
        return plans.Plan(zonename, _undone(layout, zonename))
    if verb in ("ready", "boot", "reboot"):
        subject = _subject(layout, zonename, Mode.BOOT)
        before = _undone(layout, zonename) if verb == "reboot" else ()
        boot: tuple[plans.Op, ...] = ()
        if verb != "ready":
            words = filter_bootargs("", subject.zone.bootargs)
            program = _init_program(layout, subject.zone, words.init)
            boot = compose.compose_boot(subject, program.path, (*program.arguments, *words.words))
        return plans.Plan(zonename, (*before, *compose.compose_ready(subject)), boot)
    if verb == "mount":
        brand = loader.load(zones.load(layout, zonename).brand, layout)
        mode = Mode.SCRATCH if brand.scratch_mount else Mode.UPDATE
        return plans.Plan(zonename, compose.compose_ready(_subject(layout, zonename, mode)))
    raise UsageError(
        "there is no plan for '{verb}': use ready, boot, reboot, mount, halt or unmount", verb=verb
    )


def _undone(layout: Layout, zonename: str) -> tuple[plans.Op, ...]:
    """What halt would take back of the zone's present life, newest first."""
    pending = Ledger(layout.zone_run(zonename) / "ledger.jsonl").pending()
    return tuple(_Undone(plans.from_json(table).describe()) for _, table in pending)


def _init_program(layout: Layout, zone: Zone, asked: str | None) -> InitProgram:
    if asked:
        return InitProgram(asked)
    return init.program_of(loader.load(zone.brand, layout), ZoneInfo.of(zone, str(layout.root)))


@dataclass(frozen=True)
class _Undone(plans.Op):
    """A ledger entry, as halt will take it back."""

    kind = "undo"
    what: str

    def describe(self) -> str:
        return f"undo: {self.what}"


def _subject(layout: Layout, zonename: str, mode: Mode) -> compose.Subject:
    entry = zones.read_entry(layout, zonename)
    zone = zones.load(layout, zonename)
    brand = loader.load(zone.brand, layout)
    return compose.Subject(
        zone=zone,
        brand=brand,
        data=str(brand.folder),
        layout=layout,
        settings=settings.load(layout),
        mode=mode,
        uid_base=entry.uid_base or UNKNOWN_BASE,
        uuid=entry.uuid,
        layers=entry.layers,
    )


# -- fsck -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that fsck found, and what it did about it."""

    zonename: str
    found: str
    done: str


def fsck(layout: Layout, *, host: bool, as_json: bool) -> int:
    """Reconcile every zone's records with the kernel; with ``host`` also what zones share.  Removes only what a
    ledger lists.
    """
    findings: list[Finding] = []
    for zonename in _names(layout):
        findings += _check_zone(layout, zonename)
    findings += _check_filters(layout)
    if host:
        findings += _check_host(layout)
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        for finding in findings:
            print(f"{finding.zonename}: {finding.found}: {finding.done}")
    return int(Exit.ERROR if any(finding.done.startswith("not") for finding in findings) else Exit.OK)


def _names(layout: Layout) -> list[str]:
    folder = layout.run / "zones"
    running = os.listdir(folder) if folder.is_dir() else []
    return sorted({*zones.names(layout), *instances.names(layout), *running})


def _check_zone(layout: Layout, zonename: str) -> list[Finding]:
    """A zone without a supervisor whose ledger lists what nobody needs any more."""
    lock = FileLock(layout.zone_run(zonename) / "lock")
    if not layout.zone_run(zonename).is_dir() or not lock.acquire(blocking=False):
        return []  # never active, or its supervisor takes care of it
    try:
        instance = instances.read(layout, zonename)
    except PlatformError as error:
        lock.release()
        return [Finding(zonename, error.text, "not repaired: remove the file, and halt and boot clear up what is left")]
    try:
        ledger = Ledger(layout.zone_run(zonename) / "ledger.jsonl")
        state = living_state(instance) if instance else None
        if state in (State.READY, State.RUNNING, State.MOUNTED):
            return (
                []
                if ledger.pending()
                else [Finding(zonename, f"{state.label} without a ledger", "nothing done")]
            )
        if instance is None and not ledger.pending():
            return _leftover_cgroup(layout, zonename)
        return [_take_back(layout, zonename, instance, ledger)]
    finally:
        lock.release()


def _check_filters(layout: Layout) -> list[Finding]:
    """What living zones have in the packet filter, which a reload of the host's own rules may have flushed."""
    findings = []
    for zonename in instances.names(layout):
        ops = _filters_of(layout, zonename)
        if ops and not firewall.complete(ops, layout.suffix):
            findings.append(
                _act(zonename, "its packet filter is gone", lambda ops=ops: firewall.restore(ops, layout), "restored")
            )
            if not _filters_of(layout, zonename):  # it went meanwhile, and nobody else would take this back
                for op in ops:
                    firewall.undo(op, layout.suffix)
    return findings


def _filters_of(layout: Layout, zonename: str) -> list[plans.Op]:
    """The filter ops of a living zone, in their order."""
    try:
        instance = instances.read(layout, zonename)
    except PlatformError:
        return []  # that is another finding
    if instance is None or living_state(instance) not in (State.READY, State.RUNNING):
        return []
    ledger = Ledger(layout.zone_run(zonename) / "ledger.jsonl")
    ops = [plans.from_json(table) for _number, table in reversed(ledger.pending())]
    return [op for op in ops if isinstance(op, plans.FILTERS)]


def _leftover_cgroup(layout: Layout, zonename: str) -> list[Finding]:
    cgroup = ZoneCgroup(detect(), "zonemgr" + layout.suffix, zonename)
    if not cgroup.path.exists():
        return []
    return [_act(zonename, "an empty cgroup is left", cgroup.remove)]


def _take_back(layout: Layout, zonename: str, instance: Instance | None, ledger: Ledger) -> Finding:
    what = f"{len(ledger.pending())} entries of a life that is over"

    def act() -> None:
        cgroup = ZoneCgroup(detect(), "zonemgr" + layout.suffix, zonename)
        for part in Part:
            cgroup.kill(part)
            if not cgroup.wait_empty(part, 10.0):
                raise ZoneError("still there: {who}", who="; ".join(cgroup.stuck(part)))
        failures = undo.everything(ledger, undo.Remains(layout, zonename))
        if failures:
            raise failures[0]
        cgroup.remove()
        instances.forget(layout, zonename)
        readiness.forget(layout, zonename)
        snapshot.destroy(layout, zonename)

    return _act(zonename, what, act)


def _act(zonename: str, found: str, act: object, done: str = "removed") -> Finding:
    try:
        act()  # type: ignore[operator]
    except (ZoneError, OSError) as error:
        return Finding(zonename, found, f"not removed: {error}")
    return Finding(zonename, found, done)


def _check_host(layout: Layout) -> list[Finding]:
    """What zones share (the default bridge, tables, kernel settings) goes when no zone is active."""
    with hostledger.lock(layout):
        ledger = hostledger.load(layout)
        if ledger.empty or instances.names(layout):
            return []
        findings = []
        for name in list(ledger.tables):
            findings.append(_act("host", f"nftables table {name}", lambda name=name: nft.delete_tables(name)))
            ledger.tables.remove(name)
        for name, before in list(ledger.settings.items()):
            findings.append(_act("host", f"setting {name}", lambda n=name, b=before: _restore(n, b), "restored"))
            del ledger.settings[name]
        for name in list(ledger.ways_back):
            what = f"way back to ::1 by {name}"
            findings.append(_act("host", what, lambda name=name: netlink.remove_way_back(name)))
            ledger.ways_back.remove(name)
        for name in list(ledger.bridges):
            findings.append(_act("host", f"bridge {name}", lambda name=name: netlink.delete_link(name)))
            ledger.bridges.remove(name)
        hostledger.save(layout, ledger)
        return findings


def _restore(name: str, before: str) -> None:
    """What a setting was before zones needed it; one of a link that is gone needs nothing."""
    with contextlib.suppress(FileNotFoundError):
        network.write_setting(name, before)
