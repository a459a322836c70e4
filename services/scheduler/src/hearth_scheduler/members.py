"""Executors join, and die: their consumers, and the work of the dead."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from hearth_contracts import streams, subjects
from hearth_contracts.calls import Call, Ending, Record, Run, StateChange
from hearth_contracts.enums import Lane, State
from hearth_contracts.errors import ContractError, UndecodableMessage
from hearth_kit.background import Background
from hearth_kit.bus import Bus, ConsumerSpec, Stored
from hearth_kit.clock import Clock
from hearth_kit.errors import ApiError, BusError, PayloadTooLarge
from hearth_scheduler import metrics
from hearth_scheduler.domain import retry
from hearth_scheduler.domain.fleet import Executor, Fleet
from hearth_scheduler.held import dispatch_id

_log = logging.getLogger(__name__)

AGAIN_S: Final = 0.25
#: Runs of a dead executor that are looked at together.
TOGETHER: Final = 32
_LANES: Final = ((False, "RUNS"), (True, "RUNS_SYNC"))


class Members:
    """One per term of office."""

    def __init__(
        self,
        *,
        bus: Bus,
        fleet: Fleet,
        clock: Clock,
        ack_wait_s: float,
        ours: Callable[[], bool],
        joined: Callable[[Executor], None],
        bury: Callable[[Call, bytes, str, Ending], Awaitable[None]],
        end: Callable[[Call, bytes, str, Ending, bool], Awaitable[None]],
    ) -> None:
        self._bus = bus
        self._fleet = fleet
        self._clock = clock
        self._ack_wait_s = ack_wait_s
        self._ours = ours
        self._joined = joined
        self._keep = bury
        self._end = end
        self._tasks = Background("members")
        self._joining: set[str] = set()
        self._dying: set[str] = set()

    # Joining

    def heard(self, executor: Executor) -> None:
        if not executor.admitted and executor.id not in self._joining and executor.id not in self._dying:
            self._joining.add(executor.id)
            self._tasks.start(self._join(executor))

    async def _join(self, executor: Executor) -> None:
        try:
            while executor.id not in self._dying:
                try:
                    for sync, _ in _LANES:
                        await self.ensure(executor.id, sync=sync)
                except BusError as error:
                    _log.warning("an executor's consumers could not be made: %s", error, extra={"executor": executor.id})
                    await asyncio.sleep(AGAIN_S)
                    continue
                _log.info("an executor has joined", extra={"executor": executor.id})
                self._fleet.admitted(executor.id)
                self._joined(executor)
                return
        finally:
            self._joining.discard(executor.id)

    async def ensure(self, executor_id: str, *, sync: bool) -> None:
        await self._bus.ensure_consumer(
            ConsumerSpec(
                "RUNS_SYNC" if sync else "RUNS",
                streams.executor_consumer(executor_id),
                filter_subject=subjects.runs_of(executor_id, sync=sync),
                ack_wait_s=self._ack_wait_s,
            )
        )

    async def restore(self) -> None:
        """The sync lane's stream is new: so are its consumers."""
        for executor in list(self._fleet.executors.values()):
            if executor.admitted:
                await self.ensure(executor.id, sync=True)

    async def expect_known(self) -> None:
        """Whoever has a consumer was counted in by an earlier scheduler: if it is not heard any more, it has to be buried."""
        now = self._clock.monotonic()
        prefix = streams.executor_consumer("")
        for _, stream in _LANES:
            for name in await self._bus.consumer_names(stream):
                if name.startswith(prefix):
                    self._fleet.expect(name.removeprefix(prefix), now)

    # Dying

    def dead(self, executor_id: str) -> None:
        if executor_id not in self._dying:
            self._dying.add(executor_id)
            self._tasks.start(self._bury(executor_id))

    async def _bury(self, executor_id: str) -> None:
        """In this order: nothing more goes there; each of its runs travels back; only then its subjects and its consumers go,
        by which it learns of its death if it still lives."""
        executor = self._fleet.condemn(executor_id)
        if executor is None:
            return
        metrics.BURIED.inc()
        _log.warning("an executor has been silent too long: its runs are placed elsewhere", extra={"executor": executor_id})
        while True:
            try:
                while executor.storing > 0:
                    await asyncio.sleep(0.02)  # what is on its way into its stream must be there before the walk
                for sync, stream in _LANES:
                    await self._take_back(executor, stream, sync=sync)
                for sync, stream in _LANES:
                    await self._bus.purge(stream, subject=subjects.runs_of(executor_id, sync=sync))
                    await self._bus.delete_consumer(stream, streams.executor_consumer(executor_id))
                break
            except ApiError as error:
                _log.error("a dead executor could not be buried yet: %s", error, extra={"executor": executor_id})
                await asyncio.sleep(AGAIN_S)
            except BusError:
                await asyncio.sleep(AGAIN_S)
        self._fleet.bury(executor_id)
        self._dying.discard(executor_id)

    async def _take_back(self, executor: Executor, stream: str, *, sync: bool) -> None:
        """Each of its runs; one that the broker does not take now keeps none of the others."""
        sequence = 1
        subject = subjects.runs_of(executor.id, sync=sync)
        failed: BusError | None = None
        while True:
            batch: list[Stored] = []
            while len(batch) < TOGETHER:
                stored = await self._bus.get_next(stream, subject, sequence)
                if stored is None:
                    break
                batch.append(stored)
                sequence = stored.sequence + 1
            if not batch:
                break
            for error in await asyncio.gather(*(self._move(executor, stored, sync=sync) for stored in batch)):
                failed = failed or error
        if failed is not None:
            raise failed

    async def _move(self, executor: Executor, stored: Stored, *, sync: bool) -> BusError | None:
        """What to try again for. A run that cannot travel is ended here: nobody else would."""
        try:
            try:
                await self._travel_back(executor, stored, sync=sync)
            except BusError as error:
                if not isinstance(error, PayloadTooLarge):
                    raise
                _log.error("a run that cannot travel is ended: %s", error, extra={"executor": executor.id})
                await self._give_up(stored, sync=sync)
            except Exception:
                _log.exception("a run that could not be moved is ended", extra={"executor": executor.id})
                await self._give_up(stored, sync=sync)
        except PayloadTooLarge as error:
            _log.error("a run could not be ended: %s", error, extra={"executor": executor.id})
        except BusError as error:
            return error
        return None

    async def _give_up(self, stored: Stored, *, sync: bool) -> None:
        run = stored.message.meta(Run)
        ending = retry.lost_ending(run, f"executor {run.executor} died, and the call fits no message", self._clock.now())
        await self._end(run.call, stored.message.body, stored.message.traceparent, ending, sync)

    async def _travel_back(self, executor: Executor, stored: Stored, *, sync: bool) -> None:
        """Say of a run what its executor cannot: into the stream of outcomes, which then has the job in custody."""
        try:
            run = stored.message.meta(Run)
            subjects.record(run.call.tenant, run.call.job)
        except ContractError as error:
            _log.error("a run does not parse: %s", error)
            return
        call = run.call
        record = await self._bus.get_last("RECORDS", subjects.record(call.tenant, call.job))
        if record is not None:
            await self._ended(run, stored, record)
            return
        started = await self._had_started(executor, run, stored, sync=sync)
        outcome = retry.lost(run, started=started, why=f"executor {executor.id} died", now=self._clock.now())
        # The id its own outcome would have: if it did say something, that counts.
        msg_id = f"{dispatch_id(call.job, call.attempt, run.placement)}.outcome"
        await self._bus.publish(
            subjects.outcome(call.tenant, call.function, call.job, sync=sync), stored.message.body, meta=outcome,
            contract="outcome-sync.v1" if sync else "outcome.v1", msg_id=msg_id, traceparent=stored.message.traceparent,
        )  # fmt: skip
        metrics.REASSIGNED.inc()
        _log.info("a run was taken back", extra={"job": call.job, "executor": executor.id, "started": started})

    async def _ended(self, run: Run, stored: Stored, record: Stored) -> None:
        """It has its final. What may be missing is the acknowledgement, and the copy of what used up its attempts."""
        try:
            ending = record.message.meta(Record).ending
        except UndecodableMessage:
            return
        call = run.call
        last = run.is_last and ending.attempt == call.attempt
        if call.lane is Lane.ASYNC and last and ending.reason in retry.RETRYABLE:
            await self._keep(call, stored.message.body, stored.message.traceparent, ending)

    async def _had_started(self, executor: Executor, run: Run, stored: Stored, *, sync: bool) -> bool:
        """Whether the job may be what killed it: it had been taken in, or said to run."""
        if executor.reported and stored.sequence <= executor.accepted[sync]:
            return True
        last = await self._bus.get_last("STATES", subjects.state(run.call.tenant, run.call.job))
        if last is None:
            return False
        try:
            change = last.message.meta(StateChange)
        except UndecodableMessage:
            return False
        return change.state is State.PROCESSING and change.attempt == run.call.attempt and change.executor == executor.id

    async def stop(self) -> None:
        await self._tasks.cancel()
