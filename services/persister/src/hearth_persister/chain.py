"""The chain of segments in one store: how far it goes, and whether it is still that of the stream that there is."""

import asyncio
import hashlib
import logging
from typing import Final

from hearth_contracts import streams
from hearth_kit.bus import Bus
from hearth_kit.clock import Clock
from hearth_kit.errors import StreamMissing
from hearth_persister import metrics
from hearth_persister.adapters.index import Head, Index
from hearth_persister.domain import object_key, segment
from hearth_persister.domain.segment import Directory
from hearth_persister.errors import SegmentCorrupt
from hearth_persister.ports import ObjectStore

_log = logging.getLogger(__name__)

#: Directories read from the store before the index takes them in.
CATCH_UP_SEGMENTS: Final = 64
#: A directory is mostly within so many bytes of its segment's end; when it is not, a second read gets it whole.
TAIL_BYTES: Final = 64 * 1024


class Chain:
    """One store's. The store is the truth, the index its copy."""

    def __init__(self, *, store: ObjectStore, index: Index, bus: Bus, clock: Clock) -> None:
        self._store = store
        self._index = index
        self._bus = bus
        self._clock = clock
        self._following = asyncio.Lock()
        self._followed_at = float("-inf")
        self._unreadable_end = ""

    async def catch_up(self, *, fresh_s: float = 0) -> None:
        """Take into the index what the store holds and it does not. Nothing to do if that was done `fresh_s` ago."""
        async with self._following:
            if self._clock.monotonic() - self._followed_at < fresh_s:
                return
            head = await self._index.head()
            if head is not None and not await self._holds(head.key):
                _log.warning("the index is of another store and is made anew", extra={"store": self._store.name})
                await self._index.clear()
                head = None
            self._unreadable_end = ""
            found: list[tuple[str, Directory]] = []
            async for key in self._store.list(object_key.SEGMENTS, after=head.key if head else ""):
                if object_key.parse_segment(key) is None:
                    continue
                directory = await self.directory(key)
                if directory is None:
                    self._unreadable_end = key
                    continue
                self._unreadable_end = ""
                found.append((key, directory))
                if len(found) >= CATCH_UP_SEGMENTS:
                    await self._index.add(found)
                    found = []
            if found:
                await self._index.add(found)
            self._followed_at = self._clock.monotonic()

    async def mend_end(self) -> None:
        """A last segment that does not read would stop the chain for good: it is put aside, and what the broker still
        holds of it is written anew. One in the middle stays where it is, for `reading.inspect` to report."""
        key = self._unreadable_end
        if not key:
            return
        content = await self._store.get(key)
        digest = hashlib.sha256(content).hexdigest()
        await self._store.put_new(object_key.unreadable(key, digest), content, sha256=digest)
        await self._store.delete(key)
        self._unreadable_end = ""
        _log.error("the last segment does not read and was put aside", extra={"store": self._store.name, "key": key})

    async def _holds(self, key: str) -> bool:
        async for found in self._store.list(key.rpartition("/")[0] + "/", after=key[:-1]):
            return found == key
        return False

    async def directory(self, key: str) -> Directory | None:
        """A segment's directory, or None when it does not read."""
        tail = await self._store.get(key, start=-TAIL_BYTES)
        try:
            size = segment.directory_bytes(tail[-segment.TRAILER_BYTES :]) + segment.TRAILER_BYTES
            if size > len(tail):
                tail = await self._store.get(key, start=-size)
            return segment.decode_directory(tail[-size : -segment.TRAILER_BYTES])
        except SegmentCorrupt as error:
            _log.error("a segment does not read: %s", error, extra={"store": self._store.name, "key": key})
            return None

    async def position(self) -> tuple[str, int]:
        """The epoch to write in, and how far its chain goes."""
        info = await self._bus.stream_info(streams.RECORDS.name)
        if info is None:
            raise StreamMissing(streams.RECORDS.name)
        fresh = object_key.epoch(info.created)
        head = await self._index.head()
        if head is None or head.epoch.split("-")[0] < fresh.split("-")[0]:
            return fresh, 0
        if info.last_sequence < head.last or not await self._same_stream(head):
            _log.warning(
                "the record stream went back in time; the store goes on in a new epoch",
                extra={"store": self._store.name, "chain": head.last, "stream": info.last_sequence},
            )
            return object_key.next_generation(head.epoch), 0
        if info.first_sequence > head.last + 1:
            missed = info.first_sequence - head.last - 1
            metrics.MISSED.labels(self._store.name).inc(missed)
            _log.error(
                "records left the broker before the store had them",
                extra={"store": self._store.name, "from": head.last + 1, "to": info.first_sequence - 1},
            )
        return head.epoch, head.last

    async def _same_stream(self, head: Head) -> bool:
        """Whether the stream still holds, or can have held, what the chain ends with."""
        known = await self._index.at(head.epoch, head.last)
        if known is None:
            return True
        stored = await self._bus.get_at(streams.RECORDS.name, known[1])
        return stored is None or stored.subject.rpartition(".")[2] == known[0]
