"""The dispatcher: holds calls, asks `place` about whoever's turn it is, and carries out what it says. One per term of office."""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from typing import Any, Final

from hearth_contracts.enums import Reason
from hearth_kit.background import Background
from hearth_kit.clock import Clock
from hearth_kit.errors import BusError
from hearth_kit.registry import Registry
from hearth_scheduler import errors, metrics
from hearth_scheduler.domain import retry
from hearth_scheduler.domain.fleet import Executor, Fleet, Live
from hearth_scheduler.domain.placement import Hindrance, Job, Placed, Reject, Wait, Wants, Why, place
from hearth_scheduler.domain.queues import FairQueue, Line
from hearth_scheduler.held import Held, Lanes, Source, Stage
from hearth_scheduler.placing import Fate, Placer
from hearth_scheduler.settling import Settler

_log = logging.getLogger(__name__)

#: Functions that wait for something of their own and are looked at again per event: an event costs a bounded time.
UNBLOCK_MAX: Final = 16
#: Dispatches remembered after they were stored: a redelivery is recognised, a republished call goes to the same executor.
RECENT_MAX: Final = 16_384
#: Jobs whose final was heard before they were: cancelled ones in the stream are not run.
FINALS_MAX: Final = 16_384
#: A job submitted this long before we listened to records, by clocks that may differ, may have been cancelled unheard.
LISTENING_S: Final = 2.0
#: What is in hand is said to be so this often; the broker waits 5 s.
TOUCH_S: Final = 1.5
TOUCH_BATCH: Final = 256
AGAIN_S: Final = 0.25
#: Deliveries of a call that meets a defect here, each time.
TRIES_MAX: Final = 5
#: Questions to the broker about jobs at once.
LOOKS_MAX: Final = 128

#: A dispatch before all others.
_NEVER: Final = (0, 0)

_WHY_PLACED: Final = {why: metrics.PLACED.labels(why.value) for why in Why}


