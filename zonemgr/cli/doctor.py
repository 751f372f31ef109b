"""``doctor``: what this host lacks, and the cure.

Each probe tries the thing itself where it can (in a child that goes away with it), and never a version number alone.
Nothing is repaired, and no zone is touched.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from zonemgr.cli.output import Session, columns
from zonemgr.errors import Exit, ZoneError
from zonemgr.store.paths import Layout


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one probe.  ``found`` says what there is, or why not; ``cure`` what to do about it."""

    name: str
    ok: bool
    required: bool
    found: str
    cure: str

    @property
    def verdict(self) -> str:
        return "ok" if self.ok else "MISSING" if self.required else "absent"

    def to_json(self) -> dict[str, Any]:
        table = {"name": self.name, "ok": self.ok, "required": self.required, "found": self.found}
        return table if self.ok else {**table, "cure": self.cure}


@dataclass(frozen=True, slots=True)
class Probe:
    """``look`` returns what it found, and raises OSError, ZoneError or ImportError when it is not there."""

    name: str
    look: Callable[[Layout], str]
    cure: str
    required: bool = True

    def run(self, layout: Layout) -> Finding:
        try:
            found = self.look(layout)
        except OSError as error:
            return self._finding(False, str(error.strerror or error))
        except (ZoneError, ImportError) as error:
            return self._finding(False, str(error))
        return self._finding(True, found)

    def _finding(self, ok: bool, found: str) -> Finding:
        return Finding(self.name, ok, self.required, found, self.cure)


def _in_child(work: Callable[[], None]) -> str:
    """Do it in a child, so that it leaves no trace.  Raises the child's OSError, or ZoneError with its message."""
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        text = "the probe failed"
        try:
            work()
            text = ""
        except (OSError, ZoneError) as error:
            text = str(error)
        finally:
            os.write(write_fd, text.encode())
            os._exit(0)
    os.close(write_fd)
    with open(read_fd, encoding="utf-8") as answer:
        text = answer.read()
    os.waitpid(pid, 0)
    if text:
        raise ZoneError("{why}", why=text)
    return "works"


# -- the probes ---------------------------------------------------------------------------------------------------


def _kernel(_: Layout) -> str:
    release = os.uname().release
    numbers = [int(part) for part in release.split("-")[0].split(".")[:2] if part.isdigit()]
    if numbers < [6, 1]:
        raise ZoneError("{release}", release=release)
    return release


def _root(_: Layout) -> str:
    if os.geteuid() != 0:
        raise ZoneError("uid {uid}", uid=os.geteuid())
    return "yes"


NEEDED_CAPABILITIES = frozenset(
    {
        "chown",
        "dac_override",
        "fowner",
        "kill",
        "mknod",
        "net_admin",
        "setgid",
        "setpcap",
        "setuid",
        "sys_admin",
        "sys_chroot",
        "sys_ptrace",
    }
)


def _capabilities(_: Layout) -> str:
    from zonemgr.linux import caps

    lacking = NEEDED_CAPABILITIES - caps.effective("self")
    if lacking:
        raise ZoneError("without {names}", names=", ".join(sorted(lacking)))
    return "all that are needed"


def _sys_resource(_: Layout) -> str:
    from zonemgr.linux import caps

    if "sys_resource" not in caps.effective("self"):
        raise ZoneError("not held")
    return "held"


def _namespaces(_: Layout) -> str:
    from zonemgr.linux import namespaces as ns

    kinds = ns.NEWUSER | ns.NEWPID | ns.NEWNET | ns.NEWUTS | ns.NEWIPC | ns.NEWCGROUP
    return _in_child(lambda: ns.unshare(kinds))


def _idmap_of(path: Path) -> str:
    from zonemgr.linux import mounts

    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if not mounts.supports_idmap(fd):
            raise ZoneError("the file system of {path} refuses it", path=path)
    finally:
        os.close(fd)
    return str(path)


def _existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def _idmap_zones(layout: Layout) -> str:
    return _idmap_of(_existing(layout.lib / "zones"))


def _idmap_usr(_: Layout) -> str:
    return _idmap_of(Path("/usr"))


