"""A zone that is booted once for a module, and folders of the host that must stay as they were."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.kit.instance import Instance, Runner
from tests.kit.nursery import Nursery

PLACE = Path("/var/tmp")


@contextmanager
def one_installed(runner: Runner | None = None) -> Iterator[Instance]:
    """An instance with one zone, "web", installed.

    The leak check of each test takes it for a stranger's, and so sees what the test itself makes.
    """
    folder = Path(tempfile.mkdtemp(prefix="zonemgr-", dir=PLACE))
    folder.chmod(0o755)
    instance = Instance(folder, runner=runner)
    try:
        instance.installed("web")
        yield instance
        problems = instance.close()
    finally:
        instance.force()
    assert problems == []


@pytest.fixture(scope="module")
def installed(warm: Nursery) -> Iterator[Instance]:
    """For a module that configures its zone, or takes it up and down: "web", installed."""
    with one_installed(warm) as instance:
        yield instance


@pytest.fixture(scope="package")
def web(warm: Nursery) -> Iterator[Instance]:
    """For all who need a zone with nothing special: "web", booted.  Tests leave it running and as it was."""
    with one_installed(warm) as instance:
        instance.run("boot", "web")
        yield instance


def fingerprint(folder: Path) -> list[tuple[str, int, int, int, int, str]]:
    """What lies below a folder, mounts and times of change included."""
    found = []
    for path in sorted([folder, *folder.rglob("*")]):
        status = path.lstat()
        content = path.read_text(errors="replace") if path.is_file() and not path.is_symlink() else ""
        found.append((str(path), status.st_mode, status.st_uid, status.st_dev, status.st_ctime_ns, content))
    return found


@dataclass
class Bait:
    """A folder of the host that an attack may aim at, and what was in it."""

    path: Path
    before: list[tuple[str, int, int, int, int, str]] = field(default_factory=list)

    def assert_untouched(self) -> None:
        """Nothing has appeared in it, vanished from it, or changed."""
        assert fingerprint(self.path) == self.before


@pytest.fixture
def bait() -> Iterator[Bait]:
    """A folder that looks like much of a root, so that whoever follows a link to it finds what it wants to use."""
    with tempfile.TemporaryDirectory(prefix="bait-", dir=PLACE) as name:
        folder = Path(name)
        folder.chmod(0o755)
        for below in ("pts", "sbin", "shm", "local/sbin", "sub"):
            (folder / below).mkdir(parents=True)
        for file in ("passwd", "hostid", "null", "console", "init", "sbin/init", "local/sbin/init"):
            (folder / file).write_text("#!/bin/sh\nexec sleep 1000\n")
            (folder / file).chmod(0o755)
        before = fingerprint(folder)
        yield Bait(folder, before)
        assert not os.path.ismount(folder)


@pytest.fixture
def secret() -> Iterator[Path]:
    """A file that only root of the host may read, in a folder that everybody may enter."""
    with tempfile.TemporaryDirectory(prefix="secret-", dir=PLACE) as name:
        Path(name).chmod(0o755)
        path = Path(name, "key")
        path.write_text("the host's own\n")
        path.chmod(0o600)
        yield path
