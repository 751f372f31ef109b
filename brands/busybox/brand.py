"""The busybox brand: the smallest zone.

One static program, copied from the host, is init, shell and every command.  Nothing else of the host's is in the zone
and nothing is downloaded.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from zonemgr.brandkit import Brand, BrandError, NotCompleted, PlatformMount, UsageError, ZoneInfo

PROGRAMS = (
    "/usr/bin/busybox",
    "/bin/busybox",
    "/usr/sbin/busybox",
    "/usr/bin/busybox.static",
    "/bin/busybox.static",
)
PT_INTERP = 3


class Busybox(Brand):
    """See the file's docstring; README.md beside it is for administrators."""

    name = "busybox"
    summary = "the smallest zone: the host's static busybox as everything"

    init = "/sbin/init"
    init_terminal = False  # its shells want the console for themselves
    shutdown_command = ("/sbin/poweroff",)

    mounts = (
        PlatformMount("tmpfs", "/run", type="tmpfs", options=("nosuid", "nodev", "mode=755")),
        PlatformMount("tmpfs", "/tmp", type="tmpfs", options=("nosuid", "nodev", "mode=1777")),
    )

    verify_only_looks = True

    def verify(self, zone: ZoneInfo, command: str) -> None:
        """The host has a busybox to copy; a zone that is installed has its own."""
        if command == "install":
            _program()

    def install(self, zone: ZoneInfo, arguments: Sequence[str]) -> None:
        """Make the root.  Takes no arguments."""
        from . import skeleton  # not at the top: the brand is loaded for every transition

        if arguments:
            raise UsageError("brand 'busybox' takes no install options; usage: zonemgr install NAME")
        if os.path.lexists(zone.root):
            raise BrandError("{root} exists already", root=zone.root)
        try:
            skeleton.build(zone.root, zone.config.hostname or zone.zonename, _program())
        except OSError as error:
            raise NotCompleted(
                "{path}: {why}", path=error.filename or zone.root, why=error.strerror
            ) from error

    def unconfigure(self, zone: ZoneInfo) -> None:
        """A copy of a zone is another machine."""
        from zonemgr.brandkit.personal import forget_identity, new_machine_id
        from zonemgr.brandkit.rootdir import RootDir

        with RootDir(zone.root) as root:
            forget_identity(root, machine_id=new_machine_id())


def _program() -> str:
    """The host's busybox.  Raises BrandError for none, and for one that needs libraries."""
    found = [path for path in PROGRAMS if os.access(path, os.X_OK)]
    for path in found:
        if _is_static(path):
            return path
    if found:
        raise BrandError(
            "{path} needs shared libraries: install the package busybox-static on the host", path=found[0]
        )
    raise BrandError("there is no busybox: install the package busybox-static on the host")


def _is_static(path: str) -> bool:
    """Whether an ELF program names no interpreter: one with shared libraries always does."""
    import struct

    with open(path, "rb") as file:
        head = file.read(64)
        if len(head) < 64 or head[:4] != b"\x7fELF":
            return False
        order = "<" if head[5] == 1 else ">"
        place, form, sizes = (32, "Q", 54) if head[4] == 2 else (28, "I", 42)
        size, count = struct.unpack_from(order + "HH", head, sizes)
        file.seek(struct.unpack_from(order + form, head, place)[0])
        headers = file.read(size * count)
    kinds = {struct.unpack_from(order + "I", headers, size * number)[0] for number in range(count)}
    return PT_INTERP not in kinds
