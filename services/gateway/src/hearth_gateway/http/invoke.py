"""Calling a function over HTTP: the hot path, as raw ASGI without a layer in between."""

import asyncio
import logging
import re
from dataclasses import dataclass, replace
from typing import Final

from hearth_contracts import bounds, names
from hearth_contracts.calls import HttpRequest
from hearth_contracts.enums import Start
from hearth_gateway import metrics
from hearth_gateway.adapters.keyring import Caller, KeyRing
from hearth_gateway.calls import answer as answers
from hearth_gateway.calls import bodies, refusals
from hearth_gateway.calls.answer import Answer
from hearth_gateway.calls.bodies import AREA
from hearth_gateway.calls.custody import Custody, HandedOff, Held
from hearth_gateway.calls.idempotency import IdempotencyKeys
from hearth_gateway.calls.invoker import Invoker, Wish
from hearth_gateway.domain import dispatch
from hearth_gateway.domain.progress import Cursor
from hearth_gateway.errors import BadRequest, GatewayError, Header, Unsupported
from hearth_gateway.http import credentials, event_stream, results, sending
from hearth_gateway.http.credentials import Headers
from hearth_gateway.http.routing import Endpoint, Parameter
from hearth_gateway.http.sending import Receive, Scope, Send
from hearth_gateway.jobs.lookup import Found, Jobs
from hearth_kit.bus import Bus
from hearth_kit.clock import Clock
from hearth_kit.errors import BusError
from hearth_kit.objects import Objects
from hearth_kit.tracing import Context, Tracer

_log = logging.getLogger(__name__)

_ROUTE: Final = "/v1/functions/{name}/invoke"
_FN_ROUTE: Final = "/fn/{name}/{path}"
#: Headers of a plain HTTP call that concern the caller and the gateway only: a function never sees a key.
_PRIVATE: Final = frozenset({b"x-api-key", b"authorization", b"connection", b"keep-alive", b"transfer-encoding", b"upgrade",
    b"te", b"trailer", b"proxy-authorization", b"expect", b"prefer", b"idempotency-key"})  # fmt: skip
_CALL_SECONDS: Final = {start.value: metrics.CALL_SECONDS.labels(start.value) for start in Start}


@dataclass(slots=True, eq=False)
class InvokeRoutes:
    """Both ways to call a function over HTTP."""

    bus: Bus
    clock: Clock
    tracer: Tracer
    keyring: KeyRing
    invoker: Invoker
    custody: Custody
    jobs: Jobs
    objects: Objects
    idempotency: IdempotencyKeys
    heartbeat_s: float

    def endpoints(self) -> list[Endpoint]:
        """For the documents: these routes are served before the router."""
        headers = (
            Parameter("prefer", "respond-async: 202 and a job id at once", where="header"),
            Parameter("accept", "text/event-stream: states, logs and the result as they come", where="header"),
            Parameter("idempotency-key", "the same key and body is the same job", where="header"),
            Parameter("traceparent", "the trace this call belongs to", where="header"),
        )
        answers = {200: "the result", 202: "a job id", 429: "the queue is full", 502: "the function failed", 503: "no capacity",
            504: "the function took too long"}  # fmt: skip
        body = {"*/*": {"description": "the event: JSON, text or bytes, up to 1 GiB"}}
        return [
            Endpoint("POST", _ROUTE, None, "Call a function", "calls", body=body, answers=answers, parameters=headers),
            *(
                Endpoint(method, _FN_ROUTE, None, "A function as a plain HTTP endpoint", "calls", answers=answers)
                for method in ("GET", "POST", "PUT", "PATCH", "DELETE")
            ),
        ]

    async def invoke(self, scope: Scope, receive: Receive, send: Send, name: str) -> None:
        """`POST /v1/functions/{name}/invoke`."""
        request = _Request(self, scope, receive, send, name, route=_ROUTE, span_name=f"POST {_ROUTE}")
        await request.run(plain_http=False)

    async def fn(self, scope: Scope, receive: Receive, send: Send, name: str) -> None:
        """`ANY /fn/{name}/{path}`."""
        request = _Request(self, scope, receive, send, name, route=_FN_ROUTE, span_name=f"{scope['method']} {_FN_ROUTE}")
        await request.run(plain_http=True)


