"""The rooms and who may import whom, read from the source: imports inside functions count too."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.kit.instance import CHECKOUT

PACKAGE: Final = CHECKOUT / "zonemgr"
BRANDS: Final = CHECKOUT / "brands"
LAYERS: Final = (
    {"errors", "capnames"},
    {"model", "linux"},
    {"store"},
    {"wire"},
    {"brandkit", "platform"},
    {"supervisor", "cli"},
    {"launcher"},
)
RANK: Final = {room: rank for rank, rooms in enumerate(LAYERS) for room in rooms}
FORBIDDEN: Final = {("cli", "platform"), ("cli", "supervisor")}
MODULES: Final = sorted(PACKAGE.rglob("*.py"))
# Without what runs in zones, which nothing of zonemgr imports.
BRAND_MODULES: Final = sorted(
    path for path in BRANDS.glob("*/**/*.py") if not {"tests", "process1"}.intersection(path.parts)
)


def module_name(path: Path) -> str:
    """``zonemgr/linux/cgroup/__init__.py`` -> ``zonemgr.linux.cgroup``."""
    parts = path.relative_to(CHECKOUT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """(line, absolute module name) of every import statement, wherever it stands."""
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package.pop()
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            yield node.lineno, stem
            for alias in node.names:
                yield node.lineno, f"{stem}.{alias.name}"


def room_of(name: str) -> str | None:
    """The room that a module is in; None for other packages and for the package itself."""
    parts = name.split(".")
    return parts[1] if parts[0] == "zonemgr" and len(parts) > 1 and parts[1] in RANK else None


def _fault(room: str, other: str) -> str:
    if room == other:
        return ""
    if (room, other) in FORBIDDEN:
        return "never"
    return "" if RANK[other] < RANK[room] else "upwards or sideways"


def test_every_folder_of_the_package_is_a_room() -> None:
    folders = {path.relative_to(PACKAGE).parts[0] for path in MODULES if path.parent != PACKAGE}
    assert folders <= set(RANK)


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_only_go_down(path: Path) -> None:
    room = room_of(module_name(path))
    if room is None:
        # The package and its __main__ belong to no room: the first imports nothing, the second is the program.
        allowed = {"launcher"} if path.name == "__main__.py" else set()
        assert {room_of(name) for _, name in imported(path)} - {None} <= allowed
        return
    faults = [
        f"{path.relative_to(CHECKOUT)}:{line}: {room} imports {name} ({why})"
        for line, name in imported(path)
        if (other := room_of(name)) and (why := _fault(room, other))
    ]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("path", [*MODULES, *BRAND_MODULES], ids=module_name)
def test_only_the_linux_room_touches_ctypes(path: Path) -> None:
    lines = [line for line, name in imported(path) if name.split(".")[0] in ("ctypes", "_ctypes", "cffi")]
    assert not lines or room_of(module_name(path)) == "linux", f"{path}: lines {lines}"


@pytest.mark.parametrize("path", BRAND_MODULES, ids=module_name)
def test_a_brand_imports_only_the_public_brand_api(path: Path) -> None:
    own = f"brands.{path.relative_to(BRANDS).parts[0]}"
    faults = [
        f"{path.relative_to(CHECKOUT)}:{line}: {name}"
        for line, name in imported(path)
        if name.split(".")[0] in ("zonemgr", "brands", "tests")
        and not (f"{name}.".startswith((f"{own}.", "zonemgr.brandkit.")))
    ]
    assert not faults, "\n".join(faults)
