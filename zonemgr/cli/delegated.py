"""The command line of a user who is not root: what zones let this user do is done by root at the other end of a socket.

Nothing is decided here.  Where nobody listens the verbs say themselves that they are root's.
"""

from __future__ import annotations

import os
import select
import socket
import sys
from collections.abc import Sequence
from typing import Any, Final

from zonemgr.cli.output import Session
from zonemgr.errors import Exit
from zonemgr.model import delegation
from zonemgr.store.paths import Layout
from zonemgr.wire import packets
from zonemgr.wire.start import DELEGATE_SOCKET

ANSWER_S: Final = 30.0


def verb_words(arguments: Sequence[str]) -> tuple[str | None, list[str]] | None:
    """(root, words from the verb on) of a command line that may be delegated; None for any other."""
    root, words = None, list(arguments)
    while words and words[0].startswith("-"):
        option = words.pop(0)
        if option == "--root" and words:
            root = words.pop(0)
        elif option.startswith("--root="):
            root = option.removeprefix("--root=")
        elif option not in ("-q", "--quiet"):
            return None
    if not words or words[0] not in delegation.VERBS or {"-h", "-?", "--help"} & set(words[1:]):
        return None
    return root, words


def attempt(session: Session, arguments: Sequence[str]) -> int | None:
    """Have it done; the exit status.  None when this is nothing to delegate, or nobody listens."""
    found = verb_words(arguments)
    if found is None:
        return None
    root, words = found
    connection = _connect(Layout.at(root) if root else session.layout)
    if connection is None:
        return None
    with connection:
        terminal = words[0] == "console" or (words[0] == "login" and os.isatty(0) and _wants_terminal(words))
        names = {name.lower(): os.environ[name] for name in ("TERM", "LANG") if name in os.environ}
        packets.send(connection, {"words": words, "terminal": terminal, **names})
        return _follow(session, connection)


def _wants_terminal(words: Sequence[str]) -> bool:
    """A login without a command, or with ``-t``."""
    try:
        asked = delegation.demand(words)
    except Exception:  # noqa: BLE001 - the other end says what is wrong with it
        return False
    return not asked.words or "-t" in asked.options


def _connect(layout: Layout) -> socket.socket | None:
    try:
        folder_fd = os.open(layout.run, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return packets.connect(folder_fd, DELEGATE_SOCKET, ANSWER_S)
    except OSError:
        return None
    finally:
        os.close(folder_fd)


def _follow(session: Session, connection: socket.socket) -> int:
    try:
        packet = packets.receive(connection)
    except (OSError, ValueError):
        packet = None
    if packet is None:
        session.message("the delegate hung up")
        return int(Exit.ERROR)
    head, fds, _tail = packet
    if "refused" in head:
        session.message(str(head["refused"]))
        return int(head.get("code", Exit.ERROR))
    connection.settimeout(None)
    if head.get("started") == "terminal":
        _at_terminal(fds[0], connection)
    else:
        _Pump(fds, connection).run()
    packets.close_all(fds)
    last: tuple[dict[str, Any], list[int], bytes] | None = packets.receive(connection)
    return int(last[0].get("status", Exit.INTERNAL)) if last else int(Exit.INTERNAL)


def _at_terminal(master_fd: int, connection: socket.socket) -> None:
    """Keys and text pass as they are; the escape character is the other end's affair."""
    from zonemgr.cli.terminal import Escape, Keys, Relay, raw, window
    from zonemgr.linux import pty

    size = window(0) or window(1)
    if size:
        pty.set_window(master_fd, *size)
    with raw(0):
        Relay(
            master_fd,
            Escape(None, Keys.of(0)),
            lambda rows, columns: pty.set_window(master_fd, rows, columns),
            ended_fd=connection.fileno(),
        ).run()


class _Pump:
    """Moves bytes between our standard streams and the pipes of what runs, until it has ended and all is read."""

    def __init__(self, fds: Sequence[int], connection: socket.socket) -> None:
        self._typing_fd, *screens = fds
        self._screens = dict(zip(screens, (1, 2), strict=True))
        self._connection = connection
        self._typing = True

    def run(self) -> None:
        poll = select.poll()
        for descriptor in (0, *self._screens):
            poll.register(descriptor, select.POLLIN)
        while self._screens:
            for descriptor, _events in poll.poll():
                if not (self._type() if descriptor == 0 else self._show(descriptor)):
                    poll.unregister(descriptor)

    def _type(self) -> bool:
        data = os.read(0, 16384)
        try:
            while data:
                data_left = os.write(self._typing_fd, data)
                if data_left == len(data):
                    return True
                data = data[data_left:]
        except BrokenPipeError:
            pass
        null_fd = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(null_fd, self._typing_fd)  # its end of file
        os.close(null_fd)
        return False

    def _show(self, descriptor: int) -> bool:
        from zonemgr.cli.terminal import write_all

        data = os.read(descriptor, 65536)
        if not data:
            del self._screens[descriptor]
            return False
        try:
            write_all(self._screens[descriptor], data)
        except BrokenPipeError:
            sys.exit(128 + 13)
        return True
