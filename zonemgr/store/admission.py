"""A configuration that came from elsewhere, with an archive or a detached root: what it may say, and what grants.

Whoever made the archive is not this host's administrator.  What reaches past the zone's own root and its own network
link (folders and devices of the host, more privileges than the brand's, the host's network stack and links, another's
Ethernet address, VLAN or name, processors of its own, more threads or a longer life than others have, a boot with the
host that takes other zones along, rights of the host's users) is taken out, one line each, unless the administrator
says that the source is trusted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from zonemgr.errors import ConfigError, message
from zonemgr.linux import budgets
from zonemgr.model import network, privileges, schema
from zonemgr.model.zone import Zone
from zonemgr.store.config import Draft

_OWN_TYPES = frozenset({"tmpfs"})  # file systems that show nothing of the host


@dataclass(frozen=True, slots=True)
class Grant:
    """A setting that gives a zone something of the host's.  ``index`` is None for what occurs once."""

    kind: str
    index: int | None
    text: str


def grants(zone: Zone, default_privileges: frozenset[str], bridge: str) -> Iterator[Grant]:
    """What in a configuration grants.  ``default_privileges`` are the brand's, ``bridge`` the host's default one."""
    if zone.privileged:
        yield Grant("privileged", None, message("privileged = true"))
    if zone.limitpriv and _exceeds(zone.limitpriv, default_privileges):
        yield Grant("limitpriv", None, message("limitpriv = {text}", text=zone.limitpriv))
    if any(not call.startswith("!") for call in zone.seccomp):
        yield Grant("seccomp", None, message("seccomp = {calls}", calls=", ".join(zone.seccomp)))
    if zone.ip_type == "shared":
        yield Grant("ip-type", None, message("ip-type = shared"))
    if zone.hostname and zone.hostname != zone.zonename:  # other zones, and perhaps the host, find it by that name
        yield Grant("hostname", None, message("hostname = {name}", name=zone.hostname))
    if zone.dedicated_cpu is not None:
        yield Grant("dedicated-cpu", None, message("dedicated-cpu"))
    if (zone.oom_score_adj or 0) < 0:
        yield Grant("oom-score-adj", None, message("oom-score-adj = {number}", number=zone.oom_score_adj))
    yield from _many_threads(zone)
    yield from _at_the_hosts_start(zone)
    for index, attr in enumerate(zone.attr):
        if attr.name == "label":
            yield Grant("attr", index, message("attr label = {value}", value=attr.value))
    if "fuse" in zone.fs_allowed:
        yield Grant("fs-allowed", None, message("fs-allowed = fuse"))
    for index, fs in enumerate(zone.fs):
        if fs.type not in _OWN_TYPES or fs.raw:
            yield Grant("fs", index, message("fs {dir} ({special})", dir=fs.dir, special=fs.special or fs.type))
    for index, net in enumerate(zone.net):
        link = net.physical or net.macvlan or net.anet
        if link != bridge:
            yield Grant("net", index, message("net {link}", link=link))
        elif net.allowed_address or net.link_protection:
            yield Grant("net", index, message("net {link} with a protection of its own", link=link))
        elif net.vlan_id or net.mac_address not in (None, "auto"):
            yield Grant("net", index, message("net {link} with an Ethernet address or a VLAN of its own", link=link))
    for index, forward in enumerate(zone.forward):
        yield Grant("forward", index, network.describe_claim(network.forward_claim(forward)))
    for index, device in enumerate(zone.device):
        yield Grant("device", index, message("device {match}", match=device.match))
    for index, dataset in enumerate(zone.dataset):
        yield Grant("dataset", index, message("dataset {name}", name=dataset.name))
    for index, admin in enumerate(zone.admin):
        yield Grant("admin", index, message("admin {user}", user=admin.user))


def _at_the_hosts_start(zone: Zone) -> Iterator[Grant]:
    """That it runs without being asked for, makes other zones run, or goes before them."""
    if zone.autoboot:
        yield Grant("autoboot", None, message("autoboot = true"))
    for name, others in (("requires", zone.requires), ("after", zone.after)):
        if others:
            yield Grant(name, None, message("{name} = {zones}", name=name, zones=", ".join(others)))
    if zone.boot_priority == "high":
        yield Grant("boot-priority", None, message("boot-priority = high"))


def _many_threads(zone: Zone) -> Iterator[Grant]:
    """More than a zone gets that says nothing, so that a fork bomb in it would reach the host."""
    most = budgets.default_processes()
    if max(zone.max_lwps or 0, 10 * (zone.max_processes or 0)) > most:
        for name, number in (("max-lwps", zone.max_lwps), ("max-processes", zone.max_processes)):
            if number is not None:
                yield Grant(name, None, message("{name} = {number}", name=name, number=number))


def _exceeds(limitpriv: str, default: frozenset[str]) -> bool:
    try:
        found = privileges.capabilities(
            limitpriv, default=default, required=frozenset(), prohibited=frozenset()
        )
    except ConfigError:
        return True
    return not found.capabilities <= privileges.expand(default)


def _clear_control(draft: Draft, name: str) -> None:
    """The resource control that may say the same as a property."""
    controls = draft.table.get("rctl", ())
    for index in reversed([index for index, control in enumerate(controls) if control.get("name") == name]):
        draft.remove("rctl", index)


def disarm(draft: Draft, default_privileges: frozenset[str], bridge: str) -> list[str]:
    """Take out of the draft what grants; what was taken, as text.  Raises ConfigError."""
    found = list(grants(draft.zone(), default_privileges, bridge))
    for grant in reversed(found):  # so that the places of those that are still to go stay right
        if grant.index is None and grant.kind not in schema.RESOURCES:
            draft.clear((), grant.kind)
            _clear_control(draft, f"zone.{grant.kind}")
        else:
            draft.remove(grant.kind, grant.index)
    left = list(grants(draft.zone(), default_privileges, bridge))
    if left:
        raise ConfigError("cannot take {what} out of the configuration", what=left[0].text)
    return [grant.text for grant in found]
