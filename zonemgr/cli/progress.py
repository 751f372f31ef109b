"""A bar for work that takes long: on a terminal only, and only where rich is installed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from zonemgr.cli.output import Session

Tick = Callable[[int], None]


@contextmanager
def progress(session: Session, title: str, total_bytes: int | None) -> Iterator[Tick]:
    """Yields what is told of every done byte.  ``total_bytes`` None: nobody knows how much there is to do."""
    if session.quiet or session.json or not sys.stderr.isatty():
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
    if total < COUNTED_FROM or session.quiet or session.json or not sys.stderr.isatty():
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
