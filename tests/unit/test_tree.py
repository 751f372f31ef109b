"""Walking a zone's root: whatever is in it, it costs the host no more than its size."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import pytest

from zonemgr.brandkit import tree, zonepath
from zonemgr.errors import PlatformError

DEPTH = 1500
NAME = "d" * 200


def test_each_step_knows_its_path(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/file").touch()
    (tmp_path / "z").symlink_to("a")
    top_fd = os.open(tmp_path, os.O_RDONLY)
    try:
        steps = [(step.move.value, step.name, step.path) for step in tree.walk(top_fd)]
    finally:
        os.close(top_fd)
    assert steps == [
        ("enter", "a", "a"),
        ("enter", "b", "a/b"),
        ("file", "file", "a/b/file"),
        ("leave", "b", "a/b"),
        ("leave", "a", "a"),
        ("file", "z", "z"),
        ("leave", "", ""),
    ]


@pytest.mark.attack("exhausting the manager")
def test_folders_in_folders_do_not_fill_the_memory(tmp_path: Path) -> None:
    """Each path of them all kept, these would take 225 MB, and ten times as many a hundred times that."""
    top_fd = os.open(tmp_path, os.O_RDONLY)
    at = os.dup(top_fd)
    for _ in range(DEPTH):
        os.mkdir(NAME, dir_fd=at)
        below = os.open(NAME, os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(at)
    try:
        tracemalloc.start()
        assert tree.measure(top_fd).objects == DEPTH
        _now, peak = tracemalloc.get_traced_memory()
        assert peak < 20 << 20
    finally:
        tracemalloc.stop()
        zonepath.remove(top_fd, NAME)
        os.close(top_fd)


def test_names_of_one_file_are_remembered_within_limits(tmp_path: Path) -> None:
    for name in ("a", "c"):
        (tmp_path / name).touch()
        (tmp_path / f"{name}{name}").hardlink_to(tmp_path / name)
    top_fd = os.open(tmp_path, os.O_RDONLY)
    try:
        names = tree.Names()
        found = [names.first_of(step) for step in tree.walk(top_fd) if step.move is tree.Move.FILE]
        assert found == [None, "a", None, "c"]
        few = tree.Names(1)
        with pytest.raises(PlatformError, match="several names"):
            for step in tree.walk(top_fd):
                few.first_of(step)
    finally:
        os.close(top_fd)
