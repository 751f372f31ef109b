"""One debootstrap for all tests of a Debian zone: it is what takes longest of anything that is tested."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.kit.instance import Instance

INSTALL_S: Final = 1200.0
_BRAND: Final = '''
"""The shipped brand, but for its install: that is tested where the copied root comes from."""
import subprocess
from zonemgr.brandkit import Brand


class Debian(Brand):
    base = "debian"
    name = "debian"

    def verify(self, zone, command):
        pass

    def install(self, zone, arguments):
        subprocess.run(["cp", "-a", "--reflink=auto", {root!r}, zone.root], check=True)
'''


@dataclass(frozen=True, slots=True)
class Debian:
    """An instance with the installed zone ``web``, what its install said, and a copy of its root as it was then."""

    instance: Instance
    said: str
    pristine: Path

    def brand(self, folder: Path) -> Path:
        """The folder of a brand that is debian, with a copy of the root in the place of an install."""
        place = folder / "debian"
        place.mkdir()
        (place / "brand.py").write_text(_BRAND.format(root=str(self.pristine)))
        return place


@contextmanager
def debian(place: Path) -> Iterator[Debian]:
    """Install it below ``place``."""
    folder = Path(tempfile.mkdtemp(prefix="zonemgr-debian-", dir=place))
    folder.chmod(0o755)
    instance = Instance(folder / "instance")
    instance.root.mkdir()
    try:
        instance.configured("web", "-b", "debian")
        said = instance.run("install", "web", timeout=INSTALL_S).stderr
        root, pristine = instance.layout.zonepath("web") / "root", folder / "pristine"
        subprocess.run(["cp", "-a", "--reflink=auto", root, pristine], check=True)
        yield Debian(instance, said, pristine)
    finally:
        instance.force()
        shutil.rmtree(folder, ignore_errors=True)
