"""Running a hook of a brand: in a forked child, with a deadline, its output going to the operator line by line.

A hook is foreign code that runs as root on the host.  It gets a session of its own, no descriptor of ours, /dev/null
to read from and a small environment; it dies with the process that waits for it.  Its result is an exit status
(reference, section 0.1).  Nothing is kept: who wants the output gets it through ``say`` while the hook runs.
"""

from __future__ import annotations

import contextlib
import enum
import gc
import io
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final, NoReturn

from zonemgr.brandkit import reports
from zonemgr.brandkit.base import Brand, NotCompleted, ZoneInfo
from zonemgr.brandkit.reports import Report
from zonemgr.errors import BrandError, UsageError, ZoneError
from zonemgr.linux import process
from zonemgr.wire.start import TRANSITION_VARIABLE

LINE_MAX: Final = 1023  # characters; the reference's 1024 includes the NUL
_EXEC_FAILED: Final = 4
_READ_BYTES: Final = 65536

Say = Callable[[str], None]
Call = Callable[[], int | None]
Reported = Callable[[Report], None]


class HookExit(enum.IntEnum):
    """What a hook's exit status means to install, clone and attach."""

    OK = 0
    USAGE = 253
    NOT_COMPLETED = 254
    FATAL = 255


class HookError(BrandError):
    """A hook did not end by itself: a signal, the deadline, or a program that could not be started."""


def run_brand_hook(
    brand: Brand,
    hook: str,
    zone: ZoneInfo,
    *arguments: object,
    deadline_s: float,
    say: Say,
    reported: Reported = lambda _report: None,
) -> int:
    """Run one hook of a brand and return its exit status; one that the brand does not have is 0 and costs nothing.

    Raises HookError.
    """
    if not brand.overrides(hook):
        return HookExit.OK
    method = getattr(brand, hook)
    name = f"brand '{brand.name}' {hook}"
    call = partial(method, zone, *arguments)
    return run_hook(call, name=name, deadline_s=deadline_s, say=say, zone=zone, reported=reported)


def run_brand_hook_plain(brand: Brand, hook: str, *, deadline_s: float, say: Say) -> int:
    """As ``run_brand_hook``, for a hook that is about the brand and no zone."""
    if not brand.overrides(hook):
        return HookExit.OK
    return run_hook(getattr(brand, hook), name=f"brand '{brand.name}' {hook}", deadline_s=deadline_s, say=say)


def run_verify(brand: Brand, zone: ZoneInfo, command: str, *, deadline_s: float, say: Say) -> int:
    """Run ``verify`` for a process that has the same right to end as the hook: in itself, where the brand says that
    looking is all that the hook does, else as ``run_brand_hook``.  Raises HookError.
    """
    from zonemgr.brandkit import layers

    if not brand.only_looks("verify") or layers.has_layers(zone):
        return run_brand_hook(brand, "verify", zone, command, deadline_s=deadline_s, say=say)
    with io.StringIO() as output, contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        status = _result(partial(brand.verify, zone, command), f"brand '{brand.name}' verify")
        said = output.getvalue()
    for line in said.splitlines():
        say(line[:LINE_MAX])
    return status


def run_hook(
    call: Call,
    *,
    name: str,
    deadline_s: float,
    say: Say,
    zone: ZoneInfo | None = None,
    reported: Reported = lambda _report: None,
) -> int:
    """Run ``call``, about ``zone``, in a child of ours and return its exit status.  Raises HookError.

    ``name`` is what error texts call it.  ``say`` receives each line it prints, to stdout or stderr, as it comes;
    ``reported`` those that say how far it has come.  A process that the hook leaves behind may keep the pipe open: the
    end of the hook counts, not that of the output.
    """
    reading_fd, writing_fd = os.pipe2(os.O_CLOEXEC)
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        _be_the_hook(call, name, writing_fd, parent, zone)
    os.close(writing_fd)
    try:
        status = _follow(pid, _Lines(reading_fd, say, reported), time.monotonic() + deadline_s)
    finally:
        os.close(reading_fd)
    if status is None:
        raise HookError(
            "{name} did not end within {deadline:g} seconds and was killed", name=name, deadline=deadline_s
        )
    return _decode(status, name)


def _decode(status: int, name: str) -> int:
    if os.WIFSIGNALED(status):
        raise HookError(
            "{name} unexpectedly terminated due to signal {number}", name=name, number=os.WTERMSIG(status)
        )
    code = os.WEXITSTATUS(status)
    if code == _EXEC_FAILED:
        raise HookError("failed to exec {name}", name=name)
    return code


# -- the parent's side ------------------------------------------------------------------------------------------


