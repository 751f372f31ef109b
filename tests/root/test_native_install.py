"""Installing and uninstalling a native zone on the real disk: what is there afterwards, and what is not."""

from __future__ import annotations

import os
import signal
import stat
from pathlib import Path

import pytest

from tests.kit import waiting
from tests.kit.instance import Instance
from zonemgr.store import idranges

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

SLOW = """
from zonemgr.brandkit import Brand, NotCompleted
import os, time, sys
class Slow(Brand):
    name = "slow"
    def install(self, zone, arguments):
        os.mkdir(zone.root, 0o755)
        print("working", *arguments)
        match list(arguments):
            case ["undo"]:
                raise NotCompleted("no luck")
            case ["fatal"]:
                return 255
            case ["hang"]:
                sys.stdin = open(os.path.join(zone.layout_root, "go"))
"""


def _root(instance: Instance, name: str = "web") -> Path:
    return instance.layout.zonepath(name) / "root"


def _slow(instance: Instance) -> None:
    folder = instance.layout.etc / "brands/slow"
    folder.mkdir(parents=True)
    (folder / "brand.py").write_text(SLOW)
    instance.configured("web", "-b", "slow")


def _size(root: Path) -> int:
    return sum(path.lstat().st_blocks * 512 for path in root.rglob("*"))


def test_an_installed_root_is_small_and_has_what_a_zone_needs(instance: Instance) -> None:
    instance.installed("web")
    root = _root(instance)
    assert instance.state("web") == "installed"
    assert _size(root) < 2_000_000
    for name in (
        "etc/passwd",
        "etc/ssl/certs/ca-certificates.crt",
        "etc/hosts",
        "etc/machine-id",
        "etc/pam.d/su",
    ):
        assert (root / name).stat().st_size
    assert os.readlink(root / "bin") == os.readlink("/bin")
    assert (root / "etc/hostname").read_text() == "web\n"
    modes = {name: stat.S_IMODE((root / name).lstat().st_mode) for name in ("", "root", "tmp", "etc/shadow")}
    assert modes == {"": 0o755, "root": 0o700, "tmp": 0o1777, "etc/shadow": 0o640}
    assert stat.S_IMODE(root.parent.stat().st_mode) == 0o700


def test_no_secret_of_the_host_is_in_the_root(instance: Instance) -> None:
    instance.installed("web")
    root = _root(instance)
    shadow = [line.split(":") for line in (root / "etc/shadow").read_text().splitlines()]
    assert shadow[0][0] == "root"
    assert {fields[1] for fields in shadow} == {"*"}
    host_id = Path("/etc/machine-id")
    assert not host_id.exists() or (root / "etc/machine-id").read_text() != host_id.read_text()
    for name in ("etc/ssh", "etc/sudoers", "etc/environment", "etc/profile.d/x.sh", "root/.ssh"):
        assert not (root / name).exists()
    owners = {
        (path.lstat().st_uid, path.lstat().st_mode & 0o6000)
        for path in root.rglob("*")
        if not path.is_symlink()
    }
    assert {uid for uid, _bits in owners} == {0}
    users = [line.split(":") for line in (root / "etc/passwd").read_text().splitlines()]
    assert all(int(fields[2]) < 1000 or fields[0] == "nobody" for fields in users)


def test_install_gives_the_zone_its_ids_and_uninstall_takes_all_back(instance: Instance) -> None:
    instance.installed("web")
    (first,) = [found for found in idranges._read(idranges.REGISTRY) if found.root == str(instance.root)]
    assert first.base % 65536 == 0 and first.base >= 524288
    instance.run("uninstall", "web", "-F")
    assert instance.state("web") == "configured"
    assert not instance.layout.zonepath("web").exists()
    assert not [found for found in idranges._read(idranges.REGISTRY) if found.root == str(instance.root)]
    instance.run("install", "web")
    instance.run("uninstall", "web", "-F")


def test_install_of_an_installed_zone_is_refused(instance: Instance) -> None:
    instance.installed("web")
    assert "is already installed." in instance.run("install", "web", check=1).stderr
    instance.run("uninstall", "web", "-F")
    assert "is already in state 'configured'." in instance.run("uninstall", "web", "-F", check=1).stderr


