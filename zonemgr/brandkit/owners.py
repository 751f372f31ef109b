"""The ids in a root that was shifted on disk, taken back to what they are inside the zone.

Where a file system maps no ids, the platform moves the owners of a root by the zone's base, once.  Whatever leaves the
zone (a clone, an archive, a detached root) carries the zone's own ids again.  Ids hide in access control lists and file
capabilities too.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import Final

from zonemgr.errors import PlatformError
from zonemgr.model.states import IDS_PER_ZONE

# What is copied of a file's extended attributes: the zone's own, its access lists and its file capabilities.  Labels of
# the host's security modules and ``trusted.*`` (an overlay's bookkeeping) mean nothing elsewhere, or too much.
_ACL: Final = ("system.posix_acl_access", "system.posix_acl_default")
_CAPABILITY: Final = "security.capability"
_ACL_ENTRY: Final = struct.Struct("<HHI")
_ACL_NAMED: Final = (0x02, 0x08)  # a named user, a named group: the entries that carry an id
_V2: Final = struct.Struct("<I16s")
_V3: Final = struct.Struct("<I16sI")
_REVISION_MASK: Final = 0xFF000000
_REVISION_2: Final = 0x02000000


@dataclass(frozen=True, slots=True)
class Owners:
    """``base`` 0: ids stay as they are.  Else those in the zone's range move down, those below 65536 were not moved."""

    base: int = 0

    def id(self, owner: int) -> int:
        """Raises PlatformError for an id that is neither the zone's nor the host's share of it."""
        if not self.base or owner < IDS_PER_ZONE:
            return owner
        if self.base <= owner < self.base + IDS_PER_ZONE:
            return owner - self.base
        raise PlatformError("owner {owner} is outside of the zone's ids", owner=owner)

    def attribute(self, name: str, value: bytes) -> bytes:
        """An extended attribute with the ids in it moved."""
        if not self.base:
            return value
        if name in _ACL:
            return self._access_list(value)
        if name == _CAPABILITY and len(value) == _V3.size:
            return self._capability(value)
        return value

    def _access_list(self, value: bytes) -> bytes:
        head, entries = value[:4], bytearray(value[4:])
        for at in range(0, len(entries) - _ACL_ENTRY.size + 1, _ACL_ENTRY.size):
            tag, permissions, owner = _ACL_ENTRY.unpack_from(entries, at)
            if tag in _ACL_NAMED:
                _ACL_ENTRY.pack_into(entries, at, tag, permissions, self.id(owner))
        return head + bytes(entries)

    def _capability(self, value: bytes) -> bytes:
        """Revision 3 names the root it is for; for root 0 that is revision 2."""
        magic, sets, root = _V3.unpack(value)
        moved = self.id(root)
        if moved == 0:
            return _V2.pack(magic & ~_REVISION_MASK | _REVISION_2, sets)
        return _V3.pack(magic, sets, moved)


AS_THEY_ARE: Final = Owners()


def attributes(target: int | str) -> dict[str, bytes]:
    """The extended attributes that belong to the file and go where it goes.  ``target``: a descriptor, or a path."""
    try:
        names = os.listxattr(target)
    except OSError:  # a file system without them
        return {}
    found = {}
    for name in sorted(names):
        if is_portable(name):
            found[name] = os.getxattr(target, name)
    return found


def is_portable(name: str) -> bool:
    """Whether an extended attribute means the same elsewhere."""
    return name.startswith("user.") or name in _ACL or name == _CAPABILITY
