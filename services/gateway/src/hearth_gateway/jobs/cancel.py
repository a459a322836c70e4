"""Ending a job that has not ended: the final first, then the executors are told (DELIVERY rules 2 and 12)."""

import asyncio
import contextlib
import logging
from dataclasses import dataclass
from typing import Final

from hearth_contracts import names, streams, subjects
from hearth_contracts.calls import Body, Call, Ending, Failure, Moved, MovedAnswer, Outcome, Record, Run, Timings
from hearth_contracts.enums import Lane, Persist, Reason, State
from hearth_contracts.fleet import Control
from hearth_gateway.adapters.fleet import Fleet
from hearth_gateway.errors import JobFinished, JobNotFound, Unavailable
from hearth_gateway.jobs.lookup import Found, Jobs
from hearth_kit.background import Background
from hearth_kit.bus import Bus, Stored, contract_headers
from hearth_kit.clock import Clock
from hearth_kit.errors import BusError, StreamMissing, WrongLastSequence
from hearth_kit.registry import Registry

_log = logging.getLogger(__name__)

_GATEWAY_NOTE: Final = "gateway:"
#: More than any dispatch of a job will ever be: no reply is taken any more.
_NEVER: Final = 1_000_000
ASK_S_MAX: Final = 2.0


@dataclass(frozen=True, slots=True)
class _Whole:
    """A call as it travels, with its inline input."""

    call: Call
    input: bytes


class Canceller:
    def __init__(self, *, bus: Bus, clock: Clock, jobs: Jobs, fleet: Fleet, registry: Registry) -> None:
        self._bus = bus
        self._clock = clock
        self._jobs = jobs
        self._fleet = fleet
        self._registry = registry
        self._tasks = Background("cancel")

    async def cancel(self, found: Found) -> tuple[Record, bytes]:
        """Write CANCELLED as the job's one final, then stop whatever runs. Raises `JobFinished` when another final was first."""
        if found.record is not None:
            raise JobFinished(f"it ended as {found.record.ending.state.value}")
        held = found.held
        if held is not None:
            held.frozen = True  # from here on no reply is taken: the caller is told what the record says
        else:
            await self._ask_holder(found)
        try:
            record, body = await self._record(found)
            await self._bus.publish(
                subjects.record(found.tenant, found.job), body, meta=record, contract="record.v1", expect_last=0,
                msg_id=f"{found.job}.cancelled",
            )  # fmt: skip
        except WrongLastSequence:
            await self._settle_by_record(found)
            raise JobFinished from None
        except BaseException:
            if held is not None:
                # Perhaps written, perhaps not: the record is looked up soon, and replies count again if there is none.
                held.look_at = 0.0
                held.frozen = False
            raise
        if held is not None and not held.future.done():
            self._jobs.custody.resolve_by_record(held, record, body)
        self._tasks.start(self._stop_runs(found.job), "stop-runs")
        return record, body

    async def _settle_by_record(self, found: Found) -> None:
        held = found.held
        if held is None or held.future.done():
            return
        recorded = await self._jobs.record(found.tenant, found.job)
        if recorded is not None:
            self._jobs.custody.resolve_by_record(held, *recorded)

    async def _ask_holder(self, found: Found) -> None:
        """A sync call held by another gateway: it must stop taking replies before the record is written."""
        holder = next((s.note.removeprefix(_GATEWAY_NOTE) for s in found.states if s.note.startswith(_GATEWAY_NOTE)), "")
        if not holder or holder == self._bus.instance:
            return
        moved = Moved(job=found.job, attempt=_NEVER, placement=0)
        headers = contract_headers(meta=moved, contract="moved.v1", msg_id="", traceparent="", expect_last=None, headers=None)
        try:
            message = await self._bus.request(subjects.moved(holder), headers=headers, timeout_s=ASK_S_MAX)
        except StreamMissing:
            return  # nobody listens: a gateway that is gone answers nobody's caller
        except BusError as error:
            # It may only be slow, and an earlier reply may lie unread before it: its caller would hear another end than the
            # record tells.
            raise Unavailable("the gateway that holds its caller does not answer", retry_after_s=ASK_S_MAX) from error
        if message.meta(MovedAnswer).answered:
            raise JobFinished("its caller has the answer")

    async def _record(self, found: Found) -> tuple[Record, bytes]:
        whole = await self._whole(found)
        now = self._clock.now()
        if whole is None:
            # It is between two hops; its version is unknown, so the current one stands for it.
            function = names.function_of(found.job)
            head = self._registry.head(found.tenant, function)
            if head is None:
                raise JobNotFound(f"no job {found.job}")
            whole = _Whole(
                Call(job=found.job, tenant=found.tenant, function=function, version=head.current, lane=Lane.ASYNC,
                    submitted_at=names.made_at(found.job), input=Body(content_type="", size=0)), b""
            )  # fmt: skip
        call = whole.call
        version = self._registry.known(found.tenant, call.function, call.version)
        record = Record(
            job=call.job, tenant=call.tenant, function=call.function, version=call.version, lane=call.lane,
            ending=Ending(
                state=State.FAILED, reason=Reason.CANCELLED, failure=Failure(type="Cancelled", message="cancelled by request"),
                result=Body(size=0), attempt=found.states[-1].attempt if found.states else 1,
                timings=Timings(submitted_at=call.submitted_at, finished_at=now),
            ),
            input=call.input, log=Body(content_type="text/plain", size=0), http=call.http, trace_id=found.trace_id,
            persist=version is None or version.spec.persist is Persist.ALL, depth=call.depth, parent=call.parent,
            replay_of=call.replay_of, recorded_at=now, stated=True,
        )  # fmt: skip
        return record, whole.input

    async def _whole(self, found: Found) -> _Whole | None:
        """The call with its input, wherever it lies now: here, waiting, placed, or on its way back."""
        if found.held is not None:
            return _Whole(found.held.call, found.held.body)
        sequence = next((state.sequence for state in found.states if state.sequence), 0)
        if sequence:
            stored = await self._bus.get_at(streams.JOBS.name, sequence)
            if stored is not None and stored.message.meta(Call).job == found.job:
                return _Whole(stored.message.meta(Call), stored.message.body)
        for sync in (False, True):
            name = streams.RUNS_SYNC.name if sync else streams.RUNS.name
            stored = await self._bus.get_next(name, subjects.run_anywhere(found.job, sync=sync))
            if stored is not None:
                return _Whole(stored.message.meta(Run).call, stored.message.body)
        return self._of_outcome(
            await self._bus.get_last(
                streams.OUTCOMES.name, subjects.outcome(found.tenant, names.function_of(found.job), found.job, sync=False)
            )
        )

    @staticmethod
    def _of_outcome(stored: Stored | None) -> _Whole | None:
        if stored is None:
            return None
        return _Whole(stored.message.meta(Outcome).run.call, stored.message.body)

    async def _stop_runs(self, job: str) -> None:
        """Every living executor is told; the one that runs it stops it, the others have nothing to do."""
        control = Control(verb="cancel", job=job)
        headers = contract_headers(meta=control, contract="control.v1", msg_id="", traceparent="", expect_last=None, headers=None)

        async def tell(executor: str) -> None:
            with contextlib.suppress(BusError):
                await self._bus.request(subjects.control(executor), headers=headers, timeout_s=ASK_S_MAX)

        await asyncio.gather(*(tell(executor) for executor in self._fleet.executors()))

    async def drain(self) -> None:
        await self._tasks.drain(ASK_S_MAX)
