"""Devices of a zone: what it may open, as whom, and what else is not there."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from tests.kit.instance import Instance

pytestmark = pytest.mark.requires("root", "userns", "net", "cgroup")


def a_device_in_a_folder() -> str:
    """Some character device of the host that lies in a folder of /dev (net/tun, cpu_dma..., mapper/control)."""
    for path in sorted(Path("/dev").glob("*/*")):
        if path.parent.name not in ("pts", "fd", "shm") and stat.S_ISCHR(path.lstat().st_mode):
            return str(path.relative_to("/dev"))
    pytest.fail("this host has no device in a folder of /dev")


def test_matched_devices_appear_with_the_owners_of_the_zone(instance: Instance) -> None:
    name = a_device_in_a_folder()
    instance.installed("web")
    instance.run("config", "web", "add", "device", f"match={name}")
    instance.run("config", "web", "add", "device", "match=[nz]*[lo]")  # null and zero, which are there anyway
    instance.run("boot", "web")
    shown = instance.login("web", "stat", "-c", "%F %t:%T %u", f"/dev/{name}", "/dev/null")
    host = os.stat(f"/dev/{name}").st_rdev
    assert shown.splitlines() == [
        f"character special file {os.major(host):x}:{os.minor(host):x} 0",
        "character special file 1:3 0",
    ]
    assert (
        instance.login("web", "sh", "-c", "echo x >/dev/null; head -c 4 /dev/zero | od -An -tx1").split()
        == ["00"] * 4
    )
    instance.run("halt", "web")


def test_a_device_that_the_host_lacks_refuses_the_boot(instance: Instance) -> None:
    instance.installed("web")
    instance.run("config", "web", "add", "device", "match=no-such-device")
    done = instance.run("boot", "web", check=1)
    assert done.stderr == "zonemgr: zone 'web': device /dev/no-such-device does not exist on the host\n"
    assert instance.state() == "installed"


def test_the_zone_makes_no_devices_of_its_own(instance: Instance) -> None:
    instance.running("web")
    for place in ("/tmp", "/dev", "/root"):
        instance.login("web", "mknod", f"{place}/mine", "c", "1", "3", check=1)
    instance.run("halt", "web")
