"""Whether a file that will run as root is root's alone, with every folder that leads to it.

Whoever may write a folder above may put another one in its place.  Links are followed, and the way to where they lead
counts too.  Sticky folders (/tmp) are no place for code, except above an instance's own root: who chose that place for
all that root does there has no less to lose by its brands.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from zonemgr.errors import BrandError

HOOKS_FOLDER: Final = "hooks"  # beside a manifest: its programs, and what they share
LINKS_MAX: Final = 40  # as the kernel has it


def check(path: Path, root: Path = Path("/")) -> None:
    """Raises BrandError when others than root may write the file or folder, or put another one there.  ``root`` is
    the instance's.  OSError where the way ends before."""
    for place in _way(path):
        status = place.lstat()
        link = stat.S_ISLNK(status.st_mode)
        writable = not link and status.st_mode & 0o022 and not _is_kept(place, status.st_mode, root)
        if not writable and status.st_uid in (0, os.geteuid()):
            continue
        if place == path:
            raise BrandError("{path}: refused, since others than root may write it", path=path)
        raise BrandError(
            "{path}: refused, since others than root may write {place}, which leads to it"
            " (what runs as root belongs below folders that are root's alone)",
            path=path,
            place=place,
        )


def check_found(path: Path, root: Path = Path("/")) -> None:
    """As ``check``, for what need not be there: as far as the way to it goes."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        check(path, root)


def _is_kept(place: Path, mode: int, root: Path) -> bool:
    """What is in a sticky folder cannot be replaced by others; taken above the instance's root only."""
    return bool(mode & stat.S_ISVTX) and stat.S_ISDIR(mode) and place in root.parents


def _way(path: Path) -> Iterator[Path]:
    """Every folder and link that the path leads through, and what is at its end."""
    at = Path("/")
    yield at
    ahead = list(reversed(path.absolute().parts[1:]))
    links = 0
    while ahead:
        name = ahead.pop()
        entry = at.parent if name == ".." else at / name
        yield entry
        if not entry.is_symlink():
            at = entry
            continue
        links += 1
        if links > LINKS_MAX:
            raise BrandError("{path}: more than {most} links lead to it", path=path, most=LINKS_MAX)
        target = Path(os.readlink(entry))
        if target.is_absolute():
            at = Path("/")
        ahead += reversed(target.parts[target.is_absolute() :])
