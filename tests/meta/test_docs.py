"""The documents say what is so: what they name exists, and what is made from a table is in step with it."""

from __future__ import annotations

import configparser
import re
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Final

import pytest

from tests.kit.instance import CHECKOUT
from zonemgr.cli.main import VERBS
from zonemgr.model.states import State

DOCUMENTS: Final = sorted(
    [*CHECKOUT.glob("*.md"), *(CHECKOUT / "contrib").rglob("*.md"), *(CHECKOUT / "brands").rglob("*.md")]
)
CONFIG: Final = configparser.ConfigParser()
CONFIG.read(CHECKOUT / "setup.cfg")

OPTIONS: Final = r"(?:-[-\w]+ (?:/\S+ )?)*"
COMMANDS: Final = re.compile(rf"(?:^ {{4}}|`)(?:\.venv/bin/python -m )?zonemgr {OPTIONS}([a-z]+)", re.MULTILINE)
LINKS: Final = re.compile(r"\]\(([^)#:]+)\)")
PATHS: Final = re.compile(r"`((?:contrib|tests|zonemgr|brands|\.ci)/[\w./-]*)")


def name(path: Path) -> str:
    return str(path.relative_to(CHECKOUT))


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_every_verb_in_a_document_exists(path: Path) -> None:
    verbs = set(COMMANDS.findall(path.read_text()))
    assert verbs <= set(VERBS), f"{name(path)} names {verbs - set(VERBS)}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_every_file_that_a_document_names_exists(path: Path) -> None:
    text = path.read_text()
    links = [(path.parent, link) for link in LINKS.findall(text)]
    places = [(CHECKOUT, place) for place in PATHS.findall(text)]
    missing = [place for base, place in (*links, *places) if not (base / place).exists()]
    assert not missing, f"{name(path)} names {missing}"


def test_the_readme_begins_with_the_two_commands() -> None:
    indented = re.findall(r"^ {4}(\S.*)$", (CHECKOUT / "README.md").read_text(), re.MULTILINE)
    assert indented[:2] == ["contrib/quickstart", "contrib/test"]


def test_every_verb_is_in_the_readme() -> None:
    text = (CHECKOUT / "README.md").read_text()
    assert [verb for verb in VERBS if not re.search(rf"\b{verb}\b", text)] == []


def made_by(script: str) -> str:
    """The document that a script of contrib/docs makes."""
    loader = SourceFileLoader(script, str(CHECKOUT / "contrib/docs" / script))
    spec = spec_from_loader(loader.name, loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    return str(module.text())


def test_the_table_of_attacks_is_in_step_with_the_tests() -> None:
    assert (CHECKOUT / "contrib/docs/security.md").read_text() == made_by("security"), "run contrib/docs/security"


def test_the_table_of_states_is_in_step_with_the_grid() -> None:
    text = made_by("states")
    assert (CHECKOUT / "contrib/docs/states.md").read_text() == text, "run contrib/docs/states"
    for state in State:
        assert f"| {state.label} |" in text


def test_the_document_of_answers_in_json_is_in_step_with_their_table() -> None:
    assert (CHECKOUT / "contrib/docs/json.md").read_text() == made_by("json"), "run contrib/docs/json"


def test_each_dependency_has_its_reason_and_its_cost() -> None:
    text = (CHECKOUT / "HACKING.md").read_text()
    rows = dict(re.findall(r"^\| ([\w-]+) \|.*\| (.* ms, .* MB) \|$", text, re.MULTILINE))
    wanted = {line.split()[0] for line in CONFIG["options"]["install_requires"].strip().splitlines()}
    assert set(rows) == wanted
    tests = CONFIG["options.extras_require"]["test"].strip().splitlines()
    assert [line for line in tests if line.split()[0] not in text] == []


def test_hacking_is_one_page() -> None:
    assert len((CHECKOUT / "HACKING.md").read_text().splitlines()) <= 70
