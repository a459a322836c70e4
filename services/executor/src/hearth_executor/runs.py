"""One run carried out: a sandbox taken or made, the function called, its end put into the bus's words.

Whatever happens, a run gets an ending or travels back; it raises only when the process is going down.
"""

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from hearth_contracts import subjects
from hearth_contracts.calls import INLINE_BYTES_MAX, Call, Ending, Failure, Meta, Timings
from hearth_contracts.enums import OutcomeKind, Persist, Reason, Start
from hearth_contracts.functions import FunctionVersion
from hearth_executor import bodies, metrics, run_spans
from hearth_executor.call_log import CallLog
from hearth_executor.domain import ending as endings
from hearth_executor.errors import BackendUnavailable, EventTooLarge, SandboxError, SandboxSpent
from hearth_executor.failpoints import AFTER_ACCEPT, AFTER_EXIT, Failpoints
from hearth_executor.held import Held, Phase, Stop
from hearth_executor.outputs import Outputs
from hearth_executor.ports import Backend, CallEvents, Finished, Invocation, Unit
from hearth_executor.settling import Ended
from hearth_kit.bus import Bus
from hearth_kit.clock import Clock
from hearth_kit.errors import BusError
from hearth_kit.objects import Objects
from hearth_kit.registry import Registry
from hearth_kit.tracing import Context, Tracer

_log = logging.getLogger(__name__)

#: Sandboxes that turn out to be spent when a call reaches them; after so many the job belongs elsewhere.
SPENT_MAX: Final = 3
#: A function's event travels whole.
EVENT_BYTES_MAX: Final = INLINE_BYTES_MAX


class Backends(Protocol):
    """Which backend runs a version here."""

    def __call__(self, version: FunctionVersion) -> Backend | None: ...


@dataclass(slots=True)
class _Course:
    """How far a run has come."""

    persist: Persist = Persist.ALL
    started: float = 0.0
    finished: float = 0.0
    start: Start = Start.WARM
    cold_ms: Mapping[str, float] | None = None
    cold_began: float = 0.0


