"""What every transition calls, says and tells the console, on success and on each failure (reference, 1.5 and 2.1).

One zone and one console client go through all of it.  ``test_hooks`` has what a single hook may do.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.kit import door
from tests.kit.brands import Traced
from tests.kit.console import Console
from tests.kit.instance import Instance
from tests.kit.waiting import until
from zonemgr.model.states import Command
from zonemgr.store.observe import observe

pytestmark = pytest.mark.requires("root", "mount", "net", "cgroup")

BOOTING, REBOOTING = "NOTICE: Zone booting up", "NOTICE: Zone rebooting"
FAILED, HALTED, READIED = "NOTICE: Zone boot failed", "NOTICE: Zone halted", "NOTICE: Zone readied"

READY_I = ["pre installed ready", "post installed ready"]
BOOT_I = [*READY_I, "pre installed boot", "boot", "post installed boot"]
HALT_I = ["pre installed halt", "halt", "post installed halt"]
HALT = ["pre running halt", "halt", "post running halt"]
READY = ["pre running ready", "post running ready"]
BOOT = ["pre running boot", "boot", "post running boot"]
MESSAGE = "brand 'traced' {} failed with exit status 1"


@dataclass
class Zone:
    """The zone, its brand and its console."""

    instance: Instance
    brand: Traced
    console: Console

    def does(
        self,
        command: Command,
        script: dict[str, str] | None = None,
        *,
        calls: list[str],
        notices: list[str],
        state: str,
        says: str | None = None,
        args: str | None = None,
    ) -> None:
        """The command's whole behaviour; ``says`` is a line of a failure, None means that it works."""
        self.brand.script(script)
        answer = door.ask(self.instance, command, args=args)
        assert answer.ok == (says is None), answer
        if says is None:
            assert answer.messages == ()
        else:
            assert any(text == says or text.startswith(says + " (") for text in answer.messages), answer
        assert self.brand.trace() == calls
        assert self.console.notices() == notices
        assert self.state == state
        self.brand.script()

    @property
    def state(self) -> str:
        return observe(self.instance.layout, "web").state.label

    @property
    def root(self) -> Path:
        return self.instance.layout.zonepath("web") / "root"

    def boot(self) -> None:
        assert door.ask(self.instance, Command.BOOT).ok
        self.forget()

    def halt(self) -> None:
        assert door.ask(self.instance, Command.HALT).ok
        self.forget()

    def forget(self) -> None:
        self.brand.trace()
        self.console.notices()

    def bridge(self, old: str, new: str) -> None:
        """Change the bridge in the configuration by hand."""
        path = self.instance.layout.config("web")
        path.write_text(path.read_text().replace(f'anet = "{old}"', f'anet = "{new}"'))


@pytest.fixture
def zone(instance: Instance) -> Iterator[Zone]:
    brand = Traced(instance)
    instance.installed("web", "-b", brand.name)
    brand.trace()
    with Console(instance) as console:
        yield Zone(instance, brand, console)


def test_success(zone: Zone) -> None:
    zone.does(Command.READY, calls=READY_I, notices=[READIED], state="ready")
    calls = ["pre ready boot", "boot", "post ready boot"]
    zone.does(Command.BOOT, calls=calls, notices=[BOOTING], state="running")
    zone.does(Command.READY, calls=[*HALT, *READY], notices=[READIED], state="ready")
    calls = ["pre ready halt", "halt", "post ready halt"]
    zone.does(Command.HALT, calls=calls, notices=[HALTED], state="installed")
    zone.does(Command.BOOT, calls=BOOT_I, notices=[BOOTING], state="running")
    zone.does(Command.REBOOT, calls=[*HALT, *READY, *BOOT], notices=[REBOOTING], state="running")
    zone.does(Command.HALT, calls=HALT, notices=[HALTED], state="installed")
    zone.does(Command.MOUNT, calls=READY_I, notices=[READIED], state="mounted")
    calls = ["pre mounted halt", "halt", "post mounted halt"]
    zone.does(Command.UNMOUNT, calls=calls, notices=[HALTED], state="installed")


