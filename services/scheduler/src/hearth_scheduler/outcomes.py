"""Jobs that travelled back: tried again, now or later, or ended."""

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from hearth_contracts.calls import Outcome
from hearth_kit.background import Background
from hearth_kit.clock import Clock
from hearth_kit.errors import BusError
from hearth_kit.message import Message
from hearth_kit.registry import Registry
from hearth_scheduler import metrics
from hearth_scheduler.domain import retry
from hearth_scheduler.domain.retry import Again, Over
from hearth_scheduler.held import Held, Lanes, Letter, Source
from hearth_scheduler.service import Dispatcher
from hearth_scheduler.settling import Settler

_log = logging.getLogger(__name__)

AGAIN_S: Final = 0.25
#: A retry that is due within this is placed at once: asking the broker to wait so little would be later.
SOON_S: Final = 0.01


class Outcomes:
    def __init__(
        self,
        *,
        dispatcher: Dispatcher,
        settler: Settler,
        registry: Registry,
        lanes: Lanes,
        clock: Clock,
        losses_max: int,
        ours: Callable[[], bool],
    ) -> None:
        self._dispatcher = dispatcher
        self._settler = settler
        self._registry = registry
        self._lanes = lanes
        self._clock = clock
        self._losses_max = losses_max
        self._ours = ours
        self._tasks = Background("outcome")
        self._ending: dict[str, list[Letter]] = {}

    def take(self, outcome: Outcome, message: Message, *, sync: bool) -> None:
        """From the read loop."""
        call = outcome.run.call
        self._dispatcher.travelled_back(call.job, outcome.run.executor)
        version = self._registry.known(call.tenant, call.function, call.version)
        if version is None:
            self._tasks.start(self._learn(outcome, message, sync=sync))
        else:
            self._decide(outcome, message, sync=sync, known=True)

    async def _learn(self, outcome: Outcome, message: Message, *, sync: bool) -> None:
        call = outcome.run.call
        while True:
            try:
                version = await self._registry.version(call.tenant, call.function, call.version)
                break
            except BusError:
                await asyncio.sleep(AGAIN_S)
        self._decide(outcome, message, sync=sync, known=version is not None)

    def _decide(self, outcome: Outcome, message: Message, *, sync: bool, known: bool) -> None:
        if not self._ours():
            message.nak()  # it came while this term was ending: the next one has it at once
            return
        call = outcome.run.call
        version = self._registry.known(call.tenant, call.function, call.version) if known else None
        now = self._clock.now()
        decision = retry.decide(
            outcome, version.spec.retry if version is not None else None, losses_max=self._losses_max, now=now
        )
        letter = Letter(message, sync, self._lanes.generation)
        if isinstance(decision, Over):
            metrics.OUTCOMES.labels("over").inc()
            self._end(outcome, decision, letter, sync=sync)
        elif decision.at - now > SOON_S:
            metrics.OUTCOMES.labels("later").inc()
            # It waits where it is. The due time comes from the outcome itself, so that nothing has to be remembered.
            message.nak(decision.at - now)
        else:
            metrics.OUTCOMES.labels("again").inc()
            self._again(outcome, decision, letter, sync=sync)

    def _again(self, outcome: Outcome, again: Again, letter: Letter, *, sync: bool) -> None:
        message = letter.message
        self._dispatcher.take(
            Held(
                call=again.call, body=message.body, header=message.traceparent, sync=sync, source=Source.OUTCOMES,
                arrived_at=self._clock.now(), touched_at=self._clock.monotonic(), letters=[letter], look=True, anew=True,
            )
        )  # fmt: skip

    def _end(self, outcome: Outcome, over: Over, letter: Letter, *, sync: bool) -> None:
        job = outcome.run.call.job
        if job in self._ending:
            self._ending[job].append(letter)
            return
        self._ending[job] = [letter]
        self._tasks.start(self._ended(outcome, over, sync=sync))

    async def _ended(self, outcome: Outcome, over: Over, *, sync: bool) -> None:
        call = outcome.run.call
        letters = self._ending[call.job]
        message = letters[0].message
        version = self._registry.known(call.tenant, call.function, call.version)
        try:
            await self._settler.end(
                call, message.body, message.traceparent, over.ending, sync=sync, version=version, dead=over.dead
            )
            for letter in letters:
                if self._lanes.may_settle(letter):
                    letter.message.ack()
        finally:
            del self._ending[call.job]

    async def drain(self, timeout_s: float) -> None:
        await self._tasks.drain(timeout_s)

    async def stop(self) -> None:
        await self._tasks.cancel()
