"""File systems of a test's own, on loop devices, and swap."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

SWAP_FOLDER: Final = "/var/tmp"  # on a disk, where /tmp may be in memory


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


@contextmanager
def swap(size: int) -> Iterator[None]:
    """Swap that has room for that many bytes: the host's own, or a file for the time of the block."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("SwapFree:") and int(line.split()[1]) << 10 >= size:
            yield
            return
    with (
        tempfile.TemporaryDirectory(prefix="zonemgr-swap-", dir=SWAP_FOLDER) as folder,
        swap_file(Path(folder, "swap"), size),
    ):
        yield


@contextmanager
def swap_file(path: Path, size: int) -> Iterator[None]:
    """A new file as swap.  CalledProcessError where the kernel, or the file system, refuses it."""
    with path.open("xb") as file:  # without holes: the kernel wants every block of it there
        for _ in range(size >> 20):
            file.write(bytes(1 << 20))
    subprocess.run(["mkswap", str(path)], check=True, capture_output=True)
    subprocess.run(["swapon", str(path)], check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["swapoff", str(path)], check=True, capture_output=True)
        path.unlink()
