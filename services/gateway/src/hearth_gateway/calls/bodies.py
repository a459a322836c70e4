"""Bodies on their way in: small ones in memory, large ones through a fixed window into an object."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

from hearth_contracts.calls import BODY_BYTES_MAX, INLINE_BYTES_MAX, Body
from hearth_gateway import metrics
from hearth_gateway.errors import Stalled, TooLarge
from hearth_kit.objects import Objects, ObjectTooLarge

Receive = Callable[[], Awaitable[Any]]
AREA: Final = "bodies"
_TOO_LARGE: Final = f"a body has at most {BODY_BYTES_MAX // 1024 // 1024} MiB"


@dataclass(frozen=True, slots=True)
class Input:
    """A request's body as a call carries it."""

    body: Body
    inline: bytes
    sha256: str = ""
    """Known only of what was stored as an object."""


def announced(length: bytes | None, *, bytes_max: int = BODY_BYTES_MAX) -> None:
    """Refuse by Content-Length, before a byte is read."""
    if length is not None and (not length.isdigit() or int(length[:20]) > bytes_max):
        raise TooLarge(_TOO_LARGE if bytes_max == BODY_BYTES_MAX else f"a body here has at most {bytes_max} bytes")


async def small(receive: Receive, *, bytes_max: int) -> bytes:
    """A whole body that must be small."""
    message = await receive()
    if message["type"] == "http.disconnect":
        raise Stalled
    body: bytes = message["body"]
    if not message.get("more_body") and len(body) <= bytes_max:
        return body
    parts, size = [body], len(body)
    while message.get("more_body"):
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Stalled
        parts.append(message["body"])
        size += len(message["body"])
        if size > bytes_max:
            break
    if size > bytes_max:
        raise TooLarge(f"a body here has at most {bytes_max} bytes")
    return b"".join(parts)


async def take(receive: Receive, objects: Objects, *, job: str, content_type: str) -> Input:
    """A call's input, of any size. Raises `TooLarge` or `Stalled`; what was stored by then is removed."""
    message = await receive()
    if message["type"] == "http.disconnect":
        raise Stalled
    body: bytes = message["body"]
    if not message.get("more_body") and len(body) <= INLINE_BYTES_MAX:
        return Input(Body(content_type=content_type, size=len(body)), body)
    gathered = bytearray(body)
    more = bool(message.get("more_body"))
    while more and len(gathered) <= INLINE_BYTES_MAX:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Stalled
        gathered += message["body"]
        more = bool(message.get("more_body"))
    if len(gathered) <= INLINE_BYTES_MAX:
        return Input(Body(content_type=content_type, size=len(gathered)), bytes(gathered))
    return await _store(receive, objects, bytes(gathered), more=more, object_id=f"{job}-in", content_type=content_type)


async def _store(receive: Receive, objects: Objects, start: bytes, *, more: bool, object_id: str, content_type: str) -> Input:
    writer = objects.writer(AREA, object_id, bytes_max=BODY_BYTES_MAX, content_type=content_type)
    finished = False
    try:
        await writer.write(start)
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Stalled
            await writer.write(message["body"])
            more = bool(message.get("more_body"))
        meta = await writer.finish()
        finished = True
    except ObjectTooLarge as error:
        raise TooLarge(_TOO_LARGE) from error
    finally:
        if not finished:
            await writer.abandon()
    metrics.BODY_BYTES.labels("in").inc(meta.size)
    return Input(Body(content_type=content_type, size=meta.size, object=object_id), b"", meta.sha256)
