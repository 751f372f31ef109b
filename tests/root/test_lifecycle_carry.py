"""move, rename, detach, attach, mark, sysboot and autoboot, as an operator uses them."""

from __future__ import annotations

import json
import os
import signal
import stat
from pathlib import Path

import pytest

from tests.kit.disks import mounted
from tests.kit.instance import Instance
from zonemgr.store import detached, zones
from zonemgr.store import instance as instances

pytestmark = pytest.mark.requires("root")


def _base(instance: Instance, name: str) -> int | None:
    return zones.read_entry(instance.layout, name).uid_base


# -- move ---------------------------------------------------------------------------------------------------------


def test_move_within_a_file_system_is_a_rename_and_keeps_ids_and_uuid(instance: Instance) -> None:
    instance.installed("web")
    before = zones.read_entry(instance.layout, "web")
    (Path(before.zonepath) / "notes").write_text("mine")
    target = instance.root / "elsewhere/web"
    instance.run("move", "web", str(target))
    after = zones.read_entry(instance.layout, "web")
    assert (after.uuid, after.uid_base, after.state, after.zonepath) == (
        *(before.uuid, before.uid_base, before.state),
        str(target),
    )
    assert (target / "notes").read_text() == "mine" and not Path(before.zonepath).exists()
    assert stat.S_IMODE(target.stat().st_mode) == 0o700


@pytest.mark.requires("loop", "userns", "net", "cgroup")
def test_move_across_file_systems_copies_then_cleans_up(instance: Instance) -> None:
    instance.installed("web")
    before = Path(zones.read_entry(instance.layout, "web").zonepath)
    with mounted("ext4", instance.root / "disks", size="64M") as place:
        done = instance.run("move", "web", f"{place}/web")
        assert f"Cleaning up zonepath {before}..." in done.stderr
        assert not before.exists()
        instance.run("boot", "web")
        instance.run("halt", "web")
        instance.run("move", "web", str(before))
        assert not (place / "web").exists()


@pytest.mark.requires("loop")
def test_a_move_to_a_full_disk_is_taken_back(instance: Instance) -> None:
    instance.installed("web")
    root = Path(zones.read_entry(instance.layout, "web").zonepath) / "root"
    (root / "large").write_bytes(os.urandom(8 << 20))
    with mounted("ext4", instance.root / "disks", size="6M") as place:
        (place / "web").mkdir(mode=0o700)
        done = instance.run("move", "web", f"{place}/web", check=1)
        assert "No space left on device" in done.stderr
        assert (place / "web").is_dir() and not list((place / "web").iterdir())  # it was there before
    assert instance.state("web") == "installed" and (root / "large").exists()
    assert zones.read_entry(instance.layout, "web").zonepath == str(root.parent)


def test_two_administrators_at_once_do_not_share_a_zone(instance: Instance) -> None:
    """Whatever one of them does, the other is told, or comes after; the zone is whole."""
    instance.installed("web")
    words = [("move", "web", str(instance.root / "a")), ("rename", "web", "www"), ("clone", "web", "new")]
    running = [instance.popen(*line) for line in words]
    for process in running:
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0 or any(
            text in said for text in ("may have an operation in progress", "No such zone", "incomplete", "in use")
        ), said
    states = instance.states()
    assert states.get("web", states.get("www")) == "installed"
    assert set(states.values()) == {"installed"}


def test_where_a_zone_cannot_be_moved(instance: Instance) -> None:
    instance.installed("web")
    path = zones.read_entry(instance.layout, "web").zonepath
    full, link = instance.root / "full", instance.root / "link"
    (full / "something").mkdir(parents=True)
    link.symlink_to(full)
    for target, text in (
        (str(full), f"could not move zone to {full}: directory not empty"),
        (str(link), f"{link} is not a directory."),
        (f"{path}/deeper", "one path lies within the other"),
        (path, "is where the zone is"),
    ):
        assert text in instance.run("move", "web", target, check=1).stderr
    assert "zonepath" in instance.run("move", "web", "relative/path", check=2).stderr
    instance.configured("db")
    assert "must be installed before move." in instance.run("move", "db", str(instance.root / "x"), check=1).stderr


# -- rename -------------------------------------------------------------------------------------------------------


