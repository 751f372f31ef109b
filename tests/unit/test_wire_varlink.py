"""Framing and interface files."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zonemgr.wire import interface, varlink
from zonemgr.wire.interface import ParameterError
from zonemgr.wire.varlink import MalformedError, Splitter, decode, encode


@given(st.lists(st.binary().filter(lambda data: b"\0" not in data), max_size=6), st.integers(1, 7))
def test_frames_do_not_depend_on_how_the_bytes_arrive(frames: list[bytes], step: int) -> None:
    stream = b"".join(frame + b"\0" for frame in frames)
    splitter = Splitter(10_000)
    arrived = [frame for at in range(0, len(stream), step) for frame in splitter.feed(stream[at : at + step])]
    assert arrived == frames
    assert not splitter.half


def test_a_frame_of_the_limit_passes_and_one_byte_more_does_not() -> None:
    assert Splitter(8).feed(b"x" * 8 + b"\0") == [b"x" * 8]
    with pytest.raises(MalformedError):
        Splitter(8).feed(b"x" * 9)


def test_the_limit_counts_what_came_in_pieces() -> None:
    splitter = Splitter(8)
    splitter.feed(b"xxxxx")
    with pytest.raises(MalformedError):
        splitter.feed(b"xxxx")


@pytest.mark.parametrize(
    "frame",
    [b"", b"no", b"[]", b"7", b"\xff\xfe", b'{"a": NaN}', b"[" * 60_000, b'{"a":' * 40 + b"1" + b"}" * 40],
)
def test_what_is_not_a_message_is_malformed(frame: bytes) -> None:
    with pytest.raises(MalformedError):
        decode(frame)


def test_a_message_survives_the_wire() -> None:
    message = {"method": "a.b", "parameters": {"text": "Grüße\u0000x"}}
    data = encode(message)
    assert data.endswith(b"\0")
    assert b"\0" not in data[:-1]
    assert decode(data[:-1]) == message


def test_a_file_name_that_is_no_utf8_can_be_told() -> None:
    assert json.loads(encode({"text": "a\udcffb"})[:-1]) == {"text": "a?b"}


TOY = interface.parse(
    """
# A toy.
interface org.example.Toy
type Colour (red, green)
type Pair (left: int, right: ?Pair)
method Do(pair: Pair, colours: []Colour, names: ?[string]string, size: ?float, any: ?object) -> ()
method Nothing() -> ()
error Broken (why: string)
"""
)


def check(**parameters: object) -> None:
    TOY.check(TOY.methods["Do"].takes, parameters)


def test_values_that_fit_pass() -> None:
    check(pair={"left": 1, "right": {"left": 2}}, colours=["red"], names={"a": "b"}, size=1, any=[{}])
    check(pair={"left": 1}, colours=[])


@pytest.mark.parametrize(
    ("parameters", "path"),
    [
        ({"colours": []}, "pair"),
        ({"pair": {"left": 1}, "colours": [], "other": 1}, "other"),
        ({"pair": {"left": True}, "colours": []}, "pair.left"),
        ({"pair": {"left": 1, "right": {"left": "x"}}, "colours": []}, "pair.right.left"),
        ({"pair": {"left": 1}, "colours": ["red", "blue"]}, "colours[1]"),
        ({"pair": {"left": 1}, "colours": [], "names": {"a": 1}}, "names[a]"),
        ({"pair": {"left": 1}, "colours": [], "size": "1"}, "size"),
        ({"pair": {"left": 1}, "colours": None}, "colours"),
    ],
)
def test_the_first_value_that_does_not_fit_is_named(parameters: dict[str, object], path: str) -> None:
    with pytest.raises(ParameterError) as refusal:
        check(**parameters)
    assert str(refusal.value) == path


@pytest.mark.parametrize(
    "text",
    [
        "",
        "interface",
        "interface a.b method",
        "interface a.b method X(",
        "interface a.b method X() ->",
        "interface a.b type T (a: int, b)",
        "interface a.b type T (a: integer)",
        "interface a.b rule T ()",
        "interface a.b type T (a: int, a: int)",
        "interface a.b %",
    ],
)
def test_a_broken_interface_file_is_refused(text: str) -> None:
    with pytest.raises(interface.InterfaceError):
        interface.parse(text)


@pytest.mark.parametrize("name", [varlink.ZONE, varlink.SERVICE])
def test_every_name_a_shipped_interface_uses_is_declared(name: str) -> None:
    shipped = interface.load(name)
    assert shipped.name == name
    for method in shipped.methods.values():
        for structure in (method.takes, method.gives):
            for expected in structure.fields.values():
                inner = expected.item if isinstance(expected, interface.Maybe) else expected
                assert not isinstance(inner, interface.Named) or inner.name in shipped.types


def test_every_method_of_a_zone_takes_a_locale() -> None:
    for method in interface.load(varlink.ZONE).methods.values():
        assert method.takes.fields["locale"] == interface.Maybe(interface.Scalar("string"))


def test_every_method_and_error_is_documented() -> None:
    for name in (varlink.ZONE, varlink.SERVICE):
        lines = interface.load(name).text.splitlines()
        for line, above in zip(lines[1:], lines, strict=False):
            if line.startswith(("method", "error", "type", "interface")):
                assert above.startswith("#"), line
