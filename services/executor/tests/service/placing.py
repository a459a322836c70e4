"""What a scheduler and a gateway do to an executor, in the fewest words: consumers, placements, answers, records."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from in_process import Function, InProcess

from hearth_contracts import functions, names, registry, streams, subjects
from hearth_contracts.calls import Body, Call, Outcome, Record, Reply, Run
from hearth_contracts.enums import Lane
from hearth_contracts.fleet import Capacity, Control, ControlDone
from hearth_contracts.functions import CodeRef, FunctionHead, FunctionSpec, FunctionVersion
from hearth_executor.app import Service
from hearth_executor.config import Settings
from hearth_executor.offer import Backends
from hearth_kit.bus import ConsumerSpec, Stored, contract_headers
from hearth_kit.clock import SystemClock
from hearth_kit.message import Message
from hearth_kit.nats_bus import NatsBus
from hearth_kit.objects import Objects
from hearth_kit.tracing import Tracer

TENANT = "acme"
GATEWAY = "gateway-1"
T = TypeVar("T")


async def until(look: Callable[[], Awaitable[T | None]] | Callable[[], T | None], *, within_s: float = 10.0) -> T:
    """What `look` finds, once it finds something."""
    deadline = time.monotonic() + within_s
    while True:
        found: Any = look()
        if asyncio.iscoroutine(found):
            found = await found
        if found:
            return found
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.005)


class Running:
    """An executor in this process, and the hands of the others on its bus."""

    def __init__(self, *, bus: NatsBus, service: Service, settings: Settings, backend: InProcess, tracer: Tracer) -> None:
        self.bus = bus
        self.service = service
        self.executor = service.executor
        self.settings = settings
        self.backend = backend
        self.tracer = tracer
        self.id = settings.executor_id
        self.replies: list[tuple[Reply, bytes]] = []
        self.capacity: list[Capacity] = []
        self.heard: list[str] = []
        """Subjects in the order in which the broker passed them on."""
        self.epoch = 1

    async def listen(self) -> None:
        def hear(message: Message) -> None:
            self.heard.append(message.subject)
            if message.subject.startswith("hearth.v1.replies."):
                self.replies.append((message.meta(Reply), message.body))
            elif message.subject.startswith("hearth.v1.capacity."):
                self.capacity.append(message.meta(Capacity))

        self._hearing = await self.bus.subscribe("hearth.v1.>", hear)

    async def deafen(self) -> None:
        """Hear nothing more: hearing costs this process."""
        await self._hearing.stop()

    async def consumers(self, *, ack_wait_s: float = 30.0, lanes: tuple[str, ...] = ("RUNS", "RUNS_SYNC")) -> None:
        for stream in lanes:
            await self.bus.ensure_consumer(
                ConsumerSpec(
                    stream,
                    streams.executor_consumer(self.id),
                    ack_wait_s=ack_wait_s,
                    filter_subject=subjects.runs_of(self.id, sync=stream == "RUNS_SYNC"),
                )
            )

    async def deploy(self, name: str, version: int = 1, **spec: Any) -> FunctionVersion:
        objects = Objects(self.bus)
        code = f"{TENANT}-{name}-{version}-{names.new_boot()}"
        await objects.put("code", code, b"code of " + name.encode())
        made = FunctionVersion(
            tenant=TENANT, function=name, version=version, digest="d" * 64, spec=FunctionSpec(name=name, **spec),
            code=CodeRef(object=code, kind="file", filename="main.py", size=8, sha256="0" * 64), created_at=time.time(),
        )  # fmt: skip
        head = FunctionHead(tenant=TENANT, function=name, current=version, versions=(version,), updated_at=time.time())
        await self.bus.publish(f"$KV.FUNCTIONS.{made.key}", made.model_dump_json().encode())
        await self.bus.publish(f"$KV.FUNCTIONS.{functions.registry_key(TENANT, name)}", head.model_dump_json().encode())
        return made

    def call(self, name: str, body: bytes = b"{}", *, lane: Lane = Lane.SYNC, **fields: Any) -> Call:
        values: dict[str, Any] = {
            "job": names.new_job(name, time.time()), "tenant": TENANT, "function": name, "version": 1, "lane": lane,
            "gateway": GATEWAY if lane is Lane.SYNC else "", "submitted_at": time.time(), "input": Body(size=len(body)),
        }  # fmt: skip
        return Call(**(values | fields))

    async def place(
        self, call: Call, body: bytes = b"{}", *, placement: int = 0, is_last: bool = True, epoch: int = 0,
        traceparent: str = "", msg_id: str = "",
    ) -> Run:  # fmt: skip
        sync = call.lane is Lane.SYNC
        run = Run(call=call, executor=self.id, placement=placement, epoch=epoch or self.epoch, is_last=is_last,
                  placed_at=time.time(), reason="free")  # fmt: skip
        await self.bus.publish(
            subjects.run(self.id, call.job, sync=sync), body, meta=run,
            contract=(registry.RUN_SYNC if sync else registry.RUN).label,
            msg_id=msg_id or f"{call.job}.{call.attempt}.{placement}", traceparent=traceparent,
        )  # fmt: skip
        return run

    async def stored_record(self, call: Call) -> Stored | None:
        return await self.bus.get_last("RECORDS", subjects.record(TENANT, call.job))

    async def record(self, call: Call, within_s: float = 10.0) -> tuple[Record, bytes]:
        stored = await until(lambda: self.stored_record(call), within_s=within_s)
        return stored.message.meta(Record), stored.message.body

    async def reply(self, call: Call, within_s: float = 10.0) -> tuple[Reply, bytes]:
        return await until(lambda: next((pair for pair in self.replies if pair[0].job == call.job), None), within_s=within_s)

    async def outcome(self, call: Call, within_s: float = 10.0) -> tuple[Outcome, bytes]:
        sync = call.lane is Lane.SYNC
        subject = subjects.outcome(TENANT, call.function, call.job, sync=sync)
        stored = await until(lambda: self.bus.get_last("OUTCOMES_SYNC" if sync else "OUTCOMES", subject), within_s=within_s)
        return stored.message.meta(Outcome), stored.message.body

    async def left(self, stream: str) -> int:
        """Messages that nobody has acknowledged."""
        info = await self.bus.stream_info(stream)
        assert info is not None
        return info.messages

    async def settled(self, *, within_s: float = 10.0) -> None:
        """Nothing is in hand, and the broker has seen every acknowledgement."""

        async def look() -> bool:
            return not self.executor._held and not await self.left("RUNS") and not await self.left("RUNS_SYNC")

        await until(look, within_s=within_s)

    async def control(self, verb: str, job: str = "") -> ControlDone:
        headers = contract_headers(
            meta=Control(verb=verb, job=job), contract="control.v1", msg_id="", traceparent="", expect_last=None, headers=None
        )
        answer = await self.bus.request(subjects.control(self.id), headers=headers)
        return answer.meta(ControlDone)


@asynccontextmanager
async def executor(
    own: NatsBus, *, others: NatsBus, functions: Mapping[str, Function], consumers: bool = True, ack_wait_s: float = 30.0,
    traces_per_second: float = 0, units_max: int = 64, **fields: Any,
) -> AsyncIterator[Running]:  # fmt: skip
    """An executor on `own`, looked at over `others`."""
    settings = Settings(**({"instance": "executor-1", "slots": 4, "boot": "0a1b2c3d"} | fields))
    backend = InProcess(functions, units_max=units_max)
    clock = SystemClock()
    tracer = Tracer(service="executor", instance=settings.executor_id, bus=own, clock=clock, per_second=traces_per_second)
    backends = Backends(make=lambda: backend)
    async with backends.kept():
        service = Service(settings=settings, bus=own, tracer=tracer, clock=clock, backends=backends)
        running = Running(bus=others, service=service, settings=settings, backend=backend, tracer=tracer)
        await running.listen()
        for name in functions:
            await running.deploy(name)
        if consumers:
            await running.consumers(ack_wait_s=ack_wait_s)
        loop = asyncio.get_running_loop()
        await service.start(lambda work, name: loop.create_task(work, name=name))
        try:
            await until(lambda: running.capacity)  # by then the broker knows its subscriptions
            yield running
        finally:
            await service.executor.disown()
            for pump in service._pumps:
                await pump.stop()
            await service.stop()
