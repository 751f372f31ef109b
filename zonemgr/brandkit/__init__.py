"""What a brand's author imports, and nothing else of zonemgr: the base class, the data it declares, the errors it
raises.

The loader, the hook runner and the care of a zonepath beside this file belong to zonemgr itself.
"""

from __future__ import annotations

from zonemgr.brandkit.base import BRAND_API, Brand, NotCompleted, ZoneInfo
from zonemgr.brandkit.reports import report
from zonemgr.errors import BrandError, UsageError, message
from zonemgr.model.brandspec import (
    STANDARD_DEVICES,
    STANDARD_LINKS,
    DeviceLink,
    DeviceRule,
    InitProgram,
    PlatformMount,
    PrivilegeSets,
    RestartPolicy,
)

__all__ = [
    "BRAND_API",
    "STANDARD_DEVICES",
    "STANDARD_LINKS",
    "Brand",
    "BrandError",
    "DeviceLink",
    "DeviceRule",
    "InitProgram",
    "NotCompleted",
    "PlatformMount",
    "PrivilegeSets",
    "RestartPolicy",
    "UsageError",
    "ZoneInfo",
    "message",
    "report",
]
