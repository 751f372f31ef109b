"""Hostile and harmless archives, unpacked into a root beside which nothing may change."""

from __future__ import annotations

import io
import json
import os
import stat
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from brands.image import archive, oci
from brands.image.tests import build
from brands.image.tests.build import Spec, entry, folder, hard_link, link
from brands.image.unpack import Unpacker
from zonemgr.brandkit import NotCompleted
from zonemgr.brandkit.rootdir import RootDir

pytestmark = pytest.mark.requires("root")


class Place:
    """A root, and beside it what must stay as it is."""

    def __init__(self, folder_: Path) -> None:
        self.root = folder_ / "root"
        self.outside = folder_ / "outside"
        self.outside.mkdir()
        (self.outside / "secret").write_text("secret")
        self.devices = 0

    def unpack(self, *layers: Sequence[Spec], whiteouts: bool = True) -> Path:
        """Apply layers; the root."""
        with RootDir.make(str(self.root)) as root, Unpacker(root) as unpacker:
            for specs in layers:
                unpacker.begin_layer()
                archive.unpack_tar(io.BytesIO(build.tar(specs)), unpacker, whiteouts=whiteouts)
            self.devices = unpacker.devices
        return self.root

    def check(self) -> None:
        """Nothing outside has changed."""
        assert os.listdir(self.outside) == ["secret"]
        assert (self.outside / "secret").read_text() == "secret"
        assert stat.S_IMODE((self.outside / "secret").stat().st_mode) == 0o644
        assert (self.outside / "secret").stat().st_nlink == 1
        assert sorted(os.listdir(self.root.parent)) == ["outside", "root"]
        assert stat.S_IMODE(self.root.stat().st_mode) == 0o755


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.mark.parametrize(
    ("specs", "why"),
    [
        ([entry("/etc/cron.d/x", "x")], "absolute"),
        ([entry("../outside/x", "x")], "'..'"),
        ([entry("a/../../outside/x", "x")], "'..'"),
        ([folder("..")], "'..'"),
        ([hard_link("x", "../outside/secret")], "'..'"),
        ([hard_link("x", "/etc/passwd")], "absolute"),
        ([hard_link("x", "not/there")], "No such file"),
        ([hard_link("x", "nowhere")], "not there"),
        ([entry("x", "x", uid=65536)], "0 to 65535"),
        ([entry("x", "x", gid=2**31 + 5)], "0 to 65535"),
        ([entry("a", "x"), entry("a/b", "x")], "no folder"),
        ([entry("a/.wh...", "")], "names no file"),
    ],
)
@pytest.mark.attack("hostile archives and images", "CVE-2022-23648")
def test_what_points_outside_or_makes_no_sense_is_refused(place: Place, specs: list[Spec], why: str) -> None:
    with pytest.raises(NotCompleted, match=why.replace("(", r"\(").replace(".", r"\.")):
        place.unpack(specs)
    place.check()


@pytest.mark.parametrize(
    "specs",
    [
        [link("out", "/outside"), entry("out/secret", "pwned")],
        [link("out", "../../../../../outside"), entry("out/secret", "pwned")],
        [link("a", "../outside"), link("b", "a"), entry("b/c/d", "pwned")],
        [link("secret", "../outside/secret"), entry("secret", "pwned")],
        [link("secret", "../outside/secret"), folder("secret"), entry("secret/x", "pwned")],
        [link("out", "../outside"), hard_link("mine", "out/secret")],
        [link("out", "../outside"), entry("out/.wh.secret", "")],
        [link("out", "../outside"), entry("out/.wh..wh..opq", "")],
        [
            link("secret", "../outside/secret"),
            entry("secret", "x", mode=0o777),
            link("secret", "../outside/secret"),
        ],
    ],
)
@pytest.mark.attack("hostile archives and images", "CVE-2022-23648", "CVE-2025-24965")
def test_links_never_lead_out(place: Place, specs: list[Spec]) -> None:
    for info, _data in specs:
        if info.linkname == "/outside":
            info.linkname = str(place.outside)
    try:
        place.unpack(specs)
    except NotCompleted:
        pass  # contained or refused: both are good
    place.check()