def _cgroup2(_: Layout) -> str:
    from zonemgr.linux.cgroup import detect

    hierarchy = detect()
    return f"{hierarchy.kind.value}, cgroup2 on {hierarchy.unified()}"


def _controllers(_: Layout) -> str:
    from zonemgr.linux.cgroup import detect

    hierarchy = detect()
    there = {*hierarchy.controllers, *(hierarchy.unified() / "cgroup.controllers").read_text().split()}
    lacking = {"cpu", "memory", "pids"} - there
    if lacking:
        raise ZoneError("without {names}", names=", ".join(sorted(lacking)))
    return "cpu, memory, pids"


def _born_into(_: Layout) -> str:
    """A child born into a new cgroup, which is then killed as a whole: clone3 and cgroup.kill."""
    from zonemgr.linux import process
    from zonemgr.linux.cgroup import detect

    folder = detect().unified() / f"zonemgr-doctor-{os.getpid()}"
    folder.mkdir()
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            pid, pidfd = process.clone3(0, cgroup_fd=fd)
            if pid == 0:
                try:
                    signal.pause()
                finally:
                    os._exit(1)
        finally:
            os.close(fd)
        try:
            (folder / "cgroup.kill").write_text("1")
        finally:
            process.pidfd_signal(pidfd, 9)
            os.waitpid(pid, 0)
            os.close(pidfd)
    finally:
        folder.rmdir()
    return "works"


def _budgets(_: Layout) -> str:
    """What the kernel gives each user, and everybody together: a zone's init needs some of it."""
    from zonemgr.linux import budgets

    every = [*budgets.users(), *budgets.processes(budgets.default_processes())]
    short = [str(budget) for budget in every if not budget.enough]
    if short:
        raise ZoneError("{what}", what="; ".join(short))
    return ", ".join(f"{budget.sysctl.rpartition('.')[2]} {budget.found}" for budget in every[:3])


def _merging(_: Layout) -> str:
    """What the supervisors of many zones have in common can be held once."""
    from zonemgr.linux import ksm

    if not ksm.is_on():
        raise ZoneError("off")
    return "on"


def _limits(_: Layout) -> str:
    """The controllers that only some limits need."""
    from zonemgr.linux.cgroup import detect

    hierarchy = detect()
    there = {*hierarchy.controllers, *(hierarchy.unified() / "cgroup.controllers").read_text().split()}
    there |= {"io"} if "blkio" in there else set()
    lacking = {"cpuset", "io", "hugetlb"} - there
    if lacking:
        raise ZoneError("without {names}", names=", ".join(sorted(lacking)))
    return "cpuset, io, hugetlb"


def _links(_: Layout) -> str:
    """A bridge and a veth in a network namespace that nobody sees."""
    from zonemgr.linux import namespaces, netlink

    def make() -> None:
        namespaces.unshare(namespaces.NEWNET)
        netlink.ensure_bridge("zmdoctor0", ["192.0.2.1/24"])
        fd = namespaces.open_ns("self", "net")
        netlink.make_veth("zmdoctor1", "zmdoctor2", netns_fd=fd, bridge="zmdoctor0")
        os.close(fd)

    return _in_child(make)


def _ipv6(_: Layout) -> str:
    Path("/proc/sys/net/ipv6/conf/all").stat()
    return "yes"


def _filesystem(name: str) -> Callable[[Layout], str]:
    def look(_: Layout) -> str:
        from zonemgr.linux import mounts, namespaces

        def make() -> None:
            namespaces.unshare(namespaces.NEWNS)
            options = {"lowerdir": "/usr:/etc"} if name == "overlay" else {}
            mounts.make_filesystem(name, options)

        return _in_child(make)

    return look


def _seccomp(_: Layout) -> str:
    from zonemgr.linux import seccomp

    return f"{len(seccomp.compile_filter(seccomp.DEFAULT))} bytes of filter"


def _peer_pidfd(_: Layout) -> str:
    from zonemgr.wire.peers import SO_PEERPIDFD

    ours, theirs = socket.socketpair()
    with ours, theirs:
        os.close(ours.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD))
    return "yes"


