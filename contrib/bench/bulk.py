"""Many zones at once: boots and halts of N zones by one command, what an idle one costs, and lists of 10 to 1000.

``bench.py`` measures these after its rounds.  Zones have a link on the bridge and limits.  "crun" is a loop of
``create`` and ``start`` (and of ``delete``), so many at once.  The memory is the proportional set size of all
supervisors and zscheds (and of the launcher, apart), divided by the zones.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any, Final

import peers
from peers import DISTURBED, Failed, View, Views, others_share, pss_kb, timed

AT_ONCE: Final = 4  # for making the zones, which is not measured
KSM: Final = Path("/sys/kernel/mm/ksm")
MERGE_S: Final = 120.0


class Zones:
    """An instance with zones z1 to zN, and its launcher."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.count = 0
        self.env: Mapping[str, str] = {**os.environ, "ZONEMGR_ROOT": str(root), "ZONEMGR_LAUNCHER": ""}

    def zonemgr(self, *words: str) -> str:
        """Raises Failed."""
        done = subprocess.run([peers.COMMAND, *words], env=self.env, capture_output=True, text=True, check=False)
        if done.returncode:
            raise Failed(f"zonemgr {' '.join(words)}: {done.stderr.strip()[-500:]}")
        return done.stdout

    def make(self, count: int) -> None:
        """Install zones until there are so many; copies of the first, which is the quickest way."""
        if self.count == 0 and count:
            self.zonemgr("create", "z1")
            for words in peers.LIMITS:
                self.zonemgr("config", "z1", *words)
            self.zonemgr("install", "z1")
            self.count = 1
        news = [f"z{number}" for number in range(self.count + 1, count + 1)]
        for name in news:
            self.zonemgr("create", name, "-t", "z1")
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(lambda name: self.zonemgr("install", name), news))
        self.count = max(self.count, count)

    def timed(self, *words: str) -> float:
        """Milliseconds of a command."""
        begun = time.perf_counter()
        self.zonemgr(*words)
        return (time.perf_counter() - begun) * 1000

    def memory_kb(self) -> tuple[float, float]:
        """Of an idle zone's supervisor and zsched, and of the launcher."""
        names = [path.stem for path in (self.root / "run/zonemgr/instances").glob("*.json")]
        launcher = int((self.root / "run/zonemgr/launcher.lock").read_text())
        return pss_kb(peers.zonemgr_pids(self.root, *names)) / len(names), float(pss_kb([launcher]))


    def merged_kb(self) -> float:
        """Of an idle zone's supervisor and zsched, where the kernel merges equal pages (KSM)."""
        with merging() as passes:
            self.zonemgr("boot", "-a", "-j", str(AT_ONCE))
            self.zonemgr("list")
            begun = passes()
            deadline = time.monotonic() + MERGE_S
            while passes() < begun + 3 and time.monotonic() < deadline:
                time.sleep(0.5)
            memory, _launcher = self.memory_kb()
            self.zonemgr("halt", "-a", "-j", str(AT_ONCE))
        return memory


@contextmanager
def merging() -> Iterator[Callable[[], int]]:
    """The kernel merges meanwhile, as fast as it can; what is given counts how often it has looked at everything."""
    wanted = {"sleep_millisecs": "0", "pages_to_scan": "20000", "run": "1"}
    before = {name: (KSM / name).read_text() for name in wanted}
    try:
        for name, value in wanted.items():
            (KSM / name).write_text(value)
        yield lambda: int((KSM / "full_scans").read_text())
    finally:
        for name, value in before.items():
            (KSM / name).write_text(value)


@contextmanager
def zones() -> Iterator[Zones]:
    """An instance that goes again."""
    with tempfile.TemporaryDirectory(prefix="zonemgr-bulk-", dir="/var/tmp") as folder:
        root = Path(folder)
        found = Zones(root)
        with peers.in_memory(root / "run"):
            peers.start_launcher(root, found.env)
            try:
                yield found
            finally:
                peers.end_instance(root, found.env)


