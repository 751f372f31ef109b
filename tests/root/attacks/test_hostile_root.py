"""The root of a zone that is down is whatever its own root left there.  The host must not be led out of it.

For every name that booting or mounting uses, something else is planted.  The command may refuse with one clear line,
or work; nothing of the host may change, and the zone must be haltable and healthy afterwards.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.kit.instance import Instance
from tests.kit.processes import Started
from tests.root.attacks.conftest import Bait

pytestmark = pytest.mark.requires("root", "userns", "mount", "net", "cgroup")

BOOT_POINTS = (
    *("dev", "proc", "sys", "run", "tmp", "usr", "etc", "var", "root", "srv"),
    *("usr/local", "usr/local/sbin", "usr/local/sbin/init", "etc/hostid", "etc/passwd"),
    *("srv/data", "opt/file"),
)
MOUNT_POINTS = ("etc", "var", "usr/local", "dev", "srv", "srv/data")


def plant_link(path: Path, bait: Path) -> None:
    path.symlink_to(bait)


def plant_climbing_link(path: Path, bait: Path) -> None:
    path.symlink_to("../" * 40 + str(bait).lstrip("/"))


def plant_link_into_proc(path: Path, _bait: Path) -> None:
    path.symlink_to("/proc/1/root")


def plant_dangling_link(path: Path, bait: Path) -> None:
    path.symlink_to(bait / "not-there")


def plant_fifo(path: Path, _bait: Path) -> None:
    os.mkfifo(path)


def plant_device(path: Path, _bait: Path) -> None:
    os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))


def plant_file(path: Path, _bait: Path) -> None:
    path.write_text("")


OTHERS = (plant_fifo, plant_device, plant_file)
Plant = Callable[[Path, Path], None]


@pytest.fixture(scope="module")
def prepared(installed: Instance) -> Iterator[Instance]:
    """The zone with all that makes a mount point: fs resources, a host id, a file system of its own."""
    data = installed.root / "data"
    data.mkdir()
    (data / "file").write_text("shared\n")
    installed.run("config", "web", "set hostid=0x1234; add fs; set dir=/srv/data; set type=bind; "
                  f"set special={data}; add options ro; end; add fs; set dir=/opt/file; set type=bind; "
                  f"set special={data}/file; add options ro; end")
    installed.run("boot", "web")
    assert installed.login("web", "cat", "/srv/data/file", "/opt/file") == "shared\nshared\n"
    installed.run("halt", "web")
    yield installed


@contextmanager
def planted(instance: Instance, name: str, plant: Plant, bait: Path) -> Iterator[None]:
    """The zone's root with something else in the place of ``name``; put back afterwards."""
    root = instance.layout.zonepath("web") / "root"
    path, kept = root / name, root.parent / "kept"
    existed = os.path.lexists(path)
    if existed:
        path.rename(kept)
    missing = next((folder for folder in reversed(path.parents) if not folder.exists()), None)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        plant(path, bait)
        yield
    finally:
        if stat.S_ISDIR(path.lstat().st_mode):
            shutil.rmtree(path)
        else:
            path.unlink()
        if missing is not None:
            shutil.rmtree(missing)
        if existed:
            kept.rename(path)


def try_it(instance: Instance, verb: str, undo: str) -> str:
    """Bring the zone up and down again; what the command said if it refused."""
    done = instance.run(verb, "web", check=False, timeout=60)
    if done.returncode == 0:
        instance.run(undo, "web")
        return ""
    assert done.returncode == 1
    return done.stderr


def assert_clear(said: str) -> None:
    """A refusal is one line of the program's own which names what is wrong; never an internal error."""
    lines = said.strip().splitlines()
    assert len(lines) <= 3, said
    assert all(line.startswith("zonemgr: zone 'web': ") for line in lines), said
    for word in ("Errno", "Traceback", "internal error", "Connection reset"):
        assert word not in said, said


# Every name with a plain link; then the other ways, each at the names that are used differently.
BOOT_CASES = (
    *((name, plant_link) for name in BOOT_POINTS),
    ("usr/local", plant_climbing_link),
    ("dev", plant_link_into_proc),
    ("srv", plant_dangling_link),
    ("usr/local", plant_dangling_link),
    ("proc", plant_fifo),
    ("usr/local", plant_fifo),
    *(("usr/local/sbin/init", plant) for plant in OTHERS),
    ("etc/hostid", plant_fifo),
    ("srv/data", plant_file),
    ("opt/file", plant_device),
)


def named(cases: tuple[tuple[str, Plant], ...]) -> list[object]:
    return [pytest.param(name, plant, id=f"{name}-{plant.__name__}") for name, plant in cases]


@pytest.mark.parametrize(("name", "plant"), named(BOOT_CASES))
@pytest.mark.attack(
    "links at mount points and masked paths",
    "CVE-2019-18837",
    "CVE-2019-19921",
    "CVE-2023-27561",
    "CVE-2023-28642",
    "CVE-2025-31133",
    "CVE-2025-52565",
    "CVE-2026-41579",
    "CVE-2026-47766",
)
def test_boot_is_not_led_out_of_the_root(prepared: Instance, bait: Bait, name: str, plant: Plant) -> None:
    with planted(prepared, name, plant, bait.path):
        assert_clear(try_it(prepared, "boot", "halt"))
    bait.assert_untouched()
    assert prepared.state("web") == "installed"


@pytest.mark.parametrize(("name", "plant"), named(tuple((name, plant_link) for name in MOUNT_POINTS)))
@pytest.mark.attack("links at mount points and masked paths", "CVE-2019-18837")
def test_mount_is_not_led_out_of_the_root(prepared: Instance, bait: Bait, name: str, plant: Plant) -> None:
    with planted(prepared, name, plant, bait.path):
        assert_clear(try_it(prepared, "mount", "unmount"))
    bait.assert_untouched()
    assert prepared.state("web") == "installed"