def _program(name: str) -> Callable[[Layout], str]:
    def look(_: Layout) -> str:
        path = name if name.startswith("/") and os.access(name, os.X_OK) else shutil.which(name)
        if path is None:
            raise ZoneError("not found")
        return path

    return look


PROBES = (
    Probe("kernel 6.1", _kernel, "boot a kernel of version 6.1 or later"),
    Probe("root", _root, "run it as root: the rest can only be tried by root"),
    Probe(
        "capabilities",
        _capabilities,
        "give this container or service more capabilities, or use the host itself",
    ),
    Probe(
        "namespaces",
        _namespaces,
        "raise user.max_user_namespaces with sysctl; allow user namespaces in the LSM",
    ),
    Probe(
        "id-mapped /usr",
        _idmap_usr,
        "put /usr on ext4, xfs or btrfs; else owners show as nobody",
        required=False,
    ),
    Probe(
        "id-mapped zones",
        _idmap_zones,
        "put /var/lib/zonemgr on ext4, xfs or btrfs; else each zone's root is shifted once by chown",
        required=False,
    ),
    Probe("cgroup2", _cgroup2, "mount -t cgroup2 none /sys/fs/cgroup/unified"),
    Probe(
        "cgroup controllers", _controllers, "enable them on the kernel command line (cgroup_enable=memory)"
    ),
    Probe(
        "birth into a cgroup", _born_into, "needs clone3 and cgroup.kill: a kernel of version 6.1 or later"
    ),
    Probe(
        "controllers of some limits",
        _limits,
        "needed for dedicated-cpu, capped-io and capped-hugetlb only: a kernel with these controllers",
        required=False,
    ),
    Probe("budgets of a user", _budgets, "raise these settings with sysctl, for good in /etc/sysctl.d", required=False),
    Probe(
        "merging of equal pages (KSM)",
        _merging,
        "echo 1 >/sys/kernel/mm/ksm/run before zones boot: what their supervisors have in common is then held once",
        required=False,
    ),
    Probe("bridge and veth", _links, "modprobe bridge veth; give this container CAP_NET_ADMIN"),
    Probe("IPv6", _ipv6, "boot without ipv6.disable=1", required=False),
    Probe("devpts", _filesystem("devpts"), "a kernel with CONFIG_UNIX98_PTYS"),
    Probe("overlay", _filesystem("overlay"), "modprobe overlay", required=False),
    Probe("system call filter", _seccomp, "install libseccomp2; a kernel with CONFIG_SECCOMP_FILTER"),
    Probe(
        "SO_PEERPIDFD",
        _peer_pidfd,
        "a kernel of version 6.5 or later; until then callers are checked twice",
        False,
    ),
    Probe(
        "CAP_SYS_RESOURCE",
        _sys_resource,
        "only needed to raise limits above this process's own",
        required=False,
    ),
    Probe(
        "python3 of the host",
        _program("/usr/bin/python3"),
        "apt-get install python3: native zones' init needs it",
    ),
    Probe(
        "nft",
        _program("nft"),
        "apt-get install nftables, for translation and port forwards",
        required=False,
    ),
)


def examine(layout: Layout) -> Iterator[Finding]:
    """All findings, in order; nothing that only root can find out is asked of somebody else."""
    for probe in PROBES:
        finding = probe.run(layout)
        yield finding
        if probe.look is _root and not finding.ok:
            return


@click.command()
@click.pass_obj
def doctor(session: Session) -> int:
    """Try what zones need of this host, and name the cure of what is missing."""
    findings = list(examine(session.layout))
    if session.json:
        session.emit([finding.to_json() for finding in findings])
    else:
        lines = columns([[finding.verdict, finding.name, finding.found] for finding in findings])
        for line, finding in zip(lines, findings, strict=True):
            if not (session.quiet and finding.ok):
                session.data(line)
            if not finding.ok:
                session.data(f"         cure: {finding.cure}")
    return Exit.ERROR if any(finding.required and not finding.ok for finding in findings) else Exit.OK
