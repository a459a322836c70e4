"""What an executor says while it works: logs, events, capacity, spans."""

import asyncio
import json

import pytest
from in_process import Calling
from placing import TENANT, until

from hearth_contracts import subjects
from hearth_contracts.calls import LogChunk
from hearth_contracts.enums import Lane
from hearth_executor.call_log import FLUSH_BYTES
from hearth_executor.settling import LOG_INLINE_BYTES_MAX
from hearth_kit.objects import Objects

pytestmark = pytest.mark.broker


async def _chunks(it, call) -> list[tuple[LogChunk, bytes]]:
    found, sequence = [], 1
    while (stored := await it.bus.get_next("LOGS", subjects.log(TENANT, call.job), sequence)) is not None:
        found.append((stored.message.meta(LogChunk), stored.message.body))
        sequence = stored.sequence + 1
    return found


async def test_what_a_function_prints_is_shown_while_it_runs_and_kept_in_its_record(start):
    go = asyncio.Event()

    async def talks(calling: Calling) -> bytes:
        calling.events.log("stdout", b"one\n")
        calling.events.log("stdout", b"two\n")
        calling.events.log("stderr", b"oh\n")
        await go.wait()
        calling.events.log("stdout", b"three\n")
        return b""

    async with start({"talks": talks}) as it:
        await it.place(call := it.call("talks"))
        shown = await until(lambda: _chunks(it, call))
        assert await it.stored_record(call) is None
        go.set()
        record, content = await it.record(call)
        await it.settled()
        chunks = await _chunks(it, call)
    assert [(meta.stream, body) for meta, body in shown] == [("stdout", b"one\ntwo\n"), ("stderr", b"oh\n")]
    assert [meta.number for meta, _ in chunks] == [0, 1, 2]
    assert record.parts(content)[2] == b"one\ntwo\noh\nthree\n"
    assert not record.log_truncated


