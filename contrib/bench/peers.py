"""The programs under measurement: how each boots, enters and ends one container, and what of it stays on the host.

All of them share the host's /usr read-only, have a user namespace of 65536 ids and pid, mount, network, uts, ipc and
cgroup namespaces; a link on a bridge and limits (memory, processors, processes) only where the table says so.

crun, podman and systemd-nspawn refuse hosts with control groups of both versions.  There they run where cgroup2 alone
is to be seen, and so without limits, for its tree has no controllers then; the others run in the host's own view.

Deliberately not here: rounds and tables (bench.py, report.py), many containers at once (bulk.py).
"""

from __future__ import annotations

import ctypes
import enum
import errno
import json
import os
import re
import select
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).resolve().parent.parent.parent
ID_BASE, ID_COUNT = 1 << 30, 65536  # far from what zonemgr gives to its zones
DEADLINE_S: Final = 60
CAPABILITIES: Final = (
    *("CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_MKNOD"),
    *("CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID"),
)
MEMORY_MIB, PROCESSES = 64, 512  # the limits of all who have some, and one processor
DISTURBED: Final = 0.2
CGROUPS: Final = Path("/sys/fs/cgroup")
HYBRID: Final = (CGROUPS / "unified").is_dir()
COMMAND: Final = str(HERE / ".venv/bin/zonemgr")
_NEWNS: Final = 0x20000
_MS_REC, _MS_PRIVATE, _MNT_DETACH = 0x4000, 1 << 18, 2

Act = Callable[[], float]  # does something; how many milliseconds it took


class Failed(Exception):
    """A program could not do what is measured; the text says which and why."""


def run(*words: str, env: Mapping[str, str] | None = None) -> str:
    """Run a command that has to succeed; what it printed.  Raises Failed with its last words."""
    done = subprocess.run(
        words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=DEADLINE_S, env=env, close_fds=False
    )
    if done.returncode != 0:
        raise Failed(f"{' '.join(words)}: status {done.returncode}: {done.stderr.strip()[-500:]}")
    return done.stdout


def timed(*words: str, env: Mapping[str, str] | None = None) -> float:
    """Milliseconds until the command returns.  Its output goes to a file: a container would keep a pipe open."""
    with tempfile.TemporaryFile() as output:
        begun = time.perf_counter()
        done = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=env,
            close_fds=False,  # lets the interpreter use vfork, and so costs less of what is measured
        )
        status = ended(done)
        elapsed_ms = (time.perf_counter() - begun) * 1000
        if status != 0:
            output.seek(0)
            said = output.read().decode(errors="replace").strip()[-500:]
            raise Failed(f"{' '.join(words)}: status {status}: {said}")
    return elapsed_ms


def ended(program: subprocess.Popen[bytes]) -> int:
    """Wait for its end; its status.  The kernel wakes us: with a deadline, subprocess itself sleeps and looks again, up
    to 50 ms at a time, and everything would take 15, 31, 63, 113 or 163 ms.  Raises Failed at the deadline.
    """
    pid_fd = os.pidfd_open(program.pid)
    try:
        if not select.select([pid_fd], [], [], DEADLINE_S)[0]:
            program.kill()
            raise Failed(f"{program.args!r}: not done within {DEADLINE_S} seconds")
    finally:
        os.close(pid_fd)
    return program.wait()


def commands(*lines: Sequence[str], env: Mapping[str, str] | None = None) -> Act:
    """One command after the other."""
    return lambda: sum(timed(*line, env=env) for line in lines)


def pss_kb(pids: Sequence[int]) -> int:
    """Proportional set size of the processes together."""
    total = 0
    for pid in pids:
        found = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
        assert found
        total += int(found[1])
    return total


def run_folder() -> tempfile.TemporaryDirectory[str]:
    """A folder in memory, as /run is on hosts: what programs note there does not wait for a disk."""
    return tempfile.TemporaryDirectory(prefix="zonemgr-bench-", dir="/dev/shm")


@contextmanager
def in_memory(folder: Path) -> Iterator[None]:
    """The same for a folder at its place; seen in the host's view only."""
    folder.mkdir(mode=0o755, parents=True)
    folder.parent.chmod(0o755)
    run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", str(folder))
    try:
        yield
    finally:
        run("umount", "--lazy", str(folder))


