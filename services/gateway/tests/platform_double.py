"""The rest of the platform as the gateway sees it: whatever consumes CALLS and JOBS and speaks replies and records.

It stands behind the contracts, so that the gateway's tests need no scheduler and no executor. What a function "does" is a
coroutine of the test; delivery is by the rules: reply first on the first dispatch, the record always, `expect_last=0`.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

from hearth_contracts import streams, subjects
from hearth_contracts.calls import (
    Body,
    Call,
    Depths,
    Ending,
    Failure,
    LogChunk,
    Output,
    Record,
    Reply,
    StateChange,
    Timings,
    Usage,
)
from hearth_contracts.enums import Lane, Reason, Start, State
from hearth_contracts.fleet import Capacity, Control, ControlDone, Presence
from hearth_kit.background import Background
from hearth_kit.bus import Bus, ConsumerSpec, Subscription, contract_headers
from hearth_kit.errors import BusError, WrongLastSequence
from hearth_kit.message import Message
from hearth_kit.objects import Objects

#: The smallest function that answers.
SOURCE = "def handle(event, context):\n    return event\n"
EXECUTOR = "exec-1-0011aabb"


@dataclass(frozen=True)
class Outcome:
    """What a function came to."""

    result: bytes = b"null"
    content_type: str = "application/json"
    object: str = ""
    size: int = -1
    reason: Reason | None = None
    failure: Failure | None = None
    http_status: int | None = None
    http_headers: tuple[tuple[str, str], ...] = ()
    log: bytes = b""
    outputs: tuple[Output, ...] = ()


Work = Callable[[Call, bytes], Awaitable[Outcome]]


async def echo(call: Call, body: bytes) -> Outcome:
    """The input is the result."""
    if call.input.object:
        return Outcome(object=call.input.object, size=call.input.size, content_type=call.input.content_type)
    return Outcome(body, content_type=call.input.content_type)


@dataclass
class PlatformDouble:
    bus: Bus
    work: Work = echo
    replies: bool = True
    """Whether a sync call's reply is sent; its record always is."""
    records: bool = True
    placed: bool = True
    """Whether anything is taken from CALLS at all."""
    waiting: dict[str, int] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    controls: list[Control] = field(default_factory=list)
    slots: int = 100
    backends: tuple[str, ...] = ("container",)
    answering: list[Subscription] = field(default_factory=list)
    """To the archive's questions."""
    _tasks: Background = field(default_factory=lambda: Background("double"))
    _pumps: list[object] = field(default_factory=list)

    async def consume(self) -> None:
        for stream in (streams.CALLS.name, streams.JOBS.name):
            await self.bus.ensure_consumer(ConsumerSpec(stream, "double"))
            self._pumps.append(await self.bus.pull(stream, "double", self._call))
        await self.bus.subscribe(subjects.control(EXECUTOR), self._control)

    async def say(self) -> None:
        """What executors and schedulers say each while."""
        while True:
            with contextlib.suppress(BusError):
                self.said()
            await asyncio.sleep(0.1)

    def said(self) -> None:
        capacity = Capacity(
            executor=EXECUTOR, name="exec-1", at=time.time(), slots=self.slots, free=self.slots,
            backends=self.backends, warm={"default.hello.1": 2, "other.secret.1": 1}, generic={"python/128": 3}, assigned={"default.hello.1": 2},
        )  # fmt: skip
        depths = Depths(scheduler="scheduler-1", epoch=1, waiting=self.waiting, at=time.time())
        presence = Presence(service="scheduler", instance="scheduler-1", pid=1, started_at=0, at=time.time())
        for subject, meta, contract in (
            (subjects.capacity(EXECUTOR), capacity, "capacity.v1"), (subjects.depths("scheduler-1"), depths, "depths.v1"),
            (subjects.presence("scheduler", "scheduler-1"), presence, "presence.v1"),
        ):  # fmt: skip
            self.bus.send(subject, headers=headers_of(meta, contract))

    def _control(self, message: Message) -> None:
        self.controls.append(message.meta(Control))
        message.respond(b"", headers_of(ControlDone(done=True), "control-done.v1"))

    def _call(self, message: Message) -> None:
        self.calls.append(message.meta(Call))
        if not self.placed:
            return
        message.ack()
        self._tasks.start(self._run(message.meta(Call), message.body, message.traceparent))

    async def _run(self, call: Call, body: bytes, traceparent: str) -> None:
        started = time.time()
        outcome = await self.work(call, body)
        ending = Ending(
            state=State.FAILED if outcome.reason else State.SUCCESS, reason=outcome.reason, failure=outcome.failure,
            result=Body(
                content_type=outcome.content_type, object=outcome.object,
                size=len(outcome.result) if outcome.size < 0 else outcome.size,
            ),
            http_status=outcome.http_status, http_headers=outcome.http_headers, outputs=outcome.outputs, start=Start.WARM,
            usage=Usage(wall_ms=1),
            timings=Timings(
                submitted_at=call.submitted_at, placed_at=started, accepted_at=started, started_at=started,
                finished_at=time.time(),
            ),
            executor=EXECUTOR, attempt=call.attempt, placement=call.placement,
        )  # fmt: skip
        result = b"" if outcome.object else outcome.result
        if call.lane is Lane.SYNC and self.replies and call.placement == 0:
            await self.reply(call, ending, result)
        if self.records:
            ending, result = await self.record(call, body, ending, result, outcome.log, traceparent)
        if call.lane is Lane.SYNC and self.replies and call.placement:
            await self.reply(call, ending, result)

    async def reply(self, call: Call, ending: Ending, result: bytes) -> None:
        await self.bus.publish(
            subjects.reply(call.gateway, call.job), result, meta=Reply(job=call.job, ending=ending), contract="reply.v1"
        )

    async def record(
        self, call: Call, body: bytes, ending: Ending, result: bytes, log: bytes = b"", traceparent: str = ""
    ) -> tuple[Ending, bytes]:
        record = Record(
            job=call.job, tenant=call.tenant, function=call.function, version=call.version, lane=call.lane, ending=ending,
            input=call.input, log=Body(content_type="text/plain", size=len(log)), http=call.http, trace_id=traceparent[3:35],
            replay_of=call.replay_of, recorded_at=time.time(),
        )  # fmt: skip
        subject = subjects.record(call.tenant, call.job)
        try:
            await self.bus.publish(subject, body + result + log, meta=record, contract="record.v1", expect_last=0)
        except WrongLastSequence:
            stored = await self.bus.get_last(streams.RECORDS.name, subject)
            assert stored is not None
            winner = stored.message.meta(Record)
            placement = {"attempt": ending.attempt, "placement": ending.placement}
            return winner.ending.model_copy(update=placement), winner.parts(stored.message.body)[1]
        return ending, result

    async def state(self, call: Call, state: State, *, attempt: int = 1, phase: int) -> None:
        said = StateChange(
            job=call.job, tenant=call.tenant, state=state, attempt=attempt, phase=phase, at=time.time(), executor=EXECUTOR
        )
        await self.bus.publish(subjects.state(call.tenant, call.job), meta=said, contract="state.v1")

    async def log(self, call: Call, text: bytes, number: int = 0) -> None:
        await self.bus.publish(
            subjects.log(call.tenant, call.job), text, meta=LogChunk(job=call.job, number=number), contract="log.v1"
        )

    async def object(self, object_id: str, data: bytes) -> None:
        await Objects(self.bus).put("bodies", object_id, data)

    async def archive(self) -> None:
        """A keeper of older jobs that has none: it answers from what is on the broker, as a persister would from its stores."""
        answering = await self.bus.subscribe(
            subjects.ARCHIVE, lambda message: message.respond(b'{"jobs":[],"next":""}', {"Hearth-Missing": "1"})
        )
        self.answering.append(answering)


def headers_of(meta: object, contract: str) -> dict[str, str]:
    return contract_headers(meta=meta, contract=contract, msg_id="", traceparent="", expect_last=None, headers=None)  # type: ignore[arg-type]


@contextlib.asynccontextmanager
async def running(double: PlatformDouble) -> AsyncIterator[PlatformDouble]:
    await double.consume()
    await double.archive()
    talking = asyncio.get_running_loop().create_task(double.say())
    try:
        yield double
    finally:
        talking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await talking
        await double._tasks.cancel()
        for pump in double._pumps:
            await pump.stop()


def dumps(value: object) -> bytes:
    return json.dumps(value).encode()
