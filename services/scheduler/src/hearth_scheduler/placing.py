"""Storing a run where its executor finds it, and being sure that it is there."""

import asyncio
import logging
from enum import Enum, auto
from typing import Final

from hearth_contracts import subjects
from hearth_contracts.calls import Call, Outcome, Run
from hearth_contracts.errors import UndecodableMessage
from hearth_kit.bus import Ack, Bus, Stored
from hearth_kit.clock import Clock
from hearth_kit.errors import BusError, PayloadTooLarge, StreamFull
from hearth_kit.message import META
from hearth_kit.tracing import Tracer
from hearth_scheduler import metrics
from hearth_scheduler.domain.fleet import Fleet
from hearth_scheduler.domain.placement import Placed
from hearth_scheduler.held import Held, dispatch_id
from hearth_scheduler.spans import PlacementSpans

_log = logging.getLogger(__name__)

PUBLISH_S: Final = 5.0
AGAIN_S: Final = 0.25


class Fate(Enum):
    """What became of a placement."""

    STORED = auto()
    CARRIED = auto()
    """The job is on its way elsewhere, or has ended: there is nothing left to do."""
    FULL = auto()
    """The stream is full: certainly not stored."""
    TOO_LARGE = auto()
    ANEW = auto()
    """It can only be placed under another id."""


class Placer:
    def __init__(self, *, bus: Bus, fleet: Fleet, clock: Clock, tracer: Tracer, epoch: int) -> None:
        self._bus = bus
        self._fleet = fleet
        self._clock = clock
        self._tracer = tracer
        self._epoch = epoch

    async def store(self, held: Held, placed: Placed) -> tuple[Fate, int]:
        """Publish the run until the broker has it; its sequence when it is stored."""
        call, executor = held.call, placed.executor.id
        now = self._clock.now()
        spans = PlacementSpans.begin(self._tracer, held, placed, now)
        metrics.WAIT.observe(now - held.arrived_at)
        subject = subjects.run(executor, call.job, sync=held.sync)
        msg_id = dispatch_id(call.job, call.attempt, call.placement)
        headers = {META: self._meta(held, placed, now)}
        contract = "run-sync.v1" if held.sync else "run.v1"
        header = held.header if spans is None else spans.travels
        while True:
            try:
                ack = await self._bus.publish(
                    subject, held.body, contract=contract, msg_id=msg_id, traceparent=header, headers=headers, timeout_s=PUBLISH_S
                )
                break
            except StreamFull:
                return Fate.FULL, 0
            except PayloadTooLarge:
                return Fate.TOO_LARGE, 0
            except BusError as error:
                # It may be stored, or not: the same words under the same id until somebody says, or until there is nobody
                # to say them to.
                if not placed.executor.admitted:
                    return Fate.ANEW, 0
                _log.debug("a placement is not acknowledged: %s", error, extra={"job": call.job})
                await asyncio.sleep(AGAIN_S)
        if spans is not None:
            spans.end(self._clock.now())
        if ack.duplicate:
            return await self._known(held, subject, ack)
        return Fate.STORED, ack.sequence

    def _meta(self, held: Held, placed: Placed, now: float) -> str:
        """A run's meta. The call inside is what arrived, word for word, as long as nothing in it has changed."""
        call, version = held.call, held.version
        assert version is not None
        is_last = call.attempt >= version.spec.retry.attempts
        if held.text:
            # Written by hand: none of these holds a character that JSON would escape, and it is a tenth of the cost.
            return (
                f'{{"call":{held.text},"executor":"{placed.executor.id}","placement":{call.placement},"epoch":{self._epoch},'
                f'"is_last":{"true" if is_last else "false"},"placed_at":{now!r},"reason":"{placed.why}"}}'
            )
        return Run(
            call=call, executor=placed.executor.id, placement=call.placement, epoch=self._epoch, is_last=is_last, placed_at=now,
            reason=placed.why.value,
        ).model_dump_json(exclude_defaults=True)  # fmt: skip

    async def _known(self, held: Held, subject: str, ack: Ack) -> tuple[Fate, int]:
        """The stream has seen this id before. That is success only if the run lies where it should; or the job is elsewhere,
        or over, or nowhere, because a stream's memory of ids outlives their messages."""
        call, sync = held.call, held.sync
        runs = "RUNS_SYNC" if sync else "RUNS"
        outcomes = "OUTCOMES_SYNC" if sync else "OUTCOMES"
        steps = (
            ("here", lambda: self._bus.get_last(runs, subject)),
            ("elsewhere", lambda: self._bus.get_next(runs, subjects.run_anywhere(call.job, sync=sync))),
            ("back", lambda: self._bus.get_last(outcomes, subjects.outcome(call.tenant, call.function, call.job, sync=sync))),
            ("over", lambda: self._bus.get_last("RECORDS", subjects.record(call.tenant, call.job))),
            # It may have moved from one to the next between two looks.
            ("elsewhere", lambda: self._bus.get_next(runs, subjects.run_anywhere(call.job, sync=sync))),
        )
        for found, look in steps:
            while True:
                try:
                    stored = await look()
                    break
                except BusError:
                    await asyncio.sleep(AGAIN_S)
            if stored is not None and not _is_older(stored, call):
                metrics.ELSEWHERE.labels(found).inc()
                return (Fate.STORED, stored.sequence) if found == "here" else (Fate.CARRIED, 0)
        metrics.ELSEWHERE.labels("nowhere").inc()
        return Fate.ANEW, 0


def _is_older(stored: Stored, call: Call) -> bool:
    """Whether this is only an earlier dispatch that its executor has not let go of yet."""
    kind = stored.subject.split(".")[2]
    try:
        if kind.startswith("runs"):
            run = stored.message.meta(Run)
        elif kind.startswith("outcomes"):
            run = stored.message.meta(Outcome).run
        else:
            return False
    except UndecodableMessage:
        return True
    return (run.call.attempt, run.placement) < (call.attempt, call.placement)
