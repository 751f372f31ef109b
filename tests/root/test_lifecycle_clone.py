"""clone: by the cheapest way there is, with an identity of its own, and never out of a hostile root."""

from __future__ import annotations

import os
import shutil
import stat
import struct
from pathlib import Path

import pytest

from tests.kit.disks import mounted, overlay
from tests.kit.instance import Instance
from zonemgr.brandkit import layers, storage, tree
from zonemgr.brandkit.owners import Owners
from zonemgr.brandkit.storage import Method
from zonemgr.errors import PlatformError
from zonemgr.model.states import State
from zonemgr.store import idranges, journal, zones
from zonemgr.store.locks import use_lock
from zonemgr.store.zones import Entry

pytestmark = pytest.mark.requires("root")


def _root(instance: Instance, name: str) -> Path:
    return Path(zones.read_entry(instance.layout, name).zonepath) / "root"


def test_a_clone_is_another_machine_with_addresses_ids_and_a_path_of_its_own(instance: Instance) -> None:
    instance.installed("web")
    (_root(instance, "web") / "etc/ssh").mkdir()
    (_root(instance, "web") / "etc/ssh/ssh_host_rsa_key").write_text("secret")
    done = instance.run("clone", "web", "new")
    assert "configured like web, at " in done.stderr and "copy: " in done.stderr
    one, other = (zones.load(instance.layout, name) for name in ("web", "new"))
    assert not set(one.net[0].address) & set(other.net[0].address)
    assert one.zonepath != other.zonepath
    ranges = idranges._read(idranges.REGISTRY)
    ids = {found.zonename: found.base for found in ranges if found.root == str(instance.root)}
    assert ids["web"] != ids["new"] and zones.read_entry(instance.layout, "new").uid_base == ids["new"]
    root = _root(instance, "new")
    assert (root / "etc/machine-id").read_text() != (_root(instance, "web") / "etc/machine-id").read_text()
    assert len((root / "etc/machine-id").read_text()) == 33
    assert (root / "etc/hostname").read_text() == "new\n"
    assert "127.0.1.1 new\n" in (root / "etc/hosts").read_text()
    assert not list((root / "etc/ssh").iterdir())
    assert (_root(instance, "web") / "etc/ssh/ssh_host_rsa_key").read_text() == "secret"


@pytest.mark.requires("userns", "net", "cgroup")
def test_a_clone_boots_beside_its_source(instance: Instance) -> None:
    instance.installed("web")
    instance.run("clone", "web", "new")
    instance.run("boot", "web", "new")
    assert [instance.login(name, "cat", "/proc/sys/kernel/hostname") for name in ("web", "new")] == [
        "web\n",
        "new\n",
    ]


def test_a_configured_target_keeps_its_configuration_and_is_warned_of(instance: Instance) -> None:
    instance.installed("web", "--no-net")
    shared = instance.root / "shared"
    shared.mkdir()
    for name in ("web", "new"):
        if name == "new":
            instance.configured("new", "--no-net", "autoboot=true")
        instance.run(
            "config", name, f"add fs; set dir=/srv; set special={shared}; set type=bind; set owner=33:33; end"
        )
    done = instance.run("clone", "web", "new")
    assert f"WARNING: fs special '{shared}' is configured in both zones." in done.stderr
    assert zones.load(instance.layout, "new").autoboot
    instance.run("clone", "web", "new", check=1)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("clone", "web", "new"), "zone web is configured; installed is required."),
        (("clone", "global", "new"), "clone operation is invalid for the global zone."),
        (("clone", "nowhere", "new"), "nowhere: No such zone configured"),
        (("clone", "web", "web"), "a zone cannot be cloned onto itself"),
        (("clone", "web", "../new"), "Bogus zone name"),
    ],
)
def test_what_cannot_be_cloned_leaves_no_configuration(
    instance: Instance, words: tuple[str, ...], text: str
) -> None:
    instance.configured("web")
    assert text in instance.run(*words, check=1).stderr
    assert instance.states() == {"web": "configured"}