def others_share() -> float:
    """The part of the machine that somebody else keeps busy while we do nothing."""
    before, begun = _busy_s(), time.monotonic()
    time.sleep(0.05)
    return (_busy_s() - before) / (time.monotonic() - begun) / (os.cpu_count() or 1)


def _busy_s() -> float:
    user, nice, system, *_ = map(int, Path("/proc/stat").read_text().split(maxsplit=8)[1:8])
    return (user + nice + system) / os.sysconf("SC_CLK_TCK")


# -- which control groups are to be seen --------------------------------------------------------------------------


class View(enum.Enum):
    """What of the host's control groups a program sees."""

    HOST = "the host's control groups"
    CGROUP2 = "cgroup2 alone"


class Views:
    """Changes the mount namespace of this process, and so of what it starts, between the two.

    A process of one thread may; starting the program inside another program (unshare, nsenter) would be measured too.
    """

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._now = View.HOST
        self._fds = {View.HOST: self._mounts()}
        if HYBRID:
            self._check(self._libc.unshare(_NEWNS))
            self._check(self._libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None))
            while self._libc.umount2(b"/sys/fs/cgroup", _MNT_DETACH) == 0:
                pass
            self._check(self._libc.mount(b"none", b"/sys/fs/cgroup", b"cgroup2", 0, None))
            self._fds[View.CGROUP2] = self._mounts()
            self._now = View.CGROUP2
            self.take(View.HOST)

    def take(self, view: View) -> None:
        """See this from now on."""
        if view is not self._now and view in self._fds:
            for _ in range(100):  # a thread that was joined may not quite have gone
                if self._libc.setns(self._fds[view], _NEWNS) == 0 or ctypes.get_errno() != errno.EINVAL:
                    break
                time.sleep(0.01)
            self._check(self._libc.setns(self._fds[view], _NEWNS))
            self._now = view

    @staticmethod
    def _mounts() -> int:
        return os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)

    @staticmethod
    def _check(result: int) -> None:
        if result != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@dataclass
class Program:
    """One program under measurement.  ``watchers`` finds the processes that stay on the host for its container."""

    name: str
    net: str
    limits: str
    boot: Act
    execute: Act
    halt: Act
    version: str
    watchers: Callable[[], Sequence[int]] = tuple
    view: View = View.HOST
    failure: str = ""  # why it is no longer measured
    samples: dict[str, list[float]] = field(default_factory=dict)
    disturbed: list[bool] = field(default_factory=list)  # for each round that counts

    def round(self, *, keep: bool) -> None:
        """One boot, exec and halt; counted unless it is the warming up.  Raises Failed."""
        busy = others_share() > DISTURBED
        figures = {"boot": self.boot(), "exec": self.execute(), "memory": float(pss_kb(self.watchers()))}
        figures["halt"] = self.halt()
        if keep:
            self.disturbed.append(busy)
            for kind, figure in figures.items():
                self.samples.setdefault(kind, []).append(figure)

    def quiet(self, kind: str) -> list[float]:
        """The samples of undisturbed rounds, or all of them when too few were."""
        samples = self.samples.get(kind, [])
        kept = [value for value, busy in zip(samples, self.disturbed, strict=True) if not busy]
        return kept if 2 * len(kept) >= len(samples) else samples

    def median(self, kind: str) -> float:
        return statistics.median(self.quiet(kind))

    def p95(self, kind: str) -> float:
        """The sample that 95 of 100 stay below."""
        ordered = sorted(self.quiet(kind))
        return ordered[min(len(ordered) - 1, int(len(ordered) * 0.95))]


# -- zonemgr ------------------------------------------------------------------------------------------------------


LIMITS: Final = (
    ["add", "capped-memory", f"physical={MEMORY_MIB}M", f"swap={MEMORY_MIB}M"],
    ["add", "capped-cpu", "ncpus=1"],
    ["set", f"max-processes={PROCESSES}"],
)