class _Lines:
    """The hook's output, cut into lines of bounded length."""

    def __init__(self, fd: int, say: Say, reported: Reported) -> None:
        os.set_blocking(fd, False)
        self.fd = fd
        self._say = say
        self._reported = reported
        self._rest = b""

    def read(self) -> bool:
        """Read once.  False when there is nothing more to come for now."""
        try:
            chunk = os.read(self.fd, _READ_BYTES)
        except BlockingIOError:
            return False
        self._rest += chunk
        *lines, self._rest = self._rest.split(b"\n")
        for line in lines:
            self._speak(line)
        while len(self._rest) > LINE_MAX:
            self._speak(self._rest[:LINE_MAX])
            self._rest = self._rest[LINE_MAX:]
        return bool(chunk)

    def finish(self) -> None:
        """Speak a last line that has no end."""
        if self._rest:
            self._speak(self._rest)
            self._rest = b""

    def _speak(self, line: bytes) -> None:
        text = line.decode(errors="replace").removesuffix("\r")
        report = reports.parse(text)
        if report is not None:
            self._reported(report)
            return
        for start in range(0, len(text) or 1, LINE_MAX):
            self._say(text[start : start + LINE_MAX])


def _follow(pid: int, lines: _Lines, deadline: float) -> int | None:
    """Forward output until the child has ended.  Its wait status, or None when the deadline ended it."""
    pid_fd = os.pidfd_open(pid)
    in_time = False
    try:
        in_time = _forward(pid_fd, lines, deadline)
    finally:  # also when ``say`` raises: a hook does not run on with nobody who waits for it
        if not in_time:
            _kill(pid, pid_fd)
        os.close(pid_fd)
        _pid, status = os.waitpid(pid, 0)
    _drain(lines)
    return status if in_time else None


def _forward(pid_fd: int, lines: _Lines, deadline: float) -> bool:
    poller = select.poll()
    poller.register(pid_fd, select.POLLIN)
    poller.register(lines.fd, select.POLLIN)
    while True:
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            return False
        ready = dict(poller.poll(left_s * 1000 + 1))
        if lines.fd in ready and not lines.read():
            poller.unregister(lines.fd)  # end of output: only the end of the process is left to wait for
        if pid_fd in ready:
            return True


def _drain(lines: _Lines) -> None:
    """What the hook wrote before it ended; a bounded amount, since a process it left behind may write for ever."""
    for _ in range(64):
        if not lines.read():
            break
    lines.finish()


def _kill(pid: int, pid_fd: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:  # it had no time to become a group leader
        signal.pidfd_send_signal(pid_fd, signal.SIGKILL)


# -- the child's side -------------------------------------------------------------------------------------------


def _be_the_hook(call: Call, name: str, output_fd: int, parent: int, zone: ZoneInfo | None) -> NoReturn:
    code: int = HookExit.FATAL
    try:
        gc.enable()  # whoever forked it may do without
        _settle(output_fd, parent, zone.zonename if zone else "")
        code = _result(partial(_with_root, call, zone) if zone else call, name)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code & 0xFF)


def _with_root(call: Call, zone: ZoneInfo) -> int | None:
    """The call, with all layers of the zone's root seen as one."""
    from zonemgr.brandkit import layers

    layers.show(zone)
    return call()


def _settle(output_fd: int, parent: int, zonename: str) -> None:
    process.set_pdeathsig(signal.SIGKILL, parent)
    os.setsid()
    process.reset_signals()
    null_fd = os.open("/dev/null", os.O_RDONLY)
    for source, target in ((null_fd, 0), (output_fd, 1), (output_fd, 2)):
        os.dup2(source, target)
    process.close_fds((0, 1, 2))
    os.umask(0o022)
    os.chdir("/")
    os.environ.clear()
    os.environ.update(_environment(zonename))
    # New streams: the old ones may hold what the parent has not flushed, which is the parent's to write.
    sys.stdin = os.fdopen(0, "r", closefd=False)
    sys.stdout = os.fdopen(1, "w", buffering=1, errors="replace", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="replace", closefd=False)


def _environment(zonename: str) -> Mapping[str, str]:
    environment = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root",
        "LANG": "C.UTF-8",
    }
    return environment | ({TRANSITION_VARIABLE: zonename} if zonename else {})


def _result(call: Call, name: str) -> int:
    try:
        result = call()
    except ZoneError as error:
        print(error.text)
        for note in getattr(error, "__notes__", ()):
            print(f"  {note}")
        return _code_of(error)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException as error:  # noqa: BLE001 - foreign code, and we leave by os._exit in any case
        print(f"{name}: {_describe(error)}")
        return HookExit.FATAL
    if result is None:
        return HookExit.OK
    if not isinstance(result, int):
        print(f"{name}: returned {result!r}, which is no exit status")
        return HookExit.FATAL
    return int(result)


def _code_of(error: ZoneError) -> HookExit:
    if isinstance(error, UsageError):
        return HookExit.USAGE
    return HookExit.NOT_COMPLETED if isinstance(error, NotCompleted) else HookExit.FATAL


def _describe(error: BaseException) -> str:
    """One line for an exception of foreign code, with the place it came from."""
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    else:
        text = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}".removesuffix(": ")
    trace, place, own = error.__traceback__, "", False
    while trace is not None:
        filename = trace.tb_frame.f_code.co_filename
        if filename.endswith("/brand.py") or not own:  # the brand's own line says more than one in a library
            place, own = f" ({filename}:{trace.tb_lineno})", filename.endswith("/brand.py")
        trace = trace.tb_next
    return text + place
