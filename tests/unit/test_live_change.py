"""What differs between configurations and between plans, and what a living zone is brought through."""

from __future__ import annotations

import dataclasses

import pytest

from zonemgr.model import changes, delta, plan, schema
from zonemgr.model.changes import WHOLE
from zonemgr.model.delta import Step
from zonemgr.model.plan import Live
from zonemgr.model.schema import When
from zonemgr.model.zone import CappedMemory, DeviceResource, FsResource, NetResource, Zone
from zonemgr.platform import live

SRV = FsResource("/srv", "/host/srv", "bind", options=("ro",))
MEMORY = CappedMemory(physical=1 << 20)
OLD = Zone("web", "/zones/web", fs=(SRV,), net=(NetResource(anet="zbr0"),), capped_memory=MEMORY)


def labels(old: Zone, new: Zone) -> list[str]:
    return [change.label for change in changes.between(old, new)]


def test_equal_configurations_do_not_differ() -> None:
    assert changes.between(OLD, OLD) == ()
    assert changes.merged(OLD, OLD, ()) == OLD


def test_each_difference_is_named_with_its_time() -> None:
    new = dataclasses.replace(
        OLD,
        bootargs="-v",
        max_lwps=300,
        fs=(dataclasses.replace(SRV, options=()), FsResource("/opt", "/host/opt", "bind", options=("ro",))),
        net=(),
        device=(DeviceResource("/dev/fuse"),),
        capped_memory=CappedMemory(physical=1 << 20, swap=1 << 30),
    )
    found = {change.label: change for change in changes.between(OLD, new)}
    assert list(found) == [
        "bootargs", "max-lwps", "fs /srv options", "fs /opt", "net host0", "device /dev/fuse", "capped-memory swap",
    ]  # fmt: skip
    assert found["bootargs"].when is When.NEXT_BOOT
    assert {change.when for label, change in found.items() if label != "bootargs"} == {When.LIVE}
    assert (found["fs /opt"].name, found["fs /opt"].old) == (WHOLE, None)


def test_a_part_of_the_differences_can_be_merged_and_all_of_them_are_the_new_configuration() -> None:
    new = dataclasses.replace(
        OLD, autoboot=True, cpu_shares=7, fs=(FsResource("/opt", "/o", "bind"), SRV), net=(), capped_memory=None
    )
    found = changes.between(OLD, new)
    assert changes.merged(OLD, new, found) == new
    for change in found:
        part = changes.merged(OLD, new, [change])
        assert [one.label for one in changes.between(OLD, part)] == [change.label]
        assert labels(part, new) == [other.label for other in found if other != change]


def test_what_has_no_effect_yet_is_not_called_live() -> None:
    (change,) = changes.between(OLD, dataclasses.replace(OLD, boot_priority="high"))
    assert change.when is (When.LIVE if _row("boot-priority").effect else When.NEXT_BOOT)


def _row(name: str) -> schema.Property:
    row = schema.global_property(name)
    assert row is not None
    return row


# -- plans ------------------------------------------------------------------------------------------------------

VETH = plan.Veth("vb-web", "host0", "zbr0", "zone-web")
ADDRESS = plan.ConfigureLink("host0", ("10.0.0.2/24",), ())
PARENT, CHILD = plan.Bind("/a", "/srv"), plan.Bind("/b", "/srv/data")
PROC = plan.KernelFileSystem("proc", "/proc")
PLAN: list[plan.Op] = [PROC, VETH, ADDRESS, PARENT, CHILD]


def steps(old: list[plan.Op], new: list[plan.Op]) -> list[tuple[plan.Op | None, plan.Op | None]]:
    return [(step.old, step.new) for step in delta.between(old, new).steps]


def test_a_limit_is_rewritten_a_mount_is_made_anew() -> None:
    limits = [plan.SetLimits(pids=number) for number in (100, 200)]
    assert steps([limits[0]], [limits[1]]) == [(limits[0], limits[1])]
    other = dataclasses.replace(CHILD, options=("ro",))
    assert steps([PARENT, CHILD], [PARENT, other]) == [(CHILD, None), (None, other)]


def test_what_rests_on_a_thing_that_goes_is_taken_away_before_it_and_made_after_it() -> None:
    other = dataclasses.replace(PARENT, special="/c")
    assert steps([PARENT, CHILD], [other, CHILD]) == [(CHILD, None), (PARENT, None), (None, other), (None, CHILD)]
    assert steps([CHILD], [PARENT, CHILD]) == [(CHILD, None), (None, PARENT), (None, CHILD)]
    moved = dataclasses.replace(VETH, vlan=7)
    assert steps(PLAN, [PROC, moved, *PLAN[2:]]) == [(ADDRESS, None), (VETH, None), (None, moved), (None, ADDRESS)]


def test_what_only_a_boot_can_change_is_named() -> None:
    root = plan.Bind("/everything", "/proc-and-more")
    assert delta.between(PLAN, [*PLAN, plan.HostId(7)]).impossible == (plan.HostId(7),)
    assert delta.between(PLAN, [op for op in PLAN if op is not PARENT], fixed=[PARENT]).impossible == (PARENT,)
    assert delta.between(PLAN, [*PLAN, root]).impossible == ()
    over = dataclasses.replace(root, directory="/pro")
    below = plan.KernelFileSystem("proc", "/pro/c")
    assert delta.between([below], [over, below]).impossible == (below,)


def test_a_second_mount_on_the_same_folder_waits_for_a_boot() -> None:
    assert delta.between([PARENT], [PARENT, dataclasses.replace(PARENT, special="/c")]).impossible


@pytest.mark.parametrize("step", [Step(VETH, None), Step(None, PARENT), Step(ADDRESS, ADDRESS)], ids=str)
def test_steps_survive_json_and_have_an_inverse(step: Step) -> None:
    assert delta.step_from_json(step.to_json()) == step
    assert step.inverse.inverse == step
    assert step.describe()


def test_every_op_that_is_called_live_has_a_rule() -> None:
    kinds = {kind for kind in plan.Op.__subclasses__() if kind.__module__ == plan.__name__}
    assert {kind for kind in kinds if kind.live is not Live.NEVER} == set(live.RULES)
    assert {kind for kind, rule in live.RULES.items() if rule.rewrite} == {
        kind for kind in kinds if kind.live is Live.REWRITE
    }
