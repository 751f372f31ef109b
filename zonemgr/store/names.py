"""The zones' names: one file in the form of /etc/hosts, for the zones and for whoever asks on the host.

``/run/zonemgr/hosts`` has a line for each address of each living zone.  Zones see it as their ``/etc/hosts``, through a
mount of the file itself, so it is rewritten in place: renamed, it would be another file.  With ``etc-hosts = true`` in
zonemgr.toml the host's own ``/etc/hosts`` has the same lines, in a block with our marks around it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from zonemgr.store import hostledger
from zonemgr.store.files import read_bytes, write_atomic
from zonemgr.store.paths import Layout

_HEAD: Final = (
    "# The zones of this host.  Made by zonemgr; what is written here by hand goes with the next change.",
    "127.0.0.1\tlocalhost",
    "::1\tlocalhost ip6-localhost ip6-loopback",
)
_MARK: Final = "\t# zone "
_BEGIN, _END = "# zonemgr: begin of the zones' names", "# zonemgr: end of the zones' names"


def hosts_file(layout: Layout) -> Path:
    """Where the names are."""
    return layout.run / "hosts"


def publish(layout: Layout, zonename: str, names: Sequence[str], addresses: Iterable[str], *, host: bool) -> None:
    """The zone is known by these names; what was known of it before is forgotten.  ``host``: in /etc/hosts as well."""
    lines = [f"{address}\t{' '.join(names)}{_MARK}{zonename}" for address in addresses]
    with hostledger.lock(layout):
        _rewrite(layout, zonename, lines)
        if host:
            _rewrite_host(layout)


def withdraw(layout: Layout, zonename: str) -> None:
    """The zone's names are gone; it may have had none."""
    with hostledger.lock(layout):
        _rewrite(layout, zonename, [])
        _rewrite_host(layout, only_if_there=True)


def _rewrite(layout: Layout, zonename: str, lines: list[str]) -> None:
    """In place.  A zone that has no lines yet, as at each boot, gets them at the end: the others' stay as they are."""
    before = read_bytes(hosts_file(layout)) or b""
    if before.endswith(b"\n") and f"{_MARK}{zonename}\n".encode() not in before:
        _write_at(layout, len(before), lines)
        return
    kept = [line for line in _lines(layout) if not line.endswith(_MARK + zonename)]
    _write_at(layout, 0, [*_HEAD, *kept, *lines])


def _write_at(layout: Layout, offset: int, lines: Sequence[str]) -> None:
    """From there on the file has these lines."""
    content = "".join(f"{line}\n" for line in lines).encode()
    descriptor = os.open(hosts_file(layout), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        os.fchmod(descriptor, 0o644)
        os.pwrite(descriptor, content, offset)
        os.ftruncate(descriptor, offset + len(content))
    finally:
        os.close(descriptor)


def _lines(layout: Layout) -> list[str]:
    """The lines of zones."""
    text = (read_bytes(hosts_file(layout)) or b"").decode(errors="replace")
    return [line for line in text.splitlines() if _MARK in line]


def _rewrite_host(layout: Layout, *, only_if_there: bool = False) -> None:
    """The block in the host's own file; everything around it stays as it is."""
    path = layout.root / "etc/hosts"
    content = read_bytes(path)
    if content is None:
        return
    before, begin, rest = content.decode(errors="surrogateescape").partition(_BEGIN + "\n")
    if not begin and only_if_there:
        return
    inside, end, after = rest.partition(_END + "\n")
    if begin and not end:
        after = inside  # somebody has taken our last mark away: nothing behind it is ours to remove
    if before and not before.endswith("\n"):
        before += "\n"
    lines = _lines(layout)
    block = "".join(f"{line}\n" for line in (_BEGIN, *lines, _END)) if lines else ""
    text = f"{before}{block}{after}".encode(errors="surrogateescape")
    if text != content:
        write_atomic(path, text, path.stat().st_mode & 0o7777)
