"""The house rules that a program can check: linters, first lines, words, and what tests may not do."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.kit.instance import CHECKOUT

SOURCES: Final = sorted(
    path for room in ("zonemgr", "brands", "tests", "contrib") for path in (CHECKOUT / room).rglob("*.py")
)
TEXTS: Final = sorted(
    path
    for path in (*CHECKOUT.glob("*.*"), *(CHECKOUT / "contrib").rglob("*"), *(CHECKOUT / "brands").rglob("*"), *SOURCES)
    if path.is_file() and "__pycache__" not in path.parts
)
# Put together here, so that this file does not contain them.
MARKS: Final = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X|HA" + r"CK)\b")
FOLDERS_OF_ONE_MACHINE: Final = re.compile(r"(?<![\w.])/wo" + r"rk/|/tmp/z" + r"m\b")
# The loops that poll, each with a deadline; every other test waits through them.
MAY_SLEEP: Final = frozenset(("tests/kit/waiting.py", "tests/kit/leaks.py"))


def name(path: Path) -> str:
    return str(path.relative_to(CHECKOUT))


def run(*words: str) -> None:
    done = subprocess.run([sys.executable, "-m", *words], cwd=CHECKOUT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"


def test_ruff_finds_nothing() -> None:
    run("ruff", "check", "--quiet")


@pytest.mark.long
def test_mypy_finds_nothing() -> None:
    run("mypy", "--no-error-summary")


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_every_module_says_what_it_is_for(path: Path) -> None:
    text = ast.get_docstring(ast.parse(path.read_text()))
    assert text, f"{name(path)} has no docstring"
    assert len(text.splitlines()[0]) > 15, f"{name(path)} says nothing in its first line"


@pytest.mark.parametrize("path", TEXTS, ids=name)
def test_no_text_holds_a_mark_of_unfinished_work(path: Path) -> None:
    try:
        text = path.read_text()
    except UnicodeDecodeError:
        return
    found = [*MARKS.findall(text), *FOLDERS_OF_ONE_MACHINE.findall(text)]
    assert not found, f"{name(path)}: {found}"


@pytest.mark.parametrize("path", [path for path in SOURCES if "tests" in path.parts], ids=name)
def test_tests_neither_sleep_nor_mock(path: Path) -> None:
    tree = ast.parse(path.read_text())
    calls = [ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)]
    modules = [
        alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    ] + [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert not [module for module in modules if module.startswith("unittest")]
    assert name(path) in MAY_SLEEP or "time.sleep" not in calls, f"{name(path)} sleeps; tests/kit/waiting.py waits"
