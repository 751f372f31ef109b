"""Capabilities by name: the bounding set, a process's own sets, and what another process has.

Names are the kernel's in lower case without "cap_". Not through python-prctl: it refuses the numbers of
capabilities that are newer than the headers it was compiled with, and those above all have to be dropped.

Deliberately not here: which capabilities a zone gets (``model.privileges``).
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable

from zonemgr.capnames import CAPABILITIES
from zonemgr.errors import PlatformError
from zonemgr.linux import libc

NAMES = CAPABILITIES
NUMBERS = {name: number for number, name in enumerate(NAMES)}
ALL = frozenset(NAMES)

_VERSION_3 = 0x20080522
_PR_CAPBSET_DROP = 24
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_EINVAL = 22
_MAX_NUMBER = 64


class _Header(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _Data(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint32) for name in ("effective", "permitted", "inheritable")]


def mask(names: Iterable[str]) -> int:
    """Names as a bit mask.  PlatformError for one that is not a capability."""
    bits = 0
    for name in names:
        if name not in NUMBERS:
            raise PlatformError("unknown capability '{name}'", name=name)
        bits |= 1 << NUMBERS[name]
    return bits


def names(bits: int) -> frozenset[str]:
    """A bit mask as names; bits that the table does not know (a newer kernel) go by their number."""
    numbers = (number for number in range(bits.bit_length()) if bits >> number & 1)
    return frozenset(NAMES[number] if number < len(NAMES) else str(number) for number in numbers)


def drop_bounding(keep: frozenset[str]) -> None:
    """Drop everything else from the bounding set, also what is newer than our table. Cannot be taken back."""
    kept = mask(keep)
    for number in range(_MAX_NUMBER):
        if kept >> number & 1:
            continue
        try:
            libc.call("prctl", _PR_CAPBSET_DROP, number, 0, 0, 0)
        except OSError as error:
            if error.errno == _EINVAL:
                return  # past the kernel's last one
            raise


def _set(effective: int, permitted: int, inheritable: int) -> None:
    data = (_Data * 2)()
    for word in (0, 1):
        shift = 32 * word
        data[word].effective = effective >> shift & 0xFFFFFFFF
        data[word].permitted = permitted >> shift & 0xFFFFFFFF
        data[word].inheritable = inheritable >> shift & 0xFFFFFFFF
    libc.call("capset", ctypes.byref(_Header(_VERSION_3, 0)), ctypes.byref(data))


def _get() -> tuple[int, int, int]:
    data = (_Data * 2)()
    libc.call("capget", ctypes.byref(_Header(_VERSION_3, 0)), ctypes.byref(data))
    low, high = data
    return (
        low.effective | high.effective << 32,
        low.permitted | high.permitted << 32,
        low.inheritable | high.inheritable << 32,
    )


def set_process_capabilities(
    effective: frozenset[str], permitted: frozenset[str], inheritable: frozenset[str] = frozenset()
) -> None:
    """Set the calling process's own sets.  EPERM for what is not permitted now."""
    _set(mask(effective), mask(permitted), mask(inheritable))


def clear_ambient() -> None:
    """Empty the ambient set."""
    libc.call("prctl", _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)


def limit_to(keep: frozenset[str]) -> None:
    """Keep, of what is permitted now, only these, all in effect; inheritable and ambient become empty."""
    clear_ambient()
    permitted = _get()[1] & mask(keep)
    _set(permitted, permitted, 0)


def raise_permitted() -> None:
    """Put everything that is permitted into effect (a change of ids away from root clears the effective
    set).
    """
    _effective, permitted, inheritable = _get()
    _set(permitted, permitted, inheritable)


def _status(pid: int | str, field: str) -> frozenset[str]:
    with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
        for line in file:
            key, _, value = line.partition(":")
            if key == field:
                return names(int(value, 16))
    return frozenset()


def effective(pid: int | str) -> frozenset[str]:
    """The capabilities in effect of a process ("self" for the caller's)."""
    return _status(pid, "CapEff")


def bounding(pid: int | str) -> frozenset[str]:
    """The bounding set of a process."""
    return _status(pid, "CapBnd")


def inheritable(pid: int | str) -> frozenset[str]:
    """The inheritable set of a process."""
    return _status(pid, "CapInh")
