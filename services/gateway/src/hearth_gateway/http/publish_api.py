"""Routes that put something on the bus for others: events, and questions to a model."""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final

from starlette.responses import JSONResponse, Response, StreamingResponse

from hearth_contracts import names, subjects
from hearth_contracts.calls import Body
from hearth_contracts.errors import InvalidName as BadName
from hearth_gateway.adapters.ai_asker import AiAsker, Piece
from hearth_gateway.errors import BadRequest, InvalidName
from hearth_gateway.http.results import content_type
from hearth_gateway.http.routing import Ask, Endpoint
from hearth_kit.bus import Bus

#: With its headers an event fits one message of the broker.
EVENT_BYTES_MAX: Final = 512 * 1024
AI_BYTES_MAX: Final = 512 * 1024
_AI_POST: Final = ("/v1/chat/completions", "/v1/embeddings", "/api/chat", "/api/generate", "/api/embed")


@dataclass(slots=True, eq=False)
class PublishRoutes:
    bus: Bus
    ai: AiAsker

    def endpoints(self) -> list[Endpoint]:
        answers = {200: "the model's answer", 503: "no model server"}
        return [
            Endpoint("POST", "/v1/events/{subject}", self.event, "Publish an event", "events",
                answers={202: "the broker has it"}),
            *(Endpoint("POST", path, self.model, "Ask a private model", "ai", answers=answers) for path in _AI_POST),
            Endpoint("GET", "/api/tags", self.model, "List private models", "ai", answers=answers),
        ]  # fmt: skip

    async def event(self, ask: Ask) -> Response:
        path = ask.path("subject")
        try:
            subject = subjects.event(ask.tenant, names.event_path(path))
        except BadName as error:
            raise InvalidName(f"event subject {path[:80]!r}: {error.rule}", fix=error.rule) from error
        data = await ask.body(bytes_max=EVENT_BYTES_MAX)
        kind = content_type(Body(content_type=ask.request.headers.get("content-type", "application/json")))
        ack = await self.bus.publish(subject, data, contract="event.v1", headers={"Content-Type": kind.decode("latin-1")})
        return JSONResponse({"subject": subject, "sequence": ack.sequence}, 202)

    async def model(self, ask: Ask) -> Response:
        body = await ask.body(bytes_max=AI_BYTES_MAX)
        model = _model(body) if body else ""
        pieces = self.ai.ask(tenant=ask.tenant, path=ask.request.url.path, model=model, body=body)
        first = await anext(pieces)
        return StreamingResponse(
            _data(first, pieces), first.tokens.status, first.tokens.headers, media_type=first.tokens.content_type
        )


def _model(body: bytes) -> str:
    try:
        given: Any = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadRequest("the body is not JSON") from error
    model = given.get("model", "") if isinstance(given, dict) else ""
    if not isinstance(model, str) or len(model) > 60:
        raise BadRequest("model is a name of at most 60 characters")
    return model


async def _data(first: Piece, rest: AsyncIterator[Piece]) -> AsyncIterator[bytes]:
    yield first.data
    async for piece in rest:
        yield piece.data
