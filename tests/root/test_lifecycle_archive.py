"""export and import: the whole zone comes back, and a hostile archive reaches nothing outside of the new root."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.kit.instance import Instance
from tests.root.test_lifecycle_clone import _check_furniture, _furnish, _remove
from zonemgr.brandkit import archive, compression
from zonemgr.brandkit.archive import Archive, Manifest
from zonemgr.brandkit.owners import Owners
from zonemgr.errors import PlatformError
from zonemgr.store import zones

pytestmark = pytest.mark.requires("root")

MANIFEST = Manifest("web", "native", "", "web", 'zonename = "web"\nbrand = "native"\n', "zbr0", 0, 0)


def _root(instance: Instance, name: str) -> Path:
    return Path(zones.read_entry(instance.layout, name).zonepath) / "root"


# -- there and back -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["web.tar", "web.tar.gz", "web.tar.zst"])
def test_a_zone_comes_back_as_it_was(instance: Instance, name: str) -> None:
    file = instance.root / name
    instance.installed("web", "autoboot=true")
    (_root(instance, "web") / "srv/note").write_text("mine")
    machine_id = (_root(instance, "web") / "etc/machine-id").read_text()
    address = zones.load(instance.layout, "web").net[0].address
    instance.run("export", "web", "-f", str(file))
    assert file.stat().st_mode & 0o777 == 0o600
    instance.run("uninstall", "-F", "web")
    instance.run("delete", "-F", "web")
    instance.run("import", "--trust", "-f", str(file))
    assert instance.states() == {"web": "installed"}
    assert (_root(instance, "web") / "srv/note").read_text() == "mine"
    assert (_root(instance, "web") / "etc/machine-id").read_text() == machine_id
    assert zones.load(instance.layout, "web").autoboot and zones.load(instance.layout, "web").net[0].address == address
    assert "# A link of its own" in instance.layout.config("web").read_text()


@pytest.mark.requires("userns", "net", "cgroup")
def test_a_pipe_carries_a_zone_to_a_neighbour_of_another_name(instance: Instance) -> None:
    instance.installed("web")
    reader = instance.popen("import", "new", stdin=subprocess.PIPE)
    writer = instance.popen("export", "web", stdout=reader.stdin)
    assert reader.stdin is not None
    reader.stdin.close()
    assert writer.wait(60) == 0 and reader.wait(60) == 0
    assert reader.stderr is not None and "it gets an identity of its own" in reader.stderr.read()
    for process in (reader, writer):
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()
    instance.run("boot", "web", "new")
    assert instance.login("new", "cat", "/etc/hostname") == "new\n"


def test_a_tree_with_all_that_there_can_be(tmp_path: Path) -> None:
    _furnish_at(tmp_path / "one/root")
    _write(tmp_path / "one/root", tmp_path / "file")
    said = _read(tmp_path / "file", tmp_path / "two")
    _check_furniture(tmp_path / "two/root", devices=False)
    assert said == ["left out: root/null (a device node; --trust keeps it)"]
    assert _read(tmp_path / "file", tmp_path / "three", trust=True) == []
    _check_furniture(tmp_path / "three/root")
    listed = subprocess.run(["tar", "tf", str(tmp_path / "file")], capture_output=True)
    assert listed.returncode == 0 and b"root/folder/again" in listed.stdout
    for name in ("one", "two", "three"):
        _remove(tmp_path / name)


def _furnish_at(root: Path) -> None:
    root.mkdir(parents=True)
    _furnish(root)


def _write(root: Path, file: Path) -> None:
    fd = os.open(root, os.O_RDONLY)
    try:
        with file.open("wb") as out:
            archive.write(out, MANIFEST, fd, Owners())
    finally:
        os.close(fd)


def _read(file: Path, zonepath: Path, trust: bool = False) -> list[str]:
    """Extract into a new zonepath; what was said."""
    zonepath.mkdir()
    said: list[str] = []
    fd, target_fd = os.open(file, os.O_RDONLY), os.open(zonepath, os.O_RDONLY)
    try:
        with compression.expanded(fd) as stream:
            opened = Archive(stream)
            try:
                opened.extract(target_fd, said.append, trust=trust)
            finally:
                opened.close()
    finally:
        os.close(fd)
        os.close(target_fd)
    return said


def test_an_existing_file_is_not_overwritten_and_a_failed_export_leaves_none(instance: Instance) -> None:
    instance.installed("web")
    file = instance.root / "web.tar"
    file.write_text("mine")
    assert "exists already" in instance.run("export", "web", "-f", str(file), check=1).stderr
    assert file.read_text() == "mine"
    done = instance.run("export", "web", "-f", "/dev/full", check=1)
    assert "No space left on device" in done.stderr
    assert instance.state("web") == "installed"


@pytest.mark.requires("userns", "net", "cgroup")
def test_a_running_zone_is_not_exported(instance: Instance) -> None:
    instance.running("web")
    done = instance.run("export", "web", "-f", str(instance.root / "web.tar"), check=1)
    assert "export operation is invalid for running zones." in done.stderr
    assert not (instance.root / "web.tar").exists()


# -- what is wrong with it ----------------------------------------------------------------------------------------


def test_a_damaged_archive_leaves_nothing(instance: Instance) -> None:
    instance.installed("web")
    file = instance.root / "web.tar"
    instance.run("export", "web", "-f", str(file))
    content = file.read_bytes()
    at = content.index(b"127.0.0.1 localhost")
    for broken, text in (
        (content[: len(content) // 2], "the archive is"),
        (content[:at] + b"6" + content[at + 1 :], "its content is not what its digest says"),
        (b"nonsense", "this is no archive of a zone"),
        (b"", "this is no archive of a zone"),
        (b"\x1f\x8bnonsense", "this is no archive of a zone"),
        (b"\x28\xb5\x2f\xfdnonsense", "this is no archive of a zone"),
    ):
        file.write_bytes(broken)
        done = instance.run("import", "new", "-f", str(file), check=1)
        assert text in done.stderr
        assert instance.states() == {"web": "installed"}
        assert not instance.layout.zonepath("new").exists()


# -- hostile archives ---------------------------------------------------------------------------------------------


def _hostile(file: Path, *members: tarfile.TarInfo, manifest: Manifest = MANIFEST, contents: str = "evil") -> None:
    """An archive with a right digest and these members."""
    out = io.BytesIO()
    digest, entries = hashlib.sha256(), 0
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as made:

        def add(info: tarfile.TarInfo, content: bytes = b"", counted: bool = True) -> None:
            nonlocal entries
            info.size = len(content)
            if counted:
                entries += 1
                digest.update(archive._summary(info))
                digest.update(content)
            made.addfile(info, io.BytesIO(content))

        add(tarfile.TarInfo(archive.MANIFEST), manifest.text().encode())
        root = tarfile.TarInfo("root")
        root.type, root.mode = tarfile.DIRTYPE, 0o755
        for info in (root, *members):
            add(info, contents.encode() if info.isreg() else b"")
        table = {"entries": entries, "sha256": digest.hexdigest()}
        add(tarfile.TarInfo(archive.DIGEST), json.dumps(table).encode(), counted=False)
    file.write_bytes(out.getvalue())


def _member(name: str, kind: bytes = tarfile.REGTYPE, **more: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.mode = kind, 0o755
    for key, value in more.items():
        setattr(info, key, value)
    return info


@pytest.mark.parametrize(
    "members",
    [
        [_member("/outside/evil")],
        [_member("../outside/evil")],
        [_member("root/../../outside/evil")],
        [_member("outside/evil")],
        [_member("root/link", tarfile.SYMTYPE, linkname="{outside}"), _member("root/link/evil")],
        [_member("root/link", tarfile.SYMTYPE, linkname="{outside}/evil"), _member("root/link")],
        [_member("root/link", tarfile.SYMTYPE, linkname="../.."), _member("root/link/outside/evil")],
        [_member("root/link", tarfile.LNKTYPE, linkname="{outside}/kept"), _member("root/link")],
        [_member("root/link", tarfile.LNKTYPE, linkname="root/../../outside/kept")],
        [
            _member("root/up", tarfile.SYMTYPE, linkname="{outside}"),
            _member("root/link", tarfile.LNKTYPE, linkname="root/up/kept"),
        ],
        [_member("root", tarfile.SYMTYPE, linkname="{outside}")],
        [_member("root/evil"), _member("root/evil", tarfile.SYMTYPE, linkname="{outside}/kept")],
        [_member("root/evil", uid=70000)],
        [_member("root/evil", gid=1 << 40)],
        [_member("root/folder", tarfile.DIRTYPE), _member("root/folder")],
        [_member("root/a/b/c")],
        [_member("root/./evil")],
    ],
)
@pytest.mark.attack("hostile archives and images", "CVE-2022-23648", "CVE-2025-9566")
def test_an_archive_that_points_outside_is_refused(tmp_path: Path, members: list[tarfile.TarInfo]) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    for member in members:
        member.name = member.name.replace("/outside/", f"{outside}/") if member.name.startswith("/") else member.name
        member.linkname = member.linkname.replace("{outside}", str(outside))
    _hostile(tmp_path / "file", *members)
    with pytest.raises(PlatformError, match="the archive holds|cannot make"):
        _read(tmp_path / "file", tmp_path / "zonepath")
    assert [path.name for path in outside.iterdir()] == ["kept"]
    assert (outside / "kept").read_text() == "kept" and (outside / "kept").stat().st_nlink == 1


def test_attributes_that_steer_the_host_are_not_taken(tmp_path: Path) -> None:
    headers = {"SCHILY.xattr.trusted.overlay.opaque": "y", "SCHILY.xattr.user.note": "kept"}
    _hostile(tmp_path / "file", _member("root/file", pax_headers=headers))
    _read(tmp_path / "file", tmp_path / "zonepath")
    assert os.listxattr(tmp_path / "zonepath/root/file") == ["user.note"]


def test_a_map_of_holes_that_makes_no_sense_is_refused(tmp_path: Path) -> None:
    _furnish_small(tmp_path / "one/root")
    _write(tmp_path / "one/root", tmp_path / "file")
    content = (tmp_path / "file").read_bytes()
    start = content.index(b"1\n524288\n")
    (tmp_path / "file").write_bytes(content[:start] + b"9\n524288\n" + content[start + 9 :])
    with pytest.raises(PlatformError, match="damaged"):
        _read(tmp_path / "file", tmp_path / "two")


@pytest.mark.attack("hostile archives and images")
def test_an_archive_that_holds_more_than_the_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _furnish_small(tmp_path / "one/root")
    (tmp_path / "one/root/plain").write_bytes(os.urandom(1 << 16))
    _write(tmp_path / "one/root", tmp_path / "file")
    monkeypatch.setattr(archive, "SHARE_OF_DISK", 1e-9)
    with pytest.raises(PlatformError, match="not enough room on the disk"):
        _read(tmp_path / "file", tmp_path / "two")


def test_the_length_of_an_archive_is_no_matter_of_memory(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    for number in range(1500):
        (root / str(number)).touch()
    tracemalloc.start()
    try:
        _write(root, tmp_path / "file")
        written = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        _read(tmp_path / "file", tmp_path / "two")
        read = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert max(written, read) < 1500 * 500


@pytest.mark.attack("exhausting the manager")
def test_folders_beyond_measure_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their names alone are quadratic in depth."""
    (tmp_path / "one/root" / "/".join(["x" * 200] * 10)).mkdir(parents=True)
    _write(tmp_path / "one/root", tmp_path / "file")
    monkeypatch.setattr(archive, "FOLDERS_MAX", 10_000)
    with pytest.raises(PlatformError, match="too many folders, or too deep ones"):
        _write(tmp_path / "one/root", tmp_path / "again")
    with pytest.raises(PlatformError, match="too many folders, or too deep ones"):
        _read(tmp_path / "file", tmp_path / "two")


