"""Whether the scheduler still counts this executor among the living.

After ten silent seconds it gives an executor up: places its runs elsewhere, then deletes its consumer. A process that was
stopped, or cut off, and comes back must not speak for runs that are somebody else's by now. So after 8 s without a sign of
the broker nothing of a run is published before the consumer has been seen to exist.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from hearth_contracts import streams
from hearth_kit.bus import Bus
from hearth_kit.errors import BusError

_log = logging.getLogger(__name__)

#: How often the two clocks are looked at: often enough that a silence past the limit is always seen.
TICK_S: Final = 0.5


class Membership:
    def __init__(self, *, bus: Bus, executor: str, silent_s: Callable[[], float], silence_s_max: float) -> None:
        self._bus = bus
        self._consumer = streams.executor_consumer(executor)
        self._silent_s = silent_s
        self._silence_s_max = silence_s_max
        self._loop = asyncio.get_running_loop()
        self._ticked_at = self._loop.time()
        self._doubt = False
        self._checking: asyncio.Lock = asyncio.Lock()
        self.known = False
        """Whether the scheduler has ever taken us in."""
        self.lost = asyncio.Event()
        """Set when it had, and has given us up."""

    @property
    def doubtful(self) -> bool:
        """Whether a question is due before the next word about a run. Cheap: asked for every run."""
        return self._doubt or self.lost.is_set() or self._silence_s() > self._silence_s_max

    def _silence_s(self) -> float:
        # Two clocks, since a stopped process may read the bytes that came meanwhile before it notices the time.
        return max(self._loop.time() - self._ticked_at, self._silent_s())

    async def confirmed(self) -> bool:
        """Ask until the broker answers. False: everything we hold is somebody else's."""
        self._doubt = True
        async with self._checking:
            while self._doubt and not self.lost.is_set():
                await self._look()
                if self._doubt and not self.lost.is_set():
                    await asyncio.sleep(TICK_S)
        return not self.lost.is_set()

    async def watch(self) -> None:
        """Runs as long as the executor."""
        while not self.lost.is_set():
            silence_s = self._silence_s()
            if silence_s > self._silence_s_max and not self._doubt:
                _log.warning("nothing was heard of the broker for %.1f s: asking whether we are still counted in", silence_s)
                self._doubt = True
            self._ticked_at = self._loop.time()
            if not self.known or self._doubt:
                async with self._checking:
                    await self._look()
            await asyncio.sleep(TICK_S)

    def missed(self, why: str) -> None:
        """A pump was told that its consumer does not exist: not made yet, or taken away."""
        if self.known:
            self._doubt = True

    def accepted(self) -> None:
        """A run has come: there is a consumer."""
        self.known = True

    async def _look(self) -> None:
        self._ticked_at = self._loop.time()
        try:
            found = await self._bus.consumer_info("RUNS", self._consumer)
        except BusError:
            return  # no answer is no answer
        if found is not None:
            self.known = True
            self._doubt = False
            self._ticked_at = self._loop.time()
        elif self.known or self._doubt:
            # Never seen, after a silence: it may have been made and taken away meanwhile. Starting anew is cheap then.
            _log.error("the scheduler has given this executor up: what it runs is placed elsewhere by now")
            self.lost.set()
