"""A zone mounted for maintenance runs the host's programs over a hostile root: its root gets no further for that."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.instance import Instance
from tests.root.attacks.inside import ask

pytestmark = pytest.mark.requires("root", "userns", "mount", "net", "cgroup")


@pytest.fixture(scope="module", params=["scratch", "update"])
def mounted(installed: Instance, request: pytest.FixtureRequest) -> Iterator[Instance]:
    """The zone, mounted in each of the two ways."""
    options = ["--update"] if request.param == "update" else []
    installed.run("mount", *options, "web")
    yield installed
    installed.run("unmount", "web")


def private_files() -> list[str]:
    """Files of the host that not everybody may read, in folders that everybody may enter."""
    found = []
    for top in ("/etc", "/var", "/opt"):
        for folder, names, files in os.walk(top):
            names[:] = [name for name in names if _mode(f"{folder}/{name}", follow=True) & stat.S_IXOTH]
            for name in files:
                mode = _mode(f"{folder}/{name}", follow=False)
                if stat.S_ISREG(mode) and not mode & stat.S_IROTH:
                    found.append(f"{folder}/{name}")
    return found[:500]


def _mode(path: str, *, follow: bool) -> int:
    """0 for what has gone meanwhile: others of this host come and go there."""
    try:
        return os.stat(path, follow_symlinks=follow).st_mode
    except FileNotFoundError:
        return 0


@pytest.mark.attack("a zone that is open for maintenance")
def test_what_only_root_of_the_host_may_read_stays_unread(mounted: Instance, secret: Path) -> None:
    files = [*private_files(), str(secret), "/root/.bashrc", "/root/.profile"]
    assert "/etc/shadow" in files
    hashes = [line for line in Path("/etc/shadow").read_text().splitlines() if len(line.split(":")[1]) > 4]
    program = f"""
def content(path):
    try:
        return open(path, "rb").read(100000).decode("latin-1")
    except OSError:
        return None
answer({{path: content(path) for path in json.loads({json.dumps(json.dumps(files))})}})
"""
    seen = ask(mounted, program)
    for path, text in seen.items():
        if text:  # the zone's own file of that name
            assert text != Path(path).read_text(encoding="latin-1"), path
            assert not any(line in text for line in hashes), path


@pytest.mark.attack("a zone that is open for maintenance")
def test_nothing_of_the_host_can_be_written(mounted: Instance) -> None:
    before = {path: os.stat(path).st_mtime_ns for path in ("/usr", "/usr/bin", "/etc", "/var", "/opt", "/usr/bin/env")}
    program = """
tried = []
for folder in ("/usr", "/usr/bin", "/usr/local", "/bin", "/lib"):
    tried += [attempt(write, folder + "/zonemgr-planted", "x")]
tried += [attempt(os.unlink, "/usr/bin/env"), attempt(os.chmod, "/usr/bin/env", 0o4777)]
tried += [mount(None, "/usr", None, REMOUNT | BIND)]
for folder in ("/etc", "/var", "/opt"):
    attempt(write, folder + "/zonemgr-planted", "x")
tried += [attempt(os.mknod, "/a/disk", stat.S_IFBLK | 0o600, os.makedev(8, 0))]
tried += [call("umount2", "/usr", 2), mount(None, "/usr", None, REMOUNT | BIND | NOSUID | NODEV)]
answer(tried)
"""
    assert all(ask(mounted, program))
    assert {path: os.stat(path).st_mtime_ns for path in before} == before


def test_the_maintained_zone_has_no_network_no_privilege_more_and_the_filter(mounted: Instance) -> None:
    lines = mounted.login("web", "cat", "/proc/self/status").splitlines()
    status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    assert int(status["CapInh"], 16) == int(status["CapAmb"], 16) == 0
    assert status["Seccomp"].strip() == "2"
    assert not int(status["CapEff"], 16) >> 16 & 1  # sys_module
    link = "zonemgr-hosts"
    subprocess.run(["ip", "link", "add", link, "type", "bridge"], check=True)
    try:
        assert link in os.listdir("/sys/class/net")
        links = mounted.login("web", "cat", "/proc/net/dev").splitlines()[2:]
    finally:
        subprocess.run(["ip", "link", "delete", link], check=True)
    assert [line.split(":")[0].strip() for line in links] in (["lo"], [])


def test_hostile_profiles_and_accounts_run_as_root_of_the_zone_only(mounted: Instance) -> None:
    assert mounted.login("web", "cat", "/proc/self/uid_map").split()[1] != "0"
    assert mounted.run("login", "web", "--", "id", "-u").stdout == "0\n"


@pytest.mark.attack("links at mount points and masked paths", "CVE-2019-18837")
def test_a_link_planted_while_the_zone_is_mounted_leads_its_next_boot_nowhere(
    instance: Instance, secret: Path
) -> None:
    """Root of the mounted zone has the whole of the zone's root on /a: the places of all mounts at hand."""
    instance.installed("web")
    instance.run("mount", "web")
    instance.login("web", "sh", "-c", f"mv /a/usr/local /a/usr/kept && ln -s {secret.parent} /a/usr/local")
    instance.run("unmount", "web")
    said = instance.run("boot", "web", check=1).stderr
    assert "a symbolic link is in the way" in said
    assert sorted(os.listdir(secret.parent)) == ["key"]
