"""Network ops: the veth on a bridge, a moved link, addresses, routers, the loopback.

The kernel work is ``linux.netlink``'s; here stands what belongs to zones: the shared bridge under the host's lock and
the host ledger, and the names.
"""

from __future__ import annotations

from pathlib import Path

from zonemgr.errors import PlatformError
from zonemgr.linux import netlink
from zonemgr.model import plan
from zonemgr.platform.stage import Stage
from zonemgr.store.files import read_json, write_json
from zonemgr.store.locks import FileLock
from zonemgr.store.paths import Layout


def bridge(op: plan.Bridge, stage: Stage) -> None:
    """Make the instance's own bridge unless it is there, and remember that it is ours (``fsck --host`` removes it)."""
    stage.layout.run.mkdir(mode=0o755, parents=True, exist_ok=True)
    with FileLock(stage.layout.run / "host.lock"):
        if not netlink.bridge_exists(op.name):
            _remember(stage.layout, op.name)
        netlink.ensure_bridge(op.name, op.addresses)


def _remember(layout: Layout, name: str) -> None:
    path = layout.run / "host.json"
    table = read_json(path) or {"version": 1, "bridges": []}
    if name not in table["bridges"]:
        table["bridges"].append(name)
        write_json(path, table)


def veth(op: plan.Veth, stage: Stage) -> None:
    """The pair: made with its inner end already in the zone."""
    netlink.make_veth(
        op.host_name,
        op.zone_name,
        netns_fd=stage.born.net_fd,
        bridge=op.bridge,
        mtu=op.mtu,
        mac=op.mac,
        altname=op.altname,
    )


def move_link(op: plan.MoveLink, stage: Stage) -> None:
    """Give a link of the host to the zone, and remember which it is: the zone may rename it."""
    index = netlink.move_link(op.name, stage.born.net_fd)
    path = moved_links(stage.layout, stage.zonename)
    write_json(path, {**(read_json(path) or {}), op.name: index})


def moved_links(layout: Layout, zonename: str) -> Path:
    """The file with the index that each moved link has in the zone."""
    return layout.zone_run(zonename) / "links.json"


def configure_link(op: plan.ConfigureLink, stage: Stage) -> None:
    """Addresses and routers, before init runs.  An address of the host is none of the zone's."""
    taken = netlink.addresses_in_use()
    for address in op.addresses:
        if address.partition("/")[0] in taken:
            raise PlatformError(
                "address {address} is in use by link {link} of the host",
                address=address,
                link=taken[address.partition("/")[0]],
            )
    netlink.configure(stage.born.net_fd, op.link, addresses=op.addresses, routers=op.routers, up=True)


def loopback(_op: plan.Loopback, stage: Stage) -> None:
    """127.0.0.1 and ::1."""
    netlink.loopback_up(stage.born.net_fd)
