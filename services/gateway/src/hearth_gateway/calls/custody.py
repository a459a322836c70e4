"""The sync calls this gateway holds, from submission to answer. It keeps them through lost connections and broker restarts;
what makes the answer equal to the record is written in docs/architecture.md, "One answer, one record".
"""

import asyncio
import itertools
import logging
from dataclasses import dataclass, field
from typing import Final

from hearth_contracts import streams, subjects
from hearth_contracts.calls import Call, Moved, MovedAnswer, Record, Reply, StateChange
from hearth_contracts.enums import State
from hearth_contracts.errors import UndecodableMessage
from hearth_gateway import metrics
from hearth_gateway.calls import whereabouts
from hearth_gateway.calls.answer import Answer, of_record
from hearth_gateway.domain import dispatch
from hearth_gateway.domain.dispatch import FIRST, Dispatch
from hearth_gateway.errors import Overloaded
from hearth_kit.background import Background
from hearth_kit.bus import Bus
from hearth_kit.clock import Clock
from hearth_kit.errors import BusError, NotConnected, PublishTimeout, StreamMissing
from hearth_kit.message import Message

_log = logging.getLogger(__name__)

#: A held call older than this is made visible to all gateways by a durable PENDING.
VISIBLE_AFTER_S: Final = 1.0
#: A held call without an answer is looked up in RECORDS after this, then at twice the distance each time.
LOOK_AFTER_S: Final = 5.0
LOOK_EVERY_S_MAX: Final = 60.0
#: Inline inputs of all held calls together.
HELD_BYTES_MAX: Final = 256 * 1024 * 1024
#: Look-ups and republishes in flight.
RECOVERING_MAX: Final = 64
#: That a call was answered is remembered for one to two of these; REPLIES remembers it for two minutes.
REMEMBER_S: Final = 30.0
SWEEP_S: Final = 0.5
#: Handing off takes at most so long, the time of one publish and a little: callers are waited for until then.
HAND_OFF_S_MAX: Final = 7.0


class HandedOff(Exception):
    """The gateway stops while the call still runs: the caller is told where to find it."""


@dataclass(slots=True, eq=False)
class Held:
    """One sync call in our hands."""

    call: Call
    body: bytes
    traceparent: str
    future: "asyncio.Future[Answer]"
    since: float
    look_at: float
    look_s: float = LOOK_AFTER_S
    earliest: Dispatch = FIRST
    """Replies of earlier dispatches are not taken."""
    frozen: bool = False
    """While it is being cancelled no reply is taken: the record decides."""
    recovering: bool = False
    visible: bool = False
    """Its PENDING is durable."""
    showing: bool = False
    key: str = field(default="")


