"""The commands as a user types them: many zones at once, results as JSON, events, plan, fsck, doctor."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit.instance import Instance
from tests.kit.waiting import until

pytestmark = pytest.mark.requires("root", "mount", "net", "cgroup")

ECHO = """
import socket, sys
for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
    s = socket.socket(family, socket.SOCK_DGRAM)
    if family == socket.AF_INET6:
        s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    s.bind((address, 7777))
    print("bound", flush=True)
"""


def addresses(instance: Instance, name: str) -> list[str]:
    """The zone's addresses, without prefix lengths."""
    for line in instance.layout.config(name).read_text().splitlines():
        if line.startswith("address"):
            return [address.partition("/")[0] for address in json.loads(line.partition("=")[2])]
    raise AssertionError(f"{name} has no address")


def bridge_addresses(instance: Instance) -> list[str]:
    words = ["ip", "-json", "address", "show", "dev", instance.bridge, "scope", "global"]
    (link,) = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
    return [found["local"] for found in link["addr_info"] if "local" in found]


def test_twenty_zones(instance: Instance) -> None:
    names = [f"z{number}" for number in range(20)]
    instance.warm()  # a hundred commands
    for name in names:
        instance.installed(name)
    everything = [address for name in names for address in addresses(instance, name)]
    assert len(set(everything)) == len(everything) == 40
    instance.run("boot", *names, timeout=180)
    assert set(instance.states().values()) == {"running"}
    four, six = bridge_addresses(instance)
    for name in names:
        instance.login(name, "sh", "-c", f"ping -c 1 -W 5 {four} && ping -c 1 -W 5 {six}")
    for address in everything:
        subprocess.run(["ping", "-c", "1", "-W", "5", address], check=True, stdout=subprocess.DEVNULL)
    ids = [row["id"] for row in instance.json("list") if row["zonename"] != "global"]
    assert len(set(ids)) == 20
    instance.run("halt", "-a", timeout=180)
    assert set(instance.states().values()) == {"installed"}


def test_several_names_have_several_results(instance: Instance) -> None:
    instance.installed("one")
    instance.installed("two")
    instance.configured("three")
    done = instance.run("boot", "one", "nosuch", "two", "three", "one", check=1)
    assert sorted(done.stderr.splitlines()) == [
        "zonemgr: nosuch: No such zone configured",
        "zonemgr: zone 'three': must be installed before boot.",
    ]
    assert instance.states() == {"one": "running", "two": "running", "three": "configured"}
    done = instance.run("--json", "halt", "one", "two", "nosuch", check=1)
    results = {row["zonename"]: row["ok"] for row in json.loads(done.stdout)}
    assert results == {"one": True, "two": True, "nosuch": False}
    done = instance.run("--json", "halt", "one")
    assert json.loads(done.stdout) == [
        {
            "zonename": "one",
            "ok": True,
            "note": "zone is already halted",
            "messages": ["zone is already halted"],
        }
    ]


def test_from_inside(instance: Instance) -> None:
    instance.running()
    first = instance.json("list", "web")[0]
    instance.run("login", "web", "--", "reboot", check=False)
    until(lambda: instance.json("list", "web")[0]["id"] not in (first["id"], None), "the reboot")
    until(lambda: instance.state() == "running", "the boot")
    second = instance.json("list", "web")[0]
    assert second["uuid"] == first["uuid"]
    for verb in ("halt", "poweroff"):
        instance.run("login", "web", "--", verb, check=False)
        until(lambda: instance.state() == "installed", verb)
        instance.run("boot", "web")
    instance.run("shutdown", "web")
    assert instance.state() == "installed"
    instance.run("boot", "web")
    instance.run("shutdown", "-r", "web", "--", "-s")
    assert instance.state() == "running"


