"""uvicorn's HTTP/1.1 protocol with limits on time and size, and on how a connection ends.

Clients that stand still are found by one sweep a second over the connections, so that no request pays for a timer.
"""

import asyncio
import logging
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import unquote

import httptools
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from hearth_gateway import metrics
from hearth_gateway.errors import Problem
from hearth_gateway.http.cycle import Cycle

_log = logging.getLogger(__name__)

HEAD_BYTES_MAX: Final = 32 * 1024
HEADERS_MAX: Final = 200
#: What a client may go on sending after its answer, before the connection is cut: enough to let it read the answer.
LATE_BYTES_MAX: Final = 4 * 1024 * 1024
SWEEP_S: Final = 1.0
#: The headers that say where a body ends.
_FRAMING: Final = frozenset({b"content-length", b"transfer-encoding"})


@dataclass(frozen=True, slots=True)
class Limits:
    header_s_max: float
    body_stall_s_max: float
    write_stall_s_max: float


def _refusal(problem: Problem) -> bytes:
    body = problem.body()
    reason = {400: "Bad Request", 408: "Request Timeout", 431: "Request Header Fields Too Large", 503: "Service Unavailable"}
    return (
        f"HTTP/1.1 {problem.status} {reason[problem.status]}\r\ncontent-type: application/problem+json\r\n"
        f"content-length: {len(body)}\r\nconnection: close\r\n"
        + (f"retry-after: {problem.retry_after_s:.0f}\r\n" if problem.retry_after_s else "")
        + "\r\n"
    ).encode() + body


_MALFORMED: Final = _refusal(Problem(400, "E_BAD_REQUEST", "This is not HTTP.", fix="send HTTP/1.1"))
_HEAD_TOO_LARGE: Final = _refusal(
    Problem(431, "E_HEADERS_TOO_LARGE", "The request's head is too large.", fix=f"send less than {HEAD_BYTES_MAX} bytes")
)
_TOO_SLOW: Final = _refusal(Problem(408, "E_TOO_SLOW", "The request took too long to arrive.", fix="send it faster"))
_TOO_MANY: Final = _refusal(
    Problem(503, "E_OVERLOADED", "Too many connections are open.", fix="wait for Retry-After seconds", retry_after_s=1)
)


class _AfterHead:
    """Passes on what a parser tells, but for its first head, which the connection has had."""

    def __init__(self, connection: "HardenedProtocol") -> None:
        self._connection = connection
        self._had = False
        self.on_body = connection.on_body
        self.on_message_complete = connection.on_message_complete

    def on_message_begin(self) -> None:
        if self._had:
            self._connection.on_message_begin()

    def on_url(self, url: bytes) -> None:
        if self._had:
            self._connection.on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._had:
            self._connection.on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._had:
            self._connection.on_headers_complete()
        self._had = True