def test_uninstall_asks_or_wants_f(instance: Instance) -> None:
    instance.installed("web")
    done = instance.run("uninstall", "web", check=1)
    assert "Input not from terminal and -F not specified: uninstall not done." in done.stderr
    assert instance.state("web") == "installed"


def test_uninstall_of_what_a_hostile_zone_left(instance: Instance, tmp_path: Path) -> None:
    """Links out of the root, a tree deeper than any path, names of odd bytes: all goes, nothing outside is touched."""
    instance.installed("web")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    root = _root(instance)
    (root / "var/link").symlink_to(outside)
    (root / "srv").rmdir()
    (root / "srv").symlink_to(outside)
    (root / os.fsdecode(b"home/\xff\n name")).mkdir()
    _dig(root / "opt", 3000)
    instance.run("uninstall", "web", "-F")
    assert not root.parent.exists()
    assert (outside / "kept").read_text() == "kept"


def _dig(folder: Path, depth: int) -> None:
    """A chain of folders whose full path no call could take."""
    here = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("down", dir_fd=here)
        below = os.open("down", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=here))
    os.close(here)


def test_uninstall_refuses_while_something_is_mounted_in_the_root(instance: Instance) -> None:
    from zonemgr.linux import mounts

    instance.installed("web")
    place = _root(instance) / "mnt"
    target = os.open(place, os.O_PATH)
    tree = mounts.make_filesystem("tmpfs", {})
    mounts.move_mount(tree, target)
    os.close(tree)
    os.close(target)
    try:
        done = instance.run("uninstall", "web", "-F", check=1)
        assert "are mounted on subdirectories" in done.stderr and str(place) in done.stderr
        assert instance.state("web") == "installed"
    finally:
        mounts.unmount(str(place))


def test_other_files_in_the_zonepath_are_kept_with_a_warning(instance: Instance) -> None:
    instance.installed("web")
    (instance.layout.zonepath("web") / "notes").write_text("mine")
    done = instance.run("uninstall", "web", "-F")
    assert "because it contains additional user data." in done.stderr
    assert (instance.layout.zonepath("web") / "notes").read_text() == "mine"
    assert instance.state("web") == "configured"


# -- what the brand answers ---------------------------------------------------------------------------------------


def test_wrong_options_are_a_usage_error_and_leave_nothing(instance: Instance) -> None:
    instance.configured("web")
    done = instance.run("install", "web", "-x", "y", check=2)
    assert "takes no install options" in done.stderr
    assert instance.state("web") == "configured"
    assert not instance.layout.zonepath("web").exists()


def test_an_install_that_can_be_undone_is_undone(instance: Instance) -> None:
    _slow(instance)
    done = instance.run("install", "web", "undo", check=1)
    assert "working undo" in done.stderr and "no luck" in done.stderr
    assert instance.state("web") == "configured"
    assert not instance.layout.zonepath("web").exists()


def test_a_fatal_install_leaves_an_incomplete_zone_which_uninstall_cleans(instance: Instance) -> None:
    _slow(instance)
    assert "uninstall cleans up" in instance.run("install", "web", "fatal", check=1).stderr
    assert instance.state("web") == "incomplete"
    assert "zone is incomplete; uninstall required." in instance.run("install", "web", check=1).stderr
    instance.run("uninstall", "web", "-F")
    assert instance.state("web") == "configured"


def test_a_second_administrator_is_told_and_ctrl_c_does_not_stop_a_hook(instance: Instance) -> None:
    _slow(instance)
    os.mkfifo(instance.root / "go")
    first = instance.popen("install", "web", "hang")
    assert first.stderr is not None
    assert "working hang" in first.stderr.readline()
    assert "incomplete" in instance.state("web")
    done = instance.run("uninstall", "web", "-F", check=1)
    assert "another zonemgr may have an operation in progress." in done.stderr
    first.send_signal(signal.SIGINT)
    with open(instance.root / "go", "w"):
        pass
    assert first.wait(30) == 0
    first.communicate()
    assert instance.state("web") == "installed"


