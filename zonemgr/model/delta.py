"""What leads from the plan of a living zone to another plan, without a reboot.

Pure.  A delta is a list of steps, in the order in which they are done; each has an inverse, so that a delta can be
taken back from wherever it stopped.  What a kernel does not let us change in a living zone is named, not tried.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from zonemgr.model import plan
from zonemgr.model.plan import Live, Op


@dataclass(frozen=True, slots=True)
class Step:
    """``old`` alone is taken away, ``new`` alone is made, both: rewritten in place."""

    old: Op | None
    new: Op | None

    @property
    def op(self) -> Op:
        """The thing that the step is about."""
        found = self.new or self.old
        assert found is not None
        return found

    @property
    def inverse(self) -> Step:
        """The step back."""
        return Step(self.new, self.old)

    def describe(self) -> str:
        """What the step does, in the operator's words."""
        if self.new is None:
            return f"undo: {self.op.describe()}"
        return self.new.describe() if self.old is None else f"change: {self.new.describe()}"

    def to_json(self) -> dict[str, Any]:
        return {"old": self.old and self.old.to_json(), "new": self.new and self.new.to_json()}


def step_from_json(table: dict[str, Any]) -> Step:
    """The inverse of ``Step.to_json``."""
    old, new = (plan.from_json(table[side]) if table[side] else None for side in ("old", "new"))
    return Step(old, new)


@dataclass(frozen=True, slots=True)
class Delta:
    """``impossible``: what only the next boot can change."""

    steps: tuple[Step, ...]
    impossible: tuple[Op, ...] = ()

    @property
    def identities(self) -> frozenset[tuple[object, ...]]:
        """What the steps are about."""
        return frozenset(step.op.identity for step in self.steps)


def between(old: Sequence[Op], new: Sequence[Op], fixed: Iterable[Op] = ()) -> Delta:
    """The delta from one plan to another.  ``fixed`` are ops of the old one that cannot be touched where they are.

    Things are taken away newest first, then rewritten, then made in the order of the new plan.  What rests on a thing
    that is taken away (a mount below it, a link's addresses) is taken away before it and made anew.
    """
    before, after = ({op.identity: op for op in ops} for ops in (old, new))
    remade = _remade(old, before, after)
    taken = [op for op in reversed(old) if op.identity in remade or op.identity not in after]
    made = [op for op in new if op.identity in remade or op.identity not in before]
    rewritten = [
        Step(before[op.identity], op)
        for op in new
        if op.identity in before and op.identity not in remade and before[op.identity] != op
    ]
    untouchable = {op.identity for op in fixed} | _twice(old) | _twice(new)
    touched = (*taken, *(step.op for step in rewritten), *made)
    stuck = [op for op in touched if op.live is Live.NEVER or op.identity in untouchable]
    steps = (*(Step(op, None) for op in taken), *rewritten, *(Step(None, op) for op in made))
    return Delta(steps, tuple(dict.fromkeys(stuck)))


def _twice(ops: Sequence[Op]) -> set[tuple[object, ...]]:
    """What a plan has two of, one on top of the other: which of them is meant cannot be told."""
    return {identity for identity, count in Counter(op.identity for op in ops).items() if count > 1}


def _remade(
    old: Sequence[Op], before: dict[tuple[object, ...], Op], after: dict[tuple[object, ...], Op]
) -> set[tuple[object, ...]]:
    """Identities of both plans that must be taken away and made anew."""
    both = before.keys() & after.keys()
    remade = {
        identity
        for identity in both
        if before[identity] != after[identity] and Live.REMAKE in (before[identity].live, after[identity].live)
    }
    disturbed = [op for identity, op in before.items() if identity in remade or identity not in after]
    disturbed += [op for identity, op in after.items() if identity not in before]
    while disturbed:
        below = disturbed.pop()
        for op in old:
            if op.identity in both and op.identity not in remade and op.rests_on(below):
                remade.add(op.identity)
                disturbed.append(op)
    return remade
