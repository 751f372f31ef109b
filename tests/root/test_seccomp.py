"""The system call filter: its program run through a small interpreter, and installed for real in children."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from zonemgr.errors import ConfigError
from zonemgr.linux import seccomp

ALLOW, DENY = 0x7FFF_0000, 0x0005_0000
X86_64, I386 = 0xC000_003E, 0x4000_0003
X32_BIT = 0x4000_0000

on_x86_64 = pytest.mark.skipif(platform.machine() != "x86_64", reason="numbers of x86_64")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture(scope="module")
def program() -> bytes:
    return seccomp.compile_filter(seccomp.DEFAULT)


def run(program: bytes, arch: int, call: int, *arguments: int) -> int:
    """What the kernel would answer: classic BPF (linux/filter.h) over struct seccomp_data."""
    data = struct.pack(
        "=iIQ6Q", call - (1 << 32) if call >> 31 else call, arch, 0, *(*arguments, *[0] * 6)[:6]
    )
    code = list(struct.iter_unpack("=HBBI", program))
    accumulator = position = 0
    while True:
        operation, when_true, when_false, constant = code[position]
        position += 1
        if operation == 0x20:  # load a word
            (accumulator,) = struct.unpack_from("=I", data, constant)
        elif operation == 0x54:  # and
            accumulator &= constant
        elif operation == 0x05:  # jump
            position += constant
        elif operation in (0x15, 0x25, 0x35):  # jump if ==, >, >=
            taken = {
                0x15: accumulator == constant,
                0x25: accumulator > constant,
                0x35: accumulator >= constant,
            }
            position += when_true if taken[operation] else when_false
        else:
            assert operation == 0x06, hex(operation)  # return
            return int(constant)


@on_x86_64
@pytest.mark.parametrize(
    ("arch", "call"),
    [
        *(
            (X86_64, call)
            for call in (168, 167, 175, 313, 246, 320, 304, 321, 323, 250, 248, 249, 103, 227, 164, 425, 443)
        ),
        *(
            (I386, call)
            for call in (
                115,
                87,
                128,
                350,
                283,
                342,
                357,
                374,
                288,
                286,
                287,
                103,
                264,
                404,
                79,
                25,
                425,
                443,
            )
        ),
    ],
)
def test_calls_that_reach_the_host_kernel_are_denied_in_both_conventions(
    program: bytes, arch: int, call: int
) -> None:
    assert run(program, arch, call) == DENY | errno.EPERM


@on_x86_64
@pytest.mark.parametrize(
    ("arch", "call"),
    [
        # mount umount2 pivot_root unshare setns clone clone3 chroot reboot mknod seccomp fsopen move_mount adjtimex
        *((X86_64, call) for call in (165, 166, 155, 272, 308, 56, 435, 161, 169, 133, 317, 430, 429, 159)),
        *((I386, call) for call in (21, 52, 217, 310, 346, 120, 435, 61, 88, 14, 354, 430, 429, 124)),
    ],
)
def test_calls_that_a_system_needs_are_allowed_in_both_conventions(
    program: bytes, arch: int, call: int
) -> None:
    assert run(program, arch, call) == ALLOW


def filter_of(**wishes: Any) -> bytes:
    return seccomp.compile_filter(seccomp.profile_for(seccomp.Wishes(**wishes)))


@on_x86_64
def test_a_capability_brings_the_calls_that_need_it_and_no_other() -> None:
    program = filter_of(capabilities=frozenset({"syslog", "chown"}))
    assert run(program, X86_64, 103) == ALLOW
    assert run(program, X86_64, 321) == DENY | errno.EPERM
    assert run(filter_of(capabilities=frozenset({"bpf", "sys_module"})), X86_64, 321) == ALLOW
    assert run(filter_of(capabilities=frozenset({"sys_module"})), X86_64, 175) == DENY | errno.EPERM


@on_x86_64
def test_rights_that_are_taken_away_are_denied() -> None:
    program = filter_of(rights=frozenset({"net_access"}))
    socket_call, unix, inet, inet6, netlink = 41, 1, 2, 10, 16
    assert run(program, X86_64, socket_call, inet) == run(program, X86_64, socket_call, inet6) == DENY | errno.EPERM
    assert run(program, X86_64, socket_call, unix) == run(program, X86_64, socket_call, netlink, 3, 0) == ALLOW
    assert run(program, I386, 102) == DENY | errno.EPERM
    no_fork = filter_of(rights=frozenset({"proc_fork"}))
    assert run(no_fork, X86_64, 56, 0x11) == DENY | errno.EPERM
    assert run(no_fork, X86_64, 56, 0x3D0F00) == ALLOW
    assert run(no_fork, X86_64, 435) == DENY | errno.ENOSYS


@on_x86_64
def test_single_calls_are_let_through_or_denied_by_name() -> None:
    program = filter_of(calls=("keyctl", "!ptrace"))
    assert run(program, X86_64, 250) == ALLOW
    assert run(program, X86_64, 101) == run(program, I386, 26) == DENY | errno.EPERM


@pytest.mark.parametrize(
    ("call", "why"),
    [
        ("init_module", "is not permitted in any zone"),
        ("kexec_load", "is not permitted in any zone"),
        ("ioctl", "is not denied by default"),
        ("read", "is not denied by default"),
        ("!no_such_call", "no rule for the system call"),
    ],
)
def test_calls_that_cannot_be_changed_are_named(call: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        filter_of(calls=(call,))


@on_x86_64
def test_a_protection_that_is_always_on_cannot_be_switched_off() -> None:
    program = filter_of(flags=("aslr",))
    personality, denied = 135, DENY | errno.EPERM
    assert run(program, X86_64, personality, 0xFFFF_FFFF) == ALLOW  # asks only
    assert run(program, X86_64, personality, 0) == run(program, X86_64, personality, 0x40_0000) == ALLOW
    assert run(program, X86_64, personality, 0x4_0000) == denied
    assert run(program, X86_64, personality, 0x8004_0000) == run(program, X86_64, personality, 0xFFFF_FFFE) == denied


@on_x86_64
def test_a_zone_that_may_not_mount_may_still_bind_and_remount() -> None:
    program = filter_of(mounts=False)
    assert run(program, X86_64, 165, 0, 0, 0, 0) == DENY | errno.EPERM
    assert run(program, X86_64, 165, 0, 0, 0, 0x6) == DENY | errno.EPERM
    assert run(program, X86_64, 165, 0, 0, 0, 0x1000) == run(program, X86_64, 165, 0, 0, 0, 0x20) == ALLOW
    assert run(program, X86_64, 430) == DENY | errno.EPERM


@on_x86_64
def test_the_line_to_the_hypervisor_is_denied(program: bytes) -> None:
    assert run(program, X86_64, 41, 40, 1) == DENY | errno.EPERM


def test_a_file_of_the_cache_that_is_for_another_filter_is_not_taken(tmp_path: Path) -> None:
    seccomp.default_filter(tmp_path)
    (stored,) = tmp_path.iterdir()
    wishes = seccomp.Wishes(calls=("!ptrace",))
    fresh = seccomp.zone_filter(tmp_path, wishes)
    (other,) = set(tmp_path.iterdir()) - {stored}
    other.write_bytes(stored.read_bytes())
    assert seccomp.zone_filter(tmp_path, wishes) == fresh


@on_x86_64
@pytest.mark.parametrize("request_number", [0x5412, 0xFFFF_FFFF_0000_5412, 0x1_0000_5412, 0x541C])
def test_pushing_input_into_a_terminal_is_denied_whatever_the_high_bits(
    program: bytes, request_number: int
) -> None:
    assert run(program, X86_64, 16, 0, request_number) == DENY | errno.EPERM
    assert run(program, I386, 54, 0, request_number & 0xFFFF_FFFF) == DENY | errno.EPERM
    assert run(program, X86_64, 16, 0, 0x5413) == ALLOW


@on_x86_64
def test_other_calling_conventions_have_no_calls(program: bytes) -> None:
    assert run(program, X86_64, X32_BIT | 39) == DENY | errno.ENOSYS
    assert run(program, X86_64, X32_BIT | 168) == DENY | errno.ENOSYS
    assert run(program, 0x1234, 39) == DENY | errno.ENOSYS


@on_x86_64
def test_only_audit_sockets_are_denied(program: bytes) -> None:
    assert run(program, X86_64, 41, 16, 3, 9) == DENY | errno.EAFNOSUPPORT
    assert run(program, X86_64, 41, 16, 3, 0) == ALLOW
    assert run(program, X86_64, 41, 2, 3, 9) == ALLOW
    assert run(program, I386, 102, 1, 0, 9) == ALLOW


def test_every_denied_name_is_known_to_libseccomp() -> None:
    pyseccomp = pytest.importorskip("pyseccomp")
    for denial in seccomp.DEFAULT.denials:
        pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, denial.call)


def test_the_cache_is_used_and_a_damaged_one_is_replaced(tmp_path: Path, program: bytes) -> None:
    cache = tmp_path / "made" / "here"
    assert seccomp.default_filter(cache) == program
    (file,) = cache.iterdir()
    for damage in (b"", b"short", file.read_bytes()[:-8], file.read_bytes() + b"\0" * 8):
        file.write_bytes(damage)
        assert seccomp.default_filter(cache) == program
    assert [path.name for path in cache.iterdir()] == [file.name]
    assert file.stat().st_mode & 0o022 == 0


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path, program: bytes) -> None:
    (tmp_path / "file").write_text("in the way")
    assert seccomp.default_filter(tmp_path / "file") == program


def _errno_of(call: Callable[[], object]) -> int:
    try:
        call()
    except OSError as error:
        return error.errno or 0
    return 0


def _raw(number: int, *arguments: object) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    ctypes.set_errno(0)
    return ctypes.get_errno() if libc.syscall(number, *arguments) == -1 else 0


def _in_child(program: bytes, check: Callable[[], object]) -> str:
    """What the check returns (as repr) in a child under the filter; nothing if it raises."""
    read_fd, write_fd = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            seccomp.install(program)
            os.write(write_fd, repr(check()).encode())
        finally:
            os._exit(0)
    os.close(write_fd)
    with open(read_fd, encoding="utf-8") as answer:
        text = answer.read()
    os.waitpid(pid, 0)
    return text


@as_root
@on_x86_64
def test_an_installed_filter_denies_for_real(program: bytes) -> None:
    def check() -> list[int]:
        import fcntl
        import pty

        _, slave_fd = pty.openpty()
        return [
            _raw(168, ctypes.c_char_p(b"/nonexistent")),
            _raw(304, ctypes.c_int(-100), None, ctypes.c_int(0)),
            _raw(250, ctypes.c_int(0), ctypes.c_int(-3)),
            _errno_of(lambda: fcntl.ioctl(slave_fd, 0x5412, b"x")),
            _raw(16, ctypes.c_int(slave_fd), ctypes.c_ulong(0xF_0000_5412), ctypes.c_char_p(b"x")),
        ]

    assert _in_child(program, check) == repr([errno.EPERM] * 5)


@as_root
@on_x86_64
def test_under_the_filter_a_child_forks_mounts_and_unshares(program: bytes) -> None:
    def check() -> list[int]:
        child = os.fork()
        if child == 0:
            os._exit(7)
        return [
            os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]),
            _raw(272, ctypes.c_int(0x0002_0000)),  # unshare(CLONE_NEWNS)
            _raw(165, b"none", b"/", None, ctypes.c_ulong(0x4_4000), None),  # mount: / private, recursively
            _raw(165, b"none", b"/mnt", b"tmpfs", ctypes.c_ulong(0), None),
            _raw(166, b"/mnt", ctypes.c_int(0)),
        ]

    assert _in_child(program, check) == repr([7, 0, 0, 0, 0])


@as_root
def test_the_filter_does_not_set_no_new_privileges(program: bytes) -> None:
    def check() -> list[str]:
        lines = Path("/proc/self/status").read_text().splitlines()
        return [line.split()[1] for line in lines if line.startswith(("NoNewPrivs:", "Seccomp:"))]

    assert _in_child(program, check) == repr(["0", "2"])
