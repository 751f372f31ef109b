"""Whether a brand can run a zone here: what the brand's declarations say of the configuration, what the host gives,
and the brand's own hooks.

The other half of the verification, which needs no brand, is ``store.verify``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from zonemgr.brandkit import hooks
from zonemgr.brandkit.base import Brand, ZoneInfo
from zonemgr.brandkit.hooks import Say
from zonemgr.errors import BrandError, ConfigError, NoSuchZoneError, ZoneError, message
from zonemgr.model import privileges
from zonemgr.model.zone import Zone
from zonemgr.store import zones
from zonemgr.store.paths import Layout

LACKS_DEADLINE_S = 10.0


def verify_brand(
    brand: Brand, zone: ZoneInfo, command: str, *, deadline_s: float, say: Say, here: bool = False
) -> None:
    """Check the zone against its brand on behalf of ``command`` (a verb).  Raises BrandError, ConfigError.

    ``here``: what only looks may run in this process (``hooks.run_verify``).
    """
    why = lacks(brand)
    if why:
        raise BrandError("brand '{brand}' cannot be used on this host: {why}", brand=brand.name, why=why)
    check_declared(brand, zone.config, say if command in ("verify", "install") else None)
    if brand.mandatory_label:
        check_label(brand, zone)
    _check_cgroup(brand)
    _check_datasets(brand, zone, deadline_s, say)
    if here:
        status = hooks.run_verify(brand, zone, command, deadline_s=deadline_s, say=say)
    else:
        status = hooks.run_brand_hook(brand, "verify", zone, command, deadline_s=deadline_s, say=say)
    if status:
        raise ConfigError("zone {zonename} failed to verify", zonename=zone.zonename)


def verify_configuration(brand: Brand, zone: ZoneInfo, *, deadline_s: float, say: Say) -> None:
    """Check a configuration that is about to be saved; the host is not asked.  Raises BrandError, ConfigError."""
    check_declared(brand, zone.config, None)
    if brand.mandatory_label:
        _check_unique(brand, zone, zone.config.label)
    status = hooks.run_brand_hook(brand, "verify_cfg", zone, deadline_s=deadline_s, say=say)
    if status:
        raise ConfigError("brand '{brand}' refuses the configuration", brand=brand.name)


def check_next(layout: Layout, zonename: str, say: Say) -> None:
    """Before a running zone is taken down to be booted again: whether what it is configured to be now could be booted,
    as far as a look tells.  Only what is wrong is said.  Raises ZoneError.
    """
    from zonemgr.brandkit import loader  # here: most of what is verified has its brand at hand
    from zonemgr.store import verify

    zone = zones.load(layout, zonename)
    check_declared(loader.load(zone.brand, layout), zone, None)
    said: list[str] = []
    try:
        verify.verify_zone(layout, zone, zones.read_entry(layout, zonename), "reboot", said.append)
    except ZoneError:
        for text in said:
            say(text)
        raise


def check_declared(brand: Brand, zone: Zone, say: Say | None) -> None:
    """What the brand's declarations allow.  Raises BrandError, ConfigError."""
    if zone.ip_type not in brand.ip_types:
        raise BrandError(
            "brand '{brand}' does not support ip-type {type}", brand=brand.name, type=zone.ip_type
        )
    found = allowed(brand, zone, zone.limitpriv)
    if zone.seccomp:
        from zonemgr.linux import seccomp  # not at the top: it loads ctypes

        seccomp.profile_for(seccomp.Wishes(calls=zone.seccomp))
    if say and found.ignored:
        say(
            message(
                "WARNING: without effect on this system: limitpriv {names}", names=", ".join(found.ignored)
            )
        )
    powers = sorted(found.capabilities & privileges.HOST_POWERS) if zone.privileged else []
    if say and powers:
        say(
            message(
                "WARNING: root of this privileged zone can take over the host by its {names}",
                names=", ".join(powers),
            )
        )
    useless = [name for name in zone.fs_allowed if name not in ("-", "fuse")]
    if say and useless:
        say(
            message(
                "WARNING: the kernel alone decides which zone may mount fs-allowed {names}",
                names=", ".join(useless),
            )
        )


def allowed(brand: Brand, zone: Zone, limitpriv: str) -> privileges.Privileges:
    """The capabilities of a zone of this brand.  Raises ConfigError."""
    sets = brand.privileges(zone.ip_type)
    default = privileges.expand(sets.default)
    if zone.privileged:
        default -= privileges.HOST_POWERS
    if zone.global_time:
        default |= {"sys_time"}
    return privileges.capabilities(
        limitpriv, default=default, required=sets.required, prohibited=sets.prohibited
    )


def lacks(brand: Brand) -> str:
    """What this host lacks for zones of the brand, in one line; empty for nothing."""
    said: list[str] = []
    try:
        status = hooks.run_brand_hook_plain(brand, "lacks", deadline_s=LACKS_DEADLINE_S, say=said.append)
    except BrandError as error:
        return error.text
    if not said and status:
        return f"its hook lacks ended with status {status}"
    return said[0] if said else _lacks_label(brand)


def _lacks_label(brand: Brand) -> str:
    if not brand.mandatory_label:
        return ""
    from zonemgr.linux import labels

    return "" if labels.active() else "neither SELinux nor AppArmor is active, so processes have no labels"


# -- labels -------------------------------------------------------------------------------------------------------


def check_label(brand: Brand, zone: ZoneInfo) -> None:
    """A zone of a labeled brand has a label that the host knows and that no other zone has.  Raises ZoneError."""
    from zonemgr.linux import labels

    label = zone.config.label
    if not label:
        raise ConfigError(
            "brand '{brand}' needs a label: zonemgr config {zonename} add attr name=label type=string value=LABEL",
            brand=brand.name,
            zonename=zone.zonename,
        )
    module = labels.active()
    if module is not None:  # else the brand lacks it, which is said before
        labels.check(module, label)
    _check_unique(brand, zone, label)


def _check_unique(brand: Brand, zone: ZoneInfo, label: str) -> None:
    for other in _others(zone) if label else ():
        if other.label == label:
            raise ConfigError(
                "label '{label}' is that of zone {other}: brand '{brand}' has one zone for each label",
                label=label,
                other=other.zonename,
                brand=brand.name,
            )


def _others(zone: ZoneInfo) -> Iterator[Zone]:
    layout = zone.layout
    for name in zones.names(layout):
        if name != zone.zonename:
            try:
                yield zones.load(layout, name)
            except (ConfigError, NoSuchZoneError):
                continue  # it cannot be booted either


# -- what the host gives ------------------------------------------------------------------------------------------


def _check_cgroup(brand: Brand) -> None:
    if brand.cgroup != "v1":
        return
    from zonemgr.linux.cgroup import detect

    if "name=systemd" not in detect().controllers:
        raise BrandError(
            "brand '{brand}' is for guests that need cgroup v1, which this host does not have "
            "(mount -t cgroup -o none,name=systemd systemd /sys/fs/cgroup/systemd)",
            brand=brand.name,
        )


def _check_datasets(brand: Brand, zone: ZoneInfo, deadline_s: float, say: Say) -> None:
    """What the brand asks for besides the configuration is there."""
    if not brand.overrides("query"):
        return
    found: list[str] = []
    if hooks.run_brand_hook(brand, "query", zone, "datasets", deadline_s=deadline_s, say=found.append):
        for line in found:
            say(line)
        raise BrandError("brand '{brand}' query failed", brand=brand.name)
    for path in filter(None, found):
        if not path.startswith("/") or not os.path.exists(path):
            raise ConfigError("could not verify dataset {path}: it does not exist", path=path)
