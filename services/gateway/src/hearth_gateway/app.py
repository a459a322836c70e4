"""The composition root: the only file that knows every part of the gateway by name."""

import asyncio
import contextlib
import importlib.metadata
import logging
from collections.abc import AsyncIterator
from typing import Any

from hearth_contracts import registry as contracts
from hearth_gateway.adapters.ai_asker import AiAsker
from hearth_gateway.adapters.fleet import Fleet
from hearth_gateway.adapters.keyring import KeyRing
from hearth_gateway.calls.custody import HAND_OFF_S_MAX, Custody
from hearth_gateway.calls.direct import DirectInvoke
from hearth_gateway.calls.idempotency import IdempotencyKeys
from hearth_gateway.calls.invoker import Invoker
from hearth_gateway.config import Settings
from hearth_gateway.domain import rate_limit
from hearth_gateway.functions.deploy import Deployer
from hearth_gateway.http import openapi, routing, server
from hearth_gateway.http.front import Front
from hearth_gateway.http.functions_api import FunctionRoutes
from hearth_gateway.http.invoke import InvokeRoutes
from hearth_gateway.http.jobs_api import JobRoutes
from hearth_gateway.http.keys_api import KeyRoutes
from hearth_gateway.http.protocol import Limits
from hearth_gateway.http.publish_api import PublishRoutes
from hearth_gateway.http.routing import Endpoint
from hearth_gateway.http.server import Listening
from hearth_gateway.http.system_api import SystemRoutes
from hearth_gateway.jobs.cancel import Canceller
from hearth_gateway.jobs.lookup import Jobs
from hearth_kit import lifecycle
from hearth_kit.lifecycle import Life
from hearth_kit.objects import Objects
from hearth_kit.registry import Registry

_log = logging.getLogger(__name__)


async def serve(settings: Settings) -> None:
    async with lifecycle.running(settings, service=contracts.GATEWAY, with_health=False) as life, gateway(settings, life):
        await life.stopping.wait()


@contextlib.asynccontextmanager
async def gateway(settings: Settings, life: Life) -> AsyncIterator[Listening]:
    """A gateway that answers; leaving drains it."""
    bus, clock, tracer = life.bus, life.clock, life.tracer
    objects, registry = Objects(bus), Registry(bus)
    keyring = KeyRing(bus=bus, clock=clock, default=rate_limit.limit(settings.rate_per_s, settings.rate_burst))
    fleet = Fleet(bus=bus, clock=clock, silent_s_max=settings.silent_s_max, streams_check_s=settings.streams_check_s)
    custody = Custody(bus=bus, clock=clock, held_max=settings.held_max)
    jobs = Jobs(bus=bus, custody=custody)
    invoker = Invoker(bus=bus, clock=clock, tracer=tracer, registry=registry, fleet=fleet, custody=custody)
    deployer = Deployer(bus=bus, clock=clock, registry=registry, objects=objects)
    canceller = Canceller(bus=bus, clock=clock, jobs=jobs, fleet=fleet, registry=registry)
    direct = DirectInvoke(bus=bus, clock=clock, tracer=tracer, invoker=invoker, keyring=keyring)
    ai = AiAsker(bus=bus, fleet=fleet)
    document: dict[str, Any] = {}

    def problems() -> dict[str, str]:
        away = {} if bus.connected else {"broker": "start the broker, or mend HEARTH_NATS_URL"}
        return {**life.problems, **fleet.stream_problems, **away}

    calls = InvokeRoutes(
        bus=bus, clock=clock, tracer=tracer, keyring=keyring, invoker=invoker, custody=custody, jobs=jobs, objects=objects,
        idempotency=IdempotencyKeys(bus), heartbeat_s=settings.heartbeat_s,
    )  # fmt: skip
    endpoints: list[Endpoint] = [
        *FunctionRoutes(deployer=deployer, registry=registry).endpoints(),
        *calls.endpoints(),
        *JobRoutes(
            jobs=jobs, canceller=canceller, invoker=invoker, objects=objects, clock=clock, tracer=tracer,
            heartbeat_s=settings.heartbeat_s,
        ).endpoints(),
        *KeyRoutes(keyring=keyring).endpoints(),
        *PublishRoutes(bus=bus, ai=ai).endpoints(),
        *SystemRoutes(
            platform=settings.platform, bus=bus, fleet=fleet, problems=problems, held=lambda: len(custody),
            document=lambda: document,
        ).endpoints(),
    ]  # fmt: skip
    document.update(openapi.document(endpoints, version=importlib.metadata.version("hearth-gateway")))
    app = Front(calls=calls, rest=routing.application(endpoints, keyring))

    # What the first request needs, before the first request.
    await registry.start()
    await keyring.start()
    await keyring.adopt_file(settings.admin_key_path, tenant=settings.tenant)
    await fleet.start()
    await custody.start()
    await ai.start()
    side = [
        life.start(keyring.keep(), "keys"),
        life.start(fleet.keep(), "fleet"),
        life.start(fleet.watch_streams(), "streams"),
        life.start(custody.keep(), "custody"),
    ]
    limits = Limits(settings.header_s_max, settings.body_stall_s_max, settings.write_stall_s_max)
    try:
        async with server.serving(
            app, host=settings.http_host, port=settings.http_port, keep_alive_s=settings.keep_alive_s,
            connections_max=settings.connections_max, limits=limits, drain_s_max=settings.drain_s_max + HAND_OFF_S_MAX,
        ) as listening:  # fmt: skip
            await direct.start()
            life.notes["http"] = f"{settings.http_host}:{listening.port}"
            _log.info("listening", extra={"host": settings.http_host, "port": listening.port})
            life.ready()
            try:
                yield listening
            finally:
                life.problems["stopping"] = "another gateway answers"
                await _drain(settings, listening, custody, jobs, direct, canceller)
    finally:
        # Last: until here held calls are found again after a lost connection.
        for task in side:
            task.cancel()
        await asyncio.gather(*side, return_exceptions=True)


async def _drain(
    settings: Settings, listening: Listening, custody: Custody, jobs: Jobs, direct: DirectInvoke, canceller: Canceller
) -> None:
    """Intake first, so that nothing new comes; then streams, whose clients go elsewhere at once; then what is held."""
    await direct.stop()
    closing = asyncio.get_running_loop().create_task(listening.close(), name="http-close")
    jobs.stop()
    await custody.drain(settings.drain_s_max)
    await direct.drain(1.0)
    await canceller.drain()
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(closing, 5.0)
    _log.info("drained")
