"""Finds jobs that have a state, no final, and nobody who holds them: what no rule foresaw still comes to an end.

It reads STATES slowly from end to end. A job that it finds ownerless twice in a row is FAILED(lost); while its run still lies
in a stream that nobody reads, it travels back and is tried again.
"""

import asyncio
import enum
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from hearth_contracts import names, subjects
from hearth_contracts.calls import ArchiveQuery, Call, Moved, MovedAnswer, Run, StateChange
from hearth_contracts.enums import Lane, Persist, Reason
from hearth_contracts.errors import ContractError, InvalidName, UndecodableMessage
from hearth_kit.bus import Bus, Stored, contract_headers
from hearth_kit.clock import Clock
from hearth_kit.errors import BusError, StreamMissing
from hearth_kit.registry import Registry
from hearth_scheduler import errors, metrics
from hearth_scheduler.domain import retry
from hearth_scheduler.domain.fleet import Fleet
from hearth_scheduler.finished import clear_states
from hearth_scheduler.held import dispatch_id
from hearth_scheduler.settling import Settler

_log = logging.getLogger(__name__)

#: States looked at per sweep: the whole day's worth is read in time, and never at anybody's cost.
LOOKED_AT_MAX: Final = 2000
ASK_S: Final = 1.0
GATEWAY_NOTE: Final = "gateway:"


class Archived(enum.Enum):
    """Whether a record that the broker does not have is in a store."""

    YES = enum.auto()
    NO = enum.auto()
    UNKNOWN = enum.auto()


@dataclass(frozen=True, slots=True)
class Orphan:
    """A job that was found without an owner."""

    change: StateChange
    seen_at: float


