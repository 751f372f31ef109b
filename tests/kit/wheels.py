"""Building zonemgr's wheel and installing it, as packagers and users do, without asking a package index."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

from tests.kit.instance import CHECKOUT

_DEADLINE_S = 300


def _run(*words: str | Path, cwd: Path) -> None:
    done = subprocess.run(
        words, cwd=cwd, capture_output=True, text=True, timeout=_DEADLINE_S, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"


def build(folder: Path) -> Path:
    """The wheel, built from a copy: building leaves folders in the place where it happens."""
    copy = folder / "checkout"
    copy.mkdir()
    unwanted = shutil.ignore_patterns("__pycache__", ".*")
    for room in ("zonemgr", "brands"):
        shutil.copytree(CHECKOUT / room, copy / room, ignore=unwanted)
    for file in ("pyproject.toml", "setup.cfg", "README.md", "LICENSE"):
        shutil.copy2(CHECKOUT / file, copy)
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)]
    _run(sys.executable, "-m", "pip", "wheel", *options, ".", cwd=copy)
    (wheel,) = folder.glob("*.whl")
    return wheel


def install(wheel: Path, folder: Path) -> Path:
    """Install the wheel into a fresh virtual environment; its ``bin``.

    zonemgr comes from the wheel alone.  What it depends on is lent by the environment of the tests.
    """
    _run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    (packages,) = folder.glob("lib/python*/site-packages")
    add(wheel, folder)
    # Behind the environment's own packages, which come first.
    (packages / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


def add(wheel: Path, folder: Path) -> None:
    """Install one more wheel into the environment."""
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin/python")]
    _run(*pip, "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=folder.parent)


def brand_wheel(brand: Path, entry_point: str, folder: Path) -> Path:
    """A brand's folder as a package that is installed by pip; ``entry_point`` is the name of its class."""
    name = f"{brand.name}_brand"
    info = f"{name}-1.0.dist-info"
    wheel = folder / f"{name}-1.0-py3-none-any.whl"
    texts = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[zonemgr.brands]\n{brand.name} = {name}:{entry_point}\n",
        f"{info}/RECORD": "",
    }
    with zipfile.ZipFile(wheel, "w") as archive:
        for file in brand.iterdir():
            target = "__init__.py" if file.name == "brand.py" else file.name
            archive.write(file, f"{name}/{target}")  # with its mode
        for path, text in texts.items():
            archive.writestr(path, text)
    return wheel
