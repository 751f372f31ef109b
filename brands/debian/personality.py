"""What a fresh root needs to boot as a zone: its names, no identity, and two units masked."""

from __future__ import annotations

from typing import Final

from zonemgr.brandkit.personal import forget_identity, name_root
from zonemgr.brandkit.rootdir import RootDir

# debugfs and tracefs are the kernel's, of which a zone in a user namespace is refused a view: the only units of a
# default installation that fail.
MASKED: Final = ("sys-kernel-debug.mount", "sys-kernel-tracing.mount")


def finish(root: RootDir, hostname: str) -> None:
    """Raises OSError."""
    name_root(root, hostname)
    for unit in MASKED:
        root.link(f"/etc/systemd/system/{unit}", "/dev/null")
    forget_identity(root)
