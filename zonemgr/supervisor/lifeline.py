"""The supervisor's line to the zone's life: connected to zsched it hears how init ends and holds the console's pty.

When zsched was killed, init's end is seen through a pidfd, and how it ended is known only if init became our child.
What follows from an end is not decided here.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from zonemgr.linux import process
from zonemgr.store import instance as instances
from zonemgr.store.instance import Phase
from zonemgr.store.paths import Layout
from zonemgr.supervisor import log
from zonemgr.supervisor.anchor import Anchor
from zonemgr.supervisor.console import Console
from zonemgr.supervisor.loop import Loop
from zonemgr.wire import packets

InitEnded = Callable[[str, dict[str, int]], None]  # generation; {"code": CLD_…, "status": …}
InitTold = Callable[[str, dict[str, Any]], None]  # generation; what ``notices`` has understood


class Lifeline:
    """See the module.  ``init_ended`` is called once for each life that ends, ``init_told`` also with what is known."""

    def __init__(
        self,
        loop: Loop,
        layout: Layout,
        zonename: str,
        console: Console,
        init_ended: InitEnded,
        init_told: InitTold,
    ) -> None:
        self._loop = loop
        self._layout = layout
        self._zonename = zonename
        self._console = console
        self._init_ended = init_ended
        self._init_told = init_told
        self._anchor: Anchor | None = None
        self._fds: dict[str, int] = {}
        self._generation = ""
        self._ended: dict[int, tuple[int, int]] = {}  # pid of an init that was our child -> code, status

    def attach(self) -> bool:
        """Connect to zsched: be told how init ends, and read the console.  False when there is no zsched."""
        self._detach()
        try:
            anchor = Anchor.connect(self._layout, self._zonename)
            hello = anchor.hello()
            backlog = anchor.attach()
        except OSError:
            return False
        self._anchor = anchor
        self._fds = dict(hello.fds)
        self._generation = hello.generation
        for name in ("m0", "net", "user"):
            if name in self._fds:
                os.close(self._fds.pop(name))
        if "master" in self._fds:
            self._console.set_pty(self._fds.pop("master"), backlog)
        anchor.sock.setblocking(False)
        self._loop.watch(anchor.sock.fileno(), self._ready)
        if hello.notices is not None:
            self._init_told(hello.generation, dict(hello.notices))
        if hello.exit is not None:
            self._init_ended(hello.generation, dict(hello.exit))
        return True

    def watch_orphan(self, generation: str, pid: int) -> None:
        """Nobody holds init's fate: watch it by a pidfd.  How it ends is known only if it became our child."""
        self._generation = generation
        self._fds["init"] = process.pidfd_open(pid)
        self._loop.watch(self._fds["init"], self._orphan_ended)

    def reap(self) -> None:
        """Reap whatever became our child; how a zone's init ended is remembered."""
        while True:
            try:
                result = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG)
            except ChildProcessError:
                break
            if result is None:
                break
            instance = instances.read(self._layout, self._zonename)
            if instance and instance.init and result.si_pid == instance.init.pid:
                self._ended = {result.si_pid: (result.si_code, result.si_status)}

    def _detach(self) -> None:
        if self._anchor is not None:
            self._loop.forget(self._anchor.sock.fileno())
            self._anchor.close()
            self._anchor = None
        for descriptor in self._fds.values():
            self._loop.forget(descriptor)
            os.close(descriptor)
        self._fds = {}

    def _ready(self, _events: int) -> None:
        assert self._anchor is not None
        try:
            packet = packets.receive(self._anchor.sock)
        except BlockingIOError:
            return
        except OSError:
            packet = None
        if packet is None:
            self._lost()
        elif packet[0].get("event") == "exit":
            self._init_ended(packet[0]["generation"], packet[0]["exit"])
        elif packet[0].get("event") == "notices":
            self._init_told(packet[0]["generation"], packet[0]["notices"])

    def _lost(self) -> None:
        """zsched has left: with the platform, as it should, or because somebody killed it."""
        init_fd = self._fds.pop("init", -1)
        self._detach()
        instance = instances.read(self._layout, self._zonename)
        if instance is None or instance.phase in (Phase.HALTING, Phase.MAKING) or instance.init is None:
            self._console.drop_pty()
            if init_fd >= 0:
                os.close(init_fd)
            return
        log.error("zsched was killed; the zone runs on")
        if init_fd >= 0:
            self._fds["init"] = init_fd
            self._loop.watch(init_fd, self._orphan_ended)

    def _orphan_ended(self, _events: int) -> None:
        init_fd = self._fds.pop("init")
        self._loop.forget(init_fd)
        os.close(init_fd)
        self.reap()
        instance = instances.read(self._layout, self._zonename)
        pid = instance.init.pid if instance and instance.init else 0
        code, status = self._ended.get(pid, (os.CLD_EXITED, 0))
        self._init_ended(self._generation, {"code": code, "status": status})
