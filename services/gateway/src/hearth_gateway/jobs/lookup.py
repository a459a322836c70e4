"""Finding a job: its record on the broker, its states, else the archive. A job of another tenant is simply not there."""

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import Any, Final, Self

from hearth_contracts import names, streams, subjects
from hearth_contracts.calls import ArchiveQuery, Record, StateChange
from hearth_contracts.errors import InvalidName, UndecodableMessage
from hearth_gateway.calls.custody import Custody, Held
from hearth_gateway.errors import ArchiveAway, BadRequest, JobNotFound
from hearth_kit.bus import Bus, Subscription, contract_headers
from hearth_kit.errors import BusError
from hearth_kit.message import Message
from hearth_kit.tracing import parse

#: A wake-up that was lost (a reconnect) is made good by looking again after this.
RECHECK_S: Final = 5.0
#: What was heard is in its stream by then, but for a broker in trouble.
STORED_WITHIN_S: Final = 0.05
ARCHIVE_S_MAX: Final = 10.0
#: A large output file is read from a store and written to the broker in this time: the largest takes about 10 s.
PUT_BACK_S_MAX: Final = 120.0


@dataclass(frozen=True, slots=True)
class Found:
    """What is known of a job. With a record everything else is history."""

    tenant: str
    job: str
    record: Record | None = None
    body: bytes = b""
    states: tuple[StateChange, ...] = ()
    """In the order of (attempt, phase)."""
    held: Held | None = None
    trace_id: str = ""


class Watch:
    """Wakes when something is said about a job. What is said is only a reason to look (DELIVERY rule 3)."""

    def __init__(self, bus: Bus, *watched: str, among: "set[Watch]") -> None:
        self._bus = bus
        self._watched = watched
        self._among = among
        self._event = asyncio.Event()
        self._later: asyncio.TimerHandle | None = None
        self._subscriptions: list[Subscription] = []

    async def __aenter__(self) -> Self:
        self._among.add(self)
        for subject in self._watched:
            self._subscriptions.append(await self._bus.subscribe(subject, self._wake))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._among.discard(self)
        if self._later is not None:
            self._later.cancel()
        for subscription in self._subscriptions:
            with contextlib.suppress(Exception):  # the connection may be gone, and the subscription with it
                await subscription.stop()

    def _wake(self, _: Message) -> None:
        self._event.set()
        # Subscribers hear a message before its stream has it: who looks at once may find nothing, so look once more.
        if self._later is None:
            self._later = asyncio.get_running_loop().call_later(STORED_WITHIN_S, self._wake_later)

    def _wake_later(self) -> None:
        self._later = None
        self._event.set()

    def wake(self, _: Any = None) -> None:
        self._event.set()

    async def wait(self, timeout_s: float) -> bool:
        """Until woken, at most so long; whether it was."""
        try:
            await asyncio.wait_for(self._event.wait(), timeout_s)
        except TimeoutError:
            return False
        finally:
            self._event.clear()
        return True