@pytest.mark.requires("userns", "net", "cgroup")
def test_a_renamed_zone_keeps_all_but_its_name(instance: Instance) -> None:
    instance.installed("web", "autoboot=true")
    before = zones.read_entry(instance.layout, "web")
    with instance.layout.config("web").open("a") as stream:
        stream.write("# a comment\n")
    instance.run("rename", "web", "www")
    after = zones.read_entry(instance.layout, "www")
    assert (after.uuid, after.uid_base) == (before.uuid, before.uid_base)
    assert after.zonepath == str(instance.layout.zonepath("www"))
    assert "# a comment" in instance.layout.config("www").read_text()
    assert instance.states() == {"www": "installed"}
    instance.run("boot", "www")
    assert instance.login("www", "cat", "/proc/sys/kernel/hostname", "/etc/hostname") == "www\nwww\n"
    instance.run("halt", "www")
    instance.configured("web")  # its old name is free again
    assert "Zone name already in use" in instance.run("rename", "www", "web", check=1).stderr
    instance.run("rename", "web", "db")
    assert instance.states() == {"db": "configured", "www": "installed"}


def test_a_zonepath_of_its_own_choice_stays_at_a_rename(instance: Instance) -> None:
    path = str(instance.root / "mine")
    instance.installed("web", f"zonepath={path}")
    instance.run("rename", "web", "www")
    assert zones.read_entry(instance.layout, "www").zonepath == path


@pytest.mark.requires("userns", "net", "cgroup")
def test_a_running_zone_is_neither_moved_nor_renamed_nor_detached_nor_marked(instance: Instance) -> None:
    instance.running("web")
    for words in (("move", "web", "/x"), ("rename", "web", "www"), ("detach", "web"), ("mark", "web", "incomplete")):
        done = instance.run(*words, check=1)
        assert f"{words[0]} operation is invalid for running zones." in done.stderr
    assert instance.states() == {"web": "running"}


# -- detach and attach --------------------------------------------------------------------------------------------


@pytest.mark.requires("userns", "net", "cgroup")
def test_detached_files_become_a_zone_again_under_another_name(instance: Instance) -> None:
    instance.installed("web")
    path = zones.read_entry(instance.layout, "web").zonepath
    instance.run("detach", "web")
    assert instance.states() == {"web": "configured"} and _base(instance, "web") is None
    done = instance.run("install", "web", check=1)
    assert "Cannot install detached zone." in done.stderr
    instance.run("attach", "new", "--from", path)
    assert instance.state("new") == "installed" and not detached.marker(path).exists()
    instance.run("boot", "new")
    assert "overlaps" in instance.run("attach", "web", check=1).stderr
    instance.run("halt", "new")


def test_detach_n_and_attach_n_change_nothing(instance: Instance) -> None:
    instance.installed("web")
    text = instance.run("detach", "-n", "web").stdout
    assert json.loads(text)["brand"] == "native" and instance.state("web") == "installed"
    instance.run("attach", "other", "-n", "-", input=text)
    done = instance.run("attach", "other", "-n", "-", input=text.replace('"native"', '"nowhere"'), check=1)
    assert "nowhere" in done.stderr
    assert "is no manifest of a zone" in instance.run("attach", "other", "-n", "-", input="{}", check=1).stderr
    assert "mutually exclusive" in instance.run("attach", "web", "-F", "-n", "-", check=2).stderr
    assert instance.states() == {"web": "installed"}


def test_attach_wants_a_detached_root_unless_forced(instance: Instance) -> None:
    instance.installed("web")
    path = Path(zones.read_entry(instance.layout, "web").zonepath)
    assert "is already installed." in instance.run("attach", "web", check=1).stderr
    instance.run("mark", "-F", "web", "configured")
    assert "is not a detached zone" in instance.run("attach", "web", check=1).stderr
    instance.run("attach", "-F", "web")
    assert instance.state("web") == "installed"
    instance.run("detach", "web")
    (path / "root").rename(path / "away")
    (path / "root").symlink_to("/")
    assert "is not a directory." in instance.run("attach", "web", check=1).stderr
    assert instance.state("web") == "configured"


def test_a_manifest_grants_nothing(instance: Instance) -> None:
    instance.installed("web")
    path = zones.read_entry(instance.layout, "web").zonepath
    instance.run("detach", "web")
    found = json.loads(detached.marker(path).read_text())
    found["configuration"] = "privileged = true\n" + found["configuration"]
    detached.marker(path).write_text(json.dumps(found))
    done = instance.run("attach", "new", "--from", path)
    assert "not taken over: privileged = true" in done.stderr
    assert not zones.load(instance.layout, "new").privileged


