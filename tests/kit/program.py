"""The program run inside the test's own process: fast enough for a hundred wrong command lines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.kit import answers
from zonemgr.cli.main import program, run
from zonemgr.cli.output import Session


class Answer(NamedTuple):
    """What a run of the program left behind."""

    code: int
    out: str
    err: str


Zonemgr = Callable[..., Answer]


def caller(root: Path, capsys: pytest.CaptureFixture[str]) -> Zonemgr:
    """Calls the program with some words, on the instance below ``root``.  It must not show a traceback."""

    def call(*words: str) -> Answer:
        with pytest.raises(SystemExit) as ended:
            run(program, ["--root", str(root), *words], Session())
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        code = int(ended.value.code or 0)
        answers.check(words, code, captured.out)
        return Answer(code, captured.out, captured.err)

    return call
