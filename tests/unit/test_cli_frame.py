"""The frame: global options on both sides of the verb, exit statuses, and what help costs."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest

from zonemgr.cli import main
from zonemgr.cli.output import Session, columns, printable
from zonemgr.errors import InternalError, NoSuchZoneError, PlatformError, UsageError, ZoneError


@click.command(cls=main.TailCommand)
@click.argument("words", nargs=-1)
@click.option("-s", "--short", is_flag=True)
@click.pass_obj
def probe(session: Session, words: tuple[str, ...], short: bool) -> int:
    """Show what arrived."""
    session.data(repr((words, short, main.tail(), session.root, session.json, session.quiet)))
    if words[:1] == ("zone",):
        with session.about("web"):
            raise _FAULTS[words[1]]
    if words[:1] == ("fail",):
        raise _FAULTS[words[1]]
    return 7 if words == ("seven",) else 0


_FAULTS: dict[str, Exception] = {
    "zone": PlatformError("cannot do it"),
    "usage": UsageError("not so"),
    "unknown": NoSuchZoneError("web"),
    "internal": InternalError("bad"),
    "bug": KeyError("bug"),
    "system": FileNotFoundError(2, "No such file or directory", "/x"),
    "interrupt": KeyboardInterrupt(),  # type: ignore[dict-item]
}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Runner:
    monkeypatch.setattr(main, "load", lambda name: main.complete(probe, name, main.VERBS["boot"]))
    return Runner(capsys)


class Runner:
    """Runs the program in this process: (status, stdout, stderr)."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *words: str) -> tuple[object, str, str]:
        with pytest.raises(SystemExit) as end:
            main.run(main.program, words, Session())
        out, err = self._capsys.readouterr()
        return end.value.code, out.strip(), err.strip()


@pytest.mark.parametrize(
    "words",
    [
        ("--root", "/r", "--json", "-q", "boot", "a", "-s"),
        ("boot", "--json", "a", "-s", "--root=/r", "-q"),
        ("--json", "boot", "-q", "-s", "a", "--root", "/r"),
    ],
)
def test_the_global_options_stand_before_or_after_the_verb(run: Runner, words: tuple[str, ...]) -> None:
    assert run(*words) == (0, "(('a',), True, None, '/r', True, True)", "")


def test_words_after_two_dashes_are_not_parsed(run: Runner) -> None:
    _, out, _ = run("boot", "a", "--", "-s", "--json", "--", "x")
    assert out == "(('a',), False, ('-s', '--json', '--', 'x'), None, False, False)"


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        (("boot", "seven"), 7, ""),
        (("boot", "fail", "zone"), 1, "zonemgr: cannot do it"),
        (("boot", "zone", "zone"), 1, "zonemgr: zone 'web': cannot do it"),
        (("boot", "zone", "unknown"), 1, "zonemgr: web: No such zone configured"),
        (("boot", "fail", "usage"), 2, "zonemgr: not so"),
        (("boot", "fail", "system"), 1, "zonemgr: /x: No such file or directory"),
        (("boot", "fail", "interrupt"), 130, ""),
        (("boot", "--nonsense"), 2, "zonemgr: No such option '--nonsense' (see zonemgr boot --help)"),
        (("bot",), 2, "zonemgr: no such verb: bot (did you mean boot?) (see zonemgr --help)"),
        (
            ("--root", "here", "boot"),
            2,
            "zonemgr: Invalid value for '--root': root path must be absolute (see zonemgr --help)",
        ),
    ],
)
def test_every_end_has_its_status_and_one_line(
    run: Runner, words: tuple[str, ...], status: int, text: str
) -> None:
    code, _, err = run(*words)
    assert (code, err) == (status, text)


@pytest.mark.parametrize("fault", ["internal", "bug"])
def test_only_a_fault_of_ours_shows_a_traceback(run: Runner, fault: str) -> None:
    code, _, err = run("boot", "fail", fault)
    assert code == 3
    assert "Traceback" in err


def test_without_a_verb_the_help_is_a_usage_error(run: Runner) -> None:
    code, out, err = run()
    assert code == 2
    assert "Usage: zonemgr" in err
    assert not out


def test_the_notes_of_later_failures_follow_the_first(capsys: pytest.CaptureFixture[str]) -> None:
    error = ZoneError("cannot bind")
    error.add_note("cannot unmount")
    Session().report(error, "web")
    assert capsys.readouterr().err.splitlines() == [
        "zonemgr: zone 'web': cannot bind",
        "zonemgr: zone 'web':   cannot unmount",
    ]


def test_what_a_zone_says_cannot_steer_the_terminal() -> None:
    assert printable("a\x1b[2Jb\rc\x9b\td") == "a\\x1b[2Jb\\x0dc\\x9b\td"


def test_columns_are_as_wide_as_their_longest_cell() -> None:
    assert columns([("a", "b"), ("long", "c")]) == ["a     b", "long  c"]
    assert columns([]) == []


def test_a_question_nobody_can_answer_is_a_usage_error() -> None:
    session = Session()
    session.confirm("Really", force=True)
    with pytest.raises(UsageError):
        session.confirm("Really", force=False)


def _loaded(*words: str) -> set[str]:
    """The modules that are loaded when the program has run with these words."""
    code = (
        "import sys\nfrom zonemgr.cli.main import main\n"
        f"try:\n    main({list(words)!r})\nexcept SystemExit:\n    pass\n"
        "print('\\n' + '\\n'.join(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    return set(done.stderr.splitlines())


_HEAVY = {"pyroute2", "rich", "asyncio", "pydantic", "tomlkit", "cgroupspy", "pyseccomp", "ctypes"}


def test_help_imports_no_verb() -> None:
    loaded = _loaded("--help")
    verbs = {verb.module for verb in main.VERBS.values()}
    assert not loaded & (verbs | _HEAVY)


@pytest.mark.parametrize("verb", ["boot", "halt", "list", "login", "console", "events", "plan"])
def test_the_help_of_a_verb_loads_nothing_heavy_and_shows_an_example(verb: str) -> None:
    assert not _loaded(verb, "--help") & (_HEAVY - {"ctypes"})
    done = subprocess.run(
        [sys.executable, "-m", "zonemgr", verb, "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert f"Example: {main.VERBS[verb].example}" in done.stdout
    assert "--json" in done.stdout
