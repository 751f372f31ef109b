"""The interactive editor, typed at through a real terminal."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from zonemgr.store.paths import ROOT_VARIABLE, Layout

CHECKOUT = Path(__file__).resolve().parents[2]
DEADLINE_S = 30.0


class Terminal:
    """The program at the other end of a pty."""

    def __init__(self, root: Path, *words: str) -> None:
        self.master, slave = pty.openpty()
        environment = {
            **os.environ,
            ROOT_VARIABLE: str(root),
            "HOME": str(root),
            "TERM": "dumb",
            "PYTHONPATH": str(CHECKOUT),
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "zonemgr", *words], stdin=slave, stdout=slave, stderr=slave, env=environment
        )
        os.close(slave)
        self.shown = ""

    def expect(self, text: str) -> str:
        """Wait until the text is shown; returns what was shown up to it and forgets that."""
        deadline = time.monotonic() + DEADLINE_S
        while text not in self.shown:
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not select.select([self.master], [], [], left_s)[0]:
                raise AssertionError(f"{text!r} was not shown, but {self.shown!r}")
            try:
                self.shown += os.read(self.master, 4096).decode(errors="replace")
            except OSError:
                raise AssertionError(f"ended without {text!r}: {self.shown!r}") from None
        before, _, self.shown = self.shown.partition(text)
        return before

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def status(self) -> int:
        """Read to the end and return the exit status."""
        while True:
            try:
                chunk = os.read(self.master, 4096)
            except OSError:
                break
            if not chunk:
                break
        return self.process.wait(DEADLINE_S)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.master)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout.at(tmp_path)
    file = layout.config("web")
    file.parent.mkdir(parents=True)
    file.write_text('zonename = "web"\nbrand = "native"\n# mine\nautoboot = false\n')
    return layout


@pytest.fixture
def terminal(layout: Layout) -> Iterator[Terminal]:
    terminal = Terminal(layout.root, "config", "web")
    terminal.expect("zonecfg:web> ")
    yield terminal
    terminal.close()


def test_prompts_show_the_scope_and_exit_saves(terminal: Terminal, layout: Layout) -> None:
    terminal.type("add fs\n")
    terminal.expect("zonecfg:web:fs> ")
    terminal.type("set dir=/data; set special=/srv\n")
    terminal.expect("zonecfg:web:fs> ")
    terminal.type("set type=bind; add options ro; end\n")
    terminal.expect("zonecfg:web> ")
    assert "/data" not in layout.config("web").read_text()
    terminal.type("exit\n")
    assert terminal.status() == 0
    text = layout.config("web").read_text()
    assert 'dir = "/data"' in text
    assert "# mine" in text


def test_an_error_is_told_and_the_editor_goes_on(terminal: Terminal, layout: Layout) -> None:
    terminal.type("set autobot=true\n")
    terminal.expect("did you mean 'autoboot'?")
    terminal.expect("zonecfg:web> ")
    terminal.type("set autoboot=true\n")
    terminal.expect("zonecfg:web> ")
    terminal.type("exit\n")
    assert terminal.status() == 1, "an error seen makes the status 1 even when the save worked"
    assert "autoboot = true" in layout.config("web").read_text()


def test_leaving_in_a_resource_asks(terminal: Terminal) -> None:
    terminal.type("add fs\n")
    terminal.expect("zonecfg:web:fs> ")
    terminal.type("exit\n")
    terminal.expect("Resource incomplete; really quit (y/[n])? ")
    terminal.type("n\n")
    terminal.expect("zonecfg:web:fs> ")
    terminal.type("cancel\n")
    terminal.expect("zonecfg:web> ")
    terminal.type("exit\n")
    assert terminal.status() == 0


def test_the_end_of_input_saves_like_exit(terminal: Terminal, layout: Layout) -> None:
    terminal.type("set autoboot=true\n")
    terminal.expect("zonecfg:web> ")
    terminal.type("\x04")
    assert terminal.status() == 0
    assert "autoboot = true" in layout.config("web").read_text()


def test_revert_asks_and_forgets(terminal: Terminal, layout: Layout) -> None:
    terminal.type("set autoboot=true\n")
    terminal.expect("zonecfg:web> ")
    terminal.type("revert\n")
    terminal.expect("(y/[n])? ")
    terminal.type("y\n")
    terminal.expect("zonecfg:web> ")
    terminal.type("exit\n")
    assert terminal.status() == 0
    assert "autoboot = false" in layout.config("web").read_text()


def test_an_interrupt_loses_nothing(terminal: Terminal, layout: Layout) -> None:
    terminal.type("set autoboot=true\n")
    terminal.expect("zonecfg:web> ")
    terminal.type("\x03")
    terminal.type("exit\n")
    assert terminal.status() == 0
    assert "autoboot = true" in layout.config("web").read_text()


def test_tab_completes_commands_resources_and_properties(terminal: Terminal) -> None:
    terminal.type("ad\tcapped-m\t\n")
    terminal.expect("zonecfg:web:capped-memory> ")
    terminal.type("set phy\t64M\n")
    terminal.expect("zonecfg:web:capped-memory> ")
    terminal.type("info\n")
    assert "physical" in terminal.expect("zonecfg:web:capped-memory> ")


def test_an_answer_of_no_is_no_end_and_no_error(terminal: Terminal, layout: Layout) -> None:
    terminal.type("set autoboot=true\n")
    for command, question in (("delete", "delete zone web"), ("create", "create anyway"), ("revert", "to revert")):
        terminal.expect("zonecfg:web> ")
        terminal.type(f"{command}\n")
        terminal.expect(question)
        terminal.type("n\n")
        terminal.expect("nothing is changed")
    terminal.type("exit\n")
    assert terminal.status() == 0
    assert "autoboot = true" in layout.config("web").read_text()


def test_bytes_that_are_no_text_lose_nothing(terminal: Terminal, layout: Layout) -> None:
    terminal.type("set autoboot=true\n")
    terminal.expect("zonecfg:web> ")
    os.write(terminal.master, b"\xff\xfe\n")
    terminal.expect("zonecfg:web> ")
    terminal.type("exit\n")
    assert terminal.status() == 1
    assert "autoboot = true" in layout.config("web").read_text()


def test_delete_asks_and_ends(terminal: Terminal, layout: Layout) -> None:
    terminal.type("delete\n")
    terminal.expect("(y/[n])? ")
    terminal.type("y\n")
    assert terminal.status() == 0
    assert not layout.config("web").exists()


def test_removing_all_of_a_kind_asks(terminal: Terminal, layout: Layout) -> None:
    for directory in ("/a", "/b"):
        terminal.type(f"add fs dir={directory} special=/srv type=bind options=ro\n")
        terminal.expect("zonecfg:web> ")
    terminal.type("remove fs\n")
    terminal.expect("Are you sure you want to remove ALL 'fs' resources (y/[n])? ")
    terminal.type("y\n")
    terminal.expect("zonecfg:web> ")
    terminal.type("exit\n")
    assert terminal.status() == 0
    assert "[[fs]]" not in layout.config("web").read_text()
