"""What stands around a scheduler in its tests: executors and a gateway that speak the contracts, on a real broker."""

import asyncio
import contextlib
import itertools
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from hearth_contracts import names, streams, subjects
from hearth_contracts.calls import (
    Body,
    Call,
    Ending,
    Failure,
    Moved,
    MovedAnswer,
    Outcome,
    Record,
    Reply,
    Run,
    StateChange,
    Timings,
)  # fmt: skip
from hearth_contracts.enums import Lane, OutcomeKind, Reason, State
from hearth_contracts.fleet import Capacity
from hearth_contracts.functions import CodeRef, FunctionHead, FunctionSpec, FunctionVersion, registry_key
from hearth_kit.background import Background
from hearth_kit.bus import contract_headers
from hearth_kit.clock import SystemClock
from hearth_kit.errors import BusError, WrongLastSequence
from hearth_kit.message import Message
from hearth_kit.nats_bus import NatsBus, connect
from hearth_kit.tracing import Tracer
from hearth_scheduler.app import Scheduler
from hearth_scheduler.config import Settings

TENANT = "acme"


async def until(condition: Callable[[], Any], *, within_s: float = 15.0, what: str = "") -> None:
    """Poll until it holds."""
    try:
        async with asyncio.timeout(within_s):
            while not condition():
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"within {within_s} s this did not become true: {what or condition}") from None


@dataclass
class Ran:
    """One run that reached an executor."""

    executor: str
    job: str
    attempt: int
    placement: int
    epoch: int
    reason: str
    at: float
    is_last: bool
    body: bytes


Behave = Callable[[Run, bytes], "str | float"]
"""What a run does: a duration in seconds, or one of `error`, `timeout`, `bad_result`, `hand back`, `refuse`, `hang`."""


def quick(run: Run, body: bytes) -> float:
    return 0.0


