"""The native brand: a sparse root.

The zone runs the host's own programs from the host's /usr, read-only, and has /etc, /var, /root, /home and the rest
to itself.  Nothing is downloaded and next to nothing is copied, so an install takes a moment and the host's updates
are the zone's.  A native zone cannot install packages below /usr; what it adds goes to its own /usr/local, /opt or
/srv.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from zonemgr.brandkit import Brand, BrandError, NotCompleted, PlatformMount, UsageError, ZoneInfo

# What a host with separate /bin and /usr has as folders is shown read-only; where the host has links into /usr, the
# zone's root gets the same links when it is installed.
SYSTEM_FOLDERS = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
INTERPRETER = Path("/usr/bin/python3")
OLDEST_PYTHON = (3, 9)
INIT = Path(__file__).with_name("init")  # not self.folder: brands are made from this one
PROGRAM = Path(__file__).with_name("process1")  # the module that init is, beside what Python has compiled of it


def _system_mounts() -> tuple[PlatformMount, ...]:
    folders = [
        f"/{name}" for name in SYSTEM_FOLDERS if os.path.isdir(f"/{name}") and not os.path.islink(f"/{name}")
    ]
    return tuple(PlatformMount(folder, folder, options=("ro", "nodev")) for folder in ("/usr", *folders))


class Native(Brand):
    """See the file's docstring; README.md beside it is for administrators."""

    name = "native"
    summary = "the host's programs, read-only, with a root of its own (sparse root)"

    init = "/usr/local/sbin/init"
    init_notifies = True  # when the start-up scripts are done
    shutdown_command = ("/usr/local/sbin/poweroff",)
    scratch_mount = True

    # Set-user-id programs keep their bit: in the zone's user namespace they make root of the zone, not of the host.
    mounts = (
        *_system_mounts(),
        PlatformMount("{root}/usr/local", "/usr/local", options=("nodev",)),
        PlatformMount(str(PROGRAM), "/usr/local/lib/process1", options=("ro", "nosuid", "nodev")),
        PlatformMount("{data}/init", "/usr/local/sbin/init", options=("ro", "nodev"), kind="file"),
        PlatformMount("tmpfs", "/run", type="tmpfs", options=("nosuid", "nodev", "mode=755")),
        PlatformMount("tmpfs", "/tmp", type="tmpfs", options=("nosuid", "nodev", "mode=1777")),
    )

    verify_only_looks = True

    def verify(self, zone: ZoneInfo, command: str) -> None:
        """The host has what the zone will borrow, in the shape that the zone's root expects."""
        self._check_interpreter()
        if not os.access(INIT, os.X_OK):
            raise BrandError("{path} is not executable", path=INIT)
        if not os.path.isdir("/usr/local") or os.path.islink("/usr/local"):
            raise BrandError(
                "/usr/local of this host is not a folder, the zone's own cannot be mounted there"
            )
        if os.path.isdir(zone.root):
            self._check_shape(Path(zone.root))

    def _check_interpreter(self) -> None:
        if not os.access(INTERPRETER, os.X_OK):
            raise BrandError(
                "a native zone needs {path} on the host: its init is written in Python", path=INTERPRETER
            )
        target = os.path.basename(os.path.realpath(INTERPRETER))  # python3.11: asking it would cost its start
        version = target.removeprefix("python").split(".")
        if len(version) == 2 and version[1].isdigit() and (3, int(version[1])) < OLDEST_PYTHON:
            raise BrandError(
                "{path} is {found}, a native zone needs 3.9 or newer", path=INTERPRETER, found=target
            )

    def _check_shape(self, root: Path) -> None:
        """A host that merged /bin into /usr after the zone was installed leaves it without programs."""
        for name in SYSTEM_FOLDERS:
            on_host, in_zone = Path("/", name), root / name
            if on_host.is_symlink() and not in_zone.is_symlink() and in_zone.exists():
                raise BrandError(
                    "{path} is a folder, but /{name} of the host is a link to {target} by now: make it the same",
                    path=in_zone,
                    name=name,
                    target=os.readlink(on_host),
                )

    def install(self, zone: ZoneInfo, arguments: Sequence[str]) -> None:
        """Make the root.  Takes no arguments."""
        from . import skeleton  # not at the top: the brand is loaded for every transition

        if arguments:
            raise UsageError(f"brand '{self.name}' takes no install options; usage: zonemgr install NAME")
        if os.path.lexists(zone.root):
            raise BrandError("{root} exists already", root=zone.root)
        try:
            skeleton.build(Path(zone.root), zone.config.hostname or zone.zonename, SYSTEM_FOLDERS)
        except OSError as error:
            raise NotCompleted(
                "{path}: {why}", path=error.filename or zone.root, why=error.strerror
            ) from error

    def unconfigure(self, zone: ZoneInfo) -> None:
        """A copy of a zone is another machine, with an id and (once its services made them) host keys of its own."""
        from zonemgr.brandkit import personal, rootdir

        with rootdir.RootDir(zone.root) as root:  # what is in it may be hostile: links are not followed out of it
            personal.forget_identity(root, machine_id=personal.new_machine_id())