class HardenedProtocol(HttpToolsProtocol):
    """One connection."""

    connections_max = 10_000
    cycle: Any
    """None before the first request, which uvicorn's annotation does not say; the same for the two below."""
    parser: Any
    app: Any

    def __init__(self, config: Any, server_state: ServerState, app_state: dict[str, Any], _loop: Any = None) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.access_log = False  # whatever handlers the root logger has: a line per call costs more than the call
        self._head_since = 0.0
        """When the head that is being read began; 0 between requests."""
        self._head_bytes = 0
        """What was read of it so far, complete or not."""
        self._named_bytes = 0
        """What its parsed part holds: a head that came in one read was never incomplete."""
        self._read_at = 0.0
        self._paused_at = 0.0
        self._late_bytes = 0
        self._refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        super().connection_made(transport)
        self._head_since = self._read_at = self.loop.time()
        if len(self.connections) > self.connections_max:
            self._refuse(_TOO_MANY)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        now = self.loop.time()
        self._read_at = now
        if self._head_since:
            self._head_bytes += len(data)
        elif self.cycle is not None and not self.cycle.more_body:
            self._head_since, self._head_bytes = now, len(data)  # the next request begins
        self._feed(data)
        if self._head_since and self._head_bytes > HEAD_BYTES_MAX:
            self._refuse(_HEAD_TOO_LARGE)

    def _feed(self, data: bytes | memoryview) -> None:
        """uvicorn's, but an upgrade is ignored, as RFC 9110 section 7.8 lets a server do: its body and what follows are read."""
        self._unset_keepalive_if_required()
        while not self._refused:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserError:
                self.logger.warning("Invalid HTTP request received.")
                self.send_400_response("")
            except httptools.HttpParserUpgrade as upgrade:
                if self.scope["method"] == "CONNECT":
                    return  # what follows is meant for whom it would have been tunneled to
                self._forget_upgrade()
                data = memoryview(data)[upgrade.args[0] :]
                continue
            return

    def _forget_upgrade(self) -> None:
        """The parser takes what follows an upgrade's head for another protocol, and its message for complete: have another
        parser read on, from a head that says of the body what this one said."""
        if self._refused or self.cycle is None:
            return
        self.cycle.more_body = True
        self.cycle.message_event.clear()
        self.parser = httptools.HttpRequestParser(_AfterHead(self))
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        framing = [b"%b: %b\r\n" % field for field in self.headers if field[0] in _FRAMING]
        version = self.scope["http_version"].encode()
        try:
            self.parser.feed_data(b"POST / HTTP/%b\r\n%b\r\n" % (version, b"".join(framing)))
        except httptools.HttpParserError:
            self.send_400_response("")

    def on_message_begin(self) -> None:
        self._named_bytes = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._named_bytes += len(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._named_bytes += len(name) + len(value)
        super().on_header(name, value)
        if self._named_bytes > HEAD_BYTES_MAX or len(self.headers) > HEADERS_MAX:
            self._refuse(_HEAD_TOO_LARGE)

    def on_headers_complete(self) -> None:
        """uvicorn's, with our cycle and without what is switched off here (web sockets, a root path, its own limit)."""
        self._head_since, self._head_bytes, self._late_bytes = 0.0, 0, 0
        if self._refused:
            return
        parser, scope = self.parser, self.scope
        version = parser.get_http_version()
        scope["method"] = parser.get_method().decode("ascii")
        scope["http_version"] = version
        url = httptools.parse_url(self.url)
        raw_path = url.path
        path = raw_path.decode("ascii")
        scope["path"] = unquote(path) if "%" in path else path
        scope["raw_path"] = raw_path
        scope["query_string"] = url.query or b""
        before = self.cycle
        self.cycle = Cycle(
            scope=scope, transport=self.transport, flow=self.flow, logger=self.logger, access_logger=self.access_logger,
            access_log=False, default_headers=self.server_state.default_headers, message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue, keep_alive=version != "1.0" and parser.should_keep_alive(),
            on_response=self.on_response_complete,
        )  # fmt: skip
        if before is None or before.response_complete:
            self._start_asgi_task(self.cycle, self.app)
        else:  # pipelined
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, self.app))

    def on_body(self, body: bytes) -> None:
        cycle = self.cycle
        if cycle is None or self._refused:
            return
        if cycle.response_complete:
            self._late_bytes += len(body)
            if self._late_bytes > LATE_BYTES_MAX:
                self.transport.close()
            return
        cycle.body += body
        if len(cycle.body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()
        cycle.message_event.set()

    def on_message_complete(self) -> None:
        cycle = self.cycle
        if cycle is None or self._refused:
            return
        cycle.more_body = False
        cycle.message_event.set()

    def send_400_response(self, msg: str) -> None:
        self._refuse(_MALFORMED)

    def pause_writing(self) -> None:
        self._paused_at = self.loop.time()
        super().pause_writing()

    def resume_writing(self) -> None:
        self._paused_at = 0.0
        super().resume_writing()

    def _refuse(self, answer: bytes) -> None:
        if self._refused:
            return
        self._refused = True
        cycle = self.cycle
        answered = cycle is not None and cycle.response_started and (cycle.more_body or not cycle.response_complete)
        if not answered:  # else another answer in the middle of the first would be read as part of it
            self.transport.write(answer)
        self.transport.close()
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()

    def check(self, now: float, limits: Limits) -> None:
        """Called once a second."""
        if self._paused_at and now - self._paused_at > limits.write_stall_s_max:
            metrics.SLOW_CLIENTS.labels("reading").inc()
            self.transport.abort()
        elif self._head_since and now - self._head_since > limits.header_s_max:
            metrics.SLOW_CLIENTS.labels("head").inc()
            if self._head_bytes:
                self._refuse(_TOO_SLOW)
            else:
                self.transport.close()  # opened, and nothing said
        elif self._waits_for_body() and now - self._read_at > limits.body_stall_s_max:
            metrics.SLOW_CLIENTS.labels("body").inc()
            self._refuse(_TOO_SLOW)

    def _waits_for_body(self) -> bool:
        """A body that is not complete, while it is us who wait for it. (While reading is paused, the client waits for us.)"""
        return self.cycle is not None and self.cycle.more_body and not self.flow.read_paused


async def sweep(state: ServerState, limits: Limits) -> None:
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(SWEEP_S)
        now = loop.time()
        for connection in list(state.connections):
            if isinstance(connection, HardenedProtocol):
                connection.check(now, limits)
