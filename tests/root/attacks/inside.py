"""The attacker's tools: Python programs that run inside the zone, and answer in JSON.

A program is text, since nothing of the host's test tree is visible in a zone.  ``PRELUDE`` gives it system calls that
return "" or the name of the errno, and ``answer`` to report with.
"""

from __future__ import annotations

import json
from typing import Any, Final

from tests.kit.instance import Instance

PRELUDE: Final = '''
import ctypes, errno, json, os, signal, socket, stat, struct, subprocess, sys
libc = ctypes.CDLL(None, use_errno=True)
RDONLY, NOSUID, NODEV, NOEXEC, REMOUNT, BIND, MOVE, REC = 1, 2, 4, 8, 32, 4096, 8192, 16384
NEWNS, NEWCGROUP, NEWUSER, NEWPID = 0x20000, 0x2000000, 0x10000000, 0x20000000

def raw(text):
    return text.encode() if isinstance(text, str) else text

def call(name, *arguments):
    """The name of the errno, or "" for success."""
    ctypes.set_errno(0)
    result = getattr(libc, name)(*map(raw, arguments))
    return "" if result >= 0 else errno.errorcode[ctypes.get_errno()]

def system(number, *arguments):
    return call("syscall", ctypes.c_long(number), *arguments)

def mount(source, target, kind, flags=0, data=None):
    return call("mount", source, target, kind, ctypes.c_ulong(flags), data)

def attempt(act, *arguments):
    """What an act of Python's own makes of it: "" or the name of the errno."""
    try:
        act(*arguments)
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))
    return ""

def write(path, text):
    with open(path, "w") as file:
        file.write(text)

def answer(value):
    print(json.dumps(value), flush=True)
'''


def ask(instance: Instance, program: str, *, name: str = "web", user: str | None = None) -> Any:
    """What a program answers that runs in the zone, as its root or as another user."""
    options = ["-l", user] if user else []
    done = instance.run("login", *options, name, "--", "/usr/bin/python3", "-c", PRELUDE + program)
    return json.loads(done.stdout)