@contextmanager
def zonemgr(work: Path) -> Iterator[list[Program]]:
    """Ours, in an instance of its own: with a launcher, the same without link and limits, and without a launcher."""
    root = work / "zonemgr"
    alone = {**os.environ, "ZONEMGR_ROOT": str(root), "ZONEMGR_LAUNCHER": "no"}
    version = run(COMMAND, "--version", env=alone).strip()

    def program(name: str, zone: str, net: str, limits: str, launcher: str) -> Program:
        env = {**alone, "ZONEMGR_LAUNCHER": launcher}
        return Program(
            name,
            net,
            limits,
            boot=commands([COMMAND, "boot", zone], env=env),
            execute=commands([COMMAND, "login", zone, "--", "true"], env=env),
            halt=commands([COMMAND, "halt", zone], env=env),
            watchers=lambda: zonemgr_pids(root, zone),
            version=version,
        )

    with in_memory(root / "run"):
        try:
            run(COMMAND, "create", "full", env=alone)
            for words in LIMITS:
                run(COMMAND, "config", "full", *words, env=alone)
            run(COMMAND, "create", "bare", "--no-net", env=alone)
            for zone in ("full", "bare"):
                run(COMMAND, "install", zone, env=alone)
            start_launcher(root, alone)
            yield [
                program("zonemgr", "full", "veth", "all", "must"),
                program("zonemgr-bare", "bare", "none", "none", "must"),
                program("cold", "full", "veth", "all", "no"),
            ]
        finally:
            end_instance(root, alone)


def start_launcher(root: Path, env: Mapping[str, str]) -> None:
    """Returns when it is warm."""
    run(str(HERE / ".venv/bin/python"), "-I", "-m", "zonemgr.launcher", "--root", str(root), env=env)
    deadline = time.monotonic() + DEADLINE_S
    while not (root / "run/zonemgr/launcher").exists() and time.monotonic() < deadline:
        time.sleep(0.01)


def end_instance(root: Path, env: Mapping[str, str]) -> None:
    """Halt what runs; what it had on disk goes with the folder, and its ids with that."""
    with suppress(OSError, ValueError):
        os.kill(int((root / "run/zonemgr/launcher.lock").read_text()), 15)  # it may be killed at any moment
    subprocess.run([COMMAND, "halt", "-a"], env={**env, "ZONEMGR_LAUNCHER": "no"}, capture_output=True)
    delete_bridges(root)


def zonemgr_pids(root: Path, *zones: str) -> list[int]:
    """Supervisors and zscheds: whoever of the instance sits beside the zones' own control groups."""
    records = [json.loads((root / f"run/zonemgr/instances/{zone}.json").read_text()) for zone in zones]
    base = Path(records[0]["cgroup"]).parent.parent
    beside = [int(word) for word in (base / "_supervisors/cgroup.procs").read_text().split()]
    supervisors = [pid for pid in beside if Path(f"/proc/{pid}/comm").read_text() == "zone-supervisor\n"]
    return sorted({*supervisors, *(record["zsched"]["pid"] for record in records)})


def delete_bridges(root: Path) -> None:
    """What an instance leaves on the host for its next zone."""
    sys.path.insert(0, str(HERE))
    from zonemgr.store.paths import Layout

    suffix = Layout.at(root).suffix
    for place in Path("/sys/class/net").glob(f"zbr*{suffix}"):
        subprocess.run(["ip", "link", "delete", place.name], capture_output=True)


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
    (root / "etc/os-release").write_text("ID=bench\n")
    for path in [root, *root.rglob("*")]:
        os.chown(path, ID_BASE, ID_BASE, follow_symlinks=False)
    open_up(folder)
    return root


# -- OCI runtimes -------------------------------------------------------------------------------------------------


def bundle(folder: Path, limited: bool) -> Path:
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
    size = MEMORY_MIB << 20
    resources = {
        "memory": {"limit": size, "swap": 2 * size},
        "cpu": {"quota": 100000, "period": 100000},
        "pids": {"limit": PROCESSES},
    }
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
            **({"resources": resources} if limited else {}),
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@contextmanager
def _oci(name: str, work: Path, view: View) -> Iterator[list[Program]]:
    limited = view is View.HOST or not HYBRID
    place = bundle(work / name, limited)
    with run_folder() as state:
        words = [name, "--root", state]
        try:
            yield [
                Program(
                    name,
                    "none",
                    "all" if limited else "none",
                    boot=commands([*words, "create", "--bundle", str(place), "bench"], [*words, "start", "bench"]),
                    execute=commands([*words, "exec", "bench", "/usr/bin/true"]),
                    halt=commands([*words, "delete", "-f", "bench"]),
                    version=run(name, "--version").splitlines()[0],
                    view=view,
                )
            ]
        finally:
            subprocess.run([*words, "delete", "-f", "bench"], capture_output=True)


