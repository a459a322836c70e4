"""One container's inside: boot, load, call, close, over either link. Implements `ports.Sandbox`."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from hearth_contracts.enums import Reason
from hearth_contracts.functions import FunctionVersion
from hearth_executor.containers import fast_link, frames, stdio_link
from hearth_executor.containers.container import Container
from hearth_executor.containers.frames import Frame, Kind
from hearth_executor.containers.link import Link
from hearth_executor.containers.meter import Kills, Meter
from hearth_executor.containers.running import Running
from hearth_executor.domain import limits
from hearth_executor.errors import LinkFailed, SandboxError, SandboxSpent
from hearth_executor.ports import CallEvents, Finished, Invocation, Usage
from hearth_kit.clock import Clock, SystemClock

#: From the container's start to the supervisor's answer. It takes 15-60 ms; a machine under load may be much slower.
BOOT_S_MAX = 30.0
#: How long a bundle may take to come, seconds; the import has its own limit.
CODE_S_MAX = 300.0
#: Between SIGTERM and SIGKILL, when a call has to stop.
GRACE_S = 1.0
#: After SIGKILL the supervisor tells of the end at once; when it does not, the whole sandbox is given up.
KILL_S_MAX = 0.7
#: Supervisors look for leftovers and clean up for a few seconds at most.
SETTLE_S_MAX = 6.0
#: Events up to this size travel in the call's own frame.
INLINE_EVENT_BYTES_MAX = 256 * 1024

KIB, MIB = 1024, 1024 * 1024

_WHY_STOPPED = {
    Reason.TIMEOUT: "the call was stopped at its time limit",
    Reason.CANCELLED: "the call was cancelled",
    Reason.LOST: "its event could not be read, or its result or an output not be stored",
}


async def boot(container: Container) -> "ContainerSandbox":
    """Connect to the supervisor in a started container and shake hands. Raises `LinkFailed`."""
    if container.mode == "fast":
        link = await fast_link.connect(container, timeout_s=BOOT_S_MAX)
    elif container.attached is not None:
        link = stdio_link.connect(container.attached)
    else:
        raise LinkFailed(f"container {container.name} is not attached")
    sandbox = ContainerSandbox(container, link)
    await link.greet(BOOT_S_MAX)
    return sandbox


class ContainerSandbox:
    def __init__(
        self,
        container: Container,
        link: Link,
        *,
        clock: Clock | None = None,
        grace_s: float = GRACE_S,
    ) -> None:
        self._container = container
        self._link = link
        self._clock = clock or SystemClock()
        self.grace_s = grace_s
        """May be raised while the executor drains."""
        self.phases: Mapping[str, float] = {}
        """Milliseconds per phase of the load: code, unpack, import."""
        self.spent: str | None = None
        """Why it may serve no further call."""
        self._numbers = 0
        self._running = dict[int, Running]()
        self._settling = dict[int, asyncio.Future[None]]()
        self._loaded: asyncio.Future[dict[str, Any]] | None = None
        self._load_log = list[tuple[int, int, bytes]]()
        self._closed = False
        self._on_lost = list[Callable[[], None]]()
        self._on_settled = list[Callable[[], None]]()
        self._meter = Meter(container.cgroup)
        link.on_frame = self._take
        link.on_lost = self._lost

    @property
    def container(self) -> Container:
        return self._container

    @property
    def usable(self) -> bool:
        return self.spent is None

    @property
    def settled(self) -> bool:
        """True when nothing of a finished call is still being put in order. Not settled is not idle."""
        return not self._settling

    def on_lost(self, callback: Callable[[], None]) -> None:
        self._on_lost.append(callback)

    def on_settled(self, callback: Callable[[], None]) -> None:
        """Called each time the sandbox has been put in order after a call, or has turned out to be spent: look at
        `usable`. Until then a further call waits."""
        self._on_settled.append(callback)

    # -- load

    async def load(self, version: FunctionVersion, code: AsyncIterator[bytes]) -> int:
        loop = asyncio.get_running_loop()
        began = self._clock.monotonic()
        self._meter.before_load()
        self._loaded = loop.create_future()
        payload = frames.json_bytes(_load_message(version))
        if len(payload) > frames.PAYLOAD_BYTES_MAX:
            raise SandboxError("the function's environment is larger than 1 MiB", reason=Reason.REJECTED)
        import_s = limits.import_s_max(version)
        try:
            async with asyncio.timeout(CODE_S_MAX) as limit:
                self._link.send(Kind.LOAD, payload)
                async for chunk in code:
                    await self._link.send_data(Kind.CODE, chunk)
                self._link.send(Kind.CODE, flags=frames.END)
                sent = self._clock.monotonic()
                limit.reschedule(loop.time() + import_s)
                answer = await self._loaded
        except TimeoutError:
            self._spend("the import did not end")
            raise SandboxError(f"the code was not imported within {import_s:.0f} s", reason=Reason.TIMEOUT) from None
        except LinkFailed as error:
            if self._meter.kills().memory:
                raise SandboxError("memory ran out while the code was imported", reason=Reason.OOM) from error
            raise
        if answer.get("ok") is not True:
            self._spend("its code does not start")
            raise self._load_error(answer)
        phases = answer.get("phases")
        self.phases = {"code": (sent - began) * 1000, **(_numbers(phases) if isinstance(phases, dict) else {})}
        self._meter.after_load()
        size = answer.get("code_bytes")
        return size if isinstance(size, int) and size >= 0 else 0

    def _load_error(self, answer: dict[str, Any]) -> SandboxError:
        if self._meter.kills().memory:
            return SandboxError("memory ran out while the code was imported", reason=Reason.OOM)
        error = answer.get("error")
        error = error if isinstance(error, dict) else {}
        return SandboxError(
            str(error.get("message", ""))[:8192],
            error_type=str(error.get("type", ""))[:200],
            traceback=str(error.get("traceback", ""))[:65536],
        )

    # -- call

    async def call(self, invocation: Invocation, events: CallEvents) -> Finished:
        """Raises `SandboxSpent` when the sandbox may not serve, before anything of the call has begun."""
        await self._until_settled()
        if self.spent is not None:
            raise SandboxSpent(self.spent)
        began = self._clock.monotonic()
        self._numbers += 1
        running = Running(self._numbers, invocation.job, events, self._link)
        self._running[running.number] = running
        running.on_broken = lambda: self._stop(running, Reason.LOST)
        self._meter.begin()
        feeder = self._begin(running, invocation)
        if self._load_log:
            self._give_load_log(running)
        timer = None
        if invocation.deadline is not None:
            left = max(0.0, invocation.deadline - self._clock.now())
            timer = asyncio.get_running_loop().call_later(left, self._stop, running, Reason.TIMEOUT)
        try:
            ended = await _until_ended(running, lambda: self._stop(running, Reason.CANCELLED))
            wall_s = self._clock.monotonic() - began
            usage, kills = self._usage(running, invocation, ended, wall_s), self._meter.kills()
            return _judge(await self._conclude(running, ended, usage), running, kills)
        finally:
            if timer is not None:
                timer.cancel()
            if feeder is not None:
                feeder.cancel()
            self._link.forget(running.number)
            await running.close()

    def _begin(self, running: Running, invocation: Invocation) -> asyncio.Task[None] | None:
        """Send the call. A large event follows in pieces, fed by a task of its own."""
        body = invocation.body
        inline = body if isinstance(body, bytes) and len(body) <= INLINE_EVENT_BYTES_MAX else None
        head = {
            "job": invocation.job,
            "attempt": invocation.attempt,
            "deadline": invocation.deadline,
            "start": "warm" if running.number > 1 else "cold",
            "content_type": invocation.content_type,
            "traceparent": invocation.traceparent,
            "http": None if invocation.http is None else dict(invocation.http),
            "streamed": inline is None,
            "size": invocation.body_size,
        }
        self._link.send(Kind.CALL, frames.with_meta(head, inline or b""), call=running.number)
        if inline is not None:
            return None
        feeder = asyncio.get_running_loop().create_task(self._feed(running, body), name=f"hearth-event {running.job}")
        feeder.add_done_callback(running.watch)
        return feeder

    async def _feed(self, running: Running, body: "bytes | AsyncIterator[bytes]") -> None:
        try:
            if isinstance(body, bytes):
                await self._link.send_data(Kind.EVENT, body, call=running.number)
            else:
                async for chunk in body:
                    await self._link.send_data(Kind.EVENT, chunk, call=running.number)
            self._link.send(Kind.EVENT, call=running.number, flags=frames.END)
        except LinkFailed:
            pass  # the call is over, or the sandbox is: whoever waits for the result knows

    def _stop(self, running: Running, why: Reason) -> None:
        """SIGTERM, grace, SIGKILL, all by the supervisor; and when it does not even answer, the whole sandbox goes."""
        if running.ended.done() or running.stopped is not None:
            return
        running.stopped = why
        self._link.send(Kind.STOP, frames.json_bytes({"grace_ms": int(self.grace_s * 1000)}), call=running.number)
        asyncio.get_running_loop().call_later(self.grace_s + KILL_S_MAX, self._give_up, running)

    def _give_up(self, running: Running) -> None:
        if not running.ended.done():
            self._link.lose("a call would not stop")
            running.lose()

    async def _conclude(self, running: Running, ended: "tuple[dict[str, Any], bytes] | None", usage: Usage) -> Finished:
        if ended is None:
            message = f"the sandbox was lost: {self._link.lost}"
            return Finished(reason=Reason.LOST.value, error_message=message, usage=usage, log_truncated=running.truncated)
        return await running.finished(*ended, usage)

    def _usage(
        self, running: Running, invocation: Invocation, ended: "tuple[dict[str, Any], bytes] | None", wall_s: float
    ) -> Usage:
        told = _numbers(ended[0]) if ended is not None else {}
        peak_bytes = self._meter.peak_bytes()
        if peak_bytes is None:
            peak_bytes = told.get("rss_kb", 0.0) * KIB
        return Usage(
            wall_ms=wall_s * 1000,
            cpu_ms=told.get("cpu_us", 0.0) / 1000,
            memory_peak_mb=peak_bytes / MIB,
            bytes_in=invocation.body_size,
            bytes_out=running.bytes_out + (len(ended[1]) if ended is not None else 0),
        )

    # -- frames

    def _take(self, frame: Frame) -> None:
        kind, flags, stream, number, payload = frame
        running = self._running.get(number)
        if kind == Kind.SETTLED:
            self._settled(number, payload)
        elif running is not None:
            running.take(kind, flags, stream, payload)
            if kind == Kind.RESULT:
                del self._running[number]
                self._settling[number] = asyncio.get_running_loop().create_future()
        elif kind == Kind.LOADED and self._loaded is not None and not self._loaded.done():
            self._loaded.set_result(frames.document(payload))
        elif kind == Kind.LOG and number == 0 and self._numbers == 0:
            self._keep_load_log(flags, stream, payload)
        else:
            raise frames.ProtocolError(f"a frame of type {kind} for call {number}")

    def _keep_load_log(self, flags: int, stream: int, payload: bytes) -> None:
        """What the import printed belongs to the first call's log. No credit is given back: one window is enough."""
        self._load_log.append((flags & ~frames.TRUNCATED, stream, payload))

    def _give_load_log(self, running: Running) -> None:
        kept, self._load_log = self._load_log, []
        for flags, stream, payload in kept:
            running.take(Kind.LOG, flags, stream, payload)

    def _settled(self, number: int, payload: bytes) -> None:
        if payload:
            self._spend(str(frames.document(payload).get("spent"))[:200])
        future = self._settling.pop(number, None)
        if future is None:
            raise frames.ProtocolError("a call settled that had not ended")
        future.set_result(None)
        for callback in self._on_settled:
            callback()

    async def _until_settled(self) -> None:
        if not self._settling:
            return
        _, late = await asyncio.wait(self._settling.values(), timeout=SETTLE_S_MAX)
        if late:
            self._link.lose("the sandbox was not put in order")

    def _spend(self, why: str) -> None:
        if self.spent is None:
            self.spent = why

    def _lost(self, why: str) -> None:
        self._spend(why)
        if self._loaded is not None and not self._loaded.done():
            self._loaded.set_exception(LinkFailed(why))
            self._loaded.exception()
        for running in self._running.values():
            running.lose()
        self._running.clear()
        settling, self._settling = self._settling, {}
        for future in settling.values():
            future.set_result(None)
        if not self._closed:
            for callback in [*self._on_settled, *self._on_lost] if settling else self._on_lost:
                callback()

    async def close(self) -> None:
        self._closed = True
        self._link.lose("closed")


