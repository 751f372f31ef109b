"""Runs ``nft``: one batch of commands, which the kernel takes whole or not at all.

Deliberately not here: what the rules are.  The program is started by itself, without a shell and with an environment of
its own; its output goes to files in memory, so that no pipe can fill.
"""

from __future__ import annotations

import json
import os
import signal
from typing import Any

from zonemgr.errors import PlatformError
from zonemgr.linux import process

_PLACES = ("/usr/sbin/nft", "/sbin/nft", "/usr/local/sbin/nft", "/usr/bin/nft")
_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
DEADLINE_S = 120.0


class Refusal(PlatformError):
    """The kernel or nft refused a batch; nothing of it was done."""


def program() -> str | None:
    """The program's path, or None when it is not installed."""
    return next((place for place in _PLACES if os.access(place, os.X_OK)), None)


def run(batch: str) -> str:
    """Execute the batch and return what it lists (as JSON where it lists anything).  Raises Refusal."""
    return Batch(batch).wait()


def listing(*words: str) -> list[dict[str, Any]]:
    """The objects that ``list WORDS`` shows."""
    text = run("list " + " ".join(words) + "\n")
    return list(json.loads(text)["nftables"]) if text else []


def delete_tables(name: str) -> None:
    """Every table of this name goes, of whatever family, with all that is in it."""
    tables = [item["table"] for item in (listing("tables") if program() else ()) if "table" in item]
    lines = [f"delete table {table['family']} {name}\n" for table in tables if table["name"] == name]
    if lines:
        run("".join(lines))


def rule_text(chain: str, handle: int) -> str:
    """A rule of a chain ("family table chain") as people write it."""
    for line in Batch(f"list chain {chain}\n", "-a").wait().splitlines():
        rule, mark, number = line.rpartition(" # handle ")
        if mark and number == str(handle):
            return rule.strip()
    return f"handle {handle}"


class Batch:
    """A batch under way: it runs beside its caller until ``wait``."""

    def __init__(self, batch: str, option: str = "-j") -> None:
        path = program()
        if path is None:
            raise PlatformError("nft is not installed (apt-get install nftables)")
        self._files = [os.memfd_create(name, os.MFD_CLOEXEC) for name in ("batch", "output", "errors")]
        os.write(self._files[0], batch.encode())
        os.lseek(self._files[0], 0, os.SEEK_SET)
        actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(self._files)]
        self._pid = os.posix_spawn(
            path,
            ["nft", option, "-f", "-"],
            _ENVIRONMENT,
            file_actions=actions,
            setsigmask=(),
            setsigdef=(signal.SIGPIPE,),
        )

    def wait(self) -> str:
        """Wait for its end and return its output.  Raises Refusal with nft's first complaint."""
        status = process.wait_program(self._pid, DEADLINE_S)
        output, errors = (_content(fd) for fd in self._files[1:])
        for fd in self._files:
            os.close(fd)
        if status != 0:
            raise Refusal("nft: {why}", why=_complaint(errors) or f"ended with status {status}")
        return output


def _content(fd: int) -> str:
    return os.pread(fd, os.fstat(fd).st_size, 0).decode(errors="replace")


def _complaint(errors: str) -> str:
    """The first error without its place in the batch, and the line that it is about."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    for index, line in enumerate(lines):
        if "Error: " in line:
            about = lines[index + 1] if index + 1 < len(lines) and "Error: " not in lines[index + 1] else ""
            return line.partition("Error: ")[2] + (f" ({about})" if about else "")
    return lines[0] if lines else ""
