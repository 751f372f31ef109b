"""What the host has before and after a test: mounts, control groups, links, nft tables, processes, descriptors.

Other instances of zonemgr may live on the host and change meanwhile.  What carries the suffix of an instance that is
not ours, is plugged into its bridge, or was not started from this test run, is theirs.  All else that is new is a leak.
"""

from __future__ import annotations

import gc
import os
import re
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MARK_VARIABLE: Final = "ZONEMGR_TEST"  # supervisors and zscheds inherit it, and so are known as ours
DEADLINE_S: Final = 30.0
_PAUSE_S: Final = 0.02
_NETFILTER: Final = 12
_SUFFIX: Final = re.compile(r"-[0-9a-f]{8}(?![0-9a-f])")
_BASE: Final = re.compile(r"zonemgr(-[0-9a-f]{8})?")  # an instance's control group; what else begins so is another's

# Pid and start of processes that were none of ours once, and so never are: who is ours was born so.
_STRANGERS: Final[set[tuple[int, str]]] = set()

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


def look(folders: tuple[Path, ...], is_ours: IsOurs, *, all_tables: bool = False) -> Host:
    """Look at the host.  ``folders`` hold our instances; ``is_ours`` tells whether a suffix is of one of them.  With
    ``all_tables`` the tables of every instance count, as where a program that the test runs makes one that it removes.
    """
    return Host(
        {
            "mount": frozenset(_mounts(folders)),
            "cgroup": frozenset(_cgroups(is_ours)),
            "link": frozenset(_links(is_ours)),
            "nft table": frozenset(_tables(_everybody if all_tables else is_ours)),
            "process": frozenset(_processes(is_ours)),
            "descriptor": frozenset(_descriptors()),
        }
    )


def _everybody(_suffix: str) -> bool:
    return True


def left(
    before: Host,
    folders: tuple[Path, ...],
    is_ours: IsOurs,
    *,
    all_tables: bool = False,
    deadline_s: float = DEADLINE_S,
) -> list[str]:
    """The leaks since ``before``, once what the kernel takes away in its own time has had its time."""
    end = time.monotonic() + deadline_s
    lost = look(folders, is_ours, all_tables=all_tables).lost(before)
    while lost and time.monotonic() < end:
        gc.collect()  # an exception's traceback may hold descriptors
        time.sleep(_PAUSE_S)
        lost = look(folders, is_ours, all_tables=all_tables).lost(before)
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
        yield from (path for path in root.glob("zonemgr*") if _BASE.fullmatch(path.name))


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
    for name in _table_names() if os.geteuid() == 0 else ():
        if not _foreign(name, is_ours):
            yield name


def _table_names() -> Iterator[str]:
    """The tables of nftables, by netlink: a look is taken twice a test, and starting nft(8) is most of its cost."""
    get_table, dump, done, name_attribute = 0xA01, 0x301, (2, 3), 1
    try:
        netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETFILTER)
    except OSError:
        return  # the kernel has none
    with netlink:
        netlink.send(struct.pack("=IHHIIBBH", 20, get_table, dump, 1, 0, 0, 0, 0))
        while True:
            left = netlink.recv(1 << 16)
            while left:
                size, kind = struct.unpack_from("=IH", left)
                if kind in done:
                    return
                family, attributes = left[16], left[20:size]
                while attributes:
                    length, attribute = struct.unpack_from("=HH", attributes)
                    if attribute == name_attribute:
                        yield f"{attributes[4:length].rstrip(bytes(1)).decode()} (family {family})"
                    attributes = attributes[(length + 3) & ~3 :]
                left = left[(size + 3) & ~3 :]


def _processes(is_ours: IsOurs) -> Iterator[str]:
    found = {int(entry.name): _Stat.of(entry) for entry in Path("/proc").iterdir() if entry.name.isdigit()}
    stats = {pid: stat for pid, stat in found.items() if stat is not None}
    for pid, stat in stats.items():
        if pid == os.getpid() or stat.is_over or (pid, stat.start) in _STRANGERS:
            continue
        if _descends(pid, stats) or _marked(pid) or _in_our_cgroup(pid, is_ours):
            yield _description(pid, stat)
        else:
            _STRANGERS.add((pid, stat.start))


@dataclass(frozen=True, slots=True)
class _Stat:
    """Of a process's stat file, what tells whose it is."""

    state: str
    parent: int
    start: str

    @classmethod
    def of(cls, folder: Path) -> _Stat | None:
        try:
            fields = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
        except OSError:
            return None
        return cls(fields[0], int(fields[1]), fields[19])

    @property
    def is_over(self) -> bool:
        """A zombie that only waits for the host's init, which collects orphans in its own time."""
        return self.parent == 1 and self.state == "Z"


def _descends(pid: int, stats: Mapping[int, _Stat]) -> bool:
    while pid in stats:
        pid = stats[pid].parent
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
    tops = {line.split(":", 2)[2].split("/")[1] for line in text.splitlines()}
    return any(_BASE.fullmatch(top) and not _foreign(top, is_ours) for top in tops)


def _description(pid: int, stat: _Stat) -> str:
    """Names a process so that a later one of the same pid is another."""
    folder = Path(f"/proc/{pid}")
    try:
        words = (folder / "cmdline").read_bytes().rstrip(b"\0").replace(b"\0", b" ").decode(errors="replace")
        words = words or f"[{(folder / 'comm').read_text().strip()}]"
    except OSError:
        words = "(gone)"
    # A state changes all the time; only that of a zombie says something.
    return f"{pid} {words}{' (zombie)' if stat.state == 'Z' else ''} (started at {stat.start})"


def _descriptors() -> Iterator[str]:
    with os.scandir("/proc/self/fd") as entries:
        numbers = [entry.name for entry in entries]
    for number in numbers:
        try:
            yield f"{number} -> {Path('/proc/self/fd', number).readlink()}"
        except OSError:
            continue  # the listing's own
