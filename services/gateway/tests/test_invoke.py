"""Calling a function: sync, async, streamed, as plain HTTP, and by reference."""

import asyncio
import json

import pytest
from platform_double import Outcome

from hearth_contracts import bounds
from hearth_contracts.calls import Call, Failure
from hearth_contracts.enums import Reason, State

pytestmark = pytest.mark.broker


async def test_a_sync_call_answers_with_the_result(gateway):
    await gateway.deploy()
    status, body, headers = await gateway.invoke(data=b'{"name":"ada"}')
    assert (status, body) == (200, {"name": "ada"})
    assert headers["x-hearth-job"].startswith("hello-")
    assert headers["x-hearth-start"] == "warm"
    assert headers["traceparent"].startswith("00-")
    assert headers["content-type"] == "application/json"


async def test_what_curl_says_where_nobody_said_anything_is_json(gateway):
    """`curl -d '{"name": "ada"}'` names a form that nobody meant; a type that somebody chose stands."""
    await gateway.deploy()
    for said, understood in (
        ("application/x-www-form-urlencoded", "application/json"), ("text/plain", "text/plain"),
        ("application/x-www-form-urlencoded; charset=utf-8", "application/x-www-form-urlencoded; charset=utf-8"),
    ):  # fmt: skip
        await gateway.invoke(data=b'{"name":"ada"}', headers={"content-type": said})
        assert gateway.double.calls[-1].input.content_type == understood
    await gateway.call("POST", "/fn/hello", data=b"a=1", headers={"content-type": "application/x-www-form-urlencoded"})
    assert gateway.double.calls[-1].input.content_type == "application/x-www-form-urlencoded"


async def test_the_callers_trace_is_kept(gateway):
    await gateway.deploy()
    trace = "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"
    _, _, headers = await gateway.invoke(headers={"traceparent": trace})
    assert headers["traceparent"][:35] == trace[:35]


async def test_an_async_call_is_a_job_to_look_up(gateway):
    await gateway.deploy()
    status, body, headers = await gateway.invoke(headers={"prefer": "respond-async"})
    assert status == 202
    job = body["job"]
    assert headers["location"] == f"/v1/jobs/{job}"
    status, body, _ = await gateway.call("GET", f"/v1/jobs/{job}?wait=10")
    assert status == 200
    assert {
        "job",
        "function",
        "version",
        "state",
        "reason",
        "attempts",
        "start",
        "timings",
        "usage",
        "result",
        "trace_id",
    } <= set(body)
    assert (body["state"], body["result"], body["lane"]) == ("SUCCESS", {"n": 1}, "async")


async def test_a_pending_job_shows_its_state_and_waits(gateway):
    gateway.double.placed = False
    await gateway.deploy()
    _, body, _ = await gateway.invoke(headers={"prefer": "respond-async"})
    status, shown, _ = await gateway.call("GET", f"/v1/jobs/{body['job']}")
    assert (status, shown["state"], shown["version"]) == (200, "PENDING", 1)
    waiting = asyncio.ensure_future(gateway.call("GET", f"/v1/jobs/{body['job']}?wait=20"))
    call: Call = gateway.double.calls[0]
    await gateway.double._run(call, b"{}", "")
    assert (await waiting)[1]["state"] == "SUCCESS"


@pytest.mark.parametrize(
    ("reason", "status", "code"),
    [
        (Reason.ERROR, 502, "E_FUNCTION_ERROR"), (Reason.OOM, 502, "E_FUNCTION_OOM"),
        (Reason.RESOURCE, 502, "E_FUNCTION_RESOURCE"),
        (Reason.BAD_RESULT, 502, "E_FUNCTION_BAD_RESULT"), (Reason.TIMEOUT, 504, "E_FUNCTION_TIMEOUT"),
        (Reason.CANCELLED, 409, "E_CANCELLED"), (Reason.RECURSION, 508, "E_RECURSION"), (Reason.LOST, 502, "E_FUNCTION_LOST"),
        (Reason.IMAGE, 503, "E_IMAGE"), (Reason.REJECTED, 503, "E_REJECTED"),
    ],
)  # fmt: skip
async def test_a_failed_call_says_why(gateway, reason, status, code):
    async def fail(call, body):
        return Outcome(reason=reason, failure=Failure(type="KeyError", message="'x'", traceback="main.py, line 2"))

    gateway.double.work = fail
    await gateway.deploy()
    got, body, headers = await gateway.invoke()
    assert (got, body["code"]) == (status, code)
    assert headers["content-type"] == "application/problem+json"
    assert body["traceback"] == "main.py, line 2"
    assert set(body) >= {"type", "title", "status", "detail", "code", "fix"}
    assert headers["x-hearth-job"]


