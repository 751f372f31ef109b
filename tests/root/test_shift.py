"""A root on a file system without id-mapped mounts is shifted once, on disk."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.instance import Instance
from zonemgr.errors import PlatformError
from zonemgr.platform.shift import shift_tree
from zonemgr.store import zones

pytestmark = pytest.mark.requires("root")

BASE = 524288 * 4


def test_every_owner_moves_once_and_setuid_bits_stay(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    program = tmp_path / "folder" / "program"
    program.write_text("x")
    os.chown(program, 7, 8)
    program.chmod(0o6755)
    (tmp_path / "link").symlink_to("/etc/passwd")
    host = os.stat("/etc/passwd")

    assert shift_tree(tmp_path, BASE) == 4
    assert shift_tree(tmp_path, BASE) == 0

    status = program.stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (BASE + 7, BASE + 8, 0o6755)
    assert os.lstat(tmp_path / "link").st_uid == BASE
    assert os.stat("/etc/passwd").st_uid == host.st_uid


def test_a_foreign_owner_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    os.chown(tmp_path / "file", 100_000, 100_000)
    with pytest.raises(PlatformError, match="owner 100000 is outside of the zone's ids"):
        shift_tree(tmp_path, BASE)


@pytest.fixture
def overlay(tmp_path: Path) -> Iterator[Path]:
    """A folder on an overlay, which refuses id-mapped mounts."""
    parts = {name: tmp_path / name for name in ("lower", "upper", "work", "merged")}
    for path in parts.values():
        path.mkdir()
    options = f"lowerdir={parts['lower']},upperdir={parts['upper']},workdir={parts['work']}"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, parts["merged"]], check=True)
    parts["merged"].chmod(0o755)
    yield parts["merged"]
    subprocess.run(["umount", parts["merged"]], check=True)


@pytest.mark.requires("userns", "net", "cgroup")
def test_a_zone_on_an_overlay_boots_with_its_own_owners(instance: Instance, overlay: Path) -> None:
    instance.installed("web", f"zonepath={overlay}/web")
    assert "its owners are shifted once" in instance.run("boot", "web").stderr
    assert instance.login("web", "stat", "-c", "%u", "/root", "/usr/local/sbin").split() == ["0", "0"]
    entry = zones.read_entry(instance.layout, "web")
    assert os.stat(overlay / "web" / "root" / "root").st_uid == entry.uid_base
    instance.run("halt", "web")
    assert "shifted" not in instance.run("boot", "web").stderr
    instance.run("halt", "web")
