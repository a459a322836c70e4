"""One request and its answer on a connection: uvicorn's, but an answer's head and body leave in one write.

Two writes are two system calls, which is a good part of what a small call costs at the edge.
"""

from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

_BODILESS: Final = frozenset({204, 304})


class Cycle(RequestResponseCycle):
    _head = b""
    """The head of the answer, as long as nothing of its body was sent."""

    async def send(self, message: Any) -> None:
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        kind = message["type"]
        if not self.response_started and kind == "http.response.start":
            self.response_started = True
            self.waiting_for_100_continue = False
            self._head = self._render(message["status"], message.get("headers", ()))
        elif self.response_started and not self.response_complete and kind == "http.response.body":
            self._body(message.get("body", b""), more=message.get("more_body", False))
        else:
            raise RuntimeError(f"{kind} is out of its order")

    def _render(self, status: int, headers: Any) -> bytes:
        parts = [STATUS_LINE[status]]
        chunked: bool | None = None
        count = 1
        closes = False
        for name, value in (*self.default_headers, *headers):
            if name == b"content-length":
                self.expected_content_length = int(value)
                chunked = False
            elif name == b"connection" and value == b"close":
                closes = True
            parts += (name, b": ", value, b"\r\n")
            count += 1
        if closes:
            self.keep_alive = False
        elif not self.keep_alive:
            parts.append(b"connection: close\r\n")
            count += 1
        if chunked is None and status not in _BODILESS and self.scope["method"] != "HEAD":
            chunked = True
            parts.append(b"transfer-encoding: chunked\r\n")
            count += 1
        self.chunked_encoding = bool(chunked)
        parts.append(b"\r\n")
        head = b"".join(parts)
        if head.count(b"\n") != count + 1 or head.count(b"\r") != count + 1 or b"\0" in head:
            raise RuntimeError("a header holds a line break")  # what functions say was checked before: this is a bug of ours
        return head

    def _body(self, body: bytes, *, more: bool) -> None:
        head, self._head = self._head, b""
        if self.scope["method"] == "HEAD":
            self.expected_content_length = 0
            body = b""
        elif self.chunked_encoding:
            body = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            if not more:
                body += b"0\r\n\r\n"
        else:
            self.expected_content_length -= len(body)
            if self.expected_content_length < 0:
                raise RuntimeError("the answer is longer than its Content-Length")
        if head or body:
            self.transport.write(head + body if head else body)
        if more:
            return
        if self.expected_content_length and not self.chunked_encoding:
            raise RuntimeError("the answer is shorter than its Content-Length")
        self.response_complete = True
        self.message_event.set()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()
