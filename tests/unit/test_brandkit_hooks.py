"""Hooks run apart, in time, and are heard."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from zonemgr.brandkit import hooks
from zonemgr.brandkit.base import Brand, NotCompleted, ZoneInfo
from zonemgr.brandkit.hooks import HookError, HookExit
from zonemgr.brandkit.reports import Report, report
from zonemgr.errors import BrandError, UsageError
from zonemgr.model.zone import Zone

SOON_S = 20.0


def _run(
    call: Callable[[], int | None], deadline_s: float = SOON_S, zone: ZoneInfo | None = None
) -> tuple[int, list[str]]:
    heard: list[str] = []
    status = hooks.run_hook(call, name="the hook", deadline_s=deadline_s, say=heard.append, zone=zone)
    return status, heard


def _raise(error: BaseException) -> Callable[[], int | None]:
    def call() -> int | None:
        raise error

    return call


def test_what_a_hook_prints_is_heard_line_by_line() -> None:
    def call() -> None:
        print("one")
        sys.stderr.write("two\nthree")
        sys.stdout.flush()
        os.write(1, b"\nfour without an end")

    assert _run(call) == (0, ["one", "two", "three", "four without an end"])


def test_what_is_for_a_bar_is_not_heard() -> None:
    def call() -> None:
        print("begun")
        report("making things", 3, 7)
        print("\x1fnonsense")
        print("done")

    heard: list[str] = []
    reported: list[Report] = []
    hooks.run_hook(call, name="the hook", deadline_s=SOON_S, say=heard.append, reported=reported.append)
    assert heard == ["begun", "done"]
    assert reported == [Report("making things", 3, 7), Report("", 0, 0)]


def test_output_is_heard_while_the_hook_runs(tmp_path: Path) -> None:
    fifo = tmp_path / "go"
    os.mkfifo(fifo)

    def call() -> None:
        print("first")
        fifo.read_bytes()  # comes only after the first line was heard
        print("second")

    heard: list[str] = []

    def say(line: str) -> None:
        heard.append(line)
        if line == "first":
            fifo.write_bytes(b"x")

    assert hooks.run_hook(call, name="the hook", deadline_s=SOON_S, say=say) == 0
    assert heard == ["first", "second"]


def test_long_lines_are_cut_and_foreign_bytes_survive() -> None:
    def call() -> None:
        os.write(1, b"x" * 2500 + b"\n\xff\xfe\n")

    _status, heard = _run(call)
    assert [len(line) for line in heard[:3]] == [1023, 1023, 454]
    assert heard[3] == "\ufffd\ufffd"


@pytest.mark.parametrize(
    ("result", "status"), [(None, 0), (0, 0), (1, 1), (253, 253), (254, 254), (255, 255), (True, 1)]
)
def test_the_exit_status_is_what_the_hook_returns(result: int | None, status: int) -> None:
    assert _run(lambda: result)[0] == status


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UsageError("no such option: {x}", x="-q"), HookExit.USAGE, "no such option: -q"),
        (NotCompleted("disk full"), HookExit.NOT_COMPLETED, "disk full"),
        (BrandError("cannot"), HookExit.FATAL, "cannot"),
        (SystemExit(7), 7, None),
        (SystemExit("words"), 1, None),
        (
            FileNotFoundError(2, "No such file or directory", "/x"),
            HookExit.FATAL,
            "the hook: /x: No such file",
        ),
        (ValueError("two\nlines"), HookExit.FATAL, "the hook: ValueError: two lines ("),
        (KeyboardInterrupt(), HookExit.FATAL, "the hook: KeyboardInterrupt ("),
    ],
)
def test_an_exception_is_one_line_and_a_status(error: BaseException, status: int, line: str | None) -> None:
    found, heard = _run(_raise(error))
    assert found == status
    assert len(heard) == (line is not None)
    assert line is None or heard[0].startswith(line)


def test_a_hook_that_hangs_is_killed_with_its_children(tmp_path: Path) -> None:
    pids = tmp_path / "pids"

    def call() -> None:
        child = os.fork()
        if child == 0:
            signal.pause()
        pids.write_text(str(child))
        print("hanging")
        signal.pause()

    with pytest.raises(HookError, match=r"^the hook did not end within 0.5 seconds and was killed$"):
        _run(call, deadline_s=0.5)
    pid = int(pids.read_text())
    deadline = time.monotonic() + SOON_S
    while Path(f"/proc/{pid}/stat").exists() and Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z":
        assert time.monotonic() < deadline


def test_a_grandchild_that_keeps_the_output_open_is_not_waited_for(tmp_path: Path) -> None:
    pids = tmp_path / "pid"

    def call() -> None:
        child = os.fork()
        if child == 0:
            signal.pause()
        pids.write_text(str(child))
        print("done")

    assert _run(call) == (0, ["done"])
    os.kill(int(pids.read_text()), signal.SIGKILL)


def test_a_hook_that_dies_of_a_signal_is_named_with_it() -> None:
    with pytest.raises(HookError, match=r"^the hook unexpectedly terminated due to signal 6$"):
        _run(lambda: os.kill(os.getpid(), signal.SIGABRT))


def test_exit_status_4_is_a_failed_exec() -> None:
    with pytest.raises(HookError, match=r"^failed to exec the hook$"):
        _run(lambda: 4)


def test_a_hook_has_a_clean_world_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SECRET", "leak")
    reading_fd, writing_fd = os.pipe()
    os.set_inheritable(writing_fd, True)

    def call() -> None:
        print(sorted(os.environ), os.environ.get("ZONEMGR_IN_TRANSITION"))
        print(
            sorted(int(name) for name in os.listdir("/proc/self/fd"))[:3],
            os.path.exists(f"/proc/self/fd/{writing_fd}"),
        )
        print(os.getcwd(), os.getsid(0) == os.getpid(), repr(sys.stdin.read()))
        mask = os.umask(0)
        print(oct(mask))

    _status, heard = _run(call, zone=ZoneInfo.of(Zone("web", "/zones/web")))
    os.close(reading_fd)
    os.close(writing_fd)
    assert heard == [
        "['HOME', 'LANG', 'PATH', 'ZONEMGR_IN_TRANSITION'] web",
        "[0, 1, 2] False",
        "/ True ''",
        "0o22",
    ]


def test_a_say_that_raises_ends_the_hook() -> None:
    def call() -> None:
        print(os.getpid())
        signal.pause()

    heard: list[int] = []

    def say(line: str) -> None:
        heard.append(int(line))
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        hooks.run_hook(call, name="the hook", deadline_s=SOON_S, say=say)
    assert not Path(f"/proc/{heard[0]}").exists()


def test_a_hook_the_brand_does_not_have_costs_no_process(tmp_path: Path) -> None:
    class Tiny(Brand):
        name = "tiny"

        def boot(self, zone: ZoneInfo) -> int | None:
            print(f"booting {zone.zonename}")
            return 3

    info = ZoneInfo.of(Zone("web", "/zones/web"))
    heard: list[str] = []
    brand = Tiny(tmp_path)
    assert hooks.run_brand_hook(brand, "halt", info, deadline_s=SOON_S, say=heard.append) == 0
    assert not heard
    assert hooks.run_brand_hook(brand, "boot", info, deadline_s=SOON_S, say=heard.append) == 3
    assert heard == ["booting web"]
