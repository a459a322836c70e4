"""Every call is addressable: events, logs, trace, cancel, replay, idempotency, tenants."""

import asyncio
import json
import time

import pytest
from platform_double import Outcome

from hearth_contracts import names, streams, subjects
from hearth_contracts.calls import ArchiveQuery, Call, Record
from hearth_contracts.enums import Reason, State

pytestmark = pytest.mark.broker


def parse_sse(raw: bytes) -> list[dict]:
    events = []
    for block in raw.decode().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if line and not line.startswith(":"))
        if fields:
            events.append({**fields, "data": json.loads(fields["data"])})
    return events


async def submitted(gateway, **options) -> str:
    status, body, _ = await gateway.invoke(headers={"prefer": "respond-async", **options.pop("headers", {})}, **options)
    assert status == 202, body
    return body["job"]


async def test_events_of_a_finished_job_and_going_on_after_a_break(gateway):
    async def work(call: Call, body: bytes) -> Outcome:
        await gateway.double.state(call, State.PROCESSING, phase=2)
        await gateway.double.state(call, State.PROCESSING, phase=1)  # late, and told in its place
        await gateway.double.log(call, b"a\n")
        await gateway.double.log(call, b"b\n", 1)
        return Outcome(b"1", log=b"a\nb\n")

    gateway.double.work = work
    await gateway.deploy()
    job = await submitted(gateway)
    await gateway.call("GET", f"/v1/jobs/{job}?wait=10")
    status, raw, _ = await gateway.call("GET", f"/v1/jobs/{job}/events")
    events = parse_sse(raw)
    assert status == 200
    assert [(e["data"]["state"], e["data"]["phase"]) for e in events if e["event"] == "state"] == [
        ("PENDING", 0), ("PROCESSING", 1), ("PROCESSING", 2),
    ]  # fmt: skip
    assert [e["data"]["text"] for e in events if e["event"] == "log"] == ["a\n", "b\n"]
    assert events[-1]["event"] == "result"
    assert events[-1]["data"]["state"] == "SUCCESS"

    after_first_log = next(e["id"] for e in events if e["event"] == "log")
    _, raw, _ = await gateway.call("GET", f"/v1/jobs/{job}/events", headers={"last-event-id": after_first_log})
    assert [(e["event"], e["data"].get("text")) for e in parse_sse(raw)] == [("log", "b\n"), ("result", None)]

    status, raw, _ = await gateway.call("GET", f"/v1/jobs/{job}/events", headers={"last-event-id": "final"})
    assert (status, raw) == (204, b"")
    status, _, _ = await gateway.call("GET", f"/v1/jobs/{job}/events", headers={"last-event-id": "nonsense.x"})
    assert status == 200


async def test_logs_appear_while_the_function_runs(gateway, eventually):
    go = asyncio.Event()

    async def work(call: Call, body: bytes) -> Outcome:
        await gateway.double.log(call, b"early\n")
        await go.wait()
        await gateway.double.log(call, b"late\n", 1)
        return Outcome(b"1", log=b"early\nlate\n")

    gateway.double.work = work
    await gateway.deploy()
    job = await submitted(gateway)
    async with gateway.http.get(f"{gateway.url}/v1/jobs/{job}/logs", headers=gateway.headers()) as response:
        assert await asyncio.wait_for(response.content.readany(), 5) == b"early\n"
        go.set()
        assert await asyncio.wait_for(response.content.read(), 5) == b"late\n"
    await gateway.call("GET", f"/v1/jobs/{job}?wait=10")
    assert (await gateway.call("GET", f"/v1/jobs/{job}/logs"))[1] == b"early\nlate\n"


async def test_the_raw_result_waits_and_tells_when_there_is_none(gateway):
    gateway.double.placed = False
    await gateway.deploy()
    job = await submitted(gateway, data=b"[1, 2]")
    status, body, headers = await gateway.call("GET", f"/v1/jobs/{job}/result")
    assert (status, body["code"], headers["retry-after"]) == (409, "E_JOB_NOT_FINISHED", "1")
    await gateway.double._run(gateway.double.calls[0], b"[1, 2]", "")
    status, body, _ = await gateway.call("GET", f"/v1/jobs/{job}/result")
    assert (status, body) == (200, [1, 2])
    assert (await gateway.call("GET", f"/v1/jobs/{job}/outputs"))[1] == {"outputs": []}


