"""Tells systemd-machined of a zone, so that ``machinectl`` lists it and nss-mymachines(8) resolves its name.

machined takes a process as a machine's leader only where systemd has a unit for the process's control group, and keeps
the machine as long as that unit is active.  A zone's processes are in control groups that systemd knows nothing of.  So
each machine gets a unit without processes (``zone-NAME.service``), in which the leader is while a few calls are made.
That unit is in the slice of the root: any other slice is stopped when the host goes down, and its units with it, which
would kill the zone before ``zonemgr shutdown -a`` has asked it to end.

Through the programs of systemd rather than a D-Bus library: a boot needs three calls, where machined is at all.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from typing import Final

from zonemgr.errors import PlatformError
from zonemgr.linux import process

# There from the host's start on, where machined is installed (it is started when it is asked).
FOLDER: Final = "/run/systemd/machines"
_BOOTED: Final = "/run/systemd/system"  # sd_booted(3): a package may have made the other one on a host without systemd
_DEADLINE_S: Final = 40.0
_BUSCTL: Final = ("busctl", "--quiet", "--timeout=30", "--", "call")
_MANAGER: Final = ("org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager")
_MACHINED: Final = ("org.freedesktop.machine1", "/org/freedesktop/machine1", "org.freedesktop.machine1.Manager")
_ENVIRONMENT: Final = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}


class Refusal(PlatformError):
    """systemd refused, or did not answer."""


def is_there() -> bool:
    """Whether this host runs systemd, and has machined."""
    return os.path.isdir(_BOOTED) and os.path.exists(FOLDER)


def unit_name(zonename: str) -> str:
    """The unit that stands for the machine."""
    return f"zone-{zonename}.service"


def register(
    zonename: str,
    *,
    uuid: str,
    root: str,
    leader: int,
    links: Sequence[int],
    kill_file: str,
    back: Callable[[], None],
) -> None:
    """Register a machine.  ``leader`` must not fork meanwhile: it leaves its control groups, and ``back`` returns it.

    ``links`` are the indexes of the machine's links on the host.  Stopping the unit, as ``machinectl terminate`` does,
    writes 1 to ``kill_file``.  Raises Refusal; what was made then is left to ``forget``.
    """
    unit = unit_name(zonename)
    _run("systemd-run", "--quiet", "--collect", f"--unit={unit}", "--slice=-.slice", "--service-type=oneshot",
         f"--description=Zone {zonename} as a machine", "--property=RemainAfterExit=yes", "--property=Delegate=yes",
         "--property=DefaultDependencies=no", "--property=TimeoutSec=60",
         f"--property=ExecStop=-/bin/sh -c '[ ! -e {kill_file} ] || echo 1 >{kill_file}'", "/bin/true")  # fmt: skip
    try:
        _run(*_BUSCTL, *_MANAGER, "AttachProcessesToUnit", "ssau", unit, "", "1", str(leader))
        identity = bytes.fromhex(uuid.replace("-", ""))
        _run(*_BUSCTL, *_MACHINED, "RegisterMachineWithNetwork", "sayssusai", zonename,
             str(len(identity)), *map(str, identity), "zonemgr", "container", str(leader), root,
             str(len(links)), *map(str, links))  # fmt: skip
    finally:
        back()


def forget(zonename: str) -> None:
    """End a machine, and wait until systemd has.  Idempotent; Refusal when systemd does not answer."""
    _run("systemctl", "--quiet", "stop", unit_name(zonename))


def _run(*words: str) -> None:
    """Run a program to its end.  Refusal with what it complained of."""
    errors_fd = os.memfd_create("errors", os.MFD_CLOEXEC)
    try:
        quiet = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in (0, 1)]
        actions = [*quiet, (os.POSIX_SPAWN_DUP2, errors_fd, 2)]
        try:
            pid = os.posix_spawnp(
                words[0], words, _ENVIRONMENT, file_actions=actions, setsigmask=(), setsigdef=(signal.SIGPIPE,)
            )
        except OSError as error:
            raise Refusal("{program}: {why}", program=words[0], why=error.strerror) from None
        status = process.wait_program(pid, _DEADLINE_S)
        if status:
            said = os.pread(errors_fd, 4096, 0).decode(errors="replace").strip().splitlines()
            why = said[0] if said else f"ended with status {status}"
            raise Refusal("{program}: {why}", program=words[0], why=why)
    finally:
        os.close(errors_fd)
