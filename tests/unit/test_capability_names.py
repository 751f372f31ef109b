"""The model and the kernel wrappers may not import each other, so each lists the capabilities: the lists agree."""

from __future__ import annotations

from zonemgr.linux import caps
from zonemgr.model.privileges import ALL_CAPABILITIES


def test_the_model_knows_exactly_the_capabilities_of_the_binding() -> None:
    assert frozenset(ALL_CAPABILITIES) == frozenset(caps.NAMES)
