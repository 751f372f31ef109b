"""zsched: the anchor of a ready zone, the smallest program that can be the parent of its init.

Only a parent can wait for a process, and the console's pty master must outlive a killed supervisor.  zsched is
the process that does both, and nothing else: it makes the zone's first mount namespace (M0) and process 1,
holds the descriptors of what must stay, records how init ended, and hands all of it to whichever supervisor
connects.  It stays in the host's namespaces and out of the zone's cgroup; it runs no hooks, reads no
configuration, and keeps one timer.

The protocol (``wire.packets`` on the socket ``zsched`` in the zone's 0700 run folder) has a version and only
ever grows, so that any newer supervisor adopts any older zsched:

* ``hello``    -> version, generation, pid of init, how it ended if it did; descriptors by name
* ``attach``   -> the caller is the supervisor now; the answer carries the console's ring; from here the caller
  reads the master
* ``console``  -> keep this pty (descriptors master, slave), and the socket by which init tells how far it is (notify)
* ``stub``     -> pass one message to the parked process 1 and return its answer
* ``commit``   -> the platform is complete: live on when the creator goes
* ``wake``     -> start a supervisor after so many seconds, or when the attached one goes, if that is later; null: not
  any more
* ``quit``     -> kill init if it lives, and leave

While nobody is attached zsched drains the console into a 64 KiB ring (a full pty would block the zone), and
when init ends then, it starts a successor of the supervisor.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from zonemgr.linux import caps, ksm, mounts, namespaces, process
from zonemgr.supervisor import stub
from zonemgr.supervisor.notices import Notices
from zonemgr.wire import packets, peers

VERSION = 1
RING_BYTES = 64 * 1024
STUB_TIMEOUT_S = 20.0  # for one message to process 1, exec included

_NAMESPACES = namespaces.NEWPID | namespaces.NEWNET | namespaces.NEWUTS | namespaces.NEWIPC


class Zsched:
    """The state of the program.  ``serve`` is its life."""

    def __init__(
        self, *, generation: str, listener: socket.socket, creator: socket.socket, successor: Sequence[str]
    ) -> None:
        self.generation = generation
        self.listener = listener
        self.creator: socket.socket | None = creator
        self.committed = False
        self.successor = list(successor)
        self.clients: list[socket.socket] = [creator]
        self.attached: socket.socket | None = None
        self.ring = bytearray()
        self.held: dict[str, int] = {}  # descriptors by name: m0, net, user, init, master, slave
        self.init_pid = 0
        self.exit: dict[str, int] | None = None
        self.leaving = False
        self.wake_s: float | None = None  # CLOCK_BOOTTIME
        self.notices: Notices | None = None

    # -- birth ----------------------------------------------------------------------------------------------

    def give_birth(self, payload_fd: int, owner: int | None, shared_net: bool) -> None:
        """Make M0 with host credentials, then process 1 in all other namespaces, born into the zone's cgroup.

        The order is what keeps the host safe: M0 belongs to the host's user namespace, so what the worker
        mounts there reaches the zone locked.  ``owner``: the zone's first user id, to which its user namespace belongs;
        None for a zone without one.
        """
        home_fd = namespaces.open_ns("self", "mnt")
        namespaces.unshare(namespaces.NEWNS)
        mounts.set_propagation("/", mounts.PRIVATE, recursive=True)
        self.held["m0"] = namespaces.open_ns("self", "mnt")
        ours, theirs = packets.pair()
        flags = _NAMESPACES & ~namespaces.NEWNET if shared_net else _NAMESPACES
        if owner is None:
            pid, init_fd = process.clone3(flags, cgroup_fd=payload_fd)
        else:
            pid, init_fd = _clone_as(owner, flags | namespaces.NEWUSER, payload_fd)
        if pid == 0:
            _be_stub(theirs)
        theirs.close()
        ours.settimeout(STUB_TIMEOUT_S)
        namespaces.setns(home_fd, namespaces.NEWNS)
        os.close(home_fd)
        os.close(payload_fd)
        self.stub = ours
        self.init_pid = pid
        self.held["init"] = init_fd
        for kind in ("net", "user"):
            self.held[kind] = namespaces.open_ns(pid, kind)

    # -- the loop -------------------------------------------------------------------------------------------

    def serve(self) -> None:
        """Answer until told to quit."""
        while not self.leaving:
            poller = select.poll()
            handlers: dict[int, Callable[[], None]] = {self.listener.fileno(): self._accept}
            for client in self.clients:
                handlers[client.fileno()] = lambda client=client: self._answer(client)  # type: ignore[misc]
            if self.exit is None:
                handlers[self.held["init"]] = self._init_ended
            if self.attached is None and "master" in self.held:
                handlers[self.held["master"]] = self._drain
            patience_ms = self._patience_ms()
            deaf_s = self.notices.deaf_s if self.notices and self.exit is None else None
            if self.notices and deaf_s == 0:
                handlers[self.notices.fileno()] = self._hear
            elif deaf_s and (patience_ms is None or deaf_s * 1000 < patience_ms):
                patience_ms = int(deaf_s * 1000) + 1
            for descriptor in handlers:
                poller.register(descriptor, select.POLLIN)
            for descriptor, _events in poller.poll(patience_ms):
                handlers[descriptor]()
                if descriptor not in (self.listener.fileno(), self.held.get("master")):
                    break  # a client may have gone, and its descriptor with it: look again

    def _patience_ms(self) -> int | None:
        """How long to sleep; somebody is attached: as long as it likes.  Starts the supervisor that is due."""
        if self.wake_s is None or self.attached is not None:
            return None
        left_s = self.wake_s - _now_s()
        if left_s > 0:
            return int(left_s * 1000) + 1
        self.wake_s = None
        self._start_successor()
        return None

    def _accept(self) -> None:
        client, _address = self.listener.accept()
        client.settimeout(STUB_TIMEOUT_S)
        try:
            peers.check(client)
        except peers.CallerError:
            client.close()
            return
        self.clients.append(client)

    def _drop(self, client: socket.socket, *, unheard: bool = False) -> None:
        """It has gone.  ``unheard``: not all that it was told was read, so that another supervisor must hear of it."""
        self.clients.remove(client)
        client.close()
        if client is self.attached:
            self.attached = None
            if self.exit is not None or unheard:
                self._start_successor()
        if client is self.creator:
            self.creator = None
            if not self.committed:  # the worker died half-way: nothing of its work may stay
                self._quit({}, [], client)

    def _answer(self, client: socket.socket) -> None:
        try:
            packet = packets.receive(client)
        except ConnectionResetError:  # the kernel's word for an end with something unread
            self._drop(client, unheard=True)
            return
        except (OSError, ValueError):
            packet = None
        if packet is None:
            self._drop(client)
            return
        head, fds, tail = packet
        handler = self._VERBS.get(str(head.get("op")))
        try:
            if handler is None:
                packets.close_all(fds)
                packets.send(client, {"unknown": head.get("op"), "version": VERSION})
            elif handler is Zsched._stub:
                self._stub(head, fds, client, tail)
            else:
                handler(self, head, fds, client)
        except OSError:
            if client in self.clients:
                self._drop(client)
        except (LookupError, TypeError, ValueError):  # a request without what its verb needs
            packets.close_all(fds)
            self._drop(client)

    # -- the verbs ------------------------------------------------------------------------------------------

    def _hello(self, _head: dict[str, Any], fds: list[int], client: socket.socket) -> None:
        packets.close_all(fds)
        head = {
            "version": VERSION,
            "generation": self.generation,
            "pid": self.init_pid,
            "exit": self.exit,
            "committed": self.committed,
            "notices": self.notices.told() if self.notices else None,
            "fds": list(self.held),
        }
        packets.send(client, head, self.held.values())

    def _attach(self, _head: dict[str, Any], fds: list[int], client: socket.socket) -> None:
        packets.close_all(fds)
        self.attached = client
        ring, self.ring = bytes(self.ring), bytearray()
        packets.send(client, {"attached": True, "generation": self.generation}, tail=ring)
        if self.exit is not None:
            self._tell_exit()

    def _console(self, _head: dict[str, Any], fds: list[int], client: socket.socket) -> None:
        self.held["master"], self.held["slave"], *more = fds
        if more:
            self.notices = Notices(more[0])
        os.set_blocking(self.held["master"], False)
        packets.send(client, {"ok": True})

    def _stub(self, head: dict[str, Any], fds: list[int], client: socket.socket, tail: bytes) -> None:
        """Relay to process 1.  Its channel closes on exec: end of file without an answer is a successful boot."""
        try:
            packets.send(self.stub, head["message"], fds, tail)
            answer = packets.receive(self.stub)
        except OSError as error:
            answer = ({"stage": "channel", "errno": error.errno or 0}, [], b"")
        packets.close_all(fds)
        if answer is None:
            self._reap()
            ended = self.exit is not None
            packets.send(
                client, {"stage": "exec", "errno": 0, "exit": self.exit} if ended else {"booted": True}
            )
            if ended:
                self._announce_exit()
            else:
                ksm.offer()  # from here on there is little to do
            return
        packets.send(client, answer[0])

    def _commit(self, _head: dict[str, Any], fds: list[int], client: socket.socket) -> None:
        packets.close_all(fds)
        self.committed = True
        packets.send(client, {"ok": True})

    def _wake(self, head: dict[str, Any], fds: list[int], client: socket.socket) -> None:
        packets.close_all(fds)
        after_s = head["after_s"]
        self.wake_s = None if after_s is None else _now_s() + float(after_s)
        packets.send(client, {"ok": True})

    def _quit(self, _head: dict[str, Any], fds: list[int], client: socket.socket) -> None:
        packets.close_all(fds)
        if self.exit is None:
            process.pidfd_signal(self.held["init"], signal.SIGKILL)
        self.leaving = True
        if client in self.clients:
            packets.send(client, {"ok": True})

    _VERBS: ClassVar[dict[str, Callable[..., None]]] = {
        "hello": _hello,
        "attach": _attach,
        "console": _console,
        "stub": _stub,
        "commit": _commit,
        "wake": _wake,
        "quit": _quit,
    }

    # -- init and console -----------------------------------------------------------------------------------

    def _reap(self) -> None:
        """Record how init ended, if it did."""
        result = os.waitid(os.P_PID, self.init_pid, os.WEXITED | os.WNOHANG)
        if result is not None:
            self.exit = {"code": result.si_code, "status": result.si_status}

    def _init_ended(self) -> None:
        self._reap()
        if self.exit is not None:
            self._announce_exit()

    def _announce_exit(self) -> None:
        if self.attached is not None:
            self._tell_exit()
        elif self.committed:
            self._start_successor()

    def _tell_exit(self) -> None:
        assert self.attached is not None
        try:
            packets.send(self.attached, {"event": "exit", "generation": self.generation, "exit": self.exit})
        except OSError:
            self._drop(self.attached)

    def _hear(self) -> None:
        """What init tells of itself; the supervisor is told twice in a life at most."""
        assert self.notices is not None
        if not self.notices.hear():
            return
        if self.attached is None:
            self._start_successor()
        else:
            told = {"event": "notices", "generation": self.generation, "notices": self.notices.told()}
            try:
                packets.send(self.attached, told)
            except OSError:
                self._drop(self.attached, unheard=True)

    def _drain(self) -> None:
        try:
            self.ring += os.read(self.held["master"], 16384)
        except BlockingIOError:
            return
        del self.ring[:-RING_BYTES]

    def _start_successor(self) -> None:
        """Nobody would notice that init ended: start a supervisor that does.  A grandchild, so that nothing
        waits for it.
        """
        if not self.successor:
            return
        pid = process.fork()
        if pid == 0:
            try:
                os.setsid()
                process.close_fds([])
                process.stdio_to_null()
                if process.fork() == 0:
                    os.execv(self.successor[0], self.successor)
            finally:
                os._exit(0)
        os.waitpid(pid, 0)


def _clone_as(owner: int, flags: int, payload_fd: int) -> tuple[int, int]:
    """As clone3, with the new user namespace belonging to this user of the host.

    The kernel counts what a namespace's users have (inotify instances, namespaces) against its owner too: all zones
    would share what the host's root may have, and one could use it up for the host.
    """
    os.seteuid(owner)
    caps.raise_permitted()  # the change took what was effective; what is permitted stays with the real user, root
    pid, init_fd = process.clone3(flags, cgroup_fd=payload_fd)
    if pid:
        os.seteuid(0)
        process.set_dumpable(False)  # each change of ids has reset it
    return pid, init_fd


def _now_s() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _be_stub(channel: socket.socket) -> None:
    """The child's side of the birth: never returns into the parent's code."""
    try:
        stub.run(channel)
    finally:
        os._exit(127)


def fork(
    zonename: str,
    birth: Mapping[str, Any],
    fds: Sequence[int],
    successor: Sequence[str],
    drop: Callable[[], None],
) -> None:
    """Fork a zsched for a worker.  By the supervisor, with whom it then shares its pages: a fork of the worker would
    keep all that the worker has touched for as long as the zone lives.

    ``fds``, which are closed: the listening socket, the worker's connection, and the folders of the payload's and the
    manager's cgroup.  A failure is told on the connection.  ``drop`` is as for ``worker.start``.
    """
    listener_fd, creator_fd, payload_fd, manager_fd = fds
    listener, creator = socket.socket(fileno=listener_fd), socket.socket(fileno=creator_fd)
    try:
        pid, pid_fd = process.clone3(0, cgroup_fd=manager_fd)
        if pid == 0:
            drop()
            main(
                zonename=zonename,
                generation=birth["generation"],
                listener=listener,
                creator=creator,
                payload_fd=payload_fd,
                owner=birth["owner"],
                shared_net=birth["shared_net"],
                successor=successor,
            )
        os.close(pid_fd)
    except OSError as error:
        _tell_failure(creator, error)
    finally:
        packets.close_all((payload_fd, manager_fd))
        listener.close()
        creator.close()


def _tell_failure(creator: socket.socket, error: OSError) -> None:
    try:
        packets.send(creator, {"stage": "namespaces", "errno": error.errno or 0, "text": str(error)})
    except OSError:
        return  # the worker has gone


def main(
    *,
    zonename: str,
    generation: str,
    listener: socket.socket,
    creator: socket.socket,
    payload_fd: int,
    owner: int | None,
    shared_net: bool,
    successor: Sequence[str],
) -> None:
    """Be zsched.  Called in a fresh fork; never returns.  What fails before the loop is told to the creator."""
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        os.setsid()
        process.set_name("zsched")
        process.set_title(f"zsched {zonename}")
        process.set_pdeathsig(0)
        process.set_dumpable(False)
        process.set_oom_score_adj(process.OOM_PROTECTED)
        process.raise_rlimits()
        process.close_fds([listener.fileno(), creator.fileno(), payload_fd])
        process.stdio_to_null()
        process.reset_signals()
        os.chdir("/")
        zsched = Zsched(generation=generation, listener=listener, creator=creator, successor=successor)
        try:
            zsched.give_birth(payload_fd, owner, shared_net)
        except OSError as error:
            _tell_failure(creator, error)
            return
        packets.send(creator, {"born": zsched.init_pid, "zsched": os.getpid(), "version": VERSION})
        zsched.serve()
        status = 0
    finally:
        os._exit(status)
