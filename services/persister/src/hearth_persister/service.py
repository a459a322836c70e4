"""One line per store: it reads the stream in order, writes segments, and says what it has settled.

A store's segments are a chain: each begins where the one before ended, under a key that only its beginning decides, written
create-only. So the store itself says where to carry on, nobody can write a record into it twice, and whoever is overtaken
finds out by the write. One process at a time works on a store (a lease); the chain holds even when two believe they do.

Whatever goes wrong has one way out: forget what is in memory, wait, and begin again from the end of the chain.
"""

import asyncio
import contextlib
import hashlib
import logging
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from hearth_contracts import streams, subjects
from hearth_kit.bus import Bus, ConsumerSpec
from hearth_kit.clock import Clock
from hearth_kit.errors import BusError, StreamMissing
from hearth_kit.lease import Held, Role
from hearth_kit.tracing import Tracer
from hearth_persister import metrics
from hearth_persister.adapters.index import Index
from hearth_persister.chain import Chain
from hearth_persister.copies import Copier
from hearth_persister.domain import object_key
from hearth_persister.domain.backoff import Breaker
from hearth_persister.domain.batching import Batch, Limits
from hearth_persister.domain.entry import Entry
from hearth_persister.errors import Overtaken, PersisterError
from hearth_persister.failpoints import Failpoints
from hearth_persister.intake import Intake
from hearth_persister.ports import Exists, ObjectStore
from hearth_persister.segments import Encoder

_log = logging.getLogger(__name__)

RECORDS: Final = streams.RECORDS.name
#: A standby reads what the writing process has added this often.
FOLLOW_S: Final = 1.0
#: Direct reads in flight while a hole is filled.
FETCH_AT_ONCE: Final = 16


@dataclass(frozen=True, slots=True)
class LineSettings:
    limits: Limits
    ack_wait_s: float
    held_bytes_max: int
    retry_s: float
    retry_s_max: float


