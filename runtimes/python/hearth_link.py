"""The supervisor's end of the link: frames in, frames out, the urgent ones first."""

import collections
import os

import hearth_frames as frames
import hearth_stream

READ_BYTES = 256 * 1024


class Link:
    """`on_frame(kind, flags, stream, call, payload)` gets each frame; `on_lost(why)` is called at the end and returns
    never: without its link a sandbox is nothing."""

    def __init__(self, loop, fd_in, fd_out, on_frame, on_lost):
        self._loop = loop
        self._in, self._out = fd_in, fd_out
        self._on_frame, self._on_lost = on_frame, on_lost
        self._decoder = hearth_stream.Decoder()
        self._mac = None
        self._urgent = []
        self._bulk = collections.deque()
        self._rest = b""
        for fd in (fd_in, fd_out):
            os.set_blocking(fd, False)
        loop.reading(fd_in, self._read)

    @property
    def idle(self):
        """Nothing waits to be written."""
        return not (self._rest or self._urgent or self._bulk)

    def use_key(self, key):
        """Every frame after this one, in both directions, carries a code made with `key`."""
        self._decoder.mac = hearth_stream.Mac(key, hearth_stream.TO_SANDBOX)
        self._mac = hearth_stream.Mac(key, hearth_stream.FROM_SANDBOX)

    def send(self, frame, *, bulk=False):
        (self._bulk if bulk else self._urgent).append(frame)
        if not self._rest:
            self._flush()

    def give_credit(self, call, kind, stream, size):
        self.send(frames.encode(frames.CREDIT, frames.CREDIT_BODY.pack(kind, size), call, stream))

    def _flush(self):
        """Write what fits. Codes are made here, in the order in which frames leave."""
        while True:
            if not self._rest:
                if self._urgent:
                    batch, self._urgent = self._urgent, []
                elif self._bulk:
                    batch = [self._bulk.popleft()]
                else:
                    break
                if self._mac is not None:
                    batch = [frame + self._mac.tag(frame) for frame in batch]
                self._rest = batch[0] if len(batch) == 1 else b"".join(batch)
            try:
                written = os.write(self._out, self._rest)
            except BlockingIOError:
                break
            except OSError:
                self._on_lost("")
            self._rest = self._rest[written:]
        self._loop.writing(self._out, self._flush if self._rest else None)

    def _read(self):
        try:
            data = os.read(self._in, READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._on_lost("")
        try:
            for kind, flags, stream, call, payload in self._decoder.feed(data):
                self._on_frame(kind, flags, stream, call, payload)
        except frames.ProtocolError as error:
            self._on_lost(str(error))
