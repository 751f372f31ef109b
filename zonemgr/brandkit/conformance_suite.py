"""What every brand has to stand: one zone's life, a step a test, in this order.

Run by ``conformance``; a step whose ground is missing is reported as not run, never as passed.
"""

from __future__ import annotations

import json
import os
import stat

import pytest

from zonemgr.brandkit.conformance_bench import Bench

ZONE = "proof"
READY = ["pre_statechange installed ready", "post_statechange installed ready"]
BOOT = [*READY, "pre_statechange installed boot", "boot", "post_statechange installed boot"]


def halt(state: str) -> list[str]:
    """The hooks of a halt that was asked for in this state."""
    return [f"pre_statechange {state} halt", "halt", f"post_statechange {state} halt"]


def test_it_is_sound_and_usable_here(bench: Bench) -> None:
    with bench.step("usable") as step:
        listed = json.loads(bench.zonemgr("--json", "brands", check=False).stdout)
        (found,) = [row for row in listed if row["name"] == bench.subject.name and row["state"] != "hidden"]
        if found["state"] == "unusable":
            step.result = "refused"
            pytest.skip(f"this host cannot run it: {found['error']}")
        assert found["state"] == "ok", found["error"]


def test_a_zone_can_be_configured(bench: Bench) -> None:
    with bench.step("configure", "usable"):
        bench.zonemgr("create", ZONE, "-b", bench.subject.name)
        for command in bench.filled(bench.demands.config):
            bench.zonemgr("config", ZONE, command)
        assert bench.state() == "configured"


def test_verify_finds_nothing_wrong_and_changes_nothing(bench: Bench) -> None:
    with bench.step("verify", "configure"):
        bench.zonemgr("verify", ZONE)
        assert not bench.zonepath().exists()
        assert bench.trace() == []


def test_a_failed_install_leaves_a_way_out(bench: Bench) -> None:
    with bench.step("failed install", "verify"):
        bench.order({"install": "fail"})
        assert bench.zonemgr("install", ZONE, *_arguments(bench), check=False).returncode != 0
        assert bench.state() in ("configured", "incomplete")
        if bench.state() == "incomplete":
            bench.zonemgr("uninstall", ZONE, "-F")
        assert bench.state() == "configured"


def test_install_makes_a_root(bench: Bench) -> None:
    with bench.step("install", "verify"):
        bench.zonemgr("install", ZONE, *_arguments(bench), timeout_s=bench.subject.brand.install_deadline_s)
        assert bench.state() == "installed"
        _check_files(bench, ZONE)
        assert bench.trace() == ["install", "postinstall"]


def test_ready_and_halt(bench: Bench) -> None:
    with bench.step("ready", "install"):
        bench.zonemgr("ready", ZONE)
        assert bench.state() == "ready"
        assert bench.trace() == READY
        bench.zonemgr("halt", ZONE)
        assert bench.state() == "installed"
        assert bench.trace() == halt("ready")


def test_boot(bench: Bench) -> None:
    with bench.step("boot", "ready"):
        bench.zonemgr("boot", ZONE)
        assert bench.state() == "running"
        assert bench.trace() == BOOT


def test_login_without_the_zones_own_programs(bench: Bench) -> None:
    with bench.step("login", "boot"):
        done = bench.zonemgr("login", "-S", ZONE, "--", "/bin/sh", "-c", "exit 7", check=False)
        if done.returncode in (126, 127):
            pytest.skip("the zone has no /bin/sh")
        assert done.returncode == 7, done.stderr


def test_reboot(bench: Bench) -> None:
    with bench.step("reboot", "boot"):
        bench.zonemgr("reboot", ZONE)
        assert bench.state() == "running"
        again = ["pre_statechange running ready", "post_statechange running ready"]
        boot = ["pre_statechange running boot", "boot", "post_statechange running boot"]
        assert bench.trace() == [*halt("running"), *again, *boot]


def test_shutdown_in_good_order(bench: Bench) -> None:
    with bench.step("shutdown", "boot"):
        bench.zonemgr("shutdown", ZONE, "-t", str(int(bench.demands.timeout_s)), timeout_s=bench.demands.timeout_s + 30)
        assert bench.state() == "installed"
        assert bench.trace() in (halt("running"), halt("shutting_down"), halt("down"))


def test_halt(bench: Bench) -> None:
    with bench.step("halt", "shutdown"):
        bench.zonemgr("boot", ZONE)
        bench.trace()
        bench.zonemgr("halt", ZONE)
        assert bench.state() == "installed"
        assert bench.trace() == halt("running")


