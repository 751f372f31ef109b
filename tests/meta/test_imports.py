"""Imports are a budget: what each program loads, measured in a process of its own at the moment it ends."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import pytest

from tests.kit.instance import CHECKOUT, Instance
from zonemgr.cli.main import VERBS

# Runs the program and writes down its modules when it leaves, by whichever way out; forks of it write nothing.
_PROBE: Final = """
import os, sys
me, leave, place = os.getpid(), os._exit, sys.argv.pop(1)
def note():
    if os.getpid() == me:
        with open(place, "w") as file:
            file.write("\\n".join(sorted(sys.modules)))
def noted_exit(status):
    note()
    leave(status)
os._exit = noted_exit
import atexit
atexit.register(note)
from zonemgr.cli.main import main
main(sys.argv[1:])
"""

# What costs more than the kernel's whole work for a zone; own modules that no client has business with.
HEAVY: Final = frozenset(
    (
        "asyncio",
        "cgroupspy",
        "concurrent",
        "email",
        "http",
        "importlib.metadata",
        "logging",
        "multiprocessing",
        "pydantic",
        "pyroute2",
        "pyseccomp",
        "rich",
        "seccomp",
        "sqlite3",
        "ssl",
        "subprocess",
        "tempfile",
        "tomlkit",
        "unittest",
        "xml",
        "zonemgr.brands",
        "zonemgr.platform",
        "zonemgr.supervisor",
    )
)
# Only who enters a zone binds libc.
CLIENT: Final = HEAVY | {"ctypes", "prctl", "hashlib", "zonemgr.brandkit"}
OTHERS: Final = frozenset(("click",))  # packages of others that a thin client may load


def modules_of(words: list[str], place: Path, env: Mapping[str, str]) -> set[str]:
    """What ``zonemgr WORDS`` has loaded when it ends; it must succeed."""
    done = subprocess.run(
        [sys.executable, "-c", _PROBE, str(place), *words],
        env={**env, "PYTHONPATH": str(CHECKOUT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return set(place.read_text().split())


def loaded(modules: set[str], names: frozenset[str]) -> list[str]:
    """Those of ``names`` (modules or packages) that are among the modules."""
    return sorted(name for name in names if name in modules or any(m.startswith(name + ".") for m in modules))


def strangers(modules: set[str]) -> set[str]:
    """Top-level packages that are neither ours nor the standard library's, nor brought by the interpreter's start."""
    bare = subprocess.run(
        [sys.executable, "-c", "import sys; print('\\n'.join(sys.modules))"],
        capture_output=True,
        text=True,
        check=True,
    )
    start = {name.split(".")[0] for name in bare.stdout.split()}
    return {name.split(".")[0] for name in modules} - start - sys.stdlib_module_names - {"zonemgr"}


def test_help_loads_no_verb(tmp_path: Path) -> None:
    modules = modules_of(["--help"], tmp_path / "modules", os.environ)
    verbs = {verb.module for verb in VERBS.values()}
    assert not verbs & modules
    assert loaded(modules, CLIENT) == []
    assert {name for name in modules if name.startswith("zonemgr.linux.")} == set()


def test_list_of_no_zones_is_thin(tmp_path: Path) -> None:
    modules = modules_of(["--root", str(tmp_path), "list"], tmp_path / "modules", os.environ)
    # A relocated instance has a suffix, which is a hash; the host's own has none.
    assert loaded(modules, CLIENT - {"hashlib"}) == []
    assert strangers(modules) <= OTHERS


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_the_help_of_a_verb_loads_nothing_heavy(verb: str, tmp_path: Path) -> None:
    modules = modules_of([verb, "--help"], tmp_path / "modules", os.environ)
    assert loaded(modules, HEAVY) == []


@pytest.mark.requires("root", "userns", "net", "cgroup")
def test_boot_list_login_and_halt_are_thin(instance: Instance, tmp_path: Path) -> None:
    name = instance.installed()
    relocated = frozenset({"hashlib"})
    for words, allowed in (
        (["boot", name], relocated),
        (["list", "-v"], relocated),
        # It enters namespaces and the zone's control group.
        (["login", name, "--", "true"], relocated | {"ctypes", "prctl", "_prctl"}),
        (["halt", name], relocated),
    ):
        modules = modules_of(words, tmp_path / "modules", instance.env)
        assert loaded(modules, CLIENT - allowed) == [], words
        assert strangers(modules) <= OTHERS | allowed, words


def test_a_supervisor_that_waits_has_loaded_nothing_heavy() -> None:
    code = "import sys, zonemgr.supervisor.serve; print('\\n'.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, check=True, timeout=60
    )
    modules = set(done.stdout.split())
    # brandkit.loader finds brands by path, and asks importlib.metadata only for those of other packages.
    own = {"zonemgr.supervisor", "zonemgr.platform"}
    assert loaded(modules, (HEAVY | {"click"}) - own) == []


def test_zsched_needs_little_beyond_the_standard_library() -> None:
    code = "import sys, zonemgr.supervisor.zsched; print('\\n'.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, check=True, timeout=60
    )
    modules = set(done.stdout.split())
    assert loaded(modules, (HEAVY | {"click", "hashlib"}) - {"zonemgr.supervisor"}) == []
    rooms = {name.split(".")[1] for name in modules if name.startswith("zonemgr.")}
    assert rooms <= {"capnames", "errors", "linux", "wire", "store", "model", "supervisor"}
