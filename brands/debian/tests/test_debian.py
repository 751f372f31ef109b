"""A Debian zone, once from the mirror to the end of its systemd; and what of the brand needs no mirror."""

from __future__ import annotations

import os
import stat
from collections import deque
from pathlib import Path

import pytest

from brands.debian import bootstrap, mirror, personality
from tests.kit.debian import Debian
from tests.kit.instance import Instance
from tests.kit.plugin import Registry
from tests.kit.waiting import until
from zonemgr.brandkit import loader
from zonemgr.brandkit.base import ZoneInfo
from zonemgr.brandkit.rootdir import RootDir
from zonemgr.store import zones

LIFE_S = 180.0  # from systemd's order to reboot until the next login prompt; services may take their time to stop


@pytest.mark.host
@pytest.mark.long
@pytest.mark.requires("root", "userns", "mount", "net", "cgroup", "debootstrap")
def test_from_the_mirror_to_an_orderly_shutdown(debian: Debian, no_leaks: Registry) -> None:
    """One story, since the install is what takes long: a minute, more on a busy machine."""
    instance, said = no_leaks.add(debian.instance), debian.said
    root = instance.layout.zonepath("web") / "root"

    assert "configuring packages" in said
    assert max(max(path.lstat().st_uid, path.lstat().st_gid) for path in root.rglob("*")) < 65536
    assert (root / "etc/machine-id").read_text() == ""
    assert not list((root / "etc/ssh").glob("ssh_host_*"))
    assert not (root / "debootstrap").exists()
    assert stat.S_IMODE((root / "usr/bin/su").stat().st_mode) == 0o4755
    cached = list((instance.layout.lib / "cache/debian").rglob("*.deb"))
    assert len(cached) > 50 and not list((root / "var/cache/apt/archives").glob("*.deb"))

    instance.run("boot", "web")
    waiting = ("systemctl", "is-system-running", "--wait")  # fails too as long as systemd's socket is not there
    until(lambda: instance.login("web", *waiting, check=False) == "running\n", "running", deadline_s=LIFE_S)
    assert instance.login("web", "systemctl", "--failed", "--no-legend") == ""
    until(lambda: instance.json("list", "web")[0]["ready"], "systemd's word", deadline_s=LIFE_S)
    assert instance.login("web", "hostname") == "web\n"
    assert len((root / "etc/machine-id").read_text()) == 33

    console = instance.layout.zone_log("web") / "console.log"

    def prompts() -> int:
        return console.read_text(errors="replace").count("login:")

    before = until(prompts, "the first life's login prompt", deadline_s=LIFE_S)
    instance.login("web", "systemctl", "reboot", check=False)
    until(lambda: prompts() > before, "the second life's login prompt", deadline_s=LIFE_S)
    instance.run("shutdown", "web")
    assert instance.state("web") == "installed"
    assert "System Halt" in console.read_text(errors="replace")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("-x",), "usage:"),
        (("more",), "unexpected 'more'"),
        (("-s", "../x"), "no suite"),
        (("-p", "bash;reboot"), "no suite or package"),
        (("-m", "ftp://x"), "http, https or file"),
    ],
)
@pytest.mark.requires("root", "debootstrap")
def test_wrong_arguments_are_explained_and_change_nothing(
    instance: Instance, words: tuple[str, ...], text: str
) -> None:
    instance.configured("web", "-b", "debian")
    assert text in instance.run("install", "web", *words, check=2).stderr
    assert instance.state("web") == "configured"


@pytest.mark.requires("root", "userns", "mount", "debootstrap")
def test_a_mirror_that_has_nothing_leaves_the_zone_configured(instance: Instance, tmp_path: Path) -> None:
    instance.configured("web", "-b", "debian")
    done = instance.run("install", "web", "-s", "bookworm", "-m", f"file:{tmp_path}", check=1)
    assert "debootstrap failed" in done.stderr
    assert instance.state("web") == "configured"
    assert not instance.layout.zonepath("web").exists()


