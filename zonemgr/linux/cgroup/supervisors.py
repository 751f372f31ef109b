"""The cgroups of an instance's own processes: away from whoever started them, and from the zones.

A supervisor is born into ``<cgroup2>/<base>/_supervisors`` (a name no zone can have), the launcher into ``_launcher``
beside it; the last one that leaves takes the folder with it.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from zonemgr.linux import process
from zonemgr.linux.cgroup.hierarchy import Hierarchy, detect, join_tasks, write_file
from zonemgr.linux.cgroup.zone import make_below_base

FOLDER = "_supervisors"
LAUNCHER = "_launcher"


def open_folder(hierarchy: Hierarchy, base: str, name: str = FOLDER) -> int:
    """A descriptor of the folder, which is made when it is missing."""
    folder = hierarchy.unified() / base / name
    while True:
        make_below_base(folder)
        try:
            return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue  # the last supervisor of others left in between


def clone_into(hierarchy: Hierarchy, base: str, name: str = FOLDER) -> tuple[int, int]:
    """Fork a child into the folder: its pid and pidfd, or (0, -1) in the child.  OSError."""
    while True:
        folder_fd = open_folder(hierarchy, base, name)
        try:
            return process.clone3(0, cgroup_fd=folder_fd)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENODEV):
                raise  # else the last supervisor of others has just removed what we hold
        finally:
            os.close(folder_fd)


def leave_v1() -> None:
    """Leave the caller's v1 cgroups for their roots, where it is in others; through ``tasks``, which costs
    nothing.
    """
    mounts = detect().controllers
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        if path == "/" or not names:
            continue
        for name in names.split(","):
            if name in mounts:
                join_tasks(mounts[name], 0)
                break


def leave(base: str, hierarchy: Hierarchy) -> None:
    """Move the caller, who is about to end, to the root of cgroup2, and remove the folder if it is empty."""
    root = hierarchy.unified()
    try:
        write_file(root / "cgroup.procs", "0")
    except OSError:
        return  # some hosts allow nobody there: the folder stays for the next supervisor
    for folder in (root / base / LAUNCHER, root / base / FOLDER, root / base):
        try:
            folder.rmdir()
        except OSError:
            continue  # it has others in it, or is gone
