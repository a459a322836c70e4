"""Answers requests to a model. What was asked is never kept and never logged: ids are all that leaves this file."""

import logging

from hearth_ai_proxy import metrics
from hearth_ai_proxy.domain import answer
from hearth_ai_proxy.errors import AiProxyError
from hearth_contracts import subjects
from hearth_contracts.ai import AiRequest
from hearth_contracts.errors import InvalidName, UndecodableMessage
from hearth_kit.bus import Bus
from hearth_kit.clock import Clock
from hearth_kit.errors import BusError
from hearth_kit.message import Message
from hearth_kit.tracing import Tracer

_log = logging.getLogger(__name__)

#: A request whose answer the broker did not take comes again after this.
RETRY_S = 1.0


class Service:
    """Settles each request after the broker has its answer, never before."""

    def __init__(self, *, bus: Bus, clock: Clock, tracer: Tracer, refusal: AiProxyError) -> None:
        self._bus = bus
        self._clock = clock
        self._tracer = tracer
        self._refusal = refusal

    async def serve(self, message: Message) -> None:
        started = self._clock.now()
        try:
            request = message.meta(AiRequest)
            subject = subjects.ai_tokens(request.asker, request.request)
        except (UndecodableMessage, InvalidName):
            # The error's text would quote what was sent; the code says enough.
            _log.warning("a request could not be read", extra={"code": UndecodableMessage.code, "sequence": message.sequence})
            metrics.REQUESTS.labels("undecodable").inc()
            message.term("undecodable")
            return
        if answer.expired(request, started):
            metrics.REQUESTS.labels("expired").inc()
            message.ack()
            return
        try:
            await self._refuse(request, subject, message.traceparent, started)
        except BusError as error:
            _log.warning("an answer was not taken: %s", error.code, extra={"request": request.request})
            metrics.REQUESTS.labels("unanswered").inc()
            message.nak(RETRY_S)
            return
        metrics.REQUESTS.labels(self._refusal.code).inc()
        message.ack()

    async def _refuse(self, request: AiRequest, subject: str, traceparent: str, started: float) -> None:
        tokens, body = answer.problem(request, self._refusal)
        sent = self._tracer.continued(traceparent)
        process = sent.child()
        await self._bus.publish(
            subject, body, meta=tokens, contract="ai-tokens.v1", msg_id=f"{request.request}.{tokens.number}",
            traceparent=process.header,
        )  # fmt: skip
        self._tracer.span(
            process, "process hearth.v1.ai.requests", parent=sent.span_id, start=started, end=self._clock.now(),
            kind="consumer", error=self._refusal.code,
            attributes={
                "messaging.system": "nats", "messaging.destination.template": "hearth.v1.ai.requests",
                "faas.invocation_id": request.job,
            },
        )  # fmt: skip
