"""A running zone is brought to its configuration: what can change does, all of it or nothing, and can be taken back.

One zone serves the whole module: each test begins and ends with the zone as it was configured first.  Those that kill
what belongs to it have one of their own.
"""

from __future__ import annotations

import json
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.kit import door, victims
from tests.kit.brands import Traced
from tests.kit.instance import Instance
from tests.kit.nursery import Nursery, nursery
from tests.kit.waiting import until
from zonemgr.linux.procfs import is_alive
from zonemgr.model.states import Command
from zonemgr.store import change, snapshot, zones
from zonemgr.store.ledger import Ledger

pytestmark = pytest.mark.requires("root", "userns", "mount", "net", "cgroup")


class Web:
    """The zone, its configuration, and what is seen of it."""

    def __init__(self, instance: Instance, warm: Nursery, shared: Path) -> None:
        self.instance, self.warm, self.shared = instance, warm, shared
        self.file = instance.layout.config("web")
        self.first = self.file.read_text()
        self.ops = self.listed()

    def configure(self, head: str = "", tail: str = "") -> None:
        """The first configuration with properties before it and resources behind it."""
        self.file.write_text(f"{head}\n{self.first}\n{tail}\n")

    def apply(self, *words: str, check: bool | int = True) -> dict[str, Any]:
        """What ``apply`` answers, by property."""
        done = self.warm.run(self.instance, "--json", "apply", "web", *words, check=check)
        (answer,) = json.loads(done.stdout)
        self.said, self.steps = done.stderr, answer["steps"]
        return {found["property"]: found for found in answer["changes"]}

    def states(self, *words: str, check: bool | int = True) -> dict[str, str]:
        return {name: found["state"] for name, found in self.apply(*words, check=check).items()}

    def sh(self, script: str, check: bool = True) -> str:
        return self.warm.run(self.instance, "login", "web", "--", "sh", "-c", script, check=check).stdout

    def listed(self) -> list[str]:
        """What the ledger lists, whatever the order."""
        entries = Ledger(self.instance.layout.zone_run("web") / "ledger.jsonl").pending()
        return sorted(json.dumps(op) for _number, op in entries)

    def mounts(self) -> list[str]:
        return sorted(self.sh("cut -d' ' -f5,6 /proc/self/mountinfo").splitlines())

    def pids_max(self) -> str:
        from zonemgr.linux.cgroup import ZoneCgroup, detect

        cgroup = ZoneCgroup(detect(), "zonemgr" + self.instance.suffix, "web")
        places = [*cgroup.v1_paths(), cgroup.part_path("payload")]
        return next(file.read_text().strip() for place in places if (file := place / "pids.max").exists())

    @property
    def record(self) -> change.Record | None:
        return change.read(self.instance.layout, "web")

    def reset(self) -> None:
        """Bring the zone back to its first configuration, and see that nothing of a test is left."""
        self.file.write_text(self.first)
        if self.record is not None:
            self.warm.run(self.instance, "confirm", "web", "--revert", check=False)
        self.apply()
        assert self.record is None
        assert self.apply() == {}
        assert self.listed() == self.ops


@pytest.fixture(scope="module")
def module_web() -> Iterator[Web]:
    with tempfile.TemporaryDirectory(prefix="shared-", dir="/var/tmp") as name, nursery() as warm:
        shared = Path(name, "shared")
        shared.mkdir()
        os.chmod(name, 0o755)
        (shared / "file").write_text("the host's\n")
        root = Path(name, "root")
        root.mkdir()
        root.chmod(0o755)
        instance = Instance(root)
        try:
            instance.running("web")
            yield Web(instance, warm, shared)
            assert instance.close() == []
        finally:
            instance.force()


@pytest.fixture
def web(module_web: Web) -> Iterator[Web]:
    yield module_web
    module_web.reset()


@pytest.fixture
def own(instance: Instance, tmp_path: Path) -> Iterator[Web]:
    """A zone of the test's own."""
    (tmp_path / "file").write_text("the host's\n")
    instance.running("web")
    with nursery() as warm:
        yield Web(instance, warm, tmp_path)


def shared_fs(web: Web, directory: str = "/srv", options: str = '"ro"') -> str:
    return f'[[fs]]\ndir = "{directory}"\nspecial = "{web.shared}"\ntype = "bind"\noptions = [{options}]\n'


