"""What a zone's configuration really does to the zone: file systems, links, limits, privileges, names."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.instance import Instance
from zonemgr.linux import caps, netlink
from zonemgr.store import instance as instances

pytestmark = pytest.mark.requires("root", "mount", "net", "cgroup")


def configure(instance: Instance, *commands: str, name: str = "web") -> None:
    """One zone, installed, with these commands of config."""
    instance.configured(name)
    for command in commands:
        instance.run("config", name, *command.split(" "))
    instance.run("install", name)


def sh(instance: Instance, script: str, *, check: bool | int = True, name: str = "web") -> str:
    return instance.login(name, "sh", "-c", script, check=check)


def test_names(instance: Instance) -> None:
    configure(instance, "set hostname=www.example.org", "set hostid=0xcafe1234")
    instance.run("boot", "web")
    assert sh(instance, "hostname; uname -n; hostid") == "www.example.org\nwww.example.org\ncafe1234\n"
    assert os.uname().nodename != "www.example.org"


def test_file_systems(instance: Instance, tmp_path: Path) -> None:
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_mode & 1 == 0:
            folder.chmod(folder.stat().st_mode | 0o011)
    for name in ("shown", "owned"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    os.chown(tmp_path / "owned", 4242, 4243)
    os.chown(tmp_path / "owned/file", 4242, 4243)
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(8 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-O", "^has_journal", image], check=True)
    configure(
        instance,
        f"add fs dir=/shown special={tmp_path}/shown type=bind options=ro",
        f"add fs dir=/a/b/owned special={tmp_path}/owned type=bind owner=4242:4243",
        "add fs dir=/scratch special=tmpfs type=tmpfs options=[size=1m,nosuid]",
        f"add fs dir=/data special={image} type=ext4",
    )
    instance.run("boot", "web")
    assert sh(instance, "cat /shown/file") == "shown"
    sh(instance, "echo x > /shown/file", check=2)
    sh(instance, "mount -o remount,rw /shown || mount -o remount,bind,rw /shown", check=32)
    assert (tmp_path / "shown/file").read_text() == "shown"

    assert sh(instance, "stat -c %u:%g /a/b/owned/file") == "0:0\n"
    sh(instance, "echo new > /a/b/owned/file; echo made > /a/b/owned/made; chmod u+s /a/b/owned/made")
    made = (tmp_path / "owned/made").stat()
    assert (made.st_uid, made.st_gid) == (4242, 4243)

    assert sh(instance, "stat -f -c %T /scratch; stat -f -c %T /data") == "tmpfs\next2/ext3\n"
    sh(instance, "head -c 2000000 /dev/zero > /scratch/x", check=1)
    sh(instance, "echo kept > /data/kept")
    instance.run("reboot", "web")
    assert sh(instance, "cat /data/kept; ls /scratch") == "kept\n"
    instance.run("halt", "web")
    assert str(image) not in subprocess.run(["losetup", "-a"], capture_output=True, text=True).stdout
    done = subprocess.run(["e2fsck", "-f", "-n", image], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.fixture
def pair() -> Iterator[tuple[str, str]]:
    """Two linked ends on the host."""
    inner, outer = f"zt{os.getpid()}a", f"zt{os.getpid()}b"
    subprocess.run(["ip", "link", "add", inner, "type", "veth", "peer", "name", outer], check=True)
    yield inner, outer
    if netlink.link_exists(outer):
        netlink.delete_link(outer)


def test_a_physical_link_moves_in_and_comes_back(instance: Instance, pair: tuple[str, str]) -> None:
    inner, outer = pair
    subprocess.run(["ip", "address", "add", "10.254.77.1/24", "dev", outer], check=True)
    subprocess.run(["ip", "link", "set", outer, "up"], check=True)
    instance.run("create", "web", "--no-net")
    instance.run("config", "web", "add", "net", f"physical={inner}", "address=10.254.77.2/24")
    instance.run("install", "web")
    instance.run("boot", "web")
    assert not netlink.link_exists(inner)
    assert inner in sh(instance, "cat /proc/net/dev")
    subprocess.run(["ping", "-c", "1", "-W", "5", "10.254.77.2"], check=True, stdout=subprocess.DEVNULL)
    instance.run("reboot", "web")
    subprocess.run(["ping", "-c", "1", "-W", "5", "10.254.77.2"], check=True, stdout=subprocess.DEVNULL)
    sh(
        instance, f"ip link set {inner} down; ip link set {inner} name mine"
    )  # it is known by more than its name
    instance.run("halt", "web")
    assert netlink.link_exists(inner)
    instance.run("boot", "web")
    sh(instance, f"ip link delete {inner}")
    instance.run("halt", "web")
    assert instance.state() == "installed"


def test_memory(instance: Instance) -> None:
    configure(instance, "add capped-memory physical=64M swap=64M")
    instance.run("boot", "web")
    hog = "python3 -c 'x = bytearray(200 << 20)'"
    assert instance.run("login", "web", "--", "sh", "-c", hog, check=False).returncode in (1, 137)
    sh(instance, "python3 -c 'x = bytearray(20 << 20)'")
    assert instance.state() == "running"


def test_processes_and_cpu(instance: Instance) -> None:
    configure(instance, "set max-lwps=100", "add capped-cpu ncpus=0.5", "set cpu-shares=50")
    instance.run("boot", "web")
    script = "i=0; while [ $i -lt 150 ]; do sleep 100 & i=$((i+1)); done; echo started"
    done = instance.run("login", "web", "--", "sh", "-c", script, check=False)
    assert "started" not in done.stdout or "Cannot fork" in done.stderr
    record = instances.read(instance.layout, "web")
    assert record is not None
    values = {}
    for folder in (record.cgroup, *record.cgroups_v1):
        for name in (
            "pids.max",
            "cpu.max",
            "cpu.cfs_quota_us",
            "cpu.cfs_period_us",
            "cpu.shares",
            "cpu.weight",
        ):
            if Path(folder, name).exists():
                values[name] = Path(folder, name).read_text().strip()
    assert values["pids.max"] == "100"
    if "cpu.cfs_quota_us" in values:
        assert int(values["cpu.cfs_quota_us"]) * 2 == int(values["cpu.cfs_period_us"])
    else:
        quota, period = values["cpu.max"].split()
        assert int(quota) * 2 == int(period)
    instance.run("halt", "web")


def test_limits_that_the_kernel_cannot_apply(instance: Instance) -> None:
    """Refused by name, unless the zone says best-effort."""
    configure(instance, "add capped-memory physical=64M locked=1M")
    done = instance.run("boot", "web", check=False)
    if done.returncode == 0:
        assert sh(instance, "ulimit -l").strip() == "1024"
        return
    assert "locked" in done.stderr
    assert instance.state() == "installed"
    instance.run("config", "web", "set", "best-effort=true")
    assert "locked" in instance.run("boot", "web").stderr


def test_privileges(instance: Instance) -> None:
    configure(instance, "set limitpriv=default,!net_raw,!sys_mount")
    instance.run("boot", "web")
    record = instances.read(instance.layout, "web")
    assert record is not None and record.init is not None
    text = Path(f"/proc/{record.init.pid}/status").read_text()
    for row in ("CapBnd", "CapEff", "CapPrm"):
        mask = int(next(line for line in text.splitlines() if line.startswith(row)).split()[1], 16)
        for name in ("net_raw", "sys_module", "sys_rawio", "mac_admin"):
            assert not mask >> caps.NUMBERS[name] & 1, (row, name)
    raw = "python3 -c 'import socket; socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)'"
    assert "Operation not permitted" in instance.run("login", "web", "--", "sh", "-c", raw, check=1).stderr
    instance.run("halt", "web")
    for bad, says in (
        ("default,sys_module", "sys_module"),
        ("default,frobnicate", "frobnicate"),
        ("default,!proc_setid", "required privilege"),
    ):
        done = instance.run("config", "web", "set", f"limitpriv={bad}", check=1)
        assert says in done.stderr


def test_what_has_no_effect_is_refused_or_said(instance: Instance) -> None:
    """A setting that nothing acts on must not pass in silence."""
    instance.configured()
    done = instance.run("config", "web", "add", "dedicated-cpu", "ncpus=1", "importance=5", check=False)
    assert "importance" in done.stderr


def test_boot_arguments_and_autoboot_are_kept(instance: Instance) -> None:
    configure(instance, "set autoboot=true")
    instance.run("config", "web", "set", "bootargs=-m verbose")
    instance.run("boot", "web")
    assert sh(instance, "tr '\\0' ' ' < /proc/1/cmdline").strip().endswith("-m verbose")
    instance.run("reboot", "web", "--", "-s")
    assert sh(instance, "tr '\\0' ' ' < /proc/1/cmdline").strip().endswith("-s")