def test_an_installer_that_is_killed_leaves_an_incomplete_zone(instance: Instance) -> None:
    _slow(instance)
    os.mkfifo(instance.root / "go")
    first = instance.popen("install", "web", "hang")
    assert first.stderr is not None
    assert "working hang" in first.stderr.readline()
    first.kill()
    first.communicate()
    assert instance.state("web") == "incomplete"
    instance.run("uninstall", "web", "-F")
    assert instance.state("web") == "configured"


def test_a_zone_whose_brand_is_broken_can_be_uninstalled_by_force(instance: Instance) -> None:
    _slow(instance)
    instance.run("install", "web")
    (instance.layout.etc / "brands/slow/brand.py").write_text("raise RuntimeError('gone')")
    assert "RuntimeError: gone" in instance.run("boot", "web", check=1).stderr
    done = instance.run("uninstall", "web", "-F")
    assert "RuntimeError: gone, ignoring" in done.stderr
    assert instance.state("web") == "configured"


# -- verify -------------------------------------------------------------------------------------------------------


def test_verify_names_each_wrong_bit_and_install_repairs_them(instance: Instance) -> None:
    instance.configured("web")
    path = instance.layout.zonepath("web")
    path.mkdir(parents=True)
    path.chmod(0o752)
    done = instance.run("verify", "web", check=1)
    said = [line.removeprefix("zonemgr: zone 'web': ") for line in done.stderr.splitlines()]
    assert said == [
        f"{path} must not be group readable.",
        f"{path} must not be group executable.",
        f"{path} must not be world writable.",
        "zone web failed to verify",
    ]
    done = instance.run("install", "web")
    assert f"{path}: changing permissions to 0700." in done.stderr
    assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_a_folder_in_use_does_not_become_a_zonepath(instance: Instance) -> None:
    """Its mode would lock out whoever uses it: /srv was meant to be /srv/web."""
    path = instance.root / "srv"
    for folder in (path / "lost+found", path / "somebodys"):
        folder.mkdir(parents=True)
    path.chmod(0o755)
    instance.configured("web", f"zonepath={path}")
    refused = instance.run("install", "web", check=1).stderr
    assert f"{path} holds files of others, who would be locked out" in refused
    assert path.stat().st_mode & 0o777 == 0o755
    assert not (path / "root").exists()
    (path / "somebodys").rmdir()
    assert f"{path}: changing permissions to 0700." in instance.run("install", "web").stderr
    instance.run("uninstall", "-F", "web")
    assert (path / "lost+found").is_dir()


def test_a_zonepath_on_a_link_or_in_a_folder_that_others_may_write_is_refused(instance: Instance) -> None:
    real, link = instance.root / "real", instance.root / "link"
    real.mkdir()
    link.symlink_to(real)
    instance.configured("web", f"zonepath={link}/web")
    assert "Resolved path mismatch" in instance.run("install", "web", check=1).stderr
    assert not list(real.iterdir())
    instance.configured("db", f"zonepath={real}/db")
    real.chmod(0o757)
    assert f"{real} must not be world writable." in instance.run("install", "db", check=1).stderr
    assert instance.states() == {"web": "configured", "db": "configured"}


def test_two_zones_cannot_share_a_zonepath(instance: Instance) -> None:
    instance.installed("web")
    path = instance.layout.zonepath("web")
    instance.configured("db", f"zonepath={path}/root/db")
    assert "overlaps" in instance.run("install", "db", check=1).stderr


def test_verify_of_a_zone_without_files_warns_and_passes(instance: Instance) -> None:
    instance.configured("web")
    done = instance.run("verify", "web")
    assert "WARNING" in done.stderr and "install makes it." in done.stderr


def test_a_deleted_zone_leaves_no_run_time_files(instance: Instance) -> None:
    instance.running("web")
    instance.run("halt", "web")
    instance.run("uninstall", "-F", "web")
    instance.run("delete", "-F", "web")
    waiting.until(lambda: not instance.layout.zone_run("web").exists(), "the run folder goes")