def _furnish_small(root: Path) -> None:
    root.mkdir(parents=True)
    with (root / "holes").open("wb") as stream:
        stream.truncate(1 << 20)
        stream.seek(1 << 19)
        stream.write(b"data" * 1024)


@pytest.mark.attack("exhausting the manager")
def test_a_header_that_wants_all_memory_is_refused(instance: Instance) -> None:
    """A record of attributes of a few gigabytes of nothing, which compresses to nothing."""
    file = instance.root / "file.gz"
    maker = (
        "import gzip, sys, tarfile\n"
        "info = tarfile.TarInfo('x'); info.type = b'x'; info.size = 3 << 30\n"
        "with gzip.open(sys.argv[1], 'wb', 1) as out:\n"
        "    out.write(info.tobuf(tarfile.USTAR_FORMAT))\n"
        "    for _ in range(700): out.write(bytes(1 << 20))\n"
    )
    subprocess.run(["python3", "-c", maker, str(file)], check=True)
    done = instance.run("import", "web", "-f", str(file), check=1)
    assert "this is no archive of a zone" in done.stderr or "damaged" in done.stderr
    assert instance.states() == {}


# -- what it grants -----------------------------------------------------------------------------------------------

GRANTS = """zonename = "web"
brand = "native"
privileged = true
limitpriv = "default,sys_time"
hostid = "cafe"
ip-type = "shared"

[[fs]]
dir = "/host"
special = "/"
type = "bind"
owner = "33:33"

[[fs]]
dir = "/scratch"
special = "tmpfs"
type = "tmpfs"

[[net]]
physical = "lo"
address = ["192.0.2.9/24"]

[[device]]
match = "/dev/sda"

[[admin]]
user = "mallory"
auths = ["manage"]
"""