@pytest.mark.attack("links at mount points and masked paths", "CVE-2026-41579")
def test_a_root_that_is_a_link_is_refused(prepared: Instance, bait: Bait) -> None:
    root = prepared.layout.zonepath("web") / "root"
    kept = root.rename(root.parent / "kept")
    try:
        root.symlink_to(bait.path)
        for verb, undo in (("boot", "halt"), ("mount", "unmount")):
            said = try_it(prepared, verb, undo)
            assert f"{root} is not a directory" in said
            assert_clear(said)
    finally:
        root.unlink()
        kept.rename(root)
    bait.assert_untouched()


@pytest.mark.attack("links at mount points and masked paths", "CVE-2019-18837")
def test_a_link_in_the_place_of_an_init_leads_inside_the_root_only(prepared: Instance, bait: Bait) -> None:
    """With an init of its own (bootargs -i), the zone may name a link; it is one of the zone's own tree."""
    root = prepared.layout.zonepath("web") / "root"
    (root / "sbin.d").mkdir()
    try:
        (root / "sbin.d/init").symlink_to(bait.path / "sbin/init")
        said = prepared.run("boot", "web", "--", "-i", "/sbin.d/init", check=1).stderr
        assert_clear(said)
        assert "/sbin.d/init" in said
    finally:
        shutil.rmtree(root / "sbin.d")
    bait.assert_untouched()


def test_the_zone_boots_when_what_was_planted_is_gone(prepared: Instance) -> None:
    prepared.run("boot", "web")
    prepared.run("halt", "web")


# -- folders of the host that a zone may write ------------------------------------------------------------------


@pytest.mark.attack("races with who writes in a shared folder", "CVE-2021-30465", "CVE-2024-1753")
def test_a_link_in_a_folder_that_a_zone_writes_is_no_way_to_bind_another(
    instance: Instance, bait: Bait
) -> None:
    """The zone owns /srv, which holds what its other resource names: it puts a link there and reboots."""
    shared = instance.root / "shared"
    (shared / "data").mkdir(parents=True)
    for folder in (shared, shared / "data"):
        os.chown(folder, 1234, 1234)
    instance.installed("web")
    instance.run("config", "web", f"add fs; set dir=/srv; set type=bind; set special={shared}; set owner=1234:1234; "
                 f"end; add fs; set dir=/opt; set type=bind; set special={shared}/data; set owner=1234:1234; end")
    instance.run("boot", "web")
    instance.login("web", "sh", "-c", f"mv /srv/data /srv/old && ln -s {bait.path} /srv/data")
    instance.run("halt", "web")
    said = instance.run("boot", "web", check=1).stderr
    assert_clear(said)
    assert "a symbolic link is in the way" in said
    bait.assert_untouched()


def test_the_special_of_an_fs_resource_may_lie_behind_a_link_only_by_its_real_name(instance: Instance) -> None:
    real = instance.root / "real"
    real.mkdir()
    (instance.root / "link").symlink_to(real)
    instance.installed("web")
    instance.run("config", "web", f"add fs; set dir=/srv; set type=bind; set special={instance.root}/link; "
                 "add options ro; end")
    said = instance.run("boot", "web", check=1).stderr
    assert str(real) in said


@pytest.mark.attack("set-user-id files left for the host")
def test_a_setuid_file_on_a_writable_bind_belongs_to_the_owner_never_to_root(instance: Instance) -> None:
    shared = instance.root / "shared"
    shared.mkdir()
    os.chown(shared, 1234, 1234)
    instance.installed("web")
    instance.run("config", "web", f"add fs; set dir=/srv; set type=bind; set special={shared}; "
                 "set owner=1234:1234; end")
    instance.run("boot", "web")
    instance.login("web", "sh", "-c", "cp /usr/bin/id /srv/id; chmod 6755 /srv/id; mknod /srv/disk b 8 0; "
                   "chown 5:5 /srv/id; chown 0:0 /srv/id; chmod 6755 /srv/id", check=False)
    status = (shared / "id").stat()
    assert (status.st_uid, status.st_gid) == (1234, 1234)
    assert not (shared / "disk").exists()


SWAP = """
import os, sys
folder, target = sys.argv[1:]
os.chdir(folder)
os.symlink(target, "link")
print("swapping", flush=True)
while True:
    for one, other in (("data", "kept"), ("link", "data"), ("data", "link"), ("kept", "data")):
        try:
            os.rename(one, other)
        except OSError:
            pass
"""


@pytest.mark.attack("races with who writes in a shared folder", "CVE-2021-30465", "CVE-2019-19921", "CVE-2024-45310")
def test_a_mount_point_that_changes_places_with_a_link_all_the_time_leads_nowhere(
    prepared: Instance, bait: Bait
) -> None:
    """Somebody can write in the zone's root while it boots: another zone with the same folder bound, say."""
    folder = prepared.layout.zonepath("web") / "root/srv"
    command = [sys.executable, "-c", SWAP, str(folder), str(bait.path)]
    with Started(command, stdout=subprocess.PIPE, text=True) as swapper:
        assert swapper.stdout is not None
        assert swapper.stdout.readline() == "swapping\n"
        for _ in range(3):
            assert_clear(try_it(prepared, "boot", "halt"))
        swapper.kill()
    bait.assert_untouched()
    for name in ("link", "data", "kept"):
        path = folder / name
        if path.is_symlink():
            path.unlink()
        elif path.exists():
            path.rmdir()
