"""A job's trace: the spans the platform kept, or what its record tells when the call was not sampled."""

import json
from typing import Any, Final

from hearth_contracts import streams, subjects
from hearth_contracts.calls import Record
from hearth_gateway.jobs.lookup import Found, Jobs

BATCHES_MAX: Final = 1000


async def of(jobs: Jobs, found: Found) -> dict[str, Any]:
    spans = await _kept(jobs, found.trace_id) if found.trace_id else []
    derived = not spans
    if derived and found.record is not None:
        spans = _derived(found.record)
    return {"job": found.job, "trace_id": found.trace_id, "derived": derived, "spans": spans}


async def _kept(jobs: Jobs, trace_id: str) -> list[dict[str, Any]]:
    subject = subjects.trace(trace_id)
    spans: dict[str, dict[str, Any]] = {}
    sequence = 1
    for _ in range(BATCHES_MAX):
        stored = await jobs.bus.get_next(streams.TRACES.name, subject, sequence)
        if stored is None:
            break
        sequence = stored.sequence + 1
        for span in json.loads(stored.message.body):
            spans[span["span_id"]] = _shown(span)
    return sorted(spans.values(), key=lambda span: span["start"])


def _shown(span: dict[str, Any]) -> dict[str, Any]:
    return {
        "service": span["service"], "name": span["name"], "span_id": span["span_id"], "parent": span["parent"] or None,
        "start": span["start"], "duration": span["end"] - span["start"], "kind": span.get("kind", "internal"),
        "attributes": span.get("attributes", {}), "links": list(span.get("links", ())), "error": span.get("error") or None,
    }  # fmt: skip


def _derived(record: Record) -> list[dict[str, Any]]:
    """The record's own times, laid out as the spans a sampled call would have had. Ids are made from their place."""
    timings, ending = record.ending.timings, record.ending
    started = timings.submitted_at or record.recorded_at
    spans: list[dict[str, Any]] = []

    def add(service: str, name: str, start: float, end: float, parent: str | None, **attributes: Any) -> str:
        span_id = f"{len(spans) + 1:016x}"
        spans.append(
            {
                "service": service, "name": name, "span_id": span_id, "parent": parent, "start": start,
                "duration": max(0.0, end - start), "kind": "internal", "attributes": attributes, "links": [], "error": None,
            }
        )  # fmt: skip
        return span_id

    ended = timings.finished_at or record.recorded_at
    who = {"faas.name": record.function, "faas.invocation_id": record.job}
    root = add("gateway", f"call {record.function}", started, ended, None, **who)
    if timings.placed_at:
        add("scheduler", "wait", started, timings.placed_at, root)
    if timings.accepted_at:
        begin = timings.started_at or timings.accepted_at
        slot = add("executor", "wait for a slot", timings.accepted_at, begin, root)
        at = timings.accepted_at
        for phase, took_ms in timings.cold_ms.items():
            add("executor", f"cold: {phase}", at, at + took_ms / 1000, slot)
            at += took_ms / 1000
    if timings.started_at:
        coldstart = ending.start.value == "cold"
        add("executor", f"function {record.function}", timings.started_at, ended, root, **{"faas.coldstart": coldstart})
    if record.recorded_at and record.recorded_at > ended:
        add("executor", "record", ended, record.recorded_at, root)
    return spans
