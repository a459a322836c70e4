"""Finals that the scheduler decides: rejected, lost, recursion, and failures whose attempts are used up."""

import logging

from hearth_contracts import subjects
from hearth_contracts.calls import Call, Dead, Ending, Failure, Record, Reply, Timings
from hearth_contracts.enums import Lane, Reason, State
from hearth_kit.bus import Bus
from hearth_kit.clock import Clock
from hearth_kit.errors import WrongLastSequence
from hearth_kit.tracing import parse
from hearth_scheduler import metrics

_log = logging.getLogger(__name__)


class Finals:
    """Writes a job's one record, answers a caller that waits, and keeps dead letters."""

    def __init__(self, *, bus: Bus, clock: Clock) -> None:
        self._bus = bus
        self._clock = clock

    async def find(self, call: Call) -> tuple[Record, bytes] | None:
        """The final of a job, if it has one."""
        stored = await self._bus.get_last("RECORDS", subjects.record(call.tenant, call.job))
        return None if stored is None else (stored.message.meta(Record), stored.message.body)

    async def find_reply(self, call: Call) -> tuple[Reply, bytes] | None:
        """What the caller of a sync call was told, if REPLIES still knows."""
        if call.lane is not Lane.SYNC or not call.gateway:
            return None
        stored = await self._bus.get_last("REPLIES", subjects.reply(call.gateway, call.job))
        return None if stored is None else (stored.message.meta(Reply), stored.message.body)

    async def fail(
        self,
        call: Call,
        body: bytes,
        *,
        reason: Reason,
        message: str,
        header: str,
        ending: Ending | None = None,
        dead: bool = False,
    ) -> None:
        """FAILED for good. The record comes first; the caller is told what the record says."""
        now = self._clock.now()
        if ending is None:
            ending = Ending(
                state=State.FAILED,
                reason=reason,
                failure=Failure(type=reason.value, message=message),
                timings=Timings(submitted_at=call.submitted_at, finished_at=now),
                attempt=call.attempt,
                placement=call.placement,
            )
        await self.record(call, body, ending, b"", header)
        metrics.FINALS.labels(reason=reason.value).inc()
        if dead:
            await self._bus.publish(
                subjects.dead(call.tenant, call.job),
                body,
                meta=Dead(call=call, ending=ending, attempts=call.attempt, at=now),
                contract="dead.v1",
                msg_id=f"{call.job}.dead",
                traceparent=header,
            )
            metrics.DEAD.inc()

    async def record(self, call: Call, body: bytes, ending: Ending, result: bytes, header: str) -> None:
        """Write this ending as the record, unless there is one; a waiting caller hears whichever it is."""
        context = parse(header)
        meta = Record(
            job=call.job, tenant=call.tenant, function=call.function, version=call.version, lane=call.lane, ending=ending,
            input=call.input, http=call.http, trace_id=context.trace_id if context else "", depth=call.depth, parent=call.parent,
            replay_of=call.replay_of, recorded_at=self._clock.now(),
        )  # fmt: skip
        try:
            await self._bus.publish(
                subjects.record(call.tenant, call.job), body + result, meta=meta, contract="record.v1", traceparent=header,
                expect_last=0, msg_id=f"{call.job}.record.{call.attempt}.{call.placement}.s", timeout_s=60,
            )  # fmt: skip
        except WrongLastSequence:
            winner = await self.find(call)
            if winner is None:
                raise
            meta, body = winner
            await self.tell(call, meta.ending, meta.parts(body)[1], header)
            return
        await self.tell(call, ending, result, header)

    async def tell(self, call: Call, ending: Ending, result: bytes, header: str) -> None:
        """Answer a sync caller."""
        if call.lane is not Lane.SYNC or not call.gateway:
            return
        told = ending.model_copy(
            update={"attempt": max(ending.attempt, call.attempt), "placement": max(ending.placement, call.placement)}
        )
        await self._bus.publish(
            subjects.reply(call.gateway, call.job), result, meta=Reply(job=call.job, ending=told), contract="reply.v1",
            traceparent=header, msg_id=f"{call.job}.reply.{call.attempt}.{call.placement}.s",
        )  # fmt: skip
