"""Varlink's framing: JSON objects, each ended by a NUL, with a limit on what is taken in.

Nothing here knows a socket or an interface; ``client`` and ``server`` do.
"""

from __future__ import annotations

import json
from typing import Any, Final

REQUEST_MAX: Final = 64 * 1024  # bytes of one request, without its NUL (design, section 8)
REPLY_MAX: Final = 4 * 1024 * 1024  # bytes of one reply a client takes in
DEPTH_MAX: Final = 32  # nested objects and lists in one message

SERVICE: Final = "org.varlink.service"
INTERFACE_NOT_FOUND: Final = f"{SERVICE}.InterfaceNotFound"
METHOD_NOT_FOUND: Final = f"{SERVICE}.MethodNotFound"
METHOD_NOT_IMPLEMENTED: Final = f"{SERVICE}.MethodNotImplemented"
INVALID_PARAMETER: Final = f"{SERVICE}.InvalidParameter"
PERMISSION_DENIED: Final = f"{SERVICE}.PermissionDenied"
EXPECTED_MORE: Final = f"{SERVICE}.ExpectedMore"

ZONE: Final = "org.zonemgr.Zone"
REFUSED: Final = f"{ZONE}.Refused"

Message = dict[str, Any]


class MalformedError(Exception):
    """What came is not a varlink message, or it is longer than the limit: the connection is of no further use."""


def encode(message: Message) -> bytes:
    """One message as it goes over the wire.  Unpaired surrogates (file names) become question marks."""
    return json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace") + b"\0"


def decode(frame: bytes) -> Message:
    """The message in one frame (without its NUL).  Raises MalformedError."""
    try:
        message = json.loads(frame.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise MalformedError("not JSON") from error
    if not isinstance(message, dict):
        raise MalformedError("not an object")
    if _deeper_than(message, DEPTH_MAX):
        raise MalformedError("nested too deeply")
    return message


def _no_constant(name: str) -> None:
    raise ValueError(name)  # NaN and Infinity are Python's, not JSON's


def _deeper_than(value: object, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_deeper_than(item, levels - 1) for item in inner)


class Splitter:
    """Cuts a stream of bytes into frames."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The frames that these bytes complete.  Raises MalformedError once a frame is longer than the limit."""
        *ends, rest = data.split(b"\0")
        frames: list[bytes] = []
        for end in ends:
            self._grow(end)
            frames.append(bytes(self._rest))
            self._rest.clear()
        self._grow(rest)
        return frames

    def _grow(self, data: bytes) -> None:
        if len(self._rest) + len(data) > self._limit:
            raise MalformedError(f"longer than {self._limit} bytes")
        self._rest += data

    @property
    def half(self) -> bool:
        """A frame has begun and not ended."""
        return bool(self._rest)
