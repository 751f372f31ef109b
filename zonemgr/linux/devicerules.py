"""Which devices the processes of a control group may open: the allow list that the kernel enforces.

On cgroup2 by a program that the kernel asks at every open, mount and mknod of a device; where it has none, by the
``devices`` controller of v1.  A node that somebody smuggled into the zone, or made there, opens nothing.

Deliberately not here: the nodes in the zone's /dev (``platform.devices``), and which devices a zone gets.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from zonemgr.errors import PlatformError
from zonemgr.linux import bpf
from zonemgr.linux.cgroup.hierarchy import write_file

_BLOCK, _CHARACTER = 1, 2  # BPF_DEVCG_DEV_*
_TYPE_BITS: Final = 0xFFFF
RULES_MAX: Final = 512


@dataclass(frozen=True, slots=True, order=True)
class DeviceNumber:
    """A device of the kernel; ``minor`` None stands for all of its driver."""

    block: bool
    major: int
    minor: int | None

    @classmethod
    def of(cls, status: os.stat_result) -> DeviceNumber:
        """The device that a node is for."""
        return cls(stat.S_ISBLK(status.st_mode), os.major(status.st_rdev), os.minor(status.st_rdev))

    def __str__(self) -> str:
        return f"{'b' if self.block else 'c'} {self.major}:{'*' if self.minor is None else self.minor}"


# A zone's own terminals: /dev/tty, its console and multiplexer, and the pseudo terminals of its devpts.
TERMINALS: Final = (
    DeviceNumber(False, 5, 0),
    DeviceNumber(False, 5, 2),
    *(DeviceNumber(False, major, None) for major in range(136, 144)),
)


def restrict(unified: Path, v1: Path | None, allowed: Collection[DeviceNumber]) -> None:
    """Let the processes of a zone use these devices and no others, from now on.  May be called again with others.

    ``unified`` is the zone's cgroup2 folder, ``v1`` its folder of the controller ``devices`` where the host has one.
    PlatformError when the kernel has neither way.
    """
    numbers = sorted({*allowed, *TERMINALS}, key=str)
    if len(numbers) > RULES_MAX:
        raise PlatformError(
            "{count} devices match, {most} are the most for one zone", count=len(numbers), most=RULES_MAX
        )
    try:
        bpf.run_on(bpf.CGROUP_DEVICE, unified, _program(numbers))
    except OSError as error:
        if v1 is None or not (v1 / "devices.deny").exists():
            raise PlatformError(
                "the kernel cannot hold the zone to its devices: {why} (it needs CONFIG_CGROUP_BPF, or the v1 "
                "controller devices)",
                why=error.strerror,
            ) from error
        _restrict_v1(v1, numbers)


def _program(numbers: Collection[DeviceNumber]) -> Iterator[bytes]:
    yield bpf.load_word(2, 0) + bpf.mask(2, _TYPE_BITS)
    yield bpf.load_word(3, 4) + bpf.load_word(4, 8)
    for number in numbers:
        tests = [(2, _BLOCK if number.block else _CHARACTER), (3, number.major)]
        tests += [] if number.minor is None else [(4, number.minor)]
        for place, (register, constant) in enumerate(tests):
            yield bpf.unless_equal_skip(register, constant, len(tests) - place - 1 + 2)
        yield bpf.answer(1)
    yield bpf.answer(0)


def _restrict_v1(folder: Path, numbers: Collection[DeviceNumber]) -> None:
    """There is a moment in which the zone has no device at all; never one in which it has more."""
    write_file(folder / "devices.deny", "a")
    for number in numbers:
        write_file(folder / "devices.allow", f"{number} rwm")