async def test_an_unknown_function_and_a_wrong_method(gateway):
    status, body, _ = await gateway.invoke("nothing")
    assert (status, body["code"]) == (404, "E_FUNCTION_NOT_FOUND")
    for name in ("Bad.Name", "a%20b", "%2e%2e", "x" * 80, "*", "a>b", "%0d%0a"):
        status, body, _ = await gateway.invoke(name)
        assert status == 404, name
    status, body, headers = await gateway.call("GET", "/v1/functions/hello/invoke")
    assert (status, body["code"], headers["allow"]) == (405, "E_METHOD_NOT_ALLOWED", "POST")


async def test_as_plain_http(gateway):
    async def work(call: Call, body: bytes) -> Outcome:
        assert call.http is not None
        seen = {"method": call.http.method, "path": call.http.path, "query": call.http.query, "headers": dict(call.http.headers)}
        headers = (
            ("content-type", "text/html"),
            ("X-Mine", "1"),
            ("x-hearth-job", "forged"),
            ("set-cookie", "a=b"),
            ("set-cookie", "c=d"),
        )
        return Outcome(json.dumps({**seen, "body": body.decode()}).encode(), http_status=418, http_headers=headers)

    gateway.double.work = work
    await gateway.deploy()
    status, body, headers = await gateway.call("PATCH", "/fn/hello/a/b%20c?x=1&y=2", data=b"hi", headers={"x-own": "z"})
    seen = json.loads(body)
    assert status == 418
    assert (seen["method"], seen["path"], seen["query"], seen["body"]) == ("PATCH", "/a/b c", "x=1&y=2", "hi")
    assert seen["headers"]["x-own"] == "z"
    assert "x-api-key" not in seen["headers"]
    assert headers["content-type"] == "text/html"
    assert headers["x-mine"] == "1"
    assert headers["x-hearth-job"].startswith("hello-")
    assert headers.getall("set-cookie") == ["a=b", "c=d"]


@pytest.mark.parametrize(
    ("status", "headers"), [(99, ()), (700, ()), (200, (("a\r\nb", "c"),)), (200, (("a", "b\r\nc: d"),)), (200, (("", "x"),))]
)
async def test_what_a_function_may_not_say_over_http(gateway, status, headers):
    async def work(call, body):
        return Outcome(b"x", http_status=status, http_headers=headers)

    gateway.double.work = work
    await gateway.deploy()
    got, body, _ = await gateway.call("GET", "/fn/hello/")
    assert (got, body["code"]) == (502, "E_FUNCTION_BAD_RESULT")


async def test_head_and_no_content(gateway):
    async def work(call, body):
        return Outcome(b"abc" if call.http.method == "HEAD" else b"", http_status=200 if call.http.method == "HEAD" else 204)

    gateway.double.work = work
    await gateway.deploy()
    assert (await gateway.call("HEAD", "/fn/hello/"))[0] == 200
    assert (await gateway.call("DELETE", "/fn/hello/x"))[0] == 204
    assert (await gateway.call("HEAD", "/fn/hello/"))[0] == 200  # the connection is still whole


async def test_an_event_stream_tells_states_logs_and_the_result(gateway):
    async def work(call: Call, body: bytes) -> Outcome:
        await gateway.double.state(call, State.PROCESSING, phase=1)
        await gateway.double.log(call, b"one\n")
        await gateway.double.state(call, State.PROCESSING, phase=2)
        await gateway.double.log(call, b"two\n", 1)
        return Outcome(b'{"ok":true}')

    gateway.double.work = work
    await gateway.deploy()
    status, body, headers = await gateway.invoke(headers={"accept": "text/event-stream"})
    assert status == 200
    assert headers["content-type"].startswith("text/event-stream")
    events = parse_sse(body)
    assert [e["event"] for e in events if e["event"] == "log"] == ["log", "log"]
    assert "".join(e["data"]["text"] for e in events if e["event"] == "log") == "one\ntwo\n"
    assert events[0]["data"]["state"] == "PENDING"
    assert [e["data"]["phase"] for e in events if e["event"] == "state"] == sorted(
        e["data"]["phase"] for e in events if e["event"] == "state"
    )
    assert events[-1]["event"] == "result"
    assert events[-1]["data"]["result"] == {"ok": True}
    assert sum(e["event"] == "result" for e in events) == 1


def parse_sse(raw: bytes) -> list[dict]:
    events = []
    for block in raw.decode().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if line and not line.startswith(":"))
        if fields:
            events.append({**fields, "data": json.loads(fields["data"])})
    return events


async def test_large_bodies_go_by_reference_both_ways(gateway):
    data = bytes(range(256)) * 3600
    await gateway.deploy()
    status, body, headers = await gateway.invoke(data=data, headers={"content-type": "application/octet-stream"})
    assert status == 200
    assert body == data
    assert headers["content-length"] == str(len(data))
    call = gateway.double.calls[0]
    assert call.input.object
    assert call.input.size == len(data)
    # And the raw result of the finished job:
    await asyncio.sleep(0)
    status, body, _ = await gateway.call("GET", f"/v1/jobs/{call.job}/result?wait=5")
    assert (status, body) == (200, data)
    _, shown, _ = await gateway.call("GET", f"/v1/jobs/{call.job}")
    assert shown["result"] is None
    assert shown["result_ref"]["size"] == len(data)


