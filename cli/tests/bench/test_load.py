"""The load generator against servers that answer well, badly, or not at all: nothing that went wrong may look fast."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from hearth_cli.bench import load
from hearth_cli.bench.calls import failures

Serve = Callable[[int, asyncio.StreamWriter], Awaitable[None]]

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nx-hearth-job: hello-1\r\nx-hearth-start: warm\r\n\r\n{}"
FULL = b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 0\r\n\r\n"
FAILED = b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 4\r\nx-hearth-job: hello-1\r\n\r\noops"


@asynccontextmanager
async def server(serve: Serve) -> AsyncIterator[int]:
    """Each request is answered by `serve`, told how many there were before."""
    seen = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal seen
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                seen += 1
                await serve(seen - 1, writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    listening = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with listening:
        yield listening.sockets[0].getsockname()[1]


def plan(port: int, **more: Any) -> dict[str, Any]:
    return {"host": "127.0.0.1", "port": port, "request": "POST / HTTP/1.1\r\n\r\n", "clients": 4, **more}


async def test_what_is_answered_is_counted_once() -> None:
    async def serve(number: int, writer: asyncio.StreamWriter) -> None:
        writer.write((OK, FULL, FAILED)[number % 3])

    async with server(serve) as port:
        seen = await load.drive(plan(port, requests=300))
    assert seen["statuses"] == {"200": 100, "429": 100, "502": 100}
    assert (len(seen["latencies_ms"]), len(seen["refused_ms"]), len(seen["jobs"])) == (200, 100, 200)
    assert (seen["broken"], seen["starts"]) == (0, {"warm": 100})
    assert failures(seen) == 200
    assert "oops" in seen["errors"][0]


async def test_an_answer_in_pieces_is_one_answer() -> None:
    async def serve(number: int, writer: asyncio.StreamWriter) -> None:
        for part in (OK[:20], OK[20:-1], OK[-1:]):
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0.001)

    async with server(serve) as port:
        seen = await load.drive(plan(port, requests=20))
    assert (seen["statuses"], failures(seen)) == ({"200": 20}, 0)


async def test_a_connection_that_ends_before_the_answer_is_a_failure() -> None:
    """Also where it ends in good order, which raises nothing."""

    async def serve(number: int, writer: asyncio.StreamWriter) -> None:
        if number < 10:
            writer.write(OK)
        else:
            writer.close()

    async with server(serve) as port:
        seen = await load.drive(plan(port, requests=100))
    assert seen["statuses"] == {"200": 10}
    assert seen["broken"] == 4, "each of the four clients lost its connection"
    assert failures(seen) == 4


async def test_an_answer_without_a_length_is_a_failure() -> None:
    async def serve(number: int, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n{}")

    async with server(serve) as port:
        seen = await load.drive(plan(port, requests=4))
    assert failures(seen) == 4


async def test_it_ends_with_the_requests_or_the_seconds_whichever_are_over_first() -> None:
    async def serve(number: int, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.01)
        writer.write(OK)

    async with server(serve) as port:
        few = await load.drive(plan(port, requests=8, seconds=20))
        brief = await load.drive(plan(port, requests=1_000_000, seconds=0.2))
    assert few["statuses"] == {"200": 8}
    assert few["seconds"] < 5
    assert 4 <= brief["statuses"]["200"] < 100


async def test_what_comes_before_the_slice_is_not_counted_unless_it_fails() -> None:
    began = asyncio.get_running_loop().time()
    served: list[float] = []

    async def serve(number: int, writer: asyncio.StreamWriter) -> None:
        served.append(asyncio.get_running_loop().time() - began)
        writer.write(FAILED if number == 0 else OK)
        await asyncio.sleep(0.005)

    async with server(serve) as port:
        seen = await load.drive(plan(port, seconds=0.3, lead_s=0.3))
    assert 0.25 < seen["seconds"] < 0.5
    counted = seen["statuses"]["200"]
    assert 0 < counted < len(served) * 0.75
    assert failures(seen) == 1


async def test_it_runs_as_a_process_of_its_own() -> None:
    async def serve(number: int, writer: asyncio.StreamWriter) -> None:
        writer.write(OK)

    async with server(serve) as port:
        done = await asyncio.to_thread(
            subprocess.run, [sys.executable, "-m", "hearth_cli.bench.load"], input=json.dumps(plan(port, requests=8)).encode(),
            capture_output=True, check=True,
        )  # fmt: skip
    assert json.loads(done.stdout)["statuses"] == {"200": 8}