def test_a_boot_that_fails(zone: Zone) -> None:
    ended = {"notices": [BOOTING, FAILED], "state": "installed"}
    zone.does(  # there is nothing to halt yet, so no hook follows that halt's first
        Command.BOOT,
        {"pre installed ready": "fail"},
        calls=["pre installed ready", "pre installed halt"],
        says=MESSAGE.format("pre_statechange"),
        **ended,  # type: ignore[arg-type]
    )
    zone.does(
        Command.BOOT,
        {"post installed ready": "fail"},
        calls=[*READY_I, "post ready halt", *HALT_I],
        says=MESSAGE.format("post_statechange"),
        **ended,  # type: ignore[arg-type]
    )
    zone.does(
        Command.BOOT,
        {"pre installed boot": "fail"},
        calls=[*READY_I, "pre installed boot", *HALT_I],
        says=MESSAGE.format("pre_statechange"),
        **ended,  # type: ignore[arg-type]
    )
    zone.does(
        Command.BOOT,
        {"boot": "fail"},
        calls=[*BOOT_I[:-1], "post running halt", *HALT_I],
        says=MESSAGE.format("boot"),
        **ended,  # type: ignore[arg-type]
    )
    zone.does(
        Command.BOOT,
        {"post installed boot": "fail"},
        calls=[*BOOT_I, "post running halt", *HALT_I],
        says=MESSAGE.format("post_statechange"),
        **ended,  # type: ignore[arg-type]
    )
    zone.bridge(zone.instance.bridge, "nobridge0")
    zone.does(
        Command.BOOT,
        calls=["pre installed ready", "post ready halt", "pre installed halt"],
        says="bridge 'nobridge0' does not exist",
        **ended,  # type: ignore[arg-type]
    )
    zone.does(
        Command.READY,
        calls=["pre installed ready", "post ready halt"],
        says="bridge 'nobridge0' does not exist",
        notices=[],
        state="installed",
    )
    zone.bridge("nobridge0", zone.instance.bridge)


def test_inits_that_cannot_be_started(zone: Zone) -> None:
    for name, mode, text in (("plain", 0o644, "#!/bin/sh\n"), ("garbage", 0o755, "\x7fgarbage\n")):
        (zone.root / name).write_text(text)
        (zone.root / name).chmod(mode)
    root = str(zone.root)
    calls = [*READY_I, "pre installed boot", "post running halt", *HALT_I]
    for init, says, called in (
        ("/nowhere", f"could not stat {root}/nowhere: No such file or directory", calls),
        ("/plain", f"{root}/plain is not executable", calls),
        ("/etc", f"{root}/etc is not executable", calls),
        (
            "/garbage",
            "unable to boot zone: /garbage: Exec format error",
            [*BOOT_I[:-1], "post running halt", *HALT_I],
        ),
    ):
        zone.does(
            Command.BOOT,
            args=f"-i {init}",
            calls=called,
            says=says,
            notices=[BOOTING, FAILED],
            state="installed",
        )


def test_a_reboot_that_fails(zone: Zone) -> None:
    zone.boot()
    zone.does(
        Command.REBOOT,
        {"pre running halt": "fail"},
        calls=["pre running halt"],
        says=MESSAGE.format("pre_statechange"),
        notices=[REBOOTING, FAILED],
        state="running",
    )
    zone.does(
        Command.REBOOT,
        {"halt": "fail"},
        calls=["pre running halt", "halt"],
        says="unable to destroy zone",
        notices=[REBOOTING, FAILED],
        state="down",
    )
    calls = [word.replace("running", "down") for word in [*HALT, *READY, *BOOT]]
    zone.does(Command.REBOOT, calls=calls, notices=[REBOOTING], state="running")
    zone.does(
        Command.REBOOT,
        {"pre running ready": "fail"},
        calls=[*HALT, "pre running ready"],
        says=MESSAGE.format("pre_statechange"),
        notices=[REBOOTING, FAILED],
        state="installed",
    )
    zone.boot()
    zone.does(
        Command.REBOOT,
        {"boot": "fail"},
        calls=[*HALT, *READY, "pre running boot", "boot", "post running halt", *HALT],
        says=MESSAGE.format("boot"),
        notices=[REBOOTING, FAILED],
        state="installed",
    )
    zone.boot()
    zone.bridge(zone.instance.bridge, "nobridge0")
    zone.does(
        Command.REBOOT,
        calls=[*HALT, "pre running ready", "post ready halt"],
        says="bridge 'nobridge0' does not exist",
        notices=[REBOOTING, FAILED],
        state="installed",
    )


