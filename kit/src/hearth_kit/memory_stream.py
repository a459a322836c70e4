"""One stream and its consumers in memory: what the broker decides, as far as services rest on it. Time is an argument."""

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from hearth_contracts.streams import Stream
from hearth_kit import errors
from hearth_kit.bus import ConsumerInfo, ConsumerSpec
from hearth_kit.message import EXPECTED_LAST, MSG_ID, TTL


def matches(pattern: str, subject: str) -> bool:
    """Whether the broker's pattern (`*` one token, `>` one or more at the end) covers a subject."""
    if pattern == subject:
        return True
    wanted, given = pattern.split("."), subject.split(".")
    for index, token in enumerate(wanted):
        if token == ">":
            return len(given) > index
        if index >= len(given) or token not in ("*", given[index]):
            return False
    return len(wanted) == len(given)


@dataclass(frozen=True, slots=True)
class Item:
    sequence: int
    subject: str
    headers: Mapping[str, str]
    body: bytes
    at: float
    expires_at: float

    @property
    def size(self) -> int:
        return len(self.subject) + len(self.body) + sum(len(key) + len(value) + 4 for key, value in self.headers.items())


class MemoryStream:
    """What a stream keeps, refuses and forgets."""

    def __init__(self, config: Stream) -> None:
        self.config = config
        self.items: dict[int, Item] = {}
        self.last_sequence = 0
        self.consumers: dict[str, MemoryConsumer] = {}
        self.size = 0
        self._ids: dict[str, tuple[int, float]] = {}
        self._of_subject: dict[str, dict[int, Item]] = {}

    def covers(self, subject: str) -> bool:
        return any(matches(pattern, subject) for pattern in self.config.subjects)

    def store(self, subject: str, headers: Mapping[str, str], body: bytes, now: float) -> tuple[int, bool]:
        """The sequence, and whether the id was known already. Raises as the broker refuses, in its order."""
        self.forget(now)
        message_id = headers.get(MSG_ID, "")
        if message_id and message_id in self._ids:
            return self._ids[message_id][0], True
        expected = headers.get(EXPECTED_LAST)
        last = self.last(subject)
        if expected is not None and int(expected) != (last.sequence if last else 0):
            raise errors.WrongLastSequence(f"{subject}: it is {last.sequence if last else 0}")
        ttl = headers.get(TTL, "")
        if ttl and not self.config.allow_ttl:
            raise errors.ApiError("this stream takes no time to live")
        expires_at = now + float(ttl.removesuffix("s")) if ttl else float("inf")
        item = Item(self.last_sequence + 1, subject, dict(headers), body, now, expires_at)
        self._make_room(item)
        self.last_sequence = item.sequence
        self.items[item.sequence] = item
        self._of_subject.setdefault(subject, {})[item.sequence] = item
        self.size += item.size
        if message_id:
            self._ids[message_id] = (item.sequence, now)
        return item.sequence, False

    def last(self, subject: str) -> Item | None:
        """The newest of one subject."""
        same = self._of_subject.get(subject)
        return same[next(reversed(same))] if same else None

    def _make_room(self, item: Item) -> None:
        config = self.config
        same = self._of_subject.get(item.subject, {})
        if 0 < config.max_msgs_per_subject <= len(same):
            if config.discard_new_per_subject:
                raise errors.StreamFull(f"{item.subject} holds {len(same)}")
            self.remove(next(iter(same)))
        while self._is_full(item):
            if config.discard == "new" or not self.items:
                raise errors.StreamFull(config.name)
            self.remove(next(iter(self.items)))

    def _is_full(self, item: Item) -> bool:
        config = self.config
        if 0 < config.max_msgs <= len(self.items):
            return True
        return config.max_bytes > 0 and self.size + item.size > config.max_bytes

    def remove(self, sequence: int) -> None:
        item = self.items.pop(sequence, None)
        if item is not None:
            self.size -= item.size
            del self._of_subject[item.subject][sequence]
        for consumer in self.consumers.values():
            consumer.forget(sequence)

    def forget(self, now: float) -> None:
        """What has grown too old."""
        if self.config.max_age_s or self.config.allow_ttl:
            oldest = now - self.config.max_age_s if self.config.max_age_s else float("-inf")
            for sequence in [item.sequence for item in self.items.values() if item.expires_at <= now or item.at <= oldest]:
                self.remove(sequence)
        known_since = now - self.config.duplicate_window_s
        self._ids = {key: value for key, value in self._ids.items() if value[1] > known_since}

    def matching(self, pattern: str) -> Iterator[Item]:
        return (item for item in self.items.values() if matches(pattern, item.subject))

    def purge(self, subject: str, below_sequence: int) -> int:
        """All, or what matches; up to a sequence, where one is given."""
        gone = [item.sequence for item in self.matching(subject or ">") if not below_sequence or item.sequence < below_sequence]
        for sequence in gone:
            self.remove(sequence)
        return len(gone)


@dataclass(slots=True)
class _Delivered:
    due: float
    """When it comes again, unless it is settled."""


@dataclass(eq=False)
class MemoryConsumer:
    """A durable pull consumer: what waits, what was delivered, what comes again."""

    stream: MemoryStream
    spec: ConsumerSpec
    open: dict[int, _Delivered] = field(default_factory=dict)
    counts: dict[int, int] = field(default_factory=dict)
    again: deque[int] = field(default_factory=deque)
    delivered: int = 0

    def _wants(self, item: Item) -> bool:
        return item.sequence > self.delivered and matches(self.spec.filter_subject or ">", item.subject)

    def next(self, now: float) -> tuple[Item, int, int] | None:
        """The next message, how often it was delivered with this time, and how many wait behind it."""
        self.stream.forget(now)
        for sequence in [sequence for sequence, one in self.open.items() if one.due <= now]:
            del self.open[sequence]
            self.again.append(sequence)
        if 0 < self.spec.max_ack_pending <= len(self.open):
            return None
        item = self._take()
        if item is None:
            return None
        count = self.counts[item.sequence] = self.counts.get(item.sequence, 0) + 1
        self.open[item.sequence] = _Delivered(now + self.spec.ack_wait_s)
        return item, count, self.pending

    def _take(self) -> Item | None:
        while self.again:
            item = self.stream.items.get(self.again.popleft())
            if item is not None:
                return item
        item = next((item for item in self.stream.items.values() if self._wants(item)), None)
        if item is not None:
            self.delivered = item.sequence
        return item

    @property
    def pending(self) -> int:
        return sum(1 for item in self.stream.items.values() if self._wants(item))

    def settle(self, sequence: int, word: bytes, now: float) -> None:
        """What a service said about a message: the broker's own words."""
        if sequence not in self.open:
            return
        if word.startswith(b"+WPI"):
            self.open[sequence].due = now + self.spec.ack_wait_s
        elif word.startswith(b"-NAK"):
            _, _, delay = word.partition(b'"delay": ')
            self.open[sequence].due = now + (int(delay.rstrip(b"}")) / 1e9 if delay else 0)
        else:
            done = [one for one in self.open if one <= sequence] if self.spec.ack_all else [sequence]
            for one in done:
                self.forget(one)
                if self.stream.config.retention == "workqueue":
                    self.stream.remove(one)

    def forget(self, sequence: int) -> None:
        self.open.pop(sequence, None)
        self.counts.pop(sequence, None)

    @property
    def info(self) -> ConsumerInfo:
        open_first = min((*self.open, *self.again), default=self.delivered + 1)
        return ConsumerInfo(
            pending=self.pending, ack_pending=len(self.open) + len(self.again), ack_floor=open_first - 1, delivered=self.delivered
        )