def say(text: str) -> None:
    """How far it has come, for who waits."""
    print(f"\r{text:<40}", end="", file=sys.stderr, flush=True)


def measure_zones(counts: Sequence[int], jobs: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Per zone: milliseconds of boot and halt, KiB of an idle one."""
    with zones() as found:
        for count in sorted(counts):
            say(f"making {count} zones")
            found.make(count)
            for at_once in jobs:
                say(f"{count} zones, {at_once} at once")
                busy = others_share() > DISTURBED
                boot = found.timed("boot", "-a", "-j", str(at_once))
                memory, launcher = found.memory_kb()
                halt = found.timed("halt", "-a", "-j", str(at_once))
                row = {"what": "zonemgr", "count": count, "jobs": at_once, "boot": boot / count, "halt": halt / count}
                yield {**row, "memory": memory, "launcher": launcher, "disturbed": busy}
            if KSM.exists():
                say(f"{count} zones, equal pages merged")
                yield {"what": "zonemgr", "count": count, "memory": found.merged_kb(), "note": "KSM"}


def measure_crun(counts: Sequence[int], jobs: Sequence[int], views: Views) -> Iterator[dict[str, Any]]:
    """The same of crun, in a loop."""
    with tempfile.TemporaryDirectory(prefix="zonemgr-bulk-", dir="/var/tmp") as folder:
        place = peers.bundle(Path(folder) / "crun", limited=not peers.HYBRID)
        words = ["crun", "--root", ""]

        def boot(number: int) -> None:
            timed(*words, "create", "--bundle", str(place), f"z{number}")
            timed(*words, "start", f"z{number}")

        def halt(number: int) -> None:
            timed(*words, "delete", "-f", f"z{number}")

        views.take(View.CGROUP2)
        try:
            with peers.run_folder() as state:
                words[2] = state
                for count, at_once in product(sorted(counts), jobs):
                    say(f"{count} of crun, {at_once} at once")
                    busy = others_share() > DISTURBED
                    figures = {"boot": each(boot, count, at_once), "halt": each(halt, count, at_once)}
                    yield {"what": "crun", "count": count, "jobs": at_once, **figures, "disturbed": busy}
        finally:
            views.take(View.HOST)


def each(act: Callable[[int], None], count: int, at_once: int) -> float:
    """Milliseconds per item when so many are worked on side by side."""
    begun = time.perf_counter()
    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(act, range(count)))
    return (time.perf_counter() - begun) * 1000 / count


def measure_lists(counts: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Milliseconds of ``list -c``: the best of five."""
    with zones() as found:
        found.zonemgr("create", "first")
        pattern = (found.root / "etc/zonemgr/zones/first.toml").read_text()
        there = 1
        for count in sorted(counts):
            say(f"lists of {count}")
            for number in range(there, count):
                path = found.root / f"etc/zonemgr/zones/y{number}.toml"
                path.write_text(pattern.replace('"first"', f'"y{number}"'))
            there = count
            found.zonemgr("list", "-c")
            busy = others_share() > DISTURBED
            best = min(found.timed("list", "-c") for _ in range(5))
            yield {"what": "list", "count": count, "list": best, "disturbed": busy}


def measure(counts: Sequence[int], jobs: Sequence[int], lists: Sequence[int], views: Views) -> list[dict[str, Any]]:
    """All of it, as far as it goes: a part that fails says so and leaves the others alone."""
    rows: list[dict[str, Any]] = []
    parts = [measure_zones(counts, jobs)] if counts else []
    parts += [measure_crun(counts, jobs, views)] if counts and shutil.which("crun") else []
    parts += [measure_lists(lists)] if lists else []
    for part in parts:
        try:
            rows += part
        except (Failed, OSError, subprocess.SubprocessError) as error:
            print(f"\nbench: {error}", file=sys.stderr)
    say("")
    return rows
