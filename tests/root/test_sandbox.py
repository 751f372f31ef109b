"""Programs of a new root in their sandbox: they are root there, and nobody on the host."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from zonemgr.brandkit import BrandError
from zonemgr.brandkit.sandbox import ROOT, Sandbox

pytestmark = pytest.mark.requires("root", "userns", "mount")

BASE = 0x7000_0000


@pytest.fixture
def box(tmp_path: Path) -> Sandbox:
    root = tmp_path / "root"
    root.mkdir()
    os.chown(root, BASE, BASE)
    return Sandbox(str(root), BASE, {"note": "of the sandbox"})


def _sh(box: Sandbox, script: str) -> list[str]:
    return list(box.run(("sh", "-c", script)))


def test_it_is_root_with_the_zones_ids_in_the_root(box: Sandbox, tmp_path: Path) -> None:
    assert _sh(box, "id -u; pwd; touch mine; chown 7:8 mine; chmod 4755 mine") == ["0", ROOT]
    status = (tmp_path / "root/mine").stat()
    assert (status.st_uid, status.st_gid) == (BASE + 7, BASE + 8)
    box.settle()
    status = (tmp_path / "root/mine").stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (7, 8, 0o4755)


@pytest.mark.parametrize(
    "script",
    [
        "cat /etc/shadow",
        "touch /etc/zonemgr-test",
        "chmod 777 /tmp",
        "mount -o remount,rw,suid /run",
        "umount /run",
        "mknod node c 1 3",
        "echo x > /proc/sys/kernel/core_pattern",
    ],
)
def test_it_can_do_nothing_to_the_host(box: Sandbox, script: str) -> None:
    with pytest.raises(BrandError, match="failed with status"):
        _sh(box, script)
    assert not Path("/etc/zonemgr-test").exists()


def test_the_hosts_run_is_not_seen(box: Sandbox) -> None:
    assert _sh(
        box, "cat /run/note; ls /run/systemd 2>/dev/null | grep private; ls /run/dbus 2>/dev/null; true"
    ) == ["of the sandbox"]


def test_no_descriptor_of_the_host_comes_along(box: Sandbox) -> None:
    held = os.open("/etc/shadow", os.O_RDONLY)
    try:
        os.set_inheritable(held, True)
        assert len(_sh(box, "for fd in /proc/self/fd/*; do echo $fd; done")) <= 4
        assert "shadow" not in "".join(_sh(box, "ls -l /proc/self/fd"))
    finally:
        os.close(held)


def test_devices_of_the_root_work(box: Sandbox) -> None:
    assert _sh(box, "echo x > dev/null; head -c 3 dev/zero | wc -c; test -c dev/urandom && echo yes") == [
        "3",
        "yes",
    ]
    assert os.listdir(Path(box.root) / "dev") == []


def test_a_failure_names_the_program(box: Sandbox) -> None:
    with pytest.raises(BrandError, match="nowhere failed with status 127"):
        list(box.run(("nowhere",)))
