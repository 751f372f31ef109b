"""Claims: one holder each, a file for each, while the holder has a ledger."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from zonemgr.errors import PlatformError
from zonemgr.store import claims
from zonemgr.store.paths import Layout


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    found = Layout.at(tmp_path)
    for zonename in ("web", "db"):
        found.zone_run(zonename).mkdir(parents=True)
        (found.zone_run(zonename) / "ledger.jsonl").touch()
    return found


def test_a_claim_has_one_holder_until_it_is_given_back(layout: Layout) -> None:
    claims.take(layout, "web", "10.0.0.2")
    claims.take(layout, "web", "10.0.0.2")
    with pytest.raises(PlatformError, match=r"address 10\.0\.0\.2 is in use by zone web"):
        claims.take(layout, "db", "10.0.0.2")
    claims.give_back(layout, "db", "10.0.0.2")
    assert list(claims.holders(layout, "10.0.0.2")) == ["web"]
    claims.give_back(layout, "web", "10.0.0.2")
    claims.take(layout, "db", "10.0.0.2")


def test_a_port_of_every_address_is_also_that_of_one(layout: Layout) -> None:
    claims.take(layout, "web", "tcp/80")
    with pytest.raises(PlatformError, match=r"port 80/tcp of 127\.0\.0\.1 is in use by zone web"):
        claims.take(layout, "db", "tcp/80/127.0.0.1")
    claims.take(layout, "db", "udp/80")
    claims.take(layout, "db", "tcp/81/127.0.0.1")
    with pytest.raises(PlatformError, match=r"port 81/tcp is in use by zone db"):
        claims.take(layout, "web", "tcp/81")
    claims.take(layout, "web", "tcp/81/::1")


def test_what_a_zone_without_a_ledger_held_is_free(layout: Layout) -> None:
    claims.take(layout, "web", "10.0.0.2")
    (layout.zone_run("web") / "ledger.jsonl").unlink()
    claims.take(layout, "db", "10.0.0.2")
    assert list(claims.holders(layout, "10.0.0.2")) == ["db"]


def _try(layout: Layout, zonename: str) -> bool:
    try:
        claims.take(layout, zonename, "10.0.0.2")
    except PlatformError:
        return False
    return True


def test_of_two_at_once_one_gets_it(layout: Layout) -> None:
    context = multiprocessing.get_context("spawn")
    with context.Pool(2) as pool:
        assert sorted(pool.starmap(_try, [(layout, "web"), (layout, "db")])) == [False, True]
