"""One call that is under way: collects what the sandbox says of it, until its result."""

import asyncio
from collections.abc import Callable
from typing import Any

from hearth_contracts.enums import Reason
from hearth_executor.containers import frames
from hearth_executor.containers.frames import Kind
from hearth_executor.containers.link import Link
from hearth_executor.containers.output import Reception
from hearth_executor.ports import BodyWriter, CallEvents, Finished, Usage

#: Results up to this size travel inside their record's message; larger ones go to `large_result`, chunk by chunk.
INLINE_BYTES_MAX = 256 * 1024

#: Credit for log bytes is given back in pieces of this size, to save frames.
LOG_CREDIT_BYTES = 32 * 1024

#: The supervisor stops at this much; the executor only makes sure of it.
LOG_BYTES_MAX = 1024 * 1024
#: Events of one call that may be under way at once.
TASKS_MAX = 64

_MESSAGE_CHARS_MAX = 8 * 1024
_TRACEBACK_CHARS_MAX = 64 * 1024
_HEADERS_MAX = 100

_REASONS = {reason.value for reason in (Reason.ERROR, Reason.BAD_RESULT, Reason.OOM, Reason.RESOURCE)}


class Running:
    """Fed by the sandbox with this call's frames. `ended` resolves with the result's head and body, or with None when
    the link is lost."""

    def __init__(self, number: int, job: str, events: CallEvents, link: Link) -> None:
        self.number = number
        self.job = job
        self.stopped: Reason | None = None
        """Why the call was told to stop."""
        self.broken: BaseException | None = None
        """What went wrong outside of the sandbox: the event could not be read, or the result not be stored."""
        self.on_broken: Callable[[], None] = lambda: None
        self.truncated = False
        self.bytes_out = 0
        self.signal = 0
        self._events = events
        self._link = link
        self._log_owed = dict[int, int]()
        self._logged = 0
        self._waiting = dict[tuple[int, int], int]()
        self._data = asyncio.Queue[bytes | None]()
        self._collector: asyncio.Task[bytes | None] | None = None
        self._outputs: Reception | None = None
        self._tasks = set[asyncio.Task[Any]]()
        self.ended: asyncio.Future[tuple[dict[str, Any], bytes] | None] = asyncio.get_running_loop().create_future()

    # -- frames

    def take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == Kind.RESULT:
            try:
                ended = frames.split_meta(payload)
            except frames.ProtocolError as error:
                # The function wrote this, not the supervisor, which passes results on unread.
                ended = ({"reason": "error", "error": {"type": "ProtocolError", "message": str(error)}}, b"")
            if not self.ended.done():
                self.ended.set_result(ended)
        elif kind == Kind.LOG:
            self._log(flags, stream, payload)
        elif kind == Kind.RESULT_DATA:
            self._arrived(kind, 0, len(payload))
            self._begin_collecting()
            self._data.put_nowait(payload)
        elif kind == Kind.EMIT:
            if len(self._tasks) >= TASKS_MAX:
                raise frames.ProtocolError("too many events at once")
            head, data = frames.split_meta(payload)
            self._spawn(self._emit(str(head.get("subject")), data, str(head.get("content_type"))))
        elif kind == Kind.OUTPUT_OPEN:
            if self._outputs is None:
                self._outputs = Reception(self.number, self._events.output, self._link, self._broke)
            self._outputs.opened(stream, frames.document(payload))
        elif kind == Kind.OUTPUT:
            if self._outputs is None:
                raise frames.ProtocolError("data for an output that is not open")
            self.bytes_out += len(payload)
            self._outputs.arrived(stream, flags, payload)
        else:
            raise frames.ProtocolError(f"a frame of type {kind} for a call")

    def lose(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)

    # -- the result

    async def finished(self, head: dict[str, Any], body: bytes, usage: Usage) -> Finished:
        """The result's head, which a function may have made up, as a value that can be relied on."""
        collected: bytes | None = body
        if self._collector is not None:
            self._data.put_nowait(None)
            await asyncio.wait([self._collector])
            collected = None if self.broken is not None else self._collector.result()
        reason = head.get("reason")
        if self._outputs is not None and reason is None and self.stopped is None:
            lost = await self._outputs.finished()
            if lost is not None:
                why = {"error": {"message": f"an output file could not be stored: {lost}"}}
                return self._failed(why, Reason.LOST.value, usage)
        if reason is not None:
            return self._failed(head, reason if reason in _REASONS else Reason.ERROR.value, usage)
        status = head.get("status")
        return Finished(
            reason=None,
            result=collected or b"",
            content_type=_text(head.get("content_type"), 200) or "application/octet-stream",
            http_status=status if isinstance(status, int) and 200 <= status <= 599 else None,
            http_headers=_headers(head.get("headers")),
            usage=usage,
            log_truncated=self.truncated,
        )

    def _failed(self, head: dict[str, Any], reason: str, usage: Usage) -> Finished:
        error = head.get("error")
        error = error if isinstance(error, dict) else {}
        return Finished(
            reason=reason,
            error_type=_text(error.get("type"), 200),
            error_message=_text(error.get("message"), _MESSAGE_CHARS_MAX),
            traceback=_text(error.get("traceback"), _TRACEBACK_CHARS_MAX),
            usage=usage,
            log_truncated=self.truncated,
        )

    async def close(self) -> None:
        """Let nothing of this call go on."""
        tasks = [*self._tasks, *([self._collector] if self._collector else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._outputs is not None:
            await self._outputs.close()

    def _begin_collecting(self) -> None:
        if self._collector is None:
            self._collector = asyncio.get_running_loop().create_task(self._collect(), name=f"hearth-result {self.job}")
            self._collector.add_done_callback(self.watch)

    def watch(self, task: "asyncio.Task[Any]") -> None:
        """For tasks without which the call cannot go on: when one fails the function must not wait for ever."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self._broke(error)

    def _broke(self, error: BaseException) -> None:
        if self.broken is None:
            self.broken = error
            self.on_broken()

    async def _collect(self) -> bytes | None:
        """The whole body while it is small, else None once all of it has gone to the writer."""
        held = bytearray()
        writer: BodyWriter | None = None
        while (chunk := await self._data.get()) is not None:
            self.bytes_out += len(chunk)
            if writer is not None:
                await writer.write(chunk)
            else:
                held += chunk
                if len(held) > INLINE_BYTES_MAX:
                    writer = await self._events.large_result(None)
                    await writer.write(bytes(held))
                    held.clear()
            self._done_with(Kind.RESULT_DATA, 0, len(chunk))
        return None if writer is not None else bytes(held)

    # -- what a call says while it runs

    def _log(self, flags: int, stream: int, payload: bytes) -> None:
        name = frames.LOG_STREAMS.get(stream)
        if name is None:
            raise frames.ProtocolError(f"log stream {stream}")
        if flags & frames.TRUNCATED:
            self.truncated = True
        self._logged += len(payload)
        if self._logged > LOG_BYTES_MAX:
            raise frames.ProtocolError("a log past its cap")
        if payload:
            self._events.log(name, payload)
            owed = self._log_owed.get(stream, 0) + len(payload)
            if owed >= LOG_CREDIT_BYTES:
                self._link.give_credit(self.number, Kind.LOG, stream, owed)
                owed = 0
            self._log_owed[stream] = owed

    async def _emit(self, subject: str, data: bytes, content_type: str) -> None:
        try:
            await self._events.emit(subject, data, content_type)
            answer = {"ok": True}
        except Exception as error:
            answer = {"ok": False, "error": str(error)[:500]}
        self._link.send(Kind.EMIT_ACK, frames.json_bytes(answer), call=self.number)

    def _arrived(self, kind: int, stream: int, size: int) -> None:
        """A supervisor keeps to its credit; one that does not could fill our memory."""
        waiting = self._waiting[kind, stream] = self._waiting.get((kind, stream), 0) + size
        if waiting > frames.WINDOW_BYTES:
            raise frames.ProtocolError("more data than credit was given for")

    def _done_with(self, kind: int, stream: int, size: int) -> None:
        self._waiting[kind, stream] -= size
        self._link.give_credit(self.number, kind, stream, size)

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _text(value: object, chars_max: int) -> str:
    return value[:chars_max] if isinstance(value, str) else ""


def _is_one_line(text: object) -> bool:
    return isinstance(text, str) and not {"\r", "\n", "\0"}.intersection(text)


def _headers(value: object) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, list):
        return ()
    pairs = list[tuple[str, str]]()
    for pair in value[:_HEADERS_MAX]:
        if isinstance(pair, list) and len(pair) == 2 and all(_is_one_line(part) for part in pair):
            pairs.append((pair[0], pair[1]))
    return tuple(pairs)
