"""``-R DIR``: zones of another system, mounted for repair; nothing is recorded there, and nothing of it is obeyed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.kit.instance import Instance
from tests.kit.waiting import until
from zonemgr.store import idranges
from zonemgr.store.paths import Layout

pytestmark = pytest.mark.requires("root", "userns", "mount", "cgroup")


def _records(root: Path) -> dict[str, bytes]:
    """What the other system knows of its zones."""
    files = [*(root / "etc/zonemgr").rglob("*.toml"), *(root / "var/lib/zonemgr/state").iterdir()]
    return {str(path): path.read_bytes() for path in files if path.is_file()}


def _of_another_system(instance: Instance, name: str, zonepath: str = "") -> None:
    """The zone's paths as they are where its root is ``/``; its files at ``zonepath`` of that system."""
    ours = str(instance.layout.zonepath(name))
    theirs = zonepath or ours.removeprefix(str(instance.root))
    file = instance.layout.config(name)
    file.write_text(file.read_text().replace(ours, theirs))
    if zonepath:
        os.rename(ours, f"{instance.root}{zonepath}")


def test_a_zone_of_an_alternate_root_is_mounted_and_unmounted(instance: Instance) -> None:
    instance.installed("web", "--no-net")
    instance.installed("own", "--no-net")
    (instance.root / "zones").mkdir()
    (instance.root / "data").mkdir()
    (instance.root / "data/here").touch()
    instance.run("config", "web", "add fs; set dir=/srv; set special=/data; set type=bind; add options ro; end")
    _of_another_system(instance, "web", "/zones/web")
    _of_another_system(instance, "own")
    before, run_time = _records(instance.root), set((instance.root / "run").rglob("*"))
    alternate = Layout(instance.root, alternate=True)
    with_root = ("-R", str(instance.root))
    try:
        instance.run(*with_root, "mount", "web", "own")
        assert _records(instance.root) == before
        assert set((instance.root / "run").rglob("*")) == run_time
        rows = json.loads(instance.run("--json", *with_root, "list", "-c").stdout)
        states = {row["zonename"]: row["state"] for row in rows}
        assert (states["web"], states["own"]) == ("mounted", "mounted")
        look = "cat /a/etc/hostname; ls /a/srv; echo x >/a/new"
        told = instance.run(*with_root, "login", "web", "--", "sh", "-c", look)
        assert told.stdout == "web\nhere\n"
        assert (instance.root / "zones/web/root/new").stat().st_uid == 0
        assert not (alternate.zone_run("web") / "console").exists()  # no console in an alternate root
        bases = {found.base for found in idranges._read(idranges.REGISTRY) if found.root == str(instance.root)}
        assert len(bases) == 4  # both zones have ids of their own system, and others while they are mounted here
        again = instance.run(*with_root, "mount", "web", check=1)
        assert "mounted" in again.stderr
        for verb in ("boot", "uninstall", "halt"):
            done = instance.run(*with_root, verb, "web", check=1)
            assert done.stderr == f"zonemgr: cannot {verb} zone in alternate root\n"
    finally:
        instance.run(*with_root, "unmount", "web", "own")
    until(lambda: not alternate.run.exists(), "the end of both supervisors")
    assert _records(instance.root) == before
    ours = [found for found in idranges._read(idranges.REGISTRY) if found.root == str(instance.root)]
    assert ours and not [found for found in ours if found.alternate]


def test_nothing_of_an_alternate_root_is_obeyed(instance: Instance, tmp_path: Path) -> None:
    """Neither its brands nor its settings; and its folders do not lead out of it."""
    instance.installed("web", "--no-net")
    _of_another_system(instance, "web")
    folder = instance.layout.etc / "brands/native"
    folder.mkdir(parents=True)
    (folder / "brand.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    instance.layout.settings.write_text("nonsense\n")
    with_root = ("-R", str(instance.root))
    file = instance.layout.config("web")
    disk = '[[fs]]\ndir = "/disk"\nspecial = "/dev/null"\ntype = "ext4"\n'
    file.write_text("privileged = true\n" + file.read_text() + disk)
    instance.run(*with_root, "mount", "web")
    ids = instance.run(*with_root, "login", "web", "--", "cat", "/proc/self/uid_map").stdout.split()
    assert int(ids[1]) >= idranges.FIRST_BASE and ids[2] == "65536"
    instance.run(*with_root, "unmount", "web")
    assert not (tmp_path / "ran").exists()
    instance.layout.settings.unlink()
    os.rename(instance.layout.etc, tmp_path / "elsewhere")
    instance.layout.etc.symlink_to(tmp_path / "elsewhere")
    done = instance.run(*with_root, "mount", "web", check=1)
    assert "leads out of the alternate root" in done.stderr


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("-R", "mnt", "mount", "web"), "root path must be absolute"),
        (("-R", "/nowhere", "mount", "web"), "root path must be a directory"),
        (("--root", "/mnt", "-R", "/", "mount", "web"), "-R and --root are mutually exclusive"),
    ],
)
def test_a_root_that_is_none_is_a_usage_error(instance: Instance, words: tuple[str, ...], text: str) -> None:
    assert text in instance.run(*words, check=2).stderr
