#!/usr/bin/env python3
"""Measures zonemgr beside crun, runc, lxc, podman, systemd-nspawn and bubblewrap, in one run.

    contrib/bench/bench.py [--rounds N] [--only zonemgr,crun] [--zones 20,50,200] [--lists 10,100,1000]
                           [--jobs 1,4] [--write FOLDER] [--json] [--install-peers]

Run as root, on a quiet machine; about ten minutes.  Each round boots, enters and halts one container of every program
in turn, so that a busy moment of the machine hits all alike; the table shows medians, 95th percentiles, and what they
are as multiples of zonemgr's.  "boot" and "halt" last until the command returns; "exec" runs true(1) in the container.
"memory" is the proportional set size of the processes that stay on the host for one idle container: supervisor and
zsched, LXC's monitor, podman's conmon, nspawn and bwrap themselves; nothing for crun and runc.

"zonemgr" has its launcher, "zonemgr-bare" neither link nor limits, "cold" is zonemgr without a launcher, "floor" is the
least that a C program has to do (floor.c), without link, limits or records.  A round that began while others kept more
than a fifth of the machine busy is marked as disturbed; the medians leave such rounds out as long as half of them are
not.  A program that fails is left out from there on, and the report says why.

After the rounds: many zones booted and halted by one command, beside crun in a loop, memory of many idle zones, and
lists.  --write keeps all of it as bench.json and bench.svg.
Deliberately not here: image handling, and absolute times as a verdict: only the ratios of one run mean something.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import bulk
import report
from peers import MAKERS, Failed, Program, View, Views, remove_leftovers


def measure(names: Sequence[str], rounds: int, work: Path, views: Views) -> list[Program]:
    """All rounds of all programs; the order turns with each round."""
    with ExitStack() as stack:
        stack.callback(remove_leftovers)
        programs: list[Program] = []
        for name in names:
            try:
                programs += stack.enter_context(MAKERS[name][2](work))
            except (Failed, OSError, subprocess.SubprocessError) as error:
                print(f"bench: {name} cannot be set up: {error}", file=sys.stderr)
        stack.callback(views.take, View.HOST)  # where all of them are taken down
        for number in range(-1, rounds):
            turn = number % max(1, len(programs))
            for program in [*programs[turn:], *programs[:turn]]:
                if not program.failure:
                    _round(program, views, keep=number >= 0)
            bulk.say(f"round {number + 1} of {rounds}")
    return programs


def _round(program: Program, views: Views, *, keep: bool) -> None:
    views.take(program.view)
    try:
        program.round(keep=keep)
    except (Failed, OSError, subprocess.SubprocessError) as error:
        program.failure = str(error)


def numbers(text: str) -> list[int]:
    """Of "50,200"."""
    return [int(word) for word in text.split(",") if word]


def _folder(text: str) -> Path:
    """A change of the mount namespace leaves the working folder behind, and with it what is relative to it."""
    return Path(text).absolute()


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20, help="how often (default: 20)")
    everything = ",".join(MAKERS)
    parser.add_argument("--only", default=everything, help=f"which, the first is the measure (default: {everything})")
    parser.add_argument("--zones", type=numbers, default=[20, 50, 200], help="many zones (default: 20,50,200)")
    parser.add_argument("--lists", type=numbers, default=[10, 100, 1000], help="lists of so many (10,100,1000)")
    parser.add_argument("--jobs", type=numbers, default=[1, 4], help="how many at once (default: 1,4)")
    parser.add_argument("--json", action="store_true", help="all samples in JSON instead of the table")
    parser.add_argument("--write", metavar="FOLDER", type=_folder, help="bench.json and bench.svg into the folder, too")
    parser.add_argument("--install-peers", action="store_true", help="install the others from Debian packages first")
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("this must run as root")
    names = options.only.split(",") if options.only else []
    if options.rounds < 1 or set(names) - set(MAKERS):
        parser.error(f"at least one round, and programs among {everything}")
    return options


def install_peers() -> None:
    """The others, and what they need."""
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    packages = ["iproute2", "libc6-dev", *(package for _, package, _ in MAKERS.values() if package)]
    subprocess.run(["apt-get", "-q", "update"], check=True, env=env)
    subprocess.run(["apt-get", "-q", "install", "-y", "--no-install-recommends", *packages], check=True, env=env)


def main() -> None:
    options = parsed()
    if options.install_peers:
        install_peers()
    names = options.only.split(",") if options.only else []
    missing = [name for name in names if not shutil.which(MAKERS[name][0])]
    if "zonemgr" in missing or not shutil.which(MAKERS["zonemgr"][0]):
        raise SystemExit("bench: zonemgr is not installed: contrib/setup does that")
    if missing:
        print(f"bench: not installed here, left out: {', '.join(missing)} (--install-peers)", file=sys.stderr)
    views = Views()
    with tempfile.TemporaryDirectory(prefix="zonemgr-bench-", dir="/var/tmp") as work:
        names = [name for name in names if name not in missing]
        programs = measure(names, options.rounds, Path(work), views) if names else []
    rows = bulk.measure(options.zones, options.jobs, options.lists, views)
    as_json = report.as_json(programs, rows, options.rounds)
    if options.write:
        (options.write / "bench.json").write_text(as_json + "\n")
        if any(program.samples for program in programs):
            (options.write / "bench.svg").write_text(report.plot(programs))
    print(as_json if options.json else report.text(programs, rows, options.rounds))


if __name__ == "__main__":
    main()