def test_owners_modes_times_and_links_are_kept(place: Place) -> None:
    specs = [
        folder("usr", mode=0o755),
        entry("usr/su", "#!", mode=0o4755, mtime=1000),
        entry("home", "h", uid=1000, gid=65535, mode=0o600),
        hard_link("usr/sudo", "usr/su"),
        link("bin", "usr"),
        entry("bin/through", "t"),
        entry("fifo", type=tarfile.FIFOTYPE, mode=0o620),
        entry("attributes", "a", pax_headers={"SCHILY.xattr.user.colour": "blue"}),
        entry("deep/er/file", "d"),
    ]
    root = place.unpack(specs)
    assert stat.S_IMODE((root / "usr/su").stat().st_mode) == 0o4755
    assert (root / "usr/su").stat().st_mtime == 1000
    assert (root / "usr/su").samefile(root / "usr/sudo")
    assert ((root / "home").stat().st_uid, (root / "home").stat().st_gid) == (1000, 65535)
    assert os.readlink(root / "bin") == "usr"
    assert (root / "usr/through").read_text() == "t"
    assert stat.S_ISFIFO((root / "fifo").lstat().st_mode)
    assert os.getxattr(root / "attributes", "user.colour") == b"blue"
    assert (root / "deep/er/file").read_text() == "d"


def test_device_nodes_are_left_out_and_counted(place: Place) -> None:
    root = place.unpack(
        [
            entry("dev/sda", type=tarfile.BLKTYPE, devmajor=8),
            entry("dev/mem", type=tarfile.CHRTYPE, devmajor=1, devminor=1),
        ]
    )
    assert place.devices == 2
    assert not list(root.iterdir())


def test_zeros_become_holes(place: Place) -> None:
    root = place.unpack([entry("big", bytes(64 << 20))])
    assert (root / "big").stat().st_size == 64 << 20
    assert (root / "big").stat().st_blocks == 0


def test_a_sparse_file_of_10_gigabytes_costs_nothing(place: Place) -> None:
    size = 10 << 30
    headers = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.map": f"{size - 1},1"}
    sparse = entry(
        "huge", b"x", pax_headers={**headers, "GNU.sparse.size": str(size), "GNU.sparse.name": "huge"}
    )
    root = place.unpack([sparse])
    assert (root / "huge").stat().st_size == size
    assert (root / "huge").stat().st_blocks < 4096


def test_what_needs_more_than_the_disk_has_is_refused(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("brands.image.unpack.SHARE_OF_DISK", 1e-9)
    with pytest.raises(NotCompleted, match="room on the disk|no room"):
        place.unpack([entry("big", os.urandom(1 << 20))])


def test_a_gigantic_header_is_refused_before_it_is_read(place: Place) -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 1 << 40
    with pytest.raises(NotCompleted, match="has a header of"):
        _unpack_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(10240), place)


def _below_zero(form: str) -> bytes:
    """An entry after which a reader that believes it goes back to the same entry."""
    info = tarfile.TarInfo("x")
    if form == "extended header":
        info.type = tarfile.XHDTYPE
    if form == "pax":
        return info._create_pax_generic_header(  # type: ignore[attr-defined,no-any-return]
            {"size": "-2048"}, tarfile.XHDTYPE, "utf-8"
        ) + info.tobuf(tarfile.USTAR_FORMAT)
    info.size = -512
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize("form", ["binary", "pax", "extended header"])
@pytest.mark.attack("hostile archives and images")
def test_a_size_below_zero_leads_round_in_no_circle(place: Place, form: str) -> None:
    data = _below_zero(form) + bytes(10240)
    with pytest.raises(NotCompleted):
        oci.Tar(io.BytesIO(data), str(place.outside.parent))
    with pytest.raises(NotCompleted):
        _unpack_bytes(data, place)


@pytest.mark.attack("hostile archives and images")
def test_folders_in_folders_are_made_or_refused(place: Place) -> None:
    deep = "a/" * 1500
    assert (place.unpack([entry(f"{deep}x", "x")]) / deep / "x").read_text() == "x"
    place.check()
    with RootDir(str(place.root)) as root, Unpacker(root) as unpacker, pytest.raises(OSError):
        archive.unpack_tar(io.BytesIO(build.tar([entry("a/" * 3000 + "x", "x")])), unpacker)
    with RootDir(str(place.root)) as root:
        root.remove("/a")


