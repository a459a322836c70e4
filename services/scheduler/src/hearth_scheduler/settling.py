"""Ends that the scheduler itself decides, and the looks that keep a job from ending twice (docs/architecture.md, "One answer,
one record"). Everything here is repeated until the broker has it."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from hearth_contracts import bounds, subjects
from hearth_contracts.calls import Call, Dead, Ending, Moved, Record, Reply
from hearth_contracts.enums import Persist, State
from hearth_contracts.errors import UndecodableMessage
from hearth_contracts.functions import FunctionVersion
from hearth_kit.bus import Bus, Stored, contract_headers
from hearth_kit.clock import Clock
from hearth_kit.errors import BusError, PayloadTooLarge, PublishTimeout, StreamMissing, WrongLastSequence
from hearth_kit.fitting import publish_fitting
from hearth_scheduler import metrics

_log = logging.getLogger(__name__)

T = TypeVar("T")

#: Between two tries while the broker is away or a stream is full.
AGAIN_S: Final = 0.25
#: A gateway that is there answers at once; one that is stopped is asked so often before the call goes on without it.
MOVED_S: Final = 1.0
MOVED_TRIES: Final = 5


class Settler:
    def __init__(self, *, bus: Bus, clock: Clock) -> None:
        self._bus = bus
        self._clock = clock

    # Before a call is placed anew

    async def may_run(self, call: Call, body: bytes, header: str, *, sync: bool, anew: bool) -> bool:
        """False: the job has ended, and whoever waits for it has been told."""
        if await self.ended(call, sync=sync):
            return False
        if not sync or not call.gateway:
            return True
        reply = await self._reply(call)
        if reply is None and anew:
            # Whatever the gateway says, and most of all when it says nothing: a reply that reached it before our question
            # was stored before it, too.
            await self._ask_gateway(call)
            reply = await self._reply(call)
        if reply is None:
            return True
        # The caller knows this answer: it is what has to be recorded.
        try:
            ending = reply.message.meta(Reply).ending
        except UndecodableMessage as error:
            _log.error("a reply does not parse: %s", error)
            return True
        await self._record(call, body, header, ending, reply.message.body)
        return False

    async def ended(self, call: Call, *, sync: bool) -> bool:
        """Whether the job has its final; a waiting caller is told it once more."""
        stored = await self._surely(lambda: self._bus.get_last("RECORDS", subjects.record(call.tenant, call.job)))
        if stored is None:
            return False
        if sync:
            await self._tell(call, stored)
        return True

    async def _reply(self, call: Call) -> Stored | None:
        return await self._surely(lambda: self._bus.get_last("REPLIES", subjects.reply(call.gateway, call.job)))

    async def _ask_gateway(self, call: Call) -> None:
        """Tell the gateway that from here on only this dispatch counts. Returns when it has heard, or is gone."""
        moved = Moved(job=call.job, attempt=call.attempt, placement=call.placement)
        headers = contract_headers(meta=moved, contract="moved.v1", msg_id="", traceparent="", expect_last=None, headers=None)
        for _ in range(MOVED_TRIES):
            try:
                await self._bus.request(subjects.moved(call.gateway), headers=headers, timeout_s=MOVED_S)
                return
            except StreamMissing:
                return  # that gateway is gone, and its callers with it
            except PublishTimeout:
                continue
            except BusError:
                await asyncio.sleep(AGAIN_S)
        _log.warning("gateway %s does not answer, placing a call of its anew", call.gateway, extra={"job": call.job})

    # Ending a job

    async def end(
        self, call: Call, body: bytes, header: str, ending: Ending, *, sync: bool, version: FunctionVersion | None, dead: bool
    ) -> None:
        """Record it, tell a waiting caller what the record says, keep a copy of what used up its attempts."""
        metrics.REJECTED.labels(ending.reason.value if ending.reason else "none").inc()
        persist = version is None or version.spec.persist is Persist.ALL
        won = await self._record(call, body, header, ending, b"", persist=persist)
        stored = None
        if not won or sync:
            stored = await self._surely(lambda: self._bus.get_last("RECORDS", subjects.record(call.tenant, call.job)))
        if sync and stored is not None:
            await self._tell(call, stored)
        if dead and (won or (stored is not None and _same(stored, ending))):
            await self.bury(call, body, header, ending)

    async def lost(self, call: Call, body: bytes, header: str, ending: Ending, sync: bool) -> None:
        """End a call that no message can carry back: whether it may run again is not asked."""
        await self.end(call, body, header, bounds.stripped(ending), sync=sync, version=None, dead=not sync)

    async def bury(self, call: Call, body: bytes, header: str, ending: Ending) -> None:
        """Into DEAD, for whoever looks into it."""
        meta = Dead(call=call, ending=ending, attempts=call.attempt, at=self._clock.now())

        async def publish(told: Dead) -> None:
            await self._surely(
                lambda: self._bus.publish(
                    subjects.dead(call.tenant, call.job), body, meta=told, contract="dead.v1", msg_id=f"{call.job}.dead",
                    traceparent=header,
                )
            )  # fmt: skip

        less = {"call": bounds.stripped_call(call), "ending": bounds.stripped(ending)}
        await publish_fitting(publish, meta, lambda: meta.model_copy(update=less), job=call.job)

    async def _record(self, call: Call, body: bytes, header: str, ending: Ending, result: bytes, *, persist: bool = True) -> bool:
        """Whether ours is the job's final."""
        trace_id = header.split("-")[1] if header.count("-") >= 3 else ""
        meta = Record(
            job=call.job, tenant=call.tenant, function=call.function, version=call.version, lane=call.lane, ending=ending,
            input=call.input if call.input.object else call.input.model_copy(update={"size": len(body)}), http=call.http,
            trace_id=trace_id, persist=persist, depth=call.depth, parent=call.parent, replay_of=call.replay_of,
            recorded_at=self._clock.now(), stated=True,
        )  # fmt: skip

        async def publish(told: Record) -> None:
            await self._surely(
                lambda: self._bus.publish(
                    subjects.record(call.tenant, call.job), body + result, meta=told, contract="record.v1", traceparent=header,
                    expect_last=0,
                )
            )  # fmt: skip

        try:
            await publish_fitting(publish, meta, lambda: bounds.stripped_record(meta), job=call.job)
        except WrongLastSequence:
            metrics.RACES_LOST.inc()
            return False
        return True

    async def _tell(self, call: Call, stored: Stored) -> None:
        """The sync answer, as it is recorded."""
        if not call.gateway:
            return
        try:
            record = stored.message.meta(Record)
        except UndecodableMessage as error:
            _log.error("a record does not parse: %s", error)
            return
        result = record.parts(stored.message.body)[1]
        # A later dispatch than any: it is the record's word, whichever dispatch the gateway still believes.
        ending = record.ending
        if (ending.attempt, ending.placement) < (call.attempt, call.placement):
            ending = ending.model_copy(update={"attempt": call.attempt, "placement": call.placement})
        meta = Reply(job=call.job, ending=ending)

        async def publish(told: Reply) -> None:
            await self._surely(
                lambda: self._bus.publish(
                    subjects.reply(call.gateway, call.job), result, meta=told, contract="reply.v1",
                    traceparent=stored.message.traceparent,
                )
            )  # fmt: skip

        await publish_fitting(publish, meta, lambda: Reply(job=call.job, ending=bounds.stripped(ending)), job=call.job)

    async def _surely(self, step: Callable[[], Awaitable[T]]) -> T:
        while True:
            try:
                return await step()
            except (WrongLastSequence, PayloadTooLarge):
                raise
            except BusError as error:
                _log.debug("again: %s", error)
                await asyncio.sleep(AGAIN_S)


def _same(stored: Stored, ending: Ending) -> bool:
    """Whether the winner is this very end, written before by us or by a scheduler that died after it."""
    try:
        won = stored.message.meta(Record).ending
    except UndecodableMessage:
        return False
    return (won.state, won.reason, won.attempt) == (State.FAILED, ending.reason, ending.attempt)
