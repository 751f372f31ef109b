"""A toy server built from the pieces, and the callers that might visit it."""

from __future__ import annotations

import array
import json
import os
import select
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from zonemgr.wire import varlink
from zonemgr.wire.client import Client, EmptyReply, LostReply, RemoteError
from zonemgr.wire.peers import Caller, CallerError
from zonemgr.wire.server import OUTPUT_MAX, Call, Introspection, Listener, Peer

DEADLINE_S = 20


class Toy:
    """Serves org.zonemgr.Zone without a zone: commands say a few lines, Halt hangs up, Reboot waits for Boot."""

    def __init__(self, folder: Path, caller: Caller | None = None) -> None:
        self.door = folder / "door"
        folder_fd = os.open(folder, os.O_PATH | os.O_DIRECTORY)
        self.listener = Listener(folder_fd, "door", self._check)
        os.close(folder_fd)
        self.caller = caller or Caller(os.getpid(), 0)
        self.refusing = False
        self.service = Introspection("toy", "1", [varlink.ZONE])
        self.peers: list[Peer] = []
        self.waiting: list[Call] = []
        self.refused = 0
        self._wake, self._stop = os.pipe()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _check(self, _: socket.socket) -> Caller:
        if self.refusing:
            raise CallerError("insufficient privileges")
        return self.caller

    def stop(self) -> None:
        os.close(self._stop)
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()
        os.close(self._wake)
        for peer in self.peers:
            peer.close()
        self.listener.close()

    def _serve(self) -> None:
        while True:
            poll = select.poll()
            poll.register(self._wake, select.POLLIN)
            poll.register(self.listener, select.POLLIN)
            for peer in self.peers:
                poll.register(peer, peer.events)
            ready = dict(poll.poll())
            if self._wake in ready:
                return
            for peer in list(self.peers):
                happened = ready.get(peer.fileno(), 0)
                if happened & select.POLLOUT:
                    peer.writable()
                if happened & ~select.POLLOUT:
                    for call in peer.readable():
                        self._answer(call)
            self.peers = [peer for peer in self.peers if not peer.closed]
            if self.listener.fileno() in ready:
                self._accept()

    def _accept(self) -> None:
        try:
            peer = self.listener.accept()
        except CallerError:
            self.refused += 1
            return
        if peer is not None:
            self.peers.append(peer)

    def _answer(self, call: Call) -> None:
        method = self.service.handle(call)
        if method == "Boot":
            call.reply({"message": "one"}, continues=True)
            call.reply({"message": "two"}, continues=True)
            call.reply({"messages": ["one", "two"], "note": call.parameters.get("args")})
            for waiting in self.waiting:
                waiting.reply({"messages": []})
        elif method == "Reboot":
            self.waiting.append(call)
        elif method == "Ready":
            call.error(varlink.REFUSED, {"code": 1, "messages": ["no"]})
        elif method == "Halt":
            call.peer.close()
        elif method == "Unmount":
            call.reply({"message": "soon"}, continues=True)
            call.peer.close()
        elif method == "Monitor":
            event = {"event": "x" * 1000}
            sent = sum(call.reply(event, continues=True) for _ in range(4000))
            call.reply({"event": sent})
        elif method is not None:
            call.error(varlink.METHOD_NOT_IMPLEMENTED, {"method": call.method})


@pytest.fixture
def toy(tmp_path: Path) -> Iterator[Toy]:
    server = Toy(tmp_path)
    yield server
    server.stop()


def raw(toy: Toy) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(DEADLINE_S)
    connection.connect(str(toy.door))
    return connection


def closed(connection: socket.socket) -> bool:
    """The server has hung up."""
    try:
        return connection.recv(100) == b""
    except ConnectionResetError:
        return True


def boots(toy: Toy) -> bool:
    """The server still serves others."""
    with Client(toy.door) as client:
        return bool(client.call("org.zonemgr.Zone.Boot")["messages"] == ["one", "two"])


def test_messages_arrive_before_the_last_reply(toy: Toy) -> None:
    heard: list[object] = []
    with Client(toy.door) as client:
        last = client.call("org.zonemgr.Zone.Boot", {"args": "-s"}, more=True, on_reply=heard.append)
    assert heard == [{"message": "one"}, {"message": "two"}]
    assert last == {"messages": ["one", "two"], "note": "-s"}


def test_a_caller_without_more_gets_one_reply(toy: Toy) -> None:
    with Client(toy.door) as client:
        assert client.call("org.zonemgr.Zone.Boot", {"args": None}) == {
            "messages": ["one", "two"],
            "note": None,
        }