# -- mark ---------------------------------------------------------------------------------------------------------


def test_mark_corrects_the_record(instance: Instance) -> None:
    instance.installed("web")
    instance.run("mark", "web", "incomplete")
    assert instance.state("web") == "incomplete"
    assert instance.run("mark", "web", "installed", check=2).stderr
    instance.run("mark", "-F", "web", "installed")
    assert instance.state("web") == "installed" and _base(instance, "web") is not None
    instance.run("mark", "-F", "web", "configured")
    assert _base(instance, "web") is None
    instance.configured("db")
    assert "is not there" in instance.run("mark", "-F", "db", "installed", check=1).stderr


# -- the host's start and stop ------------------------------------------------------------------------------------


@pytest.mark.requires("userns", "net", "cgroup")
def test_autoboot_boots_what_is_to_boot_and_tells_of_each(instance: Instance) -> None:
    instance.installed("one", "autoboot=true")
    instance.installed("two", "autoboot=true")
    instance.installed("idle")
    instance.configured("bare", "autoboot=true")
    broken = Path(zones.read_entry(instance.layout, "two").zonepath)
    (broken / "root").rename(broken / "away")
    done = instance.run("autoboot", check=1)
    assert "1 of 3 zones failed to start: two" in done.stderr
    assert instance.states() == {"one": "running", "two": "installed", "idle": "installed", "bare": "configured"}
    results = {item["zonename"]: (item["action"], item["ok"]) for item in _status(instance)}
    assert results == {"one": ("boot", True), "two": ("boot", False), "idle": ("sysboot", True)}
    (broken / "away").rename(broken / "root")
    instance.run("autoboot")
    assert instance.state("two") == "running"
    instance.run("autoboot", "--stop")
    assert "running" not in instance.states().values()


def _status(instance: Instance) -> list[dict[str, object]]:
    found = json.loads((instance.layout.run / "autoboot.json").read_text())["results"]
    assert isinstance(found, list)
    return found


@pytest.mark.requires("userns", "net", "cgroup")
def test_stop_halts_what_does_not_shut_down_and_unmounts(instance: Instance) -> None:
    instance.running("web")
    instance.installed("held")
    instance.run("mount", "held")
    instance.installed("waiting")
    instance.run("ready", "waiting")
    living = instances.read(instance.layout, "web")
    assert living is not None and living.init is not None
    os.kill(living.init.pid, signal.SIGSTOP)  # it shuts nothing down any more
    instance.run("autoboot", "--stop", "-t", "4")
    assert set(instance.states().values()) == {"installed"}


def test_sysboot_is_for_installed_zones(instance: Instance) -> None:
    instance.configured("web")
    assert "sysboot operation is invalid for configured zones." in instance.run("sysboot", "web", check=1).stderr
    instance.run("install", "web")
    instance.run("sysboot", "web")


def test_every_verb_has_a_result_in_json(instance: Instance) -> None:
    """The same shape for all, on standard output; what was said is in it, and on standard error as ever."""
    archive = str(instance.root / "web.tar")
    instance.configured("web", "--no-net")
    for words in (
        ("verify", "web"),
        ("install", "web"),
        ("clone", "web", "new"),
        ("move", "new", str(instance.root / "elsewhere")),
        ("rename", "new", "other"),
        ("detach", "other"),
        ("attach", "other"),
        ("sysboot", "other"),
        ("export", "web", "-f", archive),
        ("mark", "web", "incomplete"),
        ("uninstall", "web", "-F"),
        ("import", "third", "-f", archive),
        ("delete", "web", "-F"),
    ):
        done = instance.run("--json", *words)
        (result,) = json.loads(done.stdout)
        assert result["ok"] and result["zonename"] in ("web", "new", "other", "third"), words
        assert [f"zonemgr: zone '{result['zonename']}': {line}" for line in result["messages"]] == (
            done.stderr.splitlines()
        )
    (result,) = json.loads(instance.run("--json", "install", "other", check=1).stdout)
    assert result == {"zonename": "other", "ok": False, "note": None, "messages": ["is already installed."]}
    manifest = json.loads(instance.run("--json", "detach", "-n", "other").stdout)
    assert manifest["zonename"] == "other"
    assert not instance.run("--json", "export", "third").stdout.startswith("[")
