"""Copies that share their blocks until one side changes: reflinks of files, btrfs subvolumes and snapshots.

Each call is one ioctl on descriptors.  Deliberately not here: choosing between them, and copying what cannot be shared.
"""

from __future__ import annotations

import fcntl
import os
import struct
from typing import Final

from zonemgr.linux.paths import file_system_type

BTRFS_MAGIC: Final = 0x9123683E
_FICLONE: Final = 0x40049409
_SUBVOL_CREATE: Final = 0x5000940E
_SNAP_CREATE: Final = 0x50009401
_SNAP_DESTROY: Final = 0x5000940F
_NAME_MAX: Final = 255
_SUBVOLUME_INODE: Final = 256  # the root folder of every subvolume has it


def reflink(source_fd: int, target_fd: int) -> None:
    """Make the target file share all blocks of the source.  OSError: EOPNOTSUPP, EXDEV or EINVAL where it cannot."""
    fcntl.ioctl(target_fd, _FICLONE, source_fd)


def can_reflink(source_folder_fd: int, target_folder_fd: int) -> bool:
    """Whether files of one folder can be reflinked into the other.  Tried on files without names."""
    flags = os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC
    descriptors: list[int] = []
    try:
        for folder_fd in (source_folder_fd, target_folder_fd):
            descriptors.append(os.open(".", flags, 0o600, dir_fd=folder_fd))
        os.write(descriptors[0], b"x" * 4096)
        reflink(*descriptors)
    except OSError:
        return False
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    return True


def is_btrfs(folder_fd: int) -> bool:
    """Whether the folder is on btrfs."""
    return file_system_type(folder_fd) == BTRFS_MAGIC


def is_subvolume(folder_fd: int) -> bool:
    """Whether the folder is the root of a btrfs subvolume."""
    return is_btrfs(folder_fd) and os.fstat(folder_fd).st_ino == _SUBVOLUME_INODE


def make_subvolume(parent_fd: int, name: str) -> None:
    """Make an empty subvolume."""
    fcntl.ioctl(parent_fd, _SUBVOL_CREATE, _volume_arguments(name))


def snapshot(source_fd: int, parent_fd: int, name: str) -> None:
    """Make a writable snapshot of the subvolume that ``source_fd`` is the root of."""
    fcntl.ioctl(parent_fd, _SNAP_CREATE, _volume_arguments(name, source_fd))


def destroy_subvolume(parent_fd: int, name: str) -> None:
    """Remove a subvolume with all that is in it.  OSError: ENOTEMPTY when another subvolume is in it."""
    fcntl.ioctl(parent_fd, _SNAP_DESTROY, _volume_arguments(name))


def _volume_arguments(name: str, fd: int = 0) -> bytearray:
    """struct btrfs_ioctl_vol_args: a descriptor and a name."""
    encoded = os.fsencode(name)
    if not encoded or len(encoded) > _NAME_MAX or b"/" in encoded or b"\0" in encoded:
        raise ValueError(f"{name!r} cannot be the name of a subvolume")
    return bytearray(struct.pack("=q4088s", fd, encoded))