async def _until_ended(running: Running, stop: Callable[[], None]) -> "tuple[dict[str, Any], bytes] | None":
    """The call's end. Cancelled meanwhile: stop the function, see it end, and only then be cancelled."""
    try:
        return await running.ended
    except asyncio.CancelledError:
        if running.ended.cancelled():
            running.ended = asyncio.get_running_loop().create_future()
            stop()
            await _uncancelled(running.ended)
        raise


async def _uncancelled(future: "asyncio.Future[Any]") -> None:
    """Wait for what ends in bounded time, however often one is cancelled."""
    while not future.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([future])


def _judge(finished: Finished, running: Running, kills: Kills) -> Finished:
    """The reason, by what is known for certain: what was done to the call, then what the kernel did, then what it said."""
    reason, message = finished.reason, finished.error_message
    if running.stopped is not None:
        reason, message = running.stopped.value, _WHY_STOPPED[running.stopped]
        if running.broken is not None:
            message = f"{message}: {running.broken}"[:1000]
    elif kills.memory:
        reason, message = Reason.OOM.value, "memory ran out"
    if kills.processes and reason in (Reason.ERROR.value, Reason.TIMEOUT.value):
        reason, message = Reason.RESOURCE.value, f"no more processes were allowed; {message}"
    if reason == finished.reason and message == finished.error_message:
        return finished
    return Finished(
        reason=reason,
        error_type=finished.error_type,
        error_message=message,
        traceback=finished.traceback,
        usage=finished.usage,
        log_truncated=finished.log_truncated,
    )


def _load_message(version: FunctionVersion) -> dict[str, Any]:
    spec = version.spec
    return {
        "tenant": version.tenant,
        "function": version.function,
        "version": version.version,
        "handler": spec.handler,
        "isolation": spec.isolation.value,
        "concurrency": spec.concurrency,
        "memory_mb": spec.memory_mb,
        "env": dict(spec.env),
        "code": {"kind": version.code.kind, "filename": version.code.filename, "size": version.code.size},
    }


def _numbers(value: dict[str, Any]) -> dict[str, float]:
    """The numbers in a document from the sandbox."""
    return {key: float(number) for key, number in value.items() if isinstance(number, int | float) and 0 <= number < 2**53}