@pytest.mark.requires("userns", "net", "cgroup")
def test_a_running_zone_is_not_cloned(instance: Instance) -> None:
    instance.running("web")
    assert (
        "clone operation is invalid for running zones." in instance.run("clone", "web", "new", check=1).stderr
    )
    assert list(instance.states()) == ["web"]


def test_a_full_disk_leaves_nothing_of_the_clone(instance: Instance) -> None:
    instance.installed("web")
    with (_root(instance, "web") / "large").open("wb") as stream:
        stream.write(os.urandom(8 << 20))
    with mounted("ext4", instance.root / "disks", size="6M") as small:
        instance.configured("new", f"zonepath={small}/new")
        done = instance.run("clone", "web", "new", check=1)
        assert "No space left on device" in done.stderr
        assert instance.states() == {"web": "installed", "new": "configured"}
        assert not (small / "new").exists()


def test_the_identity_of_a_hostile_root_is_reset_within_it(instance: Instance, tmp_path: Path) -> None:
    """/etc of the source is a link to a folder of the host: nothing in there changes."""
    instance.installed("web")
    outside = tmp_path / "etc"
    (outside / "ssh").mkdir(parents=True)
    for name in ("machine-id", "hostname", "hosts", "ssh/ssh_host_rsa_key"):
        (outside / name).write_text("web of the host\n")
    root = _root(instance, "web")
    os.rename(root / "etc", root / "old")
    (root / "etc").symlink_to(outside)
    instance.run("clone", "web", "new", check=False)
    for name in ("machine-id", "hostname", "hosts", "ssh/ssh_host_rsa_key"):
        assert (outside / name).read_text() == "web of the host\n"
    assert sorted(path.name for path in outside.iterdir()) == ["hostname", "hosts", "machine-id", "ssh"]
    if instance.state("new"):
        instance.run("uninstall", "-F", "new")
    assert (outside / "hosts").exists()


