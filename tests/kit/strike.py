"""A command that gets a signal at its N-th change of anything on a disk, counted from its start.

Changes are seen by an audit hook, so that every ``open`` for writing, ``mkdir``, ``rename``... of the command's
own process is a point, whoever makes it.  Children are left alone: a hook dies with the command that runs it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import Any, Final

from tests.kit.instance import TIMEOUT_S, Failed, Instance
from tests.kit.program import Answer
from zonemgr.cli.lifecycle import INTERRUPTED

_CHANGES: Final = frozenset(
    (
        *("os.mkdir", "os.rename", "os.link", "os.symlink", "os.remove", "os.rmdir", "os.chmod", "os.chown"),
        *("os.utime", "os.setxattr", "os.truncate", "fcntl.ioctl"),
    )
)
_PROGRAM: Final = "import sys; from tests.kit import strike; strike.main()"


def main() -> None:
    """``NUMBER SIGNAL FILE WORDS...``: run ``zonemgr WORDS``, get SIGNAL before change NUMBER; FILE is told how many
    there were.
    """
    number, struck, notes, words = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:]
    from zonemgr.cli import main as program

    ours, passed = os.getpid(), 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal passed
        if os.getpid() != ours or not _is_change(event, arguments):
            return
        if passed == number:
            os.kill(ours, struck)
        passed += 1

    sys.argv = ["zonemgr", *words]
    sys.addaudithook(watch)
    try:
        program.main()
    finally:
        total, number = passed, -1
        with open(notes, "w") as stream:
            stream.write(str(total))


def _is_change(event: str, arguments: tuple[Any, ...]) -> bool:
    if event != "open":
        return event in _CHANGES
    return bool(isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def _run(instance: Instance, number: int, *words: str, struck: int = signal.SIGKILL) -> Answer:
    env = {**instance.env, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(number), str(struck), str(instance.root / "changes"), *words],
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    if done.returncode not in (0, -signal.SIGKILL, INTERRUPTED):
        raise Failed(f"zonemgr {' '.join(words)}: status {done.returncode}\n{done.stdout}{done.stderr}")
    return Answer(done.returncode, done.stdout, done.stderr)


def count(instance: Instance, *words: str) -> int:
    """Run a command to its end; how many changes it made."""
    assert _run(instance, -1, *words).code == 0
    return int((instance.root / "changes").read_text())


def strike(instance: Instance, number: int, *words: str) -> bool:
    """Run a command until its change ``number`` (from 0); False when it ended before."""
    return _run(instance, number, *words).code != 0


def interrupt(instance: Instance, number: int, *words: str) -> Answer:
    """As ``strike``, but somebody presses Ctrl-C."""
    return _run(instance, number, *words, struck=signal.SIGINT)


def points(total: int, most: int) -> list[int]:
    """Where to strike: the first and the last changes decide most, so they come first; then some in between.  A single
    one is in the middle.
    """
    if total <= most:
        return list(range(total))
    if most == 1:
        return [total // 2]
    edge = most // 3
    middle = range(edge, total - edge, max(1, (total - 2 * edge) // (most - 2 * edge)))
    return sorted({*range(edge), *range(total - edge, total), *middle})
