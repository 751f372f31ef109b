"""The Solaris syntax, word for word, and what the programs under the old names print and return."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit.instance import CHECKOUT
from zonemgr.cli.solaris import SUBCOMMANDS, Asked, zlogin, zoneadm_words, zonecfg_words
from zonemgr.errors import UsageError, ZoneError
from zonemgr.store.paths import ROOT_VARIABLE

UUID = "6f1c2b0e-1c2d-4e5f-8a9b-0c1d2e3f4a5b"


def known(uuid: str) -> str | None:
    return {UUID: "db"}.get(uuid)


@pytest.mark.parametrize(
    ("line", "meaning"),
    [
        ("list -cv", "list -cv"),
        ("-z web list -p", "list -p web"),
        ("-z web boot", "boot web"),
        ("-z web boot -f -- -m verbose", "boot web -f -- -m verbose"),
        ("-z web boot -s", "boot web -- -s"),
        ("-z web boot -s -- -v", "boot web -- -s -v"),
        ("-z web boot -- -?", "boot web -- -?"),
        ("-z web shutdown -r -- -s", "shutdown web -r -- -s"),
        (f"-u {UUID} halt", "halt db"),
        (f"-u {UUID.upper()} halt", "halt db"),
        (f"-z web -u {UUID.replace('6f', '7f')} halt", "halt web"),
        ("-z web uninstall -F", "uninstall web -F"),
        ("-z web clone -m copy old", "clone -m copy old web"),
        ("-z web mark incomplete", "mark web incomplete"),
        ("-R /tmp -z web mount", "-R /tmp mount web"),
    ],
)
def test_zoneadm(line: str, meaning: str) -> None:
    assert zoneadm_words(line.split(), known) == meaning.split()


@pytest.mark.parametrize(
    ("line", "status", "error"),
    [
        ("help", 2, False),
        ("-?", 2, False),
        ("-z web help", 2, False),
        ("", 2, True),
        ("-z web", 2, True),
        ("-z web fly", 2, True),
        *((f"-z web {verb} -?", 0, False) for verb in SUBCOMMANDS if verb != "help"),
    ],
)
def test_zoneadm_shows_how_it_is_used(line: str, status: int, error: bool) -> None:
    with pytest.raises(Asked) as asked:
        zoneadm_words(line.split(), known)
    assert (asked.value.status, asked.value.error) == (status, error)
    assert any("usage:" in text for text in asked.value.lines)


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("boot", "no zone specified"),
        ("-x", "option -x not recognized"),
        ("-R a list", "root path must be absolute."),
        ("-R /nothing/there list", "root path must be a directory."),
        ("-R /tmp -z web boot", "cannot boot zone in alternate root"),
        ("-u 12 list", "illegal UUID value specified"),
    ],
)
def test_zoneadm_refuses(line: str, text: str) -> None:
    with pytest.raises(ZoneError, match=text):
        zoneadm_words(line.split(), known)


def test_zonecfg() -> None:
    assert zonecfg_words(["-z", "web", "set autoboot=true"], known) == ["config", "web", "set autoboot=true"]
    assert zonecfg_words(["-z", "web", "-f", "x"], known) == ["config", "web", "-f", "x"]
    assert zonecfg_words(["-u", UUID, "info"], known) == ["config", "db", "info"]
    with pytest.raises(Asked) as asked:
        zonecfg_words(["help", "add"], known)
    assert (asked.value.status, asked.value.lines[0]) == (0, "usage: add resource [property=value ...]")
    with pytest.raises(UsageError, match="zonemgr apply"):
        zonecfg_words(["-z", "web", "-r"], known)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("web", ["login", "web"]),
        ("-l joe web ls -l /", ["login", "-l", "joe", "--line", "web", "--", "ls -l /"]),
        ("-C -e x web", ["console", "-e", "x", "web"]),
        ("-Cd web", ["console", "-d", "web"]),
        ("-S -Q web", ["login", "-S", "-Q", "web"]),
    ],
)
def test_zlogin(line: str, words: list[str]) -> None:
    assert zlogin(line.split()).words() == words


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("-C -l joe web", "-l may not be specified for console login"),
        ("-C -n web", "-n may not be specified for console login"),
        ("-C -S web", "-S may not be specified for console login"),
        ("-S -l joe web", "-l may not be specified for failsafe login"),
        ("-C web ls", "Commands may not be specified for console login."),
        ("-d web", "-d may only be specified for console login"),
        ("", "no zone specified"),
    ],
)
def test_zlogin_refuses(line: str, text: str) -> None:
    with pytest.raises(UsageError) as refusal:
        zlogin(line.split())
    assert refusal.value.text == text


@pytest.mark.parametrize(
    ("program", "line", "status", "out", "err"),
    [
        ("zoneadm", "help", 2, "usage:\tzoneadm help", ""),
        ("zoneadm", "-z web boot -?", 0, "usage:\tboot", ""),
        ("zoneadm", "-z web fly", 2, "", "zoneadm: fly: unknown subcommand"),
        ("zoneadm", "-z web boot", 1, "", "zoneadm: web: No such zone configured"),
        ("zoneadm", "-z global halt", 1, "", "zoneadm: zone 'global': halt operation is invalid for the global zone."),
        ("zoneadm", "-z SUNWx halt", 1, "", "halt operation is invalid for zones starting with SUNW."),
        ("zoneadm", "list -p -v", 1, "", "zoneadm: list -p and -v are mutually exclusive."),
        ("zoneadm", "-z web list -c", 2, "", "zoneadm: -c and -i do not go with zone names"),
        ("zoneadm", "list", 0, "global", ""),
        ("zonecfg", "help", 0, "commands: ", ""),
        ("zonecfg", "-?", 2, "usage:\tzonecfg help", ""),
        ("zonecfg", "info", 2, "", "usage:\tzonecfg help"),
        ("zonecfg", "-z web info", 1, "", "zonecfg: web: No such zone configured"),
        ("zlogin", "-C web ls", 2, "", "usage: zlogin"),
        ("zlogin", "web ls", 1, "", "zlogin: zone 'web' unknown"),
        ("zlogin", "-C web", 1, "", "zone 'web' unknown"),
        ("zlogin", "global ls", 1, "", "zlogin: 'zlogin' not applicable to the global zone"),
        ("zonename", "", 0, "global", ""),
        ("zonename", "-t", 0, "shared", ""),
        ("zonename", "-x", 2, "", "usage: zonename [-t]"),
        ("zoneadmd", "", 2, "", "Usage: zoneadmd -z zonename"),
        ("zoneadmd", "-z global", 1, "", "cannot manage the global zone"),
        ("zoneadmd", "-z web", 1, "", "could not manage web: No such zone configured"),
    ],
)
def test_each_program_has_its_texts_and_exit_codes(
    tmp_path: Path, program: str, line: str, status: int, out: str, err: str
) -> None:
    name = {"zlogin": "zlogin_program"}.get(program, program)
    done = subprocess.run(
        [sys.executable, "-c", f"from zonemgr.cli.solaris import {name}; {name}()", *line.split()],
        env={**os.environ, "PYTHONPATH": str(CHECKOUT), ROOT_VARIABLE: str(tmp_path)},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == status, done.stderr
    assert out in done.stdout
    assert err in done.stderr
    assert bool(done.stdout) == bool(out)
