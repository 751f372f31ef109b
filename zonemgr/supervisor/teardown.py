"""The step halt: zone_halt and vplat_teardown of the reference (sections 2.4 and 3.5).

Every part may be run again; the first real obstacle ends it and leaves the zone where halt may be tried once more.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time

from zonemgr.errors import PlatformError, ZoneError, message
from zonemgr.linux import mounts, namespaces, process
from zonemgr.linux.cgroup import Part
from zonemgr.model import plan
from zonemgr.model.states import Command, State
from zonemgr.platform import runner, undo
from zonemgr.store import change, idranges, readiness, snapshot
from zonemgr.store import instance as instances
from zonemgr.store.instance import Instance, Phase
from zonemgr.store.ledger import Ledger
from zonemgr.store.observe import living_state
from zonemgr.store.paths import Layout
from zonemgr.supervisor import statehooks
from zonemgr.supervisor.anchor import SOCKET, Anchor, Hello
from zonemgr.supervisor.transition import Transition


def halt(transition: Transition, *, rebooting: bool = False) -> None:
    """zone_halt: hook, teardown, snapshot away, hook.  A failed hook refuses the halt; a failed teardown leaves the
    zone shutting_down or down, where halt may be tried again."""
    statehooks.pre(transition, transition.state, Command.HALT)
    try:
        if not teardown(transition, rebooting=rebooting):
            raise PlatformError("unable to get zoneid")
    except Exception as error:
        if not transition.recovering:
            error.add_note("unable to destroy zone")
        raise
    try:
        snapshot.destroy(transition.layout, transition.zonename)
    except OSError as error:
        transition.say(message("destroying snapshot: {why}, ignoring", why=error.strerror))
    statehooks.post(transition, transition.state, Command.HALT)


def teardown(transition: Transition, *, rebooting: bool = False) -> bool:
    """vplat_teardown, in the reference's order (3.5).  Every part may be run again; the first real obstacle
    ends it.  False when there was nothing to tear down.
    """
    layout, zonename = transition.layout, transition.zonename
    instance = instances.read(layout, zonename)
    ledger = transition.ledger
    if instance is None and not ledger.pending():
        return False
    old = _published_state(instance) if instance else None
    if instance is not None:
        if instance.phase is not Phase.HALTING:
            instance = instances.write(layout, instance.but(phase=Phase.HALTING))
            transition.publish(old or State.READY, State.SHUTTING_DOWN, instance.zone_id)
        _kill_all(transition, instance)
        statehooks.run(transition, "halt", transition.brand.halt)
    take_back(transition, ledger, rebooting=rebooting)
    transition.publish(State.SHUTTING_DOWN, State.INSTALLED, instance.zone_id if instance else None)
    return True


def _published_state(instance: Instance) -> State | None:
    """The state that followers of events know: init's own end is not told to them before its consequences."""
    if instance.phase in (Phase.BOOTING, Phase.RUNNING) and not instance.mode.alternate:
        return State.RUNNING
    if instance.phase is Phase.READY:
        return State.MOUNTED if instance.mode.alternate else State.READY
    return living_state(instance)


def _kill_all(transition: Transition, instance: Instance) -> None:
    """Kill every process of the zone and see it empty, or name who is stuck."""
    cgroup = transition.cgroup
    deadline = time.monotonic() + transition.settings.kill_s
    while True:
        cgroup.kill(Part.PAYLOAD)
        _kill_init(instance)
        left_s = deadline - time.monotonic()
        if cgroup.wait_empty(Part.PAYLOAD, min(1.0, max(left_s, 0.01))):
            return
        if left_s <= 0:
            raise PlatformError(
                "unable to shutdown zone: still there: {stuck}", stuck="; ".join(cgroup.stuck(Part.PAYLOAD))
            )


