"""The mount API on the real kernel, in a mount namespace of the test's own: nothing of it is ever seen
outside.
"""

from __future__ import annotations

import errno
import os
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from zonemgr.errors import PlatformError
from zonemgr.linux import mounts, namespaces, paths, process
from zonemgr.linux.hints import explain

pytestmark = pytest.mark.requires("root", "userns", "mount")

BASE = 524288
MAP = [(0, BASE, 65536)]


def apart(act: Callable[[], None], flags: int = 0) -> None:
    """Run ``act`` in a child with a private mount namespace (and more); its failure is the test's."""
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    pid = process.fork()
    if pid == 0:
        try:
            namespaces.unshare(namespaces.NEWNS | flags)
            mounts.set_propagation("/", mounts.PRIVATE, recursive=True)
            act()
        except BaseException:  # noqa: BLE001 - told to the parent
            os.write(write_fd, traceback.format_exc()[-4000:].encode())
        finally:
            os._exit(0)
    os.close(write_fd)
    with open(read_fd, encoding="utf-8") as pipe:
        failure = pipe.read()
    os.waitpid(pid, 0)
    assert not failure, failure


def _on(folder: Path, mount_fd: int) -> None:
    target_fd = os.open(folder, os.O_PATH)
    mounts.move_mount(mount_fd, target_fd)
    os.close(target_fd)


def _options_of(folder: Path) -> list[str]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[4] == str(folder):
            return fields[5].split(",")
    raise AssertionError(f"nothing is mounted on {folder}")


@pytest.mark.parametrize(
    ("fstype", "magic", "options"),
    [
        ("tmpfs", paths.TMPFS_MAGIC, {"mode": "755", "size": "64k", "uid": str(BASE)}),
        ("proc", paths.PROC_MAGIC, {}),
        ("sysfs", paths.SYSFS_MAGIC, {}),
        ("mqueue", 0x19800202, {}),
        ("devpts", paths.DEVPTS_MAGIC, {"mode": "620", "ptmxmode": "666", "gid": str(BASE + 5)}),
        ("cgroup2", paths.CGROUP2_MAGIC, {}),
    ],
)
def test_every_file_system_of_a_zone_can_be_made(
    tmp_path: Path, fstype: str, magic: int, options: dict[str, str | None]
) -> None:
    def act() -> None:
        mount_fd = mounts.make_filesystem(fstype, options, attributes=mounts.ATTR_NOSUID | mounts.ATTR_NOEXEC)
        assert paths.file_system_type(mount_fd) == magic
        _on(tmp_path, mount_fd)
        assert {"nosuid", "noexec"} <= set(_options_of(tmp_path))

    apart(act, namespaces.NEWNET | namespaces.NEWIPC | namespaces.NEWCGROUP)


def test_a_flag_is_an_option_without_a_value(tmp_path: Path) -> None:
    def act() -> None:
        _on(tmp_path, mounts.make_filesystem("tmpfs", {"ro": None}))
        with pytest.raises(OSError):
            (tmp_path / "x").touch()

    apart(act)


def test_the_file_systems_own_complaint_reaches_the_operator() -> None:
    with pytest.raises(OSError) as failure:
        mounts.make_filesystem("tmpfs", {"colour": "red"})
    text = explain(failure.value)
    assert "Unknown parameter 'colour'" in text
    assert "check the options" in text
    assert not text.startswith("fsconfig")


def test_an_unknown_file_system_is_told_as_such() -> None:
    with pytest.raises(OSError) as failure:
        mounts.make_filesystem("nosuchfs", {})
    assert failure.value.errno == errno.ENODEV
    assert explain(failure.value).startswith("No such device (the kernel does not know this file system")


def test_a_detached_copy_changes_nothing_of_the_original(tmp_path: Path) -> None:
    (tmp_path / "on").mkdir()

    def act() -> None:
        tree_fd = mounts.open_tree("/usr")
        mounts.set_attributes(tree_fd, set=mounts.ATTR_RDONLY | mounts.ATTR_NODEV | mounts.ATTR_NOATIME)
        _on(tmp_path / "on", tree_fd)
        assert {"ro", "nodev", "noatime"} <= set(_options_of(tmp_path / "on"))
        mounts.set_attributes(tree_fd, clear=mounts.ATTR_NODEV, set=mounts.ATTR_NOSUID)
        assert "nodev" not in _options_of(tmp_path / "on")
        assert "noatime" in _options_of(tmp_path / "on")
        with pytest.raises(OSError, match="umount2"):
            mounts.unmount(str(tmp_path / "on"))  # our descriptor holds it
        os.close(tree_fd)
        mounts.unmount(str(tmp_path / "on"))

    apart(act)


