"""eBPF programs on control groups: assembled here, loaded and attached with bpf(2); no compiler and no library.

A program lives as long as it is attached: the kernel frees it with the control group.

Deliberately not here: what a program decides (the modules that assemble one say so).
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable
from typing import Final

from zonemgr.linux import libc

CGROUP_DEVICE: Final = (15, 6)  # program type, attach type

_PROG_LOAD, _PROG_ATTACH, _PROG_DETACH = 5, 8, 9
_ATTRIBUTES: Final = 128  # bytes of union bpf_attr that we pass; what we do not fill in is 0

# Operation codes of the instructions that we use (linux/bpf.h).
_LOAD_WORD, _MOVE, _AND, _JUMP_NOT_EQUAL, _EXIT = 0x61, 0xB7, 0x57, 0x55, 0x95


def _instruction(code: int, to: int, source: int = 0, offset: int = 0, constant: int = 0) -> bytes:
    return struct.pack("=BBhi", code, to | source << 4, offset, constant)


def load_word(register: int, offset: int) -> bytes:
    """A 32-bit field of the context (register 1) into a register."""
    return _instruction(_LOAD_WORD, register, 1, offset)


def mask(register: int, bits: int) -> bytes:
    """Keep only these bits of a register."""
    return _instruction(_AND, register, constant=bits)


def unless_equal_skip(register: int, constant: int, count: int) -> bytes:
    """Leave out the next ``count`` instructions unless the register holds the constant."""
    return _instruction(_JUMP_NOT_EQUAL, register, offset=count, constant=constant)


def answer(value: int) -> bytes:
    """End the program with this value: two instructions."""
    return _instruction(_MOVE, 0, constant=value) + _instruction(_EXIT, 0)


def load(kind: tuple[int, int], instructions: bytes) -> int:
    """A descriptor of the program.  OSError: EINVAL for one that the kernel's verifier refuses, ENOSYS, EPERM."""
    code = ctypes.create_string_buffer(instructions, len(instructions))
    license_text = ctypes.create_string_buffer(b"GPL")
    return _call(
        _PROG_LOAD,
        struct.pack(
            "=IIQQ", kind[0], len(instructions) // 8, ctypes.addressof(code), ctypes.addressof(license_text)
        )
        + bytes(44)
        + struct.pack("=I", kind[1]),  # expected_attach_type, at byte 68
    )


def attach(kind: tuple[int, int], cgroup_fd: int, program_fd: int, flags: int = 0) -> None:
    """Put the program on a control group.  Without flags it is the only one of its kind there, and takes the place of
    the one before in one step.
    """
    _call(_PROG_ATTACH, struct.pack("=IIII", cgroup_fd, program_fd, kind[1], flags))


def detach(kind: tuple[int, int], cgroup_fd: int) -> None:
    """Take the only program of a kind off again.  OSError (ENOENT) when there is none."""
    _call(_PROG_DETACH, struct.pack("=IIII", cgroup_fd, 0, kind[1], 0))


def run_on(kind: tuple[int, int], folder: str | os.PathLike[str], parts: Iterable[bytes]) -> None:
    """Assemble, load and attach in place of what was there."""
    program_fd = load(kind, b"".join(parts))
    try:
        folder_fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            attach(kind, folder_fd, program_fd)
        finally:
            os.close(folder_fd)
    finally:
        os.close(program_fd)


def _call(command: int, attributes: bytes) -> int:
    area = ctypes.create_string_buffer(attributes, _ATTRIBUTES)
    return libc.call("bpf", command, area, _ATTRIBUTES)
