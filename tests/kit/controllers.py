"""Controllers of cgroup2 that the host's root hands down: there is one root for all tests of the host."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from tests.kit.waiting import until
from zonemgr.linux.cgroup import detect
from zonemgr.store.locks import FileLock

_LOCK: Final = Path("/run/lock/zonemgr-tests-controllers")


@contextmanager
def handing_down() -> Iterator[Path]:
    """In the block one test alone hands controllers down from the root, which is given; then they are taken back."""
    root = detect().unified()
    with FileLock(_LOCK, deadline_s=120):
        before = _handed_down(root)
        try:
            yield root
        finally:
            for name in _handed_down(root) - before:
                until(partial(_takes_back, root, name), f"the end of the folders below with {name}")


def _handed_down(root: Path) -> set[str]:
    return set((root / "cgroup.subtree_control").read_text().split())


def _takes_back(root: Path, name: str) -> bool:
    try:
        (root / "cgroup.subtree_control").write_text(f"-{name}")
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return False
    return True
