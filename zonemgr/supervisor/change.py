"""The steps apply, confirm and revert: a living zone is brought to its configuration, or back to the one before.

The configuration in the zone's file is compared with the snapshot, property by property; the plans that both make are
compared op by op (``model.delta``), and ``platform.live`` does the difference.  What only a boot or an installation can
change stays as it is, and so does its part of the snapshot.  The record of the change (``store.change``) is written
before each step, so that whoever comes after a killed worker or supervisor can take back exactly what was begun; zsched
starts a successor as soon as nobody is there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from zonemgr.brandkit import verify as brands
from zonemgr.errors import PlatformError, ZoneError, message
from zonemgr.model import changes as model
from zonemgr.model import delta, plan
from zonemgr.model.changes import Change
from zonemgr.model.delta import Delta, Step
from zonemgr.model.plan import Live
from zonemgr.model.schema import When
from zonemgr.model.zone import Zone
from zonemgr.platform import compose, live
from zonemgr.platform.compose import Subject
from zonemgr.platform.stage import Stage
from zonemgr.store import change as records
from zonemgr.store import events, snapshot, verify, zones
from zonemgr.store import instance as instances
from zonemgr.store.change import Phase, Record
from zonemgr.store.instance import Instance
from zonemgr.supervisor import alive
from zonemgr.supervisor.anchor import Anchor
from zonemgr.supervisor.transition import Transition


@dataclass
class Outcome:
    """What becomes of one difference."""

    change: Change
    state: str = "applied"  # or "pending", "failed"
    why: str = ""

    def to_json(self) -> dict[str, Any]:
        change = self.change
        old, new = (_shown(value) for value in (change.old, change.new))
        values = {"property": change.label, "old": old, "new": new, "when": change.when.value}
        return {**values, "state": self.state, "why": self.why or None}


def _shown(value: Any) -> Any:
    """A value of the configuration as JSON has it."""
    if isinstance(value, dict):
        return {name: _shown(item) for name, item in value.items()}
    if isinstance(value, tuple):
        return [_shown(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


# -- apply ------------------------------------------------------------------------------------------------------


def apply(transition: Transition) -> None:
    """Bring the zone to its configuration.  PlatformError when a step fails: what was done is taken back."""
    instance = _instance(transition)
    if transition.confirm_s is not None and transition.confirm_s < 1:
        raise PlatformError("the time for a confirmation is at least one second")
    if not transition.dry_run:
        _finish_earlier(transition)
    old = transition.configuration()
    new = zones.load(transition.layout, transition.zonename)
    new = dataclasses.replace(new, zonepath=os.path.realpath(new.zonepath))
    differences = model.between(old, new)
    if differences:
        _verify(transition, new)
    proposal = _propose(transition, instance, old, new, differences)
    try:
        if proposal.chosen and not transition.dry_run:
            _apply(transition, instance, proposal)
    finally:
        transition.result(
            {"changes": [outcome.to_json() for outcome in proposal.outcomes], "steps": proposal.described}
        )


def _instance(transition: Transition) -> Instance:
    instance = instances.read(transition.layout, transition.zonename)
    if instance is None:
        raise PlatformError("unable to get zoneid: no such zone is ready")
    return instance


def _finish_earlier(transition: Transition) -> None:
    """An earlier change must have come to its end before the next one begins."""
    record = records.read(transition.layout, transition.zonename)
    if record is None:
        return
    if record.phase is Phase.UNCONFIRMED:
        raise PlatformError(
            "the last change waits {seconds:.0f} more seconds for its confirmation: confirm it, or let it be reverted",
            seconds=record.left_s,
        )
    revert(transition)
    transition.zone = None


def _verify(transition: Transition, new: Zone) -> None:
    entry = zones.read_entry(transition.layout, transition.zonename)
    verify.verify_zone(transition.layout, new, entry, "apply", transition.say)
    info = dataclasses.replace(transition.info(), config=new)
    limit_s = transition.settings.hook_s
    brands.verify_brand(transition.brand, info, "apply", deadline_s=limit_s, say=transition.say)


@dataclass
class Proposal:
    """What is to become of every difference, and the steps that do it."""

    old: Zone
    target: Zone
    outcomes: list[Outcome]
    delta: Delta
    touched: dict[str, frozenset[tuple[object, ...]]]  # label of a change -> what its own steps are about

    @property
    def chosen(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.state == "applied"]

    @property
    def described(self) -> list[str]:
        return [step.describe() for step in self.delta.steps]


def _propose(
    transition: Transition, instance: Instance, old: Zone, new: Zone, differences: Sequence[Change]
) -> Proposal:
    """Sort the differences into what can be done now and what must wait, by what each of them does to the plan."""
    composed = _composer(transition, instance)
    listed = [plan.from_json(table) for _number, table in reversed(transition.ledger.pending())]
    fixed = _fixed(listed, instance)
    before = composed(old)
    outcomes = [Outcome(change) for change in differences]
    touched: dict[str, frozenset[tuple[object, ...]]] = {}
    for outcome in outcomes:
        change = outcome.change
        if change.when is not When.LIVE:
            outcome.state, outcome.why = "pending", message("takes effect at {when}", when=_moment(change.when))
            continue
        try:
            own = delta.between(before, composed(model.merged(old, new, [change])), fixed)
        except ZoneError:
            continue  # it makes sense only together with others
        touched[change.label] = own.identities
        _wait_for_boot(outcome, own.impossible)
    while True:
        chosen = [outcome.change for outcome in outcomes if outcome.state == "applied"]
        target = model.merged(old, new, chosen)
        whole = delta.between(before, composed(target), fixed)
        if not whole.impossible or not chosen:
            break
        together = {op.identity for op in whole.impossible}
        for outcome in outcomes:  # a change that nobody can tell apart from the others waits with them
            if outcome.state == "applied" and touched.get(outcome.change.label, together) & together:
                _wait_for_boot(outcome, whole.impossible)
        if chosen == [outcome.change for outcome in outcomes if outcome.state == "applied"]:
            for outcome in outcomes:
                _wait_for_boot(outcome, whole.impossible)
    return Proposal(old, target, outcomes, Delta(_grounded(whole.steps, listed)), touched)


def _moment(when: When) -> str:
    return "the next boot" if when is When.NEXT_BOOT else "the next installation"


def _wait_for_boot(outcome: Outcome, impossible: Iterable[plan.Op]) -> None:
    texts = [op.describe() for op in impossible]
    if texts and outcome.state == "applied":
        outcome.state = "pending"
        outcome.why = message("takes effect at the next boot: it changes what was sealed then ({what})", what=texts[0])


def _composer(transition: Transition, instance: Instance) -> Any:
    """Makes the plan of a configuration, as it would be made for this life of the zone."""
    entry = zones.read_entry(transition.layout, transition.zonename)

    def composed(zone: Zone) -> tuple[plan.Op, ...]:
        return compose.compose_ready(
            Subject(
                zone=zone,
                brand=transition.brand,
                data=str(transition.brand.folder),
                layout=transition.layout,
                settings=transition.settings,
                mode=instance.mode,
                uid_base=instance.uid_base,
                uuid=entry.uuid,
                layers=entry.layers,
                writable=not instance.frozen,
            )
        )

    return composed


def _fixed(listed: Sequence[plan.Op], instance: Instance) -> list[plan.Op]:
    """The mounts that were sealed: locked in the zone, where not even the host can take them away."""
    if instance.privileged:
        return []
    sealed = next((index for index, op in enumerate(listed) if isinstance(op, plan.Seal)), len(listed))
    return [op for op in listed[:sealed] if op.mount_point is not None and op.live is Live.REMAKE]


def _grounded(steps: Iterable[Step], listed: Sequence[plan.Op]) -> tuple[Step, ...]:
    """The steps from what the ledger lists, which is what is there: the brand may be another one since."""
    there = {op.identity: op for op in listed}
    grounded = []
    for step in steps:
        old = there.get(step.old.identity) if step.old else None
        if (old or step.new) and old != step.new:
            grounded.append(Step(old, step.new))
    return tuple(grounded)


def _apply(transition: Transition, instance: Instance, proposal: Proposal) -> None:
    layout, confirm_s = transition.layout, transition.confirm_s
    record = Record(
        transition.zonename, instance.generation, proposal.old, proposal.target, proposal.delta.steps
    )
    with _anchored(transition) as anchor, _staged(transition, instance, anchor) as stage:
        if not anchor.wake(0) and confirm_s:
            raise PlatformError(
                "this zone was made by an older zonemgr, which cannot revert by itself: apply without --confirm,"
                " or reboot the zone first"
            )
        try:
            record = _advance(transition, stage, record, proposal)
            snapshot.write(layout, record.new)
            instances.write(layout, _with_limits(instance, stage))
            if confirm_s:
                due_s = records.now_s() + confirm_s
                records.write(layout, record.but(phase=Phase.UNCONFIRMED, due_s=due_s))
                anchor.wake(confirm_s)
            else:
                records.forget(layout, transition.zonename)
        except Exception as error:
            _take_back(transition, stage, records.read(layout, transition.zonename) or record, error)
            raise
    if not confirm_s:
        _calm(transition)
    _publish(transition, "applied", proposal)
    if confirm_s:
        transition.say(
            message(
                "reverts by itself in {seconds:.0f} seconds, unless it is confirmed: zonemgr confirm {zonename}",
                seconds=confirm_s,
                zonename=transition.zonename,
            )
        )


def _advance(transition: Transition, stage: Stage, record: Record, proposal: Proposal) -> Record:
    """Do the steps, each recorded before it is begun."""
    for index, step in enumerate(record.steps):
        record = records.write(transition.layout, record.but(begun=index + 1))
        if transition.step is not None:
            transition.step(step.op)
        try:
            live.perform(step, stage, transition.ledger)
        except Exception as error:
            _blame(proposal, step, live.failure(error).text)
            raise
    return records.write(transition.layout, record)  # also when nothing in the kernel changes


def _blame(proposal: Proposal, failed: Step, why: str) -> None:
    """The changes that the step belongs to have failed; the others wait."""
    for outcome in proposal.chosen:
        own = proposal.touched.get(outcome.change.label)
        if own is None or failed.op.identity in own:
            outcome.state, outcome.why = "failed", why
        else:
            outcome.state, outcome.why = "pending", message("taken back, since another change failed")


def _take_back(transition: Transition, stage: Stage, record: Record, error: Exception) -> None:
    """After a failure.  What cannot be taken back either is noted on it."""
    try:
        _revert(transition, stage, record)
    except Exception as second:  # noqa: BLE001 - the first failure is the one that is told
        error.add_note(live.failure(second).text)
    else:
        error.add_note(message("what had been applied is taken back"))
        _calm(transition)


def _with_limits(instance: Instance, stage: Stage) -> Instance:
    """The record's part of the change: what holds now, and what whoever enters the zone gets."""
    limits = {table["name"]: table for table in instance.limits}
    limits.update({name: limit.to_json() for name, limit in stage.limits.items()})
    held = (table for table in limits.values() if (table["configured"], table["effective"]) != (None, None))
    instance = instance.but(limits=tuple(held))
    if not stage.rlimits:
        return instance
    rlimits = tuple(f"{name}={pair}" for name, pair in stage.rlimits.items())
    return instance.but(rlimits=rlimits, oom_score_adj=stage.oom_score_adj)


