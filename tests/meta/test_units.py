"""systemd understands our units, and they do what their comments say."""

from __future__ import annotations

import configparser
import subprocess
from pathlib import Path
from typing import Final

import pytest

from tests.kit.instance import CHECKOUT

FOLDER: Final = CHECKOUT / "contrib/systemd"
UNITS: Final = sorted(path for path in FOLDER.iterdir() if path.suffix in (".path", ".service", ".socket"))


def read(name: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(FOLDER / name)
    return parser


@pytest.mark.requires("systemd_analyze")
def test_systemd_understands_every_unit(tmp_path: Path) -> None:
    for unit in UNITS:
        text = unit.read_text()
        for program in ("zonemgr-launcher", "zonemgr-delegate", "zonemgr"):  # which need not be installed here
            text = text.replace(f"/usr/local/bin/{program}", "/bin/true")
        (tmp_path / unit.name.replace("@", "@web")).write_text(text)
    words = ["systemd-analyze", "verify", "--man=no", *(str(path) for path in sorted(tmp_path.iterdir()))]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_no_stop_of_a_unit_kills_what_is_not_its_own() -> None:
    services = [unit.name for unit in UNITS if unit.suffix == ".service"]
    assert len(services) == 5
    for name in services:
        assert read(name)["Service"]["KillMode"] == "process", name


def test_zones_are_stopped_when_the_host_goes_down_and_at_no_other_time() -> None:
    assert "ExecStop" not in read("zonemgr.service")["Service"]
    last = read("zonemgr-shutdown.service")
    assert last["Unit"]["RefuseManualStop"] == "yes"
    assert "shutdown -a" in last["Service"]["ExecStop"]
    assert "zonemgr-shutdown.service" in read("zonemgr.service")["Unit"]["After"]


def test_a_zone_that_is_a_unit_ends_before_those_that_are_none() -> None:
    """Else "shutdown -a" takes it away from the units that come after it."""
    assert "zonemgr-shutdown.service" in read("zone@.service")["Unit"]["After"]


def test_the_time_for_stopping_is_within_the_time_that_systemd_gives() -> None:
    words = read("zonemgr-shutdown.service")["Service"]
    assert int(words["ExecStop"].split()[-1]) < int(words["TimeoutStopSec"])
