"""Traces: W3C context in, spans made by hand, out to the bus and over OTLP.

A span is written down after the fact, from times that were taken anyway; an unsampled call costs a random id. Sampling is
by rate, not by ratio: a person trying things out sees every call, a loaded platform pays for a few each second.
"""

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Final

from hearth_contracts import subjects
from hearth_contracts.keys import SpanBatch
from hearth_kit import metrics
from hearth_kit.bus import Bus
from hearth_kit.clock import Clock
from hearth_kit.errors import BusError
from hearth_kit.otlp import Exporter
from hearth_kit.spans import Context, Kind, Span, Value, parse

__all__ = ["Context", "Sampler", "Span", "Tracer", "parse"]

#: Finished spans that wait for the next flush at most; more are dropped and counted.
QUEUE_MAX: Final = 16_384
#: A flush that the broker does not answer ends soon, so that the spans of an outage do not wait one after the other.
PUBLISH_S: Final = 1.0


class Sampler:
    """At most so many new traces a second."""

    def __init__(self, per_second: float) -> None:
        self._per_second = per_second
        self._tokens = max(per_second, 1.0) if per_second else 0.0
        self._at = 0.0

    def take(self, now: float) -> bool:
        if not self._per_second:
            return False
        self._tokens = min(max(self._per_second, 1.0), self._tokens + max(0.0, now - self._at) * self._per_second)
        self._at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class Tracer:
    """One process's spans."""

    def __init__(
        self, *, service: str, instance: str, bus: Bus, clock: Clock, per_second: float, exporter: Exporter | None = None
    ) -> None:
        self._service = service
        self._instance = instance
        self._bus = bus
        self._clock = clock
        self._sampler = Sampler(per_second)
        self._exporter = exporter
        self._spans: list[Span] = []
        self.dropped = 0

    def root(self, header: str = "") -> Context:
        """Where a request enters: below the caller's span when there is one, else a new trace."""
        caller = parse(header)
        if caller is not None:
            return caller
        return Context(secrets.token_hex(16), "", self._sampler.take(self._clock.now()))

    def continued(self, header: str) -> Context:
        """Where a message continues. A message without context starts an unsampled trace."""
        return parse(header) or Context(secrets.token_hex(16), "", False)

    def span(
        self,
        at: Context,
        name: str,
        *,
        parent: str,
        start: float,
        end: float,
        kind: Kind = "internal",
        attributes: Mapping[str, Value] | None = None,
        links: Sequence[str] = (),
        error: str = "",
    ) -> None:
        """Write down that `at` lasted from `start` to `end`. Nothing happens when the trace is not sampled."""
        if not at.sampled:
            return
        if len(self._spans) >= QUEUE_MAX:
            self._drop(1)
            return
        self._spans.append(
            Span(self._service, name, at.trace_id, at.span_id, parent, start, end, kind, attributes or {}, links, error)
        )

    async def flush(self) -> None:
        """Send what has gathered. Called each half second and at the end. Spans are never worth waiting for: what the
        broker does not take is dropped and counted.
        """
        if not self._spans:
            return
        spans, self._spans = self._spans, []
        by_trace: dict[str, list[Span]] = {}
        for span in spans:
            by_trace.setdefault(span.trace_id, []).append(span)
        for trace_id, group in by_trace.items():
            meta = SpanBatch(service=self._service, instance=self._instance, count=len(group))
            body = json.dumps([asdict(span) for span in group], separators=(",", ":")).encode()
            try:
                await self._bus.publish(
                    subjects.trace(trace_id), body, meta=meta, contract="spans.v1",
                    msg_id=f"{trace_id}.{group[0].span_id}", timeout_s=PUBLISH_S,
                )  # fmt: skip
            except BusError:
                self._drop(len(group))
        if self._exporter is not None:
            self._drop(await self._exporter.export(spans, self._instance))

    def _drop(self, count: int) -> None:
        self.dropped += count
        metrics.SPANS_DROPPED.inc(count)
