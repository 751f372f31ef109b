#!/usr/bin/env python3
"""Many zones at once: boots and halts of N zones by one command, what an idle one costs, and lists of 10 to 1000.

    contrib/bench/bulk.py [--zones 50,200] [--lists 10,100,1000] [--jobs 1,4] [--crun] [--json]

Run as root.  Zones have a link on the bridge and limits.  "crun" is a loop of ``create`` and ``start`` (``kill`` and
``delete``), as many at once as the largest of ``--jobs``, on a host or in a mount namespace with cgroup2 alone.  The
memory is the proportional set size of all supervisors and zscheds (and of the launcher, apart), divided by the zones.
Deliberately not here: single latencies (bench.py), and absolute times as a verdict.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import bench


class Zones:
    """An instance with zones z1 to zN, and its launcher."""

    def __init__(self, root: Path, command: str) -> None:
        self.root = root
        self.command = command
        self.env = {**os.environ, "ZONEMGR_ROOT": str(root), "ZONEMGR_LAUNCHER": ""}

    def zonemgr(self, *words: str, check: bool = True) -> str:
        done = subprocess.run([self.command, *words], env=self.env, capture_output=True, text=True, check=False)
        if check and done.returncode:
            raise SystemExit(f"bulk: zonemgr {' '.join(words)}: {done.stderr.strip()[-500:]}")
        return done.stdout

    def make(self, count: int) -> None:
        """Install zones until there are so many; copies of the first, which is the quickest way."""
        there = sum(line.split(":")[1].startswith("z") for line in self.zonemgr("list", "-cp").splitlines())
        for number in range(there + 1, count + 1):
            self.zonemgr("create", f"z{number}")
            for words in (["add", "capped-memory", "physical=64M", "swap=64M"],):
                self.zonemgr("config", f"z{number}", *words)
            self.zonemgr("install", f"z{number}")
            print(f"\rzone {number} of {count} ", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)

    def timed(self, *words: str) -> float:
        """Milliseconds of a command."""
        begun = time.perf_counter()
        self.zonemgr(*words)
        return (time.perf_counter() - begun) * 1000

    def memory_kb(self) -> tuple[float, float]:
        """Of an idle zone's supervisor and zsched, and of the launcher."""
        records = [json.loads(path.read_text()) for path in (self.root / "run/zonemgr/instances").glob("*.json")]
        base = Path(records[0]["cgroup"]).parent.parent
        supervisors = [int(word) for word in (base / "_supervisors/cgroup.procs").read_text().split()]
        pids = [*supervisors, *(record["zsched"]["pid"] for record in records)]
        launcher = int((self.root / "run/zonemgr/launcher.lock").read_text())
        return bench.pss_kb(pids) / len(records), float(bench.pss_kb([launcher]))

    def end(self) -> None:
        self.zonemgr("halt", "-a", check=False)
        for line in self.zonemgr("list", "-cp", check=False).splitlines():
            name = line.split(":")[1]
            if name != "global":
                self.zonemgr("uninstall", "-F", name, check=False)
                self.zonemgr("delete", "-F", name, check=False)
        bench.end_launcher(self.root)


@contextmanager
def zones() -> Iterator[Zones]:
    """An instance that goes again."""
    command = bench.HERE / ".venv/bin/zonemgr"
    with tempfile.TemporaryDirectory(prefix="zonemgr-bulk-", dir="/var/tmp") as folder:
        root = Path(folder)
        root.chmod(0o755)
        found = Zones(root, str(command))
        bench.start_launcher(root, found.env)
        try:
            yield found
        finally:
            found.end()


def measure_zones(counts: Sequence[int], jobs: Sequence[int]) -> list[dict[str, Any]]:
    """Per zone: milliseconds of boot and halt, KiB of an idle one."""
    rows = []
    with zones() as found:
        for count in counts:
            found.make(count)
            for at_once in jobs:
                boot = found.timed("boot", "-a", "-j", str(at_once))
                memory, launcher = found.memory_kb()
                halt = found.timed("halt", "-a", "-j", str(at_once))
                row = {"what": "zonemgr", "count": count, "jobs": at_once, "boot": boot / count, "halt": halt / count}
                rows.append({**row, "memory": memory, "launcher": launcher})
    return rows


def measure_crun(counts: Sequence[int], at_once: int) -> list[dict[str, Any]]:
    """The same of crun, in a loop."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="zonemgr-bulk-", dir="/var/tmp") as folder:
        place = bench.bundle(Path(folder) / "crun")
        words = ["crun", "--root", f"{folder}/state"]

        def boot(number: int) -> None:
            bench.timed(*words, "create", "--bundle", str(place), f"z{number}")
            bench.timed(*words, "start", f"z{number}")

        def halt(number: int) -> None:
            bench.timed(*words, "delete", "-f", f"z{number}")

        for count in counts:
            figures = {"boot": each(boot, count, at_once), "halt": each(halt, count, at_once)}
            rows.append({"what": "crun", "count": count, "jobs": at_once, **figures})
    return rows


def each(act: Callable[[int], None], count: int, at_once: int) -> float:
    """Milliseconds per item when so many are worked on side by side."""
    begun = time.perf_counter()
    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(act, range(count)))
    return (time.perf_counter() - begun) * 1000 / count


def measure_lists(counts: Sequence[int]) -> list[dict[str, Any]]:
    """Milliseconds of ``list -c``: the best of five."""
    rows = []
    with zones() as found:
        found.zonemgr("create", "first")
        pattern = (found.root / "etc/zonemgr/zones/first.toml").read_text()
        there = 1
        for count in counts:
            for number in range(there, count):
                path = found.root / f"etc/zonemgr/zones/y{number}.toml"
                path.write_text(pattern.replace('"first"', f'"y{number}"'))
            there = count
            found.zonemgr("list", "-c")
            rows.append({"what": "list", "count": count, "list": min(found.timed("list", "-c") for _ in range(5))})
    return rows


def numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",") if word]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--zones", type=numbers, default=[50, 200], help="how many zones (default: 50,200)")
    parser.add_argument("--lists", type=numbers, default=[10, 100, 1000], help="lists of so many (10,100,1000)")
    parser.add_argument("--jobs", type=numbers, default=[1, 4], help="how many at once (default: 1,4)")
    parser.add_argument("--crun", action="store_true", help="crun beside it")
    parser.add_argument("--json", action="store_true", help="everything in JSON")
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("this must run as root")
    rows = measure_zones(options.zones, options.jobs) if options.zones else []
    if options.crun and shutil.which("crun"):
        rows += measure_crun(options.zones, max(options.jobs))
    rows += measure_lists(options.lists) if options.lists else []
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    for row in rows:
        figures = {key: value for key, value in row.items() if isinstance(value, float)}
        shown = ", ".join(f"{key} {value:.1f}" for key, value in figures.items())
        at_once = f" ({row['jobs']} at once)" if "jobs" in row else ""
        print(f"{row['what']:8} {row['count']:5}{at_once}: {shown}")


if __name__ == "__main__":
    main()
