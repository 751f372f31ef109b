"""Control groups: where a zone's processes are counted, limited, frozen and killed.

One cgroup2 tree always carries membership (``manager``, ``work``, ``payload``); limits are written wherever
the host has the controller: on cgroup2, or on a v1 hierarchy of a hybrid host.

Deliberately not here: what a zone's limits *are* (model), the device allow list (BPF), and systemd's scopes.
Nothing heavy is loaded by importing this package: cgroupspy comes in with the first limit.
"""

from __future__ import annotations

from zonemgr.linux.cgroup.entry import entry_fd
from zonemgr.linux.cgroup.hierarchy import Hierarchy, Kind, detect
from zonemgr.linux.cgroup.limits import Applied, Limits, Throttle
from zonemgr.linux.cgroup.usage import Usage
from zonemgr.linux.cgroup.zone import Part, ZoneCgroup

__all__ = [
    "Applied",
    "Hierarchy",
    "Kind",
    "Limits",
    "Part",
    "Throttle",
    "Usage",
    "ZoneCgroup",
    "detect",
    "entry_fd",
]
