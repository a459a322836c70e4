"""The scheduler, put together."""

import asyncio
import contextlib
import logging

from hearth_contracts import streams, subjects
from hearth_contracts.calls import Depths
from hearth_kit import lifecycle, provision
from hearth_kit.background import Background
from hearth_kit.bus import contract_headers
from hearth_kit.errors import BusError
from hearth_kit.lease import Held, Role
from hearth_kit.lifecycle import Life
from hearth_kit.message import Message
from hearth_kit.registry import Registry
from hearth_scheduler import metrics
from hearth_scheduler.config import Settings
from hearth_scheduler.dispatcher import Dispatcher
from hearth_scheduler.finals import Finals
from hearth_scheduler.intake import Intake
from hearth_scheduler.lanes import Lanes
from hearth_scheduler.roster import Roster
from hearth_scheduler.sweeper import Sweeper

_log = logging.getLogger(__name__)

DEPTHS_S = 0.1
TICK_S = 0.5
#: File streams without which no job can be kept.
NEEDED = tuple(stream.name for stream in (streams.JOBS, streams.RUNS, streams.OUTCOMES, streams.RECORDS, streams.FUNCTIONS))


async def serve(settings: Settings) -> None:
    async with lifecycle.running(settings, service="scheduler") as life:
        registry = Registry(life.bus)
        roster = Roster(bus=life.bus, clock=life.clock, settings=settings)
        await registry.start()
        await roster.start()
        role = Role(bus=life.bus, role="scheduler", holder=settings.instance, clock=life.clock)
        life.notes["role"] = "standby"
        life.ready()
        while not life.stopping.is_set():
            async with _taken(role, life) as held:
                if held is None:
                    break
                active = Active(life=life, settings=settings, registry=registry, roster=roster, held=held)
                life.notes["role"] = "active"
                metrics.ACTIVE.set(1)
                try:
                    await active.run()
                finally:
                    life.notes["role"] = "standby"
                    metrics.ACTIVE.set(0)
        await roster.drain()


@contextlib.asynccontextmanager
async def _taken(role: Role, life: Life):  # noqa: ANN202
    """The role, or None when we are to stop before it is ours."""
    async with contextlib.AsyncExitStack() as stack:
        taking = asyncio.ensure_future(stack.enter_async_context(role.hold()))
        stopping = asyncio.ensure_future(life.stopping.wait())
        await asyncio.wait({taking, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not taking.done():
            taking.cancel()
            await asyncio.gather(taking, return_exceptions=True)
            yield None
            return
        yield taking.result()


class Active:
    """The time in which this scheduler is the active one."""

    def __init__(self, *, life: Life, settings: Settings, registry: Registry, roster: Roster, held: Held) -> None:
        self._life = life
        self._bus = life.bus
        self._clock = life.clock
        self._settings = settings
        self._roster = roster
        self._held = held
        self._looks = Background("finals-heard")
        self._finals = Finals(bus=life.bus, clock=life.clock)
        self._dispatcher = Dispatcher(
            bus=life.bus, clock=life.clock, tracer=life.tracer, settings=settings, fleet=roster.executors, epoch=self._epoch
        )
        self._intake = Intake(
            bus=life.bus, clock=life.clock, tracer=life.tracer, registry=registry, dispatcher=self._dispatcher, finals=self._finals,
            settings=settings,
        )  # fmt: skip
        self._lanes = Lanes(bus=life.bus, registry=registry, intake=self._intake, free=self._free)
        self._dispatcher.placed = self._lanes.left
        self._sweeper = Sweeper(
            bus=life.bus, clock=life.clock, dispatcher=self._dispatcher, finals=self._finals, executors=roster.executors,
            orphan_after_s=settings.orphan_after_s,
        )  # fmt: skip
        self._reconnects = life.bus.reconnects

    def _epoch(self) -> int | None:
        return self._held.epoch if self._held.ours else None

    def _free(self) -> int:
        return sum(max(0, executor.room) for executor in self._roster.executors.values())

    async def run(self) -> None:
        """Until the role is lost or the process stops."""
        await self._remake()
        heard = await self._bus.subscribe(subjects.RECORDS_ALL, self._record_heard)
        await self._roster.activate(self._dispatcher, self._intake)
        await self._lanes.start()
        _log.info("active", extra={"epoch": self._held.epoch})
        chores = [
            asyncio.ensure_future(chore)
            for chore in (self._depths(), self._ticks(), self._sweeps(), self._held.lost.wait(), self._life.stopping.wait())
        ]
        try:
            done, _ = await asyncio.wait(chores, return_when=asyncio.FIRST_COMPLETED)
            for chore in done:
                chore.result()
        finally:
            # In this order: nothing new comes in, what flies lands, what waits goes to the next one.
            for chore in chores:
                chore.cancel()
            await asyncio.gather(*chores, return_exceptions=True)
            await self._lanes.stop()
            await self._dispatcher.drain(3)
            self._dispatcher.let_go()
            self._roster.deactivate()
            await heard.stop()
            await self._intake.drain(3)

    async def _remake(self) -> None:
        problems = await provision.problems(self._bus, NEEDED)
        self._life.problems.update(problems)
        missing = await provision.remake_memory(self._bus)
        if missing:
            _log.warning("made anew what the broker had in memory: %s", ", ".join(missing))

    def _record_heard(self, message: Message) -> None:
        job = message.subject.rpartition(".")[2]
        if self._dispatcher.holds(job) is not None:
            self._looks.start(self._intake.ended_elsewhere(job))

    async def _depths(self) -> None:
        subject = subjects.depths(self._settings.instance)
        while True:
            waiting = self._lanes.pending()
            for key, count in self._dispatcher.queues.depths().items():
                waiting[key] = waiting.get(key, 0) + count
            meta = Depths(scheduler=self._settings.instance, epoch=self._held.epoch, waiting=waiting, at=self._clock.now())
            headers = contract_headers(meta=meta, contract="depths.v1", msg_id="", traceparent="", expect_last=None, headers=None)
            with contextlib.suppress(BusError):
                self._bus.send(subject, headers=headers)
            self._lanes.top_up_all()
            await asyncio.sleep(DEPTHS_S)

    async def _ticks(self) -> None:
        while True:
            try:
                if self._bus.reconnects != self._reconnects and self._bus.connected:
                    reconnects = self._bus.reconnects
                    await self._remake()
                    await self._lanes.remade()
                    self._roster.rebind()
                    self._reconnects = reconnects
                self._roster.tick()
                self._dispatcher.keep()
                self._dispatcher.kick()
                held: dict[str, int] = {}
                for waiting in self._dispatcher.queues:
                    if waiting.source == "jobs":
                        key = f"{waiting.call.tenant}.{waiting.call.function}"
                        held[key] = held.get(key, 0) + 1
                self._lanes.settle_taken(held)
                self._lanes.retry_openings()
                await self._lanes.refresh_pending()
            except BusError as error:
                _log.warning("the broker is away: %s", error)
            await asyncio.sleep(TICK_S)

    async def _sweeps(self) -> None:
        while True:
            await asyncio.sleep(self._settings.sweep_s)
            try:
                lost = await self._sweeper.sweep()
                if lost:
                    _log.error("%s jobs had no owner", lost)
            except BusError as error:
                _log.warning("sweeping: %s", error)
