"""`/healthz`, `/readyz` and `/metrics` of a service without HTTP of its own: forty lines instead of a framework."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest


@contextlib.asynccontextmanager
async def serve(port: int, readiness: Callable[[], dict[str, str]]) -> AsyncIterator[None]:
    """Serve on loopback. `readiness` returns what is wrong, each with its fix; empty means ready."""
    if not port:
        yield
        return

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(5):
                head = await reader.readuntil(b"\r\n\r\n")
                path = head.split(b" ", 2)[1].decode("latin-1")
                status, kind, body = respond(path)
                writer.write(
                    f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
                    + body
                )
                await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, IndexError):
            pass
        finally:
            writer.close()

    def respond(path: str) -> tuple[str, str, bytes]:
        if path == "/metrics":
            return "200 OK", CONTENT_TYPE_LATEST, generate_latest()
        if path == "/healthz":
            return "200 OK", "application/json", b'{"status":"ok"}'
        if path == "/readyz":
            wrong = readiness()
            body = json.dumps({"status": "not ready" if wrong else "ready", "problems": wrong}).encode()
            return ("503 Service Unavailable" if wrong else "200 OK"), "application/json", body
        return "404 Not Found", "application/json", b"{}"

    server = await asyncio.start_server(answer, "127.0.0.1", port)
    async with server:
        yield
