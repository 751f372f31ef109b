"""The mounts of a process as /proc/PID/mountinfo tells them, and who uses one of them.

Read from outside, by the host, about a zone: nothing is resolved in the zone.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

from zonemgr.linux import procfs


@dataclass(frozen=True, slots=True)
class Mount:
    """One line.  ``point`` is relative to the process's root."""

    id: int
    parent: int
    point: str


def of_process(pid: int) -> list[Mount]:
    """The mounts that the process sees; none when it is gone."""
    try:
        with open(f"/proc/{pid}/mountinfo", errors="surrogateescape") as file:
            lines = [line.split(" ") for line in file]
    except OSError:
        return []
    return [Mount(int(words[0]), int(words[1]), _unescaped(words[4])) for words in lines]


def _unescaped(text: str) -> str:
    """Blanks and the like are written as ``\\040``."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def uses(pid: int, mount_id: int) -> bool:
    """Whether the process has a file, its folder, its root or its program on the mount."""
    return mount_id in _mounts_in_use(pid)


def command(pid: int) -> str:
    """The process's name."""
    return procfs.command_name(pid) or "gone"


def _mounts_in_use(pid: int) -> Iterator[int]:
    for name in ("cwd", "root", "exe"):
        try:
            descriptor = os.open(f"/proc/{pid}/{name}", os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            yield from _mount_id(f"/proc/self/fdinfo/{descriptor}")
        finally:
            os.close(descriptor)
    try:
        descriptors = os.listdir(f"/proc/{pid}/fdinfo")
    except OSError:
        return
    for name in descriptors:
        yield from _mount_id(f"/proc/{pid}/fdinfo/{name}")


def _mount_id(path: str) -> Iterator[int]:
    try:
        with open(path) as file:
            for line in file:
                if line.startswith("mnt_id:"):
                    yield int(line.split()[1])
    except (OSError, ValueError):
        return
