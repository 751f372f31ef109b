"""Both stages of debootstrap in the zone's sandbox, with a cache of packages on the host.

The cache is filled after the first stage, which has unpacked packages and run none of their scripts, and what comes out
of it is checked by debootstrap against the signed index again: an older zone cannot feed a newer one.
"""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from zonemgr.brandkit import BrandError, NotCompleted, ZoneInfo, report
from zonemgr.brandkit.rootdir import RootDir
from zonemgr.brandkit.sandbox import ROOT, Sandbox, sandbox

from . import mirror

# With the minimal variant: what makes it boot, and what a session and the network need.
PACKAGES: Final = ("systemd-sysv", "dbus", "libpam-systemd", "login", "netbase", "iproute2")
ARCHIVES: Final = "/var/cache/apt/archives"
UNSAFE_IO: Final = "/etc/dpkg/dpkg.cfg.d/zonemgr-install"
STEPS: Final = ("Retrieving", "Extracting", "Unpacking", "Configuring")
EACH: Final = 25  # packages between two lines of progress
LAST_LINES: Final = 12
EXPECTED: Final = ("Could not create /dev/ptmx", "mount -t sysfs", "/debootstrap/debootstrap.log for details")


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to be installed."""

    suite: str
    mirror: str
    packages: tuple[str, ...] = ()

    @property
    def include(self) -> str:
        """The packages for debootstrap, each once."""
        secure = ("ca-certificates",) if self.mirror.startswith("https:") else ()
        return ",".join(dict.fromkeys((*PACKAGES, *secure, *self.packages)))


def bootstrap(zone: ZoneInfo, wish: Wish) -> None:
    """Fill the zone's empty root.  Raises ZoneError, OSError."""
    cache = Path(zone.layout_root) / "var/lib/zonemgr/cache/debian" / f"{wish.suite}-{os.uname().machine}"
    print(f"{wish.suite} from {wish.mirror}")
    with sandbox(zone) as box, RootDir(zone.root) as root:
        _seed(cache, root, box.base)
        # The kind of container in which it makes no device nodes.
        environment = {"container": "lxc", "DEBIAN_FRONTEND": "noninteractive", **mirror.proxy_environment()}
        options = ("--foreign", "--variant=minbase", "--force-check-gpg", f"--include={wish.include}")
        _run(box, ("debootstrap", *options, wish.suite, ROOT, wish.mirror), environment)
        _harvest(root, cache)
        # Nobody needs a half-made root after a crash.
        root.write(UNSAFE_IO, "force-unsafe-io\n", uid=box.base, gid=box.base)
        _run(box, ("chroot", ROOT, "/debootstrap/debootstrap", "--second-stage"), environment)
        for name in (UNSAFE_IO, "/debootstrap"):
            root.remove(name)
        for name in root.names(ARCHIVES):
            if name.endswith(".deb"):
                root.remove(f"{ARCHIVES}/{name}")


# -- progress ---------------------------------------------------------------------------------------------------


def _run(box: Sandbox, command: tuple[str, ...], environment: dict[str, str]) -> None:
    last: deque[str] = deque(maxlen=LAST_LINES)
    try:
        for line in _progress(box.run(command, environment), last):
            print(line)
    except BrandError as error:
        print("\n".join(last))
        raise NotCompleted("debootstrap failed: {why}", why=error.text) from error


def _progress(lines: Iterable[str], last: deque[str]) -> Iterator[str]:
    """A line for each step and for every so many packages; warnings and errors as they are.

    How many packages there are is known after the first step; it is reported for a bar from then on.
    """
    step, count, packages = "", 0, 0
    for line in lines:
        last.append(line)
        words = line.removeprefix("I: ").split()
        if line.startswith("I: ") and words[:1] and words[0] in STEPS:
            if words[0] != step:
                packages = max(packages, count)
                step, count = words[0], 0
            if count % EACH == 0:
                yield f"{step.lower()} packages" + (f": {count}" if count else "")
            count += 1
            report(f"{step.lower()} packages", count, max(packages, count) if packages else 0)
        elif line.startswith(("W: ", "E: ")) and not any(text in line for text in EXPECTED):
            yield line


# -- the cache --------------------------------------------------------------------------------------------------


def _seed(cache: Path, root: RootDir, owner: int) -> None:
    """Put the cached packages where debootstrap looks before it downloads."""
    names = [path.name for path in cache.glob("*.deb")] if cache.is_dir() else []
    folder = ""
    for part in ARCHIVES.strip("/").split("/"):
        folder += f"/{part}"
        fd = root.make_folder(folder)
        os.chown(f"/proc/self/fd/{fd}", owner, owner)  # made with O_PATH, or there was one
        os.close(fd)
    for name in names:
        root.copy(str(cache / name), f"{ARCHIVES}/{name}")
    if names:
        print(f"{len(names)} packages from the cache")


def _harvest(root: RootDir, cache: Path) -> None:
    """Keep the packages of the first stage; older versions of the same ones go."""
    cache.mkdir(mode=0o755, parents=True, exist_ok=True)
    names = [name for name in root.names(ARCHIVES) if name.endswith(".deb") and not name.startswith(".")]
    for name in names:
        if not (cache / name).exists():
            _keep(root, name, cache)
    new = {name.partition("_")[0]: name for name in names}
    for path in cache.glob("*.deb"):
        if new.get(path.name.partition("_")[0], path.name) != path.name:
            path.unlink(missing_ok=True)


def _keep(root: RootDir, name: str, cache: Path) -> None:
    fd = root.open(f"{ARCHIVES}/{name}", os.O_RDONLY | os.O_NONBLOCK, follow=False)
    with open(fd, "rb") as source:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return
        temporary = cache / f".{name}.{os.getpid()}"
        with open(temporary, "wb") as target:
            while chunk := source.read(1 << 20):
                target.write(chunk)
        temporary.rename(cache / name)