async def test_cancel_writes_the_final_first_and_then_tells_the_executors(gateway, eventually):
    gateway.double.placed = False
    await gateway.deploy()
    job = await submitted(gateway, data=b'{"keep":"me"}')
    status, body, _ = await gateway.call("DELETE", f"/v1/jobs/{job}")
    assert (status, body["state"], body["reason"]) == (200, "FAILED", "cancelled")
    await eventually(lambda: [control.job for control in gateway.double.controls] == [job])
    assert gateway.double.controls[0].verb == "cancel"
    stored = await gateway.bus.get_last(streams.RECORDS.name, subjects.record("default", job))
    record = stored.message.meta(Record)
    assert record.ending.reason is Reason.CANCELLED
    assert record.parts(stored.message.body)[0] == b'{"keep":"me"}'  # found where it waits, so that it can be replayed
    status, body, _ = await gateway.call("DELETE", f"/v1/jobs/{job}")
    assert (status, body["code"]) == (409, "E_JOB_FINISHED")
    gateway.double.placed = True
    # What the executor finishes afterwards changes nothing.
    await gateway.double._run(gateway.double.calls[0], b"{}", "")
    assert (await gateway.call("GET", f"/v1/jobs/{job}"))[1]["reason"] == "cancelled"


async def test_what_a_cancelled_job_printed_is_still_there(gateway):
    gateway.double.placed = False
    await gateway.deploy()
    job = await submitted(gateway)
    await gateway.double.log(gateway.double.calls[0], b"half way\n")
    await gateway.call("DELETE", f"/v1/jobs/{job}")
    for asked in ("", "?follow=0"):
        assert (await gateway.call("GET", f"/v1/jobs/{job}/logs{asked}"))[:2] == (200, b"half way\n")


async def test_cancelling_a_sync_call_answers_its_caller(gateway, eventually):
    go = asyncio.Event()

    async def work(call, body):
        await go.wait()
        return Outcome(b"1")

    gateway.double.work = work
    await gateway.deploy()
    waiting = asyncio.ensure_future(gateway.invoke())
    await eventually(lambda: gateway.double.calls)
    job = gateway.double.calls[0].job
    assert (await gateway.call("GET", f"/v1/jobs/{job}"))[1]["state"] == "PENDING"
    assert (await gateway.call("DELETE", f"/v1/jobs/{job}"))[0] == 200
    status, body, _ = await waiting
    assert (status, body["code"]) == (409, "E_CANCELLED")
    go.set()
    assert (await gateway.call("GET", f"/v1/jobs/{job}"))[1]["reason"] == "cancelled"


async def test_replay_is_a_new_job_with_the_same_input(gateway):
    await gateway.deploy()
    job = await submitted(gateway, data=b'{"n":42}')
    await gateway.call("GET", f"/v1/jobs/{job}?wait=10")
    status, body, headers = await gateway.call("POST", f"/v1/jobs/{job}/replay")
    assert status == 202
    assert body["job"] != job
    assert headers["location"] == f"/v1/jobs/{body['job']}"
    _, again, _ = await gateway.call("GET", f"/v1/jobs/{body['job']}?wait=10")
    assert (again["result"], again["replay_of"]) == ({"n": 42}, job)


async def test_replay_of_a_large_input_takes_its_own_copy(gateway):
    await gateway.deploy()
    data = b"x" * 600_000
    _, _, headers = await gateway.invoke(data=data, headers={"content-type": "text/plain"})
    job = headers["x-hearth-job"]
    await gateway.call("GET", f"/v1/jobs/{job}?wait=10")
    _, body, _ = await gateway.call("POST", f"/v1/jobs/{job}/replay")
    await gateway.call("GET", f"/v1/jobs/{body['job']}?wait=10")
    call = gateway.double.calls[-1]
    assert call.input.object != gateway.double.calls[0].input.object
    assert (await gateway.call("GET", f"/v1/jobs/{body['job']}/result"))[1] == data


async def test_a_trace_is_shown_and_derived_where_there_is_none(gateway, eventually):
    await gateway.deploy()
    trace = "00-" + "12" * 16 + "-" + "34" * 8 + "-01"
    _, _, headers = await gateway.invoke(headers={"traceparent": trace})
    job = headers["x-hearth-job"]

    async def spans():
        _, body, _ = await gateway.call("GET", f"/v1/jobs/{job}/trace")
        return body if len(body.get("spans", ())) >= 2 and not body["derived"] else None

    body = await eventually(spans)
    assert body["trace_id"] == "12" * 16
    server = next(span for span in body["spans"] if span["name"] == "POST /v1/functions/{name}/invoke")
    sent = next(span for span in body["spans"] if span["name"] == "send hearth.v1.calls")
    assert server["parent"] == "34" * 8
    assert sent["parent"] == server["span_id"]
    assert server["attributes"]["faas.invocation_id"] == job

    unsampled = "00-" + "56" * 16 + "-" + "78" * 8 + "-00"
    _, _, headers = await gateway.invoke(headers={"traceparent": unsampled})
    job = headers["x-hearth-job"]
    await gateway.call("GET", f"/v1/jobs/{job}?wait=5")
    _, body, _ = await gateway.call("GET", f"/v1/jobs/{job}/trace")
    assert body["derived"] is True
    assert {"service", "name", "start", "duration", "attributes", "parent", "links"} <= set(body["spans"][0])


