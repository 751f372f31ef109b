"""What an installation gets: every package, every file of every brand, the interface files, working entry points."""

from __future__ import annotations

import configparser
import importlib
import os
import stat
import zipfile
from pathlib import Path
from typing import Final

import pytest

from tests.kit.instance import CHECKOUT
from tests.kit.wheels import build

CONFIG: Final = configparser.ConfigParser()
CONFIG.read(CHECKOUT / "setup.cfg")


def _files(room: str) -> set[str]:
    return {
        str(path.relative_to(CHECKOUT))
        for path in (CHECKOUT / room).rglob("*")
        if path.is_file() and not {"__pycache__", ".mypy_cache", ".hypothesis"} & set(path.parts)
    }


def test_setup_cfg_lists_every_package() -> None:
    folders = {path.parent.relative_to(CHECKOUT) for path in (CHECKOUT / "zonemgr").rglob("*.py")}
    wanted = {".".join(folder.parts) for folder in folders} | {"zonemgr.brands"}
    assert set(CONFIG["options"]["packages"].split()) == wanted


def test_every_package_says_that_it_is_one() -> None:
    folders = {path.parent for path in (CHECKOUT / "zonemgr").rglob("*.py")}
    assert [folder for folder in sorted(folders) if not (folder / "__init__.py").is_file()] == []


def test_every_command_can_be_found() -> None:
    for line in CONFIG["options.entry_points"]["console_scripts"].split("\n"):
        if line.strip():
            module, _, function = line.partition("=")[2].strip().partition(":")
            assert callable(getattr(importlib.import_module(module), function)), line


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("wheel"))


def test_the_wheel_holds_every_file_of_the_package_and_of_every_brand(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert _files("zonemgr") <= names
    assert {f"zonemgr/{name}" for name in _files("brands")} <= names
    assert not [name for name in names if "__pycache__" in name or name.startswith(("tests/", "contrib/"))]


def test_what_is_executable_stays_so_in_the_wheel(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        modes = {info.filename: info.external_attr >> 16 for info in archive.infolist()}
    programs = {name for name in _files("brands") if os.access(CHECKOUT / name, os.X_OK)}
    assert programs, "the native brand's init is a program"
    assert [name for name in programs if not modes[f"zonemgr/{name}"] & stat.S_IXUSR] == []


def test_the_scripts_of_contrib_are_executable() -> None:
    scripts = [path for path in (CHECKOUT / "contrib").rglob("*") if path.is_file() and _has_interpreter(path)]
    assert CHECKOUT / "contrib/quickstart" in scripts
    assert [str(path) for path in (*scripts, CHECKOUT / ".ci/run") if not os.access(path, os.X_OK)] == []


def _has_interpreter(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"#!"
