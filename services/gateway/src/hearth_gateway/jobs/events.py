"""A job's life as it happens: states in their order, logs in theirs, then the final and nothing after it."""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final

from hearth_contracts import streams, subjects
from hearth_contracts.calls import LogChunk
from hearth_contracts.errors import UndecodableMessage
from hearth_gateway.calls.answer import Answer
from hearth_gateway.calls.custody import Held
from hearth_gateway.domain.progress import FINAL_ID, Cursor
from hearth_gateway.jobs import view
from hearth_gateway.jobs.lookup import RECHECK_S, Found, Jobs

HEARTBEAT: Final = b": alive\n\n"


@dataclass(frozen=True, slots=True)
class Log:
    """One chunk of what a function printed, and its place in the stream."""

    sequence: int
    chunk: LogChunk
    data: bytes


def sse(event: str, event_id: str, data: Any) -> bytes:
    return f"event: {event}\nid: {event_id}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n".encode()


async def logs_after(jobs: Jobs, tenant: str, job: str, sequence: int) -> AsyncIterator[Log]:
    """What was printed after that place, as far as it is there now."""
    subject = subjects.log(tenant, job)
    while True:
        stored = await jobs.bus.get_next(streams.LOGS.name, subject, sequence + 1)
        if stored is None:
            return
        sequence = stored.sequence
        try:
            yield Log(sequence, stored.message.meta(LogChunk), stored.message.body)
        except UndecodableMessage:
            continue


async def stream(jobs: Jobs, found: Found, cursor: Cursor, *, heartbeat_s: float, trace_id: str = "") -> AsyncIterator[bytes]:
    """Server-sent events from the cursor on. Ends with the final, or when the gateway stops: the client comes back with its
    `Last-Event-ID`."""
    told = _Told(jobs, found, cursor)
    held = found.held
    watched = (subjects.state(found.tenant, found.job), subjects.log(found.tenant, found.job),
        subjects.record(found.tenant, found.job))  # fmt: skip
    silent_s = 0.0
    async with jobs.watch(*watched) as watch:
        if held is not None:
            held.future.add_done_callback(watch.wake)
        while not jobs.stopping:
            final = await _final(jobs, found, held, trace_id or found.trace_id)
            async for event in told.news():
                silent_s = 0.0
                yield event
            if final is not None:
                if not told.any_log and final.log and not cursor.log:
                    yield sse("log", str(told.cursor), {"stream": "stdout", "text": final.log.decode("utf-8", "replace")})
                yield sse("result", FINAL_ID, final.data)
                return
            wait_s = min(heartbeat_s, RECHECK_S)
            if not await watch.wait(wait_s):
                silent_s += wait_s
                if silent_s >= heartbeat_s:
                    silent_s = 0.0
                    yield HEARTBEAT


@dataclass(frozen=True, slots=True)
class _Final:
    data: dict[str, Any]
    log: bytes = b""


async def _final(jobs: Jobs, found: Found, held: Held | None, trace_id: str) -> _Final | None:
    if found.record is not None:
        return _Final(view.of_record(found.record, found.body), found.record.parts(found.body)[2])
    recorded = await jobs.record(found.tenant, found.job)
    if recorded is not None:
        return _Final(view.of_record(*recorded), recorded[0].parts(recorded[1])[2])
    if held is not None and held.future.done() and not held.future.cancelled() and held.future.exception() is None:
        answer: Answer = held.future.result()
        return _Final(view.of_answer(held, answer, trace_id))
    return None


class _Told:
    """What a reader has been told so far."""

    def __init__(self, jobs: Jobs, found: Found, cursor: Cursor) -> None:
        self._jobs = jobs
        self._found = found
        self._first = found.held is not None
        self.cursor = cursor
        self.any_log = False

    async def news(self) -> AsyncIterator[bytes]:
        tenant, job = self._found.tenant, self._found.job
        states, _ = await self._jobs.states(tenant, job)
        if self._first:
            # A call held here was pending, though nothing durable says so: only one that lasts is written down.
            after = self.cursor.after_state(1, 0)
            if after is not None:
                self.cursor = after
                data = {"job": job, "state": "PENDING", "attempt": 1, "phase": 0, "at": self._found_at(), "executor": None}
                yield sse("state", str(after), data)
        self._first = False
        for state in states:
            after = self.cursor.after_state(state.attempt, state.phase)
            if after is not None:
                self.cursor = after
                yield sse("state", str(after), view.of_state(state))
        async for log in logs_after(self._jobs, tenant, job, self.cursor.log):
            self.any_log = True
            self.cursor = self.cursor.after_log(log.sequence)
            data = {"stream": log.chunk.stream, "attempt": log.chunk.attempt, "text": log.data.decode("utf-8", "replace")}
            yield sse("log", str(self.cursor), data)

    def _found_at(self) -> float:
        assert self._found.held is not None
        return self._found.held.call.submitted_at


async def follow_log(jobs: Jobs, found: Found) -> AsyncIterator[bytes]:
    """The raw log of a running job, until it ends."""
    sequence = 0
    watched = subjects.log(found.tenant, found.job), subjects.record(found.tenant, found.job)
    async with jobs.watch(*watched) as watch:
        while not jobs.stopping:
            ended = await jobs.record(found.tenant, found.job)
            async for log in logs_after(jobs, found.tenant, found.job, sequence):
                sequence = log.sequence
                yield log.data
            if ended is not None:
                if not sequence:
                    yield ended[0].parts(ended[1])[2]
                return
            await watch.wait(RECHECK_S)
