"""File systems of a test's own, on loop devices."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def mounted(
    kind: str, folder: Path, *options: str, size: str = "400M", mount: str = ""
) -> Iterator[Path]:
    """A new file system of that kind, mounted below ``folder``; ``options`` are mkfs's, ``mount`` those of mount."""
    image, point = folder / f"{kind}.img", folder / kind
    folder.mkdir(exist_ok=True)
    point.mkdir()
    subprocess.run(["truncate", "-s", size, str(image)], check=True)
    subprocess.run([f"mkfs.{kind}", "-q", *options, str(image)], check=True, capture_output=True)
    subprocess.run(["mount", "-o", ",".join(filter(None, ("loop", mount))), str(image), str(point)], check=True)
    try:
        point.chmod(0o755)
        yield point
    finally:
        subprocess.run(["umount", str(point)], check=True)
        image.unlink()


@contextmanager
def overlay(folder: Path) -> Iterator[Path]:
    """A folder on an overlay, which refuses id-mapped mounts."""
    parts = {name: folder / name for name in ("lower", "upper", "work", "merged")}
    for path in parts.values():
        path.mkdir(parents=True)
    options = f"lowerdir={parts['lower']},upperdir={parts['upper']},workdir={parts['work']}"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, parts["merged"]], check=True)
    try:
        parts["merged"].chmod(0o755)
        yield parts["merged"]
    finally:
        subprocess.run(["umount", parts["merged"]], check=True)
