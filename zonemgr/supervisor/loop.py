"""The supervisor's one loop: descriptors, deadlines, children.  Single-threaded, and asleep when nothing happens."""

from __future__ import annotations

import heapq
import itertools
import os
import select
import signal
import time
from collections.abc import Callable
from typing import Final

Handler = Callable[[int], None]
WAIT_MAX_MS: Final = 3_600_000.0  # at a time: poll(2) takes no more than three weeks


class Timer:
    """A deadline; ``cancel`` forgets it."""

    def __init__(self, call: Callable[[], None]) -> None:
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        self.call = None


class Loop:
    """Calls handlers with the poll events of their descriptors until ``stop``."""

    def __init__(self, complain: Callable[[str], None]) -> None:
        self._complain = complain
        self._poll = select.poll()
        self._handlers: dict[int, Handler] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._count = itertools.count()
        self._running = False
        self._idle: list[Callable[[], None]] = []

    def watch(self, descriptor: int, handler: Handler, events: int = select.POLLIN) -> None:
        """Call the handler when these events happen; a second call changes them."""
        self._handlers[descriptor] = handler
        self._poll.register(descriptor, events)

    def forget(self, descriptor: int) -> None:
        """Stop watching a descriptor (before it is closed)."""
        if self._handlers.pop(descriptor, None) is not None:
            self._poll.unregister(descriptor)

    def after(self, seconds: float, call: Callable[[], None]) -> Timer:
        """Call once after some seconds."""
        timer = Timer(call)
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._count), timer))
        return timer

    def when_idle(self, call: Callable[[], None]) -> None:
        """Call after each round of handlers."""
        self._idle.append(call)

    def watch_children(self, handler: Callable[[], None]) -> None:
        """Call the handler when a child (or an orphan that became one) has ended."""
        read_fd, write_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)

        def wake(_events: int) -> None:
            try:
                os.read(read_fd, 4096)
            except BlockingIOError:
                return
            handler()

        self.watch(read_fd, wake)

    def run(self) -> None:
        """Run until ``stop``."""
        self._running = True
        while self._running:
            for descriptor, events in self._poll.poll(self._wait_ms()):
                handler = self._handlers.get(descriptor)
                if handler is not None:  # an earlier handler of this round may have forgotten it
                    self._guarded(descriptor, handler, events)
            self._fire()
            for call in self._idle:
                call()

    def _guarded(self, descriptor: int, handler: Handler, events: int) -> None:
        """One connection's mishap ends that connection, not the supervisor."""
        try:
            handler(events)
        except Exception:  # noqa: BLE001 - an impossible request is logged, never an abort
            import traceback

            self._complain(traceback.format_exc())
            self.forget(descriptor)

    def stop(self) -> None:
        """Leave ``run`` after this round."""
        self._running = False

    def _wait_ms(self) -> float | None:
        while self._timers and self._timers[0][2].call is None:
            heapq.heappop(self._timers)
        if not self._timers:
            return None
        return min(max(0.0, (self._timers[0][0] - time.monotonic()) * 1000 + 1), WAIT_MAX_MS)

    def _fire(self) -> None:
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            timer = heapq.heappop(self._timers)[2]
            call, timer.call = timer.call, None
            if call is not None:
                call()
