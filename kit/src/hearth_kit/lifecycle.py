"""How a service lives, the same for all: settings, logs, broker, ready, SIGTERM, drain, end.

    async def serve(settings: Settings) -> None:
        async with lifecycle.running(settings, service="scheduler") as life:
            ...build and start...
            life.ready()
            await life.stopping.wait()
            ...drain in phases...

    lifecycle.main(serve, Settings)

Whatever ends one of `life`'s tasks with an exception ends the process: a service is never half alive.
"""

import asyncio
import contextlib
import gc
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import uvloop
from pydantic import ValidationError

from hearth_contracts import subjects
from hearth_contracts.fleet import Presence
from hearth_kit import batches, health, logs
from hearth_kit.bus import contract_headers
from hearth_kit.clock import Clock, SystemClock
from hearth_kit.errors import BusError
from hearth_kit.nats_bus import NatsBus, connect
from hearth_kit.otlp import Exporter
from hearth_kit.settings import ServiceSettings
from hearth_kit.tracing import Tracer

_log = logging.getLogger(__name__)

#: Broker versions whose behaviours the delivery rules were reproduced on.
BROKER_VERSION_MIN: Final = (2, 12, 0)
#: How often a process says that it lives. A gateway that was started anew knows the others after so long.
PRESENCE_S: Final = 0.5
#: Objects made between two young collections: a call makes a few hundred that die at once, by their own counts.
GC_ALLOCATIONS: Final = 20_000
FLUSH_S: Final = 0.5
#: Until the broker is reached, a stop is said again this often.
STOP_AGAIN_S: Final = 0.2

S = TypeVar("S", bound=ServiceSettings)


class BrokerTooOld(BusError):
    """This broker is too old."""

    code = "E_BROKER_VERSION"


@dataclass(eq=False)
class Life:
    """What a running service has at hand."""

    bus: NatsBus
    tracer: Tracer
    clock: Clock
    stopping: asyncio.Event
    tasks: asyncio.TaskGroup
    presence: Presence
    problems: dict[str, str] = field(default_factory=dict)
    """What keeps the service from being ready, each with its fix."""
    notes: dict[str, str] = field(default_factory=dict)
    """For people, shown in the fleet."""

    side: "list[asyncio.Task[None]]" = field(default_factory=list)
    became_ready: asyncio.Event = field(default_factory=asyncio.Event)

    def start(self, work: Coroutine[Any, Any, None], name: str) -> "asyncio.Task[None]":
        """A side task that lives as long as the service; if it fails, the service ends."""
        task = self.tasks.create_task(work, name=name)
        self.side.append(task)
        return task

    def ready(self) -> None:
        self.problems.pop("starting", None)
        self.became_ready.set()
        # What a start has made lives as long as the service: no collection needs to look at it again.
        gc.collect()
        gc.freeze()
        gc.set_threshold(GC_ALLOCATIONS, 20, 20)
        _log.info("ready", extra={"pid": os.getpid()})


@contextlib.asynccontextmanager
async def running(settings: ServiceSettings, *, service: str, with_health: bool = True) -> AsyncIterator[Life]:
    """A service from its first log line to its last. Leaving the block cancels the side tasks, then closes the bus."""
    logs.configure(service=service, instance=settings.instance, level=settings.log_level)
    clock = SystemClock()
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    this = asyncio.current_task()
    assert this is not None
    waiting = True

    def stop() -> None:
        stopping.set()
        if waiting:
            this.cancel()  # there is nothing to drain: the broker was never reached
            loop.call_later(STOP_AGAIN_S, stop)  # the client library swallows a cancellation at some points

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    async with contextlib.AsyncExitStack() as stack:
        user, password = settings.broker_login()
        try:
            bus = await stack.enter_async_context(
                connect(url=settings.nats_url, instance=settings.instance, user=user, password=password)
            )
        except asyncio.CancelledError:
            if stopping.is_set():
                raise SystemExit(0) from None
            raise
        finally:
            waiting = False
        _check_version(bus.server_version)
        exporter = Exporter(settings.otlp_endpoint) if settings.otlp_endpoint else None
        tracer = Tracer(
            service=service, instance=settings.instance, bus=bus, clock=clock,
            per_second=settings.traces_per_second, exporter=exporter,
        )  # fmt: skip
        presence = Presence(service=service, instance=settings.instance, pid=os.getpid(), started_at=clock.now(), at=clock.now())
        async with asyncio.TaskGroup() as tasks:
            life = Life(bus, tracer, clock, stopping, tasks, presence, {"starting": "wait until the service is ready"})
            life.start(_presence(life), "presence")
            life.start(_spans(tracer), "spans")
            life.start(_closed(bus), "connection")
            try:
                async with health.serve(settings.metrics_port if with_health else 0, lambda: _problems(life)):
                    yield life
            finally:
                for task in life.side:
                    task.cancel()
        with contextlib.suppress(BusError, TimeoutError):
            await asyncio.wait_for(tracer.flush(), 2)


def _problems(life: Life) -> dict[str, str]:
    if life.bus.connected:
        return life.problems
    return {**life.problems, "broker": "start the broker, or mend HEARTH_NATS_URL"}


def _check_version(version: str) -> None:
    numbers = tuple(int(part) for part in version.split("-", maxsplit=1)[0].split(".")[:3] if part.isdigit())
    if numbers < BROKER_VERSION_MIN:
        wanted = ".".join(map(str, BROKER_VERSION_MIN))
        raise BrokerTooOld(f"it is {version}, Hearth needs {wanted} or later: install a newer nats-server")


async def _presence(life: Life) -> None:
    subject = subjects.presence(life.presence.service, life.presence.instance)
    while True:
        now = life.presence.model_copy(update={"at": life.clock.now(), "ready": not life.problems, "notes": life.notes})
        headers = contract_headers(meta=now, contract="presence.v1", msg_id="", traceparent="", expect_last=None, headers=None)
        with contextlib.suppress(BusError):
            life.bus.send(subject, headers=headers)
        if life.became_ready.is_set():
            await asyncio.sleep(PRESENCE_S)
        else:  # becoming ready is told at once
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(life.became_ready.wait(), PRESENCE_S)


async def _spans(tracer: Tracer) -> None:
    while True:
        await asyncio.sleep(FLUSH_S)
        await tracer.flush()


async def _closed(bus: NatsBus) -> None:
    await bus.closed.wait()
    raise BusError("The connection has ended for good; the process ends so that it is started anew.")


def main(serve: Callable[[S], Coroutine[Any, Any, None]], settings: type[S]) -> None:
    """`__main__` of every service."""
    try:
        chosen = settings()  # pyright: ignore[reportCallIssue] - from the environment
    except ValidationError as error:
        for problem in error.errors(include_url=False):
            print(f"settings: {_variable(problem['loc'])}{problem['msg'].removeprefix('Value error, ')}", file=sys.stderr)
        raise SystemExit(2) from None
    batches.work_in_batches()
    try:
        uvloop.run(serve(chosen))
    except Exception as error:
        _log.critical("ended by an error", exc_info=error)
        raise SystemExit(1) from None


def _variable(where: tuple[int | str, ...]) -> str:
    name = "_".join(str(part) for part in where).upper()
    if not name:
        return ""
    return f"{name}: " if name.startswith(("HEARTH_", "OTEL_")) else f"HEARTH_{name}: "