def test_everything_that_can_change_does_and_changes_back(web: Web) -> None:
    before = web.mounts(), web.pids_max()
    web.configure(
        'max-lwps = 321\nbootargs = "-v"\nmax-shm-ids = 77\nhostid = "a1"',
        shared_fs(web)
        + '[[fs]]\ndir = "/scratch"\ntype = "tmpfs"\noptions = ["size=1M"]\n'
        + f'[[net]]\nanet = "{web.instance.bridge}"\nlinkname = "more0"\naddress = ["10.211.7.2/24", "fd77::2/64"]\n'
        + '[[device]]\nmatch = "/dev/loop-control"\n'
        + "[[forward]]\nport = 8099\nto = 80\n",
    )
    wanted = {
        "bootargs": "pending", "hostid": "pending", "max-lwps": "applied", "max-shm-ids": "applied",
        "fs /srv": "applied", "fs /scratch": "applied", "net more0": "applied", "device loop-control": "applied",
        "forward 8099 tcp": "applied",
    }  # fmt: skip
    assert web.states("--dry-run") == wanted
    assert any("/srv" in step for step in web.steps)
    assert (web.mounts(), web.pids_max()) == before

    assert web.states() == wanted
    assert web.sh("cat /srv/file; cat /proc/sys/kernel/shmmni; test -c /dev/loop-control && echo there") == (
        "the host's\n77\nthere\n"
    )
    assert web.sh("mount -o remount,bind,rw /srv; touch /srv/new; mount -o remount,rw /srv; touch /srv/new; ls /srv",
                  check=False) == "file\n"  # fmt: skip
    assert "/scratch" in "".join(web.mounts())
    assert web.pids_max() == "321"
    addresses = web.sh("python3 -c \"print(open('/proc/net/if_inet6').read(), open('/proc/net/fib_trie').read())\"")
    assert "10.211.7.2" in addresses
    assert "fd770000000000000000000000000002" in addresses
    frozen = snapshot.load(web.instance.layout, "web")
    assert frozen is not None
    assert (frozen.max_lwps, frozen.bootargs, frozen.net[-1].linkname) == (321, "", "more0")
    assert web.states() == {"bootargs": "pending", "hostid": "pending"}

    web.file.write_text(web.first)
    assert set(web.states().values()) == {"applied"}
    assert (web.mounts(), web.pids_max()) == before
    assert web.sh("cat /proc/sys/kernel/shmmni; ls /sys/class/net; test -e /dev/loop-control || echo gone") == (
        "4096\nhost0\nlo\ngone\n"
    )
    assert web.listed() == web.ops


def test_an_address_is_exchanged_and_what_the_zone_has_set_itself_stays(web: Web) -> None:
    # A program that has no "ip" in the zone: the addresses are read from the host's side of the namespace.
    table = web.first.partition("[[net]]")[2]
    old = next(line for line in table.splitlines() if line.startswith("address"))
    changed = web.first.replace(old, 'address = ["10.211.8.2/24"]').replace("defrouter", "# defrouter")
    web.file.write_text(changed)
    assert web.states() == {"net host0 address": "applied", "net host0 defrouter": "applied"}
    routes = web.sh("cat /proc/net/fib_trie; cat /proc/net/route")
    assert "10.211.8.2" in routes
    assert len([line for line in routes.splitlines() if line.startswith("host0\t00000000")]) == 0


def test_when_one_part_fails_nothing_is_changed(web: Web) -> None:
    web.sh("ln -sfn /etc /planted")
    before = web.mounts(), web.pids_max()
    web.configure("max-lwps = 333\ncpu-shares = 7", shared_fs(web) + shared_fs(web, "/planted"))
    found = web.apply(check=1)
    assert {name: one["state"] for name, one in found.items()} == {
        "cpu-shares": "pending", "max-lwps": "pending", "fs /srv": "pending", "fs /planted": "failed",
    }  # fmt: skip
    assert "is a symlink" in found["fs /planted"]["why"]
    assert "is a symlink" in web.said
    assert "what had been applied is taken back" in web.said
    assert (web.mounts(), web.pids_max(), web.listed(), web.record) == (*before, web.ops, None)
    frozen = snapshot.load(web.instance.layout, "web")
    assert frozen is not None
    assert frozen.max_lwps is None
    web.sh("rm /planted")


def test_a_configuration_that_does_not_verify_is_refused_before_anything_is_done(web: Web) -> None:
    web.configure("max-lwps = 333", shared_fs(web).replace(str(web.shared), "/not/there"))
    assert web.apply(check=1) == {}
    assert "could not access" in web.said or "/not/there" in web.said
    assert web.listed() == web.ops


