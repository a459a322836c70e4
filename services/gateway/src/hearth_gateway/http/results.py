"""A call's answer over HTTP: the result itself, from memory or from its object, or the problem it came to."""

import asyncio
import contextlib
import logging
import re
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any, Final, cast

from hearth_contracts.calls import Body
from hearth_gateway import metrics
from hearth_gateway.calls.answer import Answer
from hearth_gateway.calls.bodies import AREA
from hearth_gateway.domain import endings
from hearth_gateway.errors import Header, Problem, ResultGone
from hearth_gateway.http import sending
from hearth_gateway.http.sending import Receive, Send
from hearth_kit.errors import BusError
from hearth_kit.objects import ObjectMissing, Objects

_log = logging.getLogger(__name__)

_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,200}")
_VALUE: Final = re.compile(r"[\x09\x20-\x7e\x80-\xff]{0,8192}")
#: Headers about the connection are ours, as are those that could speak for the gateway.
_OWN: Final = frozenset({"connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer",
    "transfer-encoding", "upgrade", "content-length", "date", "server", "traceparent"})  # fmt: skip
_OWN_PREFIX: Final = "x-hearth-"
_BAD_RESULT: Final = Problem(
    502, "E_FUNCTION_BAD_RESULT", "The function returned something that cannot be sent.",
    detail="statusCode is not a number from 200 to 599, or a header is malformed",
    fix="return a valid statusCode and plain headers",
)  # fmt: skip


async def deliver(
    receive: Receive, send: Send, objects: Objects, answer: Answer, headers: Sequence[Header], *, plain_http: bool = False
) -> int:
    """Send it; the status that was sent."""
    ending = answer.ending
    problem = endings.failure(ending)
    if problem is not None:
        await sending.problem(send, problem, headers)
        return problem.status
    status, extra = 200, ()
    if plain_http:
        shaped = _shape(ending.http_status, ending.http_headers)
        if shaped is None:
            await sending.problem(send, _BAD_RESULT, headers)
            return _BAD_RESULT.status
        status, extra = shaped
    own_type = not any(name == b"content-type" for name, _ in extra)
    all_headers = [*headers, *extra]
    if own_type:
        all_headers.append((b"content-type", content_type(ending.result)))
    if status in (204, 304):
        await send({"type": "http.response.start", "status": status, "headers": all_headers})
        await send({"type": "http.response.body", "body": b""})
    elif ending.result.object:
        await stream(receive, send, objects.read(AREA, ending.result.object), ending.result.size, status, all_headers)
    else:
        await sending.answer(send, status, all_headers, answer.body)
    return status


def content_type(body: Body) -> bytes:
    """As the function said, if that may stand in a header."""
    text = body.content_type
    return text.encode("latin-1", "replace") if text and _VALUE.fullmatch(text) else b"application/octet-stream"


def _shape(status: int | None, headers: Sequence[tuple[str, str]]) -> tuple[int, tuple[Header, ...]] | None:
    """What a function may say over HTTP; None when it may not."""
    status = 200 if status is None else status
    if not 200 <= status <= 599:
        return None
    out: list[Header] = []
    for name, value in headers:
        lower = name.lower()
        if lower in _OWN or lower.startswith(_OWN_PREFIX):
            continue
        if _NAME.fullmatch(name) is None or _VALUE.fullmatch(value) is None:
            return None
        out.append((lower.encode(), value.encode("latin-1")))
    return status, tuple(out)


async def stream(
    receive: Receive, send: Send, content: AsyncIterator[bytes], size: int, status: int, headers: Sequence[Header]
) -> None:
    """An object's content through a fixed window. Stops reading when the client is gone; ends the connection when a chunk is."""
    chunks = cast("AsyncGenerator[bytes, None]", content)
    try:
        first = await anext(chunks, b"")
    except ObjectMissing as error:
        raise ResultGone from error
    gone = asyncio.get_running_loop().create_task(_until_gone(receive), name="client-gone")
    try:
        await send(
            {
                "type": "http.response.start", "status": status,
                "headers": [*headers, (b"content-length", str(size).encode())],
            }
        )  # fmt: skip
        await _send_all(send, _chain(first, chunks), gone)
    except BusError as error:
        # The answer has begun: all that is left is to end the connection short of its Content-Length.
        _log.warning("a result could not be read to its end: %s", error)
    finally:
        gone.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await gone
        await chunks.aclose()


async def _send_all(send: Send, chunks: AsyncIterator[bytes], gone: "asyncio.Task[None]") -> None:
    sent = 0
    async for chunk in chunks:
        if gone.done():
            return
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
        sent += len(chunk)
    metrics.BODY_BYTES.labels("out").inc(sent)
    await send({"type": "http.response.body", "body": b""})


async def _chain(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for chunk in rest:
        yield chunk


async def _until_gone(receive: Receive) -> None:
    while True:
        message: Any = await receive()
        if message["type"] == "http.disconnect":
            return
