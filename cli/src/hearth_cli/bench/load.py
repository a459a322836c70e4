"""A closed-loop HTTP load, run as a process of its own: `python -m hearth_cli.bench.load < plan.json > answers.json`.

A hand-written HTTP/1.1 client, because the load shares the machine with what it measures: a general client costs several
times what the gateway does, and would measure itself.
"""

import asyncio
import json
import signal
import sys
import time
from dataclasses import dataclass, field
from typing import Any, cast

import uvloop


@dataclass(slots=True)
class Tally:
    """What the load saw."""

    latencies_ms: list[float] = field(default_factory=list)
    statuses: dict[str, int] = field(default_factory=dict)
    starts: dict[str, int] = field(default_factory=dict)
    jobs: list[str] = field(default_factory=list)
    refused_ms: list[float] = field(default_factory=list)
    broken: int = 0
    """Requests that were sent and never answered, or not in a way that can be read."""
    errors: list[str] = field(default_factory=list)
    since: float = 0.0
    """What was sent before is not counted, if it went well: it only gets the platform going."""


class Connection(asyncio.Protocol):
    """One keep-alive connection: sends a request, reads the answer, and again until told to stop."""

    def __init__(self, request: bytes, tally: Tally, more: "Budget", done: "asyncio.Future[None]") -> None:
        self._request = request
        self._tally = tally
        self._more = more
        self._done = done
        self._buffer = bytearray()
        self._sent_at = 0.0
        self._waiting = False
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own, which is no subclass
        self._next()

    def _next(self) -> None:
        assert self._transport is not None
        if not self._more.take():
            self._transport.close()
            return
        self._waiting = True
        self._sent_at = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = bytes(self._buffer[:end]).lower()
        length = _header(head, b"content-length")
        if length is None:
            self._tally.errors.append(f"no content-length: {head[:200]!r}")
            if self._transport is not None:
                self._transport.close()
            return
        size = end + 4 + int(length)
        if len(self._buffer) < size:
            return
        latency = (time.perf_counter() - self._sent_at) * 1000
        self._waiting = False
        status = head[9:12].decode()
        tally = self._tally
        if status == "200" and self._sent_at < tally.since:
            del self._buffer[:size]
            self._next()
            return
        tally.statuses[status] = tally.statuses.get(status, 0) + 1
        if status == "429":
            tally.refused_ms.append(latency)
        else:
            tally.latencies_ms.append(latency)
            if status != "200" and len(tally.errors) < 5:
                tally.errors.append(bytes(self._buffer[:600]).decode("utf-8", "replace"))
        job = _header(head, b"x-hearth-job")
        if job is not None:
            tally.jobs.append(job)
        start = _header(head, b"x-hearth-start")
        if start is not None:
            tally.starts[start] = tally.starts.get(start, 0) + 1
        del self._buffer[:size]
        self._next()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._waiting:
            self._tally.broken += 1
            self._tally.errors.append(repr(exc) if exc is not None else "the connection ended before the answer")
        if not self._done.done():
            self._done.set_result(None)


def _header(head: bytes, name: bytes) -> str | None:
    at = head.find(b"\r\n" + name + b":")
    if at < 0:
        return None
    start = at + len(name) + 3
    end = head.find(b"\r\n", start)
    return head[start : end if end >= 0 else None].strip().decode("latin-1")


class Budget:
    """How much there is to do: a number of requests, or until a time."""

    def __init__(self, *, requests: int, seconds: float) -> None:
        self._left = requests
        self._until = time.perf_counter() + seconds if seconds else 0.0

    def take(self) -> bool:
        if self._until and time.perf_counter() >= self._until:
            return False
        if self._left == 0:
            return False
        self._left -= 1
        return True


async def drive(plan: dict[str, Any]) -> dict[str, Any]:
    """Run one plan: host, port, tls, request (text), clients, and requests or seconds (a negative number of requests: no end),
    with `lead_s` before them that are not counted."""
    loop = asyncio.get_running_loop()
    tally = Tally()
    request = plan["request"].encode()
    lead_s = plan.get("lead_s", 0)
    started = tally.since = time.perf_counter() + lead_s
    seconds = plan.get("seconds", 0)
    more = Budget(requests=plan.get("requests", -1), seconds=lead_s + seconds if seconds else 0)
    ends: list[asyncio.Future[None]] = []
    for _ in range(plan["clients"]):
        done: asyncio.Future[None] = loop.create_future()
        ends.append(done)
        await loop.create_connection(
            lambda done=done: Connection(request, tally, more, done),
            plan["host"],
            plan["port"],
            ssl=True if plan.get("tls") else None,
        )
    async with asyncio.timeout(plan.get("seconds", 0) + 120):
        await asyncio.gather(*ends)
    return {
        "seconds": time.perf_counter() - started,
        "latencies_ms": tally.latencies_ms,
        "refused_ms": tally.refused_ms,
        "broken": tally.broken,
        "statuses": tally.statuses,
        "starts": tally.starts,
        "jobs": tally.jobs,
        "errors": tally.errors[:5],
    }


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started this ends it
    json.dump(uvloop.run(drive(json.load(sys.stdin))), sys.stdout)


if __name__ == "__main__":
    main()
