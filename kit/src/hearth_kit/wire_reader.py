"""Reading the broker's protocol: bytes in, messages out, with no task, no buffer and no regular expression between.

A message goes to its handler from within the socket's own callback. What is left for a task are the few lines that are
not messages (PING, PONG, INFO, -ERR).
"""

import asyncio
from collections.abc import Callable
from typing import Final

Heard = Callable[[bytes, bytes, bytes, bytes, bytes], None]
"""(subscription id, subject, reply, header block, body). Must not raise."""

_CR_LF: Final = b"\r\n"
#: A line of the protocol is at most 4096 bytes, the broker's INFO somewhat more; beyond this it is no line.
LINE_BYTES_MAX: Final = 64 * 1024


class WireReader(asyncio.Protocol):
    """Takes the place of the connection's first protocol, which keeps what concerns writing and closing."""

    def __init__(self, before: asyncio.BaseProtocol, heard: Heard) -> None:
        self._before = before
        self._heard = heard
        self._parts: list[bytes] = []
        self._have = 0
        self._need = 0
        """Bytes that must be there before it is worth looking again."""
        self._stopped = False
        self.lines: asyncio.Queue[bytes | None] = asyncio.Queue()
        """Lines that are not messages; None: the connection has ended, or speaks something else."""

    def stop(self) -> None:
        """Hear no more: somebody else takes the connection down."""
        self._stopped = True

    def data_received(self, data: bytes) -> None:
        if self._stopped:
            return
        if self._have:
            self._parts.append(data)
            self._have += len(data)
            if self._have < self._need:
                return
            data = b"".join(self._parts)
        try:
            at = self._read(data)
        except (ValueError, IndexError):
            self._stopped = True
            self.lines.put_nowait(None)
            return
        self._have = len(data) - at
        self._parts = [data[at:]] if self._have else []

    def _read(self, data: bytes) -> int:
        """Hand over every whole message and line; where the first that is not whole begins."""
        at, end = 0, len(data)
        self._need = 0
        while at < end:
            line_end = data.find(_CR_LF, at)
            if line_end < 0:
                if end - at > LINE_BYTES_MAX:
                    raise ValueError
                break
            first = data[at]
            if first in (72, 77):  # HMSG subject sid [reply] header-bytes bytes, or MSG without the header's
                headed = first == 72
                fields = data[at + 4 + headed : line_end].split()
                block = line_end + 2
                stop = block + int(fields[-1])
                if stop + 2 > end:
                    self._need = stop + 2 - at
                    break
                at = stop + 2
                body = block + int(fields[-2]) if headed else block
                reply = fields[2] if len(fields) == 4 + headed else b""
                self._heard(fields[1], fields[0], reply, data[block:body], data[body:stop])
            else:
                self.lines.put_nowait(data[at:line_end])
                at = line_end + 2
        return at

    def eof_received(self) -> None:
        self.lines.put_nowait(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lines.put_nowait(None)
        self._before.connection_lost(exc)

    def pause_writing(self) -> None:
        self._before.pause_writing()

    def resume_writing(self) -> None:
        self._before.resume_writing()