@dataclass
class FakeExecutor:
    """Slots, warm sandboxes, reports, runs, records: as the contracts say, and nothing inside."""

    bus: NatsBus
    id: str
    ran: list[Ran]
    slots: int = 4
    labels: dict[str, str] = field(default_factory=dict)
    generic: int = 2
    behave: Behave = quick
    room: int = 0
    warm: dict[str, int] = field(default_factory=dict)
    busy: dict[str, int] = field(default_factory=dict)
    accepted: dict[bool, int] = field(default_factory=lambda: {False: 0, True: 0})
    epoch: int = 0
    draining: bool = False
    frozen: bool = False
    dead: bool = False
    running: int = 0
    most_running: int = 0
    held: dict[str, Message] = field(default_factory=dict)
    background: Background = field(default_factory=lambda: Background("fake-executor"))
    _due: asyncio.TimerHandle | None = None
    _free: asyncio.Semaphore | None = None
    _pumps: list[Any] = field(default_factory=list)
    _repeat: "asyncio.Task[None] | None" = None

    async def start(self) -> None:
        consumer = streams.executor_consumer(self.id)
        self._pumps = [
            await self.bus.pull("RUNS", consumer, lambda m: self._run(m, sync=False), lost=lambda why: None),
            await self.bus.pull("RUNS_SYNC", consumer, lambda m: self._run(m, sync=True), lost=lambda why: None),
        ]
        self.bus.on_reconnect(self._reconnected)
        self.report()
        self._repeat = asyncio.get_running_loop().create_task(self._again())

    def _reconnected(self) -> None:
        self.accepted[True] = 0
        self.report()

    async def _again(self) -> None:
        while True:
            await asyncio.sleep(0.25)
            self.report()

    def report(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None
        if self.frozen or self.dead:
            return
        assigned = dict(self.warm)
        for key, count in self.busy.items():
            assigned[key] = assigned.get(key, 0) + count
        usable = not self.draining
        meta = Capacity(
            executor=self.id, name=self.id.rsplit("-", 1)[0], at=time.time(), slots=self.slots,
            free=max(0, self.slots - self.running) if usable else 0,
            queue_room=max(0, self.room - max(0, self.running - self.slots)) if usable else 0,
            draining=self.draining, memory_free_mb=4096, labels=self.labels, backends=("container",), runtimes=("python",),
            warm={key: count for key, count in self.warm.items() if count}, assigned={k: v for k, v in assigned.items() if v},
            generic={"python/128": self.generic}, accepted=self.accepted[False], accepted_sync=self.accepted[True],
            epoch=self.epoch, running=min(self.running, self.slots),
        )  # fmt: skip
        headers = contract_headers(meta=meta, contract="capacity.v1", msg_id="", traceparent="", expect_last=None, headers=None)
        with contextlib.suppress(BusError):
            self.bus.send(subjects.capacity(self.id), headers=headers)

    def _changed(self) -> None:
        if self._due is None:
            self._due = asyncio.get_running_loop().call_later(0.01, self.report)

    def _run(self, message: Message, *, sync: bool) -> None:
        if self.dead:
            return
        run = message.meta(Run)
        if message.delivered == 1:
            self.accepted[sync] = message.sequence
        call = run.call
        self.ran.append(
            Ran(self.id, call.job, call.attempt, run.placement, run.epoch, run.reason, time.time(), run.is_last, message.body)
        )
        self.epoch = max(self.epoch, run.epoch)
        # At once: a report that says "accepted" counts it as running.
        does = self.behave(run, message.body)
        if self.draining:
            does = "hand back"
        if does in ("hand back", "refuse"):
            kind = OutcomeKind.HANDED_BACK if does == "hand back" else OutcomeKind.REFUSED
            self.background.start(self._outcome(run, message, Outcome(run=run, kind=kind), sync=sync))
            return
        key = f"{call.tenant}.{call.function}.{call.version}"
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        if self.warm.get(key):
            self.warm[key] -= 1
        self.busy[key] = self.busy.get(key, 0) + 1
        self.held[call.job] = message
        self._changed()
        self.background.start(self._carry(run, message, does, key, sync=sync))

    async def _carry(self, run: Run, message: Message, does: "str | float", key: str, *, sync: bool) -> None:
        call = run.call
        if does == "hang":
            await asyncio.Event().wait()
        if self._free is None:
            self._free = asyncio.Semaphore(self.slots)
        async with self._free:  # what came into the short queue waits here
            started = time.time()
            if isinstance(does, float) and does:
                await asyncio.sleep(does)
        if self.dead:
            return
        self.held.pop(call.job, None)
        self.running -= 1
        self.busy[key] -= 1
        self.warm[key] = self.warm.get(key, 0) + 1
        self._changed()
        ending = Ending(
            state=State.SUCCESS, executor=self.id, attempt=call.attempt, placement=run.placement,
            result=Body(size=len(message.body)),
            timings=Timings(submitted_at=call.submitted_at, placed_at=run.placed_at, started_at=started, finished_at=time.time()),
        )  # fmt: skip
        if isinstance(does, str):
            ending = ending.model_copy(
                update={
                    "state": State.FAILED, "reason": Reason(does), "failure": Failure(type="Boom", message="as told"),
                    "result": Body(),
                }
            )  # fmt: skip
            if not run.is_last and does != "bad_result":
                await self._outcome(run, message, Outcome(run=run, kind=OutcomeKind.FAILED, ending=ending), sync=sync)
                return
        result = message.body if ending.state is State.SUCCESS else b""
        if sync and call.attempt == 1 and run.placement == 0:
            self._reply(call, ending, result)
        record = Record(
            job=call.job, tenant=call.tenant, function=call.function, version=call.version, lane=call.lane, ending=ending,
            input=Body(size=len(message.body)),
        )  # fmt: skip
        try:
            await self.bus.publish(
                subjects.record(call.tenant, call.job), message.body + result, meta=record, contract="record.v1", expect_last=0
            )
            if sync and not (call.attempt == 1 and run.placement == 0):
                self._reply(call, ending, result)
        except WrongLastSequence:
            stored = await self.bus.get_last("RECORDS", subjects.record(call.tenant, call.job))
            assert stored is not None
            won = stored.message.meta(Record)
            self._reply(call, won.ending, won.parts(stored.message.body)[1])
        message.ack()

    def _reply(self, call: Call, ending: Ending, result: bytes) -> None:
        headers = contract_headers(
            meta=Reply(job=call.job, ending=ending),
            contract="reply.v1",
            msg_id="",
            traceparent="",
            expect_last=None,
            headers=None,
        )
        if call.gateway:
            self.bus.send(subjects.reply(call.gateway, call.job), result, headers=headers)

    async def _outcome(self, run: Run, message: Message, outcome: Outcome, *, sync: bool) -> None:
        call = run.call
        await self.bus.publish(
            subjects.outcome(call.tenant, call.function, call.job, sync=sync), message.body, meta=outcome,
            contract="outcome-sync.v1" if sync else "outcome.v1",
            msg_id=f"{call.job}.{call.attempt}.{run.placement}.outcome", traceparent=message.traceparent,
        )  # fmt: skip
        message.ack()

    async def stop(self) -> None:
        self.dead = True
        if self._repeat is not None:
            self._repeat.cancel()
            await asyncio.gather(self._repeat, return_exceptions=True)
        if self._due is not None:
            self._due.cancel()
        for pump in self._pumps:
            await pump.stop()
        await self.background.cancel()


@dataclass
class Answer:
    ending: Ending
    body: bytes


class World:
    """A tenant's functions, a gateway's callers, executors and schedulers on one broker."""

    def __init__(self, bus: NatsBus, url: str, stack: contextlib.AsyncExitStack) -> None:
        self.bus = bus
        self.url = url
        self.stack = stack
        self.ran: list[Ran] = []
        self.executors: dict[str, FakeExecutor] = {}
        self.replies: dict[str, list[Answer]] = {}
        self.asked: list[Moved] = []
        self.answered: dict[str, bool] = {}
        self.gateway = bus.instance
        self.problems: dict[str, dict[str, str]] = {}
        """What each scheduler says is wrong."""
        self._boots = itertools.count(0x10000000)

    async def start(self) -> None:
        await self.bus.subscribe(subjects.replies_of(self.gateway), self._replied)
        await self.bus.subscribe(subjects.moved(self.gateway), self._moved)

    def _replied(self, message: Message) -> None:
        self.replies.setdefault(message.subject.rpartition(".")[2], []).append(Answer(message.meta(Reply).ending, message.body))

    def _moved(self, message: Message) -> None:
        moved = message.meta(Moved)
        self.asked.append(moved)
        answer = MovedAnswer(held=True, answered=self.answered.get(moved.job, False))
        message.respond(
            b"",
            contract_headers(meta=answer, contract="moved-answer.v1", msg_id="", traceparent="", expect_last=None, headers=None),
        )

    async def deploy(self, name: str, *, tenant: str = TENANT, **spec: Any) -> FunctionVersion:
        version = FunctionVersion(
            tenant=tenant, function=name, version=1, digest="d", spec=FunctionSpec(name=name, **spec),
            code=CodeRef(object="o", kind="file", filename="main.py", size=1, sha256="0" * 64), created_at=time.time(),
        )  # fmt: skip
        await self.bus.publish(f"$KV.FUNCTIONS.{registry_key(tenant, name, 1)}", version.model_dump_json().encode())
        await self.head(name, tenant=tenant)
        return version

    async def head(self, name: str, *, tenant: str = TENANT, deleted: bool = False) -> None:
        head = FunctionHead(tenant=tenant, function=name, current=1, versions=(1,), deleted=deleted, updated_at=time.time())
        await self.bus.publish(f"$KV.FUNCTIONS.{registry_key(tenant, name)}", head.model_dump_json().encode())

    async def executor(self, name: str, **fields: Any) -> FakeExecutor:
        executor_id = f"{name}-{next(self._boots):08x}"
        bus = await self.stack.enter_async_context(connect(url=self.url, instance=executor_id))
        executor = FakeExecutor(bus, executor_id, self.ran, **fields)
        self.executors[name] = executor
        await executor.start()
        self.stack.push_async_callback(executor.stop)
        return executor

    @contextlib.asynccontextmanager
    async def scheduling(
        self, instance: str = "scheduler-1", *, active: bool = True, **settings: Any
    ) -> AsyncIterator[Scheduler]:
        clock = SystemClock()
        async with connect(url=self.url, instance=instance) as bus:
            tracer = Tracer(service="scheduler", instance=instance, bus=bus, clock=clock, per_second=0)
            chosen = Settings(nats_url=self.url, instance=instance, **settings)
            problems = self.problems[instance] = {}
            scheduler = Scheduler(
                settings=chosen,
                bus=bus,
                tracer=tracer,
                clock=clock,
                problem=lambda name, fix: problems.update({name: fix}) if fix else problems.pop(name, None),
            )
            await scheduler.start()
            lead = asyncio.get_running_loop().create_task(scheduler.lead())
            try:
                if active:
                    await until(lambda: scheduler.term is not None, what="the scheduler is active")
                yield scheduler
            finally:
                await scheduler.stop()
                lead.cancel()
                await asyncio.gather(lead, return_exceptions=True)

    @contextlib.contextmanager
    def process(self, instance: str) -> Iterator["subprocess.Popen[bytes]"]:
        """A scheduler as it really runs."""
        process = subprocess.Popen(
            [sys.executable, "-m", "hearth_scheduler"],
            env=os.environ | {"HEARTH_NATS_URL": self.url, "HEARTH_INSTANCE": instance, "HEARTH_LOG_LEVEL": "WARNING"},
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
                assert process.wait(15) == 0

    async def joined(self, scheduler: Scheduler, count: int) -> None:
        """All executors can be given work."""
        await until(
            lambda: sum(executor.usable for executor in scheduler.fleet.executors.values()) == count,
            what=f"{count} executors joined",
        )

    def new_call(self, name: str, body: bytes, *, tenant: str, lane: Lane, **fields: Any) -> Call:
        return Call(
            job=names.new_job(name, time.time()), tenant=tenant, function=name, version=1, lane=lane,
            gateway=self.gateway if lane is Lane.SYNC else "", submitted_at=time.time(), input=Body(size=len(body)), **fields,
        )  # fmt: skip

    async def publish(self, call: Call, body: bytes, traceparent: str = "") -> int:
        sync = call.lane is Lane.SYNC
        build = subjects.call if sync else subjects.job
        ack = await self.bus.publish(
            build(call.tenant, call.function), body, meta=call, contract="call.v1" if sync else "job.v1",
            msg_id=f"{call.job}.{call.attempt}.{call.placement}", traceparent=traceparent,
        )  # fmt: skip
        return ack.sequence

    async def call(self, name: str, body: bytes = b"x", *, tenant: str = TENANT, within_s: float = 15.0, **fields: Any) -> Answer:
        """A sync call, answered."""
        call = self.new_call(name, body, tenant=tenant, lane=Lane.SYNC, **fields)
        await self.publish(call, body)
        return await self.answer(call.job, within_s=within_s)

    async def answer(self, job: str, *, within_s: float = 15.0) -> Answer:
        await until(lambda: job in self.replies, within_s=within_s, what=f"an answer to {job}")
        return self.replies[job][-1]

    async def job(self, name: str, body: bytes = b"x", *, tenant: str = TENANT, **fields: Any) -> str:
        call = self.new_call(name, body, tenant=tenant, lane=Lane.ASYNC, **fields)
        sequence = await self.publish(call, body)
        state = StateChange(job=call.job, tenant=tenant, state=State.PENDING, at=time.time(), sequence=sequence)
        await self.bus.publish(subjects.state(tenant, call.job), meta=state, contract="state.v1")
        return call.job

    async def record(self, job: str, *, tenant: str = TENANT) -> Record | None:
        stored = await self.bus.get_last("RECORDS", subjects.record(tenant, job))
        return None if stored is None else stored.message.meta(Record)

    async def ended(self, job: str, *, tenant: str = TENANT, within_s: float = 15.0) -> Record:
        try:
            async with asyncio.timeout(within_s):
                while True:
                    record = await self.record(job, tenant=tenant)
                    if record is not None:
                        return record
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise AssertionError(f"{job} has no record within {within_s} s") from None

    async def records(self) -> dict[str, int]:
        """How many finals each job has."""
        counts: dict[str, int] = {}
        sequence = 1
        while (stored := await self.bus.get_next("RECORDS", subjects.RECORDS_ALL, sequence)) is not None:
            job = stored.subject.rpartition(".")[2]
            counts[job] = counts.get(job, 0) + 1
            sequence = stored.sequence + 1
        return counts

    async def left_in(self, stream: str) -> int:
        info = await self.bus.stream_info(stream)
        assert info is not None
        return info.messages

    async def empty(self, *names_of_streams: str, within_s: float = 10.0) -> None:
        try:
            async with asyncio.timeout(within_s):
                while any([await self.left_in(name) for name in names_of_streams]):
                    await asyncio.sleep(0.02)
        except TimeoutError:
            left = {name: await self.left_in(name) for name in names_of_streams}
            raise AssertionError(f"left over: {left}") from None

    def runs_of(self, job: str) -> list[Ran]:
        return [ran for ran in self.ran if ran.job == job]