def _publish(transition: Transition, what: str, proposal: Proposal | None = None) -> None:
    record: dict[str, Any] = {"type": "change", "zonename": transition.zonename, "change": what}
    if proposal is not None:
        record["properties"] = [outcome.change.label for outcome in proposal.chosen]
    events.publish_best_effort(transition.layout, record)


# -- confirm and revert -----------------------------------------------------------------------------------------


def confirm(transition: Transition) -> None:
    """The last change stays."""
    record = records.read(transition.layout, transition.zonename)
    if record is None or record.phase is not Phase.UNCONFIRMED:
        raise PlatformError("no change waits for a confirmation")
    records.forget(transition.layout, transition.zonename)
    _calm(transition)
    _publish(transition, "confirmed")


def revert(transition: Transition) -> None:
    """Take the last change back, however far it came."""
    record = records.read(transition.layout, transition.zonename)
    if transition.upcall and (record is None or record.left_s):
        return  # the time that was over is that of an earlier change
    if record is None:
        raise PlatformError("there is no change to be reverted")
    instance = _instance(transition)
    with _anchored(transition, needed=False) as anchor, _staged(transition, instance, anchor) as stage:
        _revert(transition, stage, record)
    _calm(transition)
    _publish(transition, "reverted")
    transition.say(message("the change is reverted; the zone's file keeps it for the next boot"))


