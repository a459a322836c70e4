"""The composition root: what the scheduler is made of, and how it lives and ends."""

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from hearth_contracts import streams, subjects
from hearth_contracts.errors import UndecodableMessage
from hearth_contracts.fleet import Capacity
from hearth_contracts.functions import FunctionHead
from hearth_kit import lifecycle
from hearth_kit.bus import Bus
from hearth_kit.clock import Clock
from hearth_kit.errors import BusError
from hearth_kit.lease import Held as Lease
from hearth_kit.lease import Role
from hearth_kit.message import Message
from hearth_kit.registry import Registry
from hearth_kit.tracing import Tracer
from hearth_scheduler import metrics
from hearth_scheduler.config import Settings
from hearth_scheduler.domain.fleet import Fleet
from hearth_scheduler.term import Term

_log = logging.getLogger(__name__)

ROLE: Final = "scheduler"
#: A term that could not begin is tried again after this.
AGAIN_S: Final = 0.25


class Scheduler:
    """Stands by with warm state; serves a term whenever the lease is its own."""

    def __init__(
        self, *, settings: Settings, bus: Bus, tracer: Tracer, clock: Clock, problem: Callable[[str, str], None]
    ) -> None:
        self._settings = settings
        self._bus = bus
        self._tracer = tracer
        self._clock = clock
        self._problem = problem
        self._stopping = False
        self._connections = 0
        self._ended: asyncio.Event = asyncio.Event()
        self._stop: asyncio.Event = asyncio.Event()
        self._ended.set()
        self._undecodable: set[str] = set()
        self.registry = Registry(bus)
        self.fleet = Fleet(suspect_s=settings.suspect_after_s, dead_s=settings.dead_after_s)
        self.term: Term | None = None

    async def start(self) -> None:
        # First of all hooks: whether a message may be settled must be in doubt before anything else is awaited.
        self._bus.on_reconnect(self._reconnected)
        await self.registry.start()
        self.registry.on_change(self._function_changed)
        await self._bus.subscribe(subjects.CAPACITY_ALL, self._capacity)
        try:
            for stored in await self._bus.get_last_each(streams.CAPACITY.name, [subjects.CAPACITY_ALL]):
                self._capacity(stored.message)
        except BusError as error:
            _log.info("no reports to begin with: %s", error)  # in memory, and perhaps to be made by us

    async def lead(self) -> None:
        """As long as the process."""
        role = Role(bus=self._bus, role=ROLE, holder=self._bus.instance, clock=self._clock)
        while not self._stopping:
            try:
                async with role.hold() as lease:
                    self._ended.clear()
                    await self._serve(lease)
            finally:
                self._ended.set()  # only now: the lease is given back when the block above is left

    async def _serve(self, lease: Lease) -> None:
        term = Term(
            bus=self._bus, fleet=self.fleet, registry=self.registry, tracer=self._tracer, clock=self._clock,
            settings=self._settings, lease=lease, problem=self._problem,
        )  # fmt: skip
        connections = self._connections
        try:
            await term.start()
            self.term = term
            if connections != self._connections:
                await self._reconnected()  # it was lost meanwhile, and what was made with it
            for executor in list(self.fleet.executors.values()):
                term.capacity(executor) if executor.reported else None
            metrics.ACTIVE.set(1)
            metrics.EPOCH.set(lease.epoch)
            _log.info("active", extra={"epoch": lease.epoch})
            await self._until_over(lease, term)
        except BusError as error:
            _log.warning("a term could not begin: %s", error)
            await asyncio.sleep(AGAIN_S)
        finally:
            self.term = None
            metrics.ACTIVE.set(0)
            await term.stop(gracefully=lease.ours and self._stopping)
            _log.info("standing by")

    async def _until_over(self, lease: Lease, term: Term) -> None:
        loop = asyncio.get_running_loop()
        ends = [loop.create_task(lease.lost.wait()), loop.create_task(self._stop.wait())]
        try:
            done, _ = await asyncio.wait([*ends, *term.failed()], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()  # a side task that failed ends the process
        finally:
            for task in ends:
                task.cancel()

    async def stop(self) -> None:
        """Serve no longer; returns when the term, if there was one, is over and the lease given back."""
        self._stopping = True
        self._stop.set()
        await self._ended.wait()

    # Hearing

    async def _reconnected(self) -> None:
        self._connections += 1
        if self.term is not None:
            self.term.doubt()
            await self.term.restore()

    def _function_changed(self, head: FunctionHead) -> None:
        if self.term is not None:
            self.term.function_changed(head)

    def _capacity(self, message: Message) -> None:
        try:
            report = message.meta(Capacity)
        except UndecodableMessage as error:
            if message.subject not in self._undecodable:
                self._undecodable.add(message.subject)
                _log.error("an executor's reports do not parse: %s", error)
            return
        executor = self.fleet.heard(report, self._clock.monotonic())
        if executor is not None and self.term is not None:
            self.term.capacity(executor)


async def serve(settings: Settings) -> None:
    async with lifecycle.running(settings, service="scheduler") as life:

        def problem(name: str, fix: str) -> None:
            if fix:
                life.problems[name] = fix
            else:
                life.problems.pop(name, None)

        scheduler = Scheduler(settings=settings, bus=life.bus, tracer=life.tracer, clock=life.clock, problem=problem)
        await scheduler.start()
        lead = life.start(scheduler.lead(), "lead")
        life.ready()
        await life.stopping.wait()
        await scheduler.stop()
        lead.cancel()
