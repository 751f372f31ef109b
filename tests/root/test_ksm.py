"""Where the kernel merges equal pages, supervisors and zsched offer theirs, and nobody else's are taken."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.kit import victims
from tests.kit.instance import Instance
from tests.kit.waiting import until
from zonemgr.linux import ksm

pytestmark = [pytest.mark.requires("root", "userns", "net", "cgroup", "ksm"), pytest.mark.xdist_group("ksm")]

KNOBS = Path("/sys/kernel/mm/ksm")


def switched(**wanted: str) -> Iterator[None]:
    before = {name: (KNOBS / name).read_text() for name in wanted}
    try:
        for name, value in wanted.items():
            (KNOBS / name).write_text(value)
        yield
    finally:
        for name, value in before.items():
            (KNOBS / name).write_text(value)


@pytest.fixture
def merging() -> Iterator[None]:
    yield from switched(sleep_millisecs="0", pages_to_scan="20000", run="1")


@pytest.fixture
def not_merging() -> Iterator[None]:
    yield from switched(run="0")


def offers(pid: int) -> int:
    """How many mappings of the process are offered."""
    text = Path(f"/proc/{pid}/smaps").read_text()
    return sum("mg" in flags.split() for flags in re.findall(r"^VmFlags:(.*)$", text, re.MULTILINE))


def merged(pid: int) -> int:
    """How many pages of the process are held once for several."""
    found = re.search(r"^ksm_merging_pages (\d+)$", Path(f"/proc/{pid}/ksm_stat").read_text(), re.MULTILINE)
    assert found
    return int(found[1])


def shares(pid: int) -> bool:
    return offers(pid) > 0 and merged(pid) > 100


def managers(instance: Instance, zonename: str) -> tuple[int, int]:
    """Supervisor and zsched."""
    return victims.supervisor(instance, zonename), victims.zsched(instance, zonename)


def test_managers_of_two_zones_share_what_they_have_in_common(instance: Instance, merging: None) -> None:
    assert ksm.is_on()
    for zonename in ("web", "db"):
        instance.installed(zonename)
        instance.run("boot", zonename)
    for zonename in ("web", "db"):
        for pid in managers(instance, zonename):
            until(partial(shares, pid), f"{pid} to share pages")
    instance.run("reboot", "db")
    for pid in managers(instance, "db"):
        until(partial(shares, pid), f"{pid} to share pages")


def test_no_program_of_a_zone_is_merged(instance: Instance, merging: None) -> None:
    """Who can make pages and time writes to them learns what others have in theirs."""
    instance.installed("web")
    instance.run("boot", "web")
    supervisor_pid, zsched_pid = managers(instance, "web")
    until(lambda: offers(supervisor_pid) > 0 and offers(zsched_pid) > 0, "an offer of both")
    assert offers(victims.init(instance)) == 0
    assert instance.login("web", "grep", "-c", "^VmFlags:.* mg", "/proc/self/smaps", check=1).strip() == "0"
    instance.run("reboot", "web")  # whose process 1 is a fork of those
    assert offers(victims.init(instance)) == 0


def test_nothing_is_offered_where_nothing_is_merged(instance: Instance, not_merging: None) -> None:
    instance.installed("web")
    instance.run("boot", "web")
    assert not ksm.is_on()
    assert [offers(pid) for pid in managers(instance, "web")] == [0, 0]
