"""Running programs of a new root without the host's privilege: in a user namespace with the zone's own ids.

What package scripts and installers want is a root of their own: chown, chroot, mounts.  They get it as the zone
itself would, in namespaces for users, mounts, processes and names whose ids are the zone's range on the host.  To the
host they are nobody: what they reach beyond the root is what everybody on the host may read, and the network, which
installers need.  The host's /run, with the sockets of its services, is not shown.

Files made this way belong to the zone's range; ``settle`` moves them to the ids that a root on disk has.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final, NoReturn

from zonemgr.brandkit import tree
from zonemgr.brandkit.base import ZoneInfo
from zonemgr.brandkit.owners import Owners
from zonemgr.errors import BrandError
from zonemgr.linux import mounts, namespaces, process
from zonemgr.store import zones

ROOT: Final = "/run/zone/root"  # where a program in the sandbox finds the root
PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_DEVICES: Final = ("null", "zero", "full", "random", "urandom", "tty")
_DEVICE_LINKS: Final = (
    ("console", "null"),
    ("ptmx", "pts/ptmx"),
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
)
_FLAGS: Final = (
    namespaces.NEWUSER
    | namespaces.NEWNS
    | namespaces.NEWPID
    | namespaces.NEWIPC
    | namespaces.NEWUTS
    | namespaces.NEWCGROUP
)


@dataclass(frozen=True, slots=True)
class Sandbox:
    """One zone's sandbox.  ``base`` is the host's id of the zone's root."""

    root: str
    base: int
    files: Mapping[str, str]  # small files of the sandbox's own /run: path below it -> content

    def run(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> Iterator[str]:
        """Run a program with ``ROOT`` as its folder; yields what it says line by line.  BrandError for a status not 0.

        The program is one of the host's, or a ``chroot`` into the root.
        """
        read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            process.set_pdeathsig(signal.SIGKILL, parent)
            self._outer(
                command, {"PATH": PATH, "HOME": "/", "LC_ALL": "C.UTF-8", **(environment or {})}, write_fd
            )
        os.close(write_fd)
        try:
            with open(read_fd, encoding="utf-8", errors="replace") as lines:
                for line in lines:
                    yield line.rstrip("\n")
        except GeneratorExit:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            raise
        finally:
            status = process.exit_status(os.waitpid(pid, 0)[1])
        if status:
            raise BrandError("{command} failed with status {status}", command=command[0], status=status)

    # -- in the first child: still with the host's credentials, in a mount namespace of its own ---------------------

    def _outer(self, command: Sequence[str], environment: Mapping[str, str], output_fd: int) -> NoReturn:
        status = 125
        try:
            os.dup2(output_fd, 1)
            os.dup2(output_fd, 2)
            self._make_view()
            status = self._inner(command, environment)
        except Exception as error:  # noqa: BLE001 - whatever it is, the child ends here
            os.write(2, f"sandbox: {error}\n".encode(errors="replace"))
        finally:
            os._exit(status)

    def _make_view(self) -> None:
        """What the sandbox sees: the host's tree with another /run, in which the root is.

        Made before the user namespace, so that everything arrives locked in it.
        """
        root_fd = mounts.open_tree(self.root)
        resolver = os.path.realpath("/etc/resolv.conf")
        files = {**self.files, **_content_below_run(resolver)}
        namespaces.unshare(namespaces.NEWNS)
        mounts.set_propagation("/", mounts.PRIVATE, recursive=True)
        run_fd = mounts.make_filesystem(
            "tmpfs", {"mode": "755"}, attributes=mounts.ATTR_NOSUID | mounts.ATTR_NODEV
        )
        _attach(run_fd, "/run")
        for name, content in files.items():
            path = os.path.join("/run", name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "w") as file:
                file.write(content)
        os.makedirs(ROOT)
        _attach(root_fd, ROOT)
        os.makedirs("/run/lock")
        os.chmod("/run/lock", 0o1777)
        self._make_devices(f"{ROOT}/dev")

    def _make_devices(self, place: str) -> None:
        """A /dev for the root: nodes cannot be made in a user namespace, so the host's harmless ones are bound."""
        os.makedirs(place, exist_ok=True)
        options: dict[str, str | None] = {"mode": "755", "uid": str(self.base), "gid": str(self.base)}
        _attach(mounts.make_filesystem("tmpfs", options, attributes=mounts.ATTR_NOSUID), place)
        for name in _DEVICES:
            with open(f"{place}/{name}", "x"):
                pass
            tree_fd = mounts.open_tree(f"/dev/{name}")
            target_fd = os.open(f"{place}/{name}", os.O_PATH | os.O_CLOEXEC)
            mounts.move_mount(tree_fd, target_fd)
            os.close(tree_fd)
            os.close(target_fd)
        for name, target in _DEVICE_LINKS:
            os.symlink(target, f"{place}/{name}")
        for name in ("pts", "shm"):
            os.mkdir(f"{place}/{name}", 0o1777)
            os.chown(f"{place}/{name}", self.base, self.base)

    def _inner(self, command: Sequence[str], environment: Mapping[str, str]) -> int:
        go_read, go_write = os.pipe2(os.O_CLOEXEC)
        pid, pid_fd = process.clone3(_FLAGS)
        if pid == 0:
            _become(command, environment, go_read, go_write)
        os.close(go_read)
        try:
            namespaces.write_id_maps(pid, self.base)
            os.write(go_write, b"g")
        finally:
            os.close(go_write)
            os.close(pid_fd)
        return process.exit_status(os.waitpid(pid, 0)[1])

    # -- afterwards -------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Move the owners of the whole root from the zone's range to the zone's own ids.  Raises OSError, ZoneError."""
        root_fd = os.open(self.root, tree.FOLDER)
        try:
            tree.move_owners(root_fd, Owners(self.base))
        finally:
            os.close(root_fd)


@contextmanager
def sandbox(zone: ZoneInfo, files: Mapping[str, str] | None = None) -> Iterator[Sandbox]:
    """The sandbox of a zone whose root has been made.  Its root belongs to the zone's range meanwhile; what it holds
    at the end is settled when all went well."""
    base = zones.read_entry(zone.layout, zone.zonename).uid_base
    if base is None:
        raise BrandError("zone {zonename} has no ids", zonename=zone.zonename)
    os.chown(zone.root, base, base)
    made = Sandbox(zone.root, base, files or {})
    yield made
    made.settle()


def _content_below_run(path: str) -> dict[str, str]:
    """A file that lies in the host's /run and is needed in the sandbox's."""
    if not path.startswith("/run/"):
        return {}
    try:
        with open(path, errors="replace") as file:
            return {path.removeprefix("/run/"): file.read(65536)}
    except OSError:
        return {}


def _attach(mount_fd: int, path: str) -> None:
    target_fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        mounts.move_mount(mount_fd, target_fd)
    finally:
        os.close(target_fd)
        os.close(mount_fd)


def _become(command: Sequence[str], environment: Mapping[str, str], go_read: int, go_write: int) -> NoReturn:
    """Process 1 of the sandbox: wait for the ids, take them, and become the program."""
    try:
        os.close(go_write)
        if os.read(go_read, 1) != b"g":
            os._exit(125)
        os.setgroups([])
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
        process.set_pdeathsig(signal.SIGKILL)
        os.umask(0o022)
        os.chdir(ROOT)
        process.close_fds([0, 1, 2])
        os.execvpe(command[0], list(command), dict(environment))
    except OSError as error:
        os.write(2, f"{command[0]}: {error.strerror}\n".encode())
    finally:
        os._exit(127)
