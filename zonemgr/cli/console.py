"""``console``: be the client of a zone's console (reference section 5, design section 9).

The supervisor is started when there is none: one may connect before the zone boots, and stays connected through
reboots.
"""

from __future__ import annotations

import os
import select
import socket
import sys
from typing import Final

import click

from zonemgr.cli.output import Session
from zonemgr.cli.terminal import Escape, Keys, Relay, escape_character, raw, write_all
from zonemgr.errors import NoSuchZoneError, ZoneError, locale_of_environment, message
from zonemgr.model.states import GLOBAL_ZONE, State
from zonemgr.store.observe import Observation, observe
from zonemgr.store.paths import Layout

ANSWER_S: Final = 30.0
ATTEMPTS: Final = 5  # a supervisor may leave between our connecting and its answer


def check_zone(session: Session, zonename: str) -> Observation:
    """The checks that console and login share, in the reference's order.  Raises ZoneError."""
    if zonename == GLOBAL_ZONE:
        raise ZoneError("'{program}' not applicable to the global zone", program=session.program)
    try:
        seen = observe(session.layout, zonename)
    except NoSuchZoneError:
        if session.program == "zlogin":
            raise ZoneError("zone '{zone}' unknown", zone=zonename) from None
        raise
    if seen.state < State.INSTALLED:
        raise ZoneError("cannot login to a zone which is '{state}'", state=seen.state.label)
    if os.geteuid() != 0:
        raise ZoneError("You lack sufficient privilege to run this command (all privs required)")
    return seen


def connect(session: Session, zonename: str, leave_on_halt: bool) -> socket.socket:
    """The console's byte stream.  Raises ZoneError when somebody else has it."""
    from zonemgr.wire.start import connected

    greeting = f"IDENT {os.getpid()} {_locale()} {int(leave_on_halt)}\n"
    for _ in range(ATTEMPTS):
        connection = connected(
            session.layout, zonename, "console", lambda text: session.message(text, zonename)
        )
        answer = _greet(connection, greeting.encode())
        if answer == "OK":
            return connection
        connection.close()
        if answer.isdigit():
            raise ZoneError("Console is already in use by process ID {pid}.", pid=answer)
        if answer:
            raise ZoneError("protocol error")
    raise ZoneError("the supervisor does not answer at the console")


def _locale() -> str:
    """The caller's locale as one word of a bounded line, whatever the environment has."""
    words = (locale_of_environment() or "").encode("ascii", "replace").decode().split()
    return words[0][:255] if words else "C"


def _greet(connection: socket.socket, greeting: bytes) -> str:
    """The line that answers the greeting; empty when the supervisor hung up instead."""
    connection.settimeout(ANSWER_S)
    answer = b""
    try:
        connection.sendall(greeting, socket.MSG_NOSIGNAL)
        while not answer.endswith(b"\n") and len(answer) < 64:
            byte = connection.recv(1)  # what follows the line is the zone's output
            if not byte:
                break
            answer += byte
    except TimeoutError as error:
        raise ZoneError("the supervisor does not answer at the console") from error
    except (BrokenPipeError, ConnectionResetError):
        return ""
    connection.settimeout(None)
    return answer.decode("ascii", "replace").strip()


def tell_window(layout: Layout, zonename: str, rows: int, columns: int) -> None:
    """Tell the supervisor our window's size: a connection of its own, since the console's carries nothing but bytes."""
    from zonemgr.wire.client import connect as connect_to

    try:
        with connect_to(layout.zone_run(zonename) / "console") as connection:
            connection.sendall(f"WINSIZE {os.getpid()} {rows} {columns}\n".encode(), socket.MSG_NOSIGNAL)
            poll = select.poll()
            poll.register(connection, select.POLLIN)
            poll.poll(1000)  # it hangs up once it has taken the size: sizes keep their order
    except OSError:
        return  # a wrong width is no reason to lose the console


@click.command()
@click.argument("name")
@click.option("-e", "escape", default="~", metavar="C", help=r"The escape character (\ooo is octal).")
@click.option("-E", "no_escape", is_flag=True, help="No escape character.")
@click.option("-Q", "no_banner", is_flag=True, help="No line at the beginning and the end.")
@click.option("-d", "leave_on_halt", is_flag=True, help="Disconnect when the zone halts.")
@click.pass_obj
def console(
    session: Session, name: str, escape: str, no_escape: bool, no_banner: bool, leave_on_halt: bool
) -> None:
    """Connect to a zone's console.  ~. at the beginning of a line disconnects; the zone is left as it is."""
    character = None if no_escape else escape_character(escape)
    with session.about(name):
        check_zone(session, name)
        connection = connect(session, name, leave_on_halt)
    banner = not (no_banner or session.quiet)
    if banner:
        session.data(message("[Connected to zone '{zone}' console]", zone=name))
        sys.stdout.flush()
    with connection, raw(0):
        relay = Relay(
            connection.fileno(),
            Escape(character, Keys.of(0)),
            lambda rows, columns: tell_window(session.layout, name, rows, columns),
        )
        relay.run()
    if banner:
        farewell = message("[Connection to zone '{zone}' console closed]", zone=name)
        write_all(1, f"\n{farewell}\n".encode())
