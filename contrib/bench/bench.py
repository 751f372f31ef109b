#!/usr/bin/env python3
"""Measures zonemgr beside crun, runc, lxc and podman: boot, halt, exec latency, and what an idle zone costs.

    contrib/bench/bench.py [--rounds N] [--only zonemgr,crun] [--json] [--plot FILE] [--install-peers]
    contrib/bench/bulk.py      many zones at once, and lists of them

Run as root.  Each round boots, enters and halts one container of every program in turn, so that a busy moment of the
machine hits all alike; the table shows medians and what they are as multiples of zonemgr's.  "boot" and "halt" last
until the command returns; "exec" runs true(1) in the container.  "memory" is the proportional set size of the processes
that stay on the host for one idle container: supervisor and zsched, LXC's monitor, podman's conmon; nothing for crun
and runc.

"zonemgr" has its launcher, "cold" is zonemgr without one, "floor" is the least that a C program has to do (floor.c),
without link, limits or records.  A round that began while others kept more than a fifth of the machine busy is marked
as disturbed; the medians leave such rounds out as long as half of them are not.

All of them share the host's /usr read-only, have a user namespace of 65536 ids and pid, mount, network, uts, ipc and
cgroup namespaces; a link on a bridge only where the table says so.  crun refuses hosts with control groups of both
versions, so there all of it runs in a mount namespace that shows cgroup2 alone; --host-cgroups measures without that.
Deliberately not here: image handling, and absolute times as a verdict: only the ratios of one run mean something.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).resolve().parent.parent.parent
PACKAGES: Final = ("crun", "runc", "lxc", "podman", "iproute2")
ID_BASE, ID_COUNT = 1 << 30, 65536  # far from what zonemgr gives to its zones
DEADLINE_S: Final = 60
CAPABILITIES: Final = (
    *("CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_MKNOD"),
    *("CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID"),
)
DISTURBED: Final = 0.2
CGROUPS: Final = Path("/sys/fs/cgroup")
INSIDE: Final = "--inside"  # how the script calls itself in the mount namespace
SHOW_CGROUP2: Final = 'umount -R -l /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup && exec "$0" "$@"'


def run(*words: str, env: dict[str, str] | None = None) -> str:
    """Run a command that has to succeed; what it printed.  Raises SystemExit with its last words."""
    done = subprocess.run(
        words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=DEADLINE_S, env=env, close_fds=False
    )
    if done.returncode != 0:
        raise SystemExit(f"bench: {' '.join(words)}: status {done.returncode}: {done.stderr.strip()[-500:]}")
    return done.stdout


def timed(*words: str, env: dict[str, str] | None = None) -> float:
    """Milliseconds until the command returns.  Its output goes to a file: a container would keep a pipe open."""
    with tempfile.TemporaryFile() as output:
        begun = time.perf_counter()
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            timeout=DEADLINE_S,
            env=env,
            close_fds=False,  # lets the interpreter use vfork, and so costs less of what is measured
        )
        elapsed_ms = (time.perf_counter() - begun) * 1000
        if done.returncode != 0:
            output.seek(0)
            said = output.read().decode(errors="replace").strip()[-500:]
            raise SystemExit(f"bench: {' '.join(words)}: status {done.returncode}: {said}")
    return elapsed_ms


def pss_kb(pids: Sequence[int]) -> int:
    """Proportional set size of the processes together."""
    total = 0
    for pid in pids:
        found = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
        assert found
        total += int(found[1])
    return total


@dataclass
class Program:
    """One program under measurement.  ``watchers`` finds the processes that stay on the host for its container."""

    name: str
    net: str
    boot: Sequence[str]
    execute: Sequence[str]
    halt: Sequence[str]
    watchers: Callable[[], Sequence[int]]
    version: str
    env: dict[str, str] | None = None
    samples: dict[str, list[float]] = field(default_factory=dict)
    disturbed: list[bool] = field(default_factory=list)  # for each round that counts

    def round(self, *, keep: bool) -> None:
        """One boot, exec and halt; counted unless it is the warming up."""
        busy = others_share() > DISTURBED
        figures = {
            "boot": timed(*self.boot, env=self.env),
            "exec": timed(*self.execute, env=self.env),
            "memory": float(pss_kb(self.watchers())),
            "halt": timed(*self.halt, env=self.env),
        }
        if keep:
            self.disturbed.append(busy)
            for kind, figure in figures.items():
                self.samples.setdefault(kind, []).append(figure)

    def quiet(self, kind: str) -> list[float]:
        """The samples of undisturbed rounds, or all of them when too few were."""
        kept = [value for value, busy in zip(self.samples[kind], self.disturbed, strict=True) if not busy]
        return kept if 2 * len(kept) >= len(self.samples[kind]) else self.samples[kind]

    def median(self, kind: str) -> float:
        return statistics.median(self.quiet(kind))

    def p95(self, kind: str) -> float:
        """The sample that 95 of 100 stay below."""
        ordered = sorted(self.quiet(kind))
        return ordered[min(len(ordered) - 1, int(len(ordered) * 0.95))]


def others_share() -> float:
    """The part of the machine that somebody else keeps busy while we do nothing."""
    before, begun = _busy_s(), time.monotonic()
    time.sleep(0.05)
    return (_busy_s() - before) / (time.monotonic() - begun) / (os.cpu_count() or 1)


def _busy_s() -> float:
    user, nice, system, *_ = map(int, Path("/proc/stat").read_text().split(maxsplit=8)[1:8])
    return (user + nice + system) / os.sysconf("SC_CLK_TCK")


# -- a root for the others ----------------------------------------------------------------------------------------


def open_up(folder: Path) -> None:
    """Let everybody walk to the folder, as the mapped root has to."""
    for place in (folder, *folder.parents):
        if place.stat().st_mode & 0o001 == 0:
            place.chmod(place.stat().st_mode | 0o011)


def make_root(folder: Path) -> Path:
    """A root of our own, arranged as the host's, that shares its /usr; everything in it belongs to the mapped root."""
    root = folder / "root"
    for name in ("usr", "etc", "proc", "sys", "dev", "run", "tmp", "var"):
        (root / name).mkdir(parents=True)
    for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
        if Path("/", name).is_symlink():
            (root / name).symlink_to(Path("/", name).readlink())
    (root / "etc/passwd").write_text("root:x:0:0:root:/:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\n")
    for path in [root, *root.rglob("*")]:
        os.chown(path, ID_BASE, ID_BASE, follow_symlinks=False)
    open_up(folder)
    return root


