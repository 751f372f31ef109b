"""The step shutdown: a zone is told to end itself (reference 1.6); its end comes as an upcall."""

from __future__ import annotations

import os
import signal

from zonemgr.errors import PlatformError, ZoneError
from zonemgr.linux import process
from zonemgr.store import instance as instances
from zonemgr.supervisor import init as initprogram
from zonemgr.supervisor import inzone
from zonemgr.supervisor.transition import Transition


def shutdown(transition: Transition) -> None:
    """Run the brand's shutdown command in the zone and wait for the command (not for the zone: reference 1.6)."""
    instance = instances.read(transition.layout, transition.zonename)
    brand = transition.brand
    if instance is None or instance.init is None:
        raise PlatformError("unable to shutdown zone")
    program = initprogram.program_of(brand, transition.info())
    if not program.shutdown_command and program.shutdown_signal:
        init_fd = inzone.open_init(instance)
        process.pidfd_signal(init_fd, _signal_number(program.shutdown_signal))
        os.close(init_fd)
        return
    deadline_s = transition.settings.hook_s
    try:
        status = inzone.run(
            transition.layout, instance, program.shutdown_command, say=transition.say, deadline_s=deadline_s
        )
    except (ZoneError, OSError) as error:
        raise PlatformError("unable to shutdown zone: {why}", why=error) from None
    taken_along = (signal.SIGHUP, signal.SIGTERM, signal.SIGKILL)
    if status and status - 128 not in taken_along:  # the zone's end may well take the command with it
        raise PlatformError("unable to shutdown zone")


def _signal_number(name: str) -> int:
    """The number of ``SIGTERM`` or ``SIGRTMIN+3``."""
    base, _, offset = name.partition("+")
    return int(signal.Signals[base]) + int(offset or 0)
