"""In which order zones start and stop with the host."""

from __future__ import annotations

from zonemgr.model import order
from zonemgr.model.zone import Zone


def zones(**wishes: str) -> dict[str, Zone]:
    """``db=""``, ``web="db ?cache !high"``: requires db, after cache, of high priority."""
    found = {}
    for name, text in wishes.items():
        words = text.split()
        found[name] = Zone(
            name,
            f"/zones/{name}",
            requires=tuple(word for word in words if word[0] not in "?!"),
            after=tuple(word[1:] for word in words if word[0] == "?"),
            boot_priority=next((word[1:] for word in words if word[0] == "!"), None),
        )
    return found


def test_who_waits_for_nobody_goes_at_once_the_important_ones_first() -> None:
    found = order.of(zones(a="", b="!low", c="!high", d="c"))
    assert found.names == ("c", "a", "d", "b")
    assert found.before == {"a": frozenset(), "b": frozenset(), "c": frozenset(), "d": frozenset({"c"})}
    assert found.reversed() == {**dict.fromkeys("abd", frozenset()), "c": frozenset({"d"})}


def test_a_need_and_a_wish_order_but_only_among_those_that_start() -> None:
    found = order.of(zones(web="db gone ?cache ?absent", db="", cache="db"))
    assert found.before["web"] == {"db", "cache"}
    assert found.circular == {}


def test_a_circle_of_needs_keeps_its_zones_from_starting_and_no_others() -> None:
    found = order.of(zones(a="b", b="c", c="a", d="", e="a"))
    assert found.circular["a"] == ("a", "b", "c", "a")
    assert found.circular.keys() == {"a", "b", "c"}
    assert found.names == ("d", "e")


def test_a_circle_of_wishes_is_broken_and_a_need_outlives_a_wish() -> None:
    found = order.of(zones(a="?b", b="?a", c="d", d="?c", e="?e"))
    assert sorted(len(found.before[name]) for name in "ab") == [0, 1]
    assert [sorted(found.before[name]) for name in "cde"] == [["d"], [], []]


def test_what_is_required_starts_too() -> None:
    assert order.with_needs(["web"], zones(web="db", db="disk", disk="", other="", cache="")) == {"web", "db", "disk"}