@pytest.mark.parametrize("prefer", ["respond-async", ""])
async def test_the_same_idempotency_key_is_the_same_job(gateway, prefer):
    await gateway.deploy()
    headers = {"idempotency-key": "abc-1", "prefer": prefer}
    first = await gateway.invoke(data=b"[1]", headers=headers)
    again = await gateway.invoke(data=b"[1]", headers=headers)
    assert first[0] == again[0] == (202 if prefer else 200)
    assert first[2]["x-hearth-job"] == again[2]["x-hearth-job"]
    assert first[1] == again[1]
    await gateway.call("GET", f"/v1/jobs/{first[2]['x-hearth-job']}?wait=10")
    assert len(gateway.double.calls) == 1
    status, body, _ = await gateway.invoke(data=b"[2]", headers=headers)
    assert (status, body["code"]) == (422, "E_IDEMPOTENCY_MISMATCH")
    other = await gateway.tenant_key("other")
    await gateway.deploy(key=other)
    status, _, headers2 = await gateway.invoke(data=b"[1]", headers=headers, key=other)
    assert headers2["x-hearth-job"] != first[2]["x-hearth-job"]


async def test_repeats_while_the_call_runs_join_it(gateway, eventually):
    go = asyncio.Event()

    async def work(call, body):
        await go.wait()
        return Outcome(b'"once"')

    gateway.double.work = work
    await gateway.deploy()
    calls = [asyncio.ensure_future(gateway.invoke(headers={"idempotency-key": "k"})) for _ in range(5)]
    await eventually(lambda: gateway.double.calls)
    go.set()
    answers = await asyncio.gather(*calls)
    assert {(status, body) for status, body, _ in answers} == {(200, "once")}
    assert len({headers["x-hearth-job"] for _, _, headers in answers}) == 1
    assert len(gateway.double.calls) == 1


async def test_a_repeat_whose_job_never_got_away_is_submitted_under_the_same_id(gateway):
    await gateway.deploy()
    headers = {"idempotency-key": "lost", "prefer": "respond-async"}
    job = await submitted(gateway, data=b"[1]", headers=headers)
    await gateway.call("GET", f"/v1/jobs/{job}?wait=10")
    # As if the gateway had died after claiming the key: nothing is known of the job.
    for stream in ("RECORDS", "STATES", "JOBS"):
        await gateway.bus.purge(stream)
    assert await submitted(gateway, data=b"[1]", headers=headers) == job


async def test_another_tenants_id_finds_nothing_on_any_route(gateway, eventually):
    """The routes come from the OpenAPI document, so that a new one is covered the day it is added."""
    await gateway.deploy()
    job = await submitted(gateway)
    await gateway.call("GET", f"/v1/jobs/{job}?wait=10")
    gateway.double.placed = False
    pending = await submitted(gateway)
    before = len(gateway.double.calls)
    waiting = asyncio.ensure_future(gateway.invoke())  # and one that is held here, with nothing durable yet
    await eventually(lambda: len(gateway.double.calls) > before)
    held = gateway.double.calls[-1].job
    other = await gateway.tenant_key("other")
    _, document, _ = await gateway.call("GET", "/openapi.json")
    tried = 0
    for path, operations in document["paths"].items():
        if "{" not in path or path in ("/v1/events/{subject}", "/v1/keys/{prefix}"):
            continue
        for method in operations:
            if (method, path) == ("put", "/v1/functions/{name}"):
                continue  # deploys into the caller's own tenant, whatever the name
            for job_id in (job, pending, held):
                address = path.replace("{job}", job_id).replace("{name}", "hello").replace("{path}", "x")
                status, _, _ = await gateway.call(method.upper(), address, key=other)
                assert status == 404, f"{method} {path} -> {status}"
                tried += 1
    assert tried >= 30
    assert (await gateway.call("GET", f"/v1/jobs/{held}"))[0] == 200
    await gateway.call("DELETE", f"/v1/jobs/{held}")
    assert (await waiting)[0] == 409
    assert (await gateway.call("GET", f"/v1/jobs/{job}"))[0] == 200
    # Nor does a well-formed id that never was, nor nonsense:
    for job_id in (names.new_job("hello", 1_700_000_000), "x", "hello-", "..%2f", "a" * 300, "*", ">"):
        assert (await gateway.call("GET", f"/v1/jobs/{job_id}"))[0] == 404