def test_events_of_zones_with_and_without_supervisor(instance: Instance) -> None:
    with instance.popen("events", "-f", "-a", "--json") as follower:  # all, since it may start late
        assert follower.stdout is not None
        instance.configured("web")
        first = json.loads(follower.stdout.readline())
        instance.run("install", "web")
        instance.run("config", "web", "set", "autoboot=true")
        instance.run("boot", "web")
        instance.run("login", "web", "--", "poweroff", check=False)
        until(lambda: instance.state() == "installed", "the halt")
        instance.run("uninstall", "-F", "web")
        instance.run("delete", "-F", "web")
        seen = [first]
        while seen[-1].get("change") != "deleted":
            seen.append(json.loads(follower.stdout.readline()))
        follower.terminate()
    states = [(event["oldstate"], event["newstate"]) for event in seen if event["type"] == "state"]
    assert states == [
        ("configured", "incomplete"),
        ("incomplete", "installed"),
        ("installed", "ready"),
        ("ready", "running"),
        ("running", "shutting_down"),
        ("shutting_down", "installed"),
        ("installed", "incomplete"),
        ("incomplete", "configured"),
    ]
    assert next(event["change"] for event in seen if event["type"] == "config") == "created"
    assert all(event["time"] > 0 for event in seen)


def test_looking_changes_nothing(instance: Instance) -> None:
    instance.installed()
    before = _files(instance)
    for verb in ("ready", "boot", "mount"):
        text = instance.run("plan", verb, "web").stdout
        assert text.startswith(f"# {verb} web: ")
        assert instance.json("plan", verb, "web")["verb"] == verb
    assert "mount" in instance.run("plan", "boot", "web").stdout
    assert instance.run("fsck").stdout == ""
    assert instance.json("fsck") == []
    assert "native" in instance.run("brands", check=False).stdout
    instance.run("doctor", check=False)
    assert instance.run("doctor", "--json", check=False).stdout.startswith(("[", "{"))
    instance.run("verify", "web")
    instance.run("list", "-cv")
    assert _files(instance) == before


def _files(instance: Instance) -> list[str]:
    """Everything there is but locks."""
    return sorted(str(path) for path in instance.root.rglob("*") if not path.name.endswith("lock"))


def test_lists(instance: Instance) -> None:
    instance.configured("c")
    instance.installed("i")
    instance.running("r")
    assert instance.run("list").stdout.split() == ["global", "r"]
    assert instance.run("list", "-i").stdout.split() == ["global", "r", "i"]
    assert instance.run("list", "-c").stdout.split() == ["global", "r", "c", "i"]
    row = next(line for line in instance.run("list", "-p").stdout.splitlines() if ":r:" in line)
    fields = row.split(":")
    assert fields[:4] == ["1", "r", "running", str(instance.layout.zonepath("r"))]
    assert fields[5:7] == ["native", "excl"] and len(fields[4]) == 36
    assert instance.json("list", "i")[0]["id"] is None
    done = instance.run("list", "-p", "-v", check=1)
    assert done.stderr == "zonemgr: list -p and -v are mutually exclusive.\n"
    words = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", *instance.command, "list"]
    if subprocess.run([*words[:6], "test", "-x", sys.executable]).returncode == 0 and _reachable(instance):
        done = subprocess.run(words, env=instance.env, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout.split()) == (0, ["global", "r"]), done.stderr


def _reachable(instance: Instance) -> bool:
    folder = Path(instance.env["PYTHONPATH"])
    return all(path.stat().st_mode & 1 for path in (folder, *folder.parents))


def test_every_verb_has_help_with_an_example(instance: Instance) -> None:
    text = instance.run("--help").stdout
    for verb in ("create", "config", "delete", "install", "uninstall", "verify", "ready", "boot", "reboot", "halt",
                 "shutdown", "mount", "unmount", "list", "login", "console", "events", "plan", "fsck", "brands",
                 "doctor"):  # fmt: skip
        assert verb in text
        assert "Example" in instance.run(verb, "--help").stdout, verb
