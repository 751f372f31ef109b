"""Why a zone died, read in the moment of its death: a few kernel files that go with its control groups."""

from __future__ import annotations

from typing import Any

from zonemgr.errors import message
from zonemgr.linux.cgroup.usage import oom_kills
from zonemgr.store.instance import Instance

_CAPS = ("capped-memory physical", "capped-memory swap")


def of(instance: Instance, ended: str) -> dict[str, Any]:
    """What the event of init's end says: how it ended, and what ran out if something did."""
    killed = oom_kills(instance.cgroup, instance.cgroups_v1)
    if not killed:
        return {"ended": ended}
    cap = next((limit["effective"] for limit in instance.limits if limit["name"] in _CAPS), None)
    place = message("its memory cap of {cap} bytes", cap=cap) if cap else "the host's memory"
    why = message(
        "{ended}; out of memory: the kernel killed {count} of its processes at {place}",
        ended=ended,
        count=killed,
        place=place,
    )
    return {"ended": why, "oom_kills": killed}
