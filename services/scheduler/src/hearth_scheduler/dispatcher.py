"""Calls into places: holds what waits, asks the policy, publishes runs, settles what brought the call."""

import asyncio
import logging
from collections.abc import Callable

from hearth_contracts import subjects
from hearth_contracts.calls import Run
from hearth_kit.background import Background
from hearth_kit.bus import Bus
from hearth_kit.clock import Clock
from hearth_kit.errors import BusError
from hearth_kit.tracing import Tracer
from hearth_scheduler import metrics
from hearth_scheduler.config import Settings
from hearth_scheduler.domain import retry
from hearth_scheduler.domain.fleet import Executor, Sent
from hearth_scheduler.domain.placement import Placed, place
from hearth_scheduler.domain.queues import Queues
from hearth_scheduler.waiting import Waiting

_log = logging.getLogger(__name__)

#: A held message is renewed when it has not been for so long; the broker waits three times that.
KEEP_S = 1.5


class Dispatcher:
    """The waiting calls of the active scheduler and the fleet they go to."""

    def __init__(
        self,
        *,
        bus: Bus,
        clock: Clock,
        tracer: Tracer,
        settings: Settings,
        fleet: dict[str, Executor],
        epoch: Callable[[], int | None],
    ) -> None:
        self._bus = bus
        self._clock = clock
        self._tracer = tracer
        self._settings = settings
        self._fleet = fleet
        self._epoch = epoch
        self._queues: Queues[Waiting] = Queues()
        self._held: dict[str, Waiting] = {}
        self._flying: dict[str, Waiting] = {}
        self._publishing = Background("placement")
        self._kicked = False
        self._loop = asyncio.get_running_loop()
        self.placed: Callable[[Waiting], None] = lambda waiting: None
        """Told each call that has left our hands."""

    @property
    def queues(self) -> Queues[Waiting]:
        return self._queues

    def holds(self, job: str) -> Waiting | None:
        return self._held.get(job) or self._flying.get(job)

    def put(self, waiting: Waiting, *, first: bool = False) -> None:
        """Take custody. Of two messages for one job the newer dispatch stays; an equal one only renews what settles it."""
        job = waiting.call.job
        known = self._held.get(job)
        if known is not None:
            if (waiting.call.attempt, waiting.call.placement) <= (known.call.attempt, known.call.placement):
                if known.source == waiting.source:
                    known.message = waiting.message
                elif waiting.message is not None:
                    waiting.message.ack()
                return
            self.drop(known)
        flying = self._flying.get(job)
        if flying is not None and (waiting.call.attempt, waiting.call.placement) <= (flying.call.attempt, flying.call.placement):
            if flying.source == waiting.source:
                flying.message = waiting.message
            return
        self._held[job] = waiting
        self._queues.put(waiting.call.tenant, waiting.call.function, waiting, first=first)
        self.kick()

    def drop(self, waiting: Waiting) -> None:
        """Let go of a call that has its final already."""
        self._held.pop(waiting.call.job, None)
        self._queues.remove(waiting.call.tenant, waiting.call.function, waiting)
        if waiting.message is not None:
            waiting.message.ack()

    def kick(self) -> None:
        """Offer what waits, once in this turn of the loop."""
        if not self._kicked:
            self._kicked = True
            self._loop.call_soon(self._serve)

    def _serve(self) -> None:
        self._kicked = False
        epoch = self._epoch()
        if epoch is None or not self._queues.size or not self._bus.connected:
            return
        now = self._clock.now()
        suspect_after_s = self._settings.suspect_after_s
        executors = self._fleet.values()

        def take(waiting: Waiting) -> bool:
            where = place(waiting.need, executors, now, suspect_after_s)
            if not isinstance(where, Placed):
                waiting.wait_reason = where.reason
                return False
            self._fleet[where.executor].flying += 1
            del self._held[waiting.call.job]
            self._flying[waiting.call.job] = waiting
            self._publishing.start(self._publish(waiting, where, epoch, now))
            return True

        self._queues.serve(take)

    async def _publish(self, waiting: Waiting, where: Placed, epoch: int, placed_at: float) -> None:
        call = waiting.call
        at = waiting.at.child()
        run = Run(
            call=call, executor=where.executor, placement=call.placement, epoch=epoch,
            is_last=retry.is_last(waiting.version.spec.retry, call.attempt), placed_at=placed_at, reason=where.reason,
        )  # fmt: skip
        executor = self._fleet.get(where.executor)
        try:
            subject = subjects.run(where.executor, call.job, sync=waiting.sync)
            ack = await self._bus.publish(
                subject, waiting.body, meta=run, contract="run-sync.v1" if waiting.sync else "run.v1", msg_id=waiting.dispatch,
                traceparent=at.header, timeout_s=10,
            )  # fmt: skip
            if ack.duplicate and not await self._is_there(waiting, where.executor):
                # Swallowed: the same dispatch went to another executor before. It is there, and its end will be told.
                _log.info("dispatch was out already", extra={"job": call.job, "dispatch": waiting.dispatch})
        except BusError as error:
            _log.warning("placing failed, trying again: %s", error, extra={"job": call.job})
            self._flying.pop(call.job, None)
            self._held[call.job] = waiting
            self._queues.put(call.tenant, call.function, waiting, first=True)
            self._loop.call_later(0.2, self.kick)
            return
        finally:
            if executor is not None:
                executor.flying -= 1
        self._flying.pop(call.job, None)
        if executor is not None:
            executor.dispatched(Sent(ack.sequence, waiting.sync, waiting.need.key, waiting.need.pool))
        if waiting.message is not None:
            waiting.message.ack()
        self.placed(waiting)
        lane = "sync" if waiting.sync else "async"
        metrics.PLACED.labels(reason=where.reason, lane=lane).inc()
        if waiting.at.sampled:
            self._spans(waiting, where, at.span_id, placed_at)

    async def _is_there(self, waiting: Waiting, executor: str) -> bool:
        stream = "RUNS_SYNC" if waiting.sync else "RUNS"
        return await self._bus.get_last(stream, subjects.run(executor, waiting.call.job, sync=waiting.sync)) is not None

    def _spans(self, waiting: Waiting, where: Placed, send_id: str, placed_at: float) -> None:
        now, at = self._clock.now(), waiting.at
        span = self._tracer.span
        call = waiting.call
        facts = {"faas.name": call.function, "faas.invocation_id": call.job, "messaging.system": "nats"}
        lane = "calls" if waiting.sync else "jobs"
        runs = "runs_sync" if waiting.sync else "runs"
        parent = waiting.header[36:52]
        span(at, f"process hearth.v1.{lane}", parent=parent, start=waiting.arrived_at, end=now, kind="consumer",
             attributes={**facts, "messaging.destination.template": f"hearth.v1.{lane}.<tenant>.<function>",
                         "nats.delivery.attempt": waiting.message.delivered if waiting.message is not None else 1},
             links=() if waiting.sync else (waiting.header,))  # fmt: skip
        span(at.child(), "wait", parent=at.span_id, start=waiting.arrived_at, end=placed_at,
             attributes={"hearth.reason": waiting.wait_reason or "none"})  # fmt: skip
        span(at.child(), "place", parent=at.span_id, start=placed_at, end=placed_at,
             attributes={"hearth.reason": where.reason, "hearth.executor": where.executor})  # fmt: skip
        sending = type(at)(at.trace_id, send_id, at.sampled)
        span(sending, f"send hearth.v1.{runs}", parent=at.span_id, start=placed_at, end=now, kind="producer",
             attributes={"messaging.system": "nats", "messaging.destination.template": f"hearth.v1.{runs}.<executor>.<job>"})  # fmt: skip

    def keep(self) -> None:
        """Tell the broker that we still hold what waits. Called about each second."""
        now = self._clock.now()
        oldest = now
        for waiting in self._held.values():
            oldest = min(oldest, waiting.arrived_at)
            if now - waiting.kept_at >= KEEP_S and waiting.message is not None:
                waiting.message.in_progress()
                waiting.kept_at = now
        metrics.WAITING.set(len(self._held))
        metrics.OLDEST.set(now - oldest)

    def let_go(self) -> list[Waiting]:
        """Everything held, handed to whoever is active next."""
        held = list(self._held.values())
        for waiting in held:
            if waiting.message is not None:
                waiting.message.nak()
        self._held.clear()
        self._queues = Queues()
        return held

    async def drain(self, timeout_s: float) -> None:
        await self._publishing.drain(timeout_s)
