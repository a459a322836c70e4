"""A job as people and tools see it. The keys are stable from the first day (DESIGN section 7)."""

import json
from typing import Any, Final
from urllib.parse import quote

from hearth_contracts import names
from hearth_contracts.calls import Body, Ending, Record, StateChange
from hearth_contracts.enums import State
from hearth_gateway.calls.answer import Answer
from hearth_gateway.calls.custody import Held
from hearth_gateway.domain import endings
from hearth_gateway.jobs.lookup import Found

_TEXT: Final = ("text/", "application/xml", "application/javascript")


def of(found: Found) -> dict[str, Any]:
    if found.record is not None:
        return of_record(found.record, found.body)
    return of_unfinished(found)


def of_record(record: Record, body: bytes) -> dict[str, Any]:
    ending = record.ending
    view = _frame(record.job, record.function, record.version, ending.state.value)
    view.update(
        lane=record.lane.value, reason=ending.reason.value if ending.reason else None, attempts=ending.attempt,
        trace_id=record.trace_id, replay_of=record.replay_of or None, log_truncated=record.log_truncated,
        log_bytes=record.log.size, recorded_at=record.recorded_at,
    )  # fmt: skip
    _add_ending(view, ending, record.parts(body)[1])
    return view


def of_answer(held: Held, answer: Answer, trace_id: str) -> dict[str, Any]:
    """From the reply alone: the record follows it."""
    call, ending = held.call, answer.ending
    view = _frame(call.job, call.function, call.version, ending.state.value)
    view.update(
        lane=call.lane.value, reason=ending.reason.value if ending.reason else None, attempts=ending.attempt, trace_id=trace_id,
        replay_of=call.replay_of or None,
    )  # fmt: skip
    _add_ending(view, ending, answer.body)
    return view


def of_unfinished(found: Found) -> dict[str, Any]:
    last = found.states[-1] if found.states else None
    view = _frame(found.job, names.function_of(found.job), None, last.state.value if last else State.PENDING.value)
    if found.held is not None:
        view.update(version=found.held.call.version, lane=found.held.call.lane.value)
    else:
        view["version"] = next((state.version for state in found.states if state.version), None)
    submitted = found.states[0].at if found.states else names.made_at(found.job)
    view.update(
        attempts=last.attempt if last else 1, trace_id=found.trace_id, timings={"submitted_at": submitted},
        executor=(last.executor or None) if last else None,
    )  # fmt: skip
    return view


def of_state(state: StateChange) -> dict[str, Any]:
    return {
        "job": state.job, "state": state.state.value, "attempt": state.attempt, "phase": state.phase, "at": state.at,
        "executor": state.executor or None,
    }  # fmt: skip


def _frame(job: str, function: str, version: int | None, state: str) -> dict[str, Any]:
    return {
        "job": job, "function": function, "version": version, "state": state, "reason": None, "attempts": 1, "start": None,
        "timings": {}, "usage": None, "trace_id": "", "created_at": names.made_at(job), "outputs": [],
    }  # fmt: skip


def _add_ending(view: dict[str, Any], ending: Ending, result: bytes) -> None:
    view.update(
        start=ending.start.value, timings=ending.timings.model_dump(), usage=ending.usage.model_dump(),
        executor=ending.executor or None,
    )  # fmt: skip
    problem = endings.failure(ending)
    if problem is not None:
        view["error"] = {"code": problem.code, "message": problem.detail, "fix": problem.fix, **problem.extra}
        return
    if ending.http_status is not None:
        view["http"] = {"status": ending.http_status, "headers": [list(pair) for pair in ending.http_headers]}
    view["outputs"] = outputs(view["job"], ending)
    view.update(embedded(ending.result, result, f"/v1/jobs/{view['job']}/result"))


def outputs(job: str, ending: Ending) -> list[dict[str, Any]]:
    """The files a call wrote, and where to fetch them."""
    return [
        {
            "name": file.name, "size": file.size, "sha256": file.sha256, "content_type": file.content_type or None,
            "href": f"/v1/jobs/{job}/outputs/{quote(file.name, safe='')}",
        }
        for file in ending.outputs
    ]  # fmt: skip


def embedded(body: Body, data: bytes, href: str) -> dict[str, Any]:
    """A body inside JSON where it can be, else where to fetch it."""
    reference = {"result": None, "result_ref": {"href": href, "content_type": body.content_type, "size": body.size}}
    if body.object:
        return reference
    kind = body.content_type.split(";", 1)[0].strip().lower()
    if kind == "application/json" or kind.endswith("+json"):
        try:
            return {"result": json.loads(data, parse_constant=_no_constant) if data else None}
        except (ValueError, RecursionError):
            return {"result": data.decode("utf-8", "replace")}
    if kind.startswith(_TEXT):
        return {"result": data.decode("utf-8", "replace")}
    return reference


def _no_constant(word: str) -> Any:
    raise ValueError(f"{word} is not JSON")
