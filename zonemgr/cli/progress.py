"""A bar for work that takes long: on a terminal only, and only where rich is installed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from zonemgr.cli.output import Session

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from zonemgr.brandkit.reports import Report

Tick = Callable[[int], None]


def _wanted(session: Session) -> bool:
    return not session.quiet and not session.json and sys.stderr.isatty()


@contextmanager
def progress(session: Session, title: str, total_bytes: int | None) -> Iterator[Tick]:
    """Yields what is told of every done byte.  ``total_bytes`` None: nobody knows how much there is to do."""
    with _advancing(_wanted(session), title, total_bytes, "DownloadColumn") as tick:
        yield tick


COUNTED_FROM: Final = 8  # with fewer the bar would have gone before it is seen


@contextmanager
def count_down(session: Session, title: str, total: int) -> Iterator[Tick]:
    """Yields what is told of everything done, of so many things."""
    with _advancing(total >= COUNTED_FROM and _wanted(session), title, total, "MofNCompleteColumn") as tick:
        yield tick


@contextmanager
def _advancing(wanted: bool, title: str, total: int | None, measure: str) -> Iterator[Tick]:
    """A bar with what is left and, by the column of rich that is named so, how much is done; or none."""
    bar = _bar(measure, "TimeRemainingColumn") if wanted else None
    if bar is None:
        yield lambda _: None
        return
    with bar:
        task = bar.add_task(title, total=total)
        yield lambda count: bar.advance(task, count)


class Bar:
    """What a hook reports of its work.  It begins with the first report, so that no thread of it is there at a fork."""

    def __init__(self, session: Session) -> None:
        self._wanted = _wanted(session)
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._what = ""

    def show(self, report: Report) -> None:
        """Draw it; what has another name than before is work that begins."""
        if self._wanted and self._progress is None:
            self._progress = _bar("MofNCompleteColumn")
            self._wanted = self._progress is not None
            if self._progress is not None:
                self._progress.start()
        if self._progress is None:
            return
        if self._task is None or report.what != self._what:
            if self._task is not None:
                self._progress.remove_task(self._task)
            self._task, self._what = self._progress.add_task(report.what), report.what
        self._progress.update(self._task, completed=report.done, total=report.total or None)

    def close(self) -> None:
        """The hook has ended."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def _bar(*columns: str) -> Progress | None:
    """Title, bar and these columns of rich's; None where rich is not."""
    try:
        # Optional, and 100 ms: only what takes longer than that is worth a bar.
        from rich import progress
        from rich.console import Console
    except ImportError:
        return None
    title = progress.TextColumn("{task.description}", markup=False)
    chosen = [getattr(progress, name)() for name in columns]
    return progress.Progress(title, progress.BarColumn(), *chosen, console=Console(stderr=True), transient=True)
