"""A mount and a network namespace for the tests of this process, so that neighbours do not disturb each other.

With ``-n`` several processes run tests side by side on one host.  The leak check of one must not see the mounts, links
and nft tables of another, or of a container engine that happens to live on the host.  Control groups, processes and
folders stay the host's: they carry the name of whom they belong to.

A test that needs the way to the outside is marked ``host`` and goes back for its length.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from zonemgr.linux import mounts, namespaces

_KINDS: Final = ("mnt", "net")
_SYS: Final = "/sys"


class Isolation:
    """The namespaces that this process has left; keeps them open."""

    def __init__(self) -> None:
        self._left = {kind: namespaces.open_ns("self", kind) for kind in _KINDS}
        namespaces.unshare(namespaces.NEWNS | namespaces.NEWNET)
        mounts.set_propagation("/", mounts.PRIVATE, recursive=True)
        _show_own_links()
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        self._own = {kind: namespaces.open_ns("self", kind) for kind in _KINDS}

    @contextmanager
    def host(self) -> Iterator[None]:
        """Inside the block this process is where it came from."""
        _enter(self._left)
        try:
            yield
        finally:
            _enter(self._own)


def _enter(descriptors: dict[str, int]) -> None:
    folder = os.getcwd()
    for fd in descriptors.values():
        namespaces.setns(fd)
    os.chdir(folder)  # entering a mount namespace leads to its root


def _show_own_links() -> None:
    """A new sysfs shows the links of the new network namespace; what was mounted below the old one comes with it."""
    kept = {point: mounts.open_tree(point, recursive=True) for point in _mounted_below(_SYS)}
    sysfs = mounts.make_filesystem("sysfs", {})
    places = [(sysfs, _SYS), *((tree, point) for point, tree in kept.items())]
    for tree, point in places:
        target = os.open(point, os.O_PATH)
        mounts.move_mount(tree, target)
        os.close(target)
        os.close(tree)


def _mounted_below(top: str) -> list[str]:
    """The uppermost mount points below ``top``."""
    text = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
    below = sorted({point for line in text.splitlines() if (point := line.split(" ")[4]).startswith(f"{top}/")})
    return [point for point in below if not any(point.startswith(f"{other}/") for other in below)]
