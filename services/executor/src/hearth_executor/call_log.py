"""What one call prints: shown live, and kept for its record."""

import asyncio
from typing import Final

from hearth_contracts import subjects
from hearth_contracts.calls import LOG_BYTES_MAX, LogChunk
from hearth_kit.bus import contract_headers
from hearth_kit.clock import Clock
from hearth_kit.errors import BusError
from hearth_kit.message import Sender

#: A line is on somebody's screen this long after it was printed, at most.
FLUSH_S: Final = 0.2
#: So much is shown at once, without waiting.
FLUSH_BYTES: Final = 32 * 1024
#: One message's share: far below what the broker takes.
PIECE_BYTES_MAX: Final = 128 * 1024


class CallLog:
    """Gathers, shows and keeps. Nothing here waits for the broker: a live tail may miss a piece, the record does not."""

    def __init__(self, *, bus: Sender, clock: Clock, tenant: str, job: str, attempt: int, bytes_max: int = LOG_BYTES_MAX) -> None:
        self._bus = bus
        self._clock = clock
        self._subject = subjects.log(tenant, job)
        self._job = job
        self._attempt = attempt
        self._room = bytes_max
        self._kept: list[bytes] = []
        self._unsent: list[tuple[str, bytes]] = []
        self._unsent_bytes = 0
        self._number = 0
        self._timer: asyncio.TimerHandle | None = None
        self.truncated = False
        self.size = 0

    def add(self, stream: str, data: bytes) -> None:
        if len(data) > self._room:
            data = data[: self._room]
            self.truncated = True
        if not data:
            return
        self._room -= len(data)
        self.size += len(data)
        self._kept.append(data)
        self._unsent.append((stream, data))
        self._unsent_bytes += len(data)
        if self._unsent_bytes >= FLUSH_BYTES:
            self.flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_S, self.flush)

    def flush(self) -> None:
        """Show what has gathered, as few messages as the order of the streams allows."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        pieces, self._unsent, self._unsent_bytes = self._unsent, [], 0
        stream, gathered = "", bytearray()
        for name, data in pieces:
            if gathered and (name != stream or len(gathered) + len(data) > PIECE_BYTES_MAX):
                self._send(stream, bytes(gathered))
                gathered.clear()
            stream = name
            gathered += data
        if gathered:
            self._send(stream, bytes(gathered))

    def _send(self, stream: str, data: bytes) -> None:
        for start in range(0, len(data), PIECE_BYTES_MAX):
            meta = LogChunk(job=self._job, attempt=self._attempt, stream=stream, number=self._number, at=self._clock.now())
            self._number += 1
            headers = contract_headers(meta=meta, contract="log.v1", msg_id="", traceparent="", expect_last=None, headers=None)
            try:
                self._bus.send(self._subject, data[start : start + PIECE_BYTES_MAX], headers=headers)
            except BusError:
                return  # the broker is away: the record will have it

    def content(self) -> bytes:
        return b"".join(self._kept)
