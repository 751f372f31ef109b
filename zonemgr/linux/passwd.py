"""Accounts of a zone, read from its own /etc/passwd and /etc/group as bounded, untrusted data.

The C library is never asked: its name service would load whatever the zone's files name. A number is a number
and a name is a name; what could be taken for either, or for an id that wraps around, is refused.

Deliberately not here: passwords, shadow files, and accounts of the host.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from zonemgr.errors import PlatformError, UsageError
from zonemgr.linux import libc, paths

MAX_FILE_BYTES = 1024 * 1024
MAX_ID = 2**31 - 1
MAX_GROUPS = 4096
_MAX_NAME = 256
_DIGITS = frozenset("0123456789")
_NAME_START = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_.")
_NAME_REST = _NAME_START | _DIGITS | frozenset("-@")
_EFBIG, _EINVAL = 27, 22


@dataclass(frozen=True, slots=True)
class Account:
    """Who a command runs as; all ids are the zone's own."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str
    shell: str


@dataclass(frozen=True, slots=True)
class Wanted:
    """What an operator asked for: a user and perhaps a group, each a number or a name."""

    user: str | int
    group: str | int | None


def parse_id(text: str) -> int | None:
    """A decimal id without sign, blanks or leading zeros, at most 2^31-1; None for anything else."""
    if not text or not _DIGITS.issuperset(text) or len(text) > 10 or (text[0] == "0" and text != "0"):
        return None
    value = int(text)
    return value if value <= MAX_ID else None


def _is_name(text: str) -> bool:
    bare = text.removesuffix("$")
    return bool(bare) and len(text) <= _MAX_NAME and bare[0] in _NAME_START and _NAME_REST.issuperset(bare)


def _one(text: str, whole: str) -> str | int:
    number = parse_id(text)
    if number is not None:
        return number
    if not _is_name(text):
        raise UsageError(
            "invalid user '{user}' (give a name or a number, with :group after it if wanted)", user=whole
        )
    return text


def parse_wanted(text: str) -> Wanted:
    """Parse "USER" or "USER:GROUP". UsageError for everything that is neither a plain name nor a plain
    number.
    """
    user, colon, group = text.partition(":")
    return Wanted(_one(user, text), _one(group, text) if colon else None)


def _rows(data: bytes, fields: int) -> Iterator[list[str]]:
    for line in data[:MAX_FILE_BYTES].split(b"\n"):
        row = line.decode("utf-8", "surrogateescape").split(":")
        if len(row) == fields and b"\0" not in line:
            yield row


def parse_passwd(data: bytes, user: str | int) -> Account | None:
    """The first account of that name, or of that number.  Lines that are not whole count as absent."""
    for name, _password, uid_text, gid_text, _comment, home, shell in _rows(data, 7):
        uid, gid = parse_id(uid_text), parse_id(gid_text)
        if uid is None or gid is None or not _is_name(name) or user not in (name, uid):
            continue
        return Account(
            name=name,
            uid=uid,
            gid=gid,
            groups=(gid,),
            home=home if home.startswith("/") else "/",
            shell=shell if shell.startswith("/") else "/bin/sh",
        )
    return None


def parse_groups(data: bytes, name: str) -> tuple[int, ...]:
    """The groups that list this user as a member."""
    found: list[int] = []
    for _group, _password, gid_text, members in _rows(data, 4):
        gid = parse_id(gid_text)
        if gid is not None and name in members.split(",") and len(found) < MAX_GROUPS:
            found.append(gid)
    return tuple(found)


def parse_group(data: bytes, group: str) -> int | None:
    """The id of a group."""
    for name, _password, gid_text, _members in _rows(data, 4):
        gid = parse_id(gid_text)
        if name == group and gid is not None:
            return gid
    return None


def read_bounded(root_fd: int, path: str, limit: int = MAX_FILE_BYTES) -> bytes:
    """A regular file below a zone's root, links resolved inside that root. OSError (EFBIG) beyond the
    limit.
    """
    descriptor = paths.open_beneath(
        root_fd, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY, no_symlinks=False
    )
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise libc.error(path, _EINVAL, "not a regular file")
        data = b""
        while len(data) <= limit and (chunk := os.read(descriptor, limit + 1 - len(data))):
            data += chunk
    finally:
        os.close(descriptor)
    if len(data) > limit:
        raise libc.error(path, _EFBIG)
    return data


def _read_or_nothing(root_fd: int, path: str) -> bytes:
    try:
        return read_bounded(root_fd, path)
    except (FileNotFoundError, NotADirectoryError):
        return b""


def _account(root_fd: int, wanted: Wanted) -> Account:
    found = parse_passwd(_read_or_nothing(root_fd, "/etc/passwd"), wanted.user)
    if found is not None:
        return found
    if wanted.user in ("root", 0):  # also into a zone whose files are broken
        return Account("root", 0, 0, (0,), "/", "/bin/sh")
    if isinstance(wanted.user, int) and wanted.group is not None:
        return Account(str(wanted.user), wanted.user, wanted.user, (), "/", "/bin/sh")
    if isinstance(wanted.user, int):
        raise PlatformError(
            "no user with the id {user} in the zone's /etc/passwd (give a group too: {user}:GROUP)",
            user=wanted.user,
        )
    raise PlatformError("no user '{user}' in the zone's /etc/passwd", user=wanted.user)


def find_account(root_fd: int, text: str) -> Account:
    """The account that "USER" or "USER:GROUP" names in the zone with this root.

    UsageError when the text is neither; PlatformError when the zone has no such user or group; OSError when
    its files cannot be read. With a group given, that is the only group.
    """
    wanted = parse_wanted(text)
    account = _account(root_fd, wanted)
    groups = _read_or_nothing(root_fd, "/etc/group")
    if wanted.group is None:
        more = tuple(gid for gid in parse_groups(groups, account.name) if gid != account.gid)
        return Account(
            account.name, account.uid, account.gid, (account.gid, *more), account.home, account.shell
        )
    gid = wanted.group if isinstance(wanted.group, int) else parse_group(groups, wanted.group)
    if gid is None:
        raise PlatformError("no group '{group}' in the zone's /etc/group", group=wanted.group)
    return Account(account.name, account.uid, gid, (gid,), account.home, account.shell)
