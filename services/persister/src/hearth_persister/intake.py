"""Records on their way into segments: put in the stream's order, decoded, cut into batches, within a bound of memory."""

import asyncio
import logging
from collections import deque
from dataclasses import dataclass
from typing import Final

from hearth_contracts.errors import UndecodableMessage
from hearth_kit.bus import Pump, Stored
from hearth_kit.clock import Clock
from hearth_kit.message import META, Message
from hearth_persister import metrics
from hearth_persister.domain.batching import Batch, Cutter, Limits
from hearth_persister.domain.entry import Entry, decode

_log = logging.getLogger(__name__)

#: Records asked for ahead. Each may be near the broker's 1 MiB, so this bounds memory, and it is enough for 20,000 a second.
AHEAD: Final = 32
#: A batch that could close is held open this much longer while the broker says that more is on its way.
PENDING_S_MAX: Final = 5.0


@dataclass(frozen=True, slots=True)
class Undecodable:
    """What came as a record and is none."""

    sequence: int
    subject: str
    headers: str
    body: bytes


class Intake:
    """One store's. Synchronous: called from the read loop."""

    def __init__(self, *, store: str, first: int, limits: Limits, clock: Clock, held_bytes_max: int) -> None:
        self._store = store
        self._clock = clock
        self._held_bytes_max = held_bytes_max
        self._cutter = Cutter(limits, first=first)
        self._next = first
        self._early: dict[int, Message] = {}
        self._pump: Pump | None = None
        self._more_wait = False
        self._token: tuple[int, Message] | None = None
        """The last record that came from the consumer: acknowledging it settles everything up to it."""
        self._tokens: deque[tuple[int, Message]] = deque()
        """The same, as it was at the end of each closed batch."""
        self._skipped = metrics.SKIPPED.labels(store)
        self._undecodable = metrics.UNDECODABLE.labels(store)
        self.stored = first - 1
        """Everything up to here is durable."""
        self.held_bytes = 0
        self.closed: deque[Batch] = deque()
        self.aside: deque[Undecodable] = deque()
        """Must be put into the store before the batch around them is."""
        self.gone = ""
        """Why the consumer is there no longer."""
        self.changed = asyncio.Event()
        """Something is closed, or there is a hole."""

    @property
    def next(self) -> int:
        """The sequence that is due."""
        return self._next

    @property
    def hole(self) -> int | None:
        """The stream was read up to `next`, and something behind it is here already: the last sequence to fetch."""
        return min(self._early) - 1 if self._early else None

    @property
    def full(self) -> bool:
        return self.held_bytes >= self._held_bytes_max

    @property
    def due_at(self) -> float | None:
        due = self._cutter.due_at()
        return due + PENDING_S_MAX if due is not None and self._more_wait else due

    def open_pump(self, pump: Pump) -> None:
        self._pump = pump
        self._ask()

    def delivered(self, message: Message) -> None:
        """From the consumer."""
        sequence = message.sequence
        self._more_wait = message.pending > 0
        if sequence <= self.stored:
            message.ack()
        elif sequence >= self._next:
            if sequence > self._next:
                self._early[sequence] = message
                self.changed.set()
            else:
                self._take_delivered(sequence, message)
                self._take_early()
        self._ask()

    def fetched(self, stored: Stored) -> None:
        """From a direct read: the first that exists at or after `next`."""
        if stored.sequence >= self._next:
            self._early.pop(stored.sequence, None)
            self._take(stored.sequence, round(stored.at * 1_000_000), stored.subject, stored.message, 1)
            self._take_early()

    def nothing_before(self, sequence: int) -> None:
        """The stream holds nothing from `next` up to here (exclusive)."""
        self._next = max(self._next, sequence)
        self._take_early()

    def _take_early(self) -> None:
        while self._early and (message := self._early.pop(self._next, None)) is not None:
            self._take_delivered(self._next, message)

    def _take_delivered(self, sequence: int, message: Message) -> None:
        # The acknowledgement subject ends in the stream's time (nanoseconds) and the number that still wait.
        at_us = int(message.reply.rsplit(".", 2)[1]) // 1000
        self._take(sequence, at_us, message.subject, message, message.delivered)

    def _take(self, sequence: int, at_us: int, subject: str, message: Message, delivered: int) -> None:
        self._next = sequence + 1
        headers = message.headers
        try:
            text = headers.get(META)
            if text is None:
                raise UndecodableMessage(f"{subject}: header {META} is missing")
            decoded = decode(subject, text)
        except UndecodableMessage as error:
            _log.error("not a record: %s", error, extra={"sequence": sequence})
            self._undecodable.inc()
            self.aside.append(Undecodable(sequence, subject, repr(headers), message.body))
            self._passed(sequence, at_us, message)
            return
        if not decoded.persist:
            self._skipped.inc()
            self._passed(sequence, at_us, message)
            return
        entry = Entry(sequence, at_us, text.encode(), message.body, decoded.summary, decoded.large)
        traceparent = headers.get("traceparent", "")
        if traceparent.endswith("-01"):
            entry.traceparent = traceparent
            entry.received_at = self._clock.now()
            entry.attempt = delivered
        self.held_bytes += entry.weight
        self._closed(self._cutter.add(entry, self._clock.monotonic()))
        self._remember(sequence, message)
        if len(self._cutter.open.entries) == 1:
            self.changed.set()  # from now on something is due

    def _passed(self, sequence: int, at_us: int, message: Message) -> None:
        self._closed(self._cutter.skip(sequence, at_us))
        self._remember(sequence, message)

    def _remember(self, sequence: int, message: Message) -> None:
        if message.consumed:
            self._token = (sequence, message)

    def _closed(self, batch: Batch | None) -> None:
        if batch is None:
            return
        if self._token is not None:
            self._tokens.append(self._token)
            self._token = None
        self.closed.append(batch)
        self.changed.set()

    def _ask(self) -> None:
        """Keep so many records on their way, unless enough is held or a hole must be filled first."""
        if self._pump is None or self.full or self._early:
            return
        granted = self._pump.granted
        if granted <= AHEAD // 2:
            self._pump.grant(AHEAD - granted)

    def lost(self, why: str) -> None:
        self.gone = why
        self.changed.set()

    # The writer's side

    def close_due(self, *, full: bool = False) -> None:
        """Close what can hold nothing more. `full`: also where nothing more can be held at all."""
        now = self._clock.monotonic()
        if full and self.full and not self.closed:
            self._closed(self._cutter.close())
        elif not self._early and (due := self.due_at) is not None and now >= due:
            self._closed(self._cutter.close_due(now))

    def done(self, batch: Batch) -> None:
        """A batch is in the store, or holds nothing that the store lacks."""
        self.held_bytes -= sum(entry.weight for entry in batch.entries)
        self.settle(batch.last)
        self._ask()

    def settle(self, durable: int) -> None:
        """Tell the broker. What came by direct read is settled with the next that came from the consumer."""
        self.stored = max(self.stored, durable)
        last = None
        while self._tokens and self._tokens[0][0] <= self.stored:
            last = self._tokens.popleft()
        if not self._tokens and self._token is not None and self._token[0] <= self.stored:
            last, self._token = self._token, None
        if last is not None:
            last[1].ack()

    def settle_skipped(self) -> None:
        """Nothing is on its way to the store: what was only passed over is done with."""
        if not self.closed and not self.aside and not self._cutter.open.entries and not self._early:
            self.settle(self._next - 1)
