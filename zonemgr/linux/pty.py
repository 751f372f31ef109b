"""Pseudo terminals, opened by descriptor: neither end is ever looked up by a name that a zone could have
planted.

Deliberately not here: what flows through them (``supervisor`` and ``cli``).
"""

from __future__ import annotations

import fcntl
import os
import stat
import struct
import termios

from zonemgr.linux import libc, paths

_TIOCSPTLCK = 0x40045431
_TIOCGPTPEER = 0x5441
_PTMX_DEVICE = (5, 2)
_ENOTTY = 25


def open_master_in(devpts_dir_fd: int) -> int:
    """A new pty of this devpts (a descriptor of its root folder).  Returns the master, its slave unlocked.

    OSError (ENOTTY) when the folder is not a devpts or its "ptmx" not the real one.
    """
    if paths.file_system_type(devpts_dir_fd) != paths.DEVPTS_MAGIC:
        raise libc.error("open_master_in", _ENOTTY, "not a devpts file system")
    master_fd = os.open("ptmx", os.O_RDWR | os.O_NOCTTY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=devpts_dir_fd)
    try:
        info = os.fstat(master_fd)
        if not stat.S_ISCHR(info.st_mode) or (os.major(info.st_rdev), os.minor(info.st_rdev)) != _PTMX_DEVICE:
            raise libc.error("open_master_in", _ENOTTY, "ptmx is not the pty multiplexer")
        _unlock(master_fd)
    except BaseException:
        os.close(master_fd)
        raise
    return master_fd


def _unlock(master_fd: int) -> None:
    try:
        fcntl.ioctl(master_fd, _TIOCSPTLCK, struct.pack("i", 0))
    except OSError as error:
        raise libc.error("TIOCSPTLCK", error.errno or 0) from None


def open_peer(master_fd: int) -> int:
    """The slave of this master, without a path."""
    try:
        return fcntl.ioctl(master_fd, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        raise libc.error("TIOCGPTPEER", error.errno or 0) from None


def open_pair_below(root_fd: int, *, uid: int = -1, gid: int = -1) -> tuple[int, int]:
    """(master, slave) of a new pty of the devpts at /dev/pts below a zone's root. ``uid``/``gid``: ids of
    the host.
    """
    devpts_fd = paths.open_beneath(root_fd, "/dev/pts", os.O_PATH | os.O_DIRECTORY)
    try:
        master_fd = open_master_in(devpts_fd)
    finally:
        os.close(devpts_fd)
    try:
        slave_fd = open_peer(master_fd)
        os.fchown(slave_fd, uid, gid)
        os.fchmod(slave_fd, 0o620)
    except BaseException:
        os.close(master_fd)
        raise
    return master_fd, slave_fd


def set_controlling(fd: int) -> None:
    """Make the terminal the controlling one of the calling session leader."""
    try:
        fcntl.ioctl(fd, termios.TIOCSCTTY, 0)
    except OSError as error:
        raise libc.error("TIOCSCTTY", error.errno or 0) from None


def get_window(fd: int) -> tuple[int, int]:
    """The size of a terminal: (rows, columns)."""
    rows, columns, _x, _y = struct.unpack("HHHH", fcntl.ioctl(fd, termios.TIOCGWINSZ, bytes(8)))
    return rows, columns


def set_window(fd: int, rows: int, columns: int) -> None:
    """Set the size; the foreground processes get SIGWINCH when it changes."""
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def make_raw(fd: int) -> list[object]:
    """Pass every byte as it is, both ways.  Returns the former settings, for ``restore``."""
    before: list[object] = termios.tcgetattr(fd)
    settings = termios.tcgetattr(fd)
    settings[0] &= ~(
        termios.IGNBRK
        | termios.BRKINT
        | termios.PARMRK
        | termios.ISTRIP
        | termios.INLCR
        | termios.IGNCR
        | termios.ICRNL
        | termios.IXON
    )
    settings[1] &= ~termios.OPOST
    settings[2] = settings[2] & ~(termios.CSIZE | termios.PARENB) | termios.CS8
    settings[3] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
    settings[6][termios.VMIN], settings[6][termios.VTIME] = 1, 0
    termios.tcsetattr(fd, termios.TCSADRAIN, settings)
    return before


def restore(fd: int, settings: list[object]) -> None:
    """Set what ``make_raw`` returned."""
    termios.tcsetattr(fd, termios.TCSADRAIN, settings)  # type: ignore[arg-type]
