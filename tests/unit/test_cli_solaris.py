"""The Solaris syntax, word for word."""

from __future__ import annotations

import pytest

from zonemgr.cli.solaris import zlogin, zoneadm_words, zonecfg_words
from zonemgr.errors import UsageError


def known(uuid: str) -> str | None:
    return {"u-1": "db"}.get(uuid)


@pytest.mark.parametrize(
    ("line", "meaning"),
    [
        ("list -cv", "list -cv"),
        ("-z web list -p", "list -p web"),
        ("-z web boot", "boot web"),
        ("-z web boot -f -- -m verbose", "boot web -f -- -m verbose"),
        ("-z web boot -s", "boot web -- -s"),
        ("-z web boot -s -- -v", "boot web -- -s -v"),
        ("-z web shutdown -r -- -s", "shutdown web -r -- -s"),
        ("-u u-1 halt", "halt db"),
        ("-z web -u u-2 halt", "halt web"),
        ("-z web uninstall -F", "uninstall web -F"),
    ],
)
def test_zoneadm(line: str, meaning: str) -> None:
    assert zoneadm_words(line.split(), known) == meaning.split()


@pytest.mark.parametrize("line", ["help", "-?", "", "-z web"])
def test_zoneadm_helps(line: str) -> None:
    assert zoneadm_words(line.split(), known) is None


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("boot", "no zone specified"),
        ("-z web fly", "fly: unknown subcommand"),
        ("-x", "option -x not recognized"),
        ("-R /a list", "-R: alternate roots"),
    ],
)
def test_zoneadm_refuses(line: str, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        zoneadm_words(line.split(), known)


def test_zonecfg() -> None:
    assert zonecfg_words(["-z", "web", "set autoboot=true"]) == ["config", "web", "set autoboot=true"]
    assert zonecfg_words(["-z", "web", "-f", "x"]) == ["config", "web", "-f", "x"]
    with pytest.raises(UsageError, match="no zone specified"):
        zonecfg_words(["info"])


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("web", ["login", "web"]),
        ("-l joe web ls -l /", ["login", "-l", "joe", "web", "--", "/bin/sh", "-c", "ls -l /"]),
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
        ("-C web ls", "Commands may not be specified for console login."),
        ("-d web", "-d may only be specified for console login"),
        ("", "no zone specified"),
    ],
)
def test_zlogin_refuses(line: str, text: str) -> None:
    with pytest.raises(UsageError) as refusal:
        zlogin(line.split())
    assert refusal.value.text == text
