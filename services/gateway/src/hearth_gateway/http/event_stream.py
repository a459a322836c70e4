"""Server-sent events over raw ASGI."""

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Final

from hearth_gateway import metrics
from hearth_gateway.domain.progress import Cursor
from hearth_gateway.errors import Header
from hearth_gateway.http.sending import Receive, Send
from hearth_gateway.jobs import events
from hearth_gateway.jobs.lookup import Found, Jobs

_HEADERS: Final = (
    (b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"),
)  # fmt: skip


async def send_events(
    receive: Receive, send: Send, jobs: Jobs, found: Found, cursor: Cursor, *, heartbeat_s: float, headers: Sequence[Header]
) -> None:
    """A job's events until its final, or until the client is gone."""
    await send({"type": "http.response.start", "status": 200, "headers": [*headers, *_HEADERS]})
    await send({"type": "http.response.body", "body": events.HEARTBEAT, "more_body": True})  # the head leaves with it
    metrics.STREAMS_OPEN.inc()
    telling = asyncio.get_running_loop().create_task(_tell(send, jobs, found, cursor, heartbeat_s), name="events")
    gone = asyncio.get_running_loop().create_task(_gone(receive), name="client-gone")
    try:
        await asyncio.wait({telling, gone}, return_when=asyncio.FIRST_COMPLETED)
        if telling.done():
            telling.result()
            await send({"type": "http.response.body", "body": b""})
    finally:
        metrics.STREAMS_OPEN.dec()
        for task in (telling, gone):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task


async def _tell(send: Send, jobs: Jobs, found: Found, cursor: Cursor, heartbeat_s: float) -> None:
    async for event in events.stream(jobs, found, cursor, heartbeat_s=heartbeat_s):
        await send({"type": "http.response.body", "body": event, "more_body": True})


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