def bundle(folder: Path) -> Path:
    """An OCI bundle for crun and runc (OCI runtime specification, config.md)."""
    folder.mkdir()
    root = make_root(folder)
    mapping = [{"containerID": 0, "hostID": ID_BASE, "size": ID_COUNT}]
    mounts = [
        ("/usr", "bind", "/usr", ["rbind", "ro"]),
        ("/proc", "proc", "proc", []),
        ("/dev", "tmpfs", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
        ("/dev/pts", "devpts", "devpts", ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]),
        ("/dev/shm", "tmpfs", "shm", ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
        ("/dev/mqueue", "mqueue", "mqueue", ["nosuid", "noexec", "nodev"]),
        ("/sys", "sysfs", "sysfs", ["nosuid", "noexec", "nodev", "ro"]),
    ]
    config = {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": ["/usr/bin/sleep", "infinity"],
            "env": ["PATH=/usr/bin:/bin"],
            "cwd": "/",
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), CAPABILITIES),
            "noNewPrivileges": True,
        },
        "root": {"path": str(root)},
        "hostname": "bench",
        "mounts": [
            {"destination": place, "type": kind, "source": source, "options": options}
            for place, kind, source, options in mounts
        ],
        "linux": {
            "uidMappings": mapping,
            "gidMappings": mapping,
            "namespaces": [
                {"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount", "user", "cgroup")
            ],
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


# -- the programs -------------------------------------------------------------------------------------------------


def zonemgr(work: Path) -> Any:
    """Ours, in an instance of its own, with a launcher."""
    return _zonemgr("zonemgr", work, warm=True)


def cold(work: Path) -> Any:
    """Ours, without a launcher."""
    return _zonemgr("cold", work, warm=False)


@contextmanager
def _zonemgr(name: str, work: Path, *, warm: bool) -> Iterator[Program]:
    command = str(HERE / ".venv/bin/zonemgr")
    if not Path(command).exists():
        raise SystemExit("bench: zonemgr is not installed: contrib/setup does that")
    root = work / name
    root.mkdir(mode=0o755)
    alone = {**os.environ, "ZONEMGR_ROOT": str(root), "ZONEMGR_LAUNCHER": "no"}
    words = [command]
    run(*words, "create", "bench", env=alone)
    try:
        run(*words, "install", "bench", env=alone)
        if warm:
            start_launcher(root, alone)
        yield Program(
            name,
            "veth",
            boot=[*words, "boot", "bench"],
            execute=[*words, "login", "bench", "--", "true"],
            halt=[*words, "halt", "bench"],
            watchers=lambda: _zonemgr_pids(root),
            version=run(*words, "--version", env=alone).strip(),
            env={**alone, "ZONEMGR_LAUNCHER": "must"} if warm else alone,
        )
    finally:
        end_launcher(root)
        for verb in (["halt"], ["uninstall", "-F"], ["delete", "-F"]):
            subprocess.run([*words, *verb, "bench"], env=alone, capture_output=True)
        _delete_bridge(root)


def start_launcher(root: Path, env: dict[str, str]) -> None:
    """Returns when it is warm."""
    run(str(HERE / ".venv/bin/python"), "-I", "-m", "zonemgr.launcher", "--root", str(root), env=env)
    deadline = time.monotonic() + DEADLINE_S
    while not (root / "run/zonemgr/launcher").exists() and time.monotonic() < deadline:
        time.sleep(0.01)


def end_launcher(root: Path) -> None:
    """It may be killed at any moment."""
    with suppress(OSError, ValueError):
        os.kill(int((root / "run/zonemgr/launcher.lock").read_text()), 15)


def _zonemgr_pids(root: Path) -> list[int]:
    """Supervisor and zsched: whoever of the instance sits beside the zone's own control group."""
    record = json.loads((root / "run/zonemgr/instances/bench.json").read_text())
    base = Path(record["cgroup"]).parent.parent
    supervisors = [int(word) for word in (base / "_supervisors/cgroup.procs").read_text().split()]
    return [*supervisors, record["zsched"]["pid"]]


def _delete_bridge(root: Path) -> None:
    sys.path.insert(0, str(HERE))
    from zonemgr.store.paths import Layout

    subprocess.run(["ip", "link", "delete", f"zbr0{Layout.at(root).suffix}"], capture_output=True)


@contextmanager
def _oci(name: str, work: Path) -> Iterator[Program]:
    place = bundle(work / name)
    words = [name, "--root", str(work / name / "state")]
    try:
        yield Program(
            name,
            "none",
            boot=[*words, "run", "-d", "--bundle", str(place), "bench"],
            execute=[*words, "exec", "bench", "/usr/bin/true"],
            halt=[*words, "delete", "-f", "bench"],
            watchers=lambda: (),
            version=run(name, "--version").splitlines()[0],
        )
    finally:
        subprocess.run([*words, "delete", "-f", "bench"], capture_output=True)


def crun(work: Path) -> Any:
    """The OCI runtime in C."""
    return _oci("crun", work)


def runc(work: Path) -> Any:
    """The OCI runtime in Go."""
    return _oci("runc", work)


LXC_CONFIG: Final = """
lxc.uts.name = bench
lxc.rootfs.path = dir:{root}
lxc.init.cmd = /usr/bin/sleep infinity
lxc.mount.entry = /usr usr none rbind,ro 0 0
lxc.mount.auto = proc:mixed sys:ro cgroup:mixed
lxc.autodev = 1
lxc.idmap = u 0 {base} {count}
lxc.idmap = g 0 {base} {count}
lxc.apparmor.profile = unconfined
lxc.net.0.type = veth
lxc.net.0.link = {bridge}
lxc.net.0.flags = up
"""


@contextmanager
def lxc(work: Path) -> Iterator[Program]:
    """LXC, with a link on a bridge of its own, as zonemgr's."""
    place = work / "lxc"
    (place / "bench").mkdir(parents=True)
    root = make_root(place / "bench")
    bridge = f"bench{os.getpid()}"
    text = LXC_CONFIG.format(root=root, base=ID_BASE, count=ID_COUNT, bridge=bridge)
    (place / "bench/config").write_text(text)
    run("ip", "link", "add", bridge, "type", "bridge")
    run("ip", "link", "set", bridge, "up")
    who = ["-n", "bench", "-P", str(place)]
    try:
        yield Program(
            "lxc",
            "veth",
            boot=["lxc-start", "-d", *who],
            execute=["lxc-attach", *who, "--", "/usr/bin/true"],
            halt=["lxc-stop", "-k", *who],
            watchers=lambda: [_parent(int(run("lxc-info", "-p", "-H", *who)))],
            version=f"lxc {run('lxc-start', '--version').strip()}",
        )
    finally:
        subprocess.run(["lxc-stop", "-k", *who], capture_output=True)
        run("ip", "link", "delete", bridge)


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@contextmanager
def podman(work: Path) -> Iterator[Program]:
    """Podman over crun, without its network, which is another program's work."""
    place = work / "podman"
    place.mkdir()
    root, note = make_root(place), place / "conmon.pid"
    words = [
        "podman",
        "--root",
        str(place / "storage"),
        "--runroot",
        str(place / "run"),
        "--cgroup-manager=cgroupfs",
        "--events-backend=file",
        *(["--runtime=crun"] if shutil.which("crun") else []),
    ]
    # Its default limits may be higher than ours, which not every root may raise.
    limits = ["--pids-limit=-1", "--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024"]
    options = ["--network=none", *limits, f"--uidmap=0:{ID_BASE}:{ID_COUNT}", f"--gidmap=0:{ID_BASE}:{ID_COUNT}"]
    options += ["--volume=/usr:/usr:ro", f"--conmon-pidfile={note}", "--rootfs", str(root)]
    try:
        yield Program(
            "podman",
            "none",
            boot=[*words, "run", "-d", "--name=bench", *options, "/usr/bin/sleep", "infinity"],
            execute=[*words, "exec", "bench", "/usr/bin/true"],
            halt=[*words, "rm", "-f", "-t", "0", "bench"],
            watchers=lambda: [int(note.read_text())],
            version=run("podman", "--version").strip(),
        )
    finally:
        subprocess.run([*words, "rm", "-f", "-t", "0", "bench"], capture_output=True)


@contextmanager
def floor(work: Path) -> Iterator[Program]:
    """The least that a program in C has to do."""
    place = work / "floor"
    place.mkdir()
    program, root, note = place / "floor", place / "root", place / "pid"
    run("cc", "-O2", "-o", str(program), str(Path(__file__).parent / "floor.c"))
    root.mkdir()
    open_up(root)
    words = [str(program)]
    try:
        yield Program(
            "floor",
            "none",
            boot=[*words, "boot", str(root), str(note)],
            execute=[*words, "exec", str(note)],
            halt=[*words, "halt", str(note)],
            watchers=lambda: (),
            version="floor.c",
        )
    finally:
        subprocess.run([*words, "halt", str(note)], capture_output=True)


MAKERS: Final[dict[str, tuple[str, Callable[[Path], Any]]]] = {
    "zonemgr": ("sh", zonemgr),  # its own check says more
    "cold": ("sh", cold),
    "floor": ("cc", floor),
    "crun": ("crun", crun),
    "runc": ("runc", runc),
    "lxc": ("lxc-start", lxc),
    "podman": ("podman", podman),
}
KINDS: Final = {"boot": "ms", "halt": "ms", "exec": "ms", "memory": "KiB"}


# -- the run ------------------------------------------------------------------------------------------------------


# What the others leave in the cgroup2 tree.
LEFTOVERS: Final = ("lxc.pivot", "libpod_parent", "libpod_parent/conmon", "conmon")


def remove_leftovers() -> None:
    """Remove control groups that others leave behind, unless they hold somebody else's container."""
    for name in reversed(LEFTOVERS):
        for base in (CGROUPS, *CGROUPS.glob("*/")):
            with suppress(OSError):
                (base / name).rmdir()


def measure(names: Sequence[str], rounds: int, work: Path) -> list[Program]:
    """All rounds of all programs; the order turns with each round."""
    with ExitStack() as stack:
        stack.callback(remove_leftovers)
        programs = [stack.enter_context(MAKERS[name][1](work)) for name in names]
        for number in range(-1, rounds):
            turn = number % len(programs)
            for program in [*programs[turn:], *programs[:turn]]:
                program.round(keep=number >= 0)
            print(f"\rround {number + 1} of {rounds} ", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
    return programs


def table(programs: Sequence[Program]) -> str:
    """Medians, and behind each how many times the first program's it is."""
    first = programs[0]
    rows = [["", "net", *(f"{kind} {unit}" for kind, unit in KINDS.items()), "version"]]
    for program in programs:
        cells = [
            _cell(program.median(kind), first.median(kind), program is first, program.p95(kind)) for kind in KINDS
        ]
        rows.append([program.name, program.net, *cells, program.version])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column in (0, 1, 6) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _cell(value: float, base: float, is_first: bool, p95: float) -> str:
    text = f"{_figure(value)}-{_figure(p95)}"
    return text if is_first or not base else f"{text} ({value / base:.2f}x)"


def _figure(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def as_json(programs: Sequence[Program], rounds: int) -> str:
    """Everything measured, for other programs."""
    return json.dumps(
        {
            "rounds": rounds,
            "cpus": os.cpu_count(),
            "kernel": os.uname().release,
            "programs": {
                program.name: {
                    "version": program.version,
                    "net": program.net,
                    "median": {kind: round(program.median(kind), 2) for kind in KINDS},
                    "p95": {kind: round(program.p95(kind), 2) for kind in KINDS},
                    "disturbed": program.disturbed,
                    "samples": {
                        kind: [round(value, 2) for value in values] for kind, values in program.samples.items()
                    },
                }
                for program in programs
            },
        },
        indent=2,
    )


COLOURS: Final = {"boot": "#3b6ea8", "halt": "#b5563c", "exec": "#5b8f4e"}


def plot(programs: Sequence[Program]) -> str:
    """Bars of the medians, as SVG; a bar that would leave the picture is cut, its figure is not."""
    unit, left, width = 18, 90, 560
    most = min(max(program.median(kind) for program in programs for kind in COLOURS), 250.0)
    rows, y = [], 30
    for program in programs:
        rows.append(f'<text x="{left - 8}" y="{y + 1.8 * unit}" text-anchor="end">{program.name}</text>')
        for kind, colour in COLOURS.items():
            value = program.median(kind)
            length = max(1.0, min(1.0, value / most) * width)
            rows.append(f'<rect x="{left}" y="{y}" width="{length:.0f}" height="{unit - 4}" fill="{colour}"/>')
            rows.append(f'<text x="{left + length + 6:.0f}" y="{y + unit - 7}">{kind} {_figure(value)} ms</text>')
            y += unit
        y += unit // 2
    size = f'width="{left + width + 120}" height="{y + 10}"'
    style = 'font-family="sans-serif" font-size="12"'
    title = '<text x="8" y="18">medians of one run; shorter is better</text>'
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>', title, *rows, "</svg>"]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20, help="how often (default: 20)")
    everything = ",".join(MAKERS)
    parser.add_argument("--only", default=everything, help=f"which, the first is the measure (default: {everything})")
    parser.add_argument("--json", action="store_true", help="all samples in JSON instead of the table")
    parser.add_argument("--plot", metavar="FILE", help="draw the medians as SVG into the file")
    parser.add_argument("--host-cgroups", action="store_true", help="with the host's own view of control groups")
    parser.add_argument(INSIDE, action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--install-peers", action="store_true", help="install the others from Debian packages first")
    options = parser.parse_args()
    names = [name for name in options.only.split(",") if name]
    if os.geteuid() != 0:
        parser.error("this must run as root")
    if options.rounds < 1 or not names or set(names) - set(MAKERS):
        parser.error(f"at least one round, and programs among {', '.join(MAKERS)}")
    if options.install_peers:
        env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(["apt-get", "-q", "update"], check=True, env=env)
        subprocess.run(
            ["apt-get", "-q", "install", "-y", "--no-install-recommends", *PACKAGES], check=True, env=env
        )
    hybrid = (CGROUPS / "unified").is_dir()
    if hybrid and not options.inside and not options.host_cgroups:
        show = ["unshare", "--mount", "sh", "-c", SHOW_CGROUP2, sys.executable]
        os.execvp(show[0], [*show, *sys.argv, INSIDE])
    if hybrid:
        names = [name for name in names if name not in ("crun", "podman")]
    missing = [name for name in names if not shutil.which(MAKERS[name][0])]
    if missing:
        print(f"bench: not installed here, left out: {', '.join(missing)} (--install-peers)", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="zonemgr-bench-", dir="/var/tmp") as work:
        programs = measure([name for name in names if name not in missing], options.rounds, Path(work))
    if options.plot:
        Path(options.plot).write_text(plot(programs))
    if options.json:
        print(as_json(programs, options.rounds))
    else:
        shown = "the host's control groups" if options.host_cgroups else "cgroup2 alone"
        disturbed = sum(map(sum, (program.disturbed for program in programs)))
        print(f"{disturbed} of {options.rounds * len(programs)} rounds were disturbed by other load")
        print(f"medians and 95th percentiles of {options.rounds} rounds, {os.cpu_count()} CPUs,", end=" ")
        print(f"kernel {os.uname().release}, {shown}\n")
        print(table(programs))


if __name__ == "__main__":
    main()
