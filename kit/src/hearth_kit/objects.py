"""Large bodies: written and read in chunks, a few in flight, so that memory stays flat however large they are."""

import asyncio
import hashlib
import secrets
from collections import deque
from collections.abc import AsyncIterator
from typing import Final

from hearth_contracts import subjects
from hearth_contracts.objects import CHUNK_BYTES, ObjectMeta
from hearth_kit.bus import Ack, Bus, Stored
from hearth_kit.errors import BusError

#: Chunks in flight in either direction: 2 MiB of memory for any size of object.
WINDOW_CHUNKS: Final = 8

#: An abandoned object's chunks on their way are waited for so long, before they are removed with the others.
ABANDON_S: Final = 5.0

_STREAMS: Final = {"bodies": "OBJECTS_BODIES", "code": "OBJECTS_CODE"}


class ObjectMissing(BusError):
    """This object does not exist, or is gone already."""

    code = "E_OBJECT_MISSING"


class ObjectTooLarge(BusError):
    """The body passes its limit."""

    code = "E_TOO_LARGE"


class Writer:
    """One object being written. It exists once `finish` has returned."""

    def __init__(
        self, bus: Bus, area: str, object_id: str, *, bytes_max: int, content_type: str, window_chunks: int = WINDOW_CHUNKS
    ) -> None:
        self._bus = bus
        self._area = area
        self._id = object_id
        self._bytes_max = bytes_max
        self._content_type = content_type
        self._window_chunks = window_chunks
        self._buffer = bytearray()
        self._hash = hashlib.sha256()
        #: An id that was written and removed a moment ago may be written again: the broker remembers message ids.
        self._nonce = secrets.token_hex(4)
        self._flying: deque[asyncio.Task[Ack]] = deque()
        self.size = 0
        self.chunks = 0

    async def write(self, data: bytes) -> None:
        self.size += len(data)
        if self.size > self._bytes_max:
            raise ObjectTooLarge(f"more than {self._bytes_max} bytes")
        self._hash.update(data)
        self._buffer += data
        while len(self._buffer) >= CHUNK_BYTES:
            chunk = bytes(self._buffer[:CHUNK_BYTES])
            del self._buffer[:CHUNK_BYTES]
            await self._publish(chunk)

    async def _publish(self, chunk: bytes) -> None:
        subject = subjects.object_chunk(self._area, self._id, self.chunks)
        publishing = self._bus.publish(subject, chunk, msg_id=f"{self._id}.{self._nonce}.{self.chunks}", timeout_s=30)
        self._flying.append(asyncio.get_running_loop().create_task(publishing, name="object-chunk"))
        self.chunks += 1
        if len(self._flying) >= self._window_chunks:
            await self._flying.popleft()

    async def finish(self) -> ObjectMeta:
        if self._buffer:
            await self._publish(bytes(self._buffer))
            self._buffer.clear()
        while self._flying:
            await self._flying.popleft()
        meta = ObjectMeta(
            id=self._id, size=self.size, chunks=self.chunks, sha256=self._hash.hexdigest(), content_type=self._content_type
        )
        await self._bus.publish(
            subjects.object_meta(self._area, self._id), meta=meta, contract="object.v1", msg_id=f"{self._id}.{self._nonce}.meta"
        )
        return meta

    async def abandon(self) -> None:
        """Stop writing and remove what is there."""
        if self._flying:
            # A chunk on its way could be stored after the removal: the broker does the two beside each other.
            _, late = await asyncio.wait(self._flying, timeout=ABANDON_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*self._flying, return_exceptions=True)
            self._flying.clear()
        await Objects(self._bus).delete(self._area, self._id)


class Objects:
    """The objects of one platform."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    def writer(
        self,
        area: str,
        object_id: str,
        *,
        bytes_max: int,
        content_type: str = "application/octet-stream",
        window_chunks: int = WINDOW_CHUNKS,
    ) -> Writer:
        """`window_chunks`: how many may be in flight, where several are written to at once."""
        return Writer(self._bus, area, object_id, bytes_max=bytes_max, content_type=content_type, window_chunks=window_chunks)

    async def put(self, area: str, object_id: str, data: bytes, *, content_type: str = "application/octet-stream") -> ObjectMeta:
        writer = self.writer(area, object_id, bytes_max=len(data), content_type=content_type)
        await writer.write(data)
        return await writer.finish()

    async def head(self, area: str, object_id: str) -> ObjectMeta | None:
        stored = await self._bus.get_last(_STREAMS[area], subjects.object_meta(area, object_id))
        return None if stored is None else stored.message.meta(ObjectMeta)

    async def read(self, area: str, object_id: str, *, start_chunk: int = 0) -> AsyncIterator[bytes]:
        """Its chunks in order. Raises `ObjectMissing` before the first, or in the middle when it is removed meanwhile.

        `start_chunk`: leave out so many at its beginning; each of them has `CHUNK_BYTES`."""
        meta = await self.head(area, object_id)
        if meta is None:
            raise ObjectMissing(f"{area}/{object_id}")
        loop = asyncio.get_running_loop()
        flying: deque[asyncio.Task[Stored | None]] = deque()
        asked, size = start_chunk, start_chunk * CHUNK_BYTES
        try:
            while asked < meta.chunks or flying:
                while asked < meta.chunks and len(flying) < WINDOW_CHUNKS:
                    subject = subjects.object_chunk(area, object_id, asked)
                    flying.append(loop.create_task(self._bus.get_last(_STREAMS[area], subject), name="object-get"))
                    asked += 1
                stored = await flying.popleft()
                if stored is None:
                    raise ObjectMissing(f"{area}/{object_id}: a chunk is gone")
                size += len(stored.message.body)
                yield stored.message.body
            if size != meta.size:
                raise ObjectMissing(f"{area}/{object_id}: {size} bytes of {meta.size}")
        finally:
            for task in flying:
                task.cancel()
            await asyncio.gather(*flying, return_exceptions=True)

    async def get(self, area: str, object_id: str) -> bytes:
        """The whole of a small object."""
        return b"".join([chunk async for chunk in self.read(area, object_id)])

    async def delete(self, area: str, object_id: str) -> None:
        await self._bus.purge(_STREAMS[area], subject=subjects.object_all(area, object_id))
