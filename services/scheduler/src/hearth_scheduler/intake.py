"""Calls, jobs and outcomes as they come in: decoded, checked, and put into the dispatcher's hands."""

import logging
from collections.abc import Awaitable

from hearth_contracts import subjects
from hearth_contracts.calls import DEPTH_MAX, Call, Dead, Ending, Moved, MovedAnswer, Outcome
from hearth_contracts.enums import OutcomeKind, Reason, State
from hearth_contracts.errors import UndecodableMessage
from hearth_contracts.functions import FunctionVersion
from hearth_kit.background import Background
from hearth_kit.bus import Bus, contract_headers
from hearth_kit.clock import Clock
from hearth_kit.errors import BusError, PublishTimeout, StreamMissing
from hearth_kit.message import Message
from hearth_kit.registry import Registry
from hearth_kit.tracing import Tracer
from hearth_scheduler import metrics
from hearth_scheduler.config import Settings
from hearth_scheduler.dispatcher import Dispatcher
from hearth_scheduler.domain import retry
from hearth_scheduler.finals import Finals
from hearth_scheduler.waiting import Waiting, need_of

_log = logging.getLogger(__name__)


class Intake:
    """Turns messages into waiting calls, or into finals."""

    def __init__(
        self,
        *,
        bus: Bus,
        clock: Clock,
        tracer: Tracer,
        registry: Registry,
        dispatcher: Dispatcher,
        finals: Finals,
        settings: Settings,
    ) -> None:
        self._bus = bus
        self._clock = clock
        self._tracer = tracer
        self._registry = registry
        self._dispatcher = dispatcher
        self._finals = finals
        self._settings = settings
        self._work = Background("intake")

    # Handlers: called from the read loop

    def on_call(self, message: Message) -> None:
        """CALLS. The common case is handled here and now: a known version, a first delivery."""
        try:
            call = message.meta(Call)
        except UndecodableMessage as error:
            self._guard(message, self._undecodable(message, error))
            return
        version = self._registry.known(call.tenant, call.function, call.version)
        if version is not None and message.delivered == 1 and call.placement == 0 and call.depth <= DEPTH_MAX:
            self._put(call, message.body, message, version, message.traceparent, source="calls")
            return
        self._guard(message, self._admit(call, message, source="calls"))

    def on_job(self, message: Message) -> None:
        """JOBS."""
        try:
            call = message.meta(Call)
        except UndecodableMessage as error:
            self._guard(message, self._undecodable(message, error))
            return
        self._guard(message, self._admit(call, message, source="jobs"))

    def on_outcome(self, message: Message) -> None:
        """OUTCOMES and OUTCOMES_SYNC."""
        try:
            outcome = message.meta(Outcome)
        except UndecodableMessage as error:
            self._guard(message, self._undecodable(message, error))
            return
        self._guard(message, self._outcome(outcome, message))

    def _guard(self, message: Message, work: "Awaitable[None]") -> None:
        async def guarded() -> None:
            try:
                await work
            except BusError as error:
                _log.warning("will be tried again: %s", error, extra={"subject": message.subject})
                message.nak(0.5)

        self._work.start(guarded())

    # What they start

    async def _admit(self, call: Call, message: Message, *, source: str) -> None:
        header = message.traceparent
        if call.depth > DEPTH_MAX:
            await self._finals.fail(call, message.body, reason=Reason.RECURSION, header=header, dead=not call.gateway,
                message=f"functions called each other {DEPTH_MAX} deep")  # fmt: skip
            message.ack()
            return
        version = await self._registry.version(call.tenant, call.function, call.version)
        if version is None:
            await self._finals.fail(call, message.body, reason=Reason.REJECTED, header=header,
                message=f"version {call.version} of {call.function} does not exist (any more)")  # fmt: skip
            message.ack()
            return
        if (message.delivered > 1 or call.placement > 0 or source == "jobs") and await self._has_ended(
            call, message.body, header
        ):
            message.ack()
            return
        self._put(call, message.body, message, version, header, source=source)

    async def _has_ended(self, call: Call, body: bytes, header: str) -> bool:
        """Look before placing again: a final, or an answer that lacks its record."""
        record = await self._finals.find(call)
        if record is not None:
            meta, content = record
            if call.placement > 0 or call.attempt > 1:
                await self._finals.tell(call, meta.ending, meta.parts(content)[1], header)
            return True
        told = await self._finals.find_reply(call)
        if told is not None:
            reply, result = told
            await self._finals.record(call, body, reply.ending, result, header)
            return True
        return False

    async def relaunch(self, call: Call, body: bytes, message: Message | None, header: str, *, source: str,
                       not_on: frozenset[str] = frozenset(), ask_gateway: bool = True) -> Waiting | None:  # fmt: skip
        """Place a call anew, after looking and, on the sync lane, asking. None when it has ended after all."""
        if await self._has_ended(call, body, header):
            return None
        if call.gateway and ask_gateway and await self._was_answered(call):
            told = await self._finals.find_reply(call)
            if told is not None:
                await self._finals.record(call, body, told[0].ending, told[1], header)
                return None
        version = await self._registry.version(call.tenant, call.function, call.version)
        if version is None:
            await self._finals.fail(
                call, body, reason=Reason.REJECTED, header=header, message="the version does not exist any more"
            )
            return None
        return self._put(call, body, message, version, header, source=source, not_on=not_on)

    async def _was_answered(self, call: Call) -> bool:
        """From its answer on the gateway takes no reply of an earlier dispatch."""
        meta = Moved(job=call.job, attempt=call.attempt, placement=call.placement)
        headers = contract_headers(meta=meta, contract="moved.v1", msg_id="", traceparent="", expect_last=None, headers=None)
        try:
            answer = await self._bus.request(subjects.moved(call.gateway), headers=headers, timeout_s=2.0)
            return answer.meta(MovedAnswer).answered
        except (StreamMissing, PublishTimeout, UndecodableMessage):
            return False  # the gateway is gone, and its callers with it

    def _put(
        self, call: Call, body: bytes, message: Message | None, version: FunctionVersion, header: str, *, source: str,
        not_on: frozenset[str] = frozenset(),
    ) -> Waiting:  # fmt: skip
        now = self._clock.now()
        at = self._tracer.continued(header)
        waiting = Waiting(
            call=call, body=body, message=message, need=need_of(call, version, not_on), version=version, header=header,
            at=at.child() if at.sampled else at, arrived_at=now, kept_at=now, source=source,
        )  # fmt: skip
        self._dispatcher.put(waiting)
        return waiting

    async def _outcome(self, outcome: Outcome, message: Message) -> None:
        run = outcome.run
        call = run.call.model_copy(update={"placement": run.placement})
        if message.delivered > 1 and await self._finals.find(call) is not None:
            message.ack()
            return
        if outcome.kind is OutcomeKind.FAILED and outcome.ending is not None:
            await self._failed(call, outcome.ending, message)
            return
        again = call.model_copy(update={"placement": run.placement + 1})
        placed = await self.relaunch(again, message.body, message, message.traceparent, source="outcomes",
            not_on=frozenset({run.executor}), ask_gateway=False)  # fmt: skip
        if placed is None:
            message.ack()

    async def _failed(self, call: Call, ending: Ending, message: Message) -> None:
        version = await self._registry.version(call.tenant, call.function, call.version)
        reason = ending.reason or Reason.ERROR
        now = self._clock.now()
        verdict = (
            retry.decide(version.spec.retry, attempt=call.attempt, reason=reason, failed_at=ending.timings.finished_at or now)
            if version is not None
            else retry.GiveUp(call.attempt)
        )
        if isinstance(verdict, retry.GiveUp):
            await self._finals.fail(call, message.body, reason=reason, header=message.traceparent, ending=ending, dead=True,
                message="")  # fmt: skip
            message.ack()
        elif verdict.at > now:
            message.nak(verdict.at - now)
        else:
            metrics.RETRIES.labels(reason=reason.value).inc()
            again = call.model_copy(update={"attempt": verdict.attempt, "placement": 0})
            placed = await self.relaunch(again, message.body, message, message.traceparent, source="outcomes", ask_gateway=False)
            if placed is None:
                message.ack()

    async def lost(self, call: Call, body: bytes, placement: int, executor: str, header: str) -> Waiting | None:
        """A run whose executor died under it."""
        if not retry.after_loss(losses=call.losses, losses_max=self._settings.losses_max):
            if not await self._has_ended(call, body, header):
                await self._finals.fail(call, body, reason=Reason.LOST, header=header, dead=True,
                    message=f"{call.losses + 1} executors died while it ran")  # fmt: skip
            return None
        metrics.REASSIGNED.inc()
        again = call.model_copy(update={"placement": placement + 1, "losses": call.losses + 1})
        return await self.relaunch(again, body, None, header, source=f"dead {executor}")

    async def ended_elsewhere(self, job: str) -> None:
        """Somebody wrote a final (a cancel) for a job that waits here."""
        waiting = self._dispatcher.holds(job)
        if waiting is None:
            return
        record = await self._finals.find(waiting.call)
        if record is None:
            return  # heard, but refused by the stream: there is no final
        meta, content = record
        self._dispatcher.drop(waiting)
        await self._finals.tell(waiting.call, meta.ending, meta.parts(content)[1], waiting.header)

    async def _undecodable(self, message: Message, error: UndecodableMessage) -> None:
        """Poison: kept with its reason where people look, and out of the way."""
        _log.error("a message does not parse: %s", error, extra={"subject": message.subject})
        tokens = message.subject.split(".")
        tenant, function = (tokens[3], tokens[4]) if len(tokens) > 4 else ("unknown", "unknown")
        try:
            from hearth_contracts import names

            job = names.derived_job(function, f"{message.subject}.{message.sequence}", self._clock.now())
            call = Call.model_construct(job=job, tenant=tenant, function=function, version=0, lane="async", submitted_at=0.0)
            ending = Ending(state=State.FAILED, reason=Reason.REJECTED)
            await self._bus.publish(
                subjects.dead(tenant, job), message.body, contract="dead.v1", msg_id=f"{message.subject}.{message.sequence}",
                headers={"Hearth-Undecodable": str(error)[:500].replace("\n", " ").encode("ascii", "replace").decode()},
                meta=Dead.model_construct(call=call, ending=ending, attempts=0, at=self._clock.now()),
            )  # fmt: skip
        except ValueError:
            _log.exception("it cannot be kept either")
        message.term("undecodable")

    async def drain(self, timeout_s: float) -> None:
        await self._work.drain(timeout_s)
