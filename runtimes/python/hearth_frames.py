"""Frames, as `runtimes/protocol.md` defines them: a header of twelve bytes and a payload.

The module knows bytes only. It opens nothing and decides nothing, and is the same on the link and on a child's socket.
"""

import struct

import hearth_json

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

HELLO, LOAD, CODE, LOADED, CALL, EVENT, RESULT, RESULT_DATA = range(1, 9)
LOG, EMIT, EMIT_ACK, OUTPUT_OPEN, OUTPUT_ACK, OUTPUT, STOP, SETTLED, CREDIT = range(9, 18)

END = 0x01
TRUNCATED = 0x02

STDOUT, STDERR, LOGGER = 1, 2, 3


class ProtocolError(Exception):
    """The other side does not speak the protocol."""


def encode(kind, payload=b"", call=0, stream=0, flags=0):
    return HEADER.pack(len(payload), kind, flags, stream, call) + payload


def with_meta(meta, body=b""):
    """The payload of a frame that carries a JSON head and a raw body."""
    head = hearth_json.dumps(meta)
    return META.pack(len(head)) + head + body


def split_meta(payload):
    if len(payload) < 4:
        raise ProtocolError("a payload without its head")
    (size,) = META.unpack_from(payload)
    if 4 + size > len(payload):
        raise ProtocolError("a head longer than its payload")
    return hearth_json.loads(payload[4 : 4 + size]), payload[4 + size :]
