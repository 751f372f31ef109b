"""Zones start and stop with the host: in their order, each with its result, and what fails is named."""

from __future__ import annotations

import json
import os
import signal
import socket
from pathlib import Path

import pytest

from tests.kit import victims
from tests.kit.instance import Instance
from tests.kit.waiting import until
from zonemgr.store.events import recorded

pytestmark = pytest.mark.requires("root", "userns", "mount", "net", "cgroup")


def changes(instance: Instance, newstate: str) -> list[str]:
    """The zones that came into this state, in the order in which they did."""
    events = recorded(instance.layout)
    return [event["zonename"] for event in events if event.get("newstate") == newstate]


def test_zones_boot_after_what_they_require_and_end_before_it(instance: Instance) -> None:
    for name, words in (("db", ()), ("web", ("autoboot=true", "requires=db")), ("lost", ("autoboot=true",))):
        instance.installed(name, *words)
    instance.run("config", "lost", "set", "requires=nobody")
    done = instance.run("autoboot", check=1)
    assert "zone 'lost': requires what does not run: nobody" in done.stderr
    assert done.stderr.endswith("zonemgr: 1 of 3 zones failed to start: lost\n")
    assert instance.states() == {"db": "running", "web": "running", "lost": "installed"}
    assert changes(instance, "running") == ["db", "web"]
    status = json.loads(instance.run("--json", "autoboot", "--status", check=1).stdout)
    assert {found["zonename"]: found["ok"] for found in status["results"]} == {"db": True, "web": True, "lost": False}
    instance.run("config", "lost", "set", "requires=db")
    assert instance.run("autoboot").stderr == ""
    assert instance.states()["lost"] == "running"

    instance.run("config", "lost", "set", "autoshutdown=halt")
    instance.run("shutdown", "-a", "-t", "60")
    assert set(instance.states().values()) == {"installed"}
    ended = [name for name in changes(instance, "installed") if name in ("db", "web", "lost")][-3:]
    assert ended[-1] == "db"


def test_a_zone_that_does_not_end_is_halted(instance: Instance) -> None:
    """Its init hears nothing of a shutdown; the time for that ends, and halt asks nobody."""
    instance.running("web")
    init = victims.init(instance)
    os.kill(init, signal.SIGSTOP)
    instance.run("shutdown", "-a", "-t", "2")
    assert instance.state() == "installed"


def test_a_unit_stays_with_its_zone_and_tells_systemd(instance: Instance, tmp_path: Path) -> None:
    instance.installed("web")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(60)
        env = {**instance.env, "NOTIFY_SOCKET": str(tmp_path / "notify")}
        words = ("boot", "--wait", "web")
        staying = instance.popen(*words, env=env)
        assert manager.recv(1000).startswith(b"READY=1\n")
        assert instance.state() == "running"
        # A reboot and a killed supervisor are not the zone's end, and neither is the end of the one who stays.
        instance.run("reboot", "web")
        victims.kill(victims.supervisor(instance))
        until(lambda: victims.has_supervisor(instance), "another supervisor")
        assert staying.poll() is None
        staying.kill()
        staying.communicate()
        assert instance.state() == "running"
        again = instance.popen(*words, env=env)
        assert manager.recv(1000).startswith(b"READY=1\n")
        instance.run("halt", "web")
        assert manager.recv(1000) == b"STOPPING=1"
        assert again.wait(60) == 0
        again.communicate()


def test_who_stays_with_a_zone_brings_it_back_from_half_a_reboot(instance: Instance) -> None:
    """Of a reboot whose supervisor was killed between halt and boot only a note is left."""
    instance.installed("web")
    with instance.popen("boot", "--wait", "web") as staying:
        try:
            until(lambda: instance.state() == "running" and victims.has_supervisor(instance), "the boot")
            staying.send_signal(signal.SIGSTOP)
            instance.run("halt", "web")
            victims.kill(victims.supervisor(instance))
            instance.layout.intent("web").write_text('{"command": "reboot", "arguments": ""}')
            staying.send_signal(signal.SIGCONT)
            until(lambda: instance.state() == "running", "the second half")
            assert staying.poll() is None
            instance.run("halt", "web")
            assert staying.wait(60) == 0
        finally:
            staying.kill()