def _granting(file: Path) -> None:
    manifest = Manifest("web", "native", "", "web", GRANTS, "zbr0", 0, 0)
    _hostile(file, _member("root/etc", tarfile.DIRTYPE), manifest=manifest)


@pytest.mark.attack("settings that come with an image", "CVE-2026-40226", "CVE-2026-53492", "CVE-2024-3154")
def test_settings_in_an_archive_grant_nothing(instance: Instance) -> None:
    _granting(instance.root / "file")
    done = instance.run("import", "-f", str(instance.root / "file"))
    zone = zones.load(instance.layout, "web")
    assert not zone.privileged and zone.limitpriv == "" and zone.hostid == 0xCAFE
    assert [fs.dir for fs in zone.fs] == ["/scratch"]
    assert not zone.net and not zone.device and not zone.admin and zone.ip_type == "exclusive"
    told = [line.partition("not taken over: ")[2].partition(" (it")[0] for line in done.stderr.splitlines()]
    assert [text for text in told if text] == [
        *("privileged = true", "limitpriv = default,sys_time", "ip-type = shared", "fs /host (/)", "net lo"),
        *("device sda", "admin mallory"),
    ]


@pytest.mark.requires("userns", "net", "cgroup")
@pytest.mark.attack("settings that come with an image")
def test_an_archive_boots_nothing_with_the_host(instance: Instance) -> None:
    """Neither itself nor a zone that the administrator has left halted."""
    lines = 'autoboot = true\nrequires = ["db"]\nafter = ["db"]\nboot-priority = "high"\n'
    manifest = Manifest("web", "native", "", "web", f'brand = "native"\n{lines}', "zbr0", 0, 0)
    _hostile(instance.root / "file", _member("root/etc", tarfile.DIRTYPE), manifest=manifest)
    instance.installed("db")
    done = instance.run("import", "-f", str(instance.root / "file"))
    for what in ("autoboot = true", "requires = db", "after = db", "boot-priority = high"):
        assert f"not taken over: {what} (it grants something of this host; --trust keeps it)" in done.stderr
    instance.run("autoboot")
    assert instance.states() == {"db": "installed", "web": "installed"}
    # Who is asked for by the administrator comes alone.
    instance.run("config", "web", "set autoboot=true")
    instance.run("autoboot", check=False)
    assert instance.state("db") == "installed"


