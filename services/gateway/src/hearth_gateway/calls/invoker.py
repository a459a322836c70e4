"""Admission and submission: from a caller's wish to a call that somebody holds."""

from dataclasses import dataclass

from hearth_contracts import names, subjects
from hearth_contracts.calls import Call, HttpRequest
from hearth_contracts.enums import FunctionState, Lane
from hearth_contracts.errors import InvalidName
from hearth_contracts.functions import FunctionVersion
from hearth_gateway.adapters.fleet import Fleet
from hearth_gateway.calls import whereabouts
from hearth_gateway.calls.bodies import Input
from hearth_gateway.calls.custody import Custody, Held, write_pending
from hearth_gateway.domain import admission
from hearth_gateway.domain.admission import Load
from hearth_gateway.errors import FunctionNotFound, NoBroker, NoCapacity, QueueFull, StoreFull, Unavailable
from hearth_kit.bus import Bus
from hearth_kit.clock import Clock
from hearth_kit.errors import BusError
from hearth_kit.registry import Registry
from hearth_kit.tracing import Context, Tracer


@dataclass(frozen=True, slots=True)
class Wish:
    """One call as it was asked for."""

    job: str
    version: FunctionVersion
    input: Input
    submitted_at: float
    caller: str
    """Prefix of the key."""
    http: HttpRequest | None = None
    replay_of: str = ""
    placement: int = 0
    """More than 0 for a call that may have been submitted before."""

    def call(self, lane: Lane, gateway: str) -> Call:
        return Call(
            job=self.job, tenant=self.version.tenant, function=self.version.function, version=self.version.version, lane=lane,
            gateway=gateway, submitted_at=self.submitted_at, input=self.input.body, http=self.http, replay_of=self.replay_of,
            caller=self.caller, placement=self.placement,
        )  # fmt: skip


class Invoker:
    """Submits calls on both lanes."""

    def __init__(self, *, bus: Bus, clock: Clock, tracer: Tracer, registry: Registry, fleet: Fleet, custody: Custody) -> None:
        self._bus = bus
        self._clock = clock
        self._tracer = tracer
        self._registry = registry
        self._fleet = fleet
        self._custody = custody

    async def version(self, tenant: str, function: str) -> FunctionVersion:
        """The current version, from memory; the broker is asked only about what this process has not heard of."""
        if not self._bus.connected:
            raise NoBroker
        head = self._registry.head(tenant, function)
        if head is None:
            try:
                names.name("function", function)
            except InvalidName as error:
                raise FunctionNotFound(f"no function {function[:80]!r}") from error
            fresh = await self._registry.fresh_head(tenant, function)
            if fresh is None or fresh[1].deleted:
                raise FunctionNotFound(f"no function {function!r}")
            head = fresh[1]
        version = self._registry.known(tenant, function, head.current)
        if version is None:
            version = await self._registry.version(tenant, function, head.current)
            if version is None:
                raise FunctionNotFound(f"no function {function!r}")
        if version.state is not FunctionState.READY:
            raise FunctionNotFound(f"{function} is {version.state.value}: {version.reason}")
        return version

    def admit(self, version: FunctionVersion, *, sync: bool) -> None:
        """Refuse what cannot be taken, from memory alone. An async job needs only the broker: it may wait for capacity."""
        fleet = self._fleet
        if fleet.records_full:
            raise StoreFull
        if sync:
            missing = fleet.away()
            if missing:
                raise NoCapacity(missing)
            if version.spec.placement and not fleet.carries(version.spec.placement):
                labels = ", ".join(f"{name}: {value}" for name, value in version.spec.placement.items())
                raise NoCapacity(f"no executor carries the labels {labels}")
        spec = version.spec
        load = Load(
            waiting=fleet.waiting(version.tenant, version.function),
            held=self._custody.of_function(version.tenant, version.function), slots=fleet.slots,
        )  # fmt: skip
        if admission.queue_full(load, depth=spec.queue.depth, running_max=spec.scale.max):
            raise QueueFull(f"{spec.queue.depth} calls of {version.function} wait already")

    async def sync(self, wish: Wish, server: Context, *, durable: bool = False) -> Held:
        """Take the call into custody and submit it. `durable`: PENDING is written first, for callers who may come back."""
        call = wish.call(Lane.SYNC, self._bus.instance)
        producer = server.child() if server.sampled else server
        header = producer.header
        held = self._custody.hold(call, wish.input.inline, header)
        if durable:
            try:
                await self._custody.show(held)
            except BaseException as error:
                self._custody.abandon(held, error if isinstance(error, BusError) else Unavailable())
                raise
        started = self._clock.now()
        await self._custody.submit(held)
        if server.sampled:
            self._sent(server, producer, call, "hearth.v1.calls", started)
        return held

    async def submit(self, wish: Wish, server: Context) -> Call:
        """Into JOBS, then PENDING: a state means that the broker has the job (DELIVERY rule 10)."""
        call = wish.call(Lane.ASYNC, "")
        producer = server.child() if server.sampled else server
        started = self._clock.now()
        while True:
            ack = await self._bus.publish(
                subjects.job(call.tenant, call.function), wish.input.inline, meta=call, contract="job.v1",
                msg_id=f"{call.job}.{call.attempt}.{call.placement}", traceparent=producer.header,
            )  # fmt: skip
            if not ack.duplicate or await whereabouts.is_somewhere(self._bus, call, ack.sequence):
                break
            call = call.model_copy(update={"placement": call.placement + 1})
        if server.sampled:
            self._sent(server, producer, call, "hearth.v1.jobs", started)
        await write_pending(self._bus, self._clock, call, producer.header, sequence=0 if ack.duplicate else ack.sequence)
        return call

    def _sent(self, server: Context, producer: Context, call: Call, destination: str, started: float) -> None:
        self._tracer.span(
            producer, f"send {destination}", parent=server.span_id, start=started, end=self._clock.now(), kind="producer",
            attributes={
                "messaging.system": "nats", "messaging.destination.template": destination, "faas.name": call.function,
                "faas.invocation_id": call.job,
            },
        )  # fmt: skip