@dataclass(slots=True)
class Jobs:
    """Reads what the platform knows of jobs."""

    bus: Bus
    custody: Custody
    stopping: bool = False
    _watches: set[Watch] = field(default_factory=set)
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)

    def watch(self, *watched: str) -> Watch:
        return Watch(self.bus, *watched, among=self._watches)

    def stop(self) -> None:
        """Ends every open stream and wait: their clients come back to another gateway."""
        self.stopping = True
        for watch in self._watches:
            watch.wake()

    async def record(self, tenant: str, job: str) -> tuple[Record, bytes] | None:
        """The record as long as the broker has it."""
        stored = await self.bus.get_last(streams.RECORDS.name, subjects.record(tenant, job))
        return None if stored is None else (stored.message.meta(Record), stored.message.body)

    async def states(self, tenant: str, job: str) -> tuple[tuple[StateChange, ...], str]:
        """Its states in order, and the trace they belong to."""
        subject = subjects.state(tenant, job)
        found: list[StateChange] = []
        trace_id = ""
        sequence = 1
        while True:
            stored = await self.bus.get_next(streams.STATES.name, subject, sequence)
            if stored is None:
                return tuple(sorted(found, key=lambda state: (state.attempt, state.phase))), trace_id
            sequence = stored.sequence + 1
            with contextlib.suppress(UndecodableMessage):
                found.append(stored.message.meta(StateChange))
                context = parse(stored.message.traceparent)
                trace_id = trace_id or (context.trace_id if context is not None else "")

    async def find(self, tenant: str, job: str) -> Found:
        """Whatever there is, or `JobNotFound`. Raises `ArchiveAway` when only the archive could tell and it is silent."""
        try:
            names.job(job)
        except InvalidName as error:
            raise JobNotFound("this is not a job id") from error
        live = await self.live(tenant, job)
        if live is not None:
            return live
        # A sync call's record follows its answer: asked for in between, it comes while the archive is asked.
        archived = await self.archived(tenant, job) or await self.record(tenant, job)
        if archived is None:
            raise JobNotFound(f"no job {job}")
        return Found(tenant, job, record=archived[0], body=archived[1], trace_id=archived[0].trace_id)

    async def live(self, tenant: str, job: str) -> Found | None:
        """What the broker or this process knows."""
        recorded = await self.record(tenant, job)
        if recorded is not None:
            return Found(tenant, job, record=recorded[0], body=recorded[1], trace_id=recorded[0].trace_id)
        held = self.custody.held(job)
        if held is not None and held.call.tenant != tenant:
            held = None
        states, trace_id = await self.states(tenant, job)
        if held is not None:
            context = parse(held.traceparent)
            return Found(tenant, job, states=states, held=held, trace_id=context.trace_id if context else trace_id)
        if not states:
            return None
        # The final may have come, and taken the states with it, between the two readings.
        recorded = await self.record(tenant, job)
        if recorded is not None:
            return Found(tenant, job, record=recorded[0], body=recorded[1], trace_id=recorded[0].trace_id)
        return Found(tenant, job, states=states, trace_id=trace_id)

    async def archived(self, tenant: str, job: str) -> tuple[Record, bytes] | None:
        message = await self._ask(ArchiveQuery(tenant=tenant, job=job))
        if message.headers.get("Hearth-Missing"):
            return None
        record = message.meta(Record)
        return None if record.tenant != tenant else (record, message.body)

    async def put_back(self, tenant: str, job: str, output: str) -> None:
        """Have a store put an output file of the job back on the broker, if one can."""
        await self._ask(ArchiveQuery(tenant=tenant, job=job, output=output), timeout_s=PUT_BACK_S_MAX)

    async def history(self, query: ArchiveQuery) -> bytes:
        """A page of history, as the archive tells it."""
        return (await self._ask(query)).body

    async def _ask(self, query: ArchiveQuery, *, timeout_s: float = ARCHIVE_S_MAX) -> Message:
        headers = contract_headers(meta=query, contract="archive.v1", msg_id="", traceparent="", expect_last=None, headers=None)
        try:
            message = await self.bus.request(subjects.ARCHIVE, headers=headers, timeout_s=timeout_s)
        except BusError as error:
            raise ArchiveAway from error
        match message.headers.get("Hearth-Error"):
            case None:
                return message
            case "E_BAD_QUERY" if not query.job:
                raise BadRequest("the archive does not understand this question", fix="take cursor from the page before")
            case _:
                raise ArchiveAway("a store that may hold this cannot be read now")

    async def until_final(self, found: Found, timeout_s: float | None) -> Found:
        """The same job once it has ended, or as it stands when the time is over. Subscribes first, then looks."""
        if found.record is not None:
            return found
        ends = None if timeout_s is None else self._loop.time() + timeout_s
        async with self.watch(subjects.record(found.tenant, found.job)) as watch:
            while True:
                recorded = await self.record(found.tenant, found.job)
                if recorded is not None:
                    return Found(found.tenant, found.job, record=recorded[0], body=recorded[1], trace_id=recorded[0].trace_id)
                left = RECHECK_S if ends is None else min(RECHECK_S, ends - self._loop.time())
                if left <= 0 or self.stopping:
                    return await self.live(found.tenant, found.job) or found
                await watch.wait(left)
