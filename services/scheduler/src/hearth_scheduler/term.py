"""One term of office as the active scheduler: what is built when the lease is ours, and given up with it."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from hearth_contracts import streams, subjects
from hearth_contracts.calls import Depths, StateChange
from hearth_contracts.enums import State
from hearth_contracts.functions import FunctionHead
from hearth_kit import provision
from hearth_kit.bus import Bus, ConsumerSpec, Pump, Subscription, contract_headers
from hearth_kit.clock import Clock
from hearth_kit.errors import BusError
from hearth_kit.lease import Held as Lease
from hearth_kit.registry import Registry
from hearth_kit.tracing import Tracer
from hearth_scheduler import metrics
from hearth_scheduler.config import Settings
from hearth_scheduler.domain import depth
from hearth_scheduler.domain.fleet import Executor, Fleet
from hearth_scheduler.feeds import Feeds
from hearth_scheduler.finished import FinishedStates
from hearth_scheduler.handlers import Handlers
from hearth_scheduler.held import Held, Lanes, Source
from hearth_scheduler.members import Members
from hearth_scheduler.outcomes import Outcomes
from hearth_scheduler.placing import Placer
from hearth_scheduler.service import Dispatcher
from hearth_scheduler.settling import Settler
from hearth_scheduler.sweeper import Sweeper

_log = logging.getLogger(__name__)

#: Queue depths are told this often (DELIVERY rule 9), and silences looked for.
DEPTHS_S: Final = 0.1
TOUCH_EVERY_S: Final = 0.5
TIDY_S: Final = 5.0
#: A call that waits longer is told what for.
TOLD_AFTER_S: Final = 1.0
#: What is being stored when the process stops is stored within this, or found by the next scheduler.
DRAIN_S: Final = 3.0
#: The model node's consumer: a request that is not taken up again within this is asked anew.
AI_ACK_WAIT_S: Final = 30.0


class Term:
    def __init__(
        self,
        *,
        bus: Bus,
        fleet: Fleet,
        registry: Registry,
        tracer: Tracer,
        clock: Clock,
        settings: Settings,
        lease: Lease,
        problem: Callable[[str, str], None],
    ) -> None:
        self._bus = bus
        self._fleet = fleet
        self._registry = registry
        self._clock = clock
        self._settings = settings
        self._lease = lease
        self._problem = problem
        self._lanes = Lanes()
        self._tasks: list[asyncio.Task[None]] = []
        self._pumps: list[Pump] = []
        self._records: Subscription | None = None
        self._fenced = False
        self._remake = False
        self._problems: dict[str, str] = {}
        self.settler = Settler(bus=bus, clock=clock)
        placer = Placer(bus=bus, fleet=fleet, clock=clock, tracer=tracer, epoch=lease.epoch)
        self.dispatcher = Dispatcher(
            fleet=fleet, registry=registry, settler=self.settler, placer=placer, lanes=self._lanes, clock=clock,
            ours=self.ours, left=self._left,
        )  # fmt: skip
        self.outcomes = Outcomes(
            dispatcher=self.dispatcher, settler=self.settler, registry=registry, lanes=self._lanes, clock=clock,
            losses_max=settings.losses_max, ours=self.ours,
        )  # fmt: skip
        self.finished = FinishedStates(bus=bus, clock=clock)
        self.handlers = Handlers(
            dispatcher=self.dispatcher, outcomes=self.outcomes, settler=self.settler, lanes=self._lanes, clock=clock,
            finished=self.finished, job_refused=self._refused,
        )  # fmt: skip
        self.members = Members(
            bus=bus, fleet=fleet, clock=clock, ack_wait_s=settings.ack_wait_s, ours=self.ours, joined=self.dispatcher.freed,
            bury=self.settler.bury, end=self.settler.lost,
        )  # fmt: skip
        self.feeds = Feeds(bus=bus, registry=registry, arrived=self.handlers.job, open_slots=lambda: fleet.open_slots)
        self.sweeper = Sweeper(
            bus=bus, clock=clock, fleet=fleet, registry=registry, settler=self.settler, every_s=settings.sweep_s,
            held=self.dispatcher.is_held,
        )  # fmt: skip

    def ours(self) -> bool:
        return not self._fenced and self._lease.ours

    def _left(self, held: Held) -> None:
        if held.source is Source.JOBS:
            self.feeds.left(f"{held.call.tenant}.{held.call.function}")

    def _refused(self, name: str) -> None:
        self.feeds.left(name)

    # Beginning

    async def start(self) -> None:
        self._fleet.listen_anew(self._clock.monotonic())
        missing = await provision.remake_memory(self._bus, replicas=self._settings.replicas)
        if missing:
            _log.warning("streams in memory were made: %s", ", ".join(missing))
        await self._make_consumers()
        self._lanes.created = await self._created()
        self._records = await self._bus.subscribe(subjects.RECORDS_ALL, self.handlers.record)
        self.dispatcher.listening()
        await self.members.expect_known()
        for executor in list(self._fleet.executors.values()):
            if executor.reported:
                self.members.heard(executor)
        name = streams.SCHEDULER_CONSUMER
        self._pumps = [
            await self._bus.pull("OUTCOMES", name, self.handlers.outcome, lost=lambda why: None),
            await self._bus.pull("OUTCOMES_SYNC", name, self.handlers.outcome_sync, lost=self._lost_memory),
            await self._bus.pull("CALLS", name, self.handlers.call, lost=self._lost_memory),
        ]
        await self.feeds.start()
        for work, what in (
            (self._every(DEPTHS_S, self._tick), "tick"),
            (self._every(TOUCH_EVERY_S, self.dispatcher.touch), "touch"),
            (self._every(TIDY_S, self._tidy), "tidy"),
            (self.finished.run(), "finished"),
            (self.sweeper.run(), "sweeper"),
        ):
            self._tasks.append(asyncio.get_running_loop().create_task(work, name=what))

    async def _make_consumers(self) -> None:
        for spec in provision.scheduler_consumers():
            await self._bus.ensure_consumer(spec)
        await self._bus.ensure_consumer(ConsumerSpec(streams.AI.name, streams.AI_CONSUMER, ack_wait_s=AI_ACK_WAIT_S))

    async def _created(self) -> str:
        info = await self._bus.stream_info("CALLS")
        return info.created if info is not None else ""

    def failed(self) -> "list[asyncio.Task[None]]":
        return self._tasks

    # After a lost connection

    def doubt(self) -> None:
        """Connected again, perhaps to a broker that has forgotten what it held in memory: nothing of it is settled now.
        Finals may have been missed, and reports."""
        self._fleet.listen_anew(self._clock.monotonic())
        self.dispatcher.listening()
        self._lanes.doubtful = True

    async def restore(self) -> None:
        """Make again what died with the broker. Tried again until the broker can."""
        missing = await provision.remake_memory(self._bus, replicas=self._settings.replicas)
        created = await self._created()
        if created != self._lanes.created:
            self._lanes.created = created
            self._lanes.generation += 1
            self._fleet.memory_lost()
            self._lanes.doubtful = False
            self.dispatcher.memory_lost()
            _log.warning("the broker is a new process, made again: %s", ", ".join(missing) or "nothing")
        self._lanes.doubtful = False
        for spec in provision.scheduler_consumers():
            if spec.stream != "OUTCOMES":  # a file keeps its consumers
                await self._bus.ensure_consumer(spec)
        await self._bus.ensure_consumer(ConsumerSpec(streams.AI.name, streams.AI_CONSUMER, ack_wait_s=AI_ACK_WAIT_S))
        await self.members.restore()
        self.dispatcher.run()

    # Hearing

    def capacity(self, executor: Executor) -> None:
        if executor.epoch > self._lease.epoch and not self._fenced:
            _log.error("a scheduler of a later epoch is at work: this one stops", extra={"epoch": executor.epoch})
            self._fenced = True
            self._lease.lost.set()
            return
        self.members.heard(executor)
        self.dispatcher.freed(executor)

    def function_changed(self, head: FunctionHead) -> None:
        self.feeds.changed(head)
        self.dispatcher.forget(f"{head.tenant}.{head.function}", deleted=head.deleted)

    # Side tasks

    async def _every(self, seconds: float, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(seconds)
            try:
                await work()
            except BusError as error:
                _log.debug("%s", error)

    def _lost_memory(self, why: str) -> None:
        """A stream in memory or its consumer is gone: with the broker (then the reconnect mends it, too), or by hand."""
        self._remake = True

    async def _tick(self) -> None:
        if not self.ours() or not self._bus.connected:
            return
        if self._remake:
            self._remake = False
            await self.restore()
        for executor_id in self._fleet.tick(self._clock.monotonic()).dead:
            self.members.dead(executor_id)
        # What no event announces: a function below its maximum again, an executor heard after a silence.
        for executor in list(self._fleet.executors.values()):
            self.dispatcher.freed(executor)
        self._tell_waiting()
        await self.feeds.count()
        self._tell_depths()

    def _tell_depths(self) -> None:
        now = self._clock.now()
        behind = self.feeds.behind()
        waiting: dict[str, int] = {}
        oldest = 0.0
        for line in self.dispatcher.queue.lines.values():
            count = depth.waiting(held=len(line.items), behind=behind.pop(line.name, 0))
            if count:
                waiting[line.name] = count
            if line.items:
                oldest = max(oldest, now - line.items[0].arrived_at)
        waiting.update(behind)
        metrics.HELD.set(len(self.dispatcher.by_job))
        metrics.OLDEST.set(oldest)
        metrics.FREE.set(sum(executor.free for executor in self._fleet.executors.values()))
        meta = Depths(scheduler=self._bus.instance, epoch=self._lease.epoch, waiting=waiting, at=now)
        headers = contract_headers(meta=meta, contract="depths.v1", msg_id="", traceparent="", expect_last=None, headers=None)
        self._bus.send(subjects.depths(self._bus.instance), headers=headers)

    def _tell_waiting(self) -> None:
        """The head of a queue that cannot go is told why, once per reason."""
        now = self._clock.now()
        for name, hindrance in self.dispatcher.hindrances.items():
            line = self.dispatcher.queue.lines.get(name)
            if line is None or not line.items or now - line.items[0].arrived_at < TOLD_AFTER_S:
                continue
            held = line.items[0]
            if held.note == hindrance.value or held.sync:
                continue
            held.note = hindrance.value
            call = held.call
            meta = StateChange(
                job=call.job, tenant=call.tenant, state=State.PENDING, attempt=call.attempt, phase=0, at=now,
                note=f"waits: {hindrance.value}",
                sequence=held.letters[-1].message.sequence if held.source is Source.JOBS and held.letters else 0,
            )  # fmt: skip
            headers = contract_headers(
                meta=meta, contract="state.v1", msg_id="", traceparent=held.header, expect_last=None, headers=None
            )
            self._bus.send(subjects.state(call.tenant, call.job), headers=headers)

    async def _tidy(self) -> None:
        await self.feeds.tidy()
        problems = await provision.problems(self._bus, ("JOBS", "RUNS", "OUTCOMES", "RECORDS", "STATES", "DEAD"))
        problems |= await self.feeds.problems()
        if await self._bus.consumer_info("OUTCOMES", streams.SCHEDULER_CONSUMER) is None:
            problems["consumer scheduler"] = (
                "consumer scheduler of stream OUTCOMES was deleted; its jobs are still there: restart this scheduler, which "
                "makes it again"
            )
        for name in self._problems.keys() - problems.keys():
            self._problem(name, "")
        for name, fix in problems.items():
            self._problem(name, fix)
        self._problems = problems

    # Ending

    async def stop(self, *, gracefully: bool) -> None:
        """Intake first; then what is being stored; then what waits goes back; the lease last, by whoever holds it."""
        for pump in self._pumps:
            await pump.stop()
        if gracefully:
            await self.outcomes.drain(DRAIN_S)
            self._fenced = True  # nothing new is placed from here on
            await self.dispatcher.drain(DRAIN_S)
        self._fenced = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(self.feeds.stop(), self.members.stop(), self.outcomes.stop(), self.handlers.stop())
        await self.dispatcher.stop()
        if self._records is not None:
            await self._records.stop()
        self._fleet.forget_placed()
        for name in self._problems:
            self._problem(name, "")
