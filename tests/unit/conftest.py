"""Fixtures of unit tests.  Property tests share a busy machine: a slow draw is no finding, no time is asserted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.kit.program import Zonemgr, caller
from zonemgr.store.paths import Layout
from zonemgr.wire import start

settings.register_profile("zonemgr", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("zonemgr")


@pytest.fixture(autouse=True, scope="package")
def no_delegate() -> Iterator[None]:
    """A configuration that names users would leave a process behind to serve them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(start, "delegate", lambda _layout: None)
        yield


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """The paths of an instance of its own."""
    return Layout.at(tmp_path)


@pytest.fixture
def zonemgr(layout: Layout, capsys: pytest.CaptureFixture[str]) -> Zonemgr:
    """Run the program in this process, on that instance."""
    return caller(layout.root, capsys)
