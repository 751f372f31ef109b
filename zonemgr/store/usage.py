"""What all zones of an instance use, in one look from outside: needs no privilege and costs each zone a few reads.

Deliberately not here: what it looks like to anybody (``cli.stat``).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from zonemgr.linux.cgroup import detect, usage
from zonemgr.linux.cgroup.usage import Usage
from zonemgr.store import instance as instances
from zonemgr.store.instance import Instance
from zonemgr.store.observe import living_state
from zonemgr.store.paths import Layout


@dataclass(frozen=True, slots=True)
class ZoneUsage:
    """One living zone.  ``network`` is (received, sent) bytes, None where the zone shares the host's links."""

    zonename: str
    instance: Instance
    usage: Usage
    network: tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class Look:
    """All zones that live at one moment (seconds of CLOCK_MONOTONIC, and since the epoch), and the host around them."""

    monotonic_s: float
    time_s: float
    host: Usage
    zones: tuple[ZoneUsage, ...]


def look(layout: Layout, names: Sequence[str] = ()) -> Look:
    """Look at these zones, or at all that live.  One that does not live is left out."""
    hierarchy = detect()
    base = "zonemgr" + layout.suffix
    found = []
    for name in names or instances.names(layout):
        instance = instances.read(layout, name)
        if instance is None or living_state(instance) is None:
            continue
        network = None
        if instance.init is not None and instance.ip_type == "exclusive":
            network = usage.network(instance.init.pid)
        found.append(ZoneUsage(name, instance, usage.of_zone(hierarchy, base, name), network))
    return Look(time.monotonic(), time.time(), usage.of_host(hierarchy), tuple(found))
