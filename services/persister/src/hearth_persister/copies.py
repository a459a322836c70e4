"""Large bodies: from the broker's objects into objects of the store, chunk by chunk."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Final

from hearth_kit.objects import ObjectMissing, Objects
from hearth_persister import metrics
from hearth_persister.domain import object_key
from hearth_persister.domain.entry import Entry, LargeBody
from hearth_persister.domain.segment import StoredBody
from hearth_persister.errors import ObjectCorrupt
from hearth_persister.ports import Exists, ObjectStore

_log = logging.getLogger(__name__)

#: Bodies copied at once per store: each holds eight chunks, 2 MiB.
AT_ONCE: Final = 3


class Copier:
    """Copies what the records of one store refer to."""

    def __init__(self, *, objects: Objects, store: ObjectStore) -> None:
        self._objects = objects
        self._store = store
        self._slots = asyncio.Semaphore(AT_ONCE)

    async def copy_all(self, entries: Sequence[Entry]) -> dict[int, tuple[StoredBody, ...]]:
        """By sequence, where the bodies now lie. Raises `StoreError` or `BusError`; what was copied stays and is found again."""
        wanted = [(entry, body) for entry in entries for body in entry.large]
        if not wanted:
            return {}
        async with asyncio.TaskGroup() as group:
            copies = [group.create_task(self._copy(entry, body), name="copy-body") for entry, body in wanted]
        found: dict[int, tuple[StoredBody, ...]] = {}
        for (entry, _), copy in zip(wanted, copies, strict=True):
            found[entry.sequence] = (*found.get(entry.sequence, ()), copy.result())
        return found

    async def _copy(self, entry: Entry, body: LargeBody) -> StoredBody:
        async with self._slots:
            try:
                return await self._stored(entry, body)
            except ObjectMissing:
                # Aged out of the broker, or never whole: the record is kept all the same, and says so.
                _log.warning("a body had left the broker", extra={"job": entry.summary.job, "part": body.part})
                metrics.BODIES_MISSING.labels(self._store.name).inc()
                return StoredBody(body.part, "", body.size, "", missing=True)

    async def _stored(self, entry: Entry, body: LargeBody) -> StoredBody:
        head = await self._objects.head("bodies", body.object)
        if head is None:
            raise ObjectMissing(body.object)
        words = entry.summary
        key = object_key.body(words.tenant, words.job, body.part)
        outcome = await self._store.put_new(key, self._chunks(body.object), sha256=head.sha256)
        if isinstance(outcome, Exists) and not outcome.equal:
            # Something else lies there, such as a body of an attempt that lost: both stay, under different keys.
            key = object_key.body(words.tenant, words.job, body.part, sha256=head.sha256)
            outcome = await self._store.put_new(key, self._chunks(body.object), sha256=head.sha256)
            if isinstance(outcome, Exists) and not outcome.equal:
                raise ObjectCorrupt(f"{self._store.name}: {key} holds other bytes than its name says")
        if not isinstance(outcome, Exists):
            metrics.BODIES.labels(self._store.name).inc()
            metrics.BYTES.labels(self._store.name).inc(head.size)
        return StoredBody(body.part, key, head.size, head.sha256)

    async def _chunks(self, object_id: str) -> AsyncIterator[bytes]:
        async for chunk in self._objects.read("bodies", object_id):
            yield chunk