async def test_much_output_is_shown_in_pieces_at_once(start):
    async def floods(calling: Calling) -> bytes:
        for _ in range(8):
            calling.events.log("stdout", b"x" * (FLUSH_BYTES // 2))
        return b""

    async with start({"floods": floods}) as it:
        await it.place(call := it.call("floods"))
        await it.record(call)
        chunks = await _chunks(it, call)
    assert [len(body) for _, body in chunks] == [FLUSH_BYTES] * 4


async def test_a_log_stops_at_its_cap_and_the_record_says_so(start, bus):
    async def floods(calling: Calling) -> bytes:
        for _ in range(20):
            calling.events.log("stdout", b"y" * 100_000)
        return b"ok"

    async with start({"floods": floods}) as it:
        await it.place(call := it.call("floods"))
        record, content = await it.record(call)
        await it.settled()
    assert record.log_truncated
    assert record.log.size == 1024 * 1024 > LOG_INLINE_BYTES_MAX
    assert record.parts(content) == (b"{}", b"ok", b"")
    assert len(await Objects(bus).get("bodies", record.log.object)) == 1024 * 1024


async def test_an_emitted_event_is_on_the_bus_before_the_function_goes_on(start):
    seen = []

    async def emits(calling: Calling) -> bytes:
        await calling.events.emit("camera.front", b'{"n":1}', "application/json")
        seen.append(await it.bus.get_last("EVENTS", subjects.event(TENANT, "camera.front")))
        try:
            await calling.events.emit("not a.subject", b"", "application/json")
        except ValueError as error:
            return str(error).encode()
        return b"no error"

    async with start({"emits": emits}) as it:
        await it.place(call := it.call("emits", depth=3))
        _, body = await it.reply(call)
    event = seen[0].message
    assert event.body == b'{"n":1}'
    assert (event.headers["Hearth-Source"], event.headers["Hearth-Depth"]) == (call.job, "4")
    assert event.headers["Content-Type"] == "application/json"
    assert b"event subject" in body


async def test_capacity_is_told_first_then_on_change_and_never_more_than_one_per_ten_milliseconds(start):
    async def quick(calling: Calling) -> bytes:
        return b""

    async with start({"quick": quick}, labels="zone=edge") as it:
        first = await until(lambda: it.capacity[0] if it.capacity else None)
        calls = [it.call("quick") for _ in range(200)]
        loop = asyncio.get_running_loop()
        began, before = loop.time(), len(it.capacity)
        for call in calls:
            await it.place(call)
        await it.settled()
        took = loop.time() - began
        reports = len(it.capacity) - before
        report = await until(lambda: it.capacity[-1] if it.capacity[-1].calls == 200 else None)
    assert (first.executor, first.name, first.slots, first.free) == (it.id, "executor-1", 4, 4)
    assert (first.labels, first.runtimes, first.backends) == ({"zone": "edge"}, ("python",), ("in-process",))
    assert reports <= took / 0.010 + 2
    assert (report.free, report.running, report.epoch) == (4, 0, 1)
    assert report.warm == report.assigned
    assert report.warm["acme.quick.1"] == len(it.backend.made)
    info = await it.bus.stream_info("RUNS_SYNC")
    assert report.accepted_sync == info.last_sequence
    assert report.queue_room > 0


async def test_a_busy_unit_is_assigned_but_not_warm_and_a_slow_function_leaves_no_room(start):
    go = asyncio.Event()

    async def slow(calling: Calling) -> bytes:
        await go.wait()
        return b""

    async with start({"slow": slow}) as it:
        await it.place(it.call("slow"))
        report = await until(lambda: it.capacity[-1] if it.capacity and it.capacity[-1].running else None)
        go.set()
    assert (report.free, report.running, report.queue_room) == (3, 1, 0)
    assert (report.warm, report.assigned) == ({}, {"acme.slow.1": 1})


async def test_capacity_is_repeated_when_nothing_happens(start):
    async with start({}) as it:
        await until(lambda: len(it.capacity) >= 3 or None)


async def _spans(it, trace: str) -> dict[str, dict]:
    await it.tracer.flush()
    stored = await it.bus.get_last("TRACES", subjects.trace(trace))
    return {span["name"]: span for span in json.loads(stored.message.body)}


async def test_the_spans_of_a_sync_call_hang_below_its_caller(start):
    contexts = []

    async def echo(calling: Calling) -> bytes:
        contexts.append(calling.invocation.traceparent)
        return b""

    trace, parent = "a" * 32, "b" * 16
    async with start({"echo": echo}) as it:
        await it.place(call := it.call("echo"), traceparent=f"00-{trace}-{parent}-01")
        await it.record(call)
        await it.settled()
        record = (await it.stored_record(call)).message
        spans = await _spans(it, trace)
    process = spans["process hearth.v1.runs_sync"]
    assert set(spans) == {
        "process hearth.v1.runs_sync", "wait for a slot", "cold start", "cold: create", "cold: code", "cold: import",
        "function echo", "send hearth.v1.replies", "record",
    }  # fmt: skip
    assert (process["parent"], process["kind"], process["links"]) == (parent, "consumer", [])
    below = {name for name, span in spans.items() if span["parent"] == process["span_id"]}
    assert below == {"wait for a slot", "cold start", "function echo", "send hearth.v1.replies", "record"}
    assert spans["cold: code"]["parent"] == spans["cold start"]["span_id"]
    assert contexts == [f"00-{trace}-{spans['function echo']['span_id']}-01"]
    assert record.traceparent == f"00-{trace}-{spans['record']['span_id']}-01"
    for span in spans.values():
        assert process["start"] <= span["start"] <= span["end"] <= process["end"]


async def test_the_spans_of_an_async_run_link_to_where_it_came_from(start):
    async def echo(calling: Calling) -> bytes:
        return b""

    trace, parent = "c" * 32, "d" * 16
    async with start({"echo": echo}) as it:
        await it.place(call := it.call("echo", lane=Lane.ASYNC), traceparent=f"00-{trace}-{parent}-01")
        await it.record(call)
        await it.settled()
        spans = await _spans(it, trace)
    process = spans["process hearth.v1.runs"]
    assert (process["parent"], process["links"]) == ("", [f"00-{trace}-{parent}-01"])


async def test_versions_are_kept_warm_as_they_ask(start):
    async def echo(calling: Calling) -> bytes:
        return b""

    async with start({"echo": echo}) as it:
        await it.deploy("echo", 2, scale={"min_warm": 2})
        await until(lambda: it.backend.kept_warm)
    assert it.backend.kept_warm == ["acme.echo.2"]
