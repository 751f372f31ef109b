"""What process 1 of an image's zone becomes, written down in the root when it is installed.

The record lies in the root, so that a copy or an archive of the zone has it too.  The zone may change it: it decides
about nothing that the zone could not do anyway, and it is checked like everything that comes out of a root.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final

from zonemgr.brandkit import BrandError, InitProgram, NotCompleted
from zonemgr.brandkit.rootdir import RootDir

RECORD: Final = "/.zonemgr-image.json"
VERSION: Final = 1
RECORD_MAX_BYTES: Final = (
    96 << 10
)  # environment included; the kernel takes no more than this through our messages
SYSTEM_INITS: Final = (
    "/sbin/init",
    "/usr/sbin/init",
    "/lib/systemd/systemd",
    "/usr/lib/systemd/systemd",
    "/init",
)
SHELLS: Final = frozenset(("sh", "bash", "ash", "dash", "zsh", "ksh", "fish"))
PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


# -- systems ----------------------------------------------------------------------------------------------------


def system(root: RootDir, path: str = "") -> InitProgram | None:
    """The root's own init, with the way to shut it down that its kind has; None when there is none."""
    for init in (path,) if path else SYSTEM_INITS:
        status = root.status(init)
        if status is not None and stat.S_ISREG(status.st_mode) and status.st_mode & 0o111:
            command, signal = _shutdown(root, init)
            return InitProgram(init, terminal=False, shutdown_command=command, shutdown_signal=signal)
    return None


def _shutdown(root: RootDir, init: str) -> tuple[tuple[str, ...], str]:
    """(command, signal): systemd and busybox have signals, System V and OpenRC a command."""
    kind = os.path.basename(root.link_target(init) or init)
    if kind == "systemd":
        return (), "SIGRTMIN+3"
    if kind in ("busybox", "bbox"):
        return (), "SIGUSR2"
    return ("/sbin/poweroff",) if root.status("/sbin/poweroff") else (init, "0"), ""


# -- applications -----------------------------------------------------------------------------------------------


def from_config(root: RootDir, config: Mapping[str, Any], wanted: str = "") -> InitProgram:
    """What an OCI configuration asks for.  ``wanted`` is ``init``, ``app``, or nothing: decide by what is there.

    An entrypoint, or a command that is no shell, is the application the image is for.  An image that says nothing, or a
    shell, is a system when it has an init, and a shell on the console otherwise.
    """
    entrypoint, command = _texts(config, "Entrypoint"), _texts(config, "Cmd")
    words = (*entrypoint, *command)
    own = system(root)
    if words and words[0] in SYSTEM_INITS and wanted != "app":
        return system(root, words[0]) or _application(root, config, words)
    is_shell = not entrypoint and (not command or os.path.basename(command[0]) in SHELLS)
    if wanted == "init" or (is_shell and wanted != "app"):
        if own is not None:
            return own
        if wanted == "init":
            raise NotCompleted("the image has no init")
    if not words:
        raise NotCompleted("the image has neither an init nor a command")
    return _application(root, config, words)


def _application(root: RootDir, config: Mapping[str, Any], words: tuple[str, ...]) -> InitProgram:
    account = root.account(str(config.get("User") or "0:0"))
    environment = {"PATH": PATH, "HOME": account.home, **_environment(config)}
    folder = str(config.get("WorkingDir") or "/")
    if not folder.startswith("/") or ".." in folder.split("/"):
        raise NotCompleted("the image's working directory is impossible: {folder!r}", folder=folder)
    return InitProgram(
        words[0]
        if words[0].startswith("/") or "/" not in words[0]
        else os.path.normpath(f"{folder}/{words[0]}"),
        words[1:],
        environment,
        reaped=True,
        folder=folder,
        uid=account.uid,
        gid=account.gid,
        groups=account.groups,
        shutdown_signal=_signal(config.get("StopSignal")),
    )


def _texts(config: Mapping[str, Any], key: str) -> tuple[str, ...]:
    words = config.get(key) or ()
    if not isinstance(words, (list, tuple)) or not all(isinstance(word, str) for word in words):
        raise NotCompleted("the image's {key} is no list of texts", key=key)
    return tuple(words)


def _environment(config: Mapping[str, Any]) -> dict[str, str]:
    pairs = (text.partition("=") for text in _texts(config, "Env"))
    return {name: value for name, _equals, value in pairs if name}


def _signal(value: object) -> str:
    """A stop signal as ``SIGTERM``; images write numbers and short names too."""
    import signal

    text = str(value or "SIGTERM")
    if len(text) < 4 and text.isdecimal() and int(text) in signal.valid_signals():
        number = int(text)
        if number > signal.SIGRTMIN:
            return f"SIGRTMIN+{number - signal.SIGRTMIN}"
        return signal.Signals(number).name
    name = text if text.startswith("SIG") else f"SIG{text}"
    if name.partition("+")[0] not in signal.Signals.__members__:
        raise NotCompleted("the image's stop signal is not known: {signal!r}", signal=text)
    return name


# -- the record -------------------------------------------------------------------------------------------------


def write(root: RootDir, program: InitProgram, source: str) -> None:
    """Put the record into the root.  Raises OSError, NotCompleted."""
    table = {"version": VERSION, "source": source, "program": {**asdict(program)}}
    text = json.dumps(table, indent=1)
    if len(text) > RECORD_MAX_BYTES:
        raise NotCompleted("the image's command and environment are too long")
    root.write(RECORD, text + "\n", 0o600)
    if program.reaped and root.status(program.folder) is None:
        root.folder(program.folder)


def read(root: RootDir) -> InitProgram | None:
    """The record's program; None when there is no record.  Raises BrandError for one that is damaged."""
    data = root.read(RECORD, RECORD_MAX_BYTES)
    if data is None:
        return None
    try:
        table = json.loads(data)
        if table["version"] != VERSION:
            raise ValueError(f"version {table['version']}")
        fields = dict(table["program"])
        for name in ("arguments", "groups", "shutdown_command"):
            fields[name] = tuple(fields[name])
        return InitProgram(**fields)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise BrandError("{path} in the zone's root is damaged: {why}", path=RECORD, why=error) from error
