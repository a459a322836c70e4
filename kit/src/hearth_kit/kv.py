"""Key-value buckets: typed, by direct get, with a local copy where reads must cost nothing."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from pydantic import BaseModel, ValidationError

from hearth_contracts.streams import Stream
from hearth_kit.background import Background
from hearth_kit.bus import Bus, Stored, Subscription
from hearth_kit.message import Message

_log = logging.getLogger(__name__)

V = TypeVar("V", bound=BaseModel)

_GONE = "KV-Operation"


@dataclass(frozen=True, slots=True)
class Entry(Generic[V]):
    key: str
    value: V
    revision: int
    at: float


class Bucket(Generic[V]):
    """One bucket holding values of one model."""

    def __init__(self, bus: Bus, stream: Stream, model: type[V]) -> None:
        self._bus = bus
        self._stream = stream.name
        self._prefix = f"$KV.{stream.name.removeprefix('KV_')}."
        self._model = model

    async def get(self, key: str) -> Entry[V] | None:
        stored = await self._bus.get_last(self._stream, self._prefix + key)
        return None if stored is None else self._entry(stored)

    async def last_revision(self, key: str) -> int:
        """The revision of the key, also when only a mark of its deletion or expiry is left; 0 when nothing is."""
        stored = await self._bus.get_last(self._stream, self._prefix + key)
        return 0 if stored is None else stored.sequence

    async def put(self, key: str, value: V) -> int:
        return (await self._bus.publish(self._prefix + key, value.model_dump_json().encode())).sequence

    async def create(self, key: str, value: V, *, ttl_s: int = 0) -> int:
        """Write only if the key holds nothing; raises `WrongLastSequence`."""
        return await self.update(key, value, revision=0, ttl_s=ttl_s)

    async def update(self, key: str, value: V, *, revision: int, ttl_s: int = 0) -> int:
        """Write only on top of `revision`; raises `WrongLastSequence`. A later write without `ttl_s` is permanent."""
        headers = {"Nats-TTL": f"{ttl_s}s"} if ttl_s else None
        ack = await self._bus.publish(
            self._prefix + key, value.model_dump_json().encode(), expect_last=revision, headers=headers
        )
        return ack.sequence

    async def delete(self, key: str) -> None:
        """Leave a mark that the key is gone, readable by every KV client."""
        await self._bus.publish(self._prefix + key, headers={_GONE: "DEL"})

    async def all(self, pattern: str = ">") -> list[Entry[V]]:
        found = await self._bus.get_last_each(self._stream, [self._prefix + pattern])
        return [entry for stored in found if (entry := self._entry(stored)) is not None]

    def _entry(self, stored: Stored) -> Entry[V] | None:
        if _GONE in stored.message.headers or "Nats-Marker-Reason" in stored.message.headers:
            return None
        key = stored.subject.removeprefix(self._prefix)
        try:
            value = self._model.model_validate_json(stored.message.body)
        except ValidationError:
            _log.error("an entry does not parse", extra={"bucket": self._stream, "key": key})
            return None
        return Entry(key, value, stored.sequence, stored.at)

    async def mirror(self, changed: "Callable[[str, V | None], None] | None" = None) -> "Mirror[V]":
        """A local copy of the whole bucket, kept current. `changed` is told each key that changes, from the start on."""
        mirror = Mirror(self, self._bus, changed)
        await mirror.start()
        return mirror

    @property
    def prefix(self) -> str:
        return self._prefix


class Mirror(Generic[V]):
    """A bucket in memory. Reads are plain; `fresh` asks the broker when the copy has nothing."""

    def __init__(self, bucket: Bucket[V], bus: Bus, changed: Callable[[str, V | None], None] | None) -> None:
        self._bucket = bucket
        self._bus = bus
        self._changed = changed
        self._entries: dict[str, Entry[V]] = {}
        self._subscription: Subscription | None = None
        self._tasks = Background("mirror")

    async def start(self) -> None:
        # First the subscription, then the reading: a change between the two is then seen twice, never missed.
        self._subscription = await self._bus.subscribe(f"{self._bucket.prefix}>", self._heard)
        self._bus.on_reconnect(self.reload)
        await self.reload()

    async def stop(self) -> None:
        if self._subscription is not None:
            await self._subscription.stop()

    async def reload(self) -> None:
        entries = await self._bucket.all()
        present = {entry.key for entry in entries}
        for entry in entries:
            self._take(entry)
        for key in [key for key in self._entries if key not in present]:
            self._drop(key)

    def get(self, key: str) -> V | None:
        entry = self._entries.get(key)
        return None if entry is None else entry.value

    def entry(self, key: str) -> Entry[V] | None:
        return self._entries.get(key)

    def items(self) -> list[tuple[str, V]]:
        return [(key, entry.value) for key, entry in self._entries.items()]

    async def fresh(self, key: str) -> V | None:
        """From the copy, else from the broker: a key written a moment ago may not have been heard yet."""
        value = self.get(key)
        if value is not None:
            return value
        entry = await self._bucket.get(key)
        if entry is None:
            return None
        self._take(entry)
        return entry.value

    def _heard(self, message: Message) -> None:
        # A subscriber also hears a write that the stream refused, so what is heard is only a reason to look.
        key = message.subject.removeprefix(self._bucket.prefix)
        self._tasks.start(self._look(key))

    async def _look(self, key: str) -> None:
        entry = await self._bucket.get(key)
        if entry is None:
            self._drop(key)
        else:
            self._take(entry)

    def _take(self, entry: Entry[V]) -> None:
        known = self._entries.get(entry.key)
        if known is not None and known.revision >= entry.revision:
            return
        self._entries[entry.key] = entry
        if self._changed is not None:
            self._changed(entry.key, entry.value)

    def _drop(self, key: str) -> None:
        if self._entries.pop(key, None) is not None and self._changed is not None:
            self._changed(key, None)
