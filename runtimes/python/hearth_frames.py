"""Frames, as `runtimes/protocol.md` defines them: a header of twelve bytes, a payload, and on a link under a key a MAC.

The module knows bytes only. It opens nothing and decides nothing, and is the same on the link and on a child's socket.
"""

import json
import struct

try:
    from _blake2 import blake2b  # what hashlib hands out, without loading OpenSSL at boot
except ImportError:
    from hashlib import blake2b

PROTOCOL = 1

#: payload length, type, flags, stream, call
HEADER = struct.Struct(">IBBHI")
HEADER_BYTES = HEADER.size
META = struct.Struct(">I")
CREDIT_BODY = struct.Struct(">BI")

#: Largest payload of any frame: a load message with a large environment is the biggest there is.
PAYLOAD_BYTES_MAX = 1024 * 1024
#: Largest payload of a frame that spends credit, so that a control frame never waits behind much.
DATA_BYTES_MAX = 64 * 1024
#: Bytes that may be under way on one channel before the reader has to give credit.
WINDOW_BYTES = 256 * 1024
MAC_BYTES = 16

HELLO, LOAD, CODE, LOADED, CALL, EVENT, RESULT, RESULT_DATA = range(1, 9)
LOG, EMIT, EMIT_ACK, OUTPUT_OPEN, OUTPUT_ACK, OUTPUT, STOP, SETTLED, CREDIT = range(9, 18)

END = 0x01
TRUNCATED = 0x02

STDOUT, STDERR, LOGGER = 1, 2, 3

TO_SANDBOX, FROM_SANDBOX = b"\x01", b"\x02"


class ProtocolError(Exception):
    """The other side does not speak the protocol."""


def encode(kind, payload=b"", call=0, stream=0, flags=0):
    return HEADER.pack(len(payload), kind, flags, stream, call) + payload


def with_meta(meta, body=b""):
    """The payload of a frame that carries a JSON head and a raw body."""
    head = json.dumps(meta).encode()
    return META.pack(len(head)) + head + body


def split_meta(payload):
    if len(payload) < 4:
        raise ProtocolError("a payload without its head")
    (size,) = META.unpack_from(payload)
    if 4 + size > len(payload):
        raise ProtocolError("a head longer than its payload")
    return json.loads(payload[4 : 4 + size]), payload[4 + size :]


class Mac:
    """One direction's running code: keyed BLAKE2b over direction, frame number and frame, so that no frame can be
    made, changed, dropped, repeated or sent back by anyone without the key."""

    def __init__(self, key, direction):
        self._key = key
        self._direction = direction
        self._number = 0

    def tag(self, frame):
        state = blake2b(self._direction + self._number.to_bytes(8, "big"), digest_size=MAC_BYTES, key=self._key)
        state.update(frame)
        self._number += 1
        return state.digest()


class Decoder:
    """Bytes in, frames out: (kind, flags, stream, call, payload)."""

    def __init__(self):
        self.mac = None
        self._rest = b""

    def feed(self, data):
        """Yields every whole frame. The key may be set between two frames: the next one is checked with it."""
        if self._rest:
            data = self._rest + data
        at, end = 0, len(data)
        while end - at >= HEADER_BYTES:
            size, kind, flags, stream, call = HEADER.unpack_from(data, at)
            if size > PAYLOAD_BYTES_MAX:
                self._rest = b""
                raise ProtocolError(f"a frame of {size} bytes")
            body = at + HEADER_BYTES
            stop = body + size
            if self.mac is None:
                if stop > end:
                    break
                following = stop
            else:
                following = stop + MAC_BYTES
                if following > end:
                    break
                if self.mac.tag(data[at:stop]) != data[stop:following]:
                    raise ProtocolError("a frame whose code is wrong")
            at = following
            yield kind, flags, stream, call, data[body:stop]
        self._rest = data[at:] if at else data
