"""Removal below a zonepath stops at mounts and links, whatever is on the other side."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from zonemgr.brandkit import zonepath
from zonemgr.errors import PlatformError
from zonemgr.linux import mounts

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def _bind(source: Path, target: Path) -> None:
    tree = mounts.open_tree(str(source))
    place = os.open(target, os.O_PATH)
    mounts.move_mount(tree, place)
    os.close(tree)
    os.close(place)


def test_a_bind_mount_of_the_same_disk_is_not_entered(tmp_path: Path) -> None:
    precious, place = tmp_path / "precious", tmp_path / "zone/root/srv"
    precious.mkdir()
    (precious / "kept").write_text("kept")
    place.mkdir(parents=True)
    _bind(precious, place)
    try:
        assert zonepath.mounts_below(str(tmp_path / "zone")) == [str(place)]
        with pytest.raises(PlatformError, match="cannot remove .*: Invalid cross-device link"):
            zonepath.cleanup(str(tmp_path / "zone"), print)
        assert (precious / "kept").read_text() == "kept"
    finally:
        mounts.unmount(str(place))
    zonepath.cleanup(str(tmp_path / "zone"), print)
    assert not (tmp_path / "zone").exists()


def test_a_zonepath_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "real/root").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(PlatformError, match="cannot clean up"):
        zonepath.cleanup(str(tmp_path / "link"), print)
    assert (tmp_path / "real/root").is_dir()


def test_what_is_not_there_is_removed_already(tmp_path: Path) -> None:
    zonepath.cleanup(str(tmp_path / "nowhere"), print)


def test_an_immutable_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "zone/root").mkdir(parents=True)
    stuck = tmp_path / "zone/root/stuck"
    stuck.write_text("")
    if os.system(f"chattr +i {stuck} 2>/dev/null") != 0:
        pytest.skip("the file system of the temporary folder has no immutable files")
    try:
        with pytest.raises(PlatformError, match=f"cannot remove .*stuck: {os.strerror(errno.EPERM)}"):
            zonepath.cleanup(str(tmp_path / "zone"), print)
    finally:
        os.system(f"chattr -i {stuck}")
    zonepath.cleanup(str(tmp_path / "zone"), print)


def test_mount_points_with_odd_names_are_found(tmp_path: Path) -> None:
    place = tmp_path / "zone/with blank\\and\nline/ä"
    place.mkdir(parents=True)
    _bind(tmp_path, place)
    try:
        assert zonepath.mounts_below(str(tmp_path / "zone")) == [str(place)]
    finally:
        mounts.unmount(str(place))
