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
    if not _wanted(session):
        yield lambda _: None
        return
    try:
        # Optional, and 100 ms: only what takes longer than that is worth a bar.
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError:
        yield lambda _: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=total_bytes)
        yield lambda count: bar.advance(task, count)


COUNTED_FROM: Final = 8  # with fewer the bar would have gone before it is seen


@contextmanager
def count_down(session: Session, title: str, total: int) -> Iterator[Tick]:
    """Yields what is told of everything done, of so many things."""
    if total < COUNTED_FROM or not _wanted(session):
        yield lambda _: None
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError:
        yield lambda _: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
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
            self._progress = _counting()
            self._wanted = self._progress is not None
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


def _counting() -> Progress | None:
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    except ImportError:
        return None
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
    progress = Progress(*columns, console=Console(stderr=True), transient=True)
    progress.start()
    return progress
