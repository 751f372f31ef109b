"""What the host can do, found by doing it.

A test that needs a feature says ``@pytest.mark.requires("root", "net")``.  Where the kernel refuses the feature the
test is skipped, so that a laptop can run the rest; where the environment variable ZONEMGR_MUST names it (words with
blanks between, or ``all``) the test fails instead, so that continuous integration cannot lose tests without a word.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from tests.kit import disks
from tests.kit.waiting import PATIENCE
from zonemgr.linux.cgroup import detect
from zonemgr.linux.cgroup.zone import CONTROLLERS

MUST_VARIABLE: Final = "ZONEMGR_MUST"
_DEADLINE_S: Final = 60 * PATIENCE
_ADD_VETH: Final = """
from pyroute2 import IPRoute
with IPRoute() as route:
    route.link("add", ifname="probe0", kind="bridge")
    route.link("add", ifname="probe1", kind="veth", peer="probe2")
"""


def _works(*command: str) -> str:
    """Empty when the command succeeds, else why not."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_DEADLINE_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode == 0:
        return ""
    return (done.stderr.strip().splitlines() or [f"{command[0]}: status {done.returncode}"])[-1]


def _root() -> str:
    if os.geteuid() != 0:
        return "not root"
    found = re.search(r"^CapEff:\s*([0-9a-f]+)", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found
    return "" if int(found[1], 16) >> 21 & 1 else "no CAP_SYS_ADMIN"


def _userns() -> str:
    return _works("unshare", "--user", "--map-root-user", "true")


def _mount() -> str:
    return _works("unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt")


def _net() -> str:
    return _works("unshare", "--net", sys.executable, "-c", _ADD_VETH)


def _ipv6() -> str:
    return "" if Path("/proc/sys/net/ipv6/conf/all").exists() else "the kernel has no IPv6, or it is disabled"


def _cgroup() -> str:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        if rest.startswith("cgroup2 "):
            return _can_make_folder(Path(fields.split()[4]))
    return "no cgroup2 file system is mounted"


def _can_make_folder(parent: Path) -> str:
    folder = parent / f"probe-{os.getpid()}"
    try:
        folder.mkdir()
        folder.rmdir()
    except OSError as error:
        return str(error)
    return ""


def _loop() -> str:
    """Loop devices with a file system on them, which fsfreeze(8) stops."""
    missing = [name for name in ("losetup", "mkfs.ext4", "fsfreeze") if not shutil.which(name)]
    return f"{missing[0]} is not installed" if missing else _works("losetup", "--find")


def _file_system(kind: str) -> str:
    """A file system that the kernel knows and that can be made on a loop device."""
    known = [line.split()[-1] for line in Path("/proc/filesystems").read_text().splitlines()]
    if kind not in known and _works("modprobe", kind):
        return f"the kernel has no {kind}"
    return "" if shutil.which(f"mkfs.{kind}") else f"there is no mkfs.{kind}"


def _unified() -> str:
    """Nothing but cgroup2."""
    hybrid = " - cgroup " in Path("/proc/self/mountinfo").read_text()
    return "it has controllers on cgroup v1" if hybrid else _cgroup()


def _controllers() -> str:
    """Nothing but cgroup2, with the controllers by which zones are limited."""
    why = _unified()
    if why:
        return why
    there = set((detect().unified() / "cgroup.controllers").read_text().split())
    missing = set(CONTROLLERS) - there
    return f"cgroup2 has no controller {' '.join(sorted(missing))}" if missing else ""


def _cpus() -> str:
    return "" if len(os.sched_getaffinity(0)) > 1 else "there is one CPU"


def _quota(kind: str, size: str, *options: str) -> str:
    """A file system with quota of projects: some kernels lack it."""
    with tempfile.TemporaryDirectory(prefix="zonemgr-quota-") as folder:
        image = f"{folder}/image"
        return (
            _loop()
            or _file_system(kind)
            or _works("truncate", "-s", size, image)
            or _works(f"mkfs.{kind}", "-q", *options, image)
            or _works("unshare", "--mount", "mount", "-o", "loop,prjquota", image, folder)
        )


def _swap() -> str:
    """A file that can be swap, in the folder where tests make theirs."""
    missing = [name for name in ("mkswap", "swapon", "swapoff") if not shutil.which(name)]
    if missing:
        return f"{missing[0]} is not installed"
    with tempfile.TemporaryDirectory(prefix="zonemgr-swap-", dir=disks.SWAP_FOLDER) as folder:
        try:
            with disks.swap_file(Path(folder, "swap"), 1 << 20):
                return ""
        except subprocess.CalledProcessError as error:
            why: bytes = error.stderr
            return why.decode().strip() or str(error)


def _nft() -> str:
    return _works("unshare", "--net", "nft", "list", "tables")


def _busybox() -> str:
    program = shutil.which("busybox")
    if program is None:
        return "there is no busybox (package busybox-static)"
    with open(program, "rb") as file:
        return "busybox is not static (package busybox-static)" if b"/ld-linux" in file.read(4096) else ""


def _debootstrap() -> str:
    return "" if shutil.which("debootstrap", path="/usr/sbin:/usr/bin") else "there is no debootstrap"


def _systemd_analyze() -> str:
    return "" if shutil.which("systemd-analyze") else "there is no systemd-analyze"


def _skopeo() -> str:
    return "" if shutil.which("skopeo") else "there is no skopeo"


def _ksm() -> str:
    """A kernel that merges equal pages, and that tells of each process how many."""
    if not Path("/proc/self/ksm_stat").exists():
        return "there is no KSM, or it does not say of each process how many"
    return "" if os.access("/sys/kernel/mm/ksm/run", os.W_OK) else "/sys is read-only"


def _apparmor() -> str:
    """AppArmor, and the program that gives it profiles."""
    if not shutil.which("apparmor_parser", path="/usr/sbin:/sbin"):
        return "there is no apparmor_parser"
    names = Path("/sys/kernel/security/apparmor/profiles")
    return "" if names.exists() else "AppArmor is not active"


PROBES: Final[Mapping[str, Callable[[], str]]] = {
    "root": _root,
    "userns": _userns,
    "mount": _mount,
    "net": _net,
    "ipv6": _ipv6,
    "cgroup": _cgroup,
    "loop": _loop,
    "btrfs": lambda: _loop() or _file_system("btrfs"),
    "xfs": lambda: _loop() or _file_system("xfs"),
    "unified": _unified,
    "controllers": _controllers,
    "cpus": _cpus,
    "apparmor": _apparmor,
    "ksm": _ksm,
    "quota": lambda: _quota("ext4", "32M", "-O", "project,quota"),
    "swap": lambda: _root() or _swap(),
    "xfs_quota": lambda: _quota("xfs", "320M"),
    "nft": _nft,
    "busybox": _busybox,
    "debootstrap": _debootstrap,
    "skopeo": _skopeo,
    "systemd_analyze": _systemd_analyze,
}


@functools.cache
def lacking(name: str) -> str:
    """Why the host cannot do it; empty when it can.  KeyError for a name that is no probe."""
    return PROBES[name]()


def must(name: str) -> bool:
    """Whether ZONEMGR_MUST names the probe."""
    words = os.environ.get(MUST_VARIABLE, "").split()
    return name in words or "all" in words


def unknown_musts() -> list[str]:
    """Words of ZONEMGR_MUST that are no probes."""
    return [
        word for word in os.environ.get(MUST_VARIABLE, "").split() if word not in PROBES and word != "all"
    ]
