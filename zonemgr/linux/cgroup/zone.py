"""One zone's control groups: made, joined, killed, waited for, removed.

On cgroup2: ``<mount>/<base>/<name>/{manager,work,payload}``.  Only these leaves hold processes, which is what
cgroup2 demands of folders that hand controllers down.  ``payload`` is the zone's and may be delegated to it;
``manager`` is for the supervisor and zsched, ``work`` for a running transition and its hooks.
On each v1 mount: ``<mount>/<base>/<name>``, for the zone's own processes.

Deliberately not here: the limits (limits.py, v1.py, v2.py).  No folder that is not ours is written to, except that
the cgroup2 root is asked to hand down a controller which it does not hand down yet.
"""

from __future__ import annotations

import enum
import os
import select
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from zonemgr.errors import PlatformError
from zonemgr.linux.cgroup.hierarchy import Hierarchy, join_tasks, write_file
from zonemgr.linux.cgroup.limits import Applied, Limits
from zonemgr.linux.cgroup.usage import Usage

# Controllers that a zone's limits and statistics use.
CONTROLLERS = ("memory", "cpu", "pids", "io", "cpuset", "hugetlb")

# A guest may make control groups below its payload; each costs kernel memory outside its own limits' reach.
MAX_DESCENDANTS = 8192
MAX_DEPTH = 32

# Files that cgroup_delegation hands over with a folder (/sys/kernel/cgroup/delegate lists what this kernel has).
_DELEGATE = Path("/sys/kernel/cgroup/delegate")
_ALWAYS_DELEGATED = ("cgroup.procs", "cgroup.threads", "cgroup.subtree_control")


class Part(enum.StrEnum):
    """The leaves of a zone's folder on cgroup2."""

    MANAGER = "manager"
    WORK = "work"
    PAYLOAD = "payload"