def _revert(transition: Transition, stage: Stage, record: Record) -> None:
    """Undo the steps that were begun, newest first.  All are tried; PlatformError names the first that fails, and then
    the record stays for another try.
    """
    layout = transition.layout
    failures: list[ZoneError] = []
    stage.lazily = True
    record = records.write(layout, record.but(phase=Phase.REVERTING))
    for step in reversed(record.steps[: record.begun]):
        if transition.step is not None:
            transition.step(step.op)
        try:
            live.perform(step.inverse, stage, transition.ledger)
        except (ZoneError, OSError) as error:
            failures.append(live.failure(error))
    if failures:
        first = PlatformError("cannot take back all of the change: {why}", why=failures[0].text)
        for other in failures[1:]:
            first.add_note(other.text)
        raise first
    snapshot.write(layout, record.old)
    instances.write(layout, _with_limits(_instance(transition), stage))
    records.forget(layout, transition.zonename)


# -- zsched -----------------------------------------------------------------------------------------------------


@contextmanager
def _anchored(transition: Transition, *, needed: bool = True) -> Iterator[Anchor]:
    """A connection to zsched.  Without one nothing is begun, but what was begun can be taken back."""
    try:
        anchor = Anchor.connect(transition.layout, transition.zonename)
    except OSError:
        if needed:
            raise PlatformError("the zone's zsched was killed: only a reboot can change the zone") from None
        yield Anchor.absent()
        return
    try:
        yield anchor
    finally:
        anchor.close()


@contextmanager
def _staged(transition: Transition, instance: Instance, anchor: Anchor) -> Iterator[Stage]:
    """The stage of the living zone, its root known."""
    if anchor.is_absent:
        if instance.init is None or not instance.init.alive:
            raise PlatformError("the zone's process 1 is gone")
        stage = alive.stage(transition, instance, alive.born_without_zsched(instance.init.pid))
        stage.sealed_only = True
        try:
            with alive.at_root(stage):
                yield stage
        finally:
            stage.close()
        return
    hello = anchor.hello()
    try:
        stage = alive.stage(transition, instance, alive.born(hello))
        with alive.at_root(stage):
            yield stage
    finally:
        hello.close()


def _calm(transition: Transition) -> None:
    """zsched need start nobody any more.  If it does not hear of it, it starts one that finds nothing to do."""
    with contextlib.suppress(OSError, ZoneError), _anchored(transition, needed=False) as anchor:
        anchor.wake(None)
