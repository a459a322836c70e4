"""The spans of a placement: one for the call's time here, and below it the wait, the decision and the sending."""

from dataclasses import dataclass
from typing import Self

from hearth_kit.tracing import Context, Tracer, parse
from hearth_scheduler.domain.placement import Placed
from hearth_scheduler.held import Held, Source

_TEMPLATES = {
    (Source.CALLS, True): "hearth.v1.calls",
    (Source.JOBS, False): "hearth.v1.jobs",
    (Source.OUTCOMES, True): "hearth.v1.outcomes_sync",
    (Source.OUTCOMES, False): "hearth.v1.outcomes",
}


@dataclass(frozen=True, slots=True)
class PlacementSpans:
    """Of a sampled call only."""

    tracer: Tracer
    held: Held
    placed: Placed
    came: Context
    here: Context
    sending: Context
    decided_at: float

    @classmethod
    def begin(cls, tracer: Tracer, held: Held, placed: Placed, now: float) -> Self | None:
        if not held.header.endswith("1"):  # the flags' last digit: most calls are not sampled, and pay for nothing else
            return None
        came = parse(held.header)
        if came is None or not came.sampled:
            return None
        here = came.child()
        return cls(tracer, held, placed, came, here, here.child(), now)

    @property
    def travels(self) -> str:
        """What the run carries on."""
        return self.sending.header

    def end(self, now: float) -> None:
        held, span = self.held, self.tracer.span
        function = {"faas.name": held.call.function, "faas.invocation_id": held.call.job}
        template = _TEMPLATES[held.source, held.sync]
        runs = "hearth.v1.runs_sync" if held.sync else "hearth.v1.runs"
        span(self.here.child(), "wait", parent=self.here.span_id, start=held.arrived_at, end=self.decided_at)
        span(self.here.child(), "place", parent=self.here.span_id, start=self.decided_at, end=self.decided_at,
            attributes={"hearth.reason": self.placed.why.value, "hearth.executor": self.placed.executor.id})  # fmt: skip
        span(self.sending, f"send {runs}", parent=self.here.span_id, start=self.decided_at, end=now, kind="producer",
            attributes={"messaging.system": "nats", "messaging.destination.template": runs, **function})  # fmt: skip
        attributes = {
            "messaging.system": "nats", "messaging.destination.template": template,
            "nats.delivery.attempt": held.letters[-1].message.delivered if held.letters else 1, **function,
        }  # fmt: skip
        # A sync call waits for all of this, so it is one tree; a job's trace goes on from a link.
        if held.sync:
            span(self.here, f"process {template}", parent=self.came.span_id, start=held.arrived_at, end=now, kind="consumer",
                attributes=attributes)  # fmt: skip
        else:
            span(self.here, f"process {template}", parent="", start=held.arrived_at, end=now, kind="consumer",
                attributes=attributes, links=[held.header])  # fmt: skip
