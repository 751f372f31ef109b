"""Messages in the caller's language: the catalogue is whole, and both the command line and the supervisor speak it."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from typing import Any

import pytest

from tests.kit.instance import CHECKOUT, Instance
from zonemgr import language
from zonemgr.errors import message, speaking

GERMAN = "de_DE.UTF-8"


@pytest.fixture(scope="module")
def po() -> Any:
    """The program that keeps catalogues, as a module."""
    spec = spec_from_loader("po", SourceFileLoader("po", str(CHECKOUT / "contrib/po")))
    assert spec and spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def german() -> dict[str, str]:
    return dict(language.entries((language.FOLDER / "de.po").read_text()))


def fields(form: str) -> set[str]:
    return set(re.findall(r"\{[^{}]*\}", form))


def test_the_german_catalogue_is_whole(po: Any) -> None:
    catalogue = german()
    assert [text for text in po.messages() if not catalogue.get(text)] == [], "run contrib/po and translate these"


@pytest.mark.parametrize(
    ("word", "code"), [("--help", 0), ("-h", 0), ("--nosuch", 2), ("../de", 2), ("", 2)]
)
def test_only_a_language_gets_a_catalogue(word: str, code: int) -> None:
    before = sorted(language.FOLDER.iterdir())
    done = subprocess.run([CHECKOUT / "contrib/po", word], capture_output=True, text=True)
    made = sorted(set(language.FOLDER.iterdir()) - set(before))
    for path in made:
        path.unlink()
    assert (done.returncode, made) == (code, [])
    assert "usage: contrib/po [LANGUAGE...]" in (done.stderr if code else done.stdout)


def test_a_translation_has_the_fields_of_its_message() -> None:
    assert [(text, other) for text, other in german().items() if fields(text) != fields(other)] == []


@pytest.mark.parametrize(
    ("locale", "expected"),
    [
        (GERMAN, "läuft nicht"), ("de", "läuft nicht"), ("de_AT@euro", "läuft nicht"), ("C", "not running"),
        ("en_GB.UTF-8", "not running"), ("xx_YY", "not running"), ("../../de", "not running"), (None, "not running"),
    ],
)  # fmt: skip
def test_the_locale_decides(locale: str | None, expected: str) -> None:
    with speaking(locale):
        assert message("not running") == expected
    assert message("not running") == "not running"


def run(instance: Instance, *words: str, locale: str = GERMAN) -> subprocess.CompletedProcess[str]:
    env = {key: value for key, value in instance.env.items() if not key.startswith("LC_")}
    return subprocess.run(
        [sys.executable, "-m", "zonemgr", *words],
        env={**env, "PYTHONPATH": str(CHECKOUT), "LANG": locale, "PYTHONUTF8": "1"},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


@pytest.mark.requires("root", "userns", "net", "cgroup")
def test_the_command_line_and_the_supervisor_speak_the_caller_s_language(instance: Instance) -> None:
    name = instance.installed()
    assert run(instance, "create", name).stderr == f"zonemgr: Zone »{name}«: Zonenname wird schon verwendet\n"
    assert "Keine solche Option: »--nonsense«" in run(instance, "list", "--nonsense").stderr
    assert "autoboot muss true oder false sein" in run(instance, "config", name, "set", "autoboot=x").stderr
    assert run(instance, "boot", name).returncode == 0
    # Said by the supervisor, which other callers ask in other languages.
    assert "already booted" in run(instance, "boot", name, locale="C").stderr
    assert "läuft" in run(instance, "boot", name).stderr
    assert "already booted" in run(instance, "boot", name, locale="fr_FR.UTF-8").stderr
    assert run(instance, "halt", name).returncode == 0
