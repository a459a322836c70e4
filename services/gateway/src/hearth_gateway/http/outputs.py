"""An output file over HTTP: whole or in part, at any size through a fixed window."""

from collections.abc import AsyncGenerator
from typing import Any, Final, cast
from urllib.parse import quote

from hearth_contracts.calls import Body, Output
from hearth_contracts.objects import CHUNK_BYTES
from hearth_gateway.calls import refusals
from hearth_gateway.calls.bodies import AREA
from hearth_gateway.domain import byte_range
from hearth_gateway.domain.byte_range import Span
from hearth_gateway.errors import OutputGone, OutputNotFound, RangeUnsatisfiable, ResultGone
from hearth_gateway.http import results, sending
from hearth_gateway.http.routing import Ask
from hearth_gateway.http.sending import Receive, Scope, Send
from hearth_gateway.jobs.lookup import Found, Jobs
from hearth_kit.errors import BusError
from hearth_kit.objects import Objects

_PLAIN: Final = "application/octet-stream"


async def download(ask: Ask, found: Found, jobs: Jobs, objects: Objects) -> Any:
    """The answer to a request for one of a job's output files."""
    name = ask.path("file")
    file = next((one for one in found.record.ending.outputs if one.name == name), None) if found.record is not None else None
    if file is None:
        raise OutputNotFound(f"job {found.job} has no output {name[:200]!r}")
    asked = ask.request.headers
    etag = f'"{file.sha256}"'
    headers = [
        (b"x-hearth-job", found.job.encode()), (b"etag", etag.encode()), (b"accept-ranges", b"bytes"),
        # Whatever a function wrote must never run as a page of this address.
        (b"x-content-type-options", b"nosniff"), (b"content-disposition", _disposition(name)),
    ]  # fmt: skip
    if byte_range.matches(asked.get("if-none-match", ""), etag):
        return _bodiless(304, headers)
    span = _span(asked.get("range", ""), asked.get("if-range", etag), etag, file.size)
    headers.append((b"content-type", results.content_type(Body(content_type=file.content_type or _PLAIN))))
    status, part = 200, Span(0, file.size)
    if span is not None:
        status, part = 206, span
        headers.append((b"content-range", f"bytes {span.start}-{span.start + span.length - 1}/{file.size}".encode()))
    if ask.request.method == "HEAD":
        return _bodiless(status, [*headers, (b"content-length", str(part.length).encode())])
    await _make_sure(file, found, jobs, objects)

    async def respond(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await results.stream(receive, send, _part(objects, file, part), part.length, status, headers)
        except ResultGone:  # since the look a moment ago
            await sending.problem(send, OutputGone().problem)
        except BusError as error:  # before the first byte: later ones end the connection
            await sending.problem(send, refusals.of_bus(error).problem)

    return respond


def _span(header: str, only_if: str, etag: str, size: int) -> Span | None:
    if not header or only_if != etag:
        return None
    try:
        return byte_range.wanted(header, size)
    except byte_range.Unsatisfiable as error:
        text = f"bytes */{size}"
        raise RangeUnsatisfiable(f"the file has {size} bytes", headers=((b"content-range", text.encode()),)) from error


async def _make_sure(file: Output, found: Found, jobs: Jobs, objects: Objects) -> None:
    """That the broker holds it: what has left is put back from a store."""
    if await objects.head(AREA, file.object) is None:
        await jobs.put_back(found.tenant, found.job, file.object)
        if await objects.head(AREA, file.object) is None:
            raise OutputGone


async def _part(objects: Objects, file: Output, part: Span) -> AsyncGenerator[bytes, None]:
    if not part.length:
        return
    first = part.start // CHUNK_BYTES
    skip, left = part.start - first * CHUNK_BYTES, part.length
    chunks = cast("AsyncGenerator[bytes, None]", objects.read(AREA, file.object, start_chunk=first))
    try:
        async for chunk in chunks:
            piece = chunk[skip : skip + left] if skip or left < len(chunk) else chunk
            skip = 0
            left -= len(piece)
            yield piece
            if not left:
                return
    finally:
        await chunks.aclose()


def _bodiless(status: int, headers: list[tuple[bytes, bytes]]) -> Any:
    async def respond(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    return respond


def _disposition(name: str) -> bytes:
    """Always to be saved, under its own name (RFC 6266)."""
    return f"attachment; filename*=UTF-8''{quote(name, safe='')}".encode()
