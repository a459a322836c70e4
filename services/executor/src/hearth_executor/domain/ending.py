"""How an attempt ended, in the words of the bus, and which way that is told (docs/architecture.md, "One answer, one record")."""

from collections.abc import Mapping
from enum import Enum, auto
from typing import Final

from hearth_contracts import bounds
from hearth_contracts.calls import Body, Ending, Failure, Output, Run, Timings, Usage
from hearth_contracts.enums import Lane, Persist, Reason, Start, State
from hearth_executor import ports

#: Failures that another attempt may mend.
RETRYABLE: Final = frozenset({Reason.ERROR, Reason.TIMEOUT, Reason.OOM, Reason.RESOURCE, Reason.LOST})


class Way(Enum):
    OUTCOME = auto()
    """The job travels back to the scheduler, which may place the next attempt."""
    REPLY_FIRST = auto()
    """Answer the caller, then record the same."""
    RECORD_FIRST = auto()
    """Record; whoever lost the race takes the winner's word, and the caller is told what the record says."""


def way(run: Run, reason: Reason | None) -> Way:
    if reason in RETRYABLE and not run.is_last:
        return Way.OUTCOME
    call = run.call
    first = call.attempt == 1 and run.placement == 0
    # A cancelled call's final was written by whoever cancelled it: what the caller hears has to come from there.
    if first and call.lane is Lane.SYNC and reason is not Reason.CANCELLED:
        return Way.REPLY_FIRST
    return Way.RECORD_FIRST


def used_up(run: Run, ending: Ending) -> bool:
    """Whether this final is the end of a job that nobody waits for and that used up its attempts: a copy is kept for whoever
    has to look into it."""
    last = run.is_last and ending.attempt == run.call.attempt
    return run.call.lane is Lane.ASYNC and last and ending.reason in RETRYABLE


def persisted(persist: Persist, state: State) -> bool:
    """Whether the stores keep the record."""
    return persist is Persist.ALL or (persist is Persist.SUCCESS and state is State.SUCCESS)


def failure(type_name: str, message: str, traceback: str = "") -> Failure:
    return bounds.failure(type_name, message, traceback)


def reason_of(finished: ports.Finished) -> Reason | None:
    if finished.reason is None:
        size = bounds.pairs_bytes(finished.http_headers) if finished.http_headers else 0
        return Reason.BAD_RESULT if size > bounds.HTTP_HEADERS_BYTES_MAX else None
    return Reason(finished.reason)


def of_finished(
    run: Run,
    finished: ports.Finished,
    *,
    executor: str,
    result: Body,
    outputs: tuple[Output, ...] = (),
    start: Start,
    timings: Timings,
) -> Ending:
    """What the sandbox said, as an ending."""
    reason = reason_of(finished)
    cost = finished.usage
    usage = Usage(
        wall_ms=round(cost.wall_ms, 3),
        cpu_ms=round(cost.cpu_ms, 3),
        memory_peak_mb=round(cost.memory_peak_mb, 2),
        bytes_in=cost.bytes_in,
        bytes_out=cost.bytes_out,
    )
    if reason is None:
        return Ending(
            state=State.SUCCESS,
            result=result,
            http_status=finished.http_status,
            http_headers=tuple((_clean(key), _clean(value)) for key, value in finished.http_headers),
            outputs=outputs,
            start=start,
            usage=usage,
            timings=timings,
            executor=executor,
            attempt=run.call.attempt,
            placement=run.placement,
        )
    message = finished.error_message
    if finished.reason is None:
        message = f"the result's HTTP headers are larger than {bounds.HTTP_HEADERS_BYTES_MAX} bytes, written as JSON"
    return failed(
        run, reason, failure(finished.error_type, message, finished.traceback),
        executor=executor, start=start, timings=timings, usage=usage,
    )  # fmt: skip


def failed(
    run: Run,
    reason: Reason,
    why: Failure,
    *,
    executor: str,
    start: Start = Start.WARM,
    timings: Timings,
    usage: Usage | None = None,
) -> Ending:
    return Ending(
        state=State.FAILED,
        reason=reason,
        failure=why,
        start=start,
        usage=usage or Usage(),
        timings=timings,
        executor=executor,
        attempt=run.call.attempt,
        placement=run.placement,
    )


def phases(cold: Mapping[str, float]) -> dict[str, float]:
    return {name: round(ms, 3) for name, ms in cold.items()}


def content_type(value: str) -> str:
    """A function's own words in a header of ours."""
    return bounds.content_type(value)


def _clean(text: str, chars_max: int = 8192) -> str:
    """Text that JSON in UTF-8 can hold: half a surrogate pair, which a function can print, cannot."""
    text = text[:chars_max]
    return text if text.isascii() else text.encode("utf-8", "replace").decode()