class Runner:
    def __init__(
        self,
        *,
        bus: Bus,
        objects: Objects,
        registry: Registry,
        backends: Backends,
        clock: Clock,
        tracer: Tracer,
        failpoints: Failpoints,
        executor: str,
        result_bytes_max: int,
        output_bytes_max: int,
    ) -> None:
        self._bus = bus
        self._objects = objects
        self._registry = registry
        self._backends = backends
        self._clock = clock
        self._tracer = tracer
        self._failpoints = failpoints
        self._executor = executor
        self._result_bytes_max = result_bytes_max
        self._output_bytes_max = output_bytes_max

    async def carry(self, held: Held) -> Ended:
        """Run it. The slot is the caller's matter."""
        course = _Course()
        self._failpoints.hit(AFTER_ACCEPT)
        call = held.run.call
        dispatch = f"{call.job}-{call.attempt}-{held.run.placement}"
        result = bodies.Result(self._objects, held, f"{dispatch}-result", bytes_max=self._result_bytes_max)
        files = Outputs(self._objects, dispatch, bytes_max=self._output_bytes_max)
        try:
            ended = self._stopped(held, course) if held.stop is not None else await self._carry(held, result, files, course)
        except asyncio.CancelledError:
            if held.stop is None:
                raise
            ended = self._stopped(held, course)
        except BackendUnavailable as error:
            ended = Ended(None, kind=OutcomeKind.REFUSED, note=str(error)[:500])
        except SandboxError as error:
            why = endings.failure(error.error_type or error.code, str(error), error.traceback)
            ended = Ended(self._failed(held, error.reason, why, course), persist=course.persist)
        except Exception as error:
            # A defect of ours or of the backend, or a large body that could not be stored: the function is not to blame.
            if held.stop is not None:
                ended = self._stopped(held, course)
            else:
                _log.exception("a run broke", extra={"job": call.job})
                why = endings.failure(type(error).__name__, "the sandbox or its platform broke while the function ran")
                ended = Ended(self._failed(held, Reason.LOST, why, course), persist=course.persist)
        await self._quiet(held)
        if ended.ending is None or ended.ending.reason is not None:
            await files.remove()
            with contextlib.suppress(BusError):
                await result.abandon()
        self._failpoints.hit(AFTER_EXIT)
        return ended

    @staticmethod
    async def _quiet(held: Held) -> None:
        """From here on nobody stops it; a stop that came in the same moment is taken out of the task."""
        held.phase = Phase.ENDING
        task = asyncio.current_task()
        if held.stop is None or task is None:
            return
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(0)
        while task.cancelling():
            task.uncancel()

    async def _carry(self, held: Held, result: bodies.Result, files: Outputs, course: _Course) -> Ended:
        call = held.run.call
        version = self._registry.known(call.tenant, call.function, call.version)
        if version is None:
            version = await self._registry.version(call.tenant, call.function, call.version)
            if version is None:
                why = endings.failure("E_FUNCTION_NOT_FOUND", f"version {call.version} of {call.function} does not exist")
                return Ended(self._failed(held, Reason.REJECTED, why, course))
        course.persist = version.spec.persist
        backend = self._backends(version)
        if backend is None:
            return Ended(None, kind=OutcomeKind.REFUSED, note=f"no backend here runs {version.spec.runtime.value}")
        finished = await self._call(held, backend, version, result, files, course)
        return await self._ended(held, finished, result, files, course)

    async def _call(
        self, held: Held, backend: Backend, version: FunctionVersion, result: bodies.Result, files: Outputs, course: _Course
    ) -> Finished:
        for _ in range(SPENT_MAX):
            unit = backend.take(version)
            if unit is None:
                unit = await self._make(held, backend, version, course)
            else:
                course.start, course.cold_ms = Start.WARM, None
            reusable = False
            try:
                finished = await self._call_unit(held, unit, version, result, files, course)
                reusable = True
                return finished
            except SandboxSpent:
                continue
            finally:
                course.finished = self._clock.now()
                backend.give_back(unit, reusable=reusable)
        raise SandboxSpent("every sandbox that was taken turned out to be spent")

    async def _make(self, held: Held, backend: Backend, version: FunctionVersion, course: _Course) -> Unit:
        course.cold_began = course.cold_began or self._clock.now()
        course.start = Start.COLD
        unit = await backend.make(version, bodies.code_of(self._objects, version.code.object))
        course.cold_ms = endings.phases(unit.cold_phases)
        now = self._clock.now()
        metrics.COLD.observe(now - course.cold_began)
        if held.at.sampled:
            run_spans.cold_start(self._tracer, held.at, began=course.cold_began, ended=now, phases_ms=course.cold_ms)
        return unit

    async def _call_unit(
        self, held: Held, unit: Unit, version: FunctionVersion, result: bodies.Result, files: Outputs, course: _Course
    ) -> Finished:
        call = held.run.call
        timeout_s = version.spec.timeout_s
        at = held.at.child() if held.at.sampled else held.at
        course.started = self._clock.now()
        large = bool(call.input.object)
        invocation = Invocation(
            job=call.job,
            attempt=call.attempt,
            deadline=course.started + timeout_s if timeout_s else None,
            content_type=call.input.content_type,
            body=bodies.incoming(self._objects, held) if large else held.body,
            body_size=call.input.size if large else len(held.body),
            traceparent=at.header,
            http=call.http.model_dump() if call.http is not None else None,
        )
        voice = _Voice(self._bus, self._clock, held, at)
        finished = await unit.call(invocation, CallEvents(voice.log, voice.emit, result.open, files.open))
        if at.sampled:
            run_spans.function(self._tracer, at, held, unit=unit.id, began=course.started, ended=self._clock.now(),
                start=course.start, finished=finished)  # fmt: skip
        return finished

    async def _ended(self, held: Held, finished: Finished, result: bodies.Result, files: Outputs, course: _Course) -> Ended:
        if held.log is not None:
            held.log.truncated |= finished.log_truncated
            held.log.flush()
        body, inline = await result.finish(
            finished.result if finished.reason is None else b"", endings.content_type(finished.content_type), INLINE_BYTES_MAX
        )
        outputs = await files.keep() if finished.reason is None else ()
        ending = endings.of_finished(
            held.run, finished, executor=self._executor, result=body, outputs=outputs, start=course.start,
            timings=self._timings(held, course),
        )  # fmt: skip
        return Ended(ending, b"" if ending.reason is not None else inline, course.persist)

    def cancelled(self, held: Held) -> Ending:
        """The end of a run that was cancelled while it waited."""
        return self._failed(held, Reason.CANCELLED, endings.failure("E_CANCELLED", "the call was cancelled"), _Course())

    def _stopped(self, held: Held, course: _Course) -> Ended:
        """What becomes of a run that was stopped from here."""
        course.finished = self._clock.now()
        if held.log is not None:
            held.log.flush()
        match held.stop:
            case Stop.CANCELLED:
                why = endings.failure("E_CANCELLED", "the call was cancelled")
                return Ended(self._failed(held, Reason.CANCELLED, why, course), persist=course.persist)
            case Stop.TOO_LARGE:
                why = endings.failure("E_TOO_LARGE", f"the result is larger than {self._result_bytes_max} bytes")
                return Ended(self._failed(held, Reason.BAD_RESULT, why, course), persist=course.persist)
            case Stop.INPUT_LOST:
                why = endings.failure("E_OBJECT_MISSING", "the input could not be read")
                return Ended(self._failed(held, Reason.LOST, why, course), persist=course.persist)
            case _:
                return Ended(None, kind=OutcomeKind.HANDED_BACK, note="the executor drains")

    def _failed(self, held: Held, reason: Reason, why: Failure, course: _Course) -> Ending:
        return endings.failed(
            held.run, reason, why, executor=self._executor, start=course.start, timings=self._timings(held, course)
        )

    def _timings(self, held: Held, course: _Course) -> Timings:
        now = self._clock.now()
        return Timings(
            submitted_at=held.run.call.submitted_at,
            placed_at=held.run.placed_at,
            accepted_at=held.arrived_at,
            started_at=course.started or now,
            finished_at=course.finished or now,
            cold_ms=dict(course.cold_ms) if course.cold_ms else {},
        )


