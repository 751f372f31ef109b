"""The step boot: zone_bootup of the reference (section 2.3).  The parked process 1 becomes the brand's init."""

from __future__ import annotations

import dataclasses
import os
import time
from typing import Any

from zonemgr.errors import PlatformError, ZoneError
from zonemgr.linux import paths
from zonemgr.model import plan
from zonemgr.model.bootargs import BootArguments, filter_bootargs
from zonemgr.model.brandspec import InitProgram
from zonemgr.model.states import Command, Notice, State
from zonemgr.platform import compose, runner
from zonemgr.platform.compose import Subject
from zonemgr.platform.stage import Stage
from zonemgr.store import filters, zones
from zonemgr.store import instance as instances
from zonemgr.store.instance import Instance, Phase
from zonemgr.supervisor import alive, statehooks
from zonemgr.supervisor import init as initprogram
from zonemgr.supervisor.anchor import Anchor, StubError
from zonemgr.supervisor.transition import Transition


def boot(transition: Transition) -> None:
    """zone_bootup: hook, in-zone mounts, the brand's boot command, exec of init, hook."""
    statehooks.pre(transition, transition.state, Command.BOOT)
    try:
        _boot(transition)
        statehooks.post(transition, transition.state, Command.BOOT)
    except Exception:
        statehooks.post_ignored(transition, State.RUNNING, Command.HALT)
        raise


def _boot(transition: Transition) -> None:
    layout, zonename, brand = transition.layout, transition.zonename, transition.brand
    instance = instances.read(layout, zonename)
    if instance is None:
        raise PlatformError("unable to get zoneid: no such zone is ready")
    zone = transition.configuration()
    words = filter_bootargs(transition.arguments, zone.bootargs)
    for text in words.messages:
        transition.say(text)
    if words.bad:
        transition.notice(Notice.BADARGS, " ".join(words.bad))
    program = _init_program(transition, words)
    init, arguments = program.path, program.arguments
    anchor = Anchor.connect(layout, zonename)
    try:
        hello = anchor.hello()
        try:
            born = alive.born(hello)
            stage = alive.stage(transition, instance, born)
            uuid = zones.read_entry(layout, zonename).uuid
            _in_zone_mounts(transition, stage, instance, init, arguments, uuid)
            if "/" in init:
                _check_init(stage, instance.root, init)
            statehooks.run(transition, "boot", brand.boot)
            instance = instances.write(
                layout,
                instance.but(
                    phase=Phase.BOOTING,
                    booted_s=time.monotonic(),
                    notifies=instance.notifies and not words.init,  # of another init nobody knows
                ),
            )
            rules = filters.program(layout, instance) or b""
            transition.console_taken()
            _exec(anchor, initprogram.boot_message(program, instance, uuid), rules, hello.fds["slave"])
        finally:
            hello.close()
    finally:
        anchor.close()
    instances.write(layout, instance.but(phase=Phase.RUNNING))
    transition.publish(State.READY, State.RUNNING, instance.zone_id)


def _init_program(transition: Transition, words: BootArguments) -> InitProgram:
    """What process 1 becomes: the brand's choice with the boot arguments, or the init that was asked for (``-i``)."""
    if words.init:
        return InitProgram(words.init, words.words)
    program = initprogram.program_of(transition.brand, transition.info())
    if program.reaped:
        if words.words:
            transition.say("WARNING: the program of this zone takes no boot arguments")
        return program
    return dataclasses.replace(program, arguments=(*program.arguments, *words.words))


def _in_zone_mounts(
    transition: Transition, stage: Stage, instance: Instance, init: str, arguments: tuple[str, ...], uuid: str
) -> None:
    entry_subject = Subject(
        zone=transition.configuration(),
        brand=transition.brand,
        data=str(transition.brand.folder),
        layout=transition.layout,
        settings=transition.settings,
        mode=instance.mode,
        uid_base=instance.uid_base,
        uuid=uuid,
        writable=not instance.frozen,
    )
    ops = [
        op for op in compose.compose_boot(entry_subject, init, arguments) if not isinstance(op, plan.ExecInit)
    ]
    if not ops:
        return
    try:
        with alive.at_root(stage):
            runner.run(ops, stage, transition.ledger, step=transition.step)
    except ZoneError as error:
        error.add_note("unable to mount filesystems")
        raise


def _check_init(stage: Stage, root: str, init: str) -> None:
    """The init must be there and executable, resolved inside the zone's root (reference 2.3, step 8)."""
    import stat

    with runner.inside(stage):
        root_fd = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            init_fd = paths.open_beneath(root_fd, init, os.O_PATH, no_symlinks=False)
            mode = os.fstat(init_fd).st_mode
            os.close(init_fd)
        except OSError as error:
            raise PlatformError(
                "could not stat {path}: {why}", path=root + init, why=os.strerror(error.errno or 0)
            ) from None
        finally:
            os.close(root_fd)
    if not stat.S_ISREG(mode) or not mode & 0o100:
        raise PlatformError("{path} is not executable", path=root + init)


def _exec(anchor: Anchor, order: dict[str, Any], rules: bytes, slave_fd: int) -> None:
    """Send the boot message; process 1 execs, or says which step failed."""
    init = order["init"]
    try:
        anchor.stub(order, (slave_fd,), rules)
    except StubError as error:
        if error.stage == "exec" and error.errno:
            raise PlatformError(
                "unable to boot zone: {init}: {why}", init=init, why=os.strerror(error.errno)
            ) from None
        raise PlatformError("unable to boot zone: {why}", why=error.text) from None
