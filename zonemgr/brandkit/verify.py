"""Whether a brand can run a zone here: what the brand's declarations say of the configuration, and its own verify
hook.

The other half of the verification, which needs no brand, is ``store.verify``.
"""

from __future__ import annotations

from zonemgr.brandkit import hooks
from zonemgr.brandkit.base import Brand, ZoneInfo
from zonemgr.brandkit.hooks import Say
from zonemgr.errors import BrandError, ConfigError
from zonemgr.model import privileges


def verify_brand(brand: Brand, zone: ZoneInfo, command: str, *, deadline_s: float, say: Say) -> None:
    """Check the zone against its brand on behalf of ``command`` (a verb).  Raises BrandError, ConfigError."""
    _check_ip_type(brand, zone)
    _check_privileges(brand, zone, say if command in ("verify", "install") else None)
    status = hooks.run_brand_hook(brand, "verify", zone, command, deadline_s=deadline_s, say=say)
    if status:
        raise ConfigError("zone {zonename} failed to verify", zonename=zone.zonename)


def _check_ip_type(brand: Brand, zone: ZoneInfo) -> None:
    if zone.config.ip_type not in brand.ip_types:
        raise BrandError(
            "brand '{brand}' does not support ip-type {type}", brand=brand.name, type=zone.config.ip_type
        )


def _check_privileges(brand: Brand, zone: ZoneInfo, say: Say | None) -> None:
    found = privileges.capabilities(
        zone.config.limitpriv,
        default=brand.default_privileges,
        required=brand.required_privileges,
        prohibited=brand.prohibited_privileges,
    )
    if say and found.ignored:
        say(f"WARNING: without effect on this system: limitpriv {', '.join(found.ignored)}")
