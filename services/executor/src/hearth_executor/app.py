"""The composition root: what the executor is made of, and how it lives and ends."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Final

from hearth_contracts import streams, subjects
from hearth_executor.bodies import code_of
from hearth_executor.capacity import Reporter
from hearth_executor.config import Settings
from hearth_executor.containers.backend import ContainerBackend, ContainerSettings
from hearth_executor.failpoints import Failpoints
from hearth_executor.fleet_report import composer
from hearth_executor.handlers import Handlers
from hearth_executor.membership import Membership
from hearth_executor.offer import Backends, Versions
from hearth_executor.runs import Runner
from hearth_executor.service import Executor
from hearth_executor.settling import Settler
from hearth_kit import lifecycle
from hearth_kit.bus import Pump
from hearth_kit.clock import Clock
from hearth_kit.nats_bus import NatsBus
from hearth_kit.objects import Objects
from hearth_kit.registry import Registry
from hearth_kit.tracing import Tracer

_log = logging.getLogger(__name__)

Spawn = Callable[[Coroutine[Any, Any, None], str], "asyncio.Task[None]"]

#: How this process ends when the scheduler has given it up: whoever supervises starts it anew, under a new boot.
EXIT_GIVEN_UP: Final = 75
#: After the report that says "draining", runs that were placed meanwhile are still taken, and handed straight back.
LATE_RUNS_S: Final = 0.25
#: What was stopped by force travels back within this: grace, kill and two publishes.
HAND_BACK_S_MAX: Final = 15.0


class Service:
    """The executor, wired, on one bus and one set of backends."""

    def __init__(self, *, settings: Settings, bus: NatsBus, tracer: Tracer, clock: Clock, backends: Backends) -> None:
        executor_id = settings.executor_id
        failpoints = Failpoints(settings.failpoint)
        objects = Objects(bus)
        self._bus = bus
        self._id = executor_id
        self._tasks: list[asyncio.Task[None]] = []
        self._pumps: list[Pump] = []
        self.registry = Registry(bus)
        self.membership = Membership(
            bus=bus, executor=executor_id, silent_s=lambda: bus.silent_s, silence_s_max=settings.silence_s_max
        )
        settler = Settler(
            bus=bus, objects=objects, clock=clock, tracer=tracer, membership=self.membership, failpoints=failpoints,
            executor=executor_id,
        )  # fmt: skip
        runner = Runner(
            bus=bus, objects=objects, registry=self.registry, backends=backends, clock=clock, tracer=tracer,
            failpoints=failpoints, executor=executor_id, result_bytes_max=settings.result_bytes_max,
            output_bytes_max=settings.output_bytes_max,
        )  # fmt: skip
        self.executor = Executor(
            runner=runner, settler=settler, membership=self.membership, clock=clock, tracer=tracer, slots=settings.slot_count,
            heartbeat_s=settings.heartbeat_s,
        )  # fmt: skip
        compose = composer(
            executor=self.executor, offer=backends, clock=clock, executor_id=executor_id, name=settings.instance,
            labels=settings.label_map,
        )  # fmt: skip
        self.reporter = Reporter(bus=bus, executor=executor_id, compose=compose)
        self.executor.report_to(self.reporter)
        self._versions = Versions(registry=self.registry, backends=backends, code_of=lambda id_: code_of(objects, id_))
        backends.on_start(self._versions.again)
        backends.on_start(self.reporter.now)
        # Before every other hook: an acknowledgement of the broker's earlier life must not go out after the reconnect.
        bus.on_reconnect(self.executor.reconnected)
        bus.on_reconnect(self._look_at_lanes)

    async def start(self, spawn: Spawn) -> None:
        """From here on runs come in."""
        self.registry.on_change(self._versions.changed)
        await self.registry.start()
        handlers = Handlers(executor=self.executor, executor_id=self._id)
        await self._bus.subscribe(subjects.control(self._id), handlers.control)
        consumer = streams.executor_consumer(self._id)
        # The scheduler makes the consumers at our first report: until then the pumps ask in vain, and quietly.
        self._pumps = [
            await self._bus.pull("RUNS", consumer, handlers.run, lost=self.membership.missed),
            await self._bus.pull("RUNS_SYNC", consumer, handlers.run_sync, lost=_made_again),
        ]
        self.reporter.now()
        self._tasks = [
            spawn(self.reporter.repeat(), "capacity"),
            spawn(self.executor.heartbeat(), "heartbeat"),
            spawn(self.membership.watch(), "membership"),
        ]

    async def _look_at_lanes(self) -> None:
        self.reporter.now()
        for sync, stream in ((False, "RUNS"), (True, "RUNS_SYNC")):
            info = await self._bus.stream_info(stream)
            self.executor.lane_reset(info.last_sequence if info is not None else 0, sync=sync)

    async def drain(self, drain_s_max: float) -> None:
        """In this order: no new work (and say so, so that none is placed here), hand back what has not started, let what
        runs end, and only when that takes too long stop it and hand it back too. Heartbeats go on all the while, or the
        broker would deliver again what is still in hand."""
        _log.info("draining", extra={"running": self.executor.running})
        self.executor.drain()
        await asyncio.sleep(LATE_RUNS_S)
        for pump in self._pumps:
            await pump.stop()
        if not await self.executor.idle(drain_s_max):
            _log.warning("handing back what still runs", extra={"running": self.executor.running})
            self.executor.hand_back()
            if not await self.executor.idle(HAND_BACK_S_MAX):
                _log.error("some runs could not be handed back: they are placed anew once this executor is seen to be dead")
        self.reporter.now()

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _made_again(why: str) -> None:
    """RUNS_SYNC dies with the broker; the scheduler makes it and our consumer again, and the pump asks until then."""


async def serve(settings: Settings) -> None:
    async with lifecycle.running(settings.as_executor(), service="executor") as life:
        backends = Backends(make=lambda: ContainerBackend(_containers(settings)))
        async with backends.kept():
            service = Service(settings=settings, bus=life.bus, tracer=life.tracer, clock=life.clock, backends=backends)
            await service.start(life.start)
            life.ready()
            given_up = await _until_stopped(life, service.membership)
            if given_up:
                await service.executor.disown()
            else:
                await service.drain(settings.drain_s_max)
            await service.stop()
    if given_up:
        raise SystemExit(EXIT_GIVEN_UP)


async def _until_stopped(life: lifecycle.Life, membership: Membership) -> bool:
    """Until SIGTERM, or (True) until the scheduler has given this executor up."""
    stopping = asyncio.ensure_future(life.stopping.wait())
    lost = asyncio.ensure_future(membership.lost.wait())
    await asyncio.wait((stopping, lost), return_when=asyncio.FIRST_COMPLETED)
    given_up = lost.done() and not stopping.done()
    for waiter in (stopping, lost):
        waiter.cancel()
    return given_up


def _containers(settings: Settings) -> ContainerSettings:
    return ContainerSettings(
        platform=settings.platform,
        executor=settings.instance,
        boot=settings.boot,
        link=settings.link,
        oci_runtime=settings.sandbox_runtime or "runc",
        images=settings.image_map,
        memory_budget_mb=settings.memory_mb,
        generic=settings.generic_map,
    )
