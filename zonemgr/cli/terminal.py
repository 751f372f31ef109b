"""The operator's terminal while it is connected to a zone: raw mode, the escape, window size, and moving bytes.

Used by ``console`` and by an interactive ``login``; it knows neither of them.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from zonemgr.errors import UsageError

CHUNK: Final = 16 * 1024
PENDING_MAX: Final = 64 * 1024  # bytes typed that the zone has not taken yet; then the keyboard waits
_CR, _LF, _DOT = 13, 10, ord(".")
_CONTROL_D: Final = 4
_LINE_ENDERS: Final = ("VKILL", "VEOL", "VSUSP", "VINTR")


@dataclass(frozen=True, slots=True)
class Keys:
    """Bytes of the local terminal that matter to the escape: those after which a line begins, and its end of file."""

    breaks: frozenset[int] = frozenset({_CR, _LF})
    eof: int = _CONTROL_D

    @classmethod
    def of(cls, fd: int) -> Keys:
        """The keys of this terminal; the usual ones when it is none."""
        try:
            characters: list[Any] = termios.tcgetattr(fd)[6]
        except (termios.error, OSError):
            return cls()
        found = {_byte(characters[getattr(termios, name)]) for name in _LINE_ENDERS} - {0}
        return cls(frozenset({_CR, _LF, *found}), _byte(characters[termios.VEOF]) or _CONTROL_D)


def _byte(value: bytes | int) -> int:
    return value if isinstance(value, int) else value[0]


class Escape:
    """Watches what is typed for the escape character at the beginning of a line (reference, section 8).

    Followed by a dot or by the end-of-file key it disconnects; followed by anything else it is swallowed.
    """

    def __init__(self, character: int | None, keys: Keys) -> None:
        self._character = character
        self._keys = keys
        self._at_start = True
        self._escaped = False
        self.echo = b""  # what to show locally when it disconnects

    def feed(self, data: bytes) -> tuple[bytes, bool]:
        """What goes to the zone, and whether to disconnect after it."""
        passed = bytearray()
        for byte in data:
            if self._escaped:
                self._escaped = False
                if byte in (_DOT, self._keys.eof):
                    self.echo = bytes([self._character or 0]) + (b"." if byte == _DOT else b"^D")
                    return bytes(passed), True
            elif self._at_start and byte == self._character:
                self._escaped = True
                continue
            passed.append(byte)
            self._at_start = byte in self._keys.breaks
        return bytes(passed), False


def escape_character(text: str) -> int:
    r"""The escape that ``-e`` names: its first character, ``\ooo`` in octal, or a backslash.  Raises UsageError."""
    if not text:
        raise UsageError("Unrecognized escape character option {text}", text="''")
    if text[0] != "\\" or text in ("\\", "\\\\"):
        return text.encode("utf-8", "surrogateescape")[0]
    digits = text[1:]
    if not digits or any(digit not in "01234567" for digit in digits):
        raise UsageError("Unrecognized escape character option {text}", text=text)
    if int(digits, 8) > 0o377:
        raise UsageError("Octal escape character '{digits}' too large", digits=digits)
    return int(digits, 8)


@contextmanager
def raw(fd: int) -> Iterator[None]:
    """The terminal passes every key on, until the block ends; nothing happens when it is none."""
    if not os.isatty(fd):
        yield
        return
    before = termios.tcgetattr(fd)
    mode: list[Any] = termios.tcgetattr(fd)
    mode[0] &= ~(
        termios.IGNBRK | termios.BRKINT | termios.PARMRK | termios.ISTRIP | termios.INLCR | termios.IGNCR
    ) & ~(termios.ICRNL | termios.IXON)
    mode[1] &= ~termios.OPOST
    mode[2] = mode[2] & ~(termios.CSIZE | termios.PARENB) | termios.CS8
    mode[3] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
    mode[6][termios.VMIN], mode[6][termios.VTIME] = 1, 0
    with _tidy_exit():
        try:
            termios.tcsetattr(fd, termios.TCSADRAIN, mode)
            yield
        finally:
            termios.tcsetattr(fd, termios.TCSADRAIN, before)


@contextmanager
def _tidy_exit() -> Iterator[None]:
    """A polite signal ends the program through its ``finally`` clauses: the terminal must not stay raw."""

    def leave(number: int, _frame: object) -> None:
        sys.exit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def window(fd: int) -> tuple[int, int] | None:
    """Rows and columns of the terminal, None when it is none."""
    try:
        size = os.get_terminal_size(fd)
    except OSError:
        return None
    return (size.lines, size.columns) if size.lines and size.columns else None


class Relay:
    """Moves bytes between the operator (``keyboard_fd``, ``screen_fd``) and the zone (``zone_fd``, non-blocking)."""

    def __init__(
        self,
        zone_fd: int,
        escape: Escape,
        on_window: Callable[[int, int], None],
        *,
        keyboard_fd: int = 0,
        screen_fd: int = 1,
        ended_fd: int = -1,
    ) -> None:
        """``ended_fd``: readable once it is over, whoever else may still hold the zone's side."""
        self._zone_fd = zone_fd
        self._escape = escape
        self._on_window = on_window
        self._keyboard_fd = keyboard_fd
        self._screen_fd = screen_fd
        self._ended_fd = ended_fd
        self._pending = bytearray()
        self._leaving = False
        os.set_blocking(zone_fd, False)

    def run(self) -> bool:
        """Until the zone's side closes (False), or the operator's input ends or the escape is typed (True)."""
        wake_fd, signal_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        old_handler = signal.signal(signal.SIGWINCH, lambda _number, _frame: None)
        old_fd = signal.set_wakeup_fd(signal_fd, warn_on_full_buffer=False)
        try:
            self._resize()
            while not self._leaving or self._pending:
                self._turn(wake_fd)
        except _ZoneClosed:
            return False
        finally:
            signal.set_wakeup_fd(old_fd)
            signal.signal(signal.SIGWINCH, old_handler)
            os.close(wake_fd)
            os.close(signal_fd)
        return True

    def _turn(self, wake_fd: int) -> None:
        poll = select.poll()
        poll.register(wake_fd, select.POLLIN)
        if self._ended_fd >= 0:
            poll.register(self._ended_fd, select.POLLIN)
        poll.register(self._zone_fd, select.POLLIN | (select.POLLOUT if self._pending else 0))
        if not self._leaving and len(self._pending) < PENDING_MAX:
            poll.register(self._keyboard_fd, select.POLLIN)
        ready = dict(poll.poll())
        if wake_fd in ready:
            os.read(wake_fd, 512)
            self._resize()
        happened = ready.get(self._zone_fd, 0)
        if happened & select.POLLOUT and self._pending:
            self._send()
        if happened & ~select.POLLOUT:
            self._receive()
        if self._keyboard_fd in ready:
            self._type()
        if self._ended_fd in ready:
            self._drain()

    def _drain(self) -> None:
        while self._receive():
            pass
        raise _ZoneClosed

    def _resize(self) -> None:
        size = window(self._keyboard_fd) or window(self._screen_fd)
        if size:
            self._on_window(*size)

    def _receive(self) -> bool:
        """Show what there is; False when nothing is there now."""
        try:
            data = os.read(self._zone_fd, CHUNK)
        except BlockingIOError:
            return False
        except OSError:  # EIO: the last process on a pty has gone
            data = b""
        if not data:
            raise _ZoneClosed
        write_all(self._screen_fd, data)
        return True

    def _type(self) -> None:
        data = os.read(self._keyboard_fd, CHUNK)
        passed, disconnect = self._escape.feed(data)
        self._pending += passed
        if disconnect:
            write_all(self._screen_fd, self._escape.echo)
            self._send()
            self._pending.clear()  # what a stuck zone does not take must not keep us
        self._leaving = disconnect or not data

    def _send(self) -> None:
        try:
            sent = os.write(self._zone_fd, self._pending)
        except BlockingIOError:
            return
        except OSError:
            raise _ZoneClosed from None
        del self._pending[:sent]


class _ZoneClosed(Exception):
    """The zone's side has ended."""


def write_all(fd: int, data: bytes) -> None:
    """Write everything, waiting as long as it takes, also on a descriptor that somebody made non-blocking."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            poll = select.poll()
            poll.register(fd, select.POLLOUT)
            poll.poll()