def crun(work: Path) -> AbstractContextManager[list[Program]]:
    """The OCI runtime in C."""
    return _oci("crun", work, View.CGROUP2)


def runc(work: Path) -> AbstractContextManager[list[Program]]:
    """The OCI runtime in Go."""
    return _oci("runc", work, View.HOST)


# -- LXC ----------------------------------------------------------------------------------------------------------


LXC_CONFIG: Final = """
lxc.uts.name = {name}
lxc.rootfs.path = dir:{root}
lxc.init.cmd = /usr/bin/sleep infinity
lxc.mount.entry = /usr usr none rbind,ro 0 0
lxc.mount.auto = proc:mixed sys:ro cgroup:mixed
lxc.autodev = 1
lxc.idmap = u 0 {base} {count}
lxc.idmap = g 0 {base} {count}
lxc.apparmor.profile = unconfined
lxc.selinux.context =
lxc.seccomp.profile =
lxc.log.level = ERROR
lxc.log.file = {log}
lxc.net.0.type = veth
lxc.net.0.link = {bridge}
lxc.net.0.flags = up
"""
LXC_LIMITS: Final = {
    True: f"""
lxc.cgroup.memory.limit_in_bytes = {MEMORY_MIB}M
lxc.cgroup.cpu.cfs_quota_us = 100000
lxc.cgroup.pids.max = {PROCESSES}
""",
    False: f"""
lxc.cgroup2.memory.max = {MEMORY_MIB}M
lxc.cgroup2.cpu.max = 100000 100000
lxc.cgroup2.pids.max = {PROCESSES}
""",
}


@contextmanager
def lxc(work: Path) -> Iterator[list[Program]]:
    """LXC, with a link on a bridge of its own, as zonemgr's.  Its configuration is this one alone: none of the
    host's is read, and the name is nobody else's.
    """
    place, name, bridge = work / "lxc", f"bench{os.getpid()}", f"lxcb{os.getpid()}"[:15]
    (place / name).mkdir(parents=True)
    root, log, file = make_root(place / name), place / "log", place / name / "config"
    text = LXC_CONFIG.format(name=name, root=root, base=ID_BASE, count=ID_COUNT, bridge=bridge, log=log)
    file.write_text(text + LXC_LIMITS[HYBRID])
    who = ["-n", name, "-P", str(place)]

    def boot() -> float:
        try:
            return timed("lxc-start", "-d", "-f", str(file), *who)
        except Failed as error:
            raise Failed(f"{error}: {log.read_text()[-500:] if log.exists() else 'no log'}") from error

    run("ip", "link", "add", bridge, "type", "bridge")
    try:
        run("ip", "link", "set", bridge, "up")
        yield [
            Program(
                "lxc",
                "veth",
                "all",
                boot=boot,
                execute=commands(["lxc-attach", *who, "--", "/usr/bin/true"]),
                halt=commands(["lxc-stop", "-k", *who]),
                watchers=lambda: [_parent(int(run("lxc-info", "-p", "-H", *who)))],
                version=f"lxc {run('lxc-start', '--version').strip()}",
            )
        ]
    finally:
        subprocess.run(["lxc-stop", "-k", *who], capture_output=True)
        subprocess.run(["ip", "link", "delete", bridge], capture_output=True)


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


# -- podman -------------------------------------------------------------------------------------------------------