@pytest.mark.requires("root")
def test_a_copy_forgets_who_it_was(instance: Instance) -> None:
    instance.configured("web", "-b", "debian")
    zone = ZoneInfo.of(zones.load(instance.layout, "web"))
    Path(zone.root).mkdir(parents=True)
    with RootDir(zone.root) as root:
        personality.finish(root, "web")
        root.write("/etc/machine-id", "0" * 32)
        root.write("/etc/ssh/ssh_host_ed25519_key", "secret")
        root.write("/etc/ssh/ssh_config", "kept")
        loader.load("debian", instance.layout).unconfigure(zone)
        assert root.read("/etc/machine-id") == b""
        assert root.names("/etc/ssh") == ["ssh_config"]
        assert root.link_target("/etc/systemd/system/sys-kernel-debug.mount") == "/dev/null"


# -- the mirror -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("suite", "expected"),
    [("here", "http://a/debian/"), ("stable", "http://a/debian/"), ("other", "http://a/debian/")],
)
def test_the_mirror_is_the_one_of_the_hosts_apt(
    monkeypatch: pytest.MonkeyPatch, suite: str, expected: str
) -> None:
    rows = [
        "cdrom:[x]/ here here stable main",
        "http://b/foreign/ nodistro nodistro nodistro main",
        "http://c/more/ here here stable contrib",
        "http://a/debian/ here here stable main",
    ]
    monkeypatch.setattr(mirror, "_ask", lambda *_command: rows)
    monkeypatch.setattr(mirror, "own_suite", lambda: "here")
    assert mirror.mirror_of(suite) == expected


def test_the_package_list_holds_each_once_and_certificates_where_they_are_needed() -> None:
    wish = bootstrap.Wish("here", "https://a/", ("dbus", "vim-tiny"))
    words = wish.include.split(",")
    assert len(words) == len(set(words))
    assert {"ca-certificates", "vim-tiny", "systemd-sysv"} <= set(words)


def test_progress_is_a_line_for_each_step_and_warnings_come_through() -> None:
    lines = [f"I: Retrieving p{number} 1" for number in range(30)]
    lines += ["I: Extracting p1...", "W: mount -t sysfs sysfs /sys", "W: odd", "E: bad"]
    last: deque[str] = deque(maxlen=2)
    said = list(bootstrap._progress(lines, last))
    assert said == [
        "retrieving packages",
        "retrieving packages: 25",
        "extracting packages",
        "W: odd",
        "E: bad",
    ]
    assert list(last) == ["W: odd", "E: bad"]


# -- the cache --------------------------------------------------------------------------------------------------


@pytest.mark.requires("root")
def test_the_cache_keeps_regular_files_of_the_newest_version_only(tmp_path: Path) -> None:
    cache, secret = tmp_path / "cache", tmp_path / "secret"
    cache.mkdir()
    secret.write_text("secret")
    (cache / "a_1_all.deb").write_text("old")
    (cache / "c_1_all.deb").write_text("of another list")
    with RootDir.make(str(tmp_path / "root")) as root:
        root.write(f"{bootstrap.ARCHIVES}/a_2_all.deb", "new")
        root.link(f"{bootstrap.ARCHIVES}/b_1_all.deb", str(secret))
        os.mkfifo(tmp_path / "root" / bootstrap.ARCHIVES[1:] / "d_1_all.deb")
        with pytest.raises(OSError):
            bootstrap._harvest(root, cache)
        root.remove(f"{bootstrap.ARCHIVES}/b_1_all.deb")
        bootstrap._harvest(root, cache)
    assert sorted(path.name for path in cache.iterdir()) == ["a_2_all.deb", "c_1_all.deb"]
    with RootDir.make(str(tmp_path / "next")) as root:
        bootstrap._seed(cache, root, 0)
        assert root.read(f"{bootstrap.ARCHIVES}/a_2_all.deb") == b"new"
