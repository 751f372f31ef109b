"""Boot argument filtering (reference, section 2.4)."""

from __future__ import annotations

import pytest

from zonemgr.errors import UsageError
from zonemgr.model.bootargs import BootArguments, filter_bootargs, join


def test_the_request_replaces_the_property_and_never_merges() -> None:
    assert filter_bootargs("-s", "-m verbose").words == ("-s",)
    assert filter_bootargs(" \t", "-m verbose").words == ("-m", "verbose")
    assert filter_bootargs("", "") == BootArguments()


def test_a_leading_boot_file_is_dropped_without_a_word() -> None:
    found = filter_bootargs("kernel/unix -s", "")
    assert (found.arguments, found.bad, found.messages) == ("-s", (), ())


@pytest.mark.parametrize(
    ("text", "init", "words", "bad"),
    [
        ("-i /sbin/other", "/sbin/other", "", ""),
        ("-i /a -i /b", "/b", "", ""),
        ("-i/a", "/a", "", ""),
        ("-f -s", None, "-s", ""),
        ("-fs", None, "-s", ""),
        ("-mverbose", None, "-m verbose", ""),
        ("-sm\tverbose", None, "-s -m verbose", ""),
        ("-x -s", None, "-x -s", "-x"),
        ("-xy", None, "-x -y", "-x -y"),
        ("-s -i", None, "-s -i", "-i"),
        ("-m", None, "-m", "-m"),
        ("-i -s", "-s", "", ""),
        ("-s one two", None, "-s", "one two"),
        ("-s -- -x", None, "-s", "-x"),
        ("-s - x", None, "-s", "- x"),
        ("-q one", None, "-q", "-q one"),
        ("", None, "", ""),
    ],
)
def test_options(text: str, init: str | None, words: str, bad: str) -> None:
    found = filter_bootargs(text, "")
    assert (found.init, found.arguments, " ".join(found.bad)) == (init, words, bad)
    assert found.invalid == bool(bad)


def test_left_over_words_are_told_to_the_requester() -> None:
    found = filter_bootargs("-x one", "")
    assert found.messages == ("WARNING: Unused or invalid boot arguments `-x one'.",)


def test_a_bad_option_alone_is_only_told_on_the_console() -> None:
    found = filter_bootargs("-x", "")
    assert found.messages == ()
    assert found.invalid


def test_a_text_that_is_too_long_boots_the_zone_without_arguments() -> None:
    assert not filter_bootargs("-m " + "a" * 252, "").invalid
    found = filter_bootargs("-m " + "a" * 253, "")
    assert found == BootArguments(messages=("boot argument string too long",), invalid=True)


def test_a_client_refuses_too_many_words() -> None:
    assert join(["-m", "verbose"]) == "-m verbose"
    with pytest.raises(UsageError, match="Boot argument list too long"):
        join(["a" * 128, "b" * 128])
