"""Frames, as `runtimes/protocol.md` defines them: a header of twelve bytes, a payload, and on a keyed link a MAC.

The runtimes have their own copy of this, as they import nothing of ours; the conformance suite holds the two together.
"""

import json
import struct
from collections.abc import Iterator, Mapping
from enum import IntEnum
from hashlib import blake2b
from typing import Any, Final

PROTOCOL: Final = 1

#: Payload length, type, flags, stream, call.
HEADER: Final = struct.Struct(">IBBHI")
META: Final = struct.Struct(">I")
CREDIT_BODY: Final = struct.Struct(">BI")

#: Largest payload of any frame: a load message with a large environment is the biggest there is.
PAYLOAD_BYTES_MAX: Final = 1024 * 1024
#: Largest payload of a frame that spends credit, so that a control frame never waits behind much.
DATA_BYTES_MAX: Final = 64 * 1024
#: Bytes that may be under way on one channel before the reader has to give credit.
WINDOW_BYTES: Final = 256 * 1024
MAC_BYTES: Final = 16

END: Final = 0x01
TRUNCATED: Final = 0x02

TO_SANDBOX: Final = b"\x01"
FROM_SANDBOX: Final = b"\x02"


class Kind(IntEnum):
    HELLO = 1
    LOAD = 2
    CODE = 3
    LOADED = 4
    CALL = 5
    EVENT = 6
    RESULT = 7
    RESULT_DATA = 8
    LOG = 9
    EMIT = 10
    EMIT_ACK = 11
    OUTPUT_OPEN = 12
    OUTPUT_ACK = 13
    OUTPUT = 14
    STOP = 15
    SETTLED = 16
    CREDIT = 17


LOG_STREAMS: Final[Mapping[int, str]] = {1: "stdout", 2: "stderr", 3: "log"}

Frame = tuple[int, int, int, int, bytes]
"""Kind, flags, stream, call, payload."""


class ProtocolError(Exception):
    """The other side does not speak the protocol."""


def encode(kind: int, payload: bytes = b"", *, call: int = 0, stream: int = 0, flags: int = 0) -> bytes:
    return HEADER.pack(len(payload), kind, flags, stream, call) + payload


def json_bytes(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def with_meta(meta: Mapping[str, Any], body: bytes = b"") -> bytes:
    """The payload of a frame that carries a JSON head and a raw body."""
    head = json_bytes(meta)
    return META.pack(len(head)) + head + body


def split_meta(payload: bytes) -> tuple[dict[str, Any], bytes]:
    if len(payload) < META.size:
        raise ProtocolError("a payload without its head")
    (size,) = META.unpack_from(payload)
    if META.size + size > len(payload):
        raise ProtocolError("a head longer than its payload")
    return document(payload[META.size : META.size + size]), payload[META.size + size :]


def document(text: bytes) -> dict[str, Any]:
    """A JSON object from the sandbox: never trusted to be one."""
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError):
        raise ProtocolError("a head that is not JSON") from None
    if not isinstance(value, dict):
        raise ProtocolError("a head that is not an object")
    return value  # pyright: ignore[reportUnknownVariableType]


class Mac:
    """One direction's running code: keyed BLAKE2b over direction, frame number and frame, so that no frame can be
    made, changed, dropped, repeated or sent back by anyone without the key."""

    def __init__(self, key: bytes, direction: bytes) -> None:
        self._key = key
        self._direction = direction
        self._number = 0

    def tag(self, frame: bytes) -> bytes:
        state = blake2b(self._direction + self._number.to_bytes(8, "big"), digest_size=MAC_BYTES, key=self._key)
        state.update(frame)
        self._number += 1
        return state.digest()


class Decoder:
    """Bytes in, frames out."""

    def __init__(self, mac: Mac | None = None) -> None:
        self._mac = mac
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[Frame]:
        if self._rest:
            data = self._rest + data
        trailer = 0 if self._mac is None else MAC_BYTES
        at, end = 0, len(data)
        while end - at >= HEADER.size:
            size, kind, flags, stream, call = HEADER.unpack_from(data, at)
            if size > PAYLOAD_BYTES_MAX:
                raise ProtocolError(f"a frame of {size} bytes")
            body = at + HEADER.size
            stop = body + size
            if stop + trailer > end:
                break
            if self._mac is not None and self._mac.tag(data[at:stop]) != data[stop : stop + trailer]:
                raise ProtocolError("a frame whose code is wrong")
            at = stop + trailer
            yield kind, flags, stream, call, data[body:stop]
        self._rest = data[at:] if at else data