async def test_what_has_not_ended_is_listed_first(gateway):
    await gateway.deploy()
    await gateway.deploy("other")
    gateway.double.placed = False
    jobs = [(await gateway.invoke(headers={"prefer": "respond-async"}))[1]["job"] for _ in range(3)]
    _, body, _ = await gateway.call("GET", "/v1/jobs")
    assert [(row["job"], row["state"], row["lane"]) for row in body["jobs"]] == [
        (job, "PENDING", "async") for job in reversed(jobs)
    ]
    for asked, expected in (
        ("limit=2", [jobs[2], jobs[1]]), ("function=other", []), ("state=SUCCESS", []), ("state=pending&function=hello", jobs[::-1]),
        ("until=1", []), ("cursor=1.0~x", []),
    ):  # fmt: skip
        _, body, _ = await gateway.call("GET", f"/v1/jobs?{asked}")
        assert [row["job"] for row in body["jobs"]] == expected, asked
    theirs = await gateway.tenant_key("acme")
    assert (await gateway.call("GET", "/v1/jobs", key=theirs))[1]["jobs"] == []
    await gateway.call("DELETE", f"/v1/jobs/{jobs[0]}")
    _, body, _ = await gateway.call("GET", "/v1/jobs")
    assert [row["job"] for row in body["jobs"]] == [jobs[2], jobs[1]]


async def test_a_parameter_that_nobody_knows_is_refused_with_the_nearest(gateway):
    for asked, hint in (("bogus=1", "known parameters: function, state"), ("stat=FAILED", "did you mean state?")):
        status, body, _ = await gateway.call("GET", f"/v1/jobs?{asked}")
        assert (status, body["code"]) == (400, "E_BAD_REQUEST"), asked
        assert hint in body["fix"]
        assert asked.split("=")[0] in body["detail"]


async def test_history_is_asked_by_times_as_people_write_them(gateway):
    heard = []
    for answering in gateway.double.answering:
        await answering.stop()

    def answer(message):
        heard.append(message.meta(ArchiveQuery))
        message.respond(b'{"jobs":[],"next":""}')

    await gateway.bus.subscribe(subjects.ARCHIVE, answer)
    for since in ("1767225600", "2026-01-01T00:00:00Z", "2026-01-01T01:00:00%2B01:00", "2026-01-01T01:00:00+01:00"):
        assert (await gateway.call("GET", f"/v1/jobs?since={since}&until=2026-01-02T00:00:00Z"))[0] == 200, since
    assert [(query.since, query.until) for query in heard] == [(1767225600.0, 1767312000.0)] * 4
    for wrong in ("yesterday", "2026-01-01", "2026-01-01T00:00:00", "nan"):
        assert (await gateway.call("GET", f"/v1/jobs?since={wrong}"))[0] == 400, wrong


async def test_a_job_that_a_store_may_hold_but_cannot_read_is_not_said_to_be_missing(gateway):
    for answering in gateway.double.answering:
        await answering.stop()
    said = {"Hearth-Error": "E_STORE_UNREADABLE"}
    await gateway.bus.subscribe(subjects.ARCHIVE, lambda message: message.respond(b'{"error":"local: away"}', said))
    job = names.new_job("hello", time.time())
    for path in (f"/v1/jobs/{job}", f"/v1/jobs/{job}/result", "/v1/jobs"):
        status, body, headers = await gateway.call("GET", path)
        assert (status, body["code"]) == (503, "E_ARCHIVE_AWAY"), path
        assert headers["content-type"] == "application/problem+json"
        assert int(headers["retry-after"]) > 0


async def test_history_comes_from_the_archive(gateway):
    status, body, _ = await gateway.call("GET", "/v1/jobs?function=hello&state=success&limit=10")
    assert (status, body) == (200, {"jobs": [], "next": ""})
    for wrong in ("state=maybe", "limit=0", "limit=x", "function=A.B", "since=nan"):
        assert (await gateway.call("GET", f"/v1/jobs?{wrong}"))[0] == 400, wrong
