"""A busybox zone on the real kernel: what is in it, how it starts, and every way down."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from tests.kit.instance import Instance
from tests.kit.waiting import until

pytestmark = pytest.mark.requires("root", "userns", "mount", "net", "cgroup", "busybox")


def _root(instance: Instance, name: str = "web") -> Path:
    return instance.layout.zonepath(name) / "root"


def _make(instance: Instance) -> Path:
    instance.installed("web", "-b", "busybox")
    return _root(instance)


def _script(root: Path, name: str, text: str) -> None:
    path = root / "etc/rc.d" / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_the_root_is_small_and_everything_is_the_one_program(instance: Instance) -> None:
    root = _make(instance)
    assert sum(path.lstat().st_blocks * 512 for path in root.rglob("*")) < 4_000_000
    programs = {
        path for folder in ("bin", "sbin") for path in (root / folder).iterdir() if not path.is_symlink()
    }
    assert programs == {root / "bin/busybox"}
    assert os.readlink(root / "sbin/init") == "/bin/busybox"
    assert stat.S_IMODE(root.stat().st_mode) == 0o755
    assert len((root / "etc/machine-id").read_text()) == 33


def test_it_runs_start_up_scripts_and_commands_as_root_of_the_zone(instance: Instance) -> None:
    root = _make(instance)
    _script(root, "S10mark", 'echo "$1" >> /var/log/mark')
    instance.run("boot", "web")
    until(lambda: (root / "var/log/mark").exists(), "start-up")
    assert instance.login("web", "id", "-u") == "0\n"
    assert instance.login("web", "hostname") == "web\n"
    assert instance.login("web", "cat", "/proc/1/comm") == "init\n"
    instance.run("shutdown", "web")
    assert instance.state("web") == "installed"
    assert (root / "var/log/mark").read_text() == "start\nstop\n"


@pytest.mark.parametrize("command", ["halt", "poweroff"])
def test_going_down_from_inside_ends_installed(instance: Instance, command: str) -> None:
    _make(instance)
    instance.run("boot", "web")
    instance.login("web", command, "-f", check=False)
    until(lambda: instance.state("web") == "installed", "the halt")


def test_a_reboot_from_inside_is_a_new_life(instance: Instance) -> None:
    root = _make(instance)
    _script(root, "S10mark", '[ "$1" != start ] || echo up >> /var/log/mark')
    instance.run("boot", "web")
    until(lambda: (root / "var/log/mark").exists(), "start-up")
    instance.login("web", "reboot", check=False)
    until(lambda: (root / "var/log/mark").read_text() == "up\nup\n", "the reboot")
    assert instance.state("web") == "running"


def test_install_takes_no_options(instance: Instance) -> None:
    instance.configured("web", "-b", "busybox")
    done = instance.run("install", "web", "--nonsense", check=2)
    assert "takes no install options" in done.stderr
    assert instance.state("web") == "configured"


def test_a_copy_gets_an_identity_of_its_own(instance: Instance) -> None:
    from zonemgr.brandkit import loader
    from zonemgr.brandkit.base import ZoneInfo
    from zonemgr.store import zones

    root = _make(instance)
    before = (root / "etc/machine-id").read_text()
    brand = loader.load("busybox", instance.layout)
    brand.unconfigure(ZoneInfo.of(zones.load(instance.layout, "web")))
    after = (root / "etc/machine-id").read_text()
    assert len(after) == len(before) and after != before
