"""The executors: their reports, their consumers, and what becomes of their work when they die."""

import asyncio
import logging

from hearth_contracts import streams, subjects
from hearth_contracts.calls import Run
from hearth_contracts.errors import UndecodableMessage
from hearth_contracts.fleet import Capacity
from hearth_kit.background import Background
from hearth_kit.bus import Bus, ConsumerSpec
from hearth_kit.clock import Clock
from hearth_kit.errors import BusError
from hearth_kit.message import Message
from hearth_scheduler import metrics
from hearth_scheduler.config import Settings
from hearth_scheduler.dispatcher import Dispatcher
from hearth_scheduler.domain import fleet
from hearth_scheduler.domain.fleet import Executor
from hearth_scheduler.intake import Intake

_log = logging.getLogger(__name__)

_LANES = (("RUNS", False), ("RUNS_SYNC", True))


class Roster:
    """Known executors. Kept by standbys too, so that whoever becomes active knows the fleet already."""

    def __init__(self, *, bus: Bus, clock: Clock, settings: Settings) -> None:
        self._bus = bus
        self._clock = clock
        self._settings = settings
        self.executors: dict[str, Executor] = {}
        self._bound: set[str] = set()
        """Executors whose consumers exist, as far as this active scheduler knows."""
        self._binding = Background("executor-consumers")
        self._reassigning: set[str] = set()
        self._dispatcher: Dispatcher | None = None
        self._intake: Intake | None = None

    async def start(self) -> None:
        await self._bus.subscribe(subjects.CAPACITY_ALL, self._heard)

    def _heard(self, message: Message) -> None:
        try:
            capacity = message.meta(Capacity)
        except UndecodableMessage as error:
            _log.warning("a report does not parse: %s", error)
            return
        now = self._clock.now()
        known = self.executors.get(capacity.executor)
        if known is None:
            known = self.executors[capacity.executor] = Executor(capacity, now)
        else:
            known.report(capacity, now)
        if self._dispatcher is not None:
            if capacity.executor in self._bound:
                self._dispatcher.kick()
            else:
                self._bind(capacity.executor)

    # Only while active

    async def activate(self, dispatcher: Dispatcher, intake: Intake) -> None:
        """From now on we make consumers and mourn the dead. Executors that left consumers behind and do not report are
        waited for as long as any other."""
        self._dispatcher, self._intake = dispatcher, intake
        self._bound.clear()
        now = self._clock.now()
        for stream, _ in _LANES:
            for name in await self._bus.consumer_names(stream):
                executor = name.removeprefix("x_")
                if executor != name and executor not in self.executors:
                    silent = Capacity(executor=executor, name=executor[:-9], at=0, slots=0, free=0, draining=True)
                    self.executors[executor] = Executor(silent, now)
        for executor in list(self.executors):
            if self.executors[executor].capacity.slots:
                self._bind(executor)

    def deactivate(self) -> None:
        self._dispatcher = self._intake = None

    def rebind(self) -> None:
        """After the broker came back: consumers of the stream in memory are gone."""
        self._bound.clear()
        now = self._clock.now()
        for executor in self.executors.values():
            executor.heard_at = max(executor.heard_at, now - 1)  # they could not report either
            executor.sent.clear()
            if executor.capacity.slots:
                self._bind(executor.id)

    def _bind(self, executor: str) -> None:
        self._bound.add(executor)

        async def bind() -> None:
            try:
                for stream, sync in _LANES:
                    await self._bus.ensure_consumer(
                        ConsumerSpec(stream, streams.executor_consumer(executor), filter_subject=subjects.runs_of(executor, sync=sync),
                            ack_wait_s=self._settings.ack_wait_s)
                    )  # fmt: skip
            except BusError as error:
                _log.warning("consumers of %s: %s", executor, error)
                self._bound.discard(executor)
                return
            if self._dispatcher is not None:
                self._dispatcher.kick()

        self._binding.start(bind())

    def tick(self) -> None:
        """Called twice a second while active."""
        now = self._clock.now()
        counts = {"alive": 0, "suspect": 0, "dead": 0}
        for executor in list(self.executors.values()):
            state = fleet.state(
                executor, now, suspect_after_s=self._settings.suspect_after_s, dead_after_s=self._settings.dead_after_s
            )
            counts[state] += 1
            if state == "dead" and executor.id not in self._reassigning and self._bus.connected:
                self._reassigning.add(executor.id)
                self._binding.start(self._reassign(executor.id), f"reassign-{executor.id}")
        for state, count in counts.items():
            metrics.EXECUTORS.labels(state=state).set(count)

    async def _reassign(self, executor: str) -> None:
        """Place a dead executor's unfinished work again; then, and only then, take away what brought it there."""
        try:
            _log.warning("executor %s is dead, placing its work again", executor)
            for stream, sync in _LANES:
                await self._walk(executor, stream, sync=sync)
                await self._bus.purge(stream, subject=subjects.runs_of(executor, sync=sync))
                await self._bus.delete_consumer(stream, streams.executor_consumer(executor))
            self.executors.pop(executor, None)
            self._bound.discard(executor)
        except BusError as error:
            _log.warning("placing the work of %s again: %s", executor, error)
        finally:
            self._reassigning.discard(executor)

    async def _walk(self, executor: str, stream: str, *, sync: bool) -> None:
        sequence = 1
        while True:
            stored = await self._bus.get_next(stream, subjects.runs_of(executor, sync=sync), sequence)
            if stored is None:
                return
            sequence = stored.sequence + 1
            try:
                run = stored.message.meta(Run)
            except UndecodableMessage as error:
                _log.error("a run does not parse: %s", error)
                continue
            if self._intake is None or self._dispatcher is None:
                raise BusError("not active any more")
            waiting = await self._intake.lost(run.call, stored.message.body, run.placement, executor, stored.message.traceparent)
            while waiting is not None and self._dispatcher.holds(run.call.job) is waiting:
                await asyncio.sleep(0.02)

    async def drain(self) -> None:
        await self._binding.cancel()