def test_a_mount_in_use_stays_and_its_users_are_named(web: Web) -> None:
    web.configure("", shared_fs(web))
    web.apply()
    user = web.instance.popen("login", "web", "--", "sh", "-c", "cd /srv; echo here; exec sleep 1000")
    try:
        assert user.stdout is not None
        assert user.stdout.readline() == "here\n"
        web.file.write_text(web.first)
        found = web.apply(check=1)
        assert found["fs /srv"]["state"] == "failed"
        assert "it is in use by" in found["fs /srv"]["why"]
        assert "(sleep)" in found["fs /srv"]["why"]
        assert web.sh("cat /srv/file") == "the host's\n"
    finally:
        user.kill()
        user.communicate()
        web.sh("kill $(pidof sleep)", check=False)
    until(lambda: web.states(check=False) == {"fs /srv": "applied"}, "the end of the mount's user")


def test_a_zone_that_took_its_mount_off_loses_nothing_else(web: Web) -> None:
    web.configure("", shared_fs(web))
    web.apply()
    web.sh("umount /srv; rmdir /srv || mv /srv /elsewhere; ln -s /proc /srv")
    web.file.write_text(web.first)
    assert web.states() == {"fs /srv": "applied"}
    assert "the zone has removed its folder" in web.said
    web.sh("rm /srv; mkdir -p /srv; test -e /proc/self/stat")


def test_a_confirmed_change_stays(web: Web) -> None:
    web.configure("max-lwps = 341")
    assert web.states("--confirm", "1h") == {"max-lwps": "applied"}
    assert "reverts by itself in 3600 seconds" in web.said
    left = door.state(web.instance)["unconfirmed"]
    assert 3500 < left <= 3600
    web.configure("max-lwps = 342")
    assert web.states("--dry-run") == {"max-lwps": "applied"}
    web.apply(check=1)
    assert "for its confirmation" in web.said
    web.warm.run(web.instance, "confirm", "web")
    assert door.state(web.instance)["unconfirmed"] is None
    assert web.pids_max() == "341"
    assert "no change waits" in web.warm.run(web.instance, "confirm", "web", check=1).stderr


def test_a_change_is_reverted_on_demand_and_when_its_time_is_over(web: Web) -> None:
    before = web.mounts(), web.pids_max()
    web.configure("max-lwps = 351", shared_fs(web))
    web.apply("--confirm", "1h")
    assert web.pids_max() == "351"
    web.warm.run(web.instance, "confirm", "web", "--revert")
    assert (web.mounts(), web.pids_max(), web.listed()) == (*before, web.ops)
    web.apply("--confirm", "1s")
    until(lambda: web.record is None, "the change is reverted by itself")
    assert (web.mounts(), web.pids_max(), web.listed()) == (*before, web.ops)
    assert zones.load(web.instance.layout, "web").max_lwps == 351


def test_a_mount_in_use_does_not_keep_a_change_from_being_reverted(web: Web) -> None:
    web.configure("", shared_fs(web))
    web.apply("--confirm", "1h")
    user = web.instance.popen("login", "web", "--", "sh", "-c", "cd /srv; echo here; exec sleep 1001")
    assert user.stdout is not None
    assert user.stdout.readline() == "here\n"
    said = web.warm.run(web.instance, "confirm", "web", "--revert").stderr
    assert "still in use by" in said
    assert web.sh("ls /srv") == ""
    user.kill()
    user.communicate()
    web.sh("kill $(pidof sleep)", check=False)


def test_two_clients_at_once_get_one_change(web: Web) -> None:
    web.configure("max-lwps = 371", shared_fs(web))
    clients = [web.instance.popen("--json", "apply", "web") for _ in range(3)]
    answers = [json.loads(client.communicate(timeout=60)[0])[0] for client in clients]
    assert [answer["ok"] for answer in answers] == [True] * 3
    assert sorted(len(answer["changes"]) for answer in answers) == [0, 0, 2]


@pytest.mark.parametrize("words", [["--confirm", "soon"], ["--confirm", "0"], ["-n", "--confirm", "5"], ["-F"]])
def test_words_that_make_no_sense_are_usage_errors(web: Web, words: list[str]) -> None:
    assert web.warm.run(web.instance, "apply", "web", *words, check=2).stdout == ""


def test_the_door_refuses_a_confirmation_in_no_time(web: Web) -> None:
    answer = door.ask(web.instance, Command.APPLY, confirm=-5)
    assert not answer.ok
    assert "at least one second" in answer.text


