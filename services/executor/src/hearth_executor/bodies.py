"""Large bodies of a run: an input pulled from its object as the sandbox takes it, a result stored while it is written."""

from collections.abc import AsyncIterator, Callable

from hearth_contracts.calls import BODY_BYTES_MAX, Body
from hearth_executor.held import Held, Stop
from hearth_kit.errors import BusError
from hearth_kit.objects import Objects, ObjectTooLarge, Writer

AREA = "bodies"


async def incoming(objects: Objects, held: Held) -> AsyncIterator[bytes]:
    """The input's chunks. When they cannot be read the run is stopped: a function must not wait for what never comes."""
    try:
        async for chunk in objects.read(AREA, held.run.call.input.object):
            yield chunk
    except BusError:
        held.stop_for(Stop.INPUT_LOST)
        raise


class Result:
    """The one result of a call that may turn out large. `ports.BodyWriter` once it is."""

    def __init__(self, objects: Objects, held: Held, object_id: str, *, bytes_max: int = BODY_BYTES_MAX) -> None:
        self._objects = objects
        self._held = held
        self._id = object_id
        self._bytes_max = bytes_max
        self._writer: Writer | None = None

    async def open(self, size: int | None) -> "Result":
        self._writer = self._objects.writer(AREA, self._id, bytes_max=self._bytes_max)
        return self

    async def write(self, chunk: bytes) -> None:
        assert self._writer is not None
        try:
            await self._writer.write(chunk)
        except ObjectTooLarge:
            self._held.stop_for(Stop.TOO_LARGE)
            raise

    async def finish(self, inline: bytes, content_type: str, inline_bytes_max: int) -> tuple[Body, bytes]:
        """The result as the record will describe it, and what of it travels inside the message."""
        if self._writer is None:
            if len(inline) <= inline_bytes_max:
                return Body(content_type=content_type, size=len(inline)), inline
            await self.open(len(inline))
            await self.write(inline)
        assert self._writer is not None
        meta = await self._writer.finish()
        self._writer = None
        return Body(content_type=content_type, size=meta.size, object=self._id), b""

    async def abandon(self) -> None:
        """Remove what was stored of a result that is not one after all."""
        writer, self._writer = self._writer, None
        if writer is not None:
            await writer.abandon()


Code = Callable[[], AsyncIterator[bytes]]


def code_of(objects: Objects, object_id: str) -> Code:
    """A version's bundle, read only when somebody needs it."""
    return lambda: objects.read("code", object_id)
