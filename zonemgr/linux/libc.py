"""The one binding to the C library and to raw system calls: prototypes in one table, results checked here.

Every call raises the real OSError family (FileNotFoundError, PermissionError, ...) with the call's name at
the head of its text, and refuses strings with a NUL, which C would cut short. Numbers are those of x86_64 and
aarch64.

Deliberately not here: what any call is for (that is the business of the modules beside this one), and the
calls that Python's ``os``, ``signal`` and ``fcntl`` already make.
"""

from __future__ import annotations

import ctypes
import os
from ctypes import c_char_p, c_int, c_long, c_size_t, c_uint, c_ulong, c_void_p
from typing import Any

AT_FDCWD = -100
AT_SYMLINK_NOFOLLOW = 0x100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000

_FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "mount": (c_char_p, c_char_p, c_char_p, c_ulong, c_void_p),
    "umount2": (c_char_p, c_int),
    "unshare": (c_int,),
    "setns": (c_int, c_int),
    "sethostname": (c_char_p, c_size_t),
    "setdomainname": (c_char_p, c_size_t),
    "setfsuid": (c_uint,),
    "setfsgid": (c_uint,),
    "fstatfs": (c_int, c_void_p),
    "syncfs": (c_int,),
    "personality": (c_ulong,),
    "prctl": (c_int, c_ulong, c_ulong, c_ulong, c_ulong),
    "madvise": (c_void_p, c_size_t, c_int),
    "capget": (c_void_p, c_void_p),
    "capset": (c_void_p, c_void_p),
    "inotify_init1": (c_int,),
    "inotify_add_watch": (c_int, c_char_p, c_uint),
    "inotify_rm_watch": (c_int, c_int),
}

# name -> number on x86_64, number on aarch64, prototype
_SYSCALLS: dict[str, tuple[int, int, tuple[Any, ...]]] = {
    "pivot_root": (155, 41, (c_char_p, c_char_p)),
    "add_key": (248, 217, (c_char_p, c_char_p, c_void_p, c_size_t, c_int)),
    "keyctl": (250, 219, (c_int, c_void_p, c_ulong, c_ulong, c_ulong)),
    "seccomp": (317, 277, (c_uint, c_uint, c_void_p)),
    "bpf": (321, 280, (c_int, c_void_p, c_uint)),
    "statx": (332, 291, (c_int, c_char_p, c_int, c_uint, c_void_p)),
    "open_tree": (428, 428, (c_int, c_char_p, c_uint)),
    "move_mount": (429, 429, (c_int, c_char_p, c_int, c_char_p, c_uint)),
    "fsopen": (430, 430, (c_char_p, c_uint)),
    "fsconfig": (431, 431, (c_int, c_uint, c_char_p, c_char_p, c_int)),
    "fsmount": (432, 432, (c_int, c_uint, c_uint)),
    "clone3": (435, 435, (c_void_p, c_size_t)),
    "close_range": (436, 436, (c_uint, c_uint, c_uint)),
    "openat2": (437, 437, (c_int, c_char_p, c_void_p, c_size_t)),
    "pidfd_getfd": (438, 438, (c_int, c_int, c_uint)),
    "quotactl_fd": (443, 443, (c_uint, c_uint, c_int, c_void_p)),
    "mount_setattr": (442, 442, (c_int, c_char_p, c_uint, c_void_p, c_size_t)),
}

_LIBRARY = ctypes.CDLL(None, use_errno=True)
# Keeps the interpreter's lock, so that nothing of Python runs between the call and its return: clone3 needs that.
_HELD = ctypes.PyDLL(None, use_errno=True)

_bound: dict[str, Any] = {}


def error(name: str, code: int, detail: str = "") -> OSError:
    """The OSError of a failed call: the subclass of its errno, the text "name: what the errno means:
    detail".
    """
    text = f"{name}: {os.strerror(code)}"
    return OSError(code, f"{text}: {detail}" if detail else text)


def text(name: str, value: str | bytes | os.PathLike[str]) -> bytes:
    """A string for C.  OSError (EINVAL) when it holds a NUL."""
    encoded = os.fsencode(value)
    if b"\0" in encoded:
        raise error(name, 22, "the argument contains a NUL character")
    return encoded


def number(name: str) -> int:
    """A system call's number on this machine.  OSError (ENOSYS) on a machine that is not in the table."""
    x86_64, aarch64, _types = _SYSCALLS[name]
    machine = os.uname().machine
    if machine not in ("x86_64", "aarch64"):
        raise error(name, 38, f"zonemgr does not know the system calls of {machine}")
    return aarch64 if machine == "aarch64" else x86_64


def _bind(name: str, library: ctypes.CDLL) -> Any:
    if name in _FUNCTIONS:
        function: Any = library[name]
        function.argtypes = _FUNCTIONS[name]
        function.restype = c_int
        return function
    function = library["syscall"]  # a new object for each prototype
    function.argtypes = (c_long, *_SYSCALLS[name][2])
    function.restype = c_long
    syscall_number = number(name)
    return lambda *arguments: function(syscall_number, *arguments)


def call(name: str, *arguments: Any) -> int:
    """Call a function or system call of the table.  OSError when it returns -1."""
    function = _bound.get(name)
    if function is None:
        function = _bound[name] = _bind(name, _LIBRARY)
    prepared = [text(name, value) if isinstance(value, str) else value for value in arguments]
    for value in prepared:
        if isinstance(value, bytes) and b"\0" in value:
            text(name, value)
    result: int = function(*prepared)
    if result == -1:
        raise error(name, ctypes.get_errno())
    return result


def held_syscall(name: str) -> Any:
    """The bare system call under the interpreter's lock. Its caller checks the result (-1) and
    ``ctypes.get_errno``.
    """
    return _bind(name, _HELD)
