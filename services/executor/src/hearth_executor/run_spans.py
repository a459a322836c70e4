"""The executor's part of a call's trace, written down once its times are known."""

from collections.abc import Mapping

from hearth_contracts.enums import Start
from hearth_executor.held import Held
from hearth_executor.ports import Finished
from hearth_kit.tracing import Context, Tracer, parse


def wait(tracer: Tracer, held: Held, *, until: float) -> None:
    tracer.span(held.at.child(), "wait for a slot", parent=held.at.span_id, start=held.arrived_at, end=until)


def cold_start(tracer: Tracer, under: Context, *, began: float, ended: float, phases_ms: Mapping[str, float]) -> None:
    """The phases follow one another and end with the cold start; what lies before them is the wait for a sandbox."""
    at = under.child()
    tracer.span(at, "cold start", parent=under.span_id, start=began, end=ended)
    start = max(began, ended - sum(phases_ms.values()) / 1000)
    for name, ms in phases_ms.items():
        end = min(ended, start + ms / 1000)
        tracer.span(at.child(), f"cold: {name}", parent=at.span_id, start=start, end=end)
        start = end


def function(
    tracer: Tracer, at: Context, held: Held, *, unit: str, began: float, ended: float, start: Start, finished: Finished
) -> None:
    call = held.run.call
    tracer.span(
        at, f"function {call.function}", parent=held.at.span_id, start=began, end=ended,
        attributes={"faas.name": call.function, "faas.version": str(call.version), "faas.invocation_id": call.job,
                    "faas.coldstart": start is Start.COLD, "hearth.unit": unit},
        error=(finished.error_message or finished.reason)[:200] if finished.reason else "",
    )  # fmt: skip


def process(tracer: Tracer, held: Held, *, ended: float, delivered: int) -> None:
    """The whole of it. A sync run continues its caller's span; an async one stands by itself and links to where it came from."""
    call = held.run.call
    incoming = parse(held.header)
    template = "hearth.v1.runs_sync" if held.sync else "hearth.v1.runs"
    tracer.span(
        held.at, f"process {template}",
        parent=incoming.span_id if incoming is not None and held.sync else "",
        links=() if held.sync else (held.header,),
        start=held.arrived_at, end=ended, kind="consumer",
        attributes={"messaging.system": "nats", "messaging.destination.template": template, "faas.name": call.function,
                    "faas.invocation_id": call.job, "nats.delivery.attempt": delivered, "hearth.attempt": call.attempt},
    )  # fmt: skip
