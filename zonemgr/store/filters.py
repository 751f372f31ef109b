"""The system call filter of a living zone, by its record: the same for its init and for whoever enters it."""

from __future__ import annotations

from zonemgr.linux import seccomp
from zonemgr.store.instance import Instance
from zonemgr.store.paths import Layout


def wishes(instance: Instance) -> seccomp.Wishes:
    """What the zone's filter has beyond the default one."""
    return seccomp.Wishes(
        capabilities=frozenset(instance.capabilities),
        rights=frozenset(instance.denied_rights),
        calls=instance.seccomp_calls,
        flags=instance.locked_flags,
        mounts=instance.may_mount,
    )


def program(layout: Layout, instance: Instance) -> bytes | None:
    """The compiled filter, or None for a zone without one.  Raises ZoneError."""
    if not instance.filtered:
        return None
    return seccomp.zone_filter(layout.run / "seccomp", wishes(instance))
