"""What arrives: calls, jobs, outcomes, records, reports. Decode, hand over; what does not parse is kept with the reason."""

import json
import logging
from collections.abc import Awaitable, Callable

from hearth_contracts import names
from hearth_contracts.calls import Call, Outcome
from hearth_contracts.enums import Lane, Reason
from hearth_contracts.errors import InvalidName, UndecodableMessage
from hearth_kit.background import Background
from hearth_kit.clock import Clock
from hearth_kit.message import META, Message
from hearth_scheduler import errors, metrics
from hearth_scheduler.domain import retry
from hearth_scheduler.finished import FinishedStates
from hearth_scheduler.held import Held, Lanes, Letter, Source
from hearth_scheduler.outcomes import Outcomes
from hearth_scheduler.service import Dispatcher
from hearth_scheduler.settling import Settler

_log = logging.getLogger(__name__)

_TAKEN = {source: metrics.TAKEN.labels(source.value) for source in Source}


class Handlers:
    """One per term of office. All are called from the read loop."""

    def __init__(
        self, *, dispatcher: Dispatcher, outcomes: Outcomes, settler: Settler, lanes: Lanes, clock: Clock,
        finished: FinishedStates, job_refused: Callable[[str], None],
    ) -> None:  # fmt: skip
        self._dispatcher = dispatcher
        self._finished = finished
        self._outcomes = outcomes
        self._settler = settler
        self._lanes = lanes
        self._clock = clock
        self._job_refused = job_refused
        self._tasks = Background("undecodable")

    def call(self, message: Message) -> None:
        self._take(message, Source.CALLS, sync=True)

    def job(self, message: Message) -> None:
        self._take(message, Source.JOBS, sync=False)

    def _take(self, message: Message, source: Source, *, sync: bool) -> None:
        _TAKEN[source].inc()
        try:
            call = message.meta(Call)
            _check(message, call)
        except (UndecodableMessage, InvalidName) as error:
            if source is Source.JOBS:
                self._job_refused(".".join(message.subject.split(".")[3:5]))
            self._tasks.start(self._undecodable(message, error, sync=sync))
            return
        self._dispatcher.take(
            Held(
                call=call, body=message.body, header=message.traceparent, sync=sync, source=source,
                arrived_at=self._clock.now(), touched_at=self._clock.monotonic(),
                letters=[Letter(message, sync, self._lanes.generation)], text=message.headers[META],
            )
        )  # fmt: skip

    def outcome(self, message: Message) -> None:
        self._outcome(message, sync=False)

    def outcome_sync(self, message: Message) -> None:
        self._outcome(message, sync=True)

    def _outcome(self, message: Message, *, sync: bool) -> None:
        _TAKEN[Source.OUTCOMES].inc()
        try:
            outcome = message.meta(Outcome)
            _check(message, outcome.run.call)
        except (UndecodableMessage, InvalidName) as error:
            self._tasks.start(self._undecodable(message, error, sync=sync))
            return
        self._outcomes.take(outcome, message, sync=sync)

    def record(self, message: Message) -> None:
        # A wake-up, no more: a plain subscriber also hears a record that the stream then refuses.
        self._dispatcher.final_heard(message.subject.rpartition(".")[2], lambda: message.headers.get(META, ""))
        self._finished.heard(message)

    async def _undecodable(self, message: Message, error: Exception, *, sync: bool) -> None:
        """Nobody will ever understand it: keep it where people look, end its job if its id can be read, take it away."""
        _log.error("a message does not parse: %s", error)
        tokens = message.subject.split(".")
        tenant, function = tokens[3], tokens[4]
        now = self._clock.now()
        job = _job_of(message, function)
        call = Call(
            job=job or names.derived_job(function, f"{message.subject}.{message.sequence}", now), tenant=tenant,
            function=function, version=0, lane=Lane.SYNC if sync else Lane.ASYNC, submitted_at=now,
        )  # fmt: skip
        ending = retry.failed(call, Reason.REJECTED, errors.UNDECODABLE, f"the message does not parse: {str(error)[:1000]}", now)
        step: Awaitable[None]
        if job:
            step = self._settler.end(call, message.body, message.traceparent, ending, sync=sync, version=None, dead=True)
        else:
            step = self._settler.bury(call, message.body, message.traceparent, ending)
        await step
        message.term("undecodable")

    async def stop(self) -> None:
        await self._tasks.cancel()


def _check(message: Message, call: Call) -> None:
    """Whether the call is what its subject promises, and its names can stand in subjects."""
    _, _, _, tenant, function, *_ = message.subject.split(".")
    if (call.tenant, call.function) != (tenant, function) or names.function_of(call.job) != function:
        raise UndecodableMessage(f"{message.subject}: the call inside is {call.tenant}'s {call.function}")
    if call.gateway:
        names.token("gateway", call.gateway)


def _job_of(message: Message, function: str) -> str:
    """The job id, if that much can be read; empty otherwise."""
    try:
        meta = json.loads(message.headers.get(META, ""))
        call = meta.get("run", {}).get("call", meta)
        job = names.job(str(call["job"]))
    except (ValueError, KeyError, TypeError, AttributeError):
        return ""
    return job if names.function_of(job) == function else ""
