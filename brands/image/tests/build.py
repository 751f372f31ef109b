"""Archives and OCI images for the tests, harmless and hostile ones, made byte by byte."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import lzma
import os
import subprocess
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

Spec = tuple[tarfile.TarInfo, bytes]
ARCH: Final = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)


def entry(
    name: str, content: bytes | str = b"", *, type: bytes = tarfile.REGTYPE, link: str = "", **more: Any
) -> Spec:
    """One entry of an archive; ``more`` are attributes of TarInfo."""
    data = content.encode() if isinstance(content, str) else content
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = type, link, len(data)
    info.mode = 0o755 if type == tarfile.DIRTYPE else 0o644
    for key, value in more.items():
        setattr(info, key, value)
    return info, data


def folder(name: str, **more: Any) -> Spec:
    return entry(name, type=tarfile.DIRTYPE, **more)


def link(name: str, target: str) -> Spec:
    return entry(name, type=tarfile.SYMTYPE, link=target)


def hard_link(name: str, target: str) -> Spec:
    return entry(name, type=tarfile.LNKTYPE, link=target)


def tar(specs: Iterable[Spec]) -> bytes:
    """A tar archive."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for info, data in specs:
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def pack(data: bytes, kind: str) -> bytes:
    """Compressed, or not."""
    if kind == "gz":
        return gzip.compress(data)
    if kind == "xz":
        return lzma.compress(data)
    if kind == "zst":
        return subprocess.run(["zstd", "-q", "-c"], input=data, capture_output=True, check=True).stdout
    return data


def busybox() -> list[Spec]:
    """The smallest root that boots."""
    program = Path("/usr/bin/busybox").read_bytes()
    return [
        *(folder(name) for name in ("bin", "sbin", "etc", "dev", "proc", "sys", "run")),
        entry("bin/busybox", program, mode=0o755),
        *(
            link(f"bin/{name}", "busybox")
            for name in ("sh", "cat", "id", "ps", "sleep", "env", "kill", "pwd", "reboot")
        ),
        link("sbin/init", "../bin/busybox"),
        link("sbin/poweroff", "../bin/busybox"),
        entry("etc/inittab", "::sysinit:/bin/true\n"),
        entry("etc/passwd", "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n"),
        entry("etc/group", "root:x:0:\napp:x:1000:\nextra:x:44:app\n"),
    ]


@dataclass
class Layout:
    """An OCI layout under construction: change ``index`` or ``blobs`` to spoil it, then ``write``."""

    blobs: dict[str, bytes] = field(default_factory=dict)
    index: dict[str, Any] = field(default_factory=dict)

    def blob(self, data: bytes, media: str, **more: Any) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        self.blobs[digest] = data
        return {"mediaType": media, "digest": f"sha256:{digest}", "size": len(data), **more}

    def document(self, table: object, media: str, **more: Any) -> dict[str, Any]:
        return self.blob(json.dumps(table).encode(), media, **more)

    def files(self) -> dict[str, bytes]:
        return {
            "oci-layout": b'{"imageLayoutVersion": "1.0.0"}',
            "index.json": json.dumps(self.index).encode(),
            **{f"blobs/sha256/{digest}": data for digest, data in self.blobs.items()},
        }

    def write(self, place: Path) -> Path:
        for name, data in self.files().items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(data)
        return place

    def archive(self, place: Path, kind: str = "") -> Path:
        place.write_bytes(pack(tar(entry(name, data) for name, data in self.files().items()), kind))
        return place


def image(
    layers: Sequence[Sequence[Spec]], config: dict[str, Any] | None = None, *, kind: str = "gz"
) -> Layout:
    """A layout with one image."""
    layout = Layout()
    plain = [tar(specs) for specs in layers]
    media = {"gz": "+gzip", "zst": "+zstd", "": ""}[kind]
    rows = [layout.blob(pack(data, kind), f"application/vnd.oci.image.layer.v1.tar{media}") for data in plain]
    table = {
        "architecture": ARCH,
        "os": "linux",
        "config": config or {},
        "rootfs": {
            "type": "layers",
            "diff_ids": [f"sha256:{hashlib.sha256(data).hexdigest()}" for data in plain],
        },
    }
    described = layout.document(table, "application/vnd.oci.image.config.v1+json")
    manifest = {"schemaVersion": 2, "config": described, "layers": rows}
    row = layout.document(manifest, "application/vnd.oci.image.manifest.v1+json")
    layout.index = {"schemaVersion": 2, "manifests": [row]}
    return layout
