"""Records leave the broker once every consumer of their stream has settled them and their grace has passed."""

import logging
from collections.abc import Sequence
from typing import Final

from hearth_contracts import streams
from hearth_kit.bus import Bus
from hearth_kit.clock import Clock
from hearth_persister import metrics
from hearth_persister.domain import retention
from hearth_persister.service import Line

_log = logging.getLogger(__name__)

RECORDS: Final = streams.RECORDS


class Retention:
    """Any number of processes may do this: a purge up to a sequence is the same however often it is made."""

    def __init__(self, *, bus: Bus, clock: Clock, lines: Sequence[Line], grace_s: float, records_max: int) -> None:
        self._bus = bus
        self._clock = clock
        self._lines = lines
        self._grace_s = grace_s
        self._budget = retention.Budget(RECORDS.max_bytes, records_max)

    async def once(self) -> int:
        """How many records have left."""
        line = next((line for line in self._lines if line.active), None)
        info = await self._bus.stream_info(RECORDS.name)
        if line is None or info is None or not info.messages:
            return 0
        settled = await self._settled()
        aged = await line.index.last_before(line.epoch, int((self._clock.now() - self._grace_s) * 1_000_000))
        held = retention.Held(info.messages, info.bytes, info.first_sequence, info.last_sequence)
        below = retention.leave_below(held, stored_up_to=settled, aged_up_to=aged, budget=self._budget)
        if not below:
            return 0
        gone = await self._bus.purge(RECORDS.name, below_sequence=below)
        metrics.PURGED.inc(gone)
        _log.debug("records left the broker", extra={"records": gone, "below": below})
        return gone

    async def _settled(self) -> int:
        """What every consumer of the stream has settled, stores that are configured no longer included: only a command
        removes those (`python -m hearth_persister forget NAME`)."""
        names = set(await self._bus.consumer_names(RECORDS.name))
        floors: list[int] = []
        for name in names | {line.consumer for line in self._lines}:
            info = await self._bus.consumer_info(RECORDS.name, name)
            if info is None:
                return 0  # a store that has not begun to read has settled nothing
            floors.append(info.ack_floor)
        return min(floors, default=0)
