"""The zone as a machine of systemd-machined, where that is: a courtesy to the host; no boot and no halt depends on it.

Only of the host's own instance: machines have one name each, on the whole host.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable

from zonemgr.errors import ZoneError, message
from zonemgr.linux import machined
from zonemgr.linux.cgroup import Part
from zonemgr.model import plan
from zonemgr.platform.stage import Stage


def register(op: plan.Machine, stage: Stage) -> None:
    """While process 1 is parked: it can be moved out of its control groups and back without a loss."""
    cgroup, leader = stage.cgroup, stage.born.init_pid

    def back() -> None:
        cgroup.join(Part.PAYLOAD, leader)
        cgroup.join_v1(leader)

    try:
        machined.register(
            op.zonename,
            uuid=op.uuid,
            root=op.root,
            leader=leader,
            links=_indexes(op.links),
            kill_file=f"{cgroup.part_path(Part.PAYLOAD)}/cgroup.kill",
            back=back,
        )
    except machined.Refusal as error:
        stage.say(message("WARNING: systemd-machined does not know this zone: {why}", why=error.text))
        forget(op)


def forget(op: plan.Machine, _remains: object = None) -> None:
    """What cannot be taken back holds nothing of the zone: systemd is perhaps not there any more."""
    try:
        machined.forget(op.zonename)
    except ZoneError:
        return


def _indexes(names: Iterable[str]) -> list[int]:
    return [index for index, name in socket.if_nameindex() if name in names]
