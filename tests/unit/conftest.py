"""Property tests share a busy machine: a slow draw is no finding, and no time is asserted."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile("zonemgr", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("zonemgr")
