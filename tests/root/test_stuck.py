"""The two states in which a halt got stuck, and what a killed supervisor finds there.

``shutting_down``: a process of the zone waits in the kernel for a frozen file system; ``down``: the brand's halt
command fails.  No test sets a state by hand.
"""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.kit import victims
from tests.kit.brands import Traced
from tests.kit.instance import Instance
from tests.kit.waiting import until
from zonemgr.store.observe import state_of

pytestmark = pytest.mark.requires("root", "mount", "net", "cgroup", "loop")

_FIFREEZE, _FITHAW = 0xC0045877, 0xC0045878
STUCK = re.compile(r"unable to shutdown zone: still there: .*?(\d+) \(sh\) (?:in )?([a-z]\w+)")


def state(instance: Instance) -> str:
    return state_of(instance.layout, "web").label


@pytest.fixture
def zone(instance: Instance, tmp_path: Path) -> Instance:
    """Running, with a file system of its own on /data; a halt is patient for a second."""
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(8 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-O", "^has_journal", image], check=True)
    instance.layout.etc.mkdir(parents=True, exist_ok=True)
    instance.layout.settings.write_text("kill-s = 1\n")
    instance.configured()
    instance.run("config", "web", "add", "fs", "dir=/data", f"special={image}", "type=ext4")
    instance.run("install", "web")
    instance.run("boot", "web")
    return instance


@contextmanager
def stuck(instance: Instance) -> Iterator[int]:
    """A process of the zone's init waits for the frozen /data; its pid."""
    init = victims.init(instance)
    data = os.open(f"/proc/{init}/root/data", os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.ioctl(data, _FIFREEZE, 0)
        instance.login("web", "/bin/sh", "-c", "/bin/sh -c ': > /data/x' < /dev/null > /dev/null 2>&1 &")
        yield until(lambda: _waits(instance), "a process of the zone waiting for the frozen file system")
    finally:
        fcntl.ioctl(data, _FITHAW, 0)
        os.close(data)


def _waits(instance: Instance) -> int:
    for pid, _start in victims.residents(instance):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "D":
                return pid
        except FileNotFoundError:
            continue
    return 0


def test_a_halt_names_who_is_stuck_and_works_later(zone: Instance) -> None:
    with stuck(zone) as pid:
        begun = time.monotonic()
        said = zone.run("halt", "web", check=1).stderr
        assert time.monotonic() - begun < 20  # kill-s is 1, and no deadline of another kind was waited for
        found = STUCK.search(said)
        assert found, said
        assert int(found[1]) == pid
        assert state(zone) == "shutting_down"
        assert zone.run("boot", "web").stderr == "zonemgr: zone 'web': zone is already booted\n"
        zone.run("login", "web", "--", "/bin/true", check=125)
        assert state(zone) == "shutting_down"
    zone.run("halt", "web")
    assert state(zone) == "installed"
    zone.run("boot", "web")
    assert "lost+found" in zone.login("web", "ls", "/data").split()


def test_the_supervisor_is_killed_while_a_halt_is_stuck(zone: Instance) -> None:
    """The successor tries to finish the halt, cannot either, and serves on."""
    with stuck(zone):
        zone.run("halt", "web", check=1)
        record = victims.record(zone)
        victims.kill(victims.supervisor(zone))
        assert state(zone) == "shutting_down"
        said = zone.run("boot", "web").stderr
        assert (
            "WARNING: zone is in state 'shutting_down', but zoneadmd does not appear to be available" in said
        )
        assert said.endswith("zone is already booted\n")
        assert STUCK.search(zone.run("halt", "web", check=1).stderr)
        assert victims.record(zone).generation == record.generation
    zone.run("halt", "web")
    assert state(zone) == "installed"
    zone.run("boot", "web")


def test_zsched_is_killed_while_a_halt_is_stuck(zone: Instance) -> None:
    with stuck(zone):
        zone.run("halt", "web", check=1)
        victims.kill(victims.zsched(zone))
        assert state(zone) == "shutting_down"
        assert STUCK.search(zone.run("halt", "web", check=1).stderr)
        victims.kill(victims.supervisor(zone))
        assert STUCK.search(zone.run("halt", "web", check=1).stderr)
    zone.run("halt", "web")
    assert state(zone) == "installed"
    zone.run("boot", "web")


def test_the_thaw_ends_a_stuck_zone_that_nobody_supervises(zone: Instance) -> None:
    with stuck(zone):
        zone.run("halt", "web", check=1)
        victims.kill(victims.supervisor(zone))
    until(lambda: state(zone) in ("down", "installed"), "the end of the processes")
    zone.run("halt", "web")
    assert state(zone) == "installed"
    zone.run("boot", "web")


def test_a_halt_command_that_fails_leaves_the_zone_down(instance: Instance) -> None:
    brand = Traced(instance)
    instance.running("web", "-b", brand.name)
    brand.script({"halt": "fail"})
    said = instance.run("halt", "web", check=1).stderr
    assert "halt failed" in said
    assert state(instance) == "down"
    assert not victims.residents(instance)
    assert instance.run("boot", "web").stderr == "zonemgr: zone 'web': zone is already booted\n"
    victims.kill(victims.zsched(instance))
    instance.run("halt", "web", check=1)
    assert state(instance) == "down"
    brand.script()
    instance.run("halt", "web")
    assert state(instance) == "installed"
    instance.run("boot", "web")