def test_a_change_is_reverted_although_the_supervisor_or_zsched_was_killed(own: Web) -> None:
    """zsched starts the successor; with more time left than it takes to look, nobody is there in between."""
    before = own.mounts(), own.pids_max()
    own.configure("max-lwps = 361", shared_fs(own))
    own.apply("--confirm", "3s")
    supervisor = victims.supervisor(own.instance)
    record = own.record
    assert record is not None
    victims.kill(supervisor)
    until(lambda: own.record is None, "a successor has reverted the change")
    assert change.now_s() >= record.due_s
    assert (own.mounts(), own.pids_max(), own.listed()) == (*before, own.ops)

    # The same with zsched gone: what was begun can be taken back, and nothing be begun.
    own.configure("max-lwps = 381", shared_fs(own))
    own.apply("--confirm", "1h")
    zsched = victims.record(own.instance).zsched
    assert zsched is not None
    victims.kill(zsched.pid)
    assert not is_alive(zsched.pid, zsched.start_time)
    own.warm.run(own.instance, "confirm", "web", "--revert")
    assert (own.mounts(), own.pids_max(), own.listed()) == (*before, own.ops)
    own.apply(check=1)
    assert "only a reboot can change the zone" in own.said
    own.instance.run("reboot", "web")
    assert own.pids_max() == "381"


_WAITS: Final = """
    version = '1'

    def verify(self, zone, command):
        return self._hook(zone, "verify", command)
"""


def test_ctrl_c_lets_the_change_go_on(instance: Instance, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    brand = Traced(instance, declarations=_WAITS)
    instance.running("web", "-b", brand.name)
    brand.script({"verify apply": f"wait {gate}"})
    on_its_own = "the apply goes on, and is taken back unless it is confirmed (zonemgr confirm web)"
    for number, (words, what_follows) in enumerate(
        [([], "the apply goes on"), (["--json"], "the apply goes on"), (["--confirm", "1h"], on_its_own)], start=351
    ):
        instance.run("config", "web", f"set max-lwps={number}")
        client = instance.popen("apply", "web", *words)
        assert client.stderr is not None
        assert client.stderr.readline() == "zonemgr: zone 'web': waiting\n"
        client.send_signal(signal.SIGINT)
        out, said = client.communicate(timeout=60)
        assert (client.returncode, out) == (130, "")
        assert said == f"zonemgr: zone 'web': interrupted: {what_follows}\n"
        gate.write_text("")
        until(lambda: _cap(instance) == number, "the change")  # noqa: B023 - it ends in here
    brand.script()
    instance.run("confirm", "web", "--revert")
    assert _cap(instance) == 352


def _cap(instance: Instance) -> int:
    (zone,) = instance.json("list", "web")
    return int(next(limit["effective"] for limit in zone["limits"] if limit["name"] == "max-lwps"))


def test_a_halt_ends_the_waiting_and_ready_zones_change_too(own: Web) -> None:
    own.configure("max-lwps = 391")
    own.apply("--confirm", "1h")
    own.warm.run(own.instance, "halt", "web")
    assert not (own.instance.layout.zone_run("web") / "change.json").exists()
    own.warm.run(own.instance, "ready", "web")
    assert own.pids_max() == "391"
    own.configure("max-lwps = 392", shared_fs(own))
    assert own.states() == {"max-lwps": "applied", "fs /srv": "applied"}
    own.warm.run(own.instance, "boot", "web")
    assert own.sh("cat /srv/file") == "the host's\n"
    assert own.pids_max() == "392"


def test_a_reboot_that_would_not_come_back_is_refused(instance: Instance) -> None:
    """By a slip in the file, a folder of the host that is gone, or a brand that is: the zone runs on."""
    instance.running()
    path = instance.layout.config("web")
    good, before = path.read_text(), victims.record(instance)
    gone = '[[fs]]\ndir = "/srv"\nspecial = "/nowhere"\ntype = "bind"\noptions = ["ro"]\n'
    slips = {
        good + "slip\n": "web.toml: line ",
        good + gone: "could not access /nowhere",
        good.replace('"native"', '"nosuch"'): "brand 'nosuch' is not known",
        'limitpriv = "default,nosuch"\n' + good: "nosuch",
    }
    for text, why in slips.items():
        path.write_text(text)
        said = instance.run("reboot", "web", check=1).stderr
        assert why in said and said.endswith("the zone is not rebooted, and runs on as it is\n")
        assert victims.record(instance) == before
        said = instance.run("shutdown", "-r", "web", check=1).stderr
        assert why in said and said.endswith("the zone is not rebooted, and runs on as it is\n")
        assert victims.record(instance) == before
    path.write_text(good)
    instance.run("reboot", "web")
    assert victims.record(instance).generation != before.generation
