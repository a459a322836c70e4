"""Looks for jobs that are neither finished nor anybody's: accepted once, they must end."""

import logging

from hearth_contracts import subjects
from hearth_contracts.calls import Body, Call, StateChange
from hearth_contracts.enums import Lane, Reason, State
from hearth_contracts.errors import UndecodableMessage
from hearth_contracts.names import function_of
from hearth_kit.bus import Bus
from hearth_kit.clock import Clock
from hearth_scheduler.dispatcher import Dispatcher
from hearth_scheduler.domain.fleet import Executor
from hearth_scheduler.finals import Finals

_log = logging.getLogger(__name__)


class Sweeper:
    """Needs no advisory and no memory of its own: it compares what is promised with what exists."""

    def __init__(
        self,
        *,
        bus: Bus,
        clock: Clock,
        dispatcher: Dispatcher,
        finals: Finals,
        executors: dict[str, Executor],
        orphan_after_s: float,
    ) -> None:
        self._bus = bus
        self._clock = clock
        self._dispatcher = dispatcher
        self._finals = finals
        self._executors = executors
        self._orphan_after_s = orphan_after_s

    async def sweep(self) -> int:
        """One look over all unfinished jobs; how many were lost."""
        lost = 0
        for stored in await self._bus.get_last_each("STATES", [subjects.STATES_ALL]):
            try:
                change = stored.message.meta(StateChange)
            except UndecodableMessage:
                continue
            if self._clock.now() - stored.at < self._orphan_after_s or await self._owned(change):
                continue
            call = Call(
                job=change.job, tenant=change.tenant, function=function_of(change.job), version=0, lane=Lane.ASYNC,
                submitted_at=change.at, attempt=change.attempt, input=Body(),
            )  # fmt: skip
            _log.error("job has no owner", extra={"job": change.job, "state": change.state.value})
            await self._finals.fail(call, b"", reason=Reason.LOST, header=stored.message.traceparent, dead=True,
                message="nobody had it any more")  # fmt: skip
            lost += 1
        return lost

    async def _owned(self, change: StateChange) -> bool:
        job, tenant, function = change.job, change.tenant, function_of(change.job)
        if self._dispatcher.holds(job) is not None:
            return True
        if await self._bus.get_last("RECORDS", subjects.record(tenant, job)) is not None:
            return True
        if change.state is State.PROCESSING and change.executor in self._executors:
            return True
        for stream, pattern in (
            ("RUNS", f"{subjects.PREFIX}.runs.*.{job}"),
            ("RUNS_SYNC", f"{subjects.PREFIX}.runs_sync.*.{job}"),
        ):
            if await self._bus.get_next(stream, pattern) is not None:
                return True
        for stream, subject in (
            ("OUTCOMES", subjects.outcome(tenant, function, job, sync=False)),
            ("OUTCOMES_SYNC", subjects.outcome(tenant, function, job, sync=True)),
        ):
            if await self._bus.get_last(stream, subject) is not None:
                return True
        if change.sequence:
            waiting = await self._bus.get_at("JOBS", change.sequence)
            return waiting is not None
        return await self._bus.get_next("JOBS", subjects.job(tenant, function)) is not None
