"""The ledger: what was done to the host for one zone, written before it is done.

One JSON line an entry, appended, in ``/run/zonemgr/zones/NAME/ledger.jsonl``: ``{"n": 3, "op": {...}}`` before
the op acts and ``{"undone": 3}`` after it was undone.  /run does not outlive the host, and neither does what
the ledger lists, so nothing is synced.  A torn last line (the writer was killed in the middle of it) is an op
that never acted.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


class Ledger:
    """The open ledger of one zone.  Entries are plain JSON tables; the platform knows what they mean."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._entries: dict[int, dict[str, Any]] = {}
        self._next = 1
        self._torn = False
        if path.exists():
            self._replay(path.read_bytes())

    def _replay(self, text: bytes) -> None:
        for line in text.split(b"\n"):
            try:
                record = json.loads(line)
            except ValueError:
                self._torn = self._torn or bool(line)
                continue
            if "undone" in record:
                self._entries.pop(record["undone"], None)
            else:
                self._entries[record["n"]] = record["op"]
                self._next = max(self._next, record["n"] + 1)

    def _append(self, record: dict[str, Any]) -> None:
        line = json.dumps(record, separators=(",", ":")).encode() + b"\n"
        if self._torn:
            line, self._torn = b"\n" + line, False
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, line)
        finally:
            os.close(descriptor)

    def record(self, op: dict[str, Any]) -> int:
        """Write an op down before it acts.  Returns its number."""
        number, self._next = self._next, self._next + 1
        self._append({"n": number, "op": op})
        self._entries[number] = op
        return number

    def undone(self, number: int) -> None:
        """The op with this number is undone."""
        self._append({"undone": number})
        self._entries.pop(number, None)

    def pending(self) -> list[tuple[int, dict[str, Any]]]:
        """What is still to be undone, newest first."""
        return sorted(self._entries.items(), reverse=True)

    def clear(self) -> None:
        """Everything is undone: the file goes.  Asserts that it is so."""
        assert not self._entries, "a ledger with pending entries is never cleared"
        self.path.unlink(missing_ok=True)
