"""Answers, as raw ASGI: what the hot path needs and nothing else."""

import json
import math
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Final

from hearth_gateway.errors import GatewayError, Header, Problem

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]

PROBLEM_TYPE: Final = (b"content-type", b"application/problem+json")
JSON_TYPE: Final = (b"content-type", b"application/json")


async def answer(send: Send, status: int, headers: Iterable[Header], body: bytes) -> None:
    await send(
        {"type": "http.response.start", "status": status, "headers": [*headers, (b"content-length", str(len(body)).encode())]}
    )
    await send({"type": "http.response.body", "body": body})


async def problem(send: Send, what: Problem, headers: Sequence[Header] = ()) -> None:
    await answer(send, what.status, [*problem_headers(what), *headers], what.body())


def problem_headers(what: Problem) -> list[Header]:
    headers = [PROBLEM_TYPE, *what.headers]
    if what.retry_after_s is not None:
        headers.append((b"retry-after", str(max(1, math.ceil(what.retry_after_s))).encode()))
    if what.status == 401:
        headers.append((b"www-authenticate", b'Bearer realm="hearth"'))
    return headers


def of(error: GatewayError) -> Problem:
    return error.problem


async def json_answer(send: Send, status: int, value: Any, headers: Sequence[Header] = ()) -> None:
    await answer(send, status, [JSON_TYPE, *headers], json.dumps(value, separators=(",", ":")).encode())
