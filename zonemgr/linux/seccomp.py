"""The system call filter of a zone: compiled once with libseccomp, cached as a BPF program, installed with
seccomp(2).

The default filter lets everything through except what reaches past the zone into the one kernel that all share:
loading code into it, its clock, swap, quota and keyrings, file handles, raw I/O ports, and pushing input into
terminals.  mount, unshare, setns, clone, chroot and reboot stay: a zone is a system of its own.

A zone's own filter is the default one changed by what its configuration says: calls that a capability is for are let
through with the capability, rights that ``limitpriv`` takes away become denials, and single calls are let through or
denied by name.

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
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from zonemgr.errors import ConfigError, PlatformError
from zonemgr.linux import libc

_SET_MODE_FILTER = 1

# Bump when compile_filter() makes something else of the same profile.
_FORMAT = 2


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

    @property
    def whole(self) -> bool:
        """The call is denied whatever its arguments are."""
        return not self.matches


@dataclass(frozen=True, slots=True)
class Profile:
    """What a filter denies; everything else is allowed."""

    denials: tuple[Denial, ...]


# Denied for good: code of the kernel itself, or other ways past every namespace.  No configuration lets them through.
_FOR_NO_ZONE = (
    *("kexec_load", "kexec_file_load", "init_module", "finit_module", "delete_module"),
    *("create_module", "query_module", "get_kernel_syms", "ioperm", "iopl"),
)
# Let through for a zone that has the capability which the kernel wants for the call.
_WITH_CAPABILITY: Final[Mapping[str, tuple[str, ...]]] = {
    "bpf": ("bpf",),
    "perfmon": ("perf_event_open",),
    "syslog": ("syslog",),
    "sys_pacct": ("acct",),
    "sys_time": ("settimeofday", "stime", "clock_settime", "clock_settime64"),  # the host's clock
}
_DENIED_CALLS = (
    *_FOR_NO_ZONE,
    *(call for calls in _WITH_CAPABILITY.values() for call in calls),
    *("lookup_dcookie", "_sysctl", "nfsservctl", "uselib"),
    # memory and I/O below the file system
    *("swapon", "swapoff", "vm86", "vm86old", "userfaultfd"),
    *("io_uring_setup", "io_uring_enter", "io_uring_register"),
    # files of a mounted file system by number, whatever the zone's root; quota of shared file systems
    *("open_by_handle_at", "quotactl", "quotactl_fd"),
    # keyrings are not separated by namespaces
    *("add_key", "request_key", "keyctl"),
)

# Requests of ioctl(2) that put input into a terminal, which may be the administrator's.
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
_AF_INET, _AF_INET6, _AF_NETLINK, _AF_PACKET, _AF_VSOCK = 2, 10, 16, 17, 40
_NETLINK_AUDIT = 9


def _socket(family: int) -> Denial:
    return Denial("socket", errno.EPERM, (Match(0, family),), native_only=True)


DEFAULT = Profile(
    (
        *(Denial(call) for call in _DENIED_CALLS),
        # The kernel looks at the low 32 bits of a request; so do we, or the high bits would slip it past.
        *(Denial("ioctl", errno.EPERM, (Match(1, request),)) for request in (_TIOCSTI, _TIOCLINUX)),
        # No network namespace separates the line to the hypervisor and to the host's services on it.
        _socket(_AF_VSOCK),
        # Audit is the host's.  This error is how login programs learn that there is none; EPERM would stop them.
        Denial(
            "socket", errno.EAFNOSUPPORT, (Match(0, _AF_NETLINK), Match(2, _NETLINK_AUDIT)), native_only=True
        ),
    )
)

# What ``limitpriv`` can take away (the names of ``capnames.RIGHTS``).  clone3 keeps its flags where no filter can
# look; libc falls back to clone when it is not there, which a thread may call and a fork may not.
_CLONE_THREAD = 0x10000
RIGHTS: Final[Mapping[str, tuple[Denial, ...]]] = {
    "net_access": (*map(_socket, (_AF_INET, _AF_INET6, _AF_PACKET)), Denial("socketcall")),
    "net_observability": (_socket(_AF_PACKET),),
    "proc_exec": (Denial("execve"), Denial("execveat")),
    "proc_fork": (
        *(Denial(call) for call in ("fork", "vfork")),
        Denial("clone", errno.EPERM, (Match(0, 0, _CLONE_THREAD),)),
        Denial("clone3", errno.ENOSYS),
    ),
}


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a zone's filter has beyond the default: plain data, which the zone's record keeps.

    ``capabilities`` that the zone has; ``rights`` taken away; ``calls`` by name, with ``!`` before one that is denied.
    """

    capabilities: frozenset[str] = frozenset()
    rights: frozenset[str] = frozenset()
    calls: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()  # protections that no process may switch off (the names of SWITCHES)
    mounts: bool = True  # the zone may mount file systems (binds and moves of what it has are always its own affair)


