"""A child's end of its socket. Plain descriptors and few objects: this is on the way of every call."""

import _thread
import os

import hearth_frames as frames
import hearth_json

#: A small event comes in one read of this size; a larger one in several.
READ_BYTES = 32 * 1024


class Channel:
    """Frames go out whole. An answer is waited for by whoever asked, one at a time."""

    def __init__(self, fd):
        self.fd = fd
        self.pid = os.getpid()
        self.call = 0
        self._rest = b""
        self._lock = _thread.allocate_lock()

    def unread(self, data):
        self._rest = data

    def receive(self):
        """(kind, flags, call, payload), or None at the end."""
        data = self._rest
        while True:
            if len(data) >= frames.HEADER_BYTES:
                size, kind, flags, _, call = frames.HEADER.unpack_from(data)
                end = frames.HEADER_BYTES + size
                if len(data) >= end:
                    self._rest = data[end:]
                    return kind, flags, call, data[frames.HEADER_BYTES : end]
            more = os.read(self.fd, READ_BYTES)
            if not more:
                return None
            data = data + more if data else more

    def receive_event(self):
        body = bytearray()
        while True:
            frame = self.receive()
            if frame is None:
                os._exit(0)
            body += frame[3]
            if frame[1] & frames.END:
                return bytes(body)

    def send(self, kind, payload=b"", stream=0, flags=0):
        self._check()
        with self._lock:
            self._write(frames.encode(kind, payload, self.call, stream, flags))

    def send_data(self, kind, data, stream=0):
        for at in range(0, len(data), frames.DATA_BYTES_MAX):
            self.send(kind, data[at : at + frames.DATA_BYTES_MAX], stream)

    def ask(self, kind, payload, stream=0):
        """Send, then wait for the answer."""
        self._check()
        with self._lock:
            self._write(frames.encode(kind, payload, self.call, stream))
            frame = self.receive()
        if frame is None:
            os._exit(0)
        return hearth_json.loads(frame[3])

    def _check(self):
        if os.getpid() != self.pid:
            raise OSError("only the process that was called may speak for the call")

    def _write(self, data):
        while data:
            data = data[os.write(self.fd, data) :]
