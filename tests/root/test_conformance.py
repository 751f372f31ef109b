"""The conformance kit: every shipped brand passes it, the tutorial's brands do, and a brand that is wrong does not.

Each run is a pytest of its own in a folder of its own, as an author with an installed zonemgr would start it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest

from tests.kit.debian import Debian
from tests.kit.instance import CHECKOUT
from tests.kit.wheels import add, brand_wheel, build, install
from zonemgr.brandkit import loader, verify
from zonemgr.store.paths import Layout

pytestmark = [pytest.mark.requires("root", "userns", "mount", "net", "cgroup"), pytest.mark.long]

FILES: Final = re.compile(r"^```\w+ file=(\S+)(?: mode=(\d+))?\n(.*?)^```$", re.DOTALL | re.MULTILINE)
TUTORIAL_LINES: Final = 60
# What proving a brand takes besides what every zone takes.
NEEDS: Final = {
    "busybox": [pytest.mark.requires("busybox")],
    "image": [pytest.mark.requires("busybox")],
    "debian": [pytest.mark.requires("debootstrap"), pytest.mark.host],
}
KIT: Final = ("-m", "pytest", "-p", "zonemgr.brandkit.conformance")
RUN_S: Final = 900
SHIPPED: Final = sorted(path.name for path in loader.shipped_folder().iterdir() if any(path.glob("brand.*")))


def prove(place: Path, *words: str, python: Path | None = None) -> dict[str, Any]:
    """The report of a run of the kit: this checkout's, or that which ``python`` has installed."""
    report = place / "report.json"
    done = subprocess.run(
        [str(python or sys.executable), *KIT, "-q", *words, "--conformance-report", str(report)],
        cwd=place,
        env={**os.environ, **({} if python else {"PYTHONPATH": str(CHECKOUT)})},
        capture_output=True,
        text=True,
        timeout=RUN_S,
    )
    assert report.exists(), done.stdout + done.stderr
    table: dict[str, Any] = json.loads(report.read_text())
    assert (done.returncode == 0) == (table["result"] != "failed"), done.stdout
    return table


def complaints(report: dict[str, Any]) -> list[str]:
    """What did not pass."""
    return [f"{step['name']}: {step['why']}" for step in report["steps"] if step["result"] != "passed"]


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=NEEDS.get(name, [])) for name in SHIPPED],
)
def test_a_shipped_brand_is_proved(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    lacking = verify.lacks(loader.load(name, Layout.at("/")))
    if lacking:
        report = prove(tmp_path, "--brand", name)
        assert report["result"] == "refused"
        assert report["steps"][0]["why"] == f"this host cannot run it: {lacking}"
        return
    words = ["--brand", name]
    if name == "labeled":
        words += ["--brand-config", "add attr name=label type=string value=zone-proof"]
    if name == "debian":  # its install has its own test, whose root is taken here
        debian: Debian = request.getfixturevalue("debian")
        words += ["--brand-folder", str(debian.brand(tmp_path))]
    report = prove(tmp_path, *words)
    assert complaints(report) == []
    assert report["result"] == "passed"


def _write_tutorial(place: Path) -> dict[str, str]:
    """The files of the tutorial, as they stand in it."""
    written = {}
    for name, mode, text in FILES.findall((CHECKOUT / "contrib/docs/brands.md").read_text()):
        file = place / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(int(mode or "644", 8))
        written[name] = text
    return written


def test_the_brand_of_the_tutorial_is_proved_as_a_package_beside_an_installed_zonemgr(tmp_path: Path) -> None:
    files = _write_tutorial(tmp_path)
    lines = sum(text.count("\n") for name, text in files.items() if name.startswith("shelf/"))
    assert lines <= TUTORIAL_LINES
    python = install(build(tmp_path), tmp_path / "installed") / "python"
    add(brand_wheel(tmp_path / "shelf", "Shelf", tmp_path), tmp_path / "installed")
    report = prove(tmp_path, "--brand", "shelf", python=python)
    assert complaints(report) == []
    assert (report["brand"], report["version"], report["result"]) == ("shelf", "1.0", "passed")


def test_the_brand_without_python_of_the_tutorial_is_proved(tmp_path: Path) -> None:
    _write_tutorial(tmp_path)
    report = prove(tmp_path, "--brand", "counted", "--brand-folder", str(tmp_path / "counted"))
    assert complaints(report) == []


WRONG: Final = """
import os
from zonemgr.brandkit import Brand

class Wrong(Brand):
    base = "native"
    name = "wrong"

    def postinstall(self, zone, arguments):
        os.chmod(zone.root, 0o777)
"""


def test_a_brand_that_leaves_its_root_open_to_all_does_not_pass(tmp_path: Path) -> None:
    (tmp_path / "wrong").mkdir()
    (tmp_path / "wrong/brand.py").write_text(WRONG)
    report = prove(tmp_path, "--brand-folder", str(tmp_path / "wrong"))
    assert report["result"] == "failed"
    results = {step["name"]: step["result"] for step in report["steps"]}
    assert (results["install"], results["boot"]) == ("failed", "not run")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "--brand NAME says which brand is to be proved"),
        (("--brand", "natve"), "brand 'natve' is not known (did you mean 'native'?)"),
        (("--brand-folder", "/nowhere"), "No such file or directory: '/nowhere'"),
    ],
)
def test_what_cannot_be_proved_is_said_at_once(tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    command = [sys.executable, *KIT, *words]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=RUN_S
    )
    assert done.returncode == 4
    assert said in done.stderr
