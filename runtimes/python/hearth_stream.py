"""A stream of bytes as frames, each with a code of its own where the link has a key."""

from hearth_frames import HEADER, HEADER_BYTES, PAYLOAD_BYTES_MAX, ProtocolError

try:
    from _blake2 import blake2b  # what hashlib hands out, without loading OpenSSL at boot
except ImportError:
    from hashlib import blake2b

MAC_BYTES = 16

TO_SANDBOX, FROM_SANDBOX = b"\x01", b"\x02"


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