@contextmanager
def podman(work: Path) -> Iterator[list[Program]]:
    """Podman over crun, without its network, which is another program's work."""
    place = work / "podman"
    place.mkdir()
    root, note = make_root(place), place / "conmon.pid"
    with run_folder() as state:
        words = [
            "podman",
            "--root",
            str(place / "storage"),
            "--runroot",
            state,
            "--cgroup-manager=cgroupfs",
            "--events-backend=file",
            *(["--runtime=crun"] if shutil.which("crun") else []),
        ]
        # Its default limits may be higher than ours, which not every root may raise.
        limits = ["--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024"]
        limits += (
            ["--pids-limit=-1"]
            if HYBRID
            else [f"--pids-limit={PROCESSES}", f"--memory={MEMORY_MIB}m", "--cpus=1"]
        )
        options = ["--network=none", *limits, f"--uidmap=0:{ID_BASE}:{ID_COUNT}", f"--gidmap=0:{ID_BASE}:{ID_COUNT}"]
        options += ["--volume=/usr:/usr:ro", f"--conmon-pidfile={note}", "--rootfs", str(root)]
        try:
            yield [
                Program(
                    "podman",
                    "none",
                    "none" if HYBRID else "all",
                    boot=commands([*words, "run", "-d", "--name=bench", *options, "/usr/bin/sleep", "infinity"]),
                    execute=commands([*words, "exec", "bench", "/usr/bin/true"]),
                    halt=commands([*words, "rm", "-f", "-t", "0", "bench"]),
                    watchers=lambda: [int(note.read_text())],
                    version=run("podman", "--version").strip(),
                    view=View.CGROUP2,
                )
            ]
        finally:
            subprocess.run([*words, "rm", "-f", "-t", "0", "bench"], capture_output=True)


# -- programs that stay in the foreground -------------------------------------------------------------------------


class Foreground:
    """A container whose program stays: it has booted when it says so, and has ended when the program has."""

    def __init__(self) -> None:
        self._program: subprocess.Popen[bytes] | None = None
        self._leader = 0

    def booted(self, words: Sequence[str], wait: Callable[[], int], **options: Any) -> float:
        """``wait`` returns the host's pid of process 1 of the container once that runs."""
        begun = time.perf_counter()
        self._program = subprocess.Popen(words, stdin=subprocess.DEVNULL, **options)
        try:
            self._leader = wait()
        except (OSError, ValueError) as error:
            self.end()
            raise Failed(f"{words[0]}: status {self._program.returncode}: {error}") from error
        return (time.perf_counter() - begun) * 1000

    def execute(self) -> float:
        """With nsenter(1): these programs have no command for it."""
        return timed("nsenter", "-t", str(self._leader), "-a", "/usr/bin/true")

    def halt(self) -> float:
        begun = time.perf_counter()
        os.kill(self._leader, 9)
        if self._program is not None:
            ended(self._program)
        return (time.perf_counter() - begun) * 1000

    def watchers(self) -> Sequence[int]:
        return [self._program.pid] if self._program else []

    def end(self) -> None:
        if self._program is not None and self._program.poll() is None:
            self._program.kill()
            self._program.wait(DEADLINE_S)


