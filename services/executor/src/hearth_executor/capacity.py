"""Reports of what this executor can take: coalesced when things change, repeated when nothing does."""

import asyncio
from collections.abc import Callable
from typing import Final

from hearth_contracts import subjects
from hearth_contracts.fleet import Capacity
from hearth_executor import metrics
from hearth_kit.bus import contract_headers
from hearth_kit.errors import BusError
from hearth_kit.message import Sender

#: One report per so much at most.
COALESCE_S: Final = 0.010
#: Work that began is reported later than work that ended: the scheduler knows what it has placed, but not what has become
#: free. So under a steady flow reports fall on the ends of calls, when the sandboxes are idle again.
BEGUN_S: Final = 0.020
#: Silence of several of these makes an executor suspect.
REPEAT_S: Final = 1.0


class Reporter:
    """Sends `compose()` now and then. Nothing waits for it: the next report corrects a lost one."""

    def __init__(self, *, bus: Sender, executor: str, compose: Callable[[], Capacity]) -> None:
        self._bus = bus
        self._subject = subjects.capacity(executor)
        self._compose = compose
        self._loop = asyncio.get_running_loop()
        self._sent_at = float("-inf")
        self._timer: asyncio.TimerHandle | None = None
        self._due_at = 0.0

    def begun(self) -> None:
        """A run has come in."""
        if self._timer is None:
            self._arm(self._loop.time() + BEGUN_S)

    def freed(self) -> None:
        """A slot or a sandbox has become free."""
        now = self._loop.time()
        due = max(now, self._sent_at + COALESCE_S)
        if self._timer is None or due < self._due_at:
            self._arm(due)

    def now(self) -> None:
        """Send at once: at the start, when draining begins, at the end."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._sent_at = self._loop.time()
        metrics.REPORTS.inc()
        headers = contract_headers(
            meta=self._compose(), contract="capacity.v1", msg_id="", traceparent="", expect_last=None, headers=None
        )
        try:
            self._bus.send(self._subject, headers=headers)
        except BusError:
            return  # the broker is away, and so is everybody who would read it

    async def repeat(self) -> None:
        """Runs as long as the executor."""
        while True:
            left = self._sent_at + REPEAT_S - self._loop.time()
            if left <= 0:
                self.now()
                left = REPEAT_S
            await asyncio.sleep(left)

    def _arm(self, due: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._due_at = due
        # A turn later even when due now: the end of a call frees a slot and a sandbox, and its answer goes first.
        self._timer = self._loop.call_at(max(due, self._loop.time()), self.now)
