"""All index entries at once: what is remembered is what would be read, whatever happened to the files since."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from zonemgr.linux.procfs import start_time
from zonemgr.model.states import State
from zonemgr.store import entries, instance, observe, zones
from zonemgr.store.paths import Layout

COUNT = entries.WORTH_WRITING + 2
NAMES = [f"z{number}" for number in range(COUNT)]


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout.at(tmp_path)
    for folder in (layout.run, layout.config("x").parent):
        folder.mkdir(parents=True)
    for name in NAMES:
        layout.config(name).write_text('brand = "native"\n')
    zones.set_state(layout, "z1", State.INCOMPLETE)
    return layout


def memory(layout: Layout) -> Path:
    return layout.run / "entries.json"


def as_read(layout: Layout) -> dict[str, zones.Entry]:
    return {name: zones.read_entry(layout, name) for name in zones.names(layout)}


def test_what_is_remembered_is_what_would_be_read(layout: Layout) -> None:
    first = entries.read_all(layout)
    assert first == as_read(layout) and set(first) == set(NAMES)
    assert memory(layout).exists()
    assert entries.read_all(layout) == first


def test_nothing_is_read_twice(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    first = entries.read_all(layout)
    monkeypatch.setattr(zones, "read_entry", lambda *_: pytest.fail("it was read again"))
    assert entries.read_all(layout) == first


def test_a_change_of_either_file_is_seen_at_once(layout: Layout) -> None:
    entries.read_all(layout)
    layout.config("z2").write_text('brand = "busybox"\n')
    zones.set_state(layout, "z3", State.INCOMPLETE)
    layout.config("z4").unlink()
    layout.config("new").write_text('brand = "native"\n')
    found = entries.read_all(layout)
    assert found == as_read(layout)
    assert found["z2"].brand == "busybox" and found["z3"].state is State.INCOMPLETE
    assert "z4" not in found and "new" in found
    # A zone whose file is gone while its root is there is not forgotten.
    layout.config("z3").unlink()
    assert entries.read_all(layout)["z3"].state is State.INCOMPLETE


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": "other", "zones": 3}', '{"zones": {"z1": 7}}'])
def test_a_damaged_memory_is_made_anew(layout: Layout, text: str) -> None:
    memory(layout).write_text(text)
    assert entries.read_all(layout) == as_read(layout)
    assert len(entries.read_all(layout)) == COUNT


def test_what_is_no_zones_file_is_passed_over(layout: Layout) -> None:
    layout.config(".hidden").write_text("")
    layout.config("bad name").write_text("")
    assert set(entries.read_all(layout)) == set(NAMES)


def linked(address: str) -> str:
    return f'brand = "native"\n[[net]]\nanet = "zbr0"\naddress = "{address}"\n'


def test_what_zones_claim_is_remembered_too(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    layout.config("z5").write_text(linked("10.0.0.5/24"))
    assert entries.claims(layout) == {"10.0.0.5": {"z5"}}
    monkeypatch.setattr(zones, "load", lambda *_: pytest.fail("a configuration was read again"))
    assert entries.claims(layout) == {"10.0.0.5": {"z5"}}


def test_a_claim_counts_though_its_zones_record_is_damaged(layout: Layout) -> None:
    layout.config("z1").write_text(linked("10.0.0.5/24"))
    layout.state("z1").write_text("{")
    assert entries.claims(layout) == {"10.0.0.5": {"z1"}}


def test_a_list_reads_no_configuration_of_a_zone_that_lives(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    me = instance.Process(os.getpid(), start_time(os.getpid()) or 0)
    instance.write(
        layout,
        instance.Instance(
            "z7", "1", 3, instance.Mode.BOOT, instance.Phase.RUNNING, 0, False, "/root", "/nowhere", init=me
        ),
    )
    seen = {zone.zonename: zone for zone in observe.all_zones(layout)}
    assert seen["z7"] == observe.observe(layout, "z7") and seen["z7"].state is State.RUNNING
    monkeypatch.setattr(zones, "load", lambda *_: pytest.fail("a configuration was read again"))
    assert {zone.zonename: zone for zone in observe.all_zones(layout)} == seen
