"""The instance's own settings, /etc/zonemgr/zonemgr.toml: few, all with defaults.

Nothing about a single zone belongs here.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from zonemgr.errors import ConfigError
from zonemgr.model import checks
from zonemgr.model.checks import Check, Refused
from zonemgr.model.schema import did_you_mean
from zonemgr.store import toml
from zonemgr.store.paths import Layout

_SECONDS = checks.number_from(1, 86400)


@dataclass(frozen=True, slots=True)
class Settings:
    """Times are in seconds.  ``bridge`` is the shared default bridge, made when first needed.

    ``address_pool``: where ``create`` takes addresses on that bridge from (networks, or FIRST-LAST); empty: from all of
    its networks.  ``translate``: zones on it leave the host with the host's address.  ``forwarding``: the host is made
    to forward packets.  ``admit``: the firewalls of others that get rules which accept the zones' traffic.
    ``etc_hosts``: the host's /etc/hosts has the zones' names.
    """

    bridge: str
    bridge_address: tuple[str, ...]
    address_pool: tuple[str, ...] = ()
    translate: bool = True
    forwarding: bool = False
    admit: tuple[str, ...] = ()
    etc_hosts: bool = False
    hook_s: int = 120
    kill_s: int = 30
    transition_s: int = 600
    shutdown_s: int = 60
    ready_s: int = 120  # how long others wait for a zone to be ready
    default_brand: str = "native"
    launcher_idle_s: int = 600  # the launcher leaves when nobody has come for so long; 0: none is started
    default_max_lwps: int | None = None  # of a zone that names neither max-lwps nor max-processes
    pools: Mapping[str, str] = field(default_factory=dict)  # the CPUs that the zones of a pool share


CHECKS: Final[Mapping[str, Check]] = {
    "bridge": checks.link_name,
    "bridge-address": checks.list_of(checks.interface_address),
    "address-pool": checks.list_of(checks.address_range),
    "translate": checks.boolean,
    "forwarding": checks.boolean,
    "admit": checks.list_of(checks.one_of("docker-user", "ufw")),
    "etc-hosts": checks.boolean,
    "hook-s": _SECONDS,
    "kill-s": _SECONDS,
    "transition-s": _SECONDS,
    "shutdown-s": _SECONDS,
    "ready-s": _SECONDS,
    "default-brand": checks.brand_name,
    "launcher-idle-s": checks.number_from(0, 7 * 86400),
    "default-max-lwps": checks.number_from(100),
    "pools": checks.cpu_pools,
}


def load(layout: Layout) -> Settings:
    """The settings; a missing file is all defaults.  Raises ConfigError with file, line and key."""
    values = _default_values(layout)
    found = toml.read(layout.settings)
    if found is not None:
        table, lines = found
        for key, given in table.items():
            values[key.replace("-", "_")] = _value(layout, lines, key, given)
    return Settings(**values)  # type: ignore[arg-type]


def defaults(layout: Layout) -> Settings:
    """The settings of an instance without a file."""
    return Settings(**_default_values(layout))  # type: ignore[arg-type]


def _default_values(layout: Layout) -> dict[str, object]:
    return {"bridge": "zbr0" + layout.suffix, "bridge_address": default_addresses(layout)}


def _value(layout: Layout, lines: toml.Lines, key: str, given: object) -> object:
    place = {"filename": layout.settings, "line": lines.find((key,)), "key": key}
    check = CHECKS.get(key)
    if check is None:
        hint = did_you_mean(key, CHECKS)
        raise ConfigError("{filename}: line {line}: unknown setting '{key}'{hint}", **place, hint=hint)
    try:
        return check(given)
    except Refused as refused:
        raise ConfigError("{filename}: line {line}: {key} {why}", **place, why=refused) from None


def default_addresses(layout: Layout) -> tuple[str, ...]:
    """The default bridge's addresses.  A relocated instance has a bridge of its own, so it gets networks of its own,
    derived from its root: two bridges with the same network would answer for each other's zones."""
    if not layout.suffix:
        return ("10.91.0.1/20", "fd91::1/64")  # as many addresses as four bridges have ports
    digest = zlib.crc32(os.fsencode(layout.root), 1).to_bytes(4, "little")
    return (
        f"10.{92 + digest[0] % 128}.{digest[1]}.1/24",
        f"fd91:{digest[:2].hex()}:{digest[2:].hex()}::1/64",
    )
