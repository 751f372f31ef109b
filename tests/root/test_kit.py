"""The leak check itself: it must see what a test leaves behind, and must not see what others do."""

from __future__ import annotations

import os
import secrets
import subprocess
from pathlib import Path

import pytest

from tests.kit import leaks
from tests.kit.instance import Instance
from tests.kit.leaks import cgroup_roots, left, look

pytestmark = pytest.mark.requires("root", "mount", "cgroup")

OURS, THEIRS = (f"-{secrets.token_hex(4)}" for _ in range(2))  # a neighbour may run these tests as well


def is_ours(suffix: str) -> bool:
    return suffix == OURS


def test_a_mount_a_cgroup_a_process_and_a_descriptor_are_leaks(tmp_path: Path) -> None:
    before = look((tmp_path,), is_ours)
    cgroup = cgroup_roots()[0] / f"zonemgr{OURS}"
    cgroup.mkdir()
    (tmp_path / "m").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", tmp_path / "m"], check=True)
    fd = os.open("/dev/null", os.O_RDONLY)
    # Reparented to whoever collects orphans, and known by its environment only.
    orphan = subprocess.run(["sh", "-c", "sleep 100 >/dev/null 2>&1 & echo $!"], capture_output=True, text=True)
    try:
        lost = left(before, (tmp_path,), is_ours, deadline_s=0)
    finally:
        os.kill(int(orphan.stdout), 9)
        os.close(fd)
        subprocess.run(["umount", tmp_path / "m"], check=True)
        cgroup.rmdir()
    assert sorted(line.split(":")[0] for line in lost) == ["cgroup", "descriptor", "mount", "process"]
    assert any("sleep 100" in line for line in lost)
    assert left(before, (tmp_path,), is_ours) == []


def test_what_another_instance_does_is_no_leak(tmp_path: Path) -> None:
    before = look((tmp_path,), is_ours)
    cgroup = cgroup_roots()[0] / f"zonemgr{THEIRS}"
    cgroup.mkdir()
    try:
        assert left(before, (tmp_path,), is_ours, deadline_s=0) == []
    finally:
        cgroup.rmdir()


@pytest.mark.requires("net")
def test_an_instance_lives_beside_others_and_leaves_nothing(instance: Instance) -> None:
    assert instance.states() == {}
    instance.configured("web")
    assert instance.states() == {"web": "configured"}
    assert instance.root.is_dir()
    assert leaks.MARK_VARIABLE in instance.env
