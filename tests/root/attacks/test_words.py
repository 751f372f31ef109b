"""What a zone says: it reaches operators as text and in bounds, whatever it says and however much."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.instance import Instance
from zonemgr.store import instance as instances

pytestmark = pytest.mark.requires("root", "userns", "mount", "net", "cgroup")

# A title, a cleared screen, a C1 control in two encodings, and what an old terminal answers as if it were typed.
ESCAPES = r"\033]0;pwned\007\033[2J\302\2332J\233\033P$q\033\\\r\033[21t"
SUPERVISOR_MAX_KB = 120_000


def supervisor_memory_kb(instance: Instance) -> int:
    """The largest resident set that the zone's supervisor and its workers ever had."""
    largest = 0
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            if (folder / "comm").read_text().strip() in ("zone-supervisor", "zone-worker"):
                held = [os.readlink(entry) for entry in (folder / "fd").iterdir()]
                if any(link.startswith(str(instance.layout.run)) for link in held):
                    lines = (folder / "status").read_text().splitlines()
                    largest = max(largest, *(int(line.split()[1]) for line in lines if line.startswith("VmHWM")))
        except OSError:
            continue
    return largest


@pytest.fixture(autouse=True)
def poweroff(web: Instance) -> Iterator[None]:
    """The zone's own poweroff, which ``shutdown`` runs, is the brand's again after each test."""
    path = web.layout.zonepath("web") / "root/usr/local/sbin/poweroff"
    target = os.readlink(path)
    yield
    path.unlink()
    path.symlink_to(target)


def replace_shutdown(instance: Instance, script: str) -> None:
    """The zone's own poweroff becomes something else."""
    path = instance.layout.zonepath("web") / "root/usr/local/sbin/poweroff"
    path.unlink()
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.mark.attack("escape sequences in messages and logs")
def test_escape_sequences_do_not_reach_the_operators_terminal(web: Instance) -> None:
    replace_shutdown(web, f"printf '{ESCAPES}\\nsecond line\\n'; exit 1")
    done = web.run("shutdown", "web", check=1)
    said = done.stderr.encode("utf-8", "surrogateescape")
    assert b"second line" in said
    assert not [byte for byte in said if byte < 32 and byte not in b"\n\t"]
    assert b"\xc2\x9b" not in said


@pytest.mark.attack("exhausting the manager", "CVE-2022-31030", "CVE-2022-1708")
def test_a_flood_of_output_is_cut_short_and_costs_no_memory(web: Instance) -> None:
    """CVE-2022-31030: a command that the manager runs in the zone prints for ever."""
    replace_shutdown(web, "head -c 60000000 /dev/zero | tr '\\\\0' 'x'; yes | head -c 20000000; exit 1")
    done = web.run("shutdown", "web", check=1)
    assert len(done.stderr.splitlines()) < 1000
    assert "more output of the command is dropped" in done.stderr
    assert 0 < supervisor_memory_kb(web) < SUPERVISOR_MAX_KB
    assert web.state("web") == "running"


@pytest.mark.attack("exhausting the manager", "CVE-2022-31030")
def test_a_flood_on_the_console_costs_no_memory_and_a_bounded_log(web: Instance) -> None:
    web.login("web", "sh", "-c", "head -c 8000000 /dev/zero | tr '\\0' 'x' >/dev/console")
    folder = web.layout.zone_log("web")
    assert sum(path.stat().st_size for path in folder.glob("console.log*")) < 4_000_000
    assert 0 < supervisor_memory_kb(web) < SUPERVISOR_MAX_KB


@pytest.mark.attack("escape sequences in messages and logs")
def test_names_of_processes_and_hosts_do_not_reach_the_operator_raw(web: Instance) -> None:
    web.login("web", "sh", "-c", f"printf '{ESCAPES}' > /proc/self/comm; hostname 'evil'")
    done = web.run("list", "-cv")
    assert "\x1b" not in done.stdout + done.stderr
    assert web.state("web") == "running"


@pytest.mark.parametrize("text", ["a\nb", "a\x1b[2J", "-i /evil\n-s", "x" * 300, "\x00"])
@pytest.mark.attack("escape sequences in messages and logs")
def test_boot_arguments_and_names_with_control_characters_are_refused_or_shown_plain(
    web: Instance, text: str
) -> None:
    if "\0" not in text:
        done = web.run("boot", "web", "--", text, check=False)
        assert "\x1b" not in done.stderr
    for key in ("hostname", "bootargs"):
        path = web.layout.config("web")
        kept = path.read_text()
        escaped = "".join(f"\\u{ord(character):04x}" for character in text)
        try:
            path.write_text(kept + f'\n{key} = "{escaped}"\n' if "[[" not in kept else f'{key} = "{escaped}"\n' + kept)
            said = web.run("verify", "web", check=False)
            assert said.returncode in (0, 1)
            assert "\x1b" not in said.stderr
            if key == "hostname":
                assert said.returncode == 1
        finally:
            path.write_text(kept)


def test_the_records_name_what_runs_and_not_what_the_zone_says_it_is(web: Instance) -> None:
    found = instances.read(web.layout, "web")
    assert found is not None and found.init is not None
    web.login("web", "sh", "-c", "hostname liar; printf liar > /etc/hostname")
    assert web.json("list", "web")[0]["zonename"] == "web"
    assert found.init.alive


def test_a_command_that_prints_for_ever_is_ended_in_time(web: Instance) -> None:
    web.layout.settings.write_text("hook-s = 2\n")
    try:
        replace_shutdown(web, "exec yes")
        done = web.run("shutdown", "web", check=1, timeout=60)
        assert "did not end within 2 seconds" in done.stderr
    finally:
        web.layout.settings.unlink()
    assert web.state("web") == "running"
