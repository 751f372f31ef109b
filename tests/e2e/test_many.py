"""Many zones by one command: bounded, by pattern and brand, each answered for."""

from __future__ import annotations

import json
import os
import pty
import select

import pytest

from tests.kit.instance import Instance

pytestmark = pytest.mark.requires("root", "userns", "mount", "net", "cgroup")


@pytest.fixture
def several(instance: Instance) -> Instance:
    for name in ("web1", "web2", "db1"):
        instance.installed(name)
    instance.warm()
    return instance


def running(instance: Instance) -> set[str]:
    return {name for name, state in instance.states().items() if state == "running"}


def test_patterns_brands_and_jobs(several: Instance) -> None:
    several.run("boot", "web*", "-j", "1")
    assert running(several) == {"web1", "web2"}
    # Who is meant by a pattern is who is in a state for it; who is named is told.
    done = several.run("boot", "web?", "db1")
    assert running(several) == {"web1", "web2", "db1"} and "already" not in done.stderr
    answers = json.loads(several.run("--json", "halt", "-b", "native", "-j", "2").stdout)
    assert sorted(answer["zonename"] for answer in answers) == ["db1", "web1", "web2"]
    assert running(several) == set()
    assert several.run("boot", "-b", "busybox").stderr == "zonemgr: there is no zone to boot\n"
    assert several.run("boot", "nosuch*", check=1).stderr == "zonemgr: no zone's name matches 'nosuch*'\n"
    assert "give either zone names or -a" in several.run("boot", "-a", "web1", check=2).stderr
    assert "no zone specified" in several.run("boot", check=2).stderr
    assert several.run("boot", "web1", "-j", "0", check=2).returncode == 2


def test_a_bar_on_a_terminal_and_nothing_of_it_elsewhere(instance: Instance) -> None:
    names = [f"z{number}" for number in range(8)]
    for name in names:
        instance.configured(name)
    instance.warm()
    master, slave = pty.openpty()
    client = instance.popen("boot", *names, stderr=slave)
    os.close(slave)
    seen = b""
    while select.select([master], [], [], 30)[0]:
        try:
            seen += os.read(master, 65536)
        except OSError:  # the last one has left it
            break
    os.close(master)
    client.communicate(timeout=30)
    assert client.returncode == 1 and b"8/8" in seen and b"z7" in seen
    piped = instance.run("boot", *names, check=1).stderr
    assert "8/8" not in piped and len(piped.splitlines()) == 8