def _furnish(root: Path) -> None:
    """All that a tree can hold."""
    (root / "folder").mkdir()
    (root / "folder").chmod(0o2750)
    (root / "file").write_text("text")
    os.chown(root / "file", 33, 44)
    (root / "file").chmod(0o4711)
    os.setxattr(root / "file", "user.note", b"\0\xff")
    os.link(root / "file", root / "folder/again")
    (root / "link").symlink_to("/etc/shadow")
    os.mkfifo(root / "fifo", 0o640)
    os.mknod(root / "null", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    with (root / "holes").open("wb") as stream:
        stream.truncate(1 << 30)
        stream.seek(512 << 20)
        stream.write(b"data")
    (root / os.fsdecode(b"\xff\n")).touch()
    os.utime(root / "folder", ns=(10**18 + 1, 10**18 + 3))
    here = os.open(root, os.O_RDONLY)
    for _ in range(700):  # more than there are descriptors
        os.mkdir("down", dir_fd=here)
        below = os.open("down", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)


def _check_furniture(root: Path, *, devices: bool = True) -> None:
    status = (root / "file").stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode), status.st_nlink) == (
        33,
        44,
        0o4711,
        2,
    )
    assert os.getxattr(root / "file", "user.note") == b"\0\xff"
    assert os.path.samefile(root / "file", root / "folder/again")
    assert os.readlink(root / "link") == "/etc/shadow"
    assert (
        stat.S_ISFIFO((root / "fifo").stat().st_mode)
        and stat.S_IMODE((root / "fifo").stat().st_mode) == 0o640
    )
    assert (root / "null").exists() == devices
    holes = (root / "holes").stat()
    assert holes.st_size == 1 << 30 and holes.st_blocks * 512 < 1 << 20
    with (root / "holes").open("rb") as stream:
        stream.seek(512 << 20)
        assert stream.read(5) == b"data\0"
    assert (root / os.fsdecode(b"\xff\n")).exists()
    folder = (root / "folder").stat()
    assert stat.S_IMODE(folder.st_mode) == 0o2750 and folder.st_mtime_ns == 10**18 + 3
    depth, here = 0, os.open(root, os.O_RDONLY)
    while "down" in os.listdir(here):
        below = os.open("down", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here, depth = below, depth + 1
    os.close(here)
    assert depth == 700


def _remove(path: Path) -> None:
    from zonemgr.brandkit import zonepath

    fd = os.open(path.parent, os.O_RDONLY)
    zonepath.remove(fd, path.name)
    os.close(fd)


def _clone(place: Path, wanted: Method | None) -> Method:
    """Clone a furnished root with the driver itself, and check it."""
    if not (place / "one/root").exists():
        (place / "one/root").mkdir(parents=True)
        _furnish(place / "one/root")
    (place / "two").mkdir()
    source = Entry("one", zonepath=str(place / "one"))
    choice = storage.choose(source, str(place / "two"), wanted)
    storage.clone_root(source, str(place / "two"), choice.method, Owners())
    _check_furniture(place / "two/root")
    assert os.listdir(place / "two") == ["root"]
    _remove(place / "two")
    return choice.method


def test_a_copy_has_all_that_a_tree_can_hold(tmp_path: Path) -> None:
    assert _clone(tmp_path, Method.COPY) is Method.COPY
    _remove(tmp_path / "one")


@pytest.mark.requires("btrfs")
def test_btrfs_is_snapshotted_and_reflinked(tmp_path: Path) -> None:
    from zonemgr.linux import cow

    with mounted("btrfs", tmp_path / "disks") as place:
        fd = os.open(place, os.O_RDONLY)
        cow.make_subvolume(fd, "one")
        os.close(fd)
        (place / "one/root").mkdir(mode=0o755)
        (place / "one/notes").write_text("the source's own")
        _furnish(place / "one/root")
        assert _clone(place, None) is Method.BTRFS
        assert _clone(place, Method.REFLINK) is Method.REFLINK
        assert (place / "one/notes").exists()


@pytest.mark.requires("xfs")
def test_xfs_is_reflinked(tmp_path: Path) -> None:
    with mounted("xfs", tmp_path / "disks", "-m", "reflink=1") as place:
        assert _clone(place, None) is Method.REFLINK
        with pytest.raises(PlatformError, match="the source's zonepath is not a btrfs subvolume"):
            _clone(place, Method.BTRFS)
        (place / "two").rmdir()


@pytest.mark.requires("btrfs", "userns", "net", "cgroup")
def test_a_zone_on_btrfs_is_cloned_by_snapshot_and_goes_again(instance: Instance) -> None:
    with mounted("btrfs", instance.root / "disks") as place:
        instance.installed("web", f"zonepath={place}/web")
        instance.configured("new", f"zonepath={place}/new")
        assert "btrfs snapshot" in instance.run("clone", "web", "new").stderr
        assert stat.S_IMODE((place / "new").stat().st_mode) == 0o700
        instance.run("boot", "new")
        instance.run("halt", "new")
        instance.run("uninstall", "-F", "new")
        instance.run("uninstall", "-F", "web")
        assert list(place.iterdir()) == []


@pytest.mark.requires("userns", "net", "cgroup")
def test_a_root_that_was_shifted_on_disk_is_cloned_and_exported_with_the_zones_own_ids(
    instance: Instance,
) -> None:
    with overlay(instance.root / "parts") as place:
        instance.installed("web", f"zonepath={place}/web")
        instance.run("boot", "web")
        instance.run("halt", "web")
        base = zones.read_entry(instance.layout, "web").uid_base
        assert (place / "web/root/etc/passwd").stat().st_uid == base
        instance.run("clone", "web", "new")
        assert (_root(instance, "new") / "etc/passwd").stat().st_uid == 0
        assert (_root(instance, "new") / "etc/shadow").stat().st_gid < 1000
        instance.run("export", "web", "-f", str(instance.root / "web.tar"))
        instance.run("import", "third", "-f", str(instance.root / "web.tar"))
        assert (_root(instance, "third") / "etc/passwd").stat().st_uid == 0
        instance.run("boot", "new", "third")
        instance.run("halt", "new", "third")
        instance.run("detach", "web")
        instance.run("attach", "web")
        assert (place / "web/root/etc/passwd").stat().st_uid == 0
        instance.run("boot", "web")
        instance.run("halt", "web")
        instance.run("uninstall", "-F", "web")


def test_ids_in_access_lists_and_capabilities_move_too() -> None:
    owners = Owners(524288)
    entries = (
        struct.pack("<I", 2) + struct.pack("<HHI", 2, 6, 524288 + 33) + struct.pack("<HHI", 4, 7, 0xFFFFFFFF)
    )
    moved = owners.attribute("system.posix_acl_access", entries)
    assert struct.unpack("<HHI", moved[4:12]) == (2, 6, 33)
    assert struct.unpack("<HHI", moved[12:20]) == (4, 7, 0xFFFFFFFF)
    for_root = struct.pack("<I16sI", 0x03000001, b"x" * 16, 524288)
    assert owners.attribute("security.capability", for_root) == struct.pack("<I16s", 0x02000001, b"x" * 16)
    with pytest.raises(PlatformError, match="owner 700000 is outside of the zone's ids"):
        owners.id(700000)


def test_moving_owners_again_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    os.chown(tmp_path / "file", 524288 + 7, 524288 + 8)
    fd = os.open(tmp_path, os.O_RDONLY)
    for _ in range(2):
        tree.move_owners(fd, Owners(524288))
        assert ((tmp_path / "file").stat().st_uid, (tmp_path / "file").stat().st_gid) == (7, 8)
    os.close(fd)


# -- by overlay -------------------------------------------------------------------------------------------------


@pytest.mark.requires("userns", "net", "cgroup")
def test_source_and_clone_by_overlay_go_their_own_ways(instance: Instance) -> None:
    instance.installed("web")
    done = instance.run("clone", "-m", "overlay", "web", "new")
    assert "overlay: takes no space until one side changes" in done.stderr
    assert not list(_root(instance, "web").iterdir())  # all of it is in the origin
    instance.run("boot", "web", "new")
    changes = "echo mine > /etc/mine; mv /var/log /var/old; rm /etc/profile; touch -d @5 /etc/passwd; mkdir /srv/own"
    look = "ls -dn /etc/mine /var/log /var/old /etc/profile /srv/own 2>&1; stat -c %u:%g:%Y /etc/passwd; hostname"
    before = instance.login("web", "sh", "-c", f"{look}; cat /etc/machine-id")
    instance.login("new", "sh", "-c", changes)
    assert instance.login("web", "sh", "-c", f"{look}; cat /etc/machine-id") == before
    instance.run("reboot", "new")
    after = instance.login("new", "sh", "-c", look)
    assert "0 0" in after and "0:0:5\nnew\n" in after and "'/var/log': No such" in after
    instance.run("halt", "web", "new")

    # What reads and writes roots sees the layers as one.
    instance.run("clone", "new", "copy")
    assert (_root(instance, "copy") / "etc/mine").stat().st_uid == 0 and (
        _root(instance, "copy") / "var/old"
    ).is_dir()
    instance.run("export", "new", "-f", str(instance.root / "new.tar"))
    instance.run("import", "back", "-f", str(instance.root / "new.tar"))
    assert (_root(instance, "back") / "etc/mine").read_text() == "mine\n"
    instance.run("rename", "new", "www")
    instance.run("mount", "www")
    assert instance.login("www", "cat", "/a/etc/mine", "/etc/hostname") == "mine\nwww\n"
    instance.run("unmount", "www")
    assert "its root is in layers" in instance.run("detach", "www", check=1).stderr
    instance.run("move", "www", str(instance.root / "elsewhere"))
    instance.run("boot", "www")
    assert instance.login("www", "cat", "/etc/mine") == "mine\n"
    instance.run("halt", "www")


@pytest.mark.requires("userns")
def test_an_origin_stays_as_long_as_a_zone_lies_on_it(instance: Instance) -> None:
    instance.installed("web", "--no-net")
    instance.run("clone", "-m", "overlay", "web", "one")
    (layer,) = zones.read_entry(instance.layout, "web").layers
    instance.run("clone", "-m", "overlay", "web", "two")  # nothing was written meanwhile: no further layer
    assert zones.read_entry(instance.layout, "two").layers == (layer,)
    (_root(instance, "web") / "srv").mkdir()
    instance.run("clone", "-m", "overlay", "web", "three")
    assert zones.read_entry(instance.layout, "three").layers[1:] == (layer,)
    for name in ("web", "two", "three"):
        instance.run("uninstall", "-F", name)
        assert Path(layer).is_dir()
    origins = Path(layer).parent.parent
    assert os.listdir(origins) == [Path(layer).parent.name]
    instance.run("uninstall", "-F", "one")
    assert not origins.exists()


def test_a_source_whose_freezing_was_interrupted_is_mended_by_the_next_clone(instance: Instance) -> None:
    instance.installed("web", "--no-net")
    entry = zones.read_entry(instance.layout, "web")
    origin = f"{layers.origins_beside(instance.layout, entry.zonepath)}/some/root"
    journal.begin(instance.layout, "web", {"verb": "freeze", "origin": origin, "uuid": entry.uuid})
    zones.set_state(instance.layout, "web", State.INCOMPLETE)
    instance.run("clone", "-m", "overlay", "web", "new")
    assert instance.states() == {"web": "installed", "new": "installed"}
    assert zones.read_entry(instance.layout, "web").uuid == entry.uuid


def test_nobody_is_robbed_of_what_a_root_lies_on(instance: Instance) -> None:
    """Neither by verbs that leave files where they are, nor by a link that somebody has put beside the zonepath."""
    shared = instance.root / "shared"
    shared.mkdir(mode=0o1777)
    shared.chmod(0o1777)
    instance.installed("web", "--no-net", f"zonepath={shared}/web")
    precious = instance.root / "precious"
    (precious / "of somebody/root").mkdir(parents=True)
    trap = Path(layers.origins_beside(instance.layout, f"{shared}/web"))
    trap.symlink_to(precious)
    done = instance.run("clone", "-m", "overlay", "web", "new", check=1)
    assert "is in the way" in done.stderr and instance.state("web") == "installed"
    instance.installed("other", "--no-net", f"zonepath={shared}/other")
    instance.run("uninstall", "-F", "other")
    assert (precious / "of somebody/root").is_dir()
    trap.unlink()
    instance.run("clone", "-m", "overlay", "web", "new")
    for words in (("mark", "-F", "web", "configured"), ("delete", "-F", "web"), ("detach", "web")):
        assert "its root is in layers" in instance.run(*words, check=1).stderr, words
    assert layers.users(instance.layout)[str(trap / os.listdir(trap)[0] / "root")] == {"web", "new"}


def test_what_cannot_be_shared_is_refused_and_changes_nothing(instance: Instance) -> None:
    instance.installed("web", "--no-net")
    with overlay(instance.root / "parts") as place:
        instance.configured("new", "--no-net", f"zonepath={place}/new")
        done = instance.run("clone", "-m", "overlay", "web", "new", check=1)
        assert "cannot clone by overlay: the file system maps no ids" in done.stderr
        assert not (place / "new").exists()
    assert not zones.read_entry(instance.layout, "web").layers
    instance.run("detach", "web")


def test_a_snapshot_is_cloned_in_the_place_of_its_source(instance: Instance) -> None:
    instance.installed("web")
    snapshot = instance.root / "snapshot"
    shutil.copytree(_root(instance, "web"), snapshot / "root", symlinks=True)
    (snapshot / "root/srv/then").touch()
    instance.run("boot", "web")
    instance.run("clone", "-s", str(snapshot), "web", "new")
    assert (_root(instance, "new") / "srv/then").exists()
    instance.run("halt", "web")
    done = instance.run("clone", "-s", str(instance.root), "web", "other", check=1)
    assert "is no snapshot of a zonepath" in done.stderr


# -- against a boot ---------------------------------------------------------------------------------------------


def test_a_boot_and_a_copy_of_the_same_root_exclude_each_other(instance: Instance) -> None:
    instance.installed("web", "--no-net")
    with use_lock(instance.layout, "web", shared=True):
        done = instance.run("boot", "web", check=1)
        assert "the zone's files are being copied: wait for clone or export" in done.stderr
        assert instance.state("web") == "installed"
        instance.run("export", "web", "-f", str(instance.root / "web.tar"))  # readers do not mind each other
    with use_lock(instance.layout, "web", shared=False):
        assert "the zone comes up just now" in instance.run("clone", "web", "new", check=1).stderr
    instance.run("boot", "web")
    instance.run("halt", "web")