class Custody:
    """Holds calls. `start` before the first, `keep` as a side task."""

    def __init__(self, *, bus: Bus, clock: Clock, held_max: int) -> None:
        self._bus = bus
        self._clock = clock
        self._held_max = held_max
        self._held: dict[str, Held] = {}
        self._held_bytes = 0
        self._per_function: dict[str, int] = {}
        self._answered: set[str] = set()
        self._answered_before: set[str] = set()
        self._rotate_at = clock.monotonic() + REMEMBER_S
        self._tasks = Background("custody")
        self._recovering = asyncio.Semaphore(RECOVERING_MAX)
        self._loop = asyncio.get_running_loop()

    async def start(self) -> None:
        await self._bus.subscribe(subjects.replies_of(self._bus.instance), self._replied)
        await self._bus.subscribe(subjects.moved(self._bus.instance), self._moved)
        self._bus.on_reconnect(self._reconnected)

    def __len__(self) -> int:
        return len(self._held)

    def held(self, job: str) -> Held | None:
        return self._held.get(job)

    def of_function(self, tenant: str, function: str) -> int:
        return self._per_function.get(f"{tenant}.{function}", 0)

    # Taking and giving

    def hold(self, call: Call, body: bytes, traceparent: str) -> Held:
        if len(self._held) >= self._held_max or self._held_bytes + len(body) > HELD_BYTES_MAX:
            raise Overloaded
        self._held_bytes += len(body)
        now = self._clock.monotonic()
        key = f"{call.tenant}.{call.function}"
        held = Held(call, body, traceparent, self._loop.create_future(), now, now + LOOK_AFTER_S, key=key)
        if call.placement:
            held.earliest = Dispatch(call.attempt, call.placement)
        self._held[call.job] = held
        self._per_function[key] = self._per_function.get(key, 0) + 1
        return held

    def release(self, held: Held) -> None:
        """Let go of a call that never left, or has ended."""
        if self._held.pop(held.call.job, None) is None:
            return
        self._held_bytes -= len(held.body)
        left = self._per_function[held.key] - 1
        if left:
            self._per_function[held.key] = left
        else:
            del self._per_function[held.key]

    def abandon(self, held: Held, error: Exception) -> None:
        """Let go of a call without an answer: whoever has joined it is told why."""
        self.release(held)
        if not held.future.done():
            held.future.set_exception(error)
            held.future.exception()  # perhaps nobody has joined

    def _resolve(self, held: Held, answer: Answer) -> None:
        self.release(held)
        self._answered.add(held.call.job)
        if not held.future.done():
            held.future.set_result(answer)

    def resolve_by_record(self, held: Held, record: Record, body: bytes) -> None:
        self._resolve(held, of_record(record, body))

    async def submit(self, held: Held) -> None:
        """Into CALLS. Raises only while the call is certainly not there; after that it is kept until it has an answer."""
        call = held.call
        try:
            await self._publish(held)
        except PublishTimeout:
            # It may be there. The reconnect hook or the sweep takes it from here; the caller goes on waiting.
            _log.warning("no word on a call yet", extra={"job": call.job})
            held.look_at = self._clock.monotonic()
        except BusError as error:
            self.abandon(held, error)
            raise

    async def _publish(self, held: Held) -> None:
        while True:
            call = held.call
            ack = await self._bus.publish(
                subjects.call(call.tenant, call.function), held.body, meta=call, contract="call.v1",
                msg_id=f"{call.job}.{call.attempt}.{call.placement}", traceparent=held.traceparent,
            )  # fmt: skip
            if not ack.duplicate or await self._is_somewhere(held, ack.sequence):
                return
            self._place_anew(held)

    async def _is_somewhere(self, held: Held, sequence: int) -> bool:
        """Rule 4: that the broker has seen its id is not that it has the call."""
        while not held.future.done():
            try:
                if await self._found_reply(held) or await self._found_record(held):
                    return True
                if not await whereabouts.is_somewhere(self._bus, held.call, sequence):
                    return held.future.done()
                # Its reply may go to another gateway, which submitted it before.
                held.look_at = self._clock.monotonic() + SWEEP_S
                held.look_s = SWEEP_S
                return True
            except BusError as error:
                _log.warning("a call could not be looked up: %s", error, extra={"job": held.call.job})
                await asyncio.sleep(SWEEP_S)
        return True

    def _place_anew(self, held: Held) -> None:
        held.earliest = Dispatch(*held.earliest).republished()
        held.call = held.call.model_copy(update={"attempt": held.earliest.attempt, "placement": held.earliest.placement})
        held.visible = False  # what was said of an earlier dispatch may have gone with its final
        metrics.REPUBLISHED.inc()

    # Hearing

    def _replied(self, message: Message) -> None:
        held = self._held.get(message.subject.rpartition(".")[2])
        if held is not None:
            self._take(held, message)

    def _take(self, held: Held, message: Message) -> None:
        """An answer to this call, heard or found: it is the call's unless its dispatch was superseded."""
        try:
            ending = message.meta(Reply).ending
        except UndecodableMessage:
            _log.exception("an unreadable reply; the record will tell", extra={"job": held.call.job})
            return
        if held.frozen or not dispatch.believed(held.earliest, Dispatch(ending.attempt, ending.placement)):
            metrics.DROPPED_REPLIES.inc()
            return
        self._resolve(held, Answer(ending, message.body))

    def _moved(self, message: Message) -> None:
        """The scheduler (or a gateway that cancels) asks before it acts."""
        try:
            moved = message.meta(Moved)
        except UndecodableMessage:
            _log.exception("an unreadable question")
            return
        held = self._held.get(moved.job)
        if held is not None:
            held.earliest = dispatch.superseded(held.earliest, Dispatch(moved.attempt, moved.placement))
            held.look_at = self._clock.monotonic() + SWEEP_S
            held.look_s = SWEEP_S
        answered = held is None and (moved.job in self._answered or moved.job in self._answered_before)
        answer = MovedAnswer(held=held is not None, answered=answered)
        message.respond(b"", {"Hearth-Contract": "moved-answer.v1", "Hearth-Meta": answer.model_dump_json()})

    # Keeping

    def _reconnected(self) -> None:
        for held in self._held.values():
            if not held.recovering:
                held.recovering = True
                self._tasks.start(self._again(held), "republish")

    async def _again(self, held: Held) -> None:
        try:
            await self._recover(held)
        finally:
            held.recovering = False

    async def _recover(self, held: Held) -> None:
        """Rule 4: what was answered or recorded meanwhile counts; else publish it under another dispatch id."""
        async with self._recovering:
            while not held.future.done():
                try:
                    if await self._found_reply(held) or await self._found_record(held):
                        return
                    self._place_anew(held)
                    await self._publish(held)
                    return
                except (PublishTimeout, StreamMissing):
                    continue  # streams in memory are being remade
                except NotConnected:
                    return  # the next reconnect comes here again
                except BusError as error:
                    _log.warning("a held call could not be published again: %s", error, extra={"job": held.call.job})
                    await asyncio.sleep(SWEEP_S)

    async def _found_reply(self, held: Held) -> bool:
        stored = await self._bus.get_last(streams.REPLIES.name, subjects.reply(self._bus.instance, held.call.job))
        if stored is not None:
            self._take(held, stored.message)
        return held.future.done()

    async def _found_record(self, held: Held) -> bool:
        stored = await self._bus.get_last(streams.RECORDS.name, subjects.record(held.call.tenant, held.call.job))
        if stored is None or held.future.done():
            return held.future.done()
        metrics.FROM_RECORDS.inc()
        self.resolve_by_record(held, stored.message.meta(Record), stored.message.body)
        return True

    async def keep(self) -> None:
        """Makes long calls visible, and finds the records of calls whose reply was lost."""
        while True:
            await asyncio.sleep(SWEEP_S)
            now = self._clock.monotonic()
            if now >= self._rotate_at:
                self._rotate_at = now + REMEMBER_S
                self._answered_before, self._answered = self._answered, set()
            metrics.HELD.set(len(self._held))
            if not self._bus.connected:
                continue
            due = [
                held for held in self._held.values() if now - held.since >= VISIBLE_AFTER_S and not (held.visible or held.showing)
            ]
            for held in itertools.islice(due, RECOVERING_MAX):
                held.showing = True
                self._tasks.start(self._try_to_show(held), "visible")
            for held in itertools.islice([h for h in self._held.values() if now >= h.look_at], RECOVERING_MAX):
                held.look_at = now + held.look_s
                held.look_s = min(LOOK_EVERY_S_MAX, held.look_s * 2)
                self._tasks.start(self._look(held), "look")

    async def show(self, held: Held) -> None:
        """Make it visible to all gateways. It counts as visible once the broker has said that it is."""
        call = held.call
        await write_pending(self._bus, self._clock, call, held.traceparent, note=f"gateway:{self._bus.instance}")
        held.visible = held.call is call  # placed anew meanwhile, it is shown again

    async def _try_to_show(self, held: Held) -> None:
        try:
            await self.show(held)
        except BusError as error:
            _log.warning("a held call could not be made visible: %s", error, extra={"job": held.call.job})
        finally:
            held.showing = False  # the next sweep tries again what has failed

    async def _look(self, held: Held) -> None:
        async with self._recovering:
            try:
                await self._found_record(held)
            except BusError as error:
                _log.warning("a record could not be looked up: %s", error, extra={"job": held.call.job})

    async def hand_off(self, held: Held) -> None:
        """Tell the caller 202 in place of an answer, once PENDING is durable (DELIVERY rule 8). Raises a `BusError`."""
        if not held.visible:
            await self.show(held)
        self.release(held)
        if not held.future.done():
            held.future.set_exception(HandedOff())

    async def drain(self, timeout_s: float) -> None:
        """Wait for the answers of what is held, at most so long; hand the rest off."""
        ends = self._loop.time() + timeout_s
        while self._held and self._loop.time() < ends:
            await asyncio.wait([held.future for held in self._held.values()], timeout=max(0.05, ends - self._loop.time()))
        await asyncio.gather(*(self._hand_off_or_refuse(held) for held in list(self._held.values())))

    async def _hand_off_or_refuse(self, held: Held) -> None:
        try:
            await self.hand_off(held)
        except BusError as error:
            _log.warning("a held call could not be made durable: %s", error, extra={"job": held.call.job})
            self.abandon(held, error)


async def write_pending(bus: Bus, clock: Clock, call: Call, traceparent: str, *, note: str = "", sequence: int = 0) -> None:
    """PENDING, durably."""
    state = StateChange(
        job=call.job, tenant=call.tenant, state=State.PENDING, attempt=1, phase=0, at=clock.now(), note=note, sequence=sequence,
        version=call.version,
    )  # fmt: skip
    subject = subjects.state(call.tenant, call.job)
    msg_id = f"{call.job}.{call.attempt}.{call.placement}.pending"
    ack = await bus.publish(subject, meta=state, contract="state.v1", msg_id=msg_id, traceparent=traceparent)
    if ack.duplicate and await bus.get_last(streams.STATES.name, subject) is None:
        # Said before, and gone with an earlier final (rule 4).
        await bus.publish(subject, meta=state, contract="state.v1", traceparent=traceparent)
