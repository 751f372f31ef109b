"""The care of a zonepath: what is mounted below it, and taking it away again.

What a zone leaves behind is hostile: links to anywhere, folders a hundred thousand levels deep, names of any bytes.
Removal works on descriptors, never follows a link, never crosses a mount, and needs no memory or descriptors that
grow with depth.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from zonemgr.errors import PlatformError, message
from zonemgr.linux import paths

Say = Callable[[str], None]

STANDARD_ENTRIES: Final = ("dev", "lu", "root", "root.new", "work", "SUNWdetached.json", "SUNWattached.json")
_DEPTH_MAX: Final = 100  # levels that are descended before a folder is moved up instead
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def mounts_below(path: str) -> list[str]:
    """What is mounted on ``path`` or below it in our mount namespace."""
    real = os.path.realpath(path)
    found = []
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        point = os.fsdecode(line.split()[4].decode("unicode_escape").encode("latin-1"))  # blanks are \\040
        if point == real or point.startswith(real + "/"):
            found.append(point)
    return found


def refuse_mounts(path: str, say: Say) -> None:
    """Raises PlatformError when something is mounted below ``path``, after naming it to ``say``."""
    found = mounts_below(path)
    if not found:
        return
    say(message("These file systems are mounted on subdirectories of {path}.", path=path))
    for point in found:
        say(f"  {point}")
    raise PlatformError("{path} is in use: unmount what is mounted there", path=path)


def cleanup(zonepath: str, say: Say) -> None:
    """Remove the standard entries of a zonepath, and the folder itself when nothing else is in it.

    Other entries stay, with a warning (reference, section 6.4, cleanup_zonepath).  A zonepath that is gone is fine.
    Raises PlatformError.
    """
    try:
        folder_fd = os.open(zonepath, _DIRECTORY)
    except FileNotFoundError:
        return
    except OSError as error:
        raise PlatformError("cannot clean up {path}: {why}", path=zonepath, why=error.strerror) from error
    try:
        for name in STANDARD_ENTRIES:
            remove(folder_fd, name)
        kept = os.listdir(folder_fd)
    except OSError as error:
        where = f"{zonepath}/{os.fsdecode(error.filename or '')}"
        raise PlatformError("cannot remove {path}: {why}", path=where, why=error.strerror) from error
    finally:
        os.close(folder_fd)
    if kept:
        say(message("WARNING: Unable to completely remove {zonepath}", zonepath=zonepath))
        say("because it contains additional user data.  Only the standard directory")
        say("entries have been removed.")
    else:
        _remove_folder(zonepath)


def _remove_folder(zonepath: str) -> None:
    try:
        os.rmdir(zonepath)
    except OSError as error:
        raise PlatformError("cannot remove {path}: {why}", path=zonepath, why=error.strerror) from error


def remove(parent_fd: int, name: str) -> None:
    """Remove a file, or a folder with all that is in it; nothing happens when it is missing.  Raises OSError."""
    try:
        os.unlink(name, dir_fd=parent_fd)
        return
    except FileNotFoundError:
        return
    except IsADirectoryError:
        pass
    top_fd = _open_folder(parent_fd, name)
    try:
        while _empty(top_fd, top_fd, 0):
            pass
    finally:
        os.close(top_fd)
    os.rmdir(name, dir_fd=parent_fd)


def _open_folder(parent_fd: int, name: str) -> int:
    return paths.open_beneath(parent_fd, name, _DIRECTORY, in_root=False, no_xdev=True)


def _empty(folder_fd: int, top_fd: int, depth: int) -> bool:
    """Empty a folder.  True when something too deep was moved up to the top, which then has to be emptied again."""
    moved = False
    for name, is_folder in _entries(folder_fd):
        if not is_folder:
            os.unlink(name, dir_fd=folder_fd)
        elif depth >= _DEPTH_MAX:
            _move_up(folder_fd, name, top_fd)
            moved = True
        else:
            moved |= _empty_and_remove(folder_fd, name, top_fd, depth)
    return moved


def _empty_and_remove(folder_fd: int, name: str, top_fd: int, depth: int) -> bool:
    below_fd = _open_folder(folder_fd, name)
    try:
        moved = _empty(below_fd, top_fd, depth + 1)
    finally:
        os.close(below_fd)
    os.rmdir(name, dir_fd=folder_fd)
    return moved


def _entries(folder_fd: int) -> Iterator[tuple[str, bool]]:
    """(name, is a folder) of everything in the folder, taken down before anything in it changes."""
    names = []
    os.lseek(
        folder_fd, 0, os.SEEK_SET
    )  # btrfs shows what was there when the position was last set, and no more
    with os.scandir(folder_fd) as entries:
        for entry in entries:
            names.append((entry.name, entry.is_dir(follow_symlinks=False)))
    return iter(names)


def _move_up(folder_fd: int, name: str, top_fd: int) -> None:
    """Take a folder out of the depths, under a name that nobody can have planted."""
    os.rename(name, f".removing-{os.urandom(8).hex()}", src_dir_fd=folder_fd, dst_dir_fd=top_fd)