def test_a_refusing_hook_stops_the_boot(bench: Bench) -> None:
    with bench.step("refusing hook", "halt"):
        bench.order({READY[0]: "fail"})
        assert bench.zonemgr("boot", ZONE, check=False).returncode == 1
        assert bench.state() == "installed"
        assert "boot" not in bench.trace()


def test_a_failed_boot_is_taken_back(bench: Bench) -> None:
    with bench.step("failed boot", "halt"):
        bench.order({"boot": "fail"})
        assert bench.zonemgr("boot", ZONE, check=False).returncode == 1
        assert bench.state() == "installed"
        trace = bench.trace()
        assert trace[:5] == [*BOOT[:4], "post_statechange running halt"]
        assert "post_statechange installed boot" not in trace


def test_the_hook_after_a_step_may_come_twice(bench: Bench) -> None:
    with bench.step("idempotent hooks", "halt"):
        twice = [line for line in (*BOOT, *halt("running")) if line.startswith("post_statechange")]
        bench.order(dict.fromkeys(twice, "again"))
        bench.zonemgr("boot", ZONE)
        bench.order(dict.fromkeys(twice, "again"))
        bench.zonemgr("halt", ZONE)
        assert bench.state() == "installed"


def test_mount_and_unmount(bench: Bench) -> None:
    with bench.step("mount", "halt"):
        bench.zonemgr("mount", ZONE)
        assert bench.state() == "mounted"
        assert bench.trace() == READY
        bench.zonemgr("unmount", ZONE)
        assert bench.state() == "installed"
        _check_files(bench, ZONE)


def test_a_clone_is_a_zone_of_its_own(bench: Bench) -> None:
    with bench.step("clone", "halt"):
        _need_verb(bench, "clone")
        if bench.subject.brand.mandatory_label:
            pytest.skip("two zones cannot have one label")
        bench.zonemgr("clone", ZONE, "copy", timeout_s=bench.subject.brand.install_deadline_s)
        assert bench.states() == {ZONE: "installed", "copy": "installed"}
        own = ["clone"] if bench.subject.brand.overrides("clone") else []
        assert bench.trace() == [*own, "unconfigure", "postclone"]
        _check_files(bench, "copy")
        bench.zonemgr("boot", ZONE)
        bench.zonemgr("boot", "copy")
        assert bench.states() == {ZONE: "running", "copy": "running"}
        bench.zonemgr("halt", ZONE)
        bench.zonemgr("halt", "copy")
        bench.zonemgr("uninstall", "copy", "-F")
        bench.zonemgr("delete", "copy", "-F")
        assert bench.states() == {ZONE: "installed"}


def test_detach_and_attach(bench: Bench) -> None:
    with bench.step("detach and attach", "halt"):
        _need_verb(bench, "detach")
        _need_verb(bench, "attach")
        bench.zonemgr("detach", ZONE)
        assert bench.state() == "configured"
        assert bench.trace() == ["predetach", "detach"]
        assert (bench.zonepath() / "root").is_dir()
        bench.zonemgr("attach", ZONE)
        assert bench.state() == "installed"
        assert bench.trace() == ["attach", "postattach"]
        bench.zonemgr("boot", ZONE)
        bench.zonemgr("halt", ZONE)


def test_uninstall_leaves_the_configuration_only(bench: Bench) -> None:
    with bench.step("uninstall", "install"):
        bench.zonemgr("uninstall", ZONE, "-F", timeout_s=bench.subject.brand.uninstall_deadline_s)
        assert bench.state() == "configured"
        assert bench.trace() == ["preuninstall", "uninstall"]
        assert not bench.zonepath().exists()
        bench.zonemgr("delete", ZONE, "-F")


def test_nothing_is_left_on_the_host(bench: Bench) -> None:
    with bench.step("nothing left", "uninstall"):
        assert bench.states() == {}
        assert bench.mounts() == []
        assert bench.cgroups() == []
        assert bench.zonemgr("fsck").stdout == ""


def _arguments(bench: Bench) -> list[str]:
    return bench.filled(bench.demands.install)


def _need_verb(bench: Bench, verb: str) -> None:
    if not bench.has_verb(verb):
        pytest.skip(f"this zonemgr has no {verb}")


def _check_files(bench: Bench, zonename: str) -> None:
    """The zonepath is closed to others, the root is root's own, and nothing stayed mounted."""
    zonepath = bench.zonepath(zonename)
    status, root = os.lstat(zonepath), os.lstat(zonepath / "root")
    assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (0, 0o700)
    assert stat.S_ISDIR(root.st_mode)
    assert stat.S_IMODE(root.st_mode) == 0o755
    assert bench.mounts() == []
