"""Key-value buckets: typed, by direct get, with a local copy where reads must cost nothing."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from hearth_contracts.errors import InvalidName
from hearth_contracts.streams import Stream
from hearth_kit.background import Background
from hearth_kit.bus import Bus, Stored, Subscription
from hearth_kit.message import Message

_log = logging.getLogger(__name__)

V = TypeVar("V", bound=BaseModel)

#: A plain subscriber hears a write before the stream has it (measured: up to a few milliseconds, one write in some hundred),
#: and who looks at once sees what was there before. So: look again, until what was heard is there. What the stream refused
#: never is.
LOOKS_S: Final = (0.0, 0.01, 0.05, 0.25, 1.0)

_GONE: Final = "KV-Operation"
_MARKER: Final = "Nats-Marker-Reason"
#: A key is part of a subject, and people's own words may end up in one.
_KEY: Final = re.compile(r"[A-Za-z0-9_=-]{1,200}(?:\.[A-Za-z0-9_=-]{1,200}){0,4}")


async def looks(bus: Bus, stream: str, heard: Message) -> AsyncIterator[Stored | None]:
    """What the stream holds of a subject that was heard of, again and again until it is what was heard."""
    for pause_s in LOOKS_S:
        if pause_s:
            await asyncio.sleep(pause_s)
        stored = await bus.get_last(stream, heard.subject)
        yield stored
        if stored is not None and stored.message.body == heard.body and gone(stored) == (_GONE in heard.headers):
            return


def gone(stored: Stored) -> bool:
    """Whether this is only the mark of a key that was deleted or has expired."""
    headers = stored.message.headers
    return _GONE in headers or _MARKER in headers


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

    def _subject(self, key: str) -> str:
        if _KEY.fullmatch(key) is None:
            raise InvalidName("key", key, "use letters, digits, -, _ and =, with single dots between")
        return self._prefix + key

    async def get(self, key: str) -> Entry[V] | None:
        stored = await self.last(key)
        return None if stored is None else self.entry(stored)

    async def last(self, key: str) -> Stored | None:
        """What the bucket holds of the key, be it only the mark of its deletion or expiry: what an update builds on."""
        return await self._bus.get_last(self._stream, self._subject(key))

    async def put(self, key: str, value: V) -> int:
        return (await self._bus.publish(self._subject(key), value.model_dump_json().encode())).sequence

    async def create(self, key: str, value: V, *, ttl_s: int = 0) -> int:
        """Write only if the key holds nothing; raises `WrongLastSequence`."""
        return await self.update(key, value, revision=0, ttl_s=ttl_s)

    async def update(self, key: str, value: V, *, revision: int, ttl_s: int = 0) -> int:
        """Write only on top of `revision`; raises `WrongLastSequence`. A later write without `ttl_s` is permanent."""
        headers = {"Nats-TTL": f"{ttl_s}s"} if ttl_s else None
        ack = await self._bus.publish(self._subject(key), value.model_dump_json().encode(), expect_last=revision, headers=headers)
        return ack.sequence

    async def delete(self, key: str) -> None:
        """Leave a mark that the key is gone, readable by every KV client."""
        await self._bus.publish(self._subject(key), headers={_GONE: "DEL"})

    async def all(self, pattern: str = ">") -> list[Entry[V]]:
        return [entry for stored in await self.all_last(pattern) if (entry := self.entry(stored)) is not None]

    async def all_last(self, pattern: str = ">") -> list[Stored]:
        """As `all`, marks included."""
        return await self._bus.get_last_each(self._stream, [self._prefix + pattern])

    def entry(self, stored: Stored) -> Entry[V] | None:
        """The value, or None for a mark, and for what does not parse: one bad entry must not stop a service."""
        if gone(stored):
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

    @property
    def stream(self) -> str:
        return self._stream


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
        await self._tasks.cancel()

    async def reload(self) -> None:
        before = {key: entry.revision for key, entry in self._entries.items()}
        found = await self._bucket.all_last()
        for stored in found:
            self._took(stored)
        # Only what is as old as it was before the reading: a key written meanwhile is not missing, it is new.
        for key in before.keys() - {self._key(stored) for stored in found}:
            self._drop(key, up_to=before[key])

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
        await self._look(key)
        return self.get(key)

    def _heard(self, message: Message) -> None:
        # A subscriber also hears a write that the stream refused, so what is heard is only a reason to look.
        self._tasks.start(self._look_for(message))

    async def _look_for(self, heard: Message) -> None:
        async for stored in looks(self._bus, self._bucket.stream, heard):
            if stored is not None:
                self._took(stored)

    async def _look(self, key: str) -> None:
        known = self._entries.get(key)
        stored = await self._bucket.last(key)
        if stored is not None:
            self._took(stored)
        elif known is not None:
            self._drop(key, up_to=known.revision)

    def _key(self, stored: Stored) -> str:
        return stored.subject.removeprefix(self._bucket.prefix)

    def _took(self, stored: Stored) -> None:
        """Whatever was read, in whatever order: the higher revision stays."""
        key = self._key(stored)
        known = self._entries.get(key)
        if known is not None and known.revision >= stored.sequence:
            return
        entry = self._bucket.entry(stored)
        if entry is None:
            self._drop(key, up_to=stored.sequence)
            return
        self._entries[key] = entry
        if self._changed is not None:
            self._changed(key, entry.value)

    def _drop(self, key: str, *, up_to: int) -> None:
        known = self._entries.get(key)
        if known is not None and known.revision <= up_to:
            del self._entries[key]
            if self._changed is not None:
                self._changed(key, None)
