"""Commands that a transition runs inside the zone, as its root, with the zone's own limits on them."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Sequence

from zonemgr.errors import PlatformError
from zonemgr.linux import enter, process
from zonemgr.linux.cgroup.entry import entry_fd
from zonemgr.store import filters
from zonemgr.store.instance import Instance
from zonemgr.store.paths import Layout

LINE_MAX = 1023
LINES_MAX = 500  # of one command: a zone may print for ever


def open_init(instance: Instance) -> int:
    """A pidfd of the zone's process 1, proved to be the one that the record speaks of."""
    if instance.init is None:
        raise PlatformError("the zone has no process 1")
    try:
        init_fd = process.pidfd_open(instance.init.pid)
    except ProcessLookupError:
        raise PlatformError("the zone's process 1 is gone") from None
    if not instance.init.alive:
        os.close(init_fd)
        raise PlatformError("the zone's process 1 is gone")
    return init_fd


def run(
    layout: Layout, instance: Instance, argv: Sequence[str], *, say: Callable[[str], None], deadline_s: float
) -> int:
    """Run a command in the zone; its output goes to ``say`` line by line.  Returns its exit status as a shell counts.

    PlatformError when it cannot be started or does not end in time.
    """
    init_fd = open_init(instance)
    payload_fd = entry_fd(instance.cgroup)
    null_fd = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    try:
        child = enter.spawn_in_zone(
            init_fd,
            argv=argv,
            env={"PATH": enter.DEFAULT_PATH, "container": "zonemgr", "HOME": "/root", "USER": "root"},
            capabilities=frozenset(instance.capabilities),
            seccomp=filters.program(layout, instance),
            label=instance.label,
            no_new_privs=instance.no_new_privs,
            personality=instance.personality,
            stdio=(null_fd, write_fd, write_fd),
            cgroup_fd=payload_fd,
            v1_folders=instance.cgroups_v1,
            die_with_parent=True,
            rlimits=instance.rlimits,
            oom_score_adj=instance.oom_score_adj,
            scheduling_class=instance.scheduling_class,
        )
    finally:
        for descriptor in (init_fd, payload_fd, null_fd, write_fd):
            os.close(descriptor)
    try:
        _forward(read_fd, child.pidfd, say, deadline_s)
        return child.wait()
    finally:
        child.close()
        os.close(read_fd)


def _forward(read_fd: int, pid_fd: int, say: Callable[[str], None], deadline_s: float) -> None:
    """Pass lines on until the command has ended; what it leaves running may keep the pipe."""
    os.set_blocking(read_fd, False)
    poller = select.poll()
    poller.register(read_fd, select.POLLIN)
    poller.register(pid_fd, select.POLLIN)
    deadline = time.monotonic() + deadline_s
    rest, said, ended, open_pipe = b"", 0, False, True
    while not ended:
        left_s = deadline - time.monotonic()
        ready = dict(poller.poll(max(0.0, left_s) * 1000))
        if not ready or left_s < 0:  # one that never stops printing is always ready
            process.pidfd_signal(pid_fd, signal.SIGKILL)
            raise PlatformError(
                "the command in the zone did not end within {seconds:g} seconds", seconds=deadline_s
            )
        ended = pid_fd in ready
        data = _read(read_fd) if open_pipe else None
        if data == b"":
            poller.unregister(read_fd)
            open_pipe = False
        *lines, rest = (rest + (data or b"")).split(b"\n")
        for line in lines[: LINES_MAX - said]:
            say(line[:LINE_MAX].decode(errors="replace"))
        if said < LINES_MAX <= said + len(lines):
            say("(more output of the command is dropped)")
        said = min(said + len(lines), LINES_MAX)
        rest = rest[:LINE_MAX]
    if rest and said < LINES_MAX:
        say(rest.decode(errors="replace"))


def _read(read_fd: int) -> bytes | None:
    """What the pipe holds: None for nothing yet, empty for its end."""
    try:
        return os.read(read_fd, 65536)
    except BlockingIOError:
        return None
