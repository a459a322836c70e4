"""The route table: one entry per operation, from which the router and the OpenAPI document are made."""

import contextlib
import difflib
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Literal

from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from hearth_gateway import metrics
from hearth_gateway.adapters.keyring import Caller, KeyRing
from hearth_gateway.calls import bodies, refusals
from hearth_gateway.errors import BadRequest, Forbidden, GatewayError, MethodNotAllowed, NotFound, Problem
from hearth_gateway.http import credentials, sending
from hearth_kit.errors import BusError

_log = logging.getLogger(__name__)

Access = Literal["open", "key", "admin", "loopback"]
_LOOPBACK: Final = ("127.", "::1", "localhost")
INTERNAL: Final = Problem(
    500, "E_INTERNAL", "Something went wrong inside the gateway.", fix="the gateway's log has the reason under this trace"
)


@dataclass(frozen=True, slots=True)
class Parameter:
    name: str
    description: str
    where: Literal["query", "header"] = "query"
    kind: str = "string"


@dataclass(slots=True)
class Ask:
    """One request, and who makes it."""

    request: Request
    _caller: Caller | None = None

    @property
    def caller(self) -> Caller:
        assert self._caller is not None, "the route is not open to everyone"
        return self._caller

    @property
    def tenant(self) -> str:
        return self.caller.tenant

    async def body(self, *, bytes_max: int) -> bytes:
        """The whole of a body that must be small; one that says that it is not is not even begun to be read."""
        length = self.request.headers.get("content-length")
        bodies.announced(None if length is None else length.encode(), bytes_max=bytes_max)
        return await bodies.small(self.request.receive, bytes_max=bytes_max)

    def path(self, name: str) -> str:
        return str(self.request.path_params[name])

    def query(self, name: str, default: str = "") -> str:
        return self.request.query_params.get(name, default)

    def only(self, *names: str) -> None:
        """A misspelt parameter would be a question that nobody asked: it is refused by name."""
        for name in self.request.query_params:
            if name not in names:
                close = difflib.get_close_matches(name[:80], names, n=1, cutoff=0.5)
                hint = f"did you mean {close[0]}?" if close else f"known parameters: {', '.join(names)}"
                raise BadRequest(f"there is no parameter {name[:80]!r} ({hint})", fix=hint)

    def time(self, name: str) -> float:
        """A time in the query, Unix seconds or RFC 3339; 0 when it is not given."""
        text = self.query(name).replace(" ", "+")  # what a plus sign is in a query, unless it was escaped
        with contextlib.suppress(ValueError):
            stamp = datetime.fromisoformat(text)
            if stamp.tzinfo is not None:
                return max(0.0, stamp.timestamp())
        return self.number(name, 0, low=0, high=1e12)

    def number(self, name: str, default: float, *, low: float, high: float) -> float:
        """A number in the query, within its bounds."""
        text = self.query(name)
        if not text:
            return default
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not low <= value <= high:
            raise BadRequest(f"{name} is a number from {low:g} to {high:g}")
        return value


Handler = Callable[[Ask], Awaitable[Any]]
"""Returns a Starlette response, or any ASGI callable."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    method: str
    path: str
    handler: Handler | None
    """None: served before the router, on the hot path."""
    summary: str
    tag: str
    access: Access = "key"
    body: type[BaseModel] | Mapping[str, Any] | None = None
    answers: Mapping[int, str] = field(default_factory=lambda: {200: "done"})
    parameters: Sequence[Parameter] = ()


def problem_response(problem: Problem) -> Response:
    response = Response(problem.body(), problem.status)
    response.raw_headers = [*sending.problem_headers(problem), (b"content-length", str(len(response.body)).encode())]
    return response


def application(endpoints: Sequence[Endpoint], keyring: KeyRing) -> Starlette:
    """Everything but the hot path."""
    routes = [
        Route(endpoint.path, _guarded(endpoint, keyring), methods=[endpoint.method])
        for endpoint in endpoints
        if endpoint.handler is not None
    ]
    app = Starlette(routes=routes, exception_handlers={HTTPException: _not_routed, Exception: _failed})
    app.router.redirect_slashes = False
    return app


async def _failed(_: Request, __: Exception) -> Response:
    """What breaks after a handler has returned; Starlette raises it again, for the log."""
    return problem_response(INTERNAL)


async def _not_routed(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        return problem_response(MethodNotAllowed(fix=f"use {allowed}", headers=((b"allow", allowed.encode()),)).problem)
    return problem_response(NotFound().problem)


def _guarded(endpoint: Endpoint, keyring: KeyRing) -> Callable[[Request], Awaitable[Any]]:
    """The handler with its key check in front and every refusal made a problem."""
    handler = endpoint.handler
    assert handler is not None

    async def handle(request: Request) -> Any:
        try:
            ask = Ask(request, _admitted(endpoint.access, request, keyring))
            response = await handler(ask)
        except GatewayError as error:
            metrics.REFUSED.labels(error.code).inc()
            response = problem_response(error.problem)
        except BusError as error:
            refusal = refusals.of_bus(error)
            metrics.REFUSED.labels(refusal.code).inc()
            response = problem_response(refusal.problem)
        except Exception:
            _log.exception("a handler failed", extra={"route": f"{endpoint.method} {endpoint.path}"})
            response = problem_response(INTERNAL)
        metrics.requests(endpoint.path, getattr(response, "status_code", 200))
        return response

    return handle


def _admitted(access: Access, request: Request, keyring: KeyRing) -> Caller | None:
    if access == "open":
        return None
    if access == "loopback" and request.client is not None and request.client.host.startswith(_LOOPBACK):
        return None
    caller = credentials.caller(dict(request.scope["headers"]), keyring)
    if access == "admin" and not caller.key.admin:
        raise Forbidden
    return caller