def test_an_idmapped_copy_shows_shifted_owners(tmp_path: Path) -> None:
    def act() -> None:
        userns_fd = namespaces.make_user_namespace(MAP, MAP)
        tree_fd = mounts.open_tree("/usr")
        mounts.set_attributes(tree_fd, set=mounts.ATTR_IDMAP | mounts.ATTR_RDONLY, userns_fd=userns_fd)
        assert os.stat("bin", dir_fd=tree_fd).st_uid == BASE
        assert os.stat("/usr/bin").st_uid == 0

    apart(act)


def test_mount_points_are_made_on_an_idmapped_root_and_land_unshifted(tmp_path: Path) -> None:
    """The host's root has no id there: what it makes belongs to the owner of the folder it is made in."""
    (tmp_path / "root").mkdir()
    (tmp_path / "on").mkdir()

    def act() -> None:
        userns_fd = namespaces.make_user_namespace(MAP, MAP)
        tree_fd = mounts.open_tree(str(tmp_path / "root"))
        mounts.set_attributes(tree_fd, set=mounts.ATTR_IDMAP, userns_fd=userns_fd)
        _on(tmp_path / "on", tree_fd)
        paths.make_mount_point(tree_fd, "/srv/www", 0o750)
        paths.make_mount_point(tree_fd, "/etc/hostid", kind="file")
        for name in ("srv", "srv/www", "etc/hostid"):
            assert (tmp_path / "on" / name).stat().st_uid == BASE
            assert (tmp_path / "root" / name).stat().st_uid == 0
        Path(tmp_path, "still-root").touch()

    apart(act)
    assert (tmp_path / "still-root").stat().st_uid == 0


def test_which_file_systems_map_ids_is_found_by_trying(tmp_path: Path) -> None:
    def act() -> None:
        for folder, expected in (("/usr", True), ("/proc", False)):
            folder_fd = os.open(folder, os.O_PATH)
            assert mounts.supports_idmap(folder_fd) is expected

    apart(act)


def test_a_read_only_root_is_told_in_the_references_words(tmp_path: Path) -> None:
    def act() -> None:
        mount_fd = mounts.make_filesystem("tmpfs", {}, attributes=mounts.ATTR_RDONLY)
        _on(tmp_path, mount_fd)
        with pytest.raises(PlatformError) as failure:
            paths.make_mount_point(mount_fd, "/srv", display="/z/root")
        assert failure.value.text.splitlines()[0] == "Could not mkdir /z/root/srv."
        assert len(failure.value.text.splitlines()) == 3

    apart(act)


def test_a_mount_on_a_link_is_put_nowhere(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "link").symlink_to("target")

    def act() -> None:
        mount_fd = mounts.make_filesystem("tmpfs", {})
        folder_fd = os.open(tmp_path, os.O_PATH)
        with pytest.raises(OSError):
            mounts.move_mount(mount_fd, folder_fd, "link")
        link_fd = os.open(tmp_path / "link", os.O_PATH | os.O_NOFOLLOW)
        with pytest.raises(OSError):
            mounts.move_mount(mount_fd, link_fd)

    apart(act)


def test_pivoting_leaves_nothing_of_the_old_root(tmp_path: Path) -> None:
    def act() -> None:
        mount_fd = mounts.make_filesystem("tmpfs", {"mode": "755"})
        _on(tmp_path, mount_fd)
        os.mkdir("only", dir_fd=mount_fd)
        os.fchdir(os.open(tmp_path, os.O_PATH))
        mounts.pivot_root(".", ".")
        mounts.unmount(".", mounts.DETACH)
        os.chdir("/")
        assert os.listdir("/") == ["only"]

    apart(act)


def test_propagation_can_be_set(tmp_path: Path) -> None:
    def act() -> None:
        _on(tmp_path, mounts.make_filesystem("tmpfs", {}))
        mounts.set_propagation(str(tmp_path), mounts.SHARED)
        line = next(
            line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(tmp_path) in line
        )
        assert " shared:" in line

    apart(act)
