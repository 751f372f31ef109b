"""What a user of an admin resource may ask for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zonemgr.cli.delegated import verb_words
from zonemgr.errors import StateError, UsageError
from zonemgr.model.delegation import SUFFICIENT, VERBS, command, demand

MANAGE = frozenset({"manage"})
LOGIN = frozenset({"login"})


@pytest.mark.parametrize(
    ("words", "run"),
    [
        (["boot", "web"], ["boot", "web"]),
        (["boot", "web", "--", "-s", "-m", "x"], ["boot", "web", "--", "-s", "-m", "x"]),
        (["shutdown", "-r", "web"], ["shutdown", "-r", "web"]),
        (["login", "-l", "bob", "web"], ["login", "-l", "bob", "web"]),
        (["login", "web", "ls", "-l", "--root"], ["login", "web", "--", "ls", "-l", "--root"]),
        (["clone", "src", "new"], ["clone", "src", "new"]),
    ],
)
def test_who_manages_gets_the_verb_with_its_own_options(words: list[str], run: list[str]) -> None:
    assert command(demand(words), MANAGE, terminal=False) == run


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["install", "web"],
        ["config", "web"],
        ["boot"],
        ["boot", "web", "db"],
        ["boot", "--root", "/x", "web"],
        ["boot", "--root=/x", "web"],
        ["boot", "-R", "/x", "web"],
        ["halt", "web", "--", "x"],
        ["halt", "../web"],
        ["halt", "global"],
        ["halt", "we\0b"],
        ["login", "-x", "web"],
        ["login", "-l"],
        ["clone", "-m", "copy", "src", "new"],
        ["clone", "src"],
        ["boot", "web", "--", *["x"] * 100],
        ["boot", "web", "--", "x" * 5000],
    ],
)
def test_everything_else_is_refused(words: list[str]) -> None:
    with pytest.raises(UsageError):
        demand(words)


def test_a_right_to_log_in_is_one_to_be_asked_for_a_password() -> None:
    assert command(demand(["login", "web"]), LOGIN, terminal=True) == ["login", "-t", "web", "--", "login"]
    assert command(demand(["login", "-l", "bob", "web"]), LOGIN, terminal=True)[-2:] == ["login", "bob"]
    for words in (["login", "web", "id"], ["login", "-S", "web"]):
        with pytest.raises(StateError):
            command(demand(words), LOGIN, terminal=True)
    with pytest.raises(StateError):
        command(demand(["login", "web"]), LOGIN, terminal=False)
    with pytest.raises(UsageError):
        command(demand(["login", "-l", "-f", "web"]), LOGIN, terminal=True)


def test_a_clone_takes_rights_on_both_zones() -> None:
    assert demand(["clone", "src", "new"]).needs == (("new", "manage"), ("src", "clonefrom"))
    assert {right for verb in VERBS.values() for right in (verb.right, "clonefrom")} == set(SUFFICIENT)


@given(st.lists(st.text(max_size=8) | st.sampled_from(["-l", "--", "web", "-t", "--root", *VERBS]), max_size=6))
def test_what_passes_has_the_zone_where_the_program_looks_for_it(words: list[str]) -> None:
    try:
        asked = demand(words)
    except UsageError:
        return
    run = command(asked, MANAGE, terminal=True)
    assert run[0] == asked.verb
    own = run[: run.index("--")] if "--" in run[1 + len(asked.options) :] else run
    assert "--root" not in [word for word in own[1:] if word not in asked.options]


def test_only_these_verbs_look_for_somebody_to_do_them() -> None:
    assert verb_words(["--root", "/x", "-q", "boot", "web"]) == ("/x", ["boot", "web"])
    for words in (["list"], ["--json", "boot", "web"], ["boot", "--help"], [], ["--root"]):
        assert verb_words(words) is None
