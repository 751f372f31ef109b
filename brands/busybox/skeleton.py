"""The root of a new busybox zone: the program, a link for each of its commands, and a page of /etc."""

from __future__ import annotations

import subprocess
from typing import Final

from zonemgr.brandkit import NotCompleted
from zonemgr.brandkit.personal import forget_identity, name_root, new_machine_id
from zonemgr.brandkit.rootdir import RootDir

FOLDERS: Final = (
    *(
        (name, 0o755)
        for name in ("bin", "dev", "etc", "etc/init.d", "home", "mnt", "opt", "run", "sbin", "srv")
    ),
    *((name, 0o555) for name in ("proc", "sys")),
    *(
        (name, 0o755)
        for name in ("usr", "usr/bin", "usr/sbin", "usr/local", "usr/local/bin", "usr/local/sbin")
    ),
    *((name, 0o755) for name in ("var", "var/lib", "var/log", "var/spool", "var/spool/cron")),
    ("root", 0o700),
    ("tmp", 0o1777),
    ("var/tmp", 0o1777),
)
# Commands of the system's own; everything else is in /bin.  What would act on the host's kernel is left out.
SBIN: Final = frozenset(
    (
        *(
            "arp",
            "chroot",
            "crond",
            "getty",
            "halt",
            "ifconfig",
            "ifdown",
            "ifup",
            "init",
            "ip",
            "klogd",
            "logread",
        ),
        *(
            "mdev",
            "nologin",
            "poweroff",
            "reboot",
            "route",
            "start-stop-daemon",
            "sulogin",
            "switch_root",
            "sysctl",
        ),
        *("syslogd", "udhcpc", "udhcpd"),
    )
)
LEFT_OUT: Final = frozenset(
    (
        *(
            "adjtimex",
            "devmem",
            "depmod",
            "hwclock",
            "insmod",
            "linuxrc",
            "lsmod",
            "modinfo",
            "modprobe",
            "rdate",
        ),
        *("rmmod", "swapoff", "swapon", "ubirename"),
    )
)

INITTAB: Final = """# busybox init: id:runlevel:action:process
::sysinit:/etc/init.d/rcS
console::askfirst:/bin/login -f root
::restart:/sbin/init
::ctrlaltdel:/sbin/reboot
::shutdown:/etc/init.d/rcK
"""
RCS: Final = """#!/bin/sh
# Start-up: each /etc/rc.d/S??* in order, with "start".
for script in /etc/rc.d/S??*; do
    [ ! -x "$script" ] || "$script" start
done
"""
RCK: Final = """#!/bin/sh
# Going down: each /etc/rc.d/S??* in reverse order, with "stop".
for script in $(ls -r /etc/rc.d 2>/dev/null); do
    case $script in S??*) [ ! -x "/etc/rc.d/$script" ] || "/etc/rc.d/$script" stop ;; esac
done
"""
PROFILE: Final = """PATH=/usr/local/bin:/usr/bin:/bin
[ "$(id -u)" -ne 0 ] || PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export PATH
umask 022
PS1='\\u@\\h:\\w\\$ '
"""
FILES: Final = (
    ("etc/inittab", INITTAB, 0o644),
    ("etc/init.d/rcS", RCS, 0o755),
    ("etc/init.d/rcK", RCK, 0o755),
    ("etc/profile", PROFILE, 0o644),
    ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n", 0o644),
    ("etc/group", "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n", 0o644),
    ("etc/shadow", "root:*:::::::\nnobody:*:::::::\n", 0o600),
    ("etc/shells", "/bin/sh\n/bin/ash\n", 0o644),
    ("etc/fstab", "# The zone's file systems are mounted by zonemgr: see its fs resources.\n", 0o644),
)


def build(path: str, hostname: str, program: str) -> None:
    """Make the root, which must not exist.  Raises OSError, NotCompleted."""
    with RootDir.make(path) as root:
        for name, mode in FOLDERS:
            root.folder(f"/{name}", mode)
        root.folder("/etc/rc.d")
        root.copy(program, "/bin/busybox", 0o755)
        for command in _commands(program):
            root.link(f"/sbin/{command}" if command in SBIN else f"/bin/{command}", "/bin/busybox")
        for name, content, mode in FILES:
            root.write(f"/{name}", content, mode)
        root.link("/etc/mtab", "../proc/self/mounts")
        name_root(root, hostname)
        forget_identity(root, machine_id=new_machine_id())


def _commands(program: str) -> list[str]:
    """What this busybox can do.  Asked of the host's program, never of the copy in the root."""
    done = subprocess.run([program, "--list"], capture_output=True, text=True, timeout=30)
    commands = done.stdout.split()
    if done.returncode or "sh" not in commands or "init" not in commands:
        raise NotCompleted("{program} has no init or no shell among its commands", program=program)
    return [command for command in commands if command not in LEFT_OUT and command != "busybox"]
