"""A folder of programs that are told of what happens to zones: for brands whose zones belong to a larger system.

For use inside a hook: it waits, and what the programs print is the hook's output.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from zonemgr.brandkit import trust
from zonemgr.brandkit.base import ZoneInfo
from zonemgr.errors import BrandError


def run_folder(folder: Path, zone: ZoneInfo, hook: str, state: str, command: str) -> int:
    """Run each executable of the folder, by name, until one fails; that one's exit status, or 0.

    They get ``HOOK STATE COMMAND ZONENAME ZONEPATH``, and the same in the environment.  Files that are hidden or not
    executable are left out; a missing folder is an empty one.  Raises BrandError for a program that others than root
    may write, or that cannot be run.
    """
    words = (hook, state, command, zone.zonename, zone.zonepath)
    names = ("HOOK", "STATE", "COMMAND", "ZONENAME", "ZONEPATH")
    environment = {**os.environ, **{f"ZONEMGR_{name}": word for name, word in zip(names, words, strict=True)}}
    environment["ZONEMGR_ROOT"] = zone.layout_root
    for program in programs(folder, Path(zone.layout_root)):
        try:
            status = subprocess.run([program, *words], env=environment, stdin=subprocess.DEVNULL).returncode
        except OSError as error:
            raise BrandError("cannot run {path}: {why}", path=program, why=error.strerror) from error
        if status:
            print(f"{program} failed: status {status}")
            return status if 0 < status < 253 else 1
    return 0


def programs(folder: Path, root: Path = Path("/")) -> list[Path]:
    """The programs of the folder, in the order in which they run; ``root`` is the instance's.  Raises BrandError."""
    if not folder.is_dir():
        return []
    found = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".") and path.is_file()]
    found = [path for path in found if os.access(path, os.X_OK)]
    for path in (folder, *found):
        trust.check(path, root)
    return found
