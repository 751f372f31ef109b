"""Mandatory labels of processes: an SELinux context or an AppArmor profile, whichever security module is active.

A label is asked for before exec and begins to hold with it (``/proc/self/attr/exec``, proc_pid_attr(5)).  Only a
process itself can ask, and the kernel refuses when its credentials changed between open and write: so it is done
early, in one go.  Deliberately not here: policies, and labels of files.
"""

from __future__ import annotations

import enum
import os
from pathlib import Path

from zonemgr.errors import PlatformError
from zonemgr.linux.paths import file_system_type

SELINUX_FOLDER = Path("/sys/fs/selinux")
APPARMOR_ENABLED = Path("/sys/module/apparmor/parameters/enabled")
APPARMOR_PROFILES = Path("/sys/kernel/security/apparmor/profiles")
PROC_MAGIC = 0x9FA0
LABEL_MAX = 4095  # the kernel takes less than a page
_EINVAL = 22


class Module(enum.StrEnum):
    """A security module that labels processes."""

    SELINUX = "SELinux"
    APPARMOR = "AppArmor"


def active() -> Module | None:
    """The module that is active on this host, SELinux before AppArmor; None for neither."""
    if (SELINUX_FOLDER / "enforce").exists():
        return Module.SELINUX
    try:
        return Module.APPARMOR if APPARMOR_ENABLED.read_text().strip() == "Y" else None
    except OSError:
        return None


def check(module: Module, label: str) -> None:
    """Raises PlatformError when the module knows no such label."""
    if not label or len(label) > LABEL_MAX or any(ord(letter) < 33 for letter in label):
        raise PlatformError("'{label}' cannot be a label", label=label)
    try:
        known = _is_context(label) if module is Module.SELINUX else label in _profiles(APPARMOR_PROFILES.read_text())
    except OSError as error:
        raise PlatformError("cannot ask {module} for its labels: {why}", module=module, why=error.strerror) from error
    if not known:
        what = "context of its policy" if module is Module.SELINUX else "profile that is loaded"
        raise PlatformError("{module}: '{label}' is no {what}", module=module, label=label, what=what)


def _is_context(label: str) -> bool:
    """Whether the policy takes the context: selinuxfs refuses to write a wrong one."""
    fd = os.open(SELINUX_FOLDER / "context", os.O_RDWR | os.O_CLOEXEC)
    try:
        os.write(fd, label.encode() + b"\0")
    except OSError as error:
        if error.errno != _EINVAL:
            raise
        return False
    finally:
        os.close(fd)
    return True


def _profiles(text: str) -> frozenset[str]:
    """The names in the kernel's list, whose lines are ``NAME (MODE)``."""
    return frozenset(line.rpartition(" (")[0] for line in text.splitlines())


def set_for_exec(module: Module, label: str, proc: str = "/proc") -> None:
    """The label of this process from its next exec on.  ``proc`` is a folder that must be a procfs.  Raises OSError."""
    own = f"{proc}/self/attr"
    folder = f"{own}/apparmor" if module is Module.APPARMOR and os.path.isdir(f"{own}/apparmor") else own
    fd = os.open(f"{folder}/exec", os.O_WRONLY | os.O_CLOEXEC)
    try:
        if file_system_type(fd) != PROC_MAGIC:
            raise OSError(_EINVAL, os.strerror(_EINVAL), f"{folder}/exec")
        os.write(fd, order(module, label))
    finally:
        os.close(fd)


def order(module: Module, label: str) -> bytes:
    """What is written to ask for the label."""
    return f"exec {label}".encode() if module is Module.APPARMOR else label.encode() + b"\0"