class Sweeper:
    def __init__(
        self,
        *,
        bus: Bus,
        clock: Clock,
        fleet: Fleet,
        registry: Registry,
        settler: Settler,
        every_s: float,
        held: Callable[[str], bool],
    ) -> None:
        self._bus = bus
        self._clock = clock
        self._fleet = fleet
        self._registry = registry
        self._settler = settler
        self._every_s = every_s
        self._held = held
        self._next = 1
        self._orphans: dict[str, Orphan] = {}

    async def run(self) -> None:
        """As long as the term."""
        while True:
            await asyncio.sleep(self._every_s)
            try:
                await self.sweep()
            except BusError as error:
                _log.info("a sweep was cut short: %s", error)

    async def sweep(self) -> None:
        for orphan in list(self._orphans.values()):
            await self._look_again(orphan)
        for _ in range(LOOKED_AT_MAX):
            stored = await self._bus.get_next("STATES", subjects.STATES_ALL, self._next)
            if stored is None or self._clock.now() - stored.at < self._every_s:
                self._next = 1  # everything old enough was seen: from the start with the next sweep
                return
            self._next = stored.sequence + 1
            try:
                await self._look(stored)
            except ContractError as error:
                _log.warning("a state does not parse: %s", error)

    async def _look(self, stored: Stored) -> None:
        change = stored.message.meta(StateChange)
        if change.job in self._orphans or self._held(change.job) or await self._is_recorded(change):
            return
        if not await self._is_owned(change):
            self._orphans[change.job] = Orphan(change, self._clock.monotonic())

    async def _is_recorded(self, change: StateChange) -> bool:
        """Whether it has its final, which takes what is left of its states along."""
        recorded = await self._bus.get_last("RECORDS", subjects.record(change.tenant, change.job)) is not None
        if recorded:
            await clear_states(self._bus, change.tenant, change.job)
        return recorded

    async def _look_again(self, orphan: Orphan) -> None:
        """Twice, a sweep apart: a job may be between two hands for a moment."""
        change = orphan.change
        if self._clock.monotonic() - orphan.seen_at < self._every_s / 2:
            return
        del self._orphans[change.job]
        last = await self._bus.get_last("STATES", subjects.state(change.tenant, change.job))
        if last is not None:
            try:
                change = last.message.meta(StateChange)
            except UndecodableMessage:
                return
        if self._held(change.job) or await self._is_recorded(change) or await self._is_owned(change):
            return
        for sync in (False, True):
            stored = await self._bus.get_next("RUNS_SYNC" if sync else "RUNS", subjects.run_anywhere(change.job, sync=sync))
            if stored is not None:
                await self._bring_back(stored, sync=sync)
                return
        match await self._archived(change, last):
            case Archived.YES:
                await clear_states(self._bus, change.tenant, change.job)
            case Archived.NO:
                await self._lost(change)
            case Archived.UNKNOWN:
                pass  # nobody can say: it is left alone

    async def _is_owned(self, change: StateChange) -> bool:
        """Whether somebody will bring it to an end. Cheap questions first."""
        job, tenant = change.job, change.tenant
        function = names.function_of(job)
        for sync in (False, True):
            if await self._bus.get_last(
                "OUTCOMES_SYNC" if sync else "OUTCOMES", subjects.outcome(tenant, function, job, sync=sync)
            ):
                return True
            stored = await self._bus.get_next("RUNS_SYNC" if sync else "RUNS", subjects.run_anywhere(job, sync=sync))
            if stored is not None and stored.subject.split(".")[3] in self._fleet.executors:
                return True
        if change.sequence:
            waiting = await self._bus.get_at("JOBS", change.sequence)
            if waiting is not None and waiting.subject == subjects.job(tenant, function):
                return True
        return await self._is_in_custody(change)

    async def _is_in_custody(self, change: StateChange) -> bool:
        """A sync call's gateway holds it until it has an answer, or is gone."""
        if not change.note.startswith(GATEWAY_NOTE):
            return False
        moved = Moved(job=change.job, attempt=1, placement=0)  # every dispatch counts still: it is only asked
        headers = contract_headers(meta=moved, contract="moved.v1", msg_id="", traceparent="", expect_last=None, headers=None)
        gateway = change.note.removeprefix(GATEWAY_NOTE)
        try:
            answer = (await self._bus.request(subjects.moved(gateway), headers=headers, timeout_s=ASK_S)).meta(MovedAnswer)
        except (StreamMissing, UndecodableMessage, InvalidName):
            return False
        # It waits, but its call is nowhere: an end has to be found for it.
        return answer.answered

    async def _archived(self, change: StateChange, last: Stored | None) -> Archived:
        """Whether its record has left the broker for the stores."""
        info = await self._bus.stream_info("RECORDS")
        if info is None:
            return Archived.UNKNOWN
        if not info.first_sequence or info.last_sequence == 0:
            return Archived.NO
        oldest = await self._bus.get_at("RECORDS", info.first_sequence)
        if oldest is not None and last is not None and oldest.at < last.at:
            return Archived.NO  # nothing that young has left yet
        version = self._registry.head(change.tenant, names.function_of(change.job))
        query = ArchiveQuery(tenant=change.tenant, job=change.job)
        headers = contract_headers(meta=query, contract="archive.v1", msg_id="", traceparent="", expect_last=None, headers=None)
        try:
            answer = await self._bus.request(subjects.ARCHIVE, headers=headers, timeout_s=ASK_S)
        except BusError:
            return Archived.UNKNOWN
        if "Hearth-Error" in answer.headers:
            return Archived.UNKNOWN  # a store that may have it cannot be read
        if answer.headers.get("Hearth-Missing") != "1":
            return Archived.YES
        current = self._registry.known(change.tenant, names.function_of(change.job), version.current) if version else None
        return Archived.NO if current is not None and current.spec.persist is Persist.ALL else Archived.UNKNOWN

    async def _bring_back(self, stored: Stored, *, sync: bool) -> None:
        """A run in a stream that nobody reads any more: its executor was buried before it was stored."""
        try:
            run = stored.message.meta(Run)
        except UndecodableMessage:
            return
        call = run.call
        outcome = retry.lost(run, started=False, why=f"executor {run.executor} is gone", now=self._clock.now())
        await self._bus.publish(
            subjects.outcome(call.tenant, call.function, call.job, sync=sync), stored.message.body, meta=outcome,
            contract="outcome-sync.v1" if sync else "outcome.v1",
            msg_id=f"{dispatch_id(call.job, call.attempt, run.placement)}.outcome", traceparent=stored.message.traceparent,
        )  # fmt: skip
        await self._bus.purge("RUNS_SYNC" if sync else "RUNS", subject=stored.subject)
        metrics.SWEPT.labels("again").inc()
        _log.warning("a run that nobody would have read was taken back", extra={"job": call.job})

    async def _lost(self, change: StateChange) -> None:
        sync = change.note.startswith(GATEWAY_NOTE)
        now = self._clock.now()
        head = self._registry.head(change.tenant, names.function_of(change.job))
        call = Call(
            job=change.job, tenant=change.tenant, function=names.function_of(change.job), version=head.current if head else 0,
            lane=Lane.SYNC if sync else Lane.ASYNC, gateway=change.note.removeprefix(GATEWAY_NOTE) if sync else "",
            submitted_at=names.made_at(change.job), attempt=change.attempt,
        )  # fmt: skip
        ending = retry.failed(call, Reason.LOST, errors.LOST, "nobody holds this job any more, and its input is gone", now)
        await self._settler.end(call, b"", "", ending, sync=sync, version=None, dead=True)
        metrics.SWEPT.labels("lost").inc()
        _log.error("a job was lost", extra={"job": change.job})