class Dispatcher:
    def __init__(
        self,
        *,
        fleet: Fleet,
        registry: Registry,
        settler: Settler,
        placer: Placer,
        lanes: Lanes,
        clock: Clock,
        ours: Callable[[], bool],
        left: Callable[[Held], None],
    ) -> None:
        self._fleet = fleet
        self._registry = registry
        self._settler = settler
        self._placer = placer
        self._lanes = lanes
        self._clock = clock
        self._ours = ours
        self._left = left
        self._tasks = Background("dispatch")
        self._looks = asyncio.Semaphore(LOOKS_MAX)
        self._wants: dict[str, Wants] = {}
        self._owed: dict[str, list[Executor]] = {}
        self._recent: OrderedDict[str, tuple[tuple[int, int], str]] = OrderedDict()
        self._finals: dict[str, None] = {}
        self._listening_since = 0.0
        self.queue: FairQueue[Held] = FairQueue()
        self.by_job: dict[str, Held] = {}
        self.hindrances: dict[str, Hindrance] = {}
        """Why the head of a function's queue waits."""

    # Taking

    def take(self, held: Held) -> None:
        """A call has arrived. From the read loop."""
        call = held.call
        known = self.by_job.get(call.job)
        if known is not None:
            metrics.DUPLICATES.inc()
            self._join(known, held)
            return
        recent = self._recent.get(call.job)
        if recent is not None and held.source is not Source.OUTCOMES:
            metrics.DUPLICATES.inc()
            if recent[0] >= held.dispatch:
                self.settle(held)  # stored already; the acknowledgement was lost
                self._left(held)
                return
            held.look, held.beside = True, recent[1]
        self.by_job[call.job] = held
        version = self._registry.known(call.tenant, call.function, call.version)
        if version is None or self._has_to_look(held) or self._registry.head(call.tenant, call.function) is None:
            self._work(held, self._prepare(held))
            return
        held.version = version
        self._enter(held)
        self.run()

    def _has_to_look(self, held: Held) -> bool:
        call = held.call
        return (
            held.look
            or call.placement > 0
            or call.attempt > 1
            or held.letters[0].message.delivered > 1
            or call.job in self._finals
            or (not held.sync and call.submitted_at < self._listening_since)
        )

    def _join(self, known: Held, held: Held) -> None:
        """A call that is in hand has come again: the same message, or the same job under a later dispatch id."""
        if held.dispatch > known.dispatch:
            if known.stage is Stage.PLACING:
                known.later = held  # never lost: what it waits for is on its way to the broker
                return
            known.call, known.text = held.call, held.text
            known.anew = known.anew or held.anew
        known.add(held.letters)
        self._left(held)

    async def _prepare(self, held: Held) -> None:
        call = held.call
        async with self._looks:
            while held.version is None:
                try:
                    held.version = await self._registry.version(call.tenant, call.function, call.version)
                    head = await self._registry.fresh_head(call.tenant, call.function)
                    gone = held.version is None or head is None or head[1].deleted
                except BusError:
                    await asyncio.sleep(AGAIN_S)
                    continue
                if gone:
                    why = f"there is no version {call.version} of {call.function} any more"
                    await self._reject(held, Reason.REJECTED, errors.REJECTED, why)
                    return
            look = self._has_to_look(held)
            while look or held.ended:
                look = held.ended = False
                if not await self._settler.may_run(held.call, held.body, held.header, sync=held.sync, anew=held.anew):
                    self.drop(held)
                    return
        if self.by_job.get(call.job) is held:
            self._enter(held)
            self.run()

    def _enter(self, held: Held) -> None:
        version = held.version
        assert version is not None
        wants = self._wants.get(version.key)
        if wants is None:
            wants = self._wants[version.key] = Wants.of(version)
        held.wants = wants
        held.line = self.queue.line(held.call.tenant, wants.function)
        held.stage = Stage.QUEUED
        self.queue.push(held.line, held, first=held.source is Source.OUTCOMES)

    # Deciding

    def run(self) -> None:
        """Place whatever can be placed now."""
        head = self.queue.head
        line = head()
        if line is None or not self._ours():
            return
        now = self._clock.monotonic()
        while line is not None:
            held = line.items[0]
            assert held.wants is not None
            try:
                decision = place(Job(held.wants, held.call.depth, held.beside), self._fleet, now)
            except Exception as error:  # one call that meets a defect must not stop all others
                _log.exception("a call could not be placed", extra={"job": held.call.job})
                self._defect(self.queue.take(line), error)
                line = head()
                continue
            if isinstance(decision, Placed):
                self.queue.take(line)
                self._start(held, held.wants, decision, now)
            elif isinstance(decision, Wait):
                self._block(line, held.wants, decision.hindrance)
            else:
                self.queue.take(line)
                self._work(held, self._refuse(held, decision))
            line = head()

    def _block(self, line: Line[Held], wants: Wants, hindrance: Hindrance) -> None:
        self.queue.block(line)
        self.hindrances[line.name] = hindrance
        if hindrance is Hindrance.BUSY:
            # Where it could run, nothing more is put into short queues until it has had its turn: else a busy function
            # would never leave a slot free.
            executors = list(self._fleet.matching(wants.needs))
            for executor in executors:
                executor.owed += 1
            self._owed[line.name] = executors

    def _unblocked(self, line: Line[Held]) -> None:
        self.hindrances.pop(line.name, None)
        for executor in self._owed.pop(line.name, ()):
            executor.owed -= 1

    def freed(self, executor: Executor) -> None:
        """An executor may have become able to take something."""
        if not len(self.queue):
            return
        if executor.free > 0 or executor.room > 0:
            for line in self.queue.unblock(UNBLOCK_MAX):
                self._unblocked(line)
        self.run()

    # Carrying out

    def _start(self, held: Held, wants: Wants, placed: Placed, now: float) -> None:
        _WHY_PLACED[placed.why].inc()
        live = self._fleet.reserve(
            placed.executor,
            held.call.job,
            key=wants.key,
            function=wants.function,
            generic=wants.generic if placed.why is Why.GENERIC else "",
            sync=held.sync,
            keeps=wants.keeps,
            now=now,
        )
        held.stage = Stage.PLACING
        self._tasks.start(self._carry(held, placed, live))

    async def _carry(self, held: Held, placed: Placed, live: Live) -> None:
        try:
            await self._store(held, placed, live)
        except Exception as error:
            _log.exception("a call could not be placed", extra={"job": held.call.job})
            self._defect(held, error)

    async def _store(self, held: Held, placed: Placed, live: Live) -> None:
        job = held.call.job
        stored = False
        try:
            fate, sequence = await self._placer.store(held, placed)
            stored = fate is Fate.STORED
            if stored:
                self._fleet.stored(job, live, sequence)
        finally:
            if not stored:
                self._fleet.withdrawn(job, live)
        match fate:
            case Fate.STORED:
                self._recent[job] = (held.dispatch, placed.executor.id)
                if len(self._recent) > RECENT_MAX:
                    self._recent.popitem(last=False)
                self.drop(held)
            case Fate.CARRIED:
                self.drop(held)
            case Fate.FULL:
                await asyncio.sleep(AGAIN_S)
                self._return(held)
            case Fate.TOO_LARGE:
                await self._reject(held, Reason.REJECTED, errors.TOO_LARGE, "the call does not fit the broker's messages")
            case Fate.ANEW:
                # Nobody knows what became of this dispatch: another id, and a look first.
                held.call = held.call.model_copy(update={"placement": held.call.placement + 1})
                held.text, held.look, held.anew, held.ended = "", True, True, False
                held.stage, held.beside = Stage.LOOKING, ""
                await self._prepare(held)

    def _return(self, held: Held) -> None:
        """Back to the head of its queue."""
        if self.by_job.get(held.call.job) is held:
            assert held.line is not None
            held.stage = Stage.QUEUED
            self.queue.push(held.line, held, first=True)
            self.run()

    async def _refuse(self, held: Held, decision: Reject) -> None:
        code = errors.RECURSION if decision.reason is Reason.RECURSION else errors.REJECTED
        await self._reject(held, decision.reason, code, decision.message)

    async def _reject(self, held: Held, reason: Reason, code: str, message: str) -> None:
        ending = retry.failed(held.call, reason, code, message, self._clock.now())
        await self._settler.end(held.call, held.body, held.header, ending, sync=held.sync, version=held.version, dead=False)
        self.drop(held)

    def _work(self, held: Held, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.start(work).add_done_callback(lambda task: self._failed(held, task))

    def _failed(self, held: Held, task: "asyncio.Task[None]") -> None:
        """A defect met this call: it is let go, comes again after its deadline, and after some tries is ended, so that it
        neither stays here for ever nor comes for ever."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self._defect(held, error)

    def _defect(self, held: Held, error: BaseException) -> None:
        if held.stage is Stage.QUEUED and held.line is not None:
            self.queue.discard(held.line, held)
        self._let_go(held)
        if any(letter.message.delivered >= TRIES_MAX for letter in held.letters):
            why = f"it cannot be placed: {error!r}"[:500]
            self._tasks.start(self._reject(held, Reason.REJECTED, errors.DEFECT, why))

    def drop(self, held: Held) -> None:
        """It is somebody else's, or has ended: settle every message that brought it."""
        self.settle(held)
        self._let_go(held)
        if held.later is not None:
            self.take(held.later)

    def settle(self, held: Held) -> None:
        for letter in held.letters:
            if self._lanes.may_settle(letter):
                letter.message.ack()

    def _let_go(self, held: Held) -> None:
        if held.stage is Stage.GONE:
            return
        held.stage = Stage.GONE
        if self.by_job.get(held.call.job) is held:
            del self.by_job[held.call.job]
        self._left(held)

    # Hearing

    def listening(self) -> None:
        """From now on every final is heard, and none from before."""
        self._listening_since = self._clock.now() + LISTENING_S

    def final_heard(self, job: str, told_by: Callable[[], str]) -> None:
        """A record was published, or refused: a plain subscriber cannot tell. `told_by` gives the record's own words."""
        live = self._fleet.live.get(job)
        if live is not None and live.executor.id in told_by():
            self._ended(job, live)
        held = self.by_job.get(job)
        if held is not None:
            if held.stage is Stage.QUEUED:
                self._work(held, self._check(held))
            held.ended = True
        elif live is None:
            self._finals[job] = None
            if len(self._finals) > FINALS_MAX:
                self._finals.clear()
                self.listening()  # what was forgotten has to be looked up

    def _ended(self, job: str, live: Live) -> None:
        self._fleet.ended(job, own=True)
        line = self.queue.lines.get(live.function)
        if line is not None:
            line.took(self._clock.monotonic() - live.at)
            if line.blocked and self.hindrances.get(line.name) is Hindrance.MAXIMUM:
                self.queue.unblock_line(line)
                self._unblocked(line)
        self.freed(live.executor)

    def travelled_back(self, job: str, executor: str) -> None:
        """An executor has given a dispatch back."""
        live = self._fleet.live.get(job)
        if live is not None and live.executor.id == executor:
            self._fleet.ended(job, own=False)
            self.freed(live.executor)

    async def _check(self, held: Held) -> None:
        """A job that waits here may have been cancelled."""
        if not await self._settler.ended(held.call, sync=held.sync):
            return
        if self.by_job.get(held.call.job) is held and held.stage is Stage.QUEUED:
            assert held.line is not None
            self.queue.discard(held.line, held)
            self.drop(held)

    # Keeping

    async def touch(self) -> None:
        """Say of everything in hand that it is. In portions: ten thousand calls may wait."""
        now = self._clock.monotonic()
        due = [held for held in self.by_job.values() if now - held.touched_at >= TOUCH_S]
        for number, held in enumerate(due, 1):
            held.touched_at = now
            for letter in held.letters:
                if self._lanes.may_settle(letter):
                    letter.message.in_progress()
            if not number % TOUCH_BATCH:
                await asyncio.sleep(0)

    def memory_lost(self) -> None:
        """The broker is another process: sync calls that waited here are published again by whoever has them in custody."""
        # What was placed may be gone with it: a call that comes again is not taken for a repetition. Where it was placed is
        # still worth knowing, since its executor may have taken it in.
        self._recent = OrderedDict((job, (_NEVER, executor)) for job, (_, executor) in self._recent.items())
        for held in [held for held in self.by_job.values() if held.sync and held.stage is not Stage.PLACING]:
            held.letters = [letter for letter in held.letters if self._lanes.may_settle(letter)]
            if held.letters:
                continue
            if held.stage is Stage.QUEUED:
                assert held.line is not None
                self.queue.discard(held.line, held)
            self._let_go(held)

    def is_held(self, job: str) -> bool:
        return job in self.by_job or job in self._fleet.live

    def forget(self, function: str, *, deleted: bool) -> None:
        """Its versions are others now, or none."""
        for key in [key for key, wants in self._wants.items() if wants.function == function]:
            del self._wants[key]
        if deleted:
            self.queue.forget(function)

    async def drain(self, timeout_s: float) -> None:
        """Let what is being stored be stored, then give back what waits, at once rather than after its deadline."""
        await self._tasks.drain(timeout_s)
        for held in list(self.by_job.values()):
            for letter in held.letters:
                if self._lanes.may_settle(letter):
                    letter.message.nak()

    async def stop(self) -> None:
        await self._tasks.cancel()
        for executors in self._owed.values():
            for executor in executors:
                executor.owed -= 1
        self._owed.clear()
