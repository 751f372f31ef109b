"""A zonemgr instance of its own, driven as a user drives it: through the command.

It lives in a folder below /var/tmp (never a tmpfs: id-mapped mounts and real disks are the point).  Its bridge, links
and control groups carry the suffix of that folder, so that it runs beside other instances of the same host.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import zonemgr
from tests.kit import answers, leaks
from tests.kit.processes import Started
from tests.kit.waiting import PATIENCE, until
from zonemgr.errors import ZoneError
from zonemgr.launcher.start import LOCK as LAUNCHER_LOCK
from zonemgr.store.locks import FileLock
from zonemgr.store.paths import ROOT_VARIABLE, Layout
from zonemgr.wire import launch

TIMEOUT_S: Final = 120.0 * PATIENCE
CHECKOUT: Final = Path(zonemgr.__file__).resolve().parent.parent


class Failed(AssertionError):
    """A command did not end as the test wants; the text shows what it said."""


class Runner(Protocol):
    """Runs the program without starting it (``tests.kit.nursery``)."""

    def complete(
        self, words: Sequence[str], env: Mapping[str, str], input: str | None, timeout_s: float
    ) -> subprocess.CompletedProcess[str]: ...


class Instance:
    """One instance.  ``command`` are the words that start the program: this checkout's, unless told otherwise.

    With a ``runner`` it is not started for every command but forked from a process where it is loaded.
    """

    def __init__(self, root: Path, command: Sequence[str] = (), runner: Runner | None = None) -> None:
        self.root = root
        self.layout = Layout.at(root)
        self.command = tuple(command) or (sys.executable, "-m", "zonemgr")
        self.runner = None if command else runner
        self.suffix = self.layout.suffix
        self.switch = "no"  # what is tested is a command on its own, unless ``warm`` was called
        self.bridge = "zbr0" + self.suffix
        self._started: list[Started] = []

    @property
    def env(self) -> dict[str, str]:
        """The caller's environment with this instance in it."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV_"))}
        ours = {ROOT_VARIABLE: str(self.root), launch.SWITCH: self.switch}
        return {**kept, **ours, "PYTHONPATH": str(CHECKOUT), "LC_ALL": "C.UTF-8"}

    def run(
        self,
        *args: str,
        check: bool | int = True,
        timeout: float = TIMEOUT_S,
        input: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run ``zonemgr ARGS`` to its end.  ``check``: True wants status 0, a number for that one, False for any."""
        if self.runner is not None and env is None:
            done = self.runner.complete(args, self.env, input, timeout)
        else:
            done = self._start(args, {**self.env, **(env or {})}, input, timeout)
        answers.check(args, done.returncode, done.stdout)
        wanted = 0 if check is True else check
        if check is not False and done.returncode != wanted:
            raise Failed(
                f"zonemgr {' '.join(args)}: status {done.returncode}, expected {wanted}\n{done.stdout}{done.stderr}"
            )
        return done

    def _start(
        self, args: Sequence[str], env: Mapping[str, str], input: str | None, timeout_s: float
    ) -> subprocess.CompletedProcess[str]:
        stdin: dict[str, Any] = {"stdin": subprocess.DEVNULL} if input is None else {"input": input}
        return subprocess.run(
            [*self.command, *args],
            env=env,
            capture_output=True,
            text=True,
            errors="surrogateescape",
            timeout=timeout_s,
            **stdin,
        )

    def popen(self, *args: str, **more: Any) -> Started:
        """Start ``zonemgr ARGS``; the caller ends and waits for it.  Keywords are Popen's."""
        options: dict[str, Any] = {
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "env": self.env,
        }
        started = Started([*self.command, *args], text=True, **{**options, **more})
        self._started.append(started)
        return started

    def json(self, *args: str, timeout: float = TIMEOUT_S) -> Any:
        """What ``zonemgr --json ARGS`` answers."""
        return json.loads(self.run("--json", *args, timeout=timeout).stdout)

    # -- the launcher -------------------------------------------------------------------------------------------

    def warm(self) -> int:
        """Start the instance's launcher: from here on its forks run the commands, or they fail.  Returns its pid."""
        self.start_launcher()
        until((self.layout.run / launch.NAME).exists, "the launcher's start")
        self.switch = "must"
        return self.launcher_pid()

    def start_launcher(self) -> None:
        """Start it; it goes on in the background, and is not there at once."""
        words = [sys.executable, "-m", "zonemgr.launcher", "--root", str(self.root)]
        subprocess.run(words, env=self.env, check=True, timeout=TIMEOUT_S)

    def launcher_pid(self) -> int:
        """Of the launcher that lives; 0 when there is none."""
        lock = FileLock(self.layout.run / LAUNCHER_LOCK)
        if not lock.path.exists() or lock.acquire(blocking=False):
            lock.release()
            return 0
        return int(lock.path.read_text() or 0)

    def cool(self) -> None:
        """End the launcher."""
        pid = self.launcher_pid()
        if pid:
            os.kill(pid, signal.SIGTERM)
            until(lambda: not self.launcher_pid(), "the launcher's end")
        self.switch = "no"

    # -- zones --------------------------------------------------------------------------------------------------

    def configured(self, name: str = "web", *args: str) -> str:
        """A new zone in state configured; ``args`` are create's.  Returns its name, as do the next two."""
        self.run("create", name, *args)
        return name

    def installed(self, name: str = "web", *args: str) -> str:
        """A new zone in state installed."""
        self.configured(name, *args)
        self.run("install", name)
        return name

    def running(self, name: str = "web", *args: str) -> str:
        """A new zone, booted."""
        self.installed(name, *args)
        self.run("boot", name)
        return name

    def states(self) -> dict[str, str]:
        """Zone -> state, without the global zone."""
        rows = [line.split(":") for line in self.run("list", "-cp").stdout.splitlines()]
        return {row[1]: row[2] for row in rows if row[1] != "global"}

    def state(self, name: str = "web") -> str:
        """The state as ``list`` shows it; "" for a zone that is not configured."""
        return self.states().get(name, "")

    def login(self, name: str, *words: str, check: bool | int = True) -> str:
        """What a command prints in the zone."""
        return self.run("login", name, "--", *words, check=check).stdout

    # -- the end ------------------------------------------------------------------------------------------------

    def close(self) -> list[str]:
        """End the instance in good order; what went wrong, one line each.  Leaks are looked for after this."""
        problems = [f"{one.args!r} has not ended" for one in self._started if one.end()]
        try:
            for name, state in self.states().items():
                if state not in ("configured", "incomplete", "installed"):
                    done = self.run("unmount" if state == "mounted" else "halt", name, check=False)
                    problems += [f"{name} in state {state}: {line}" for line in _failure(done)]
        except (Failed, OSError, subprocess.TimeoutExpired) as error:
            problems.append(str(error))
        self.cool()
        problems += self._delete_bridge()
        return problems

    def _delete_bridge(self) -> list[str]:
        from zonemgr.linux import netlink, nft

        nft.delete_tables("zonemgr" + self.suffix)
        if not Path("/sys/class/net", self.bridge).exists():
            return []
        try:
            netlink.delete_link(self.bridge)
        except (OSError, ZoneError) as error:
            return [str(error)]
        return []

    def force(self) -> None:
        """Kill and remove whatever is still there, and the folder: the next test starts clean whatever this one did."""
        for started in self._started:
            started.end()
        for base in [base for base in leaks.bases() if base.name == "zonemgr" + self.suffix]:
            _kill(base)
            for folder, _, _ in os.walk(base, topdown=False):
                _remove_cgroup(Path(folder))
        for point in self._mounts():
            subprocess.run(["umount", "--lazy", point], capture_output=True)
        if not self._mounts():  # otherwise we would delete what is mounted
            shutil.rmtree(self.root, ignore_errors=True)

    def _mounts(self) -> list[str]:
        text = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
        points = [line.split(" ")[4] for line in text.splitlines()]
        return [point for point in reversed(points) if point.startswith(f"{self.root}/")]


def _failure(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [] if done.returncode == 0 else (done.stderr.strip().splitlines() or [f"status {done.returncode}"])


def _kill(base: Path) -> None:
    """SIGKILL to everything below, again and again while it forks or ends."""
    for _ in range(20):
        pids = {pid for folder, _, _ in os.walk(base) for pid in _read(Path(folder, "cgroup.procs")).split()}
        if not pids:
            return
        for pid in pids:
            try:
                os.kill(int(pid), signal.SIGKILL)
            except ProcessLookupError:
                continue
        subprocess.run(["true"])  # as long as a process takes to come and go


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""


def _remove_cgroup(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:
        return  # still populated: the leak check has named it