def _kill_init(instance: Instance) -> None:
    """Killing process 1 ends its pid namespace, also what a privileged guest moved out of its cgroup."""
    if instance.init is None or not instance.init.alive:
        return
    try:
        init_fd = process.pidfd_open(instance.init.pid)
    except ProcessLookupError:
        return
    try:
        if instance.init.alive:
            process.pidfd_signal(init_fd, signal.SIGKILL)
    except ProcessLookupError:
        return
    finally:
        os.close(init_fd)


def take_back(transition: Transition, ledger: Ledger, *, rebooting: bool = False) -> None:
    """Network first, while zsched holds the namespace; then file systems and zsched; then everything else.

    ``rebooting``: what the zone will have again at once, CPUs of its own, is kept for it (reference 3.5, step 9).
    """
    transition.cgroup.kill(Part.PAYLOAD)
    remains = undo.Remains(transition.layout, transition.zonename, rebooting=rebooting)
    undo.begin(ledger, remains)
    try:
        _take_back(transition, ledger, remains)
    finally:
        if remains.filters_gone is not None:  # what went wrong is being raised already
            with contextlib.suppress(ZoneError):
                remains.filters_gone()


def _take_back(transition: Transition, ledger: Ledger, remains: undo.Remains) -> None:
    layout, zonename = transition.layout, transition.zonename
    cgroup = transition.cgroup
    living = _living_anchor(layout, zonename)
    failures: list[ZoneError] = []
    if living is not None:
        anchor, hello = living
        try:
            remains.net_fd = hello.fds["net"]
            failures = undo.network(transition.ledger, remains)
            ledger = transition.ledger
            if not failures:
                _unmount(transition, ledger, hello.fds["m0"])
        finally:
            remains.net_fd = None
            hello.close()
        if not failures:
            _dismiss(anchor)
    if not failures:
        cgroup.kill(Part.MANAGER)
        cgroup.wait_empty(Part.MANAGER, 10.0)
        cgroup.wait_empty(Part.PAYLOAD, 10.0)
        failures = undo.everything(ledger, remains)
    if failures:
        first = failures[0]
        for other in failures[1:]:
            first.add_note(other.text)
        raise first
    instances.forget(layout, zonename)
    readiness.forget(layout, zonename)
    change.forget(layout, zonename)
    (layout.zone_run(zonename) / SOCKET).unlink(missing_ok=True)
    if layout.alternate:
        idranges.release(layout, zonename)


def _living_anchor(layout: Layout, zonename: str) -> tuple[Anchor, Hello] | None:
    """zsched and what it holds; None when it is gone, or goes while it is asked (its creator has just left it)."""
    try:
        anchor = Anchor.connect(layout, zonename)
    except OSError:
        return None
    try:
        return anchor, anchor.hello()
    except OSError:
        anchor.close()
        return None


def _dismiss(anchor: Anchor) -> None:
    try:
        anchor.quit()
    except OSError:
        return  # it was gone already
    finally:
        anchor.close()


def _unmount(transition: Transition, ledger: Ledger, m0_fd: int) -> None:
    """Unmount block file systems of fs resources, newest first, so that they are clean when halt returns.

    Everything else of the tree goes with M0.
    """
    ops = [plan.from_json(table) for _number, table in ledger.pending()]
    wanted = [op for op in ops if isinstance(op, plan.FileSystem) and op.type != "tmpfs"]
    if not wanted:
        return
    home_fd = namespaces.open_ns("self", "mnt")
    try:
        with runner.without_imports():
            namespaces.setns(m0_fd, namespaces.NEWNS)
            for op in wanted:
                _unmount_one(op.directory)
    finally:
        namespaces.setns(home_fd, namespaces.NEWNS)
        os.close(home_fd)


def _unmount_one(directory: str) -> None:
    try:
        mounts.unmount(directory, mounts.NOFOLLOW)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EINVAL):  # not mounted (any more)
            return
        try:
            mounts.unmount(directory, mounts.NOFOLLOW | mounts.DETACH)
        except OSError:
            raise PlatformError("unable to unmount '{path}'", path=directory) from None