async def test_a_full_queue_is_refused_at_once(gateway, eventually):
    await gateway.deploy(queue={"depth": 3})
    gateway.double.waiting = {"default.hello": 3}

    async def refused():
        status, body, headers = await gateway.invoke()
        return status == 429 and body["code"] == "E_QUEUE_FULL" and int(headers["retry-after"]) >= 1

    await eventually(refused)
    gateway.double.waiting = {"default.hello": 2}

    async def taken():
        return (await gateway.invoke())[0] == 200

    await eventually(taken)


async def test_between_two_reports_what_is_held_beyond_all_slots_counts_as_waiting(gateway, eventually):
    gateway.double.slots = 2
    gateway.double.placed = False
    gateway.double.said()
    await gateway.deploy(queue={"depth": 3})

    async def two_slots():
        _, body, _ = await gateway.call("GET", "/v1/system")
        return body["executors"][0]["slots"] == 2

    await eventually(two_slots)
    held = [asyncio.ensure_future(gateway.invoke()) for _ in range(30)]

    await eventually(lambda: sum(task.done() for task in held) == 25)
    assert {task.result()[0] for task in held if task.done()} == {429}
    for call in list(gateway.double.calls):
        await gateway.double._run(call, b"{}", "")
    assert sorted(status for status, _, _ in await asyncio.gather(*held)) == [200] * 5 + [429] * 25


async def test_bodies_that_lie_about_their_length(gateway):
    await gateway.deploy()
    for head, expected in (
        (b"content-length: 11000000000\r\n", b"413"),
        (b"content-length: abc\r\n", b"400"),
        (b"content-length: -1\r\n", b"400"),
        (b"content-length: 5\r\ntransfer-encoding: chunked\r\n", b"400"),
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(
            b"POST /v1/functions/hello/invoke HTTP/1.1\r\nhost: x\r\nx-api-key: "
            + gateway.key.encode()
            + b"\r\n"
            + head
            + b"\r\n"
        )
        line = await reader.readline()
        assert line.split()[1] == expected, (head, line)
        writer.close()


async def test_a_compressed_body_is_not_taken(gateway):
    await gateway.deploy()
    status, body, _ = await gateway.invoke(headers={"content-encoding": "gzip"})
    assert (status, body["code"]) == (415, "E_UNSUPPORTED_BODY")
    status, _, _ = await gateway.call("PUT", "/v1/functions/hello", data=b"x", headers={"content-encoding": "gzip"})
    assert status == 415


async def test_the_caller_may_leave_and_the_call_goes_on(gateway, eventually):
    go = asyncio.Event()

    async def work(call, body):
        await go.wait()
        return Outcome(b'"done"')

    gateway.double.work = work
    await gateway.deploy()
    _, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(
        b"POST /v1/functions/hello/invoke HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\nx-api-key: "
        + gateway.key.encode()
        + b"\r\n\r\n{}"
    )
    await eventually(lambda: gateway.double.calls)
    writer.close()
    go.set()
    job = gateway.double.calls[0].job

    async def recorded():
        status, body, _ = await gateway.call("GET", f"/v1/jobs/{job}?wait=5")
        return status == 200 and body["state"] == "SUCCESS"

    await eventually(recorded)

    async def nothing_held():
        return (await gateway.call("GET", "/v1/system"))[1]["held_calls"] == 0

    await eventually(nothing_held)


@pytest.mark.parametrize(
    ("target", "headers"),
    [
        ("/fn/hello/?" + "\\" * 7000, {}),
        ("/fn/hello/", {"x-a": '"' * 3500, "x-b": '"' * 3500}),
        ("/fn/hello/?" + "q" * 5000, {"x-a": "a" * 7900}),
        ("/fn/hello/", {"content-type": "text/plain; a=" + "b" * 250}),
    ],
)
async def test_what_would_not_fit_a_record_is_refused_before_it_runs(gateway, target, headers):
    await gateway.deploy()
    status, body, _ = await gateway.call("POST", target, data=b"hi", headers=headers)
    assert status == 400
    detail = body["detail"]
    assert str(bounds.HTTP_REQUEST_BYTES_MAX) in detail or str(bounds.CONTENT_TYPE_BYTES_MAX) in detail


async def test_a_long_query_and_headers_that_fit_are_passed_on(gateway):
    await gateway.deploy()
    status, _, _ = await gateway.call("POST", "/fn/hello/?" + "q" * 4000, data=b"hi", headers={"x-a": "a" * 7000})
    assert status == 200
