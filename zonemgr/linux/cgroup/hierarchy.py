"""Which control group file systems this host has, and where: read from mountinfo, never guessed from folder names.

Deliberately not here: mounting anything.  A host without a cgroup2 mount is told how to get one.
"""

from __future__ import annotations

import enum
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from zonemgr.errors import PlatformError

USUAL_PLACE = Path("/sys/fs/cgroup")

# A v1 mount's super options also hold these words, which are no controllers.
_FLAGS = frozenset(
    ("rw", "ro", "xattr", "noprefix", "clone_children", "cpuset_v2_mode", "all", "none", "favordynmods")
)


class Kind(enum.StrEnum):
    """What the host's mounts add up to."""

    UNIFIED = "unified"
    HYBRID = "hybrid"
    LEGACY = "legacy"


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """The mounts: ``cg2`` is the cgroup2 root; ``controllers`` maps each v1 controller to its mount.

    Several controllers may share one mount (``cpu,cpuacct``); a named hierarchy appears as ``name=systemd``.
    """

    kind: Kind
    cg2: Path | None
    controllers: Mapping[str, Path]

    @property
    def v1_mounts(self) -> tuple[Path, ...]:
        """Each v1 mount once."""
        return tuple(dict.fromkeys(self.controllers.values()))

    def unified(self) -> Path:
        """The cgroup2 root, or the error that says how to get one."""
        if self.cg2 is None:
            raise PlatformError(
                "no cgroup2 file system is mounted on this host "
                "(mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified, or boot with systemd.unified_cgroup_hierarchy=1)"
            )
        return self.cg2

    def leave_v1(self, pid: int = 0) -> None:
        """Move a single-threaded process (0: the caller) to the root of every v1 hierarchy: out of its session's."""
        for mount in self.v1_mounts:
            join_tasks(mount, pid)


def join_tasks(folder: Path, pid: int) -> None:
    """Move one single-threaded process into a v1 control group.

    Through ``tasks``: moving a whole thread group through ``cgroup.procs`` waits some 10 ms for an RCU grace period.
    """
    try:
        write_file(folder / "tasks", str(pid))
    except OSError as error:
        raise PlatformError(
            "cannot move process {pid} into the control group {folder}: {why}",
            pid=pid,
            folder=folder,
            why=error.strerror,
        ) from error


def write_file(path: Path, text: str) -> None:
    """Write one kernel file in one write(2); never creates it (open(2) with O_CREAT would say EACCES, not ENOENT)."""
    fd = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    except OSError as error:
        error.filename = os.fspath(path)  # write(2) knows only the fd
        raise
    finally:
        os.close(fd)


def detect() -> Hierarchy:
    """The hierarchy of this host as this process sees it.  Looked for once: hosts do not change theirs."""
    place = os.stat("/proc/self/ns/mnt").st_ino
    found = _found.get(place)
    if found is None:
        text = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
        found = parse("\n".join(filter(_is_in_sight, text.splitlines())))
        if found.cg2 is not None:  # else the operator is about to mount it
            _found[place] = found
    return found


def _is_in_sight(line: str) -> bool:
    """Whether the line of mountinfo is of a control group mount that its path leads to: another may lie over it."""
    if " - cgroup" not in line:
        return False  # most lines, before any work on them
    fields = line.split(" ")
    try:
        return os.stat(_place(fields[4])).st_dev == os.makedev(*map(int, fields[2].split(":")))
    except (OSError, ValueError, IndexError):
        return False


def _place(field: str) -> Path:
    """A path of mountinfo, in which blanks and the like are octal."""
    return Path(re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field))


_found: dict[int, Hierarchy] = {}  # mount namespace -> what is mounted there


def parse(mountinfo: str) -> Hierarchy:
    """Find the control group mounts in the text of a mountinfo file (proc(5))."""
    cg2: Path | None = None
    controllers: dict[str, Path] = {}
    for place, names in sorted(
        _mounts(mountinfo), key=lambda mount: not mount[0].is_relative_to(USUAL_PLACE)
    ):
        if names is None:
            cg2 = cg2 or place
            continue
        for name in names:
            controllers.setdefault(name, place)
    if cg2 is None:
        return Hierarchy(Kind.LEGACY, None, controllers)
    return Hierarchy(Kind.HYBRID if controllers else Kind.UNIFIED, cg2, controllers)


def _mounts(mountinfo: str) -> Iterator[tuple[Path, list[str] | None]]:
    """(place, v1 controllers) of each control group mount; None in place of controllers means cgroup2."""
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        fields, rest = left.split(" "), right.split(" ")
        # fields[3] is the part of the file system that is mounted: a bind of one folder is not a hierarchy.
        if len(fields) < 5 or len(rest) < 3 or fields[3] != "/" or rest[0] not in ("cgroup", "cgroup2"):
            continue
        place = _place(fields[4])
        if rest[0] == "cgroup2":
            yield place, None
        else:
            yield place, [word for word in rest[2].split(",") if _names_a_controller(word)]


def _names_a_controller(word: str) -> bool:
    return word not in _FLAGS and ("=" not in word or word.startswith("name="))
