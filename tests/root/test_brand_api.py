"""What a brand declares is what its zones do: restart policies, logins, privileges, cgroups, labels, programs."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.kit.instance import Instance
from tests.kit.processes import Started
from tests.kit.waiting import until
from zonemgr.linux import labels
from zonemgr.linux.cgroup import detect
from zonemgr.store import instance as instances
from zonemgr.store import zones
from zonemgr.store.instance import Instance as Record

pytestmark = pytest.mark.requires("root", "userns", "mount", "net", "cgroup")

Declare = Callable[..., str]


@pytest.fixture
def declare(instance: Instance) -> Declare:
    """Makes a brand that is native but for some lines of its brand.toml, and hooks; returns its name."""

    def declare(lines: str, **hooks: str) -> str:
        folder = instance.layout.etc / "brands/own"
        (folder / "hooks").mkdir(parents=True, mode=0o755)
        (folder / "brand.toml").write_text(f'name = "own"\nbase = "native"\n{lines}\n')
        for name, text in hooks.items():
            (folder / "hooks" / name).write_text(f"#!/bin/sh\n{text}\n")
            (folder / "hooks" / name).chmod(0o755)
        return "own"

    return declare


def record(instance: Instance, name: str = "web") -> Record:
    found = instances.read(instance.layout, name)
    assert found is not None
    return found


def kill_init(instance: Instance) -> Record:
    """Kill process 1 of the zone; the record of the life that ends so."""
    life = record(instance)
    assert life.init is not None
    os.kill(life.init.pid, signal.SIGKILL)
    return life


def test_a_zone_whose_init_fails_is_halted_by_default(instance: Instance) -> None:
    instance.running()
    kill_init(instance)
    until(lambda: instance.state() == "installed", "the halt")


def test_a_zone_whose_init_fails_is_rebooted_when_its_brand_says_so(instance: Instance, declare: Declare) -> None:
    instance.running("web", "-b", declare('restart = { failed = "reboot" }'))
    life = kill_init(instance)

    def again() -> bool:
        now = instances.read(instance.layout, "web")
        return now is not None and now.generation != life.generation and instance.state() == "running"

    until(again, "the reboot")
    assert record(instance).quick_reboots == 1
    instance.run("halt", "web")


def test_a_zone_may_be_kept_from_rebooting_itself(instance: Instance, declare: Declare) -> None:
    instance.running("web", "-b", declare('restart = { rebooted = "halt" }'))
    instance.run("login", "web", "--", "/usr/local/sbin/init", "6", check=False)
    until(lambda: instance.state() == "installed", "the halt")


def test_a_shutdown_is_no_failure_that_would_start_the_zone_again(instance: Instance, declare: Declare) -> None:
    lines = 'restart = { ended = "reboot", failed = "reboot" }'
    instance.running("web", "-b", declare(lines))
    instance.run("shutdown", "web")
    assert instance.state() == "installed"


def test_init_gets_the_brands_environment(instance: Instance, declare: Declare) -> None:
    instance.running("web", "-b", declare('init_environment = { SHELF = "upper one" }'))
    init = record(instance).init
    assert init is not None
    told = Path(f"/proc/{init.pid}/environ").read_bytes().split(b"\0")
    uuid = zones.read_entry(instance.layout, "web").uuid
    assert {b"SHELF=upper one", b"container=zonemgr", f"container_uuid={uuid}".encode()} <= set(told)
    files = ("container-manager", "container-uuid", "os-release")
    host = Path("/etc/os-release").read_text()
    assert instance.login("web", "sh", "-c", f"cd /run/host; cat {' '.join(files)}") == f"zonemgr\n{uuid}\n{host}"


def test_users_are_looked_up_by_the_brands_command(instance: Instance, declare: Declare) -> None:
    line = "printf {user}:x:4711:4712::/tmp:/bin/sh"
    instance.running("web", "-b", declare(f'user_command = ["/bin/sh", "-c", "{line}"]'))
    assert instance.run("login", "-l", "guest", "web", "--", "id", "-u").stdout == "4711\n"
    assert instance.run("login", "-l", "guest", "web", "--", "id", "-g").stdout == "4712\n"


def test_an_ip_type_that_the_brand_does_not_have_is_refused(instance: Instance, declare: Declare) -> None:
    name = declare('ip_types = ["shared"]')
    said = instance.run("create", "web", "-b", name, check=1).stderr
    assert "brand 'own' does not support ip-type exclusive" in said


def test_privileges_follow_the_ip_type(instance: Instance, declare: Declare) -> None:
    name = declare('ip_type_privileges.exclusive.prohibited = ["net_raw"]')
    instance.running("web", "-b", name)
    assert "net_raw" not in record(instance).capabilities
    instance.run("halt", "web")
    said = instance.run("config", "web", "set limitpriv=default,net_raw", check=1).stderr
    assert 'privilege "net_raw" is not permitted within the zone\'s privilege set' in said


def test_what_the_host_lacks_is_listed_and_refuses_zones(instance: Instance, declare: Declare) -> None:
    instance.configured("web", "-b", declare("", lacks="echo no tape drive"))
    done = instance.run("brands")
    assert "unusable" in next(line for line in done.stdout.splitlines() if line.startswith("own "))
    assert "brand 'own': no tape drive" in done.stderr
    said = instance.run("install", "web", check=1).stderr
    assert "brand 'own' cannot be used on this host: no tape drive" in said
    assert instance.state() == "configured"


def test_a_brand_can_refuse_a_configuration(instance: Instance, declare: Declare) -> None:
    hook = 'grep -q \'"autoboot": true\' "$ZONEMGR_CONFIG" || exit 0; echo boots by hand only; exit 1'
    instance.configured("web", "-b", declare("", verify_cfg=hook))
    said = instance.run("config", "web", "set autoboot=true", check=1).stderr
    assert "boots by hand only" in said and "brand 'own' refuses the configuration" in said
    assert instance.json("config", "web", "info", "autoboot") in ({"autoboot": False}, False)


def test_what_a_brand_asks_for_has_to_exist(instance: Instance, declare: Declare) -> None:
    instance.configured("web", "-b", declare("", query="echo /nowhere/data"))
    said = instance.run("verify", "web", check=1).stderr
    assert "could not verify dataset /nowhere/data: it does not exist" in said


def test_the_hooks_around_install_and_uninstall(instance: Instance, declare: Declare) -> None:
    name = declare("", postinstall='echo "post $*"; [ "$1" != no ]', preuninstall="echo not now; exit 1")
    instance.configured("web", "-b", name)
    said = instance.run("uninstall", "-F", "web", check=False).stderr
    assert "not now" not in said
    (instance.layout.etc / "brands/own/hooks/postinstall").write_text("#!/bin/sh\nexit 1\n")
    said = instance.run("install", "web", check=1).stderr
    assert "postinstall of brand 'own' failed; uninstall cleans up" in said
    assert instance.state() == "incomplete"
    instance.run("uninstall", "-F", "web")
    assert instance.state() == "configured"


def test_a_hook_that_reports_has_a_bar_on_a_terminal_and_nowhere_else(instance: Instance, declare: Declare) -> None:
    """The mark is what ``zonemgr.brandkit.report`` prints, which a hook in another language may print too."""
    name = declare("", postinstall="for n in 1 2 3 4; do printf '\\037%s/4 laying bricks\\n' $n; done; echo built")
    instance.configured("web", "-b", name, "--no-net")
    said = instance.run("install", "web").stderr
    assert "built" in said and "bricks" not in said
    instance.run("uninstall", "-F", "web")
    ours, theirs = os.openpty()
    command = [*instance.command, "install", "web"]
    with Started(command, stdin=theirs, stderr=theirs, env={**instance.env, "TERM": "xterm"}) as child:
        os.close(theirs)
        shown = b""
        try:
            while chunk := os.read(ours, 4096):
                shown += chunk
        except OSError:  # the other side is closed
            pass
        os.close(ours)
        assert child.wait(60) == 0
    assert b"laying bricks" in shown and b"/4" in shown and b"built" in shown


@pytest.mark.skipif("name=systemd" not in detect().controllers, reason="this host has no cgroup v1")
def test_an_old_guest_finds_cgroups_v1(instance: Instance, declare: Declare) -> None:
    instance.running("web", "-b", declare('cgroup = "v1"'))
    place = "/sys/fs/cgroup/systemd/x"
    assert instance.login("web", "sh", "-c", f"mkdir {place} && stat -c %U {place}") == "root\n"
    instance.run("halt", "web")


def test_a_zone_may_have_no_cgroups_to_look_at(instance: Instance, declare: Declare) -> None:
    instance.running("web", "-b", declare('cgroup = "none"\ndelegate_cgroup = false'))
    assert instance.login("web", "ls", "/sys/fs/cgroup") == ""
    payload = Path(record(instance).cgroup)
    assert payload.stat().st_uid == 0
    instance.run("halt", "web")


def test_a_device_under_another_name(instance: Instance, declare: Declare) -> None:
    lines = '[[more_devices]]\nmatch = "null"\nname = "nothing"\n[[more_devices]]\nmatch = "no-such"\noptional = true'
    instance.running("web", "-b", declare(lines))
    assert instance.login("web", "stat", "-c", "%t:%T", "/dev/nothing") == "1:3\n"
    instance.run("halt", "web")


# -- labeled and cluster --------------------------------------------------------------------------------------------


def test_two_zones_cannot_have_one_label(instance: Instance) -> None:
    for name in ("one", "two"):
        instance.configured(name, "-b", "labeled")
    instance.run("config", "one", "add attr name=label type=string value=zone-one")
    said = instance.run("config", "two", "add attr name=label type=string value=zone-one", check=1).stderr
    assert "label 'zone-one' is that of zone one: brand 'labeled' has one zone for each label" in said
    shown = {row["zonename"]: row["label"] for row in instance.json("list", "-c", "-n")}
    assert shown == {"one": "zone-one", "two": None}
    assert instance.run("list", "-cv").stdout.splitlines()[0].endswith(" LABEL")


@pytest.mark.skipif(labels.active() is not None, reason="this host labels processes")
def test_a_host_without_labels_refuses_labeled_zones(instance: Instance) -> None:
    instance.configured("web", "-b", "labeled")
    said = instance.run("install", "web", check=1).stderr
    assert "brand 'labeled' cannot be used on this host: neither SELinux nor AppArmor is active" in said


# Everything, but for one file.
PROFILE = """profile zonemgr-proof flags=(attach_disconnected,mediate_deleted) {
  file,
  capability,
  network,
  unix,
  signal,
  ptrace,
  mount,
  umount,
  pivot_root,
  deny /root/secret rw,
}
"""


@pytest.fixture
def profile() -> Iterator[str]:
    """The name of a profile that AppArmor has meanwhile."""

    def parser(option: str) -> None:
        subprocess.run(["apparmor_parser", option, "--skip-cache"], input=PROFILE, text=True, check=True)

    parser("--replace")
    yield "zonemgr-proof"
    parser("--remove")


@pytest.mark.requires("apparmor")
def test_every_process_of_a_labeled_zone_is_held_to_its_profile(instance: Instance, profile: str) -> None:
    instance.configured("web", "-b", "labeled")
    instance.run("config", "web", f"add attr name=label type=string value={profile}")
    instance.run("install", "web")
    instance.run("boot", "web")
    label = f"{profile} (enforce)\n"
    init = record(instance).init
    assert init is not None and Path(f"/proc/{init.pid}/attr/current").read_text() == label
    assert instance.login("web", "cat", "/proc/self/attr/current", "/proc/1/attr/current") == 2 * label
    instance.login("web", "sh", "-c", "echo known >/root/other && cat /root/other")
    assert instance.login("web", "sh", "-c", "echo known >/root/secret", check=2) == ""
    instance.run("halt", "web")


def test_a_cluster_framework_is_told_and_can_fence(instance: Instance) -> None:
    folder = instance.layout.etc / "cluster.d"
    folder.mkdir(parents=True, mode=0o755)
    program = folder / "10-framework"
    program.write_text(f'#!/bin/sh\necho "$1 $2 $3" >> {instance.root}/told\n')
    program.chmod(0o755)
    instance.running("web", "-b", "cluster")
    told = (instance.root / "told").read_text().splitlines()
    assert told == [
        "verify - install",
        "pre_statechange installed ready",
        "verify - boot",
        "post_statechange installed ready",
        "pre_statechange installed boot",
        "boot - -",
        "post_statechange installed boot",
    ]
    instance.run("halt", "web")
    program.write_text('#!/bin/sh\n[ "$1" != pre_statechange ] || { echo it runs elsewhere; exit 1; }\n')
    assert "it runs elsewhere" in instance.run("boot", "web", check=1).stderr
    assert instance.state() == "installed"


@pytest.mark.attack("code and files of others used by the host")
def test_who_may_write_a_folder_above_a_brand_chooses_no_code_for_root(instance: Instance, declare: Declare) -> None:
    """Everything in the brand's folder is root's, but the folder can be exchanged for another one of root's."""
    public = instance.root / "public"
    for place, name in ((public / "brands/kept", "kept"), (instance.root / "old/kept", "kept")):
        place.mkdir(parents=True)
        proof = f'open("{instance.root}/proof", "w")\n' if "old" in str(place) else ""
        (place / "brand.py").write_text(
            f'{proof}from zonemgr.brandkit import Brand\nclass Kept(Brand):\n    name = "{name}"\n    base = "native"\n'
        )
    public.chmod(0o777)
    declare("")
    (instance.layout.etc / "brands/own/brand.toml").write_text(f'name = "own"\nbase = "{public}/brands/kept"\n')
    swap = f"mv {public}/brands {public}/away && ln -s {instance.root}/old {public}/brands"
    subprocess.run(["sh", "-c", swap], user=65534, group=65534, extra_groups=[], check=True)
    refused = instance.run("create", "web", "-b", "own", check=1).stderr
    assert f"others than root may write {public}, which leads to it" in refused
    assert not (instance.root / "proof").exists()
    assert "which leads to it" in instance.run("brands", check=1).stderr
    assert not (instance.root / "proof").exists()
