"""The system call filter of a zone: compiled once with libseccomp, cached as a BPF program, installed with
seccomp(2).

The default filter lets everything through except what reaches past the zone into the one kernel that all share:
loading code into it, its clock, swap, quota and keyrings, file handles, raw I/O ports, and pushing input into
terminals.  mount, unshare, setns, clone, chroot and reboot stay: a zone is a system of its own.

Deliberately not here: capabilities (they refuse most of the same calls a second time), and filtering by path.
Only compiling loads libseccomp's binding (some 40 ms); installing needs the cached bytes alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zonemgr.errors import PlatformError
from zonemgr.linux import libc

_SET_MODE_FILTER = 1

# Bump when compile_filter() makes something else of the same profile.
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Match:
    """One argument of a call, compared under a mask."""

    argument: int
    value: int
    mask: int = 0xFFFF_FFFF


@dataclass(frozen=True, slots=True)
class Denial:
    """A call that fails with ``error``, always or when all ``matches`` hold.

    ``native_only``: 32-bit programs may.  For arguments that their convention keeps in memory (socketcall(2)), where
    a filter cannot look, and libseccomp would compare whatever the register happens to hold.
    """

    call: str
    error: int = errno.EPERM
    matches: tuple[Match, ...] = ()
    native_only: bool = False


@dataclass(frozen=True, slots=True)
class Profile:
    """What a filter denies; everything else is allowed."""

    denials: tuple[Denial, ...]


_DENIED_CALLS = (
    # code and state of the kernel itself
    *("kexec_load", "kexec_file_load", "init_module", "finit_module", "delete_module"),
    *("create_module", "query_module", "get_kernel_syms", "bpf", "perf_event_open", "lookup_dcookie"),
    *("syslog", "_sysctl", "nfsservctl", "uselib", "acct"),
    # memory and I/O below the file system
    *("swapon", "swapoff", "ioperm", "iopl", "vm86", "vm86old", "userfaultfd"),
    *("io_uring_setup", "io_uring_enter", "io_uring_register"),
    # files of a mounted file system by number, whatever the zone's root; quota of shared file systems
    *("open_by_handle_at", "quotactl", "quotactl_fd"),
    # keyrings are not separated by namespaces
    *("add_key", "request_key", "keyctl"),
    # the host's clock
    *("settimeofday", "stime", "clock_settime", "clock_settime64"),
)

# Requests of ioctl(2) that put input into a terminal, which may be the administrator's.
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
_AF_NETLINK, _NETLINK_AUDIT = 16, 9

DEFAULT = Profile(
    (
        *(Denial(call) for call in _DENIED_CALLS),
        # The kernel looks at the low 32 bits of a request; so do we, or the high bits would slip it past.
        *(Denial("ioctl", errno.EPERM, (Match(1, request),)) for request in (_TIOCSTI, _TIOCLINUX)),
        # Audit is the host's.  This error is how login programs learn that there is none; EPERM would stop them.
        Denial(
            "socket", errno.EAFNOSUPPORT, (Match(0, _AF_NETLINK), Match(2, _NETLINK_AUDIT)), native_only=True
        ),
    )
)


DEFAULT_NAME = "default"  # what an instance record calls it


def default_filter(cache_dir: Path) -> bytes:
    """The default filter's program, from the cache or compiled into it.  A damaged cache file is replaced."""
    path = cache_dir / f"seccomp-{_fingerprint(DEFAULT)}.bpf"
    try:
        stored = path.read_bytes()
    except OSError:
        stored = b""
    if len(stored) > 4 and _digest(stored[4:]) == stored[:4]:
        return stored[4:]
    program = compile_filter(DEFAULT)
    _store(path, _digest(program) + program)
    return program


def _digest(data: bytes) -> bytes:
    """Against damage, not against an attacker (the folder is root's); hashlib would load OpenSSL into every
    supervisor.
    """
    return zlib.crc32(data).to_bytes(4, "big")


def _fingerprint(profile: Profile) -> str:
    return _digest(f"{_FORMAT} {os.uname().machine} {profile!r}".encode()).hex()


def _store(path: Path, content: bytes) -> None:
    """By rename, so that a reader sees all or nothing.  A cache that cannot be written is no error."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()


def compile_filter(profile: Profile) -> bytes:
    """The BPF program of a profile, for this machine's calling conventions.

    The 32-bit convention of the machine is held to the same rules; any other (x32) has no system calls at all.
    """
    binding = _binding()
    rules = binding.SyscallFilter(binding.ALLOW)
    rules.set_attr(binding.Attr.ACT_BADARCH, binding.ERRNO(errno.ENOSYS))
    # Installing must not set no_new_privs: a setuid program of the zone is the zone's own affair.
    rules.set_attr(binding.Attr.CTL_NNP, 0)
    # A convention takes only the rules that come after it.
    _add_rules(binding, rules, (denial for denial in profile.denials if denial.native_only))
    for arch in _second_conventions(binding):
        rules.add_arch(arch)
    _add_rules(binding, rules, (denial for denial in profile.denials if not denial.native_only))
    return _exported(rules)


def _add_rules(binding: Any, rules: Any, denials: Iterable[Denial]) -> None:
    for denial in denials:
        arguments = [
            binding.Arg(match.argument, binding.MASKED_EQ, match.mask, match.value)
            for match in denial.matches
        ]
        rules.add_rule(binding.ERRNO(denial.error), denial.call, *arguments)


def _second_conventions(binding: Any) -> tuple[int, ...]:
    return {"x86_64": (binding.Arch.X86,), "aarch64": (binding.Arch.ARM,)}.get(os.uname().machine, ())


def _exported(rules: Any) -> bytes:
    with open(os.memfd_create("seccomp", os.MFD_CLOEXEC), "w+b", buffering=0) as file:
        rules.export_bpf(file)
        file.seek(0)
        return file.read()


def _binding() -> Any:
    """The distribution's binding where it is installed, else pyseccomp; both drive the same libseccomp."""
    try:
        import seccomp  # type: ignore[import-not-found]

        return seccomp
    except ImportError:
        pass
    try:
        import pyseccomp  # type: ignore[import-untyped]
    except (ImportError, RuntimeError) as error:
        raise PlatformError(
            "cannot compile the system call filter: {why} (install libseccomp2)", why=error
        ) from error
    return pyseccomp


def install(program: bytes) -> None:
    """Put this process, and all it will fork and exec, under the filter, for good.

    Needs CAP_SYS_ADMIN in the process's own user namespace, or no_new_privs.
    """
    instructions = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: how many instructions (8 bytes each), and where they are
    description = struct.pack("@HP", len(program) // 8, ctypes.addressof(instructions))
    libc.call("seccomp", _SET_MODE_FILTER, 0, ctypes.create_string_buffer(description, len(description)))
