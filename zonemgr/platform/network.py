"""Network ops: claims, the veth on a bridge, macvlans, moved links, bandwidth, addresses, routers, the loopback.

The kernel work is ``linux.netlink``'s and ``linux.links``'; here stands what belongs to zones: what they share on the
host, under the host's lock and in the host's ledger, and the names.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from zonemgr.errors import PlatformError, message
from zonemgr.linux import netlink
from zonemgr.model import plan
from zonemgr.platform.stage import Stage
from zonemgr.store import claims, hostledger, names
from zonemgr.store.files import read_json, write_json
from zonemgr.store.paths import Layout


def claim(op: plan.Claim, stage: Stage) -> None:
    """Nobody else may hold what the zone is about to use."""
    claims.take(stage.layout, stage.zonename, op.claim)


def publish_names(op: plan.Names, stage: Stage) -> None:
    """The zone can be found by its name."""
    names.publish(stage.layout, op.zonename, op.names, op.addresses, host=op.host)


# -- what zones share -------------------------------------------------------------------------------------------


def bridge(op: plan.Bridge, stage: Stage) -> None:
    """Make the instance's own bridge unless it is there, and remember that it is ours (``fsck --host`` removes it)."""
    with hostledger.lock(stage.layout):
        if not netlink.bridge_exists(op.name):
            ledger = hostledger.load(stage.layout)
            if op.name not in ledger.bridges:
                ledger.bridges.append(op.name)
                hostledger.save(stage.layout, ledger)
        netlink.ensure_bridge(op.name, op.addresses)
        if op.vlans:
            from zonemgr.linux import links

            links.tell_vlans_apart(op.name)


def host_setting(op: plan.HostSetting, stage: Stage) -> None:
    """Set it unless it is so already, and remember what it was."""
    with hostledger.lock(stage.layout):
        before = read_setting(op.name)
        if before == op.value:
            return
        ledger = hostledger.load(stage.layout)
        ledger.settings.setdefault(op.name, before)
        hostledger.save(stage.layout, ledger)
        write_setting(op.name, op.value)


def way_back(op: plan.WayBack, stage: Stage) -> None:
    """Open it unless it is open, and remember that we did."""
    with hostledger.lock(stage.layout):
        if netlink.add_way_back(op.bridge):
            ledger = hostledger.load(stage.layout)
            if op.bridge not in ledger.ways_back:
                ledger.ways_back.append(op.bridge)
                hostledger.save(stage.layout, ledger)


def read_setting(name: str) -> str:
    """A kernel setting of the host, by its path below /proc/sys."""
    return Path("/proc/sys", name).read_text().strip()


def write_setting(name: str, value: str) -> None:
    Path("/proc/sys", name).write_text(value)


# -- links ------------------------------------------------------------------------------------------------------


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
    if op.vlan is None and not op.hairpin:
        return
    from zonemgr.linux import links

    if op.vlan is not None:
        links.set_port_vlan(op.host_name, op.bridge, op.vlan)
    if op.hairpin:
        links.let_back(op.host_name)


def macvlan(op: plan.Macvlan, stage: Stage) -> None:
    """A link on top of one of the host's, born in the zone."""
    from zonemgr.linux import links

    links.make_macvlan(op.lower, op.zone_name, netns_fd=stage.born.net_fd, mtu=op.mtu, mac=op.mac)


def bandwidth(op: plan.Bandwidth, _stage: Stage) -> None:
    """The limit on the host's end, out of the zone's reach."""
    from zonemgr.linux import links

    links.limit_bandwidth(op.link, op.return_link, op.bits_s)


def move_link(op: plan.MoveLink, stage: Stage) -> None:
    """Give a link of the host to the zone, and remember which it is and how it was: the zone may change both."""
    path = moved_links(stage.layout, stage.zonename)
    before = netlink.look(op.name)
    index = netlink.move_link(op.name, stage.born.net_fd)
    write_json(path, {**(read_json(path) or {}), op.name: {"index": index, **before}}, durable=False)
    netlink.adjust(stage.born.net_fd, index, name=op.zone_name or None, mtu=op.mtu, mac=op.mac)


def moved_links(layout: Layout, zonename: str) -> Path:
    """The file with what each moved link was on the host, and the index that it has in the zone."""
    return layout.zone_run(zonename) / "links.json"


def shared_address(op: plan.SharedAddress, stage: Stage) -> None:
    """An address on a link of the host.  A link that is not there yet is passed over, as the reference has it."""
    if not netlink.link_exists(op.link):
        stage.say(
            message(
                "WARNING: skipping network interface '{link}' which may not be present/plumbed in the global zone.",
                link=op.link,
            )
        )
        return
    taken = netlink.addresses_in_use().get(op.address.partition("/")[0])
    if taken is not None:
        raise PlatformError(
            "could not bring network interface up: address {address} is in use by link {link} of the host",
            address=op.address,
            link=taken,
        )
    # Before it is there: an undo takes no address that the host had before.
    mine = [*shared_addresses(stage.layout, stage.zonename), op.address]
    table = {"version": 1, "addresses": mine}
    write_json(shared_file(stage.layout, stage.zonename), table, durable=False)
    netlink.add_address(op.link, op.address, by_choice=True)


def shared_addresses(layout: Layout, zonename: str) -> list[str]:
    """The addresses that the zone has been given on links of the host."""
    return list((read_json(shared_file(layout, zonename)) or {}).get("addresses", ()))


def shared_file(layout: Layout, zonename: str) -> Path:
    return layout.zone_run(zonename) / "addresses.json"


def hold_to_addresses(op: plan.HoldToAddresses, stage: Stage) -> None:
    """Programs on the zone's control group, which they go with."""
    from zonemgr.linux import ownaddress
    from zonemgr.linux.cgroup import Part

    ownaddress.hold(stage.cgroup.part_path(Part.PAYLOAD), op.addresses, op.number)


def configure_link(op: plan.ConfigureLink, stage: Stage) -> None:
    """Addresses and routers, before init runs."""
    refuse_taken(op.addresses)
    netlink.configure(stage.born.net_fd, op.link, addresses=op.addresses, routers=op.routers, up=True)


def refuse_taken(addresses: Iterable[str]) -> None:
    """An address of the host is none of the zone's.  PlatformError names its link."""
    taken = netlink.addresses_in_use()
    for address in addresses:
        if address.partition("/")[0] in taken:
            raise PlatformError(
                "address {address} is in use by link {link} of the host",
                address=address,
                link=taken[address.partition("/")[0]],
            )


def loopback(_op: plan.Loopback, stage: Stage) -> None:
    """127.0.0.1 and ::1."""
    netlink.loopback_up(stage.born.net_fd)