def profile_for(wishes: Wishes) -> Profile:
    """The default profile with a zone's wishes.  ConfigError for calls that no zone may make."""
    let = {call for name in wishes.capabilities for call in _WITH_CAPABILITY.get(name, ())}
    for call in wishes.calls:
        if not call.startswith("!"):
            _check_allowed(call)
            let.add(call)
    denials = [denial for denial in DEFAULT.denials if not (denial.whole and denial.call in let)]
    denials += [denial for right in sorted(wishes.rights) for denial in RIGHTS[right]]
    denials += [Denial(call[1:]) for call in wishes.calls if call.startswith("!")]
    denials += _personality(wishes.flags)
    denials += [] if wishes.mounts else _NO_MOUNTS
    return Profile(tuple(dict.fromkeys(denials)))


def _check_allowed(call: str) -> None:
    if call in _FOR_NO_ZONE:
        raise ConfigError("seccomp: system call '{call}' is not permitted in any zone", call=call)
    if not any(denial.whole and denial.call == call for denial in DEFAULT.denials):
        raise ConfigError("seccomp: system call '{call}' is not denied by default", call=call)


# mount(2) makes a new mount unless one of these flags says otherwise: remount, bind, move, or a kind of propagation.
_NO_MOUNTS: Final = [
    Denial("fsopen"),
    Denial("fspick"),
    Denial("mount", errno.EPERM, (Match(3, 0, 0x20 | 0x1000 | 0x2000 | 0x2_0000 | 0x4_0000 | 0x8_0000 | 0x10_0000),)),
]

# personality(2) bits that switch a protection off.
SWITCHES: Final[Mapping[str, int]] = {"aslr": 0x004_0000, "forbidnullmap": 0x010_0000, "noexecstack": 0x040_0000}
_NO_PERSONALITY = 0x8000_0000  # a bit that no personality has, and the question "which?" (all bits) does


def _personality(flags: Iterable[str]) -> list[Denial]:
    """No process may set these bits.  All bits together only ask; with any of them missing the top one is refused, so
    that nothing else passes for the question.
    """
    bits = [SWITCHES[flag] for flag in sorted(flags)]
    if not bits:
        return []
    matches = [Match(0, bit, bit | _NO_PERSONALITY) for bit in bits]
    matches += [Match(0, _NO_PERSONALITY, _NO_PERSONALITY | 1 << place) for place in range(31)]
    return [Denial("personality", errno.EPERM, (match,)) for match in matches]


def zone_filter(cache_dir: Path, wishes: Wishes) -> bytes:
    """A zone's program, from the cache or compiled into it.  A damaged cache file is replaced.  ZoneError."""
    return _cached(cache_dir, profile_for(wishes))


def default_filter(cache_dir: Path) -> bytes:
    """The default filter's program, as ``zone_filter``."""
    return _cached(cache_dir, DEFAULT)


def _cached(cache_dir: Path, profile: Profile) -> bytes:
    text = f"{_FORMAT} {os.uname().machine} {profile!r}\n".encode()
    path = cache_dir / f"seccomp-{_digest(text).hex()}.bpf"
    try:
        stored = path.read_bytes()
    except OSError:
        stored = b""
    # The text tells two profiles apart whose digests are the same.
    if _digest(stored[4:]) == stored[:4] and stored[4:].startswith(text) and len(stored) > 4 + len(text):
        return stored[4 + len(text) :]
    program = compile_filter(profile)
    _store(path, _digest(text + program) + text + program)
    return program


def _digest(data: bytes) -> bytes:
    """Against damage, not against an attacker (the folder is root's); hashlib would load OpenSSL into every
    supervisor.
    """
    return zlib.crc32(data).to_bytes(4, "big")


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
        try:
            rules.add_rule(binding.ERRNO(denial.error), denial.call, *arguments)
        except (OSError, ValueError, RuntimeError) as error:
            raise ConfigError(
                "seccomp: no rule for the system call '{call}': {why}", call=denial.call, why=error
            ) from error


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
