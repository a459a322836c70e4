"""Telling how a run ended: answer, record, outcome, and only then the acknowledgement.

What is told is kept until the broker has it, however long it is away; only a scheduler that has given this executor up
makes it fall silent (`membership.py`).
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from hearth_contracts import bounds, subjects
from hearth_contracts.calls import Body, Dead, Ending, Outcome, Record, Reply, StateChange, Timings
from hearth_contracts.enums import OutcomeKind, Persist, Reason, State
from hearth_executor import metrics
from hearth_executor.bodies import AREA
from hearth_executor.domain import ending as endings
from hearth_executor.domain.ending import Way
from hearth_executor.failpoints import AFTER_REPLY, BEFORE_ACK, Failpoints
from hearth_executor.held import Held, dispatch_id
from hearth_executor.membership import Membership
from hearth_kit.bus import Bus, Stored, contract_headers
from hearth_kit.clock import Clock
from hearth_kit.errors import BusError, PayloadTooLarge, WrongLastSequence
from hearth_kit.fitting import publish_fitting
from hearth_kit.objects import Objects
from hearth_kit.tracing import Tracer

_log = logging.getLogger(__name__)

T = TypeVar("T")

#: One publish is tried (again each second, under the same id) for so long before the next try begins.
PUBLISH_S: Final = 30.0
#: Between two tries when the stream is full or missing.
AGAIN_S: Final = 0.5
#: A log up to here travels inside its record; with input and result that stays below the broker's 1 MiB.
LOG_INLINE_BYTES_MAX: Final = 64 * 1024

_NO_LOG: Final = Body(content_type="text/plain")
_ENDED: Final = {
    None: metrics.RUNS.labels("success"),
    **{reason: metrics.RUNS.labels(reason.value) for reason in Reason},
    **{kind: metrics.RUNS.labels(f"back_{kind.value}") for kind in OutcomeKind},
}


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run ended, with what of its result travels inside messages."""

    ending: Ending | None
    result: bytes = b""
    persist: Persist = Persist.ALL
    kind: OutcomeKind = OutcomeKind.FAILED
    """Why the job travels back, when it does."""
    note: str = ""


