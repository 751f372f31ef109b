"""The alphabet of zones: states, commands, hook commands and console notices.

Numbers, names and texts are those of the zones reference (sections 1.1 to 1.3 and 5.3).
"""

from __future__ import annotations

import enum

from zonemgr.errors import marked


class State(enum.IntEnum):
    """A zone's state.  Numeric order is meaningful: everything from READY up is active."""

    CONFIGURED = 0
    INCOMPLETE = 1
    INSTALLED = 2
    READY = 3
    RUNNING = 4
    SHUTTING_DOWN = 5
    DOWN = 6
    MOUNTED = 7

    @property
    def label(self) -> str:
        """The state's name as users see it, for example ``shutting_down``."""
        return self.name.lower()

    @property
    def active(self) -> bool:
        """The zone has a virtual platform (the reference's "numerically at least ready")."""
        return self >= State.READY

    @classmethod
    def of(cls, label: str) -> State:
        """The state with this label.  KeyError for an unknown one."""
        return cls[label.upper()]


class Command(enum.Enum):
    """A runtime command: what a client may ask of a supervisor."""

    READY = "ready"
    BOOT = "boot"
    FORCEBOOT = "forceboot"
    REBOOT = "reboot"
    HALT = "halt"
    NOTE_UNINSTALLING = "note_uninstalling"
    MOUNT = "mount"
    FORCEMOUNT = "forcemount"
    UNMOUNT = "unmount"
    SHUTDOWN = "shutdown"
    APPLY = "apply"
    CONFIRM = "confirm"
    REVERT = "revert"

    @property
    def number(self) -> int:
        """The command's number, as ported hook scripts know it."""
        return list(Command).index(self)


class Notice(enum.Enum):
    """What a console client is told; the value is the text (arguments and endings are added at display)."""

    BOOTING = marked("NOTICE: Zone booting up")
    REBOOTING = marked("NOTICE: Zone rebooting")
    HALTED = marked("NOTICE: Zone halted")
    READIED = marked("NOTICE: Zone readied")
    UNINSTALLING = marked("NOTICE: Zone is being uninstalled.  Disconnecting...")
    BOOTFAILED = marked("NOTICE: Zone boot failed")
    BADARGS = marked("WARNING: Ignoring invalid boot arguments:")


GLOBAL_ZONE = "global"
ZONENAME_MAX = 63  # characters; the reference's 64 includes the NUL
BOOTARGS_MAX = 255  # characters; the reference's 256 includes the NUL
ZONE_ID_MAX = 9999
IDS_PER_ZONE = 65536
PARKED_NAME = "zone-parked"  # the command name of a zone's process 1 until it becomes the brand's init
