"""The client against a real HTTP server: answers, problems, streams."""

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator

import pytest

from hearth_cli.client import Answer, Gateway, multipart, parse_events, refusal
from hearth_cli.errors import CommandError, NotRunning, Refused


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert self.headers["x-api-key"] == "secret"
        if self.path == "/v1/events":
            self._answer(
                200,
                b'event: state\ndata: PENDING\nid: 1\n\n: still here\n\nevent: result\ndata: {"a":\ndata: 1}\n\n',
                "text/event-stream",
            )
        elif self.path == "/v1/bad":
            problem = {"title": "The specification is wrong.", "code": "E_SPEC_INVALID", "detail": "x", "fix": "see /docs",
                       "errors": [{"field": "memroy_mb", "message": "unknown key", "line": 3, "hint": "memory_mb"}]}  # fmt: skip
            self._answer(422, json.dumps(problem).encode(), "application/problem+json")
        elif self.path in ("/v1/file", "/v1/cut"):
            content = b"x" * 1_000_000
            self.send_response(200)
            self.send_header("etag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content if self.path == "/v1/file" else content[:400_000])
        else:
            self._answer(200, b'{"fine": true}', "application/json")

    def _answer(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    with http.server.HTTPServer(("127.0.0.1", 0), _Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield Gateway(url=f"http://127.0.0.1:{server.server_port}", key="secret")
        server.shutdown()
        thread.join()


def test_an_answer_is_read(gateway: Gateway) -> None:
    assert gateway.get("/v1/system") == {"fine": True}


def test_a_file_comes_in_pieces_and_one_that_is_cut_short_is_found_out(gateway: Gateway) -> None:
    pieces = list(gateway.download("/v1/file"))
    assert len(pieces) > 1
    assert b"".join(pieces) == b"x" * 1_000_000
    with pytest.raises(CommandError, match="did not come whole"):
        list(gateway.download("/v1/cut"))


def test_a_problem_names_the_line_and_the_fix(gateway: Gateway) -> None:
    with pytest.raises(Refused) as refused:
        gateway.get("/v1/bad")
    assert refused.value.message == "The specification is wrong. (E_SPEC_INVALID)"
    assert refused.value.detail == "line 3: memroy_mb: unknown key (memory_mb)"
    assert (refused.value.fix, refused.value.status) == ("see /docs", 422)


def test_a_traceback_of_the_function_is_shown() -> None:
    body = json.dumps({"title": "The function failed.", "error": {"traceback": "main.py, line 2\nValueError: no\n"}}).encode()
    assert refusal(Answer(502, {}, body)).detail.endswith("ValueError: no")


def test_an_answer_that_is_no_problem_document_is_shown_as_it_is() -> None:
    assert refusal(Answer(502, {}, b"<html>proxy</html>")).detail == "<html>proxy</html>"
    assert refusal(Answer(502, {}, b"[1]")).detail == "[1]"


def test_events_come_whole(gateway: Gateway) -> None:
    events = list(gateway.events("GET", "/v1/events"))
    assert [(event.name, event.data, event.id) for event in events] == [("state", "PENDING", "1"), ("result", '{"a":\n1}', "1")]


def test_a_stream_that_is_cut_gives_only_whole_events() -> None:
    assert list(parse_events([b"event: log\n", b"data: half\n"])) == []


def test_nobody_listening_is_said(gateway: Gateway) -> None:
    with pytest.raises(NotRunning, match="does not answer"):
        Gateway(url="http://127.0.0.1:9", key="k").get("/")


@pytest.mark.parametrize("url", ["localhost:8080", "ftp://x", "http://"])
def test_an_address_that_is_none_is_said(url: str) -> None:
    with pytest.raises(CommandError):
        Gateway(url=url, key="k")


def test_a_form_holds_bytes_as_they_are() -> None:
    content = bytes(range(256))
    kind, body = multipart({"spec": ("", "application/yaml", b"name: x"), "code": ("c.zip", "application/zip", content)})
    boundary = kind.partition("boundary=")[2].encode()
    parts = body.split(b"--" + boundary)
    assert len(parts) == 4
    assert content in parts[2]
    assert parts[3] == b"--\r\n"