class Settler:
    def __init__(
        self,
        *,
        bus: Bus,
        objects: Objects,
        clock: Clock,
        tracer: Tracer,
        membership: Membership,
        failpoints: Failpoints,
        executor: str,
    ) -> None:
        self._bus = bus
        self._objects = objects
        self._clock = clock
        self._tracer = tracer
        self._membership = membership
        self._failpoints = failpoints
        self.executor = executor
        self._connection = 0
        bus.on_reconnect(self._reconnected)

    def _reconnected(self) -> None:
        self._connection += 1

    async def settle(self, held: Held, ended: Ended) -> bool:
        """Tell, then acknowledge. False: the run is not ours any more and nothing was said."""
        if self._membership.doubtful and not await self._membership.confirmed():
            return False
        ending = ended.ending
        if ending is None or (chosen := endings.way(held.run, ending.reason)) is Way.OUTCOME:
            _ENDED[ended.kind].inc()
            await self._outcome(held, ended)
        else:
            _ENDED[ending.reason].inc()
            if chosen is Way.REPLY_FIRST:
                await self._reply_first(held, ended, ending)
            else:
                await self._record_first(held, ended, ending)
        self._failpoints.hit(BEFORE_ACK)
        held.ack()
        return True

    async def winner(self, held: Held) -> Stored | None:
        """The job's final record, if it has one."""
        call = held.run.call
        return await self._surely(lambda: self._bus.get_last("RECORDS", subjects.record(call.tenant, call.job)))

    async def settle_with(self, held: Held, stored: Stored) -> None:
        """The job was ended by somebody else: a waiting caller hears what was recorded."""
        metrics.RACES_LOST.inc()
        await self._bury(held, stored.message.meta(Record).ending)
        await self._pass_on(held, stored)
        held.ack()

    def processing(self, held: Held) -> None:
        """Say that it runs. Not waited for: the final does not depend on it."""
        call = held.run.call
        now = self._clock.now()
        held.stated_at = now
        meta = StateChange(job=call.job, tenant=call.tenant, state=State.PROCESSING, attempt=call.attempt, phase=2, at=now,
            executor=self.executor)  # fmt: skip
        headers = contract_headers(
            meta=meta, contract="state.v1", msg_id="", traceparent=held.at.header, expect_last=None, headers=None
        )
        try:
            self._bus.send(subjects.state(call.tenant, call.job), headers=headers)
        except BusError:
            held.stated_at = 0.0  # said again with the next look

    # The three ways

    async def _reply_first(self, held: Held, ended: Ended, ending: Ending) -> None:
        """The caller does not wait for the record: both leave in one write, the record ahead in it. So the scheduler is sent
        the news of the free sandbox before the caller is sent the answer, after which it may want it again at once."""
        connection = self._connection
        gateway = held.run.call.gateway
        if gateway and self._failpoints.armed:
            self._answer(held, ended, ending)
            await asyncio.sleep(0)
            self._failpoints.hit(AFTER_REPLY)
        elif gateway:
            # The next turn of the loop: the record is on its way by then, unless a long log has to go ahead of it.
            asyncio.get_running_loop().call_soon(self._answer, held, ended, ending)
        try:
            await self._record(held, ended, ending)
        except WrongLastSequence:
            await self._lost_race(held, tell=False)
            return
        if gateway and (connection != self._connection or held.unanswered):
            # It may have been lost with the connection; the record is there, so saying it once more is safe.
            await self._reply(held, ending, ended.result)

    def _answer(self, held: Held, ended: Ended, ending: Ending) -> None:
        """To a caller who waits, ahead of any acknowledgement."""
        began = self._clock.now()
        call = held.run.call
        headers = contract_headers(
            meta=Reply(job=call.job, ending=ending), contract="reply.v1", msg_id="", traceparent=held.at.header, expect_last=None,
            headers=None,
        )  # fmt: skip
        try:
            self._bus.send(subjects.reply(call.gateway, call.job), ended.result, headers=headers)
        except BusError:
            held.unanswered = True
        if held.at.sampled:
            self._tracer.span(held.at.child(), "send hearth.v1.replies", parent=held.at.span_id, start=began,
                end=self._clock.now(), kind="producer")  # fmt: skip

    async def _record_first(self, held: Held, ended: Ended, ending: Ending) -> None:
        try:
            await self._record(held, ended, ending)
        except WrongLastSequence:
            await self._lost_race(held, tell=True)
            return
        await self._bury(held, ending)
        await self._reply(held, ending, ended.result)

    async def _outcome(self, held: Held, ended: Ended) -> None:
        call = held.run.call
        meta = Outcome(run=held.run, kind=ended.kind, ending=ended.ending, note=ended.note)
        subject = subjects.outcome(call.tenant, call.function, call.job, sync=held.sync)
        msg_id = f"{dispatch_id(call.job, call.attempt, held.run.placement)}.outcome"
        contract = "outcome-sync.v1" if held.sync else "outcome.v1"

        async def publish(told: Outcome) -> None:
            await self._surely(
                lambda: self._bus.publish(
                    subject, held.body, meta=told, contract=contract, msg_id=msg_id, traceparent=held.at.header,
                    timeout_s=PUBLISH_S,
                )
            )  # fmt: skip

        ending = None if ended.ending is None else bounds.stripped(ended.ending)
        try:
            await publish_fitting(publish, meta, lambda: meta.model_copy(update={"ending": ending, "note": ""}), job=call.job)
        except PayloadTooLarge:
            # The call itself leaves no room: nobody can place it again, so this is its end.
            if ending is None:
                why = endings.failure("E_TOO_LARGE", "the call does not fit the broker's messages")
                timings = Timings(submitted_at=call.submitted_at, placed_at=held.run.placed_at, finished_at=self._clock.now())
                ending = endings.failed(held.run, Reason.REJECTED, why, executor=self.executor, timings=timings)
            await self._record_first(held, Ended(ending, persist=ended.persist), ending)

    # Their parts

    async def _record(self, held: Held, ended: Ended, ending: Ending) -> None:
        call = held.run.call
        log, log_bytes = await self._log_of(held)
        meta = Record(
            job=call.job,
            tenant=call.tenant,
            function=call.function,
            version=call.version,
            lane=call.lane,
            ending=ending,
            input=_described(call.input, held.body),
            log=log,
            log_truncated=held.log is not None and held.log.truncated,
            http=call.http,
            trace_id=held.at.trace_id,
            persist=endings.persisted(ended.persist, ending.state),
            depth=call.depth,
            parent=call.parent,
            replay_of=call.replay_of,
            recorded_at=self._clock.now(),
            stated=bool(held.stated_at) or not held.sync,
        )
        at = held.at.child() if held.at.sampled else held.at
        subject = subjects.record(call.tenant, call.job)
        body = held.body + ended.result + log_bytes
        began = self._clock.now()

        async def publish(told: Record) -> None:
            await self._surely(
                lambda: self._bus.publish(
                    subject, body, meta=told, contract="record.v1", traceparent=at.header, expect_last=0, timeout_s=PUBLISH_S
                )
            )

        await publish_fitting(publish, meta, lambda: bounds.stripped_record(meta), job=call.job)
        if at.sampled:
            self._tracer.span(at, "record", parent=held.at.span_id, start=began, end=self._clock.now(), kind="producer",
                attributes={"messaging.destination.template": "hearth.v1.records", "faas.invocation_id": call.job})  # fmt: skip

    async def _bury(self, held: Held, ending: Ending) -> None:
        """Into DEAD, if that is where this end leads. After the record, which decides whether it is one; whoever finds the
        record of a run that was not acknowledged does it again, and the broker keeps one."""
        if not endings.used_up(held.run, ending):
            return
        call = held.run.call
        meta = Dead(call=call, ending=ending, attempts=call.attempt, at=self._clock.now())

        async def publish(told: Dead) -> None:
            await self._surely(
                lambda: self._bus.publish(
                    subjects.dead(call.tenant, call.job), held.body, meta=told, contract="dead.v1", msg_id=f"{call.job}.dead",
                    traceparent=held.at.header, timeout_s=PUBLISH_S,
                )
            )  # fmt: skip

        less = {"call": bounds.stripped_call(call), "ending": bounds.stripped(ending)}
        await publish_fitting(publish, meta, lambda: meta.model_copy(update=less), job=call.job)

    async def _log_of(self, held: Held) -> tuple[Body, bytes]:
        if held.log is None or not held.log.size:
            return _NO_LOG, b""
        metrics.LOG_BYTES.inc(held.log.size)
        content = held.log.content()
        if len(content) <= LOG_INLINE_BYTES_MAX:
            return Body(content_type="text/plain", size=len(content)), content
        call = held.run.call
        object_id = f"{call.job}-{call.attempt}-{held.run.placement}-log"
        await self._surely(lambda: self._objects.put(AREA, object_id, content, content_type="text/plain"))
        return Body(content_type="text/plain", size=len(content), object=object_id), b""

    async def _reply(self, held: Held, ending: Ending, result: bytes) -> None:
        call = held.run.call
        if not call.gateway or not held.sync:
            return
        meta = Reply(job=call.job, ending=ending)
        subject = subjects.reply(call.gateway, call.job)

        async def publish(told: Reply) -> None:
            await self._surely(
                lambda: self._bus.publish(
                    subject, result, meta=told, contract="reply.v1", traceparent=held.at.header, timeout_s=PUBLISH_S
                )
            )

        await publish_fitting(publish, meta, lambda: Reply(job=call.job, ending=bounds.stripped(ending)), job=call.job)

    async def _lost_race(self, held: Held, *, tell: bool) -> None:
        stored = await self.winner(held)
        if stored is None:
            return  # it left for the stores meanwhile: whoever waits has been told by whoever won
        won = stored.message.meta(Record).ending
        call = held.run.call
        if (won.executor, won.attempt, won.placement) == (self.executor, call.attempt, held.run.placement):
            # Our own, whose acknowledgement was lost.
            await self._bury(held, won)
            await self._reply(held, won, stored.message.meta(Record).parts(stored.message.body)[1])
            return
        metrics.RACES_LOST.inc()
        if tell:
            await self._pass_on(held, stored)

    async def _pass_on(self, held: Held, stored: Stored) -> None:
        """What the record says, as the answer to this dispatch."""
        record = stored.message.meta(Record)
        ending = record.ending.model_copy(update={"attempt": held.run.call.attempt, "placement": held.run.placement})
        await self._reply(held, ending, record.parts(stored.message.body)[1])

    async def _surely(self, work: Callable[[], Awaitable[T]]) -> T:
        """Until the broker has it. A lost race and a message that can never fit are the caller's to handle."""
        while True:
            try:
                return await work()
            except (WrongLastSequence, PayloadTooLarge):
                raise
            except BusError as error:
                _log.warning("kept until the broker takes it: %s", error)
                await asyncio.sleep(AGAIN_S)


def _described(body: Body, content: bytes) -> Body:
    """The input as it is, whatever its sender said of its size: the record's parts are cut by it."""
    if body.object or body.size == len(content):
        return body
    return body.model_copy(update={"size": len(content)})