def test_a_trusted_archive_keeps_its_settings(instance: Instance) -> None:
    _granting(instance.root / "file")
    instance.run("import", "--trust", "-f", str(instance.root / "file"))
    zone = zones.load(instance.layout, "web")
    assert zone.privileged and len(zone.fs) == 2 and zone.admin


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace('brand = "native"', 'brand = "nowhere"'),
        lambda text: text + "nonsense\n",
        lambda text: text + 'unknown = "key"\n',
    ],
)
def test_a_configuration_that_cannot_be_is_refused(instance: Instance, change: Callable[[str], str]) -> None:
    manifest = Manifest("web", "native", "", "web", change(MANIFEST.configuration), "zbr0", 0, 0)
    _hostile(instance.root / "file", manifest=manifest)
    instance.run("import", "-f", str(instance.root / "file"), check=1)
    assert instance.states() == {}


def test_a_stream_is_recognised_by_its_beginning(tmp_path: Path) -> None:
    for kind in compression.Kind:
        file = tmp_path / kind.name
        with file.open("wb") as out, compression.compressed(out.fileno(), kind) as stream:
            stream.write(b"hello" * 1000)
        fd = os.open(file, os.O_RDONLY)
        with compression.expanded(fd) as source:
            content = b"".join(iter(lambda: source.read(4096), b""))
        os.close(fd)
        assert content == b"hello" * 1000
