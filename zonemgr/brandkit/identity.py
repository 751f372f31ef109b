"""A copied root becomes another machine: host name, machine id, host keys, leases, whatever its brand.

What only one brand knows of is for that brand's ``unconfigure``, which runs afterwards.
"""

from __future__ import annotations

import re
from typing import Final

from zonemgr.brandkit import personal
from zonemgr.brandkit.rootdir import RootDir

_TEXT_MAX: Final = 64 << 10


def reset(root_path: str, old: str, hostname: str) -> None:
    """Forget in the root what must not exist twice, and rename it from ``old`` to ``hostname``.  Raises OSError."""
    with RootDir(root_path) as root:
        personal.forget_identity(root, machine_id=personal.new_machine_id())
    rename(root_path, old, hostname)


def rename(root_path: str, old: str, hostname: str) -> None:
    """Put the new host name where the root's own files have the old one.  Raises OSError."""
    with RootDir(root_path) as root:
        for name in ("/etc/hostname", "/etc/hosts"):
            _rename_in(root, name, old, hostname)


def _rename_in(root: RootDir, name: str, old: str, hostname: str) -> None:
    """Replace the old host name where it stands as a word.  A file that is missing, a link or odd is left alone."""
    status = root.status(name, follow=False)
    if status is None or root.link_target(name) is not None or status.st_size > _TEXT_MAX:
        return
    text = (root.read(name) or b"").decode(errors="surrogateescape")
    changed = re.sub(rf"(?<![\w.-]){re.escape(old)}(?![\w-])", lambda _: hostname, text)
    if changed != text:
        root.write(name, changed, status.st_mode & 0o777, uid=status.st_uid, gid=status.st_gid)
