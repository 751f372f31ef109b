"""apply -f: a set of zones brought to what a folder says, or not touched at all."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.kit.program import Zonemgr
from zonemgr.model.states import State
from zonemgr.store import zones
from zonemgr.store.paths import Layout


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "declared"
    folder.mkdir()
    return folder


def declare(folder: Path, name: str, text: str) -> None:
    (folder / f"{name}.toml").write_text(text)


def link(last: int) -> str:
    return f'[[net]]\nanet = "zbr7"\naddress = "10.91.7.{last}/24"\n'


def test_zones_are_created_changed_and_kept(zonemgr: Zonemgr, layout: Layout, folder: Path) -> None:
    declare(folder, "web", "# the web\nautoboot = true\n" + link(2))
    declare(folder, "db", "max-lwps = 500\n")
    answer = zonemgr("apply", "-f", str(folder), "-F")
    assert answer.code == 0
    assert "create web\n" in answer.out
    assert answer.out.endswith("2 to create\n")
    assert layout.config("web").read_text().startswith("# the web\n")
    declare(folder, "web", "# the web\nautoboot = false\n" + link(3))
    answer = zonemgr("apply", "-f", str(folder), "-F")
    assert answer.out == (
        "keep db\nchange web\n    autoboot: true -> false\n    net host0 address: [10.91.7.2/24] -> [10.91.7.3/24]\n"
        "1 to change, 1 to keep\n"
    )
    assert zones.load(layout, "web").net[0].address == ("10.91.7.3/24",)
    assert zonemgr("apply", "-f", str(folder)).out == "keep db\nkeep web\n2 to keep\n"


def test_a_dry_run_and_a_missing_answer_change_nothing(zonemgr: Zonemgr, layout: Layout, folder: Path) -> None:
    declare(folder, "web", "")
    assert zonemgr("apply", "-f", str(folder), "--dry-run").code == 0
    answer = zonemgr("apply", "-f", str(folder))
    assert (answer.code, "needs -F" in answer.err) == (2, True)
    assert zones.names(layout) == []


def test_all_faults_of_all_files_are_told_at_once_and_nothing_is_done(
    zonemgr: Zonemgr, layout: Layout, folder: Path
) -> None:
    declare(folder, "good", "autoboot = true\n")
    declare(folder, "typo", "\nautobot = true\n")
    declare(folder, "a b", "")
    declare(folder, "other", 'zonename = "db"\n')
    os.mkfifo(folder / "pipe.toml")
    answer = zonemgr("apply", "-f", str(folder), "-F")
    assert answer.code == 1
    for text in ("typo.toml: line 2: unknown property 'autobot'", "Bogus zone name", "zonename is 'db'", "not a plain"):
        assert text in answer.err
    assert zones.names(layout) == []


def test_the_set_as_a_whole_must_be_possible(zonemgr: Zonemgr, layout: Layout, folder: Path) -> None:
    declare(folder, "web", link(2))
    declare(folder, "db", link(2))
    assert "10.91.7.2 is configured in zone 'web' too" in zonemgr("apply", "-f", str(folder), "-F").err
    declare(folder, "db", 'brand = "no-such-brand"\n')
    assert "brand 'no-such-brand' is not known" in zonemgr("apply", "-f", str(folder), "-F").err
    assert zones.names(layout) == []


def test_two_zones_swap_their_addresses(zonemgr: Zonemgr, layout: Layout, folder: Path) -> None:
    for first, second in ((2, 3), (3, 2)):
        declare(folder, "web", link(first))
        declare(folder, "db", link(second))
        assert zonemgr("apply", "-f", str(folder), "-F").code == 0
    assert zones.load(layout, "db").net[0].address == ("10.91.7.2/24",)


def test_zones_that_are_not_named_stay_unless_it_is_asked_for(zonemgr: Zonemgr, layout: Layout, folder: Path) -> None:
    for name in ("old", "full"):
        zonemgr("create", name, "--no-net")
    declare(folder, "web", "")
    assert zonemgr("apply", "-f", str(folder), "-F").code == 0
    assert zones.names(layout) == ["full", "old", "web"]
    zones.set_state(layout, "full", State.INSTALLED)
    answer = zonemgr("apply", "-f", str(folder), "-F", "--delete")
    assert (answer.code, "zone 'full': is installed, and so is not deleted" in answer.err) == (1, True)
    declare(folder, "full", "")
    made = json.loads(zonemgr("--json", "apply", "-f", str(folder), "-F", "--delete").out)
    assert [(zone["zonename"], zone["action"]) for zone in made["zones"]] == [
        ("full", "keep"), ("old", "delete"), ("web", "keep"),
    ]  # fmt: skip
    assert zones.names(layout) == ["full", "web"]


def test_what_is_frozen_by_an_installation_stays(zonemgr: Zonemgr, layout: Layout, folder: Path) -> None:
    zonemgr("create", "web", "--no-net")
    zones.set_state(layout, "web", State.INSTALLED)
    declare(folder, "web", 'zonepath = "/elsewhere"\n')
    assert "already installed; set zonepath not allowed" in zonemgr("apply", "-f", str(folder), "-F").err


def test_a_broken_file_is_repaired(zonemgr: Zonemgr, layout: Layout, folder: Path) -> None:
    zonemgr("create", "web", "--no-net")
    layout.config("web").write_text("nonsense = [\n")
    declare(folder, "web", "autoboot = true\n")
    assert zonemgr("apply", "-f", str(folder), "-F").code == 0
    assert zones.load(layout, "web").autoboot


@pytest.mark.parametrize("place", ["nothing-here", "a/deep/nothing.toml"])
def test_a_place_that_is_not_there_is_named(zonemgr: Zonemgr, tmp_path: Path, place: str) -> None:
    answer = zonemgr("apply", "-f", str(tmp_path / place))
    assert (answer.code, place in answer.err) == (1, True)
