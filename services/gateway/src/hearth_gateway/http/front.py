"""The ASGI application: two raw routes for calls, Starlette for the rest."""

import logging
from typing import Final

from starlette.applications import Starlette

from hearth_gateway.errors import MethodNotAllowed
from hearth_gateway.http import sending
from hearth_gateway.http.invoke import InvokeRoutes
from hearth_gateway.http.routing import INTERNAL
from hearth_gateway.http.sending import Receive, Scope, Send

_log = logging.getLogger(__name__)

_FUNCTIONS: Final = "/v1/functions/"
_INVOKE: Final = "/invoke"
_FN: Final = "/fn/"
_POST_ONLY: Final = MethodNotAllowed(fix="use POST", headers=((b"allow", b"POST"),)).problem


class Front:
    def __init__(self, *, calls: InvokeRoutes, rest: Starlette) -> None:
        self._calls = calls
        self._rest = rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope["path"]
        if path.startswith(_FUNCTIONS) and path.endswith(_INVOKE):
            name = path[len(_FUNCTIONS) : -len(_INVOKE)]
            if "/" not in name:
                await self._call(scope, receive, send, name, plain_http=False)
                return
        elif path.startswith(_FN):
            await self._call(scope, receive, send, path[len(_FN) :].partition("/")[0], plain_http=True)
            return
        await self._rest(scope, receive, send)

    async def _call(self, scope: Scope, receive: Receive, send: Send, name: str, *, plain_http: bool) -> None:
        started = False

        async def sent(message: object) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            if plain_http:
                await self._calls.fn(scope, receive, sent, name)
            elif scope["method"] == "POST":
                await self._calls.invoke(scope, receive, sent, name)
            else:
                await sending.problem(sent, _POST_ONLY)
        except Exception:
            _log.exception("a call failed inside the gateway", extra={"function": name})
            if started:
                raise  # the server ends the connection: half an answer must not look whole
            await sending.problem(send, INTERNAL)
