"""What is made from the program is in step with it: manual pages, and completion in a real shell."""

from __future__ import annotations

import os
import subprocess
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

import pytest

from tests.kit.instance import CHECKOUT
from zonemgr.cli.main import VERBS
from zonemgr.store.paths import ROOT_VARIABLE, Layout

PAGES = CHECKOUT / "contrib/man"


def test_the_manual_pages_are_in_step() -> None:
    spec = spec_from_loader("pages", SourceFileLoader("pages", str(PAGES / "generate")))
    assert spec and spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    made = module.pages()
    there = {path.name: path.read_text() for path in (*PAGES.glob("*.8"), *PAGES.glob("*.5"))}
    assert [name for name, text in made.items() if there.get(name) != text] == [], "run contrib/man/generate"
    assert set(there) == set(made)
    assert {f"zonemgr-{verb}.8" for verb in VERBS} <= set(made)


# What bash does when somebody presses tab.
_TAB = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
compopt() { :; }
_zonemgr_completion zonemgr
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.mark.parametrize(
    ("line", "expected", "absent"),
    [
        ("zonemgr ins", {"install"}, {"boot"}),
        ("zonemgr boot ", {"web", "db"}, {"install"}),
        ("zonemgr boot web ", {"db"}, {"web"}),
        ("zonemgr create x -b ", {"native", "busybox"}, {"web"}),
        ("zonemgr create x -t ", {"small", "web"}, {"native"}),
        ("zonemgr create x autob", {"autoboot="}, {"bootargs="}),
        ("zonemgr create ", set(), {"web"}),
        ("zonemgr config web ", {"set", "export"}, {"fs"}),
        ("zonemgr config web set cpu", {"cpu-shares="}, {"autoboot="}),
        ("zonemgr config web add ", {"fs", "net"}, {"dir="}),
        ("zonemgr config web add fs ", {"dir=", "special="}, {"anet="}),
        ("zonemgr plan ", {"boot", "halt"}, {"web"}),
        ("zonemgr list --", {"--json", "--root"}, {"web"}),
    ],
)
def test_bash_completes(tmp_path: Path, line: str, expected: set[str], absent: set[str]) -> None:
    layout = Layout.at(tmp_path)
    for place in (layout.config("web"), layout.config("db"), layout.etc / "templates/small.toml"):
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("")
    done = subprocess.run(
        ["bash", "-c", _TAB, "bash", str(CHECKOUT / "contrib/completions/zonemgr.bash"), *line.split(" ")],
        env={"PATH": f"{CHECKOUT}/.venv/bin:{os.environ['PATH']}", ROOT_VARIABLE: str(tmp_path), "HOME": str(tmp_path)},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.stderr == ""
    found = set(done.stdout.split())
    assert expected <= found
    assert not absent & found