@dataclass(frozen=True, slots=True)
class ZoneCgroup:
    """The control groups of the zone ``name`` of the instance whose folder is ``base`` (``zonemgr<suffix>``)."""

    hierarchy: Hierarchy
    base: str
    name: str

    def __post_init__(self) -> None:
        for part in (self.base, self.name):
            if not part or part.startswith(".") or "/" in part or "\0" in part:
                raise PlatformError("'{part}' cannot be the name of a control group", part=part)

    @property
    def path(self) -> Path:
        """The zone's folder on cgroup2."""
        return Path(f"{self.hierarchy.unified()}/{self.base}/{self.name}")

    def part_path(self, part: str) -> Path:
        """The folder of one leaf."""
        return Path(f"{self.hierarchy.unified()}/{self.base}/{self.name}/{Part(part).value}")

    def v1_paths(self) -> tuple[Path, ...]:
        """The zone's folder on each v1 mount."""
        return tuple(Path(f"{mount}/{self.base}/{self.name}") for mount in self.hierarchy.v1_mounts)

    # -- making and removing -------------------------------------------------------------------------------

    def create(self) -> None:
        """Make all folders.  Idempotent, and safe while other zones come and go in the shared base folder."""
        make_below_base(self.path)
        for part in Part:
            _make_anew(self.part_path(part))
        self._hand_controllers_down()
        payload = self.part_path(Part.PAYLOAD)
        _write(payload / "cgroup.max.descendants", str(MAX_DESCENDANTS))
        _write(payload / "cgroup.max.depth", str(MAX_DEPTH))
        for folder in self.v1_paths():
            make_below_base(folder)
            if (folder / "cpuset.cpus").exists():
                _inherit_cpuset(folder)

    def create_work(self) -> None:
        """Make only the folder that a transition's worker lives in.  Idempotent.

        Controllers are handed down first: with a process below, that would wait for an RCU grace period.
        """
        make_below_base(self.path)
        self._hand_controllers_down()
        _make_anew(self.part_path(Part.WORK))

    def delegate(self, uid: int, gid: int | None = None) -> None:
        """Give ``payload`` to the zone's root: it may make folders and move its processes there, not lift its
        limits.
        """
        folder = self.part_path(Part.PAYLOAD)
        os.chown(folder, uid, uid if gid is None else gid)
        for filename in _delegated_files():
            try:
                os.chown(folder / filename, uid, uid if gid is None else gid)
            except FileNotFoundError:
                continue  # a file of a controller that this folder does not have

    def delegate_named(self, uid: int) -> None:
        """Give the zone's folder in the v1 hierarchy ``systemd``, which has no controller, to the zone's root."""
        mount = self.hierarchy.controllers.get("name=systemd")
        if mount is None:
            return
        folder = mount / self.base / self.name
        for path in (folder, folder / "tasks", folder / "cgroup.procs"):
            os.chown(path, uid, uid)

    def remove(self, deadline_s: float = 2.0) -> None:
        """Remove the zone's folders and whatever the guest made below them; the shared base too once it is empty.

        Idempotent.  A folder that stays busy past the deadline is an error that names who is in it.
        """
        self._remove((self.path, *self.v1_paths()), deadline_s)

    def remove_platform(self, deadline_s: float = 2.0) -> None:
        """Remove all but ``work``, in which the caller may be: whoever called it in removes the rest."""
        kept = self.part_path(Part.WORK)
        leaves = tuple(self.part_path(part) for part in Part if self.part_path(part) != kept)
        self._remove((*leaves, *self.v1_paths()), deadline_s)

    def _remove(self, folders: tuple[Path, ...], deadline_s: float) -> None:
        give_up = time.monotonic() + deadline_s
        for folder in folders:
            self._remove_folder(folder, give_up)
            try:
                folder.parent.rmdir()
            except OSError:
                continue  # other zones are in it, or it is gone already

    def _remove_folder(self, folder: Path, give_up: float) -> None:
        while True:
            try:
                return _remove_tree(folder)
            except OSError as error:
                if time.monotonic() >= give_up:
                    raise PlatformError(
                        "cannot remove the control group {folder}: {why}{who}",
                        folder=folder,
                        why=error.strerror,
                        who=_who(_pids_below(folder)),
                    ) from error
            time.sleep(
                0.005
            )  # v1 has no event for "empty", and an exiting task leaves a moment after its parent knew

    def _hand_controllers_down(self) -> None:
        """Enable each controller from the root down to the leaves; one that cannot be is left for apply() to name."""
        root = self.hierarchy.unified()
        there = set((root / "cgroup.controllers").read_text().split())
        wanted = [controller for controller in CONTROLLERS if controller in there]
        for folder in (root, self.path.parent, self.path):
            try:
                missing = set(wanted).difference((folder / "cgroup.subtree_control").read_text().split())
                if missing:
                    write_file(
                        folder / "cgroup.subtree_control", " ".join(f"+{name}" for name in sorted(missing))
                    )
            except OSError:
                self._hand_each_down(wanted)  # all or none in one go: then each by itself
                return

    def _hand_each_down(self, controllers: list[str]) -> None:
        for controller in controllers:
            try:
                self.enable(controller)
            except OSError:
                continue

    def enable(self, controller: str) -> bool:
        """Hand one cgroup2 controller down to the leaves.  False: this cgroup2 tree does not have it.  Raises
        OSError.
        """
        root = self.hierarchy.unified()
        if controller not in (root / "cgroup.controllers").read_text().split():
            return False
        for folder in (root, self.path.parent, self.path):
            if controller not in (folder / "cgroup.subtree_control").read_text().split():
                write_file(folder / "cgroup.subtree_control", f"+{controller}")
        return True

    # -- membership ----------------------------------------------------------------------------------------

    def payload_fd(self) -> int:
        """A new close-on-exec fd of the payload folder, for clone3(CLONE_INTO_CGROUP).  The caller closes it."""
        return self.part_fd(Part.PAYLOAD)

    def manager_fd(self) -> int:
        """As payload_fd, of the folder for the supervisor and zsched."""
        return self.part_fd(Part.MANAGER)

    def work_fd(self) -> int:
        """As payload_fd, of the folder for a transition's worker and hooks."""
        return self.part_fd(Part.WORK)

    def part_fd(self, part: str) -> int:
        """A new close-on-exec fd of one leaf's folder."""
        folder = self.part_path(part)
        try:
            return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise _cannot("open", folder, error) from error

    def join(self, part: str, pid: int = 0) -> None:
        """Move a process (0: the caller) into a leaf.  Costs some 10 ms on an idle host: prefer clone3 with the
        fd.
        """
        folder = self.part_path(part)
        try:
            write_file(folder / "cgroup.procs", str(pid))
        except OSError as error:
            raise PlatformError(
                "cannot move process {pid} into the control group {folder}: {why}",
                pid=pid,
                folder=folder,
                why=error.strerror,
            ) from error

    def join_v1(self, pid: int = 0) -> None:
        """Move a single-threaded process (0: the caller) into the zone's folder on every v1 mount."""
        for folder in self.v1_paths():
            join_tasks(folder, pid)

    def v1_tasks_fds(self) -> list[int]:
        """Descriptors of the zone's ``tasks`` on every v1 mount, for a process that moves itself there by writing 0: to
        be moved by another waits for an RCU grace period (10 ms).  The caller closes them.
        """
        return [os.open(folder / "tasks", os.O_WRONLY | os.O_CLOEXEC) for folder in self.v1_paths()]

    def pids(self, part: str) -> list[int]:
        """All processes of a leaf and below it, as this process's pid namespace numbers them."""
        return sorted(_pids_below(self.part_path(part)))

    def populated(self, part: str) -> bool:
        """Does the leaf, or a folder below it, hold a process that is not dead yet?"""
        return self._event(part, "populated")

    def stuck(self, part: str) -> list[str]:
        """One line per process left: pid, command name, and the kernel function it sleeps in."""
        return [_describe(pid) for pid in self.pids(part)]

    # -- acting on all members -----------------------------------------------------------------------------

    def kill(self, part: str) -> None:
        """SIGKILL every process of a leaf and below, those being forked included.  No folder, nothing to kill."""
        try:
            write_file(self.part_path(part) / "cgroup.kill", "1")
        except FileNotFoundError:
            return
        except OSError as error:
            raise _cannot("kill the processes of", self.part_path(part), error) from error

    def wait_empty(self, part: str, deadline_s: float) -> bool:
        """Wait until no living process is left, at most ``deadline_s`` seconds.  True: it is empty."""
        return self._wait_event(part, "populated", False, deadline_s)

    def freeze(self, part: str = Part.PAYLOAD, deadline_s: float = 5.0) -> bool:
        """Stop every process of a leaf where it stands.  True once all of them are frozen."""
        _write(self.part_path(part) / "cgroup.freeze", "1")
        return self._wait_event(part, "frozen", True, deadline_s)

    def thaw(self, part: str = Part.PAYLOAD, deadline_s: float = 5.0) -> bool:
        """Let the processes of a frozen leaf go on."""
        _write(self.part_path(part) / "cgroup.freeze", "0")
        return self._wait_event(part, "frozen", False, deadline_s)

    def _event(self, part: str, key: str) -> bool:
        try:
            with open(self.part_path(part) / "cgroup.events", "rb") as file:
                return _flag(file.read(), key)
        except (FileNotFoundError, NotADirectoryError):
            return False

    def _wait_event(self, part: str, key: str, wanted: bool, deadline_s: float) -> bool:
        give_up = time.monotonic() + deadline_s
        try:
            fd = os.open(self.part_path(part) / "cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return not wanted
        try:
            poller = select.poll()
            poller.register(fd, select.POLLPRI)
            while True:
                # The read arms the next notification, so nothing can slip in between it and the poll.
                try:
                    if _flag(os.pread(fd, 4096, 0), key) is wanted:
                        return True
                except OSError:  # ENODEV: the folder was removed under us, so it was empty
                    return not wanted
                left_s = give_up - time.monotonic()
                if left_s <= 0:
                    return False
                poller.poll(left_s * 1000)
        finally:
            os.close(fd)

    # -- limits --------------------------------------------------------------------------------------------

    def apply(
        self,
        limits: Limits,
        *,
        best_effort: bool = False,
        clear: bool = False,
        optional: frozenset[str] = frozenset(),
    ) -> list[Applied]:
        """Write the limits, read each back, report what holds.  Idempotent.

        A limit that the kernel cannot hold raises PlatformError with its name, unless ``best_effort``, or its name is
        among the ``optional``: then its report carries the problem.  ``clear`` lifts the limits that are None (a live
        change of a running zone).
        """
        from zonemgr.linux.cgroup.limits import apply  # here: it loads cgroupspy (some 25 ms)

        return apply(self, limits, best_effort=best_effort, clear=clear, optional=optional)

    def on_v1(self, controller: str) -> bool:
        """Whether this host has the controller on cgroup v1."""
        return controller in self.hierarchy.controllers

    def limit_swap(self, room_bytes: int | None) -> None:
        """Cap swap alone, on cgroup v2, ahead of what ``apply`` then makes hold."""
        try:
            _write(self.part_path(Part.PAYLOAD) / "memory.swap.max", "max" if room_bytes is None else str(room_bytes))
        except PlatformError:
            return  # a kernel without swap

    def reclaim(self, wanted_bytes: int) -> None:
        """Ask cgroup v2 to take that much memory from the zone, as far as it can: caches, and what fits into swap."""
        try:
            _write(self.part_path(Part.PAYLOAD) / "memory.reclaim", str(wanted_bytes))
        except PlatformError:
            return  # EAGAIN: it could not get all of it

    def usage(self) -> Usage:
        """What the zone uses now; None where the host does not count it."""
        from zonemgr.linux.cgroup.usage import of_zone

        return of_zone(self.hierarchy, self.base, self.name)


def _make(folder: Path) -> None:
    try:
        os.mkdir(folder, 0o755)
    except FileExistsError:
        # Each control group has kernel files of its own, such as v1's "tasks".  (A folder may be gone again by now.)
        if folder.is_file():
            raise PlatformError("'{name}' cannot be the name of a control group", name=folder.name) from None
    except OSError as error:
        raise _cannot("create", folder, error) from error


def _make_anew(folder: Path) -> None:
    """Make a leaf, in place of an empty one that is there.

    Since Linux 6.14 a child that clone3 puts into a folder on which cgroup.kill was ever used is killed at
    birth: the kernel compares the folder's count of kills with that of the folder which the parent is in.  A
    new folder counts from zero.
    """
    give_up = time.monotonic() + 2.0
    while folder.is_dir() and not _pids_below(folder):  # dead ones may populate it for a moment
        try:
            folder.rmdir()
        except OSError:
            if time.monotonic() > give_up:
                break
            time.sleep(0.002)  # the last process is dead and not yet reaped: nothing tells when it is
    _make(folder)


def make_below_base(folder: Path) -> None:
    """Make base and folder.  The last zone to leave removes the base, perhaps between our two calls: then again."""
    for attempt in range(100):
        try:
            _make(folder.parent)
            _make(folder)
            return
        except PlatformError as error:
            if (
                not isinstance(error.__cause__, FileNotFoundError)
                or not folder.parent.parent.is_dir()
                or attempt == 99
            ):
                raise


def _inherit_cpuset(folder: Path) -> None:
    """A v1 cpuset takes no task before it has cpus and memory nodes; a new one has neither."""
    for place in (folder.parent, folder):
        for filename in ("cpuset.cpus", "cpuset.mems"):
            if not (place / filename).read_text().strip():
                _write(place / filename, (place.parent / filename).read_text().strip())


def _remove_tree(folder: Path) -> None:
    """Remove folders deepest first, through fds: a guest can nest names beyond the length of any path."""
    try:
        for _, names, _, directory_fd in os.fwalk(folder, topdown=False):
            for name in names:
                os.rmdir(name, dir_fd=directory_fd)
        os.rmdir(folder)
    except FileNotFoundError:
        return


def _pids_below(folder: Path) -> set[int]:
    """Processes of a folder and below; a process of another pid namespace shows as 0 and is left out."""
    try:
        return {pid for text in _member_files(folder) for pid in map(int, text.split()) if pid}
    except FileNotFoundError:
        return set()


def _member_files(folder: Path) -> Iterator[str]:
    for _, _, _, directory_fd in os.fwalk(folder):
        try:
            fd = os.open("cgroup.procs", os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory_fd)
            with open(fd, encoding="ascii") as file:
                yield file.read()
        except OSError:
            continue  # removed meanwhile, or a threaded group, whose processes its domain lists


def _who(pids: set[int]) -> str:
    return "".join(f"; {_describe(pid)}" for pid in sorted(pids)[:10])


def _describe(pid: int) -> str:
    comm, where = (_proc(pid, "comm") or "gone"), (_proc(pid, "wchan") or "0")
    return f"{pid} ({comm})" + (f" {where}" if where != "0" else "")


def _proc(pid: int, filename: str) -> str:
    try:
        return Path(f"/proc/{pid}/{filename}").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _delegated_files() -> tuple[str, ...]:
    try:
        return tuple(_DELEGATE.read_text().split())
    except OSError:
        return _ALWAYS_DELEGATED


def _flag(events: bytes, key: str) -> bool:
    return f"{key} 1".encode() in events.splitlines()


def _write(path: Path, text: str) -> None:
    try:
        write_file(path, text)
    except OSError as error:
        raise _cannot("write", path, error) from error


def _cannot(verb: str, folder: Path, error: OSError) -> PlatformError:
    return PlatformError(
        "cannot {verb} the control group {folder}: {why}", verb=verb, folder=folder, why=error.strerror
    )