def test_a_refusal_is_an_error_with_its_texts(toy: Toy) -> None:
    with Client(toy.door) as client, pytest.raises(RemoteError) as refusal:
        client.call("org.zonemgr.Zone.Ready")
    assert refusal.value.name == varlink.REFUSED
    assert refusal.value.parameters == {"code": 1, "messages": ["no"]}


@pytest.mark.parametrize(
    ("method", "parameters", "error", "about"),
    [
        ("org.zonemgr.Zone.Boot", {"args": 7}, varlink.INVALID_PARAMETER, {"parameter": "args"}),
        ("org.zonemgr.Zone.Boot", {"argz": "x"}, varlink.INVALID_PARAMETER, {"parameter": "argz"}),
        ("org.zonemgr.Zone.Fly", {}, varlink.METHOD_NOT_FOUND, {"method": "org.zonemgr.Zone.Fly"}),
        ("org.zonemgr.Zone.Apply", {}, varlink.METHOD_NOT_IMPLEMENTED, {"method": "org.zonemgr.Zone.Apply"}),
        ("org.other.Thing", {}, varlink.INTERFACE_NOT_FOUND, {"interface": "org.other"}),
        ("", {}, varlink.INTERFACE_NOT_FOUND, {"interface": ""}),
        (
            "org.varlink.service.GetInterfaceDescription",
            {"interface": "org.other"},
            varlink.INTERFACE_NOT_FOUND,
            {"interface": "org.other"},
        ),
    ],
)
def test_calls_that_do_not_fit_get_the_standard_errors(
    toy: Toy, method: str, parameters: dict[str, object], error: str, about: dict[str, str]
) -> None:
    with Client(toy.door) as client:
        with pytest.raises(RemoteError) as refusal:
            client.call(method, parameters)
        assert (refusal.value.name, refusal.value.parameters) == (error, about)
        assert client.call("org.zonemgr.Zone.Boot")["messages"]  # the connection is still good


def test_a_server_that_leaves_before_it_answers_is_told_from_one_that_leaves_later(toy: Toy) -> None:
    with Client(toy.door) as client, pytest.raises(EmptyReply):
        client.call("org.zonemgr.Zone.Halt")
    with Client(toy.door) as client, pytest.raises(LostReply):
        client.call("org.zonemgr.Zone.Unmount", more=True)


def test_a_caller_who_may_not_ask_is_told_and_disconnected(toy: Toy) -> None:
    toy.refusing = True
    for _ in range(2):  # the first has been counted when the second is answered
        with Client(toy.door) as client, pytest.raises(RemoteError) as refusal:
            client.call("org.zonemgr.Zone.Boot")
        assert refusal.value.name == varlink.PERMISSION_DENIED
    assert toy.refused


@pytest.mark.parametrize("request_bytes", [b"\0", b"nonsense\0", b"[]\0", b'{"method": 7}\0', b"x" * 70_000])
def test_a_malformed_or_oversized_request_closes_its_own_connection_only(
    toy: Toy, request_bytes: bytes
) -> None:
    with raw(toy) as connection:
        try:
            connection.sendall(request_bytes)
        except BrokenPipeError:
            pass
        assert closed(connection)
    assert boots(toy)


def test_a_request_of_64_kib_is_served(toy: Toy) -> None:
    frame = json.dumps({"method": "org.zonemgr.Zone.Boot", "parameters": {"args": ""}})
    args = "x" * (varlink.REQUEST_MAX - len(frame))
    with raw(toy) as connection:
        connection.sendall(frame.replace('"args": ""', f'"args": "{args}"').encode() + b"\0")
        assert connection.recv(10).startswith(b'{"param')


def test_a_half_sent_request_keeps_nobody_waiting(toy: Toy) -> None:
    with raw(toy) as connection:
        connection.sendall(b'{"method": "org.zonemgr.Zone.Boo')
        assert boots(toy)
        connection.sendall(b't"}\0')
        assert b'"one"' in connection.recv(1000)


def test_a_request_that_never_ends_is_no_call(toy: Toy) -> None:
    with raw(toy) as connection:
        connection.sendall(b'{"method": "org.zonemgr.Zone.Boot"}')
        connection.shutdown(socket.SHUT_WR)
        assert closed(connection)


def test_a_caller_that_closes_its_sending_half_still_gets_its_answer(toy: Toy) -> None:
    with raw(toy) as connection:
        connection.sendall(b'{"method": "org.zonemgr.Zone.Reboot"}\0')
        connection.shutdown(socket.SHUT_WR)
        assert boots(toy)
        assert connection.recv(1000) == b'{"parameters":{"messages":[]}}\0'
        assert closed(connection)


