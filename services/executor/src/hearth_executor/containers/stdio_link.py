"""The fallback link: the container's attached stdin and stdout, with a code on every frame.

What comes back is the engine's multiplexed stream. Stream 1 is the link; stream 2 is what the supervisor writes when it
cannot go on, and is kept for the error message. Reading never stops, so the engine never waits for us.
"""

import asyncio
import struct

from hearth_executor.containers.container import Attached
from hearth_executor.containers.link import Link

READ_BYTES = 256 * 1024
STDERR_BYTES_MAX = 4096

#: Stream number, three zero bytes, size.
_HEADER = struct.Struct(">B3xI")
_STDOUT, _STDERR = 1, 2


def connect(attached: Attached) -> Link:
    """A keyed link over an attached container."""
    return _Wire(attached).link


class _Wire:
    def __init__(self, attached: Attached) -> None:
        self._attached = attached
        self._rest = b""
        self._stderr = b""
        self.link = Link(keyed=True)
        self.link.wire = self
        self._reader = asyncio.get_running_loop().create_task(self._read(), name="hearth-stdio-link")

    def write(self, data: bytes) -> None:
        self._attached.writer.write(data)

    def close(self) -> None:
        self._attached.writer.close()
        if self._reader is not asyncio.current_task():
            self._reader.cancel()

    async def _read(self) -> None:
        reader = self._attached.reader
        try:
            while data := await reader.read(READ_BYTES):
                self._split(data)
        except OSError as error:
            self.link.lose(f"the link broke: {error}")
            return
        said = self._stderr.decode(errors="backslashreplace").strip()
        self.link.lose(f"the link was closed: {said}" if said else "the link was closed")

    def _split(self, data: bytes) -> None:
        if self._rest:
            data = self._rest + data
        at = 0
        ours = list[bytes]()
        while len(data) - at >= _HEADER.size:
            stream, size = _HEADER.unpack_from(data, at)
            stop = at + _HEADER.size + size
            if stop > len(data):
                break
            part = data[at + _HEADER.size : stop]
            at = stop
            if stream == _STDOUT:
                ours.append(part)
            elif stream == _STDERR:
                self._stderr = (self._stderr + part)[-STDERR_BYTES_MAX:]
        self._rest = data[at:]
        if ours:
            self.link.feed(b"".join(ours))
