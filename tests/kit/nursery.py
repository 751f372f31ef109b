"""A process in which everything is loaded: its forks are the zonemgr command, with supervisors that are forks as well.

A command costs milliseconds there instead of the start of two interpreters, so that a test can afford hundreds.  What
runs is the product's own code (``program.serve`` is callable after a fork as well as after an exec); the only thing
that differs is how a supervisor is started.  ``faults`` are planted (``tests.kit.faults``) in the first supervisor
that the command starts, and nowhere else.

The process speaks JSON lines on its standard input and output; the side of the tests is ``Nursery``.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tests.kit import answers
from tests.kit.instance import CHECKOUT, Failed, Instance
from tests.kit.waiting import PATIENCE
from zonemgr.linux import process

DEADLINE_S: Final = 60 * PATIENCE
_LOADED: Final = (
    "click",
    "cgroupspy",
    "pyroute2",
    "hashlib",
    "tomllib",
    "zonemgr.brandkit.loader",
    "zonemgr.cli.lifecycle",
    "zonemgr.cli.list",
    "zonemgr.cli.login",
    "zonemgr.cli.main",
    "zonemgr.linux.audit",
    "zonemgr.linux.cgroup.v1",
    "zonemgr.linux.cgroup.v2",
    "zonemgr.linux.inotify",
    "zonemgr.linux.netlink",
    "zonemgr.supervisor.program",
    "zonemgr.supervisor.serve",
    "zonemgr.wire.start",
)


class Nursery:
    """The tests' side.  One for a module; close it."""

    def __init__(self) -> None:
        env = {**os.environ, "PYTHONPATH": str(CHECKOUT), "LC_ALL": "C.UTF-8"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.kit.nursery"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=env,
            cwd=CHECKOUT,
        )
        assert self._process.stdout
        self._process.stdout.readline()  # it is loaded, and has its name

    def complete(
        self,
        words: Sequence[str],
        env: Mapping[str, str],
        input: str | None = None,
        timeout_s: float = DEADLINE_S,
        faults: Sequence[dict[str, Any]] = (),
    ) -> subprocess.CompletedProcess[str]:
        """Run ``zonemgr WORDS`` to its end, whatever that is."""
        assert self._process.stdin and self._process.stdout
        request = {
            "words": words,
            "env": dict(env),
            "input": input,
            "timeout_s": timeout_s,
            "faults": list(faults),
        }
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise Failed("the nursery is gone")
        answer = json.loads(line)
        if answer["status"] is None:
            raise subprocess.TimeoutExpired(["zonemgr", *words], timeout_s, answer["stdout"], answer["stderr"])
        return subprocess.CompletedProcess(
            ["zonemgr", *words], answer["status"], answer["stdout"], answer["stderr"]
        )

    def run(
        self,
        instance: Instance,
        *words: str,
        check: bool | int = True,
        faults: Sequence[dict[str, Any]] = (),
    ) -> subprocess.CompletedProcess[str]:
        """Run ``zonemgr WORDS`` for an instance.  ``check`` as ``Instance.run`` has it."""
        done = self.complete(words, instance.env, faults=faults)
        answers.check(words, done.returncode, done.stdout)
        wanted = 0 if check is True else check
        if check is not False and done.returncode != wanted:
            said = f"{done.stdout}{done.stderr}"
            raise Failed(f"zonemgr {' '.join(words)}: status {done.returncode}, expected {wanted}\n{said}")
        return done

    def close(self) -> None:
        """End it."""
        assert self._process.stdin and self._process.stdout
        # The end of the input may not come: a process that a test has left behind may hold it as well.
        self._process.stdin.write("null\n")
        self._process.stdin.close()
        self._process.wait(DEADLINE_S)
        self._process.stdout.close()


@contextlib.contextmanager
def nursery() -> Iterator[Nursery]:
    """A nursery for the length of a block."""
    new = Nursery()
    try:
        yield new
    finally:
        new.close()


# -- the process ------------------------------------------------------------------------------------------------


def main() -> None:
    """Load everything, then serve requests until the end of the input."""
    for name in _LOADED:
        importlib.import_module(name)
    # python-prctl finds the place of the title by the environment's, once: before anybody changes the environment.
    process.set_title("nursery")
    gc.collect()
    gc.freeze()  # or each fork copies the memory of all that is loaded when it collects garbage
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if request is None:
            return
        print(json.dumps(_run(request)), flush=True)


def _run(request: dict[str, Any]) -> dict[str, Any]:
    stdin_fd = os.memfd_create("stdin")
    os.pwrite(stdin_fd, (request["input"] or "").encode(errors="surrogateescape"), 0)
    outputs = [os.memfd_create(name) for name in ("stdout", "stderr")]
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        _be_the_command(request, [stdin_fd, *outputs])
    os.close(stdin_fd)
    status = _await(pid, request["timeout_s"])
    texts = []
    for fd in outputs:
        text = os.pread(fd, os.fstat(fd).st_size, 0).decode(errors="surrogateescape")
        texts.append(text.replace("\r\n", "\n").replace("\r", "\n"))  # as a pipe in text mode gives it
        os.close(fd)
    return {"status": status, "stdout": texts[0], "stderr": texts[1]}


def _await(pid: int, timeout_s: float) -> int | None:
    """The exit code of a child; None when it had to be killed."""
    pid_fd = os.pidfd_open(pid)
    ended = select.select([pid_fd], [], [], timeout_s)[0]
    if not ended:
        signal.pidfd_send_signal(pid_fd, signal.SIGKILL)
    os.close(pid_fd)
    _pid, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status) if ended else None


def _be_the_command(request: dict[str, Any], descriptors: list[int]) -> None:
    """The child: never returns."""
    code = 70
    try:
        for number, fd in enumerate(descriptors):
            os.dup2(fd, number)
        os.closerange(3, 256)
        os.environ.clear()
        os.environ.update(request["env"])
        sys.argv = ["zonemgr", *request["words"]]
        _fork_supervisors(request["faults"])
        from zonemgr.cli.main import main as zonemgr

        zonemgr(request["words"])
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0
    except BaseException:  # noqa: BLE001 - whatever it was, the test hears of it
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _fork_supervisors(faults: list[dict[str, Any]]) -> None:
    """In this process and its children a supervisor is started by a fork; the first one gets the faults."""
    from zonemgr.store.paths import Layout
    from zonemgr.wire import start

    def spawn(layout: Layout, zonename: str, ready_fd: int) -> int:
        mine = faults.copy()
        faults.clear()
        pid = os.fork()
        if pid == 0:
            _be_the_starter(layout, zonename, ready_fd, mine)
        return pid

    start._spawn = spawn


def _be_the_starter(layout: Any, zonename: str, ready_fd: int, planted: list[dict[str, Any]]) -> None:
    from tests.kit import faults
    from zonemgr.supervisor import program
    from zonemgr.wire import start

    status = 70
    try:
        os.setsid()
        environment = start.environment()
        os.environ.clear()
        os.environ.update(environment)
        for table in planted:
            faults.plant(faults.Fault(**table))
        os.dup2(ready_fd, 3)
        os.closerange(4, 256)
        status = program.serve(layout, zonename, 3)
    finally:
        os._exit(status)


if __name__ == "__main__":
    if not Path(sys.argv[0]).name.startswith("nursery"):
        raise SystemExit("not for people")
    main()