@pytest.mark.attack("hostile archives and images")
def test_what_unpacks_to_more_than_the_disk_has_is_not_spooled(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("brands.image.archive.SHARE_OF_DISK", 1e-9)
    with pytest.raises(NotCompleted, match="not enough room"):
        archive.spooled(io.BytesIO(bytes(1 << 20)), str(place.outside))
    place.root.mkdir(mode=0o755)
    place.check()


def test_a_blob_with_holes_is_none(place: Place) -> None:
    """Of a few bytes it would make as many as it says."""
    info, _data = entry("blobs/sha256/" + "0" * 64)
    info.size = 512
    info.pax_headers = {"GNU.sparse.map": "0,0", "GNU.sparse.size": str(1 << 60), "GNU.sparse.numblocks": "1"}
    files = oci.Tar(io.BytesIO(build.tar([(info, bytes(512))])), str(place.outside))
    try:
        with pytest.raises(OSError):
            files.open(info.name)
    finally:
        files.close()


@pytest.mark.parametrize("data", [b"", b"not a tar at all" * 100, b"\0" * 511])
def test_what_is_no_tar_is_refused_or_empty(place: Place, data: bytes) -> None:
    try:
        _unpack_bytes(data, place)
    except NotCompleted:
        pass
    assert not list(place.root.iterdir())


def test_a_file_cut_short_is_refused(place: Place) -> None:
    data = build.tar([entry("x", os.urandom(100_000))])[:50_000]
    with pytest.raises(NotCompleted, match="damaged|middle"):
        _unpack_bytes(data, place)


# -- layers -----------------------------------------------------------------------------------------------------


def test_whiteouts_hide_what_lower_layers_have(place: Place) -> None:
    root = place.unpack(
        [
            folder("a"),
            entry("a/1", "1"),
            entry("a/2", "2"),
            folder("b"),
            entry("b/x/y", "y"),
            entry("c", "c"),
        ],
        [entry("a/.wh.1", ""), entry("b/.wh.x", ""), entry(".wh.c", ""), entry("a/3", "3")],
    )
    assert sorted(str(path.relative_to(root)) for path in root.rglob("*")) == ["a", "a/2", "a/3", "b"]


@pytest.mark.parametrize("opaque_first", [True, False])
def test_an_opaque_folder_keeps_what_its_own_layer_has(place: Place, opaque_first: bool) -> None:
    opaque = [entry("a/.wh..wh..opq", "")]
    own = [folder("a"), entry("a/new", "n"), entry("a/sub/new", "n")]
    root = place.unpack(
        [folder("a"), entry("a/old", "o"), entry("a/sub/old", "o"), entry("a/gone/old", "o")],
        [*opaque, *own] if opaque_first else [*own, *opaque],
    )
    found = sorted(str(path.relative_to(root)) for path in root.rglob("*"))
    assert found == ["a", "a/new", "a/sub", "a/sub/new"]


def test_a_plain_archive_has_no_whiteouts(place: Place) -> None:
    root = place.unpack([entry("x", "x"), entry(".wh.x", "")], whiteouts=False)
    assert sorted(os.listdir(root)) == [".wh.x", "x"]


def test_a_layer_may_change_the_kind_of_a_file(place: Place) -> None:
    root = place.unpack(
        [folder("a"), entry("a/x", "x"), entry("b", "b"), link("c", "a")],
        [entry("a", "now a file"), folder("b"), entry("b/y", "y"), folder("c")],
    )
    assert (root / "a").read_text() == "now a file"
    assert (root / "b/y").exists()
    assert not (root / "c").is_symlink()


# -- images -----------------------------------------------------------------------------------------------------


def _unpack_bytes(data: bytes, place: Place) -> None:
    with RootDir.make(str(place.root)) as root, Unpacker(root) as unpacker:
        archive.unpack_tar(io.BytesIO(data), unpacker)


def _install(layout: build.Layout, place: Place, tag: str = "") -> Path:
    files = oci.Folder(str(layout.write(place.root.parent / "layout")))
    try:
        with RootDir.make(str(place.root)) as root, Unpacker(root) as unpacker:
            oci.unpack(files, oci.find(files, tag), unpacker, lambda _line: None)
    finally:
        files.close()
    return place.root


@pytest.mark.parametrize("kind", ["gz", "zst", ""])
def test_layers_of_every_compression_are_applied_in_order(place: Place, kind: str) -> None:
    layout = build.image([[entry("x", "1")], [entry("x", "2")]], kind=kind)
    assert (_install(layout, place) / "x").read_text() == "2"


def _spoil_blob(layout: build.Layout) -> None:
    """Same size, another content."""
    digest, data = next(iter(layout.blobs.items()))
    layout.blobs[digest] = bytes([data[0]]) + bytes([data[1] ^ 1]) + data[2:]


def _spoil_size(layout: build.Layout) -> None:
    layout.index["manifests"][0]["size"] += 1


def _no_digest(layout: build.Layout) -> None:
    layout.index["manifests"][0]["digest"] = "sha256:../../../../etc/passwd"


def _md5(layout: build.Layout) -> None:
    layout.index["manifests"][0]["digest"] = "md5:d41d8cd98f00b204e9800998ecf8427e"


def _lose_blob(layout: build.Layout) -> None:
    layout.blobs.pop(next(iter(layout.blobs)))


def _odd_platform(layout: build.Layout) -> None:
    layout.index["manifests"] = [{**row, "platform": ["linux"]} for row in layout.index["manifests"] * 2]


def _odd_layer_size(layout: build.Layout) -> None:
    manifest = json.loads(layout.blobs[layout.index["manifests"][0]["digest"][7:]])
    manifest["layers"][0]["size"] = "many"
    layout.index["manifests"] = [layout.document(manifest, "application/vnd.oci.image.manifest.v1+json")]


SPOILS = (_spoil_blob, _spoil_size, _no_digest, _md5, _lose_blob, _odd_platform, _odd_layer_size)


@pytest.mark.parametrize("spoil", SPOILS)
@pytest.mark.attack("hostile archives and images", "CVE-2017-18641")
def test_what_does_not_match_its_digest_or_size_is_refused(place: Place, spoil: Any) -> None:
    layout = build.image([[entry("x", "1")]])
    spoil(layout)
    with pytest.raises(NotCompleted):
        _install(layout, place)
    assert not list(place.root.iterdir())


def test_annotations_that_are_none_are_no_obstacle(place: Place) -> None:
    layout = build.image([[entry("x", "1")]])
    layout.index["manifests"][0]["annotations"] = ["odd"]
    assert (_install(layout, place) / "x").read_text() == "1"


def test_a_layer_that_is_not_what_the_configuration_says_is_refused(place: Place) -> None:
    layout, other = build.image([[entry("x", "1")]]), build.image([[entry("x", "2")]])
    manifests = [json.loads(one.blobs[one.index["manifests"][0]["digest"][7:]]) for one in (layout, other)]
    manifests[0]["layers"] = manifests[1]["layers"]
    layout.blobs.update(other.blobs)
    layout.index["manifests"] = [layout.document(manifests[0], "application/vnd.oci.image.manifest.v1+json")]
    with pytest.raises(NotCompleted, match="unpacked, does not match its digest"):
        _install(layout, place)


def test_links_in_a_layout_are_not_followed(place: Place) -> None:
    layout = build.image([[entry("x", "1")]])
    folder_ = layout.write(place.root.parent / "layout")
    blob = folder_ / "blobs/sha256" / layout.index["manifests"][0]["digest"][7:]
    copy = place.outside.parent / "copy"
    copy.write_bytes(blob.read_bytes())
    blob.unlink()
    blob.symlink_to(copy)
    files = oci.Folder(str(folder_))
    try:
        with pytest.raises(NotCompleted):
            oci.find(files)
    finally:
        files.close()


def test_an_image_for_other_machines_is_refused_by_name(place: Place) -> None:
    layout = build.image([[entry("x", "1")]])
    row = layout.index["manifests"][0]
    rows = [{**row, "platform": {"os": "linux", "architecture": "sparc"}}]
    table = {"schemaVersion": 2, "manifests": rows}
    layout.index["manifests"] = [layout.document(table, "application/vnd.oci.image.index.v1+json")]
    with pytest.raises(NotCompleted, match="linux/sparc"):
        _install(layout, place)


def test_several_images_are_told_apart_by_tag(place: Place) -> None:
    layouts = [build.image([[entry("x", str(number))]]) for number in (1, 2)]
    layouts[0].blobs.update(layouts[1].blobs)
    for number, one in enumerate(layouts, 1):
        one.index["manifests"][0]["annotations"] = {oci.NAME_ANNOTATION: f"registry/name:v{number}"}
    layouts[0].index["manifests"] += layouts[1].index["manifests"]
    with pytest.raises(NotCompleted, match="name one with -t"):
        _install(layouts[0], place)
    place.root.rmdir()
    assert (_install(layouts[0], place, "v2") / "x").read_text() == "2"
