"""Repeats under a caller's own key, when what came of the first call is hard to find."""

import asyncio

import pytest
from platform_double import Outcome

from hearth_contracts import streams, subjects
from hearth_gateway.domain import dispatch
from hearth_gateway.http.invoke import _asks_events

pytestmark = pytest.mark.broker

KEY = {"idempotency-key": "k"}
ASYNC = {**KEY, "prefer": "respond-async"}


async def gone(gateway) -> str:
    """A call that has ended and left the broker."""
    status, _, headers = await gateway.invoke(headers=KEY)
    assert status == 200
    job = headers["x-hearth-job"]
    await gateway.call("GET", f"/v1/jobs/{job}?wait=10")
    for stream in ("RECORDS", "STATES", "REPLIES"):
        await gateway.bus.purge(stream)
    return job


async def unanswered(gateway) -> None:
    for answering in gateway.double.answering:
        await answering.stop()
    gateway.double.answering.clear()


@pytest.mark.parametrize("says", ["nothing", "unreadable"])
@pytest.mark.parametrize("wanted", [KEY, ASYNC])
async def test_while_the_archive_cannot_tell_nothing_is_submitted(gateway, says, wanted):
    await gateway.deploy()
    job = await gone(gateway)
    await unanswered(gateway)
    if says == "unreadable":
        said = {"Hearth-Missing": "1", "Hearth-Error": "E_STORE_UNREADABLE"}
        await gateway.bus.subscribe(subjects.ARCHIVE, lambda message: message.respond(b"", said))
    status, body, headers = await asyncio.wait_for(gateway.invoke(headers=wanted), 15)
    assert (status, body["code"], headers["x-hearth-job"]) == (503, "E_ARCHIVE_AWAY", job)
    assert headers["retry-after"]
    assert headers["content-type"].startswith("application/problem+json")
    assert len(gateway.double.calls) == 1
    for stream in ("CALLS", "JOBS"):
        assert (await gateway.bus.stream_info(stream)).messages == 0


async def test_a_call_that_the_broker_swallows_and_nobody_has_is_published_again(gateway):
    """The archive is sure that it has no such job, and the broker still remembers its id."""
    await gateway.deploy()
    job = await gone(gateway)
    status, body, headers = await asyncio.wait_for(gateway.invoke(headers=KEY), 10)
    assert (status, body, headers["x-hearth-job"]) == (200, {"n": 1}, job)
    assert [(call.job, call.placement) for call in gateway.double.calls] == [(job, 0), (job, 1)]


async def test_so_is_a_job(gateway, eventually):
    await gateway.deploy()
    _, body, _ = await gateway.invoke(headers=ASYNC)
    await gateway.call("GET", f"/v1/jobs/{body['job']}?wait=10")
    for stream in ("RECORDS", "STATES"):
        await gateway.bus.purge(stream)
    assert (await gateway.invoke(headers=ASYNC))[0] == 202
    await eventually(lambda: [call.placement for call in gateway.double.calls] == [0, 1])
    # And its state is there again, though the broker had heard of one.
    assert await gateway.bus.get_last(streams.STATES.name, subjects.state("default", body["job"]))


async def test_a_pending_that_the_broker_swallows_is_said_again_if_it_is_gone(gateway):
    await gateway.deploy()
    gateway.double.placed = False
    _, body, _ = await gateway.invoke(headers=ASYNC)
    subject = subjects.state("default", body["job"])
    await gateway.bus.purge("STATES")
    assert (await gateway.invoke(headers=ASYNC))[0] == 202
    assert await gateway.bus.get_last(streams.STATES.name, subject)


async def test_what_waits_still_is_not_published_again(gateway, eventually):
    await gateway.deploy()
    gateway.double.placed = False
    assert (await gateway.invoke(headers=ASYNC))[0] == 202
    await gateway.bus.purge("STATES")
    assert (await gateway.invoke(headers=ASYNC))[0] == 202
    assert (await gateway.bus.stream_info("JOBS")).messages == 1
    assert {call.placement for call in gateway.double.calls} <= {0}


def test_a_late_repeat_is_placed_higher_than_any_before():
    placements = [dispatch.repeated(age_s) for age_s in (0, 29, 30, 599, 600, 1200, 86400)]
    assert placements == [0, 0, 1, 1, 2, 3, 145]


async def test_two_repeats_of_what_nobody_has_are_one_call(gateway, eventually):
    go = asyncio.Event()
    await gateway.deploy()
    job = await gone(gateway)

    async def work(call, body):
        await go.wait()
        return Outcome(b'"once more"')

    gateway.double.work = work
    repeats = [asyncio.ensure_future(gateway.invoke(headers=KEY)) for _ in range(4)]
    await eventually(lambda: len(gateway.double.calls) == 2)
    go.set()
    answers = await asyncio.wait_for(asyncio.gather(*repeats), 20)
    assert {(status, body, headers["x-hearth-job"]) for status, body, headers in answers} == {(200, "once more", job)}
    assert len(gateway.double.calls) == 2


async def test_a_refused_key_names_no_job(gateway):
    await gateway.deploy()
    assert (await gateway.invoke(headers=KEY))[0] == 200
    for data, key, expected in ((b"[2]", "k", 422), (b"[1]", "", 400), (b"[1]", "x" * 256, 400)):
        status, _, headers = await gateway.invoke(data=data, headers={"idempotency-key": key})
        assert status == expected
        assert "x-hearth-job" not in headers


async def test_a_full_queue_does_not_refuse_a_result_that_is_there(gateway, eventually):
    await gateway.deploy(queue={"depth": 1})
    status, body, headers = await gateway.invoke(headers=KEY)
    assert status == 200
    job = headers["x-hearth-job"]
    await gateway.call("GET", f"/v1/jobs/{job}?wait=10")
    gateway.double.waiting = {"default.hello": 5}

    async def full():
        return (await gateway.invoke())[0] == 429

    await eventually(full)
    again = await gateway.invoke(headers=KEY)
    assert (again[0], again[1], again[2]["x-hearth-job"]) == (200, body, job)
    status, _, headers = await gateway.invoke(headers={"idempotency-key": "another"})
    assert status == 429
    assert "x-hearth-job" not in headers
    gateway.double.waiting = {}

    async def room():
        return (await gateway.invoke(headers={"idempotency-key": "another"}))[0] == 200

    await eventually(room)


@pytest.mark.parametrize(
    ("accept", "asked"),
    [
        ("text/event-stream", True), ("TEXT/EVENT-STREAM", True), ("application/json, text/event-stream;q=0.5", True),
        ("text/event-stream; charset=utf-8", True), ("text/event-stream;q=0", False), ("text/event-stream; Q=0.000", False),
        ("text/event-streams", False), ("*/*", False), ("", False), ("text/event-stream;q=0.01", True),
    ],
)  # fmt: skip
def test_who_asks_for_events(accept, asked):
    assert _asks_events(accept.encode()) is asked
