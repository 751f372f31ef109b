"""Overlay file systems: layers put together into a mount that nobody sees yet.

Layers are told by descriptors.  Deliberately not here: which layers a zone has (``brandkit.layers``), and mapping the
ids of each, which has to happen before, since the kernel maps none on an overlay.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from zonemgr.errors import PlatformError
from zonemgr.linux import mounts

LAYERS_MAX: Final = 10  # their names have to fit into one option of the mount
_PLACE: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_WRITABLE: Final = {
    "redirect_dir": "on",
    "index": "off",
    "metacopy": "off",
}  # on: folders of a layer can be renamed


def assemble(upper_fds: tuple[int, int] | None, lower_fds: list[int], attributes: int = 0) -> int:
    """A detached overlay mount.  ``upper_fds``: the root that is written and its work folder; None: read-only.

    The layers are told by descriptors: their names may be long, or hold what separates options.  Raises OSError.
    """
    options: dict[str, str | None] = {"lowerdir": ":".join(map(_name, lower_fds))}
    if upper_fds is None:
        options["redirect_dir"] = "follow"
        attributes |= mounts.ATTR_RDONLY
    else:
        options |= {"upperdir": _name(upper_fds[0]), "workdir": _name(upper_fds[1]), **_WRITABLE}
    return mounts.make_filesystem("overlay", options, attributes=attributes)


def _name(fd: int) -> str:
    return f"/proc/self/fd/{fd}"


@contextmanager
def opened(*paths: str) -> Iterator[list[int]]:
    """Descriptors of folders of ours, whose last name is no link.  Raises PlatformError."""
    descriptors: list[int] = []
    try:
        for path in paths:
            try:
                descriptors.append(os.open(path, _PLACE))
            except OSError as error:
                raise PlatformError("{path}: {why}", path=path, why=error.strerror) from error
        yield descriptors
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
