"""Proves a brand: ``pytest -p zonemgr.brandkit.conformance --brand NAME`` (as root, on a host that can run zones).

A pytest plugin for authors of brands, wherever their brand lives: it needs an installed zonemgr and nothing of its
sources.  It takes a real zone of the brand through its whole life, in an instance of zonemgr of its own below
/var/tmp, watches the brand's hooks on the way, and writes a JSON report.  What it runs is ``conformance_suite``; tests
of the working directory are not run.

What a brand needs for that can stand in ``conformance.toml`` beside its ``brand.py``: ``prepare`` (words of a command
that is run first), ``install`` (arguments of install), ``config`` (commands of ``zonemgr config``) and ``timeout_s``.
In all of them ``{data}`` is the brand's folder and ``{work}`` an empty folder for the run.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from zonemgr.brandkit import conformance_bench
from zonemgr.brandkit.conformance_bench import Bench, Demands
from zonemgr.errors import ZoneError

_BENCH = pytest.StashKey[Bench]()
_PLACE = pytest.StashKey[Path]()
_SUITE = Path(__file__).with_name("conformance_suite.py")


def pytest_addoption(parser: pytest.Parser) -> None:
    """What an author may say on the command line."""
    group = parser.getgroup("zonemgr", "conformance of a brand of zones")
    group.addoption("--brand", metavar="NAME", help="the brand to prove")
    group.addoption("--brand-folder", metavar="DIR", help="where it is, when it is not installed")
    group.addoption(
        "--brand-argument", metavar="WORD", action="append", default=[], help="an argument of install (repeat)"
    )
    group.addoption(
        "--brand-config", metavar="COMMAND", action="append", default=[], help="a command of config (repeat)"
    )
    group.addoption("--conformance-report", metavar="FILE", help="default: conformance-NAME.json, here")


def pytest_configure(config: pytest.Config) -> None:
    """Prepare the run, and have our suite collected instead of whatever is in the working directory."""
    name, folder = config.getoption("--brand"), config.getoption("--brand-folder")
    if not name and not folder:
        raise pytest.UsageError("--brand NAME says which brand is to be proved")
    if os.geteuid() != 0:
        raise pytest.UsageError("proving a brand takes root: it runs zones")
    try:
        given = Path(folder).resolve(strict=True) if folder else None
        subject = conformance_bench.find(name or (given.name if given else ""), given)
        demands = Demands.of(subject.folder).plus(
            config.getoption("--brand-argument"), config.getoption("--brand-config")
        )
    except (ZoneError, OSError) as error:
        raise pytest.UsageError(str(error)) from None
    report = config.getoption("--conformance-report") or f"conformance-{subject.name}.json"
    config.stash[_BENCH] = Bench(subject, demands, Path(report).absolute())
    # A copy: what lies around the installed file (a conftest.py of a checkout, say) is not to have a part in this.
    place = config.stash[_PLACE] = Path(tempfile.mkdtemp(prefix="zonemgr-conformance-"))
    config.args[:] = [str(shutil.copy(_SUITE, place / "test_conformance.py"))]


@pytest.fixture(scope="session")
def bench(pytestconfig: pytest.Config) -> Iterator[Bench]:
    """The instance in which the brand is proved; what is left of it goes at the end."""
    bench = pytestconfig.stash[_BENCH]
    bench.open()
    yield bench
    bench.close()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The result, and loudly what was not proved."""
    bench = config.stash.get(_BENCH, None)
    if bench is None or not bench.steps:
        return
    terminalreporter.section(f"conformance of brand {bench.subject.name}: {bench.result.upper()}")
    for step in bench.steps:
        if step.result != "passed":
            terminalreporter.line(f"{step.result.upper()}: {step.name}: {step.why}")
    terminalreporter.line(f"report: {bench.report}")


def pytest_unconfigure(config: pytest.Config) -> None:
    """Write the report, also of a run that was interrupted."""
    bench = config.stash.get(_BENCH, None)
    if bench is not None and bench.steps:
        bench.write_report()
    if _PLACE in config.stash:
        shutil.rmtree(config.stash[_PLACE], ignore_errors=True)
