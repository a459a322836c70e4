"""A finished job's states leave the broker soon after its final: what lasts there of a job is one record.

What is missed here (a term that ended, a broker that was away, a call of which only its gateway wrote a state) the sweeper
finds.
"""

import asyncio
import logging
from collections import deque
from typing import Final

from hearth_contracts import subjects
from hearth_kit.bus import Bus
from hearth_kit.clock import Clock
from hearth_kit.errors import BusError
from hearth_kit.message import META, Message

_log = logging.getLogger(__name__)

#: Whoever follows a job is woken by its record and still finds the states before it.
AFTER_S: Final = 1.0
LOOK_S: Final = 0.25
#: Jobs that wait for their turn at most; the sweeper has the rest.
WAITING_MAX: Final = 100_000
#: The record's own words for "states of it were published". Looked for as text: most records are of calls that were too
#: quick for any, and parsing each would cost more than all the rest.
_STATED: Final = '"stated":true'


class FinishedStates:
    def __init__(self, *, bus: Bus, clock: Clock) -> None:
        self._bus = bus
        self._clock = clock
        self._due: deque[tuple[float, str, str]] = deque(maxlen=WAITING_MAX)

    def heard(self, record: Message) -> None:
        if _STATED in record.headers.get(META, ""):
            _, _, _, tenant, _, job = record.subject.split(".")
            self._due.append((self._clock.monotonic() + AFTER_S, tenant, job))

    async def run(self) -> None:
        """As long as the term."""
        while True:
            await asyncio.sleep(LOOK_S)
            now = self._clock.monotonic()
            try:
                while self._due and self._due[0][0] <= now:
                    _, tenant, job = self._due.popleft()
                    await self._clear(tenant, job)
            except BusError as error:
                _log.info("states of finished jobs are left to the sweeper: %s", error)

    async def _clear(self, tenant: str, job: str) -> None:
        # A plain subscriber also hears a record that the stream has refused.
        if await self._bus.get_last("RECORDS", subjects.record(tenant, job)) is not None:
            await clear_states(self._bus, tenant, job)


async def clear_states(bus: Bus, tenant: str, job: str) -> None:
    """Of a job that has its final."""
    await bus.purge("STATES", subject=subjects.state(tenant, job))
