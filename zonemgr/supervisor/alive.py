"""A stage for ops on a zone that is ready or running: nothing is to be made for it, everything is there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from zonemgr.errors import PlatformError
from zonemgr.linux import namespaces
from zonemgr.platform import runner
from zonemgr.platform.stage import Born, Stage
from zonemgr.store import zones
from zonemgr.store.instance import Instance
from zonemgr.supervisor.anchor import Hello
from zonemgr.supervisor.transition import Transition


def born(hello: Hello) -> Born:
    """What zsched holds, as the platform knows it.  The descriptors stay the hello's."""
    return Born(hello.init_pid, hello.fds["m0"], hello.fds["net"], hello.fds["user"])


def born_without_zsched(init_pid: int) -> Born:
    """What can still be had of a zone whose zsched was killed: its own mount tree in the place of M0.  The caller
    closes the descriptors (``Stage.close``).
    """
    names = ("mnt", "net", "user")
    return Born(init_pid, *(namespaces.open_ns(init_pid, name) for name in names))


def stage(transition: Transition, instance: Instance, born: Born) -> Stage:
    """The stage of a living zone."""

    def impossible(*_: object) -> None:
        raise PlatformError("a ready zone has its namespaces already")

    found = Stage(
        layout=transition.layout,
        zonename=transition.zonename,
        root=instance.root,
        uid_base=instance.uid_base,
        privileged=instance.privileged,
        cgroup=transition.cgroup,
        start_zsched=impossible,  # type: ignore[arg-type]
        keep_console=impossible,
        seal=impossible,
        say=transition.say,
        shifted=zones.read_entry(transition.layout, transition.zonename).idmap_marker is not None,
    )
    found.sealed = True
    found.set_born(born)
    return found


@contextmanager
def at_root(stage: Stage) -> Iterator[None]:
    """The stage knows the zone's root in M0 meanwhile."""
    with runner.inside(stage):
        stage.root_fd = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield
    finally:
        os.close(stage.root_fd)
        stage.root_fd = -1
