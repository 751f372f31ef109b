"""Which words of a login are ours and which are the zone's."""

from __future__ import annotations

import click
import pytest

from zonemgr.cli import main
from zonemgr.cli.login import LoginCommand


def split(line: str) -> tuple[list[str], list[str] | None]:
    command = main.load("login")
    assert isinstance(command, LoginCommand)
    return command.split(click.Context(command), line.split())


@pytest.mark.parametrize(
    ("line", "ours", "theirs"),
    [
        ("web", "web", None),
        ("web -- ls -l", "web", "ls -l"),
        ("web ls -l", "web", "ls -l"),
        ("-l joe web ls --json", "-l joe web", "ls --json"),
        ("web -l joe ls -n", "web -l joe", "ls -n"),
        ("web -ljoe ls", "web -ljoe", "ls"),
        ("web -Ql joe ls", "web -Ql joe", "ls"),
        ("web --user joe --json ls", "web --user joe --json", "ls"),
        ("web --user=joe ls", "web --user=joe", "ls"),
        ("--root /r web -e x", "--root /r web -e x", None),
        ("-n web - x", "-n web", "- x"),
        ("web -- -- x", "web", "-- x"),
        ("web --", "web", ""),
    ],
)
def test_the_zones_words_begin_after_the_dashes_or_at_the_second_word(
    line: str, ours: str, theirs: str | None
) -> None:
    assert split(line) == (ours.split(), None if theirs is None else theirs.split())