class _Voice:
    """What a running call may say."""

    __slots__ = ("_at", "_bus", "_call", "_clock", "_emitted", "_held")

    def __init__(self, bus: Bus, clock: Clock, held: Held, at: Context) -> None:
        self._bus = bus
        self._clock = clock
        self._held = held
        self._call: Call = held.run.call
        self._at = at
        self._emitted = 0

    def log(self, stream: str, data: bytes) -> None:
        log = self._held.log
        if log is None:
            call = self._call
            log = CallLog(bus=self._bus, clock=self._clock, tenant=call.tenant, job=call.job, attempt=call.attempt)
            self._held.log = log
        log.add(stream, data)

    async def emit(self, subject: str, data: bytes, content_type: str) -> None:
        """Publish an event of the function's. What it raises is told to the function."""
        if len(data) > EVENT_BYTES_MAX:
            raise EventTooLarge(f"{len(data)} bytes, {EVENT_BYTES_MAX} allowed")
        call = self._call
        self._emitted += 1
        await self._bus.publish(
            subjects.event(call.tenant, subject),
            data,
            meta=Meta(),
            contract="event.v1",
            msg_id=f"{call.job}.{call.attempt}.{self._held.run.placement}.e{self._emitted}",
            traceparent=self._at.header,
            headers={
                "Content-Type": _header(content_type),
                "Hearth-Source": call.job,
                "Hearth-Depth": str(call.depth + 1),
            },
        )


def _header(value: str) -> str:
    return "".join(char for char in value[:200] if char.isprintable()) or "application/octet-stream"