def test_a_caller_that_left_while_its_call_is_under_way_is_forgotten(toy: Toy) -> None:
    with raw(toy) as connection:
        connection.sendall(b'{"method": "org.zonemgr.Zone.Reboot"}\0')
    assert boots(toy)
    assert boots(toy)
    assert all(call.gone for call in toy.waiting)
    assert not toy.waiting or not toy.waiting[0].reply({"messages": []})


def test_answers_come_in_the_order_of_the_calls(toy: Toy) -> None:
    with raw(toy) as connection:
        connection.sendall(b'{"method": "org.zonemgr.Zone.Reboot"}\0{"method": "org.zonemgr.Zone.Ready"}\0')
        assert boots(toy)
        answers = b""
        while answers.count(b"\0") < 2:
            answers += connection.recv(1000)
    assert [list(json.loads(answer)) for answer in answers.split(b"\0")[:-1]] == [
        ["parameters"],
        ["error", "parameters"],
    ]


def test_a_oneway_call_gets_no_answer(toy: Toy) -> None:
    with raw(toy) as connection:
        connection.sendall(b'{"method": "org.zonemgr.Zone.Ready", "oneway": true}\0{"method": "x.y"}\0')
        assert b"InterfaceNotFound" in connection.recv(1000)


def test_more_calls_than_anybody_needs_close_the_connection(toy: Toy) -> None:
    with raw(toy) as connection:
        connection.sendall(b'{"method": "org.zonemgr.Zone.Reboot"}\0' * 17)
        assert closed(connection)
    assert boots(toy)


def test_a_slow_reader_costs_a_bounded_buffer_and_still_gets_its_last_reply(toy: Toy) -> None:
    with raw(toy) as connection:
        connection.sendall(b'{"method": "org.zonemgr.Zone.Monitor", "more": true}\0')
        assert boots(toy)
        data = b""
        while not data.endswith(b"}}\0") or b"continues" in data.rsplit(b"\0", 2)[1]:
            data += connection.recv(65536)
    assert len(data) < 4_000_000
    assert data.count(b"continues") == json.loads(data.rsplit(b"\0", 2)[1])["parameters"]["event"]
    assert len(data) > OUTPUT_MAX


def test_passed_descriptors_are_closed(toy: Toy) -> None:
    read_fd, write_fd = os.pipe()
    with raw(toy) as connection:
        rights = array.array("i", [write_fd] * 200)
        request = b'{"method": "org.zonemgr.Zone.Boot"}\0'
        connection.sendmsg([request], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        os.close(write_fd)
        assert connection.recv(1000)
        assert os.read(read_fd, 1) == b""  # nobody holds the other end
    os.close(read_fd)


def test_a_path_longer_than_a_socket_address_works(tmp_path: Path) -> None:
    folder = tmp_path.joinpath(*["a-folder-with-a-rather-long-name"] * 5)
    folder.mkdir(parents=True)
    server = Toy(folder)
    try:
        assert len(str(server.door)) > 150
        assert boots(server)
    finally:
        server.stop()


def test_a_dead_predecessors_socket_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "door"))
    server = Toy(tmp_path)
    try:
        assert boots(server)
        assert (tmp_path / "door").stat().st_mode & 0o777 == 0o600
        assert [path.name for path in tmp_path.iterdir()] == ["door"]
    finally:
        server.stop()


def test_the_pypi_client_understands_the_server(toy: Toy) -> None:
    outside = pytest.importorskip("varlink")
    with outside.Client(f"unix:{toy.door}") as client:
        with client.open("org.varlink.service") as service:
            info = service.GetInfo()
            assert info["product"] == "toy"
            assert info["interfaces"] == ["org.varlink.service", "org.zonemgr.Zone"]
            description = service.GetInterfaceDescription("org.zonemgr.Zone")["description"]
            assert "method Boot" in description
        with client.open("org.zonemgr.Zone") as zone:
            assert zone.Boot(args="-s") == {"messages": ["one", "two"], "note": "-s"}
            replies = list(zone.Boot(args="-s", _more=True))
            assert [reply.get("message") for reply in replies] == ["one", "two", None]
            with pytest.raises(outside.VarlinkError) as refusal:
                zone.Ready()
            assert refusal.value.error() == varlink.REFUSED
            assert refusal.value.parameters() == {"code": 1, "messages": ["no"]}