def test_other_failures(zone: Zone) -> None:
    zone.does(
        Command.READY,
        {"post installed ready": "fail"},
        calls=[*READY_I, "post ready halt"],
        says=MESSAGE.format("post_statechange"),
        notices=[],
        state="ready",  # as in the reference: the operator who asked decides
    )
    zone.does(
        Command.BOOT,
        {"boot": "fail"},
        calls=["pre ready boot", "boot", "post running halt", "pre ready halt", "halt", "post ready halt"],
        says=MESSAGE.format("boot"),
        notices=[BOOTING, FAILED],
        state="installed",
    )
    zone.boot()
    zone.does(
        Command.HALT,
        {"post running halt": "fail"},
        calls=HALT,
        says=MESSAGE.format("post_statechange"),
        notices=[],
        state="installed",
    )
    zone.boot()
    zone.does(
        Command.READY,
        {"pre running ready": "fail"},
        calls=[*HALT, "pre running ready"],
        says=MESSAGE.format("pre_statechange"),
        notices=[HALTED],
        state="installed",
    )


def test_ids_grow_and_the_uuid_stays(zone: Zone) -> None:
    lives = []
    for command in (Command.BOOT, Command.REBOOT, Command.READY):
        door.ask(zone.instance, command)
        seen = observe(zone.instance.layout, "web")
        lives.append((seen.zone_id, seen.uuid))
    ids = [number for number, _ in lives]
    assert ids == sorted(set(ids), key=lambda number: number or 0)
    assert len({uuid for _, uuid in lives}) == 1
    assert lives[0][1]


def test_boot_arguments(zone: Zone) -> None:
    assert door.ask(zone.instance, Command.READY).ok
    zone.forget()
    answer = door.ask(zone.instance, Command.BOOT, args="dropped -s -x -m verbose a b")
    assert answer.messages == ("WARNING: Unused or invalid boot arguments `-x a b'.",)
    assert zone.console.notices() == [
        f"{BOOTING} with arguments: dropped -s -x -m verbose a b",
        "WARNING: Ignoring invalid boot arguments: -x a b",
    ]
    record = observe(zone.instance.layout, "web").instance
    assert record is not None and record.init is not None
    words = Path(f"/proc/{record.init.pid}/cmdline").read_bytes().split(b"\0")
    assert words[-5:] == [b"-s", b"-x", b"-m", b"verbose", b""]

    answer = door.ask(zone.instance, Command.REBOOT, args="x" * 256)
    assert (answer.ok, answer.messages) == (False, ("Boot argument list too long",))
    assert zone.state == "running"
    assert door.ask(zone.instance, Command.REBOOT, args="-m " + "x" * 252).ok
    zone.forget()
    assert door.ask(zone.instance, Command.REBOOT, args="-s").ok
    assert zone.console.notices() == [f"{REBOOTING} with arguments: -s"]


def test_output_comes_while_the_hook_runs(zone: Zone, tmp_path: Path) -> None:
    """The requester hears the hook's line before the hook can end, since the hook waits for the requester."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    zone.brand.script({"pre installed ready": f"wait {fifo}"})
    heard: list[str] = []
    asking = threading.Thread(
        target=lambda: door.ask(zone.instance, Command.READY, say=heard.append), daemon=True
    )
    asking.start()
    until(lambda: "waiting" in heard, "the hook's output")
    assert zone.brand.trace() == ["pre installed ready"]
    assert door.state(zone.instance)["under_way"] == "ready"
    fifo.write_text("")
    asking.join(30)
    assert not asking.is_alive()
    assert zone.state == "ready"
