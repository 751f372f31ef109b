"""Merging of equal pages by the kernel (KSM): what supervisors and zsched of many zones hold twice is held once.

They are forks of the same program, and differ from it and from each other by little but reference counts; where the
administrator has switched KSM on (``/sys/kernel/mm/ksm/run``), they offer their memory to it.  Offered is each mapping
(madvise(2), MADV_MERGEABLE) and not the process (PR_SET_MEMORY_MERGE): mappings end with execve(2), so that no program
that is begun from here, and above all no zone's, has its pages merged, which would let it find out by the time that a
write takes what others hold.
"""

from __future__ import annotations

import os
from typing import Final

from zonemgr.linux import libc

_MERGEABLE: Final = 12  # MADV_*
_RUN: Final = "/sys/kernel/mm/ksm/run"


def is_on() -> bool:
    """Whether the kernel looks for equal pages now."""
    try:
        descriptor = os.open(_RUN, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False  # a kernel without it
    try:
        return os.read(descriptor, 8).strip() == b"1"
    finally:
        os.close(descriptor)


def offer() -> None:
    """Offer all writable memory of this process to be merged, if the kernel does that at all.

    What is mapped later is not offered.  A mapping that the kernel does not take is left as it is.
    """
    if not is_on():
        return
    try:
        with open("/proc/self/maps", "rb") as maps:
            lines = maps.read().splitlines()
    except OSError:
        return  # nothing depends on it
    for line in lines:
        addresses, rights, _rest = line.split(b" ", 2)
        if rights != b"rw-p":
            continue
        start, end = (int(address, 16) for address in addresses.split(b"-"))
        try:
            libc.call("madvise", start, end - start, _MERGEABLE)
        except OSError:
            continue
