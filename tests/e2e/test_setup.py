"""contrib/setup in /usr/local: an empty one of the test's own covers the host's."""

from __future__ import annotations

import configparser
import importlib
import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.kit.instance import CHECKOUT

pytestmark = pytest.mark.requires("root", "mount")


def commands() -> list[str]:
    """The commands of the package."""
    parser = configparser.ConfigParser()
    parser.read(CHECKOUT / "setup.cfg")
    return [line.split()[0] for line in parser["options.entry_points"]["console_scripts"].strip().splitlines()]


def in_usr_local(script: str) -> str:
    """What a script prints that has /usr/local to itself and runs where contrib is."""
    alone = 'mount -t tmpfs none /usr/local && mkdir -p /usr/local/bin && cd "$0" && eval "$1"'
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-ec", alone, str(CHECKOUT), script],
        env={**os.environ, "PATH": "/usr/local/bin:" + os.environ["PATH"]},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return done.stdout


def test_commands_pages_and_completions_are_found() -> None:
    said = in_usr_local("""
        contrib/setup --only-link
        ls /usr/local/bin
        echo --
        zonemgr --version; zonename
        find /usr/local -type l ! -exec test -e {} \\; -print
        cd /usr/local/share; echo man/man*/* */completions/* */site-functions/* */vendor_completions.d/*
    """)
    found, _, rest = said.partition("--\n")
    version, zone, shared = rest.splitlines()
    assert set(found.split()) == set(commands())
    assert (version.split()[0], zone) == ("zonemgr", "global")
    pages = {f"man/man{page.suffix[1:]}/{page.name}" for page in (CHECKOUT / "contrib/man").glob("*.[58]")}
    completions = {
        "bash-completion/completions/zonemgr",
        "zsh/site-functions/_zonemgr",
        "fish/vendor_completions.d/zonemgr.fish",
    }
    assert set(shared.split()) == pages | completions


@pytest.mark.parametrize("command", sorted(commands()))
def test_a_command_begins_at_something_that_is_there(command: str) -> None:
    """contrib/setup writes shorter ones than pip does, of its own."""
    text = (CHECKOUT / ".venv/bin" / command).read_text()
    (module, name), *more = re.findall(r"^from (\S+) import (\w+)$", text, re.MULTILINE)
    assert more == [] and callable(getattr(importlib.import_module(module), name))


def test_what_is_not_ours_stays_and_is_named() -> None:
    said = in_usr_local("""
        mkdir -p /usr/local/share/man/man8/zlogin.8
        echo other >/usr/local/bin/zlogin
        ln -s /nonexistent /usr/local/bin/zonecfg
        echo other >/usr/local/share/fish
        ln -s /elsewhere/.venv/bin/zonestat /usr/local/bin/zonestat
        ln -s "$PWD/contrib/man/gone.8" /usr/local/share/man/man8/gone.8
        contrib/setup --only-link
        cat /usr/local/bin/zlogin /usr/local/share/fish; readlink /usr/local/bin/zonecfg /usr/local/bin/zonestat
        ls /usr/local/share/man/man8 | grep -c gone || true
    """)
    *told, zlogin, fish, zonecfg, zonestat, stale = said.splitlines()
    assert (zlogin, fish, zonecfg, stale) == ("other", "other", "/nonexistent", "0")
    assert Path(zonestat) == CHECKOUT / ".venv/bin/zonestat"  # a link of an earlier checkout
    places = ("bin/zonecfg", "bin/zlogin", "share/man/man8/zlogin.8", "share/fish/vendor_completions.d/zonemgr.fish")
    assert [line.split()[1] for line in told] == [f"/usr/local/{place}" for place in places]


def test_nothing_is_linked_before_there_is_something(tmp_path: Path) -> None:
    (tmp_path / "contrib").mkdir()
    (tmp_path / "contrib/setup").write_text((CHECKOUT / "contrib/setup").read_text())
    done = subprocess.run(
        ["bash", str(tmp_path / "contrib/setup"), "--only-link"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1 and "contrib/setup comes first" in done.stderr
