"""Finished spans to an OTLP receiver, in a thread, so that a slow receiver slows nothing."""

import asyncio
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from hearth_kit.spans import Span, parse

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan


_log = logging.getLogger(__name__)

TIMEOUT_S: Final = 5


class Exporter:
    """OTLP over HTTP. The libraries are imported when the first span leaves: most platforms start without a receiver."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint.rstrip("/")
        if not self._endpoint.endswith("/v1/traces"):
            self._endpoint += "/v1/traces"

    async def export(self, spans: "Sequence[Span]", instance: str) -> int:
        """Send; how many were lost."""
        try:
            return await asyncio.to_thread(self._export, spans, instance)
        except Exception as error:
            _log.warning("spans were not accepted by %s: %s", self._endpoint, error)
            return len(spans)

    def _export(self, spans: "Sequence[Span]", instance: str) -> int:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace.export import SpanExportResult

        exporter = getattr(self, "_exporter", None)
        if exporter is None:
            exporter = self._exporter = OTLPSpanExporter(endpoint=self._endpoint, timeout=TIMEOUT_S)
        resource = Resource({"service.name": spans[0].service, "service.instance.id": instance})
        result = exporter.export([_readable(span, resource) for span in spans])
        return 0 if result is SpanExportResult.SUCCESS else len(spans)


def _readable(span: Span, resource: object) -> "ReadableSpan":
    from opentelemetry import trace
    from opentelemetry.sdk.trace import ReadableSpan

    def context(span_id: str) -> trace.SpanContext:
        return trace.SpanContext(int(span.trace_id, 16), int(span_id, 16), is_remote=False, trace_flags=trace.TraceFlags(1))

    links = [
        trace.Link(trace.SpanContext(int(at.trace_id, 16), int(at.span_id, 16), is_remote=True))
        for link in span.links
        if (at := parse(link)) is not None
    ]
    return ReadableSpan(
        name=span.name,
        context=context(span.span_id),
        parent=context(span.parent) if span.parent else None,
        resource=resource,  # pyright: ignore[reportArgumentType]
        attributes=dict(span.attributes),
        links=links,
        kind=trace.SpanKind[span.kind.upper()],
        status=trace.Status(trace.StatusCode.ERROR, span.error) if span.error else trace.Status(),
        start_time=int(span.start * 1e9),
        end_time=int(span.end * 1e9),
    )