class Line:
    """One store."""

    def __init__(
        self,
        *,
        store: ObjectStore,
        index: Index,
        chain: Chain,
        bus: Bus,
        role: Role,
        copier: Copier,
        tracer: Tracer,
        clock: Clock,
        settings: LineSettings,
        failpoints: Failpoints,
        encoder: Encoder,
        changed: Callable[[], None],
    ) -> None:
        self.store = store
        self.index = index
        self.chain = chain
        self._bus = bus
        self._role = role
        self._copier = copier
        self._tracer = tracer
        self._clock = clock
        self._settings = settings
        self._failpoints = failpoints
        self._encoder = encoder
        self._changed = changed
        self._stopping = asyncio.Event()
        self.breaker = Breaker(settings.retry_s, settings.retry_s_max)
        self.active = False
        self.epoch = ""
        self.stored = 0
        """The end of the chain, while active."""

    @property
    def consumer(self) -> str:
        return streams.store_consumer(self.store.name)

    async def ensure_consumer(self) -> None:
        """Made before the store is even tried: what it has not settled stays in the broker."""
        await self._bus.ensure_consumer(ConsumerSpec(RECORDS, self.consumer, ack_wait_s=self._settings.ack_wait_s, ack_all=True))

    # Life

    async def run(self) -> None:
        """Until cancelled; `stop` lets it write what it holds first."""
        while not self._stopping.is_set():
            try:
                await self._turn()
            except Overtaken as error:
                _log.info("another persister is writing: %s", error, extra={"store": self.store.name})
            except (PersisterError, BusError, sqlite3.Error, OSError, ExceptionGroup) as error:
                self._failed(_cause(error))
            finally:
                self._set_active(False)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), self.breaker.wait_s or self._settings.retry_s)

    def stop(self) -> None:
        """Store what is here, and begin nothing new: `run` returns then."""
        self._stopping.set()

    async def _turn(self) -> None:
        """Stand by until the store is ours, then write to it until it is not."""
        standby = asyncio.get_running_loop().create_task(self._follow_along(), name=f"follow-{self.store.name}")
        try:
            async with contextlib.AsyncExitStack() as stack:
                held = await self._hold(stack)
                if held is None:
                    return
                standby.cancel()
                await self._write_until(held)
        finally:
            standby.cancel()
            await asyncio.gather(standby, return_exceptions=True)

    async def _hold(self, stack: contextlib.AsyncExitStack) -> Held | None:
        """The lease, or None when the process ends first."""
        loop = asyncio.get_running_loop()
        taking = loop.create_task(stack.enter_async_context(self._role.hold()), name=f"lease-{self.store.name}")
        stopping = loop.create_task(self._stopping.wait(), name="stopping")
        try:
            await asyncio.wait((taking, stopping), return_when=asyncio.FIRST_COMPLETED)
            if taking.done():
                return taking.result()
            return None
        finally:
            for task in (taking, stopping):
                task.cancel()
            await asyncio.gather(taking, stopping, return_exceptions=True)

    async def _follow_along(self) -> None:
        """Keep the index current while another process writes, so that this one answers as well."""
        while True:
            try:
                await self.chain.catch_up()
            except (PersisterError, sqlite3.Error, OSError) as error:
                _log.debug("following %s: %s", self.store.name, error)
            await asyncio.sleep(FOLLOW_S)

    def _failed(self, error: Exception) -> None:
        if isinstance(error, BusError):
            _log.warning("begins again: %s", error, extra={"store": self.store.name})
            return
        if not isinstance(error, (PersisterError, sqlite3.Error, OSError)):
            raise error
        metrics.FAILURES.labels(self.store.name).inc()
        metrics.UP.labels(self.store.name).set(0)
        is_news = not self.breaker.open
        self.breaker = self.breaker.failed(str(error), self._clock.now())
        _log.log(
            logging.WARNING if is_news else logging.DEBUG, "store fails: %s", error,
            extra={"store": self.store.name, "failures": self.breaker.failures, "wait_s": self.breaker.wait_s},
        )  # fmt: skip
        self._changed()

    def caught_up(self) -> None:
        """Nothing waits for this store: that it may be written to is proof enough, there is no segment to show it."""
        if self.active and self.breaker.open:
            self._worked()

    def _worked(self) -> None:
        if self.breaker.open:
            _log.info("store works again", extra={"store": self.store.name})
        self.breaker = self.breaker.succeeded()
        metrics.UP.labels(self.store.name).set(1)
        self._changed()

    def _set_active(self, active: bool) -> None:
        self.active = active
        metrics.ACTIVE.labels(self.store.name).set(int(active))

    # Writing

    async def _write_until(self, held: Held) -> None:
        await self.store.check()
        await self.chain.catch_up()
        await self.chain.mend_end()
        self.epoch, self.stored = await self.chain.position()
        await self.ensure_consumer()
        consumer = self.consumer
        info = await self._bus.consumer_info(RECORDS, consumer)
        delivered = info.delivered if info is not None else 0
        intake = Intake(
            store=self.store.name, first=self.stored + 1, limits=self._settings.limits, clock=self._clock,
            held_bytes_max=self._settings.held_bytes_max,
        )  # fmt: skip
        self._set_active(True)
        if not self.breaker.open:
            self._worked()  # else a written segment shows it: a full disk still takes the small file of `check`
        _log.log(
            logging.DEBUG if self.breaker.open else logging.INFO, "writing",
            extra={"store": self.store.name, "epoch": self.epoch, "from": self.stored + 1},
        )  # fmt: skip
        # What the consumer handed to somebody who is gone comes again only after its wait: read it now instead.
        await self._fetch(intake, delivered, held)
        pump = await self._bus.pull(RECORDS, consumer, intake.delivered, auto=False, lost=intake.lost)
        try:
            intake.open_pump(pump)
            while not held.lost.is_set() and not self._stopping.is_set():
                if intake.gone:
                    raise StreamMissing(f"consumer {consumer}: {intake.gone}")
                if (hole := intake.hole) is not None:
                    await self._fetch(intake, hole, held)
                await self._step(intake)
            if self._stopping.is_set():
                await self._finish(intake, held)
        finally:
            await pump.stop()

    async def _finish(self, intake: Intake, held: Held) -> None:
        """Before the end, store what is here, cut where it would have been cut: within a second, the broker has the rest."""
        last = intake.next - 1
        while intake.stored < last and intake.hole is None and not intake.gone and not held.lost.is_set():
            await self._step(intake)

    async def _step(self, intake: Intake) -> None:
        """Wait until something is to be done, and do it."""
        if not intake.closed:
            due = intake.due_at
            wait_s = 1.0 if due is None else max(0.0, min(1.0, due - self._clock.monotonic()))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(intake.changed.wait(), wait_s)
        intake.changed.clear()
        intake.close_due()
        await self._write_closed(intake)
        intake.settle_skipped()

    async def _fetch(self, intake: Intake, up_to: int, held: Held) -> None:
        """Read the stream itself from what is due up to here, several at once, holding no more than may be held."""
        while intake.next <= up_to and not held.lost.is_set() and not self._stopping.is_set():
            if intake.full or intake.closed:
                intake.close_due(full=True)
                await self._write_closed(intake)
                continue
            # The first by search, since there may be a great hole where records have left; the next ones by number.
            first = await self._bus.get_next(RECORDS, subjects.RECORDS_ALL, intake.next)
            if first is None or first.sequence > up_to:
                intake.nothing_before(up_to + 1)
                return
            intake.nothing_before(first.sequence)
            intake.fetched(first)
            numbers = range(intake.next, min(intake.next + FETCH_AT_ONCE, up_to + 1))
            async with asyncio.TaskGroup() as group:
                reads = [group.create_task(self._bus.get_at(RECORDS, number), name="fetch") for number in numbers]
            for number, read in zip(numbers, reads, strict=True):
                stored = read.result()
                if stored is not None:
                    intake.fetched(stored)
                elif intake.next == number:
                    intake.nothing_before(number + 1)

    async def _write_closed(self, intake: Intake) -> None:
        while intake.closed or intake.aside:
            while intake.aside:
                await self._put_aside(intake)
            if intake.closed:
                batch = intake.closed.popleft()
                await self._write(batch, intake)
                intake.done(batch)

    async def _put_aside(self, intake: Intake) -> None:
        """What is no record is kept whole, for a person to look at, and holds nothing up."""
        odd = intake.aside[0]
        content = f"{odd.subject}\n{odd.headers}\n\n".encode(errors="replace") + odd.body
        digest = hashlib.sha256(content).hexdigest()
        await self.store.put_new(object_key.undecodable(self.epoch, odd.sequence), content, sha256=digest)
        intake.aside.popleft()

    async def _write(self, batch: Batch, intake: Intake) -> None:
        """One segment: bodies first, then the segment, then the index. Only then is anything settled."""
        entries = await self._new_ones(batch.entries)
        if not entries and batch.cause != "records":
            return  # nothing to keep: the next segment begins where this one would have
        bodies = await self._copier.copy_all(entries)
        encoded = await self._encoder.encode(
            epoch=self.epoch, first=self.stored + 1, last=batch.last, entries=entries, bodies=bodies
        )
        key = object_key.segment(self.epoch, self.stored + 1)
        self._failpoints.hit("persist.before_link")
        started, begun = self._clock.now(), self._clock.monotonic()
        async with self._failpoints.put():
            outcome = await self.store.put_new(key, encoded.data, sha256=encoded.sha256)
        if isinstance(outcome, Exists) and not outcome.equal:
            raise Overtaken(f"{self.store.name}: {key} is written already")
        self._failpoints.hit("persist.after_put")
        took = self._clock.monotonic() - begun
        await self.index.add([(key, encoded.directory)])
        self.stored = batch.last
        if self.breaker.open:
            self._worked()
        self._count(batch, entries, len(encoded.data), took)
        for entry in entries:
            if entry.traceparent:
                self._trace(entry, started, started + took, key)

    async def _new_ones(self, entries: Sequence[Entry]) -> list[Entry]:
        """Without jobs that the store holds: a late second final, long after the first has left the broker."""
        if not entries:
            return []
        known = await self.index.known([entry.summary.job for entry in entries])
        fresh: dict[str, Entry] = {}
        for entry in entries:
            if entry.summary.job not in known:
                fresh.setdefault(entry.summary.job, entry)
        if len(fresh) < len(entries):
            metrics.REPEATED.labels(self.store.name).inc(len(entries) - len(fresh))
        return list(fresh.values())

    def _count(self, batch: Batch, entries: Sequence[Entry], size: int, took: float) -> None:
        name = self.store.name
        metrics.RECORDS.labels(name).inc(len(entries))
        metrics.SEGMENTS.labels(name, batch.cause).inc()
        metrics.BYTES.labels(name).inc(size)
        metrics.PUT_S.labels(name).observe(took)

    def _trace(self, entry: Entry, started: float, ended: float, key: str) -> None:
        sent = self._tracer.continued(entry.traceparent)
        process = sent.child()
        self._tracer.span(
            process, "process hearth.v1.records", parent=sent.span_id, start=entry.received_at, end=ended, kind="consumer",
            attributes={
                "messaging.system": "nats", "messaging.destination.template": "hearth.v1.records",
                "messaging.consumer.group.name": self.consumer,
                "nats.delivery.attempt": entry.attempt, "faas.name": entry.summary.function,
                "faas.invocation_id": entry.summary.job,
            },
        )  # fmt: skip
        self._tracer.span(
            process.child(), f"store {self.store.name}", parent=process.span_id, start=started, end=ended, kind="client",
            attributes={"hearth.store": self.store.name, "hearth.store.key": key, "peer.service": self.store.name},
        )  # fmt: skip


def _cause(error: Exception) -> Exception:
    """What went wrong first, out of a group of tasks."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error
