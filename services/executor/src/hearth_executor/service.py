"""The executor: takes runs in, gives each a slot, sees it settled; stops runs, drains, hands back."""

import asyncio
import logging
from collections import OrderedDict, deque
from typing import Final

from hearth_contracts.calls import Ending, Run, Timings
from hearth_contracts.enums import OutcomeKind, Reason, Start
from hearth_executor import metrics, run_spans
from hearth_executor.capacity import Reporter
from hearth_executor.domain import ending as endings
from hearth_executor.domain import intake, queue_room
from hearth_executor.domain.intake import Verdict
from hearth_executor.domain.queue_room import Pace
from hearth_executor.held import Held, Phase, Stop, dispatch_id
from hearth_executor.membership import Membership
from hearth_executor.runs import Runner
from hearth_executor.settling import Ended, Settler
from hearth_kit.background import Background
from hearth_kit.bus import Stored
from hearth_kit.clock import Clock
from hearth_kit.message import Message
from hearth_kit.tracing import Tracer

_log = logging.getLogger(__name__)

#: Dispatches that have ended here, remembered so that a redelivery is acknowledged and nothing more.
SETTLED_MAX: Final = 8192
#: Jobs somebody asked to cancel before their run came.
CANCELLED_MAX: Final = 1024
#: Functions whose pace is remembered.
PACES_MAX: Final = 1024
#: Runs taken in beyond the room that was reported, per slot, before they are refused: a report may be late.
WAITING_MAX: Final = 32
#: A sync call still running after this has its state published: a quick one has its final by then.
STATE_AFTER_S: Final = 0.05
#: A long one says again that it runs, before the stream forgets.
STATE_AGAIN_S: Final = 3600.0
#: A sandbox that is told to stop has done so by then (grace, kill and some).
STOP_S_MAX: Final = 5.0


