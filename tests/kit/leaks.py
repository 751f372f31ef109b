"""What the host has before and after a test: mounts, control groups, links, nft tables, processes, descriptors.

Other instances of zonemgr may live on the host and change meanwhile.  What carries the suffix of an instance that is
not ours, is plugged into its bridge, or was not started from this test run, is theirs.  All else that is new is a leak.
"""

from __future__ import annotations

import gc
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MARK_VARIABLE: Final = "ZONEMGR_TEST"  # supervisors and zscheds inherit it, and so are known as ours
DEADLINE_S: Final = 10.0
_PAUSE_S: Final = 0.02
_SUFFIX: Final = re.compile(r"-[0-9a-f]{8}(?![0-9a-f])")

IsOurs = Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class Host:
    """What there was at one moment; kind -> descriptions."""

    things: Mapping[str, frozenset[str]]

    def lost(self, earlier: Host) -> list[str]:
        """What is here now and was not earlier, one line each."""
        return [
            f"{kind}: {thing}"
            for kind, things in self.things.items()
            for thing in sorted(things - earlier.things[kind])
        ]


def look(folders: tuple[Path, ...], is_ours: IsOurs) -> Host:
    """Look at the host.  ``folders`` hold our instances; ``is_ours`` tells whether a suffix is of one of them."""
    return Host(
        {
            "mount": frozenset(_mounts(folders)),
            "cgroup": frozenset(_cgroups(is_ours)),
            "link": frozenset(_links(is_ours)),
            "nft table": frozenset(_tables(is_ours)),
            "process": frozenset(_processes(is_ours)),
            "descriptor": frozenset(_descriptors()),
        }
    )


def left(
    before: Host, folders: tuple[Path, ...], is_ours: IsOurs, *, deadline_s: float = DEADLINE_S
) -> list[str]:
    """The leaks since ``before``, once what the kernel takes away in its own time has had its time."""
    end = time.monotonic() + deadline_s
    lost = look(folders, is_ours).lost(before)
    while lost and time.monotonic() < end:
        gc.collect()  # an exception's traceback may hold descriptors
        time.sleep(_PAUSE_S)
        lost = look(folders, is_ours).lost(before)
    return lost


def _foreign(name: str, is_ours: IsOurs) -> bool:
    found = _SUFFIX.search(name)
    return found is not None and not is_ours(found[0])


def _mounts(folders: tuple[Path, ...]) -> Iterator[str]:
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        fields = line.split(" ")
        point, kind = fields[4], line.partition(" - ")[2]
        ours = "zonemgr" in line or any(point.startswith(f"{folder}/") for folder in folders)
        if ours:
            yield f"{point} ({kind})"


def cgroup_roots() -> list[Path]:
    """The mount points of all control group hierarchies."""
    roots = []
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        fields, _, rest = line.partition(" - ")
        if rest.startswith(("cgroup ", "cgroup2 ")):
            roots.append(Path(fields.split(" ")[4]))
    return roots


def bases() -> Iterator[Path]:
    """The folders of every instance in every hierarchy."""
    for root in cgroup_roots():
        yield from root.glob("zonemgr*")


def _cgroups(is_ours: IsOurs) -> Iterator[str]:
    for base in bases():
        if not _foreign(base.name, is_ours):
            for folder, _, _ in os.walk(base):
                yield folder


def _links(is_ours: IsOurs) -> Iterator[str]:
    for link in Path("/sys/class/net").iterdir():
        if not _foreign(link.name, is_ours) and not _foreign(_bridge_of(link), is_ours):
            yield link.name


def _bridge_of(link: Path) -> str:
    try:
        return (link / "master").readlink().name
    except OSError:
        return ""


def _tables(is_ours: IsOurs) -> Iterator[str]:
    if not shutil.which("nft") or os.geteuid() != 0:
        return
    done = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, timeout=30)
    for line in done.stdout.splitlines():
        if not _foreign(line, is_ours):
            yield line


def _processes(is_ours: IsOurs) -> Iterator[str]:
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            parent = _parent_of(entry)
            if parent is not None:
                parents[int(entry.name)] = parent
    for pid in parents:
        if pid == os.getpid() or _is_over(pid, parents[pid]):
            continue
        if _descends(pid, parents) or _marked(pid) or _in_our_cgroup(pid, is_ours):
            yield _description(pid)


def _is_over(pid: int, parent: int) -> bool:
    """A zombie that only waits for the host's init, which collects orphans in its own time."""
    return parent == 1 and _stat(Path(f"/proc/{pid}")).split()[:1] == ["Z"]


def _stat(folder: Path) -> str:
    """What follows the command's name in /proc/PID/stat."""
    try:
        return (folder / "stat").read_text(errors="replace").rpartition(")")[2]
    except OSError:
        return ""


def _parent_of(folder: Path) -> int | None:
    fields = _stat(folder).split()
    return int(fields[1]) if fields else None


def _descends(pid: int, parents: Mapping[int, int]) -> bool:
    while pid in parents:
        pid = parents[pid]
        if pid == os.getpid():
            return True
    return False


def _marked(pid: int) -> bool:
    mark = f"{MARK_VARIABLE}={os.environ.get(MARK_VARIABLE, '')}".encode()
    try:
        return mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False


def _in_our_cgroup(pid: int, is_ours: IsOurs) -> bool:
    try:
        text = Path(f"/proc/{pid}/cgroup").read_text()
    except OSError:
        return False
    paths = [line.split(":", 2)[2] for line in text.splitlines()]
    return any(path.startswith("/zonemgr") and not _foreign(path, is_ours) for path in paths)


def _description(pid: int) -> str:
    """Names a process so that a later one of the same pid is another."""
    folder = Path(f"/proc/{pid}")
    fields = _stat(folder).split()
    try:
        words = (folder / "cmdline").read_bytes().rstrip(b"\0").replace(b"\0", b" ").decode(errors="replace")
        words = words or f"[{(folder / 'comm').read_text().strip()}]"
    except OSError:
        words = "(gone)"
    state, start = (fields[0], fields[19]) if len(fields) > 19 else ("?", "?")
    # A state changes all the time; only that of a zombie says something.
    return f"{pid} {words}{' (zombie)' if state == 'Z' else ''} (started at {start})"


def _descriptors() -> Iterator[str]:
    with os.scandir("/proc/self/fd") as entries:
        numbers = [entry.name for entry in entries]
    for number in numbers:
        try:
            yield f"{number} -> {Path('/proc/self/fd', number).readlink()}"
        except OSError:
            continue  # the listing's own
