"""``stat --live``: the table of ``stat`` on the whole terminal, kept up to date.  Curses is loaded only here.

Keys: c, m, p, i, n sort by processors, memory, threads, disk, network; z by name; q ends.  What does not fit is
counted in the last line.
"""

from __future__ import annotations

import curses
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from zonemgr.cli.sampling import CPU, LWPS, MEMORY, READ, RECEIVED, SENT, WRITE, Line, Peaks, Sample, sample
from zonemgr.cli.stat import table
from zonemgr.errors import Exit, UsageError
from zonemgr.store.paths import Layout
from zonemgr.store.usage import Look, look

_ORDERS: Final = {
    "c": ("processors", (CPU,)),
    "m": ("memory", (MEMORY,)),
    "p": ("threads", (LWPS,)),
    "i": ("disk", (READ, WRITE)),
    "n": ("network", (RECEIVED, SENT)),
    "z": ("name", ()),
}


@dataclass(slots=True)
class View:
    """What is on the screen, without the screen."""

    order: str = "c"
    peaks: Peaks = field(default_factory=Peaks)

    def key(self, pressed: str) -> bool:
        """Take a key.  False: it ends the view."""
        if pressed in _ORDERS:
            self.order = pressed
        return pressed not in ("q", "\x03", "\x1b")

    def lines(self, taken: Sample, height: int, width: int) -> list[str]:
        """The screen's lines, from the top; the header of the table is the second."""
        self.peaks.add(taken)
        title, resources = _ORDERS[self.order]
        zones = sorted(taken.zones, key=lambda line: _weight(line, resources))
        shown = Sample(taken.time_s, taken.interval_s, tuple(zones), taken.zones_total, taken.host)
        head = f"{time.strftime('%H:%M:%S', time.localtime(taken.time_s))}  {len(zones)} zones, by {title}"
        rows = table(shown, self.peaks)
        last = 2 if len(zones) > 1 else 1
        room = max(0, height - 3 - last)
        hidden = len(zones) - room
        body = [rows[0], *rows[1 : len(zones) + 1][:room], *rows[len(zones) + 1 :]]
        keys = "c m p i n z: sort   q: quit" + (f"   {hidden} more zones" if hidden > 0 else "")
        text = [head, *body, keys]
        return [line[: max(0, width - 1)] for line in text[:height]]


def _weight(line: Line, resources: Sequence[str]) -> tuple[float, str]:
    return -sum(line.amounts[name].used or 0.0 for name in resources), line.name


def run(layout: Layout, names: Sequence[str], interval_s: float) -> int:
    """Show the view until somebody ends it.  Raises UsageError where there is no terminal."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError("stat --live needs a terminal; elsewhere give it an interval: zonemgr stat 5")
    try:
        curses.wrapper(_loop, layout, names, interval_s)
    except KeyboardInterrupt:
        return Exit.OK
    except curses.error as error:
        raise UsageError("this terminal cannot be filled: {why}", why=error) from None
    return Exit.OK


def _loop(screen: curses.window, layout: Layout, names: Sequence[str], interval_s: float) -> None:
    _hide_cursor()
    view = View()
    before: Look | None = None
    now = look(layout, names)
    due_s = now.monotonic_s + min(interval_s, 0.5)  # the first rates soon
    while True:
        _draw(screen, view.lines(sample(now, before), *screen.getmaxyx()))
        screen.timeout(max(0, int(1000 * (due_s - time.monotonic()))))
        pressed = screen.getch()
        if pressed >= 0 and pressed != curses.KEY_RESIZE:
            if not view.key(chr(pressed) if pressed < 256 else ""):
                return
        elif pressed < 0:
            before, now = now, look(layout, names)
            due_s = now.monotonic_s + interval_s


def _hide_cursor() -> None:
    try:
        curses.curs_set(0)
    except curses.error:
        return  # a terminal that cannot


def _draw(screen: curses.window, lines: Sequence[str]) -> None:
    screen.erase()
    for row, text in enumerate(lines):
        try:
            screen.addstr(row, 0, text, curses.A_REVERSE if row == 1 else curses.A_NORMAL)
        except curses.error:
            break  # the terminal has become smaller meanwhile
    screen.refresh()