class Executor:
    def __init__(
        self,
        *,
        runner: Runner,
        settler: Settler,
        membership: Membership,
        clock: Clock,
        tracer: Tracer,
        slots: int,
        heartbeat_s: float,
    ) -> None:
        self._runner = runner
        self._settler = settler
        self._membership = membership
        self._clock = clock
        self._tracer = tracer
        self._heartbeat_s = heartbeat_s
        self._loop = asyncio.get_running_loop()
        self._tasks = Background("run")
        self._held: dict[str, Held] = {}
        self._waiting: dict[str, deque[Held]] = {}
        self._settled: OrderedDict[str, None] = OrderedDict()  # in a plain dict, finding the oldest is a walk past the gone
        self._cancelled: OrderedDict[str, None] = OrderedDict()
        self._paces: dict[str, Pace] = {}
        self._reporter: Reporter | None = None
        self.slots = slots
        self.free = slots
        self.waiting = 0
        self.draining = False
        self.epoch = 0
        self.calls = 0
        self.accepted = {False: 0, True: 0}
        """Highest stream sequence taken in; False: RUNS, True: RUNS_SYNC."""
        self.busy: dict[str, int] = {}
        """Runs in a slot, per `tenant.function.version`."""
        metrics.HELD.set_function(lambda: len(self._held))
        metrics.WAITING.set_function(lambda: self.waiting)
        metrics.FREE.set_function(lambda: self.free)

    def report_to(self, reporter: Reporter) -> None:
        self._reporter = reporter

    # Intake

    def accept(self, run: Run, message: Message, *, sync: bool) -> None:
        """A run has arrived. Called from the read loop."""
        call = run.call
        self._membership.accepted()
        if message.delivered == 1:
            # First deliveries come in order. A lower sequence than before is a stream made anew, and counts from there.
            self.accepted[sync] = message.sequence
        dispatch = dispatch_id(call.job, call.attempt, run.placement)
        # Another dispatch of the same attempt can only be in hand when this is not the first one, or was a twin's elder.
        twin = self._held.get(dispatch) or (self._twin(call.job, call.attempt) if run.placement else None)
        verdict = intake.decide(
            intake.Arrival(
                attempt=call.attempt,
                placement=run.placement,
                epoch=run.epoch,
                delivered=message.delivered,
                settled=dispatch in self._settled,
                twin=None if twin is None else intake.Twin(twin.run.placement, twin.phase is Phase.ENDING),
                cancelled=bool(self._cancelled) and call.job in self._cancelled,
            ),
            epoch_seen=self.epoch,
            draining=self.draining,
            full=self.free <= 0 and self.waiting >= self.slots * WAITING_MAX,
        )
        _INTAKE[verdict].inc()
        self.epoch = max(self.epoch, run.epoch)
        if verdict is Verdict.RUN or verdict is Verdict.LOOK_FIRST:
            self._take_in(self._hold(run, message, dispatch, sync=sync), look_first=verdict is Verdict.LOOK_FIRST)
        elif verdict is Verdict.SETTLED and not (sync and call.gateway):
            message.ack()
        elif verdict is Verdict.SETTLED:
            self._say_again(run, message, dispatch)
        elif twin is not None and verdict is Verdict.SAME:
            # The same message again: the older delivery of it can no longer be settled.
            twin.messages = [known for known in twin.messages if known.sequence != message.sequence] + [message]
        elif twin is not None and verdict is Verdict.ADOPT:
            self._adopt(twin, run, message, dispatch)
        else:
            self._send_back(self._hold(run, message, dispatch, sync=sync), *_BACK[verdict])

    def _hold(self, run: Run, message: Message, dispatch: str, *, sync: bool) -> Held:
        call = run.call
        header = message.traceparent
        came = self._tracer.continued(header)
        held = Held(
            run=run,
            body=message.body,
            sync=sync,
            key=f"{call.tenant}.{call.function}.{call.version}",
            header=header,
            at=came.child() if came.sampled else came,
            arrived_at=self._clock.now(),
            messages=[message],
        )
        self._held[dispatch] = held
        return held

    def _twin(self, job: str, attempt: int) -> Held | None:
        for held in self._held.values():
            if held.run.call.job == job and held.run.call.attempt == attempt:
                return held
        return None

    def _adopt(self, twin: Held, run: Run, message: Message, dispatch: str) -> None:
        """A later dispatch of what already runs here: one end answers both."""
        self._held.pop(dispatch_id(run.call.job, run.call.attempt, twin.run.placement), None)
        self._held[dispatch] = twin
        twin.run = run
        twin.messages.append(message)

    def _say_again(self, run: Run, message: Message, dispatch: str) -> None:
        """A dispatch that has ended here comes once more: an acknowledgement was lost, or its caller asks for the answer."""
        held = self._hold(run, message, dispatch, sync=True)
        held.phase = Phase.ENDING
        held.task = self._tasks.start(self._answer_again(held))

    async def _answer_again(self, held: Held) -> None:
        try:
            # It has ended, so it is never run again, not even when its record is not there: that may lie in the stores, or
            # what was told was an outcome, and neither can be known here. Who waits for a record asks the archive.
            stored = await self._settler.winner(held)
            if stored is not None:
                await self._settler.settle_with(held, stored)
            else:
                held.ack()
        finally:
            self._forget(held, settled=True)

    def _take_in(self, held: Held, *, look_first: bool) -> None:
        held.look_first = look_first
        if self._reporter is not None:
            self._reporter.begun()
        if self.free > 0:
            self._start(held)
        else:
            self._waiting.setdefault(held.key, deque()).append(held)
            self.waiting += 1

    # Slots

    def _start(self, held: Held) -> None:
        self.free -= 1
        self.busy[held.key] = self.busy.get(held.key, 0) + 1
        pace = self._paces.get(held.key)
        if pace is None:
            pace = self._new_pace(held.key)
        pace.seen_at = self._loop.time()
        held.started_at = self._clock.now()
        held.task = self._tasks.start(self._carry(held, pace))

    def _new_pace(self, key: str) -> Pace:
        if len(self._paces) >= PACES_MAX:
            del self._paces[min(self._paces, key=lambda known: self._paces[known].seen_at)]
        pace = self._paces[key] = Pace()
        return pace

    async def _carry(self, held: Held, pace: Pace) -> None:
        try:
            await self._carry_through(held, pace)
        except Exception:
            self._forget(held)  # without heartbeats the broker delivers it again
            raise

    async def _carry_through(self, held: Held, pace: Pace) -> None:
        if held.at.sampled:
            run_spans.wait(self._tracer, held, until=held.started_at)
        metrics.WAIT.observe(held.started_at - held.arrived_at)
        stored: Stored | None = None
        ended: Ended | None = None
        try:
            if held.look_first:
                stored = await self._settler.winner(held)
            if stored is None:
                ended = await self._run(held)
        finally:
            held.phase = Phase.ENDING
            self._measure(held, pace, ended)
            self._freed(held)
        if held.stop is Stop.DISOWNED:
            self._forget(held)
        elif stored is not None:
            await self._settler.settle_with(held, stored)
            self._forget(held, settled=True)
        elif ended is not None:
            await self._settle(held, ended)

    async def _run(self, held: Held) -> Ended:
        held.phase = Phase.RUNNING
        timer: asyncio.TimerHandle | None = None
        if held.sync:
            timer = self._loop.call_later(STATE_AFTER_S, self._settler.processing, held)
        else:
            self._settler.processing(held)
        try:
            return await self._runner.carry(held)
        finally:
            if timer is not None:
                timer.cancel()

    async def _settle(self, held: Held, ended: Ended) -> None:
        """Tell how it ended. A defect in the telling must not leave the job without an end."""
        held.phase = Phase.ENDING
        try:
            told = await self._settler.settle(held, ended)
        except Exception:
            _log.exception("an ending could not be told", extra={"job": held.run.call.job})
            told = await self._settler.settle(held, Ended(self._untold(held)))
        self._forget(held, settled=told)

    def _untold(self, held: Held) -> Ending:
        why = endings.failure("E_EXECUTOR", "the executor could not say how the call ended")
        return endings.failed(
            held.run, Reason.LOST, why, executor=self._settler.executor, timings=Timings(submitted_at=held.run.call.submitted_at)
        )

    def _measure(self, held: Held, pace: Pace, ended: Ended | None) -> None:
        ending = ended.ending if ended is not None else None
        if ending is None:
            return
        took_s = self._clock.now() - held.started_at
        metrics.FUNCTION.observe(took_s)
        _STARTS[ending.start].inc()
        if ending.start is Start.WARM:
            pace.took(took_s * 1000)

    def _freed(self, held: Held) -> None:
        self.free += 1
        self.calls += 1
        left = self.busy[held.key] - 1
        if left:
            self.busy[held.key] = left
        else:
            del self.busy[held.key]
        if self.waiting and not self.draining:
            self._next(held.key)
        if self._reporter is not None:
            self._reporter.freed()

    def _next(self, freed: str) -> None:
        key = queue_room.next_key({key: queue[0].arrived_at for key, queue in self._waiting.items()}, freed)
        queue = self._waiting[key]
        held = queue.popleft()
        if not queue:
            del self._waiting[key]
        self.waiting -= 1
        self._start(held)

    def _unqueue(self, held: Held) -> None:
        queue = self._waiting[held.key]
        queue.remove(held)
        if not queue:
            del self._waiting[held.key]
        self.waiting -= 1

    def _forget(self, held: Held, *, settled: bool = False) -> None:
        call = held.run.call
        dispatch = dispatch_id(call.job, call.attempt, held.run.placement)
        if self._held.get(dispatch) is held:
            del self._held[dispatch]
        if settled:
            self._settled[dispatch] = None
            if len(self._settled) > SETTLED_MAX:
                self._settled.popitem(last=False)
        if held.at.sampled:
            delivered = held.messages[-1].delivered if held.messages else 1
            run_spans.process(self._tracer, held, ended=self._clock.now(), delivered=delivered)

    def _send_back(self, held: Held, kind: OutcomeKind, note: str) -> None:
        held.task = self._tasks.start(self._settle(held, Ended(None, kind=kind, note=note)))

    # What it reports

    def room(self) -> int:
        """Calls it would still take in ahead of a freed slot."""
        if self.draining:
            return 0
        return max(0, queue_room.room(self._paces.values(), slots=self.slots, now=self._loop.time()) - self.waiting)

    @property
    def running(self) -> int:
        return self.slots - self.free

    # Stopping

    def cancel(self, job: str) -> bool:
        """Stop a job wherever it is. Its final is written already; ours will lose to it and the caller hear of it."""
        found = False
        for held in list(self._held.values()):
            if held.run.call.job != job:
                continue
            found = True
            waits = held.phase is Phase.WAITING and held.task is None
            held.stop_for(Stop.CANCELLED)
            if waits:
                self._unqueue(held)
                held.task = self._tasks.start(self._settle(held, Ended(self._runner.cancelled(held))))
        if not found:
            # Its run may be on the way: it looks for the final before it starts.
            self._cancelled[job] = None
            if len(self._cancelled) > CANCELLED_MAX:
                self._cancelled.popitem(last=False)
        return found

    def drain(self) -> None:
        """Take no more work, hand back what has not started. What runs goes on."""
        if self.draining:
            return
        self.draining = True
        if self._reporter is not None:
            self._reporter.now()
        waiting = [held for queue in self._waiting.values() for held in queue]
        self._waiting.clear()
        self.waiting = 0
        for held in waiting:
            self._send_back(held, OutcomeKind.HANDED_BACK, "the executor drains")

    async def idle(self, timeout_s: float) -> bool:
        """Wait until everything taken in is settled; whether it is."""
        until = self._loop.time() + timeout_s
        while len(self._tasks) and (left := until - self._loop.time()) > 0:
            await self._tasks.drain(left)
        return not len(self._tasks)

    def hand_back(self) -> None:
        """Stop what still runs and let it travel back: no attempt is burnt."""
        for held in list(self._held.values()):
            held.stop_for(Stop.DRAINED)

    async def disown(self) -> None:
        """Every run is somebody else's by now: stop them all, publish nothing."""
        self.draining = True
        self._waiting.clear()
        self.waiting = 0
        for held in list(self._held.values()):
            held.stop_for(Stop.DISOWNED)
        await self._tasks.drain(STOP_S_MAX)
        await self._tasks.cancel()

    # Side tasks

    async def heartbeat(self) -> None:
        """Say of every run in hand that it is: else the broker would deliver it again. Runs as long as the executor."""
        while True:
            await asyncio.sleep(self._heartbeat_s)
            now = self._clock.now()
            for held in list(self._held.values()):
                held.in_progress()
                if held.phase is Phase.RUNNING and held.stated_at and now - held.stated_at >= STATE_AGAIN_S:
                    self._settler.processing(held)

    def reconnected(self) -> None:
        """The broker may be a new process: its streams in memory are new then, and an old message's acknowledgement would
        settle a new one. What still exists is delivered again and recognised."""
        for held in self._held.values():
            if held.sync:
                held.messages.clear()

    def lane_reset(self, last_sequence: int, *, sync: bool) -> None:
        """The stream ends at this sequence now: lower than what was taken in, it was made anew."""
        if last_sequence < self.accepted[sync]:
            self.accepted[sync] = 0


_BACK: Final[dict[Verdict, tuple[OutcomeKind, str]]] = {
    Verdict.STALE_EPOCH: (OutcomeKind.REFUSED, "placed by a scheduler that is no longer the active one"),
    Verdict.FULL: (OutcomeKind.REFUSED, "no room"),
    Verdict.HAND_BACK: (OutcomeKind.HANDED_BACK, "the executor drains"),
}
_INTAKE: Final = {verdict: metrics.INTAKE.labels(verdict.name.lower()) for verdict in Verdict}
_STARTS: Final = {start: metrics.STARTS.labels(start.value) for start in Start}
