"""Programs that a test starts beside itself: they end with it, also when it fails, so that no other one suffers."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any


class Started(subprocess.Popen[Any]):
    """A Popen whose block does not wait for a program that a failed test has left running, but kills it."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None:
            self.kill()
        super().__exit__(kind, value, traceback)

    def end(self) -> bool:
        """See it ended and its pipes closed.  Whether it had to be killed for that."""
        ran = self.poll() is None
        if ran:
            self.kill()
        for stream in (self.stdin, self.stdout, self.stderr):
            if stream is not None and not stream.closed:
                try:
                    stream.close()
                except BrokenPipeError:
                    pass  # what was to be read by it
        self.wait()
        return ran


def read(pid: int, name: str) -> str:
    """A file of a process in /proc; empty when the process is gone, be it since a moment."""
    try:
        return Path(f"/proc/{pid}/{name}").read_text()
    except OSError:
        return ""