@dataclass(slots=True, eq=False)
class _Request:
    """One request on its way through."""

    on: InvokeRoutes
    scope: Scope
    receive: Receive
    send: Send
    name: str
    route: str
    span_name: str
    job: str = ""
    start: Start | None = None

    async def run(self, *, plain_http: bool) -> None:
        on = self.on
        started = on.clock.now()
        headers: Headers = dict(self.scope["headers"])
        header = headers.get(b"traceparent")
        above = on.tracer.root(header.decode("latin-1") if header is not None else "")
        server = above.child()
        traceparent = (b"traceparent", server.header.encode())
        try:
            status = await self._call(headers, server, started, traceparent, plain_http=plain_http)
        except GatewayError as error:
            status = error.status
            metrics.REFUSED.labels(error.code).inc()
            await sending.problem(self.send, error.problem, self._identity(traceparent))
        except BusError as error:
            refusal = refusals.of_bus(error)
            status = refusal.status
            metrics.REFUSED.labels(refusal.code).inc()
            await sending.problem(self.send, refusal.problem, self._identity(traceparent))
        metrics.requests(self.route, status)
        if server.sampled:
            self._span(above, server, started, status)

    def _span(self, above: Context, server: Context, started: float, status: int) -> None:
        attributes: dict[str, str | int | float | bool] = {
            "faas.name": self.name, "http.request.method": self.scope["method"], "http.route": self.route,
            "http.response.status_code": status,
        }  # fmt: skip
        if self.job:
            attributes["faas.invocation_id"] = self.job
        if self.start is not None:
            attributes["faas.coldstart"] = self.start is Start.COLD
        self.on.tracer.span(
            server, self.span_name, parent=above.span_id, start=started, end=self.on.clock.now(), kind="server",
            attributes=attributes, error=f"HTTP {status}" if status >= 500 else "",
        )  # fmt: skip

    def _identity(self, traceparent: Header) -> list[Header]:
        return [traceparent, (b"x-hearth-job", self.job.encode())] if self.job else [traceparent]

    async def _call(self, headers: Headers, server: Context, started: float, traceparent: Header, *, plain_http: bool) -> int:
        on = self.on
        caller = credentials.caller(headers, on.keyring)
        version = await on.invoker.version(caller.tenant, self.name)
        prefer = headers.get(b"prefer")
        is_async = prefer is not None and _asks_async(prefer)
        key = headers.get(b"idempotency-key")
        refused: GatewayError | None = None
        try:
            on.invoker.admit(version, sync=not is_async)
        except GatewayError as error:
            if key is None:
                raise
            refused = error  # of a call that has been made before there may be a result
        bodies.announced(headers.get(b"content-length"))
        if not plain_http and headers.get(b"content-encoding", b"identity") != b"identity":
            raise Unsupported("a compressed body is not taken", fix="send it without Content-Encoding")
        job = names.new_job(self.name, started)
        kind = headers.get(b"content-type")
        # What curl says where nobody said anything is no choice: such a body is JSON, and text where it is not.
        if kind is None or (kind == _CURLS_TYPE and not plain_http):
            kind = _DEFAULT_TYPE
        content_type = kind.decode("latin-1")
        if bounds.text_bytes(content_type) > bounds.CONTENT_TYPE_BYTES_MAX:
            raise BadRequest(f"a content type has at most {bounds.CONTENT_TYPE_BYTES_MAX} bytes here")
        http = self._http() if plain_http else None
        wanted = await bodies.take(self.receive, on.objects, job=job, content_type=content_type)
        wish = Wish(job=job, version=version, input=wanted, submitted_at=started, caller=caller.prefix, http=http)
        if key is not None:
            return await self._once(
                wish, key.decode("latin-1"), caller, headers, server, traceparent, is_async=is_async, refused=refused
            )
        self.job = job
        if is_async:
            await on.invoker.submit(wish, server)
            return await self._accepted(traceparent)
        held = await on.invoker.sync(wish, server)
        if not plain_http and _asks_events(headers.get(b"accept", b"")):
            return await self._stream(Found(caller.tenant, job, held=held, trace_id=server.trace_id), traceparent)
        return await self._answer(held, started, traceparent, plain_http=plain_http)

    def _http(self) -> HttpRequest:
        """How the caller spoke, for the function to see."""
        path = self.scope["path"].removeprefix(f"/fn/{self.name}") or "/"
        seen = tuple(
            (name.decode("latin-1"), value.decode("latin-1")) for name, value in self.scope["headers"] if name not in _PRIVATE
        )
        http = HttpRequest(
            method=self.scope["method"], path=path, query=self.scope["query_string"].decode("latin-1"), headers=seen
        )
        if bounds.http_bytes(http) > bounds.HTTP_REQUEST_BYTES_MAX:
            raise BadRequest(
                f"method, path, query and headers together have at most {bounds.HTTP_REQUEST_BYTES_MAX} bytes here, written as JSON",
                fix="send less in the query and the headers, or send it in the body",
            )
        return http

    async def _answer(self, held: Held, started: float, traceparent: Header, *, plain_http: bool) -> int:
        try:
            answer = await held.future
        except HandedOff:
            return await self._accepted(traceparent)
        return await self._deliver(answer, started, traceparent, plain_http=plain_http)

    async def _deliver(self, answer: Answer, started: float, traceparent: Header, *, plain_http: bool) -> int:
        on = self.on
        self.start = answer.ending.start
        start = answer.ending.start.value
        headers = [traceparent, (b"x-hearth-job", self.job.encode()), (b"x-hearth-start", start.encode())]
        _CALL_SECONDS[start].observe(on.clock.now() - started)
        return await results.deliver(self.receive, self.send, on.objects, answer, headers, plain_http=plain_http)

    async def _accepted(self, traceparent: Header) -> int:
        location = f"/v1/jobs/{self.job}"
        await sending.json_answer(
            self.send, 202, {"job": self.job, "state": "PENDING", "location": location},
            [*self._identity(traceparent), (b"location", location.encode())],
        )  # fmt: skip
        return 202

    async def _stream(self, found: Found, traceparent: Header) -> int:
        await event_stream.send_events(
            self.receive, self.send, self.on.jobs, found, Cursor(), heartbeat_s=self.on.heartbeat_s,
            headers=self._identity(traceparent),
        )  # fmt: skip
        return 200

    # Idempotency

    async def _once(
        self, wish: Wish, key: str, caller: Caller, headers: Headers, server: Context, traceparent: Header, *,
        is_async: bool, refused: GatewayError | None,
    ) -> int:  # fmt: skip
        """The same key and body is the same job, whoever asks again, and whether or not the first answer arrived."""
        on = self.on
        plain_http = wish.http is not None
        if refused is None:
            claim = await on.idempotency.claim(
                tenant=caller.tenant, function=self.name, key=key, wanted=wish.input, http=wish.http, job=wish.job,
                now=wish.submitted_at,
            )  # fmt: skip
        else:
            known = await on.idempotency.known(
                tenant=caller.tenant, function=self.name, key=key, wanted=wish.input, http=wish.http
            )
            if known is None:
                raise refused
            claim = known
        self.job = claim.job
        found = None if claim.fresh else await self._earlier(caller.tenant, claim.job)
        streamed = not plain_http and _asks_events(headers.get(b"accept", b""))
        if found is None:
            if refused is not None:
                raise refused
            # Nobody has heard of it: submitted now, for the first time or once more under the same id.
            placement = 0 if claim.fresh else dispatch.repeated(wish.submitted_at - claim.at)
            wish = replace(wish, job=claim.job, placement=placement)
            if is_async:
                await on.invoker.submit(wish, server)
                return await self._accepted(traceparent)
            held = await on.invoker.sync(wish, server, durable=True)
            found = Found(caller.tenant, claim.job, held=held, trace_id=server.trace_id)
        elif wish.input.body.object:
            await on.objects.delete(AREA, wish.input.body.object)
        if is_async:
            return await self._accepted(traceparent)
        if streamed:
            return await self._stream(found, traceparent)
        if found.held is not None:
            try:
                answer = await asyncio.shield(found.held.future)
            except HandedOff:
                return await self._accepted(traceparent)
        else:
            found = await on.jobs.until_final(found, None)
            if found.record is None:
                return await self._accepted(traceparent)
            answer = answers.of_record(found.record, found.body)
        return await self._deliver(answer, wish.submitted_at, traceparent, plain_http=plain_http)

    async def _earlier(self, tenant: str, job: str) -> Found | None:
        """What came of a call that was asked for before; None only if it certainly has no end and nobody has it. Raises
        `ArchiveAway` while its record may lie where nobody can read: submitted again, it would run twice."""
        on = self.on
        found = await on.jobs.live(tenant, job)
        if found is not None:
            return found
        archived = await on.jobs.archived(tenant, job)
        if archived is not None:
            return Found(tenant, job, record=archived[0], body=archived[1])
        # The first request for it may have come through meanwhile, or another repeat.
        found = await on.jobs.live(tenant, job)
        held = on.custody.held(job)
        return found if found is not None or held is None else Found(tenant, job, held=held)


_DEFAULT_TYPE: Final = b"application/json"
_CURLS_TYPE: Final = b"application/x-www-form-urlencoded"
_EVENT_STREAM: Final = b"text/event-stream"
_NO_WEIGHT: Final = re.compile(rb"q\s*=\s*0(\.0*)?")


def _asks_events(accept: bytes) -> bool:
    """Whether the caller names an event stream among what it takes, and not with a weight of 0."""
    if b"event-stream" not in accept.lower():
        return False
    for part in accept.lower().split(b","):
        kind, *parameters = (piece.strip() for piece in part.split(b";"))
        if kind == _EVENT_STREAM:
            return not any(_NO_WEIGHT.fullmatch(parameter) for parameter in parameters)
    return False


def _asks_async(prefer: bytes) -> bool:
    return any(part.strip().lower() == b"respond-async" for part in prefer.replace(b";", b",").split(b","))