@contextmanager
def nspawn(work: Path) -> Iterator[list[Program]]:
    """systemd-nspawn without systemd's help: no scope, so no limits; a link on a bridge of its own."""
    place, bridge = work / "nspawn", f"nspb{os.getpid()}"[:15]
    place.mkdir()
    root, notes, held = make_root(place), place / "notify", Foreground()
    words = ["systemd-nspawn", "--register=no", "--keep-unit", "--quiet", "--console=pipe", "-D", str(root)]
    words += [f"--private-users={ID_BASE}:{ID_COUNT}", "--private-users-ownership=off", "--bind-ro=/usr"]
    words += ["--resolv-conf=off", "--timezone=off", "--link-journal=no", "--machine=bench"]
    words += [f"--network-bridge={bridge}", "/usr/bin/sleep", "infinity"]
    own = CGROUPS / f"bench{os.getpid()}"  # it makes groups of its own below the one that it is started in

    def boot() -> float:
        own.mkdir(exist_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener, open(place / "output", "wb") as output:
            notes.unlink(missing_ok=True)
            listener.bind(str(notes))
            listener.settimeout(DEADLINE_S)
            env = {**os.environ, "NOTIFY_SOCKET": str(notes)}
            join = f'echo 0 >{own}/cgroup.procs; exec "$0" "$@"'
            line = ["sh", "-c", join, *words]
            return held.booted(line, lambda: _leader(listener), stdout=output, stderr=output, env=env)

    run("ip", "link", "add", bridge, "type", "bridge")
    try:
        run("ip", "link", "set", bridge, "up")
        version = run("systemd-nspawn", "--version").splitlines()[0]
        yield [
            Program(
                "nspawn",
                "veth",
                "none",
                boot=boot,
                execute=held.execute,
                halt=held.halt,
                watchers=held.watchers,
                version=version,
                view=View.CGROUP2,
            )
        ]
    finally:
        held.end()
        subprocess.run(["ip", "link", "delete", bridge], capture_output=True)


def _leader(listener: socket.socket) -> int:
    """Process 1 of the container, when nspawn says (sd_notify(3)) that it runs."""
    pid = 0
    while True:
        lines = listener.recv(4096).decode().splitlines()
        pid = next((int(line[20:]) for line in lines if line.startswith("X_NSPAWN_LEADER_PID=")), pid)
        if "READY=1" in lines:
            return pid


@contextmanager
def bwrap(work: Path) -> Iterator[list[Program]]:
    """bubblewrap: a sandbox of one user without links or limits, the least that others call a container."""
    place = work / "bwrap"
    place.mkdir()
    root, held = make_root(place), Foreground()
    words = ["bwrap", "--unshare-all", "--uid", "0", "--gid", "0", "--hostname", "bench", "--bind", str(root), "/"]
    words += ["--ro-bind", "/usr", "/usr", "--proc", "/proc", "--dev", "/dev", "--cap-add", "ALL", "--die-with-parent"]

    def boot() -> float:
        info_read, info_write = os.pipe()
        run_read, run_write = os.pipe()
        with open(info_read, "rb") as info, open(run_read, "rb") as running:

            def wait() -> int:
                os.close(info_write)
                os.close(run_write)
                pid = json.loads(info.read())["child-pid"]
                if running.read(1) != b"r":
                    raise ValueError("the container failed")
                return int(pid)

            script = f"printf r >&{run_write}; exec sleep infinity {run_write}>&-"
            line = [*words, "--info-fd", str(info_write), "sh", "-c", script]
            return held.booted(line, wait, pass_fds=(info_write, run_write))

    try:
        yield [
            Program(
                "bwrap",
                "none",
                "none",
                boot=boot,
                execute=held.execute,
                halt=held.halt,
                watchers=held.watchers,
                version=run("bwrap", "--version").strip(),
            )
        ]
    finally:
        held.end()


# -- the floor ----------------------------------------------------------------------------------------------------


@contextmanager
def floor(work: Path) -> Iterator[list[Program]]:
    """The least that a program in C has to do."""
    place = work / "floor"
    place.mkdir()
    program, root, note = place / "floor", place / "root", place / "pid"
    run("cc", "-O2", "-o", str(program), str(Path(__file__).parent / "floor.c"))
    root.mkdir()
    open_up(root)
    words = [str(program)]
    try:
        yield [
            Program(
                "floor",
                "none",
                "none",
                boot=commands([*words, "boot", str(root), str(note)]),
                execute=commands([*words, "exec", str(note)]),
                halt=commands([*words, "halt", str(note)]),
                version="floor.c",
            )
        ]
    finally:
        subprocess.run([*words, "halt", str(note)], capture_output=True)


Maker = Callable[[Path], AbstractContextManager[list[Program]]]

# Name on the command line -> the program that it needs, its Debian package, and how it is made ready.
MAKERS: Final[Mapping[str, tuple[str, str, Maker]]] = {
    "zonemgr": (COMMAND, "", zonemgr),
    "floor": ("cc", "gcc", floor),
    "crun": ("crun", "crun", crun),
    "runc": ("runc", "runc", runc),
    "lxc": ("lxc-start", "lxc", lxc),
    "podman": ("podman", "podman", podman),
    "nspawn": ("systemd-nspawn", "systemd-container", nspawn),
    "bwrap": ("bwrap", "bubblewrap", bwrap),
}

# What the others leave in the cgroup2 tree.
_LEFTOVERS: Final = ("lxc.pivot", "libpod_parent", "libpod_parent/conmon", "conmon")


def remove_leftovers() -> None:
    """Remove control groups that others leave behind, unless they hold somebody else's container."""
    own = [f"bench{os.getpid()}", f"bench{os.getpid()}/payload", f"bench{os.getpid()}/supervisor"]
    for name in reversed([*_LEFTOVERS, *own]):
        for base in (CGROUPS, *CGROUPS.glob("*/")):
            with suppress(OSError):
                (base / name).rmdir()
