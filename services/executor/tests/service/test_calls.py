"""What becomes of a run: answer, record, outcome, in the right order, on a real broker."""

import asyncio

import pytest
from in_process import Calling
from placing import GATEWAY, TENANT, until

from hearth_contracts import subjects
from hearth_contracts.calls import INLINE_BYTES_MAX, Body, Ending, Record
from hearth_contracts.enums import Lane, OutcomeKind, Persist, Reason, Start, State
from hearth_executor.ports import Finished
from hearth_kit.objects import Objects

pytestmark = pytest.mark.broker


async def echo(calling: Calling) -> bytes:
    return await calling.body()


async def test_a_sync_call_is_recorded_and_answered_in_one_go_then_acknowledged(start):
    """The record goes ahead: who hears both on one connection, as the scheduler hears of the next call, knows of it first."""
    async with start({"echo": echo}) as it:
        call = it.call("echo", b'"hi"')
        await it.place(call, b'"hi"')
        reply, body = await it.reply(call)
        record, content = await it.record(call)
        await it.settled()
    assert body == b'"hi"'
    assert reply.ending.state is State.SUCCESS
    assert reply.ending == record.ending
    assert record.parts(content) == (b'"hi"', b'"hi"', b"")
    assert (record.ending.executor, record.ending.attempt, record.ending.placement) == (it.id, 1, 0)
    told = [subject for subject in it.heard if ".replies." in subject or ".records." in subject]
    assert told == [subjects.record(TENANT, call.job), subjects.reply(GATEWAY, call.job)]


async def test_an_async_run_says_that_it_runs_then_records_and_answers_nobody(start):
    async with start({"echo": echo}) as it:
        call = it.call("echo", b"1", lane=Lane.ASYNC)
        await it.place(call, b"1")
        record, content = await it.record(call)
        await it.settled()
        state = await it.bus.get_last("STATES", subjects.state(TENANT, call.job))
    assert record.parts(content)[1] == b"1"
    assert state is not None
    assert not it.replies
    assert it.heard.index(subjects.state(TENANT, call.job)) < it.heard.index(subjects.record(TENANT, call.job))


async def test_a_sync_call_says_that_it_runs_only_when_it_takes_long(start):
    go = asyncio.Event()

    async def slow(calling: Calling) -> bytes:
        await go.wait()
        return b""

    async with start({"echo": echo, "slow": slow}) as it:
        quick, long = it.call("echo"), it.call("slow")
        await it.place(quick)
        await it.place(long)
        await until(lambda: subjects.state(TENANT, long.job) in it.heard)
        go.set()
        await it.settled()
    assert subjects.state(TENANT, quick.job) not in it.heard


async def test_the_first_call_starts_cold_and_the_next_warm(start):
    async with start({"echo": echo}) as it:
        first, second = it.call("echo"), it.call("echo")
        await it.place(first)
        cold, _ = await it.record(first)
        await it.place(second)
        warm, _ = await it.record(second)
    assert (cold.ending.start, warm.ending.start) == (Start.COLD, Start.WARM)
    assert cold.ending.timings.cold_ms == {"create": 1.0, "code": 0.5, "import": 2.0}
    assert warm.ending.timings.cold_ms == {}
    assert len(it.backend.made) == 1
    assert it.backend.code == {"acme.echo.1": b"code of echo"}


async def test_a_failure_that_may_be_retried_travels_back_with_its_input(start):
    async def bad(calling: Calling) -> Finished:
        return Finished("error", error_type="ValueError", error_message="no \ud83d half", traceback="line 1")

    async with start({"bad": bad}) as it:
        call = it.call("bad", b"in")
        await it.place(call, b"in", is_last=False)
        outcome, body = await it.outcome(call)
        await it.settled()
        assert await it.stored_record(call) is None
    assert (outcome.kind, body) == (OutcomeKind.FAILED, b"in")
    assert outcome.ending is not None
    assert outcome.ending.reason is Reason.ERROR
    assert outcome.ending.failure.message == "no ? half"
    assert not it.replies


async def test_the_last_failure_is_the_final_one(start):
    async def bad(calling: Calling) -> Finished:
        return Finished("error", error_type="ValueError", error_message="no")

    async with start({"bad": bad}) as it:
        call = it.call("bad")
        await it.place(call, is_last=True)
        reply, _ = await it.reply(call)
        record, _ = await it.record(call)
    assert reply.ending.reason is record.ending.reason is Reason.ERROR


async def test_a_bad_result_is_never_retried(start):
    async def bad(calling: Calling) -> Finished:
        return Finished("bad_result", error_message="not JSON")

    async with start({"bad": bad}) as it:
        call = it.call("bad", lane=Lane.ASYNC)
        await it.place(call, is_last=False)
        record, _ = await it.record(call)
    assert record.ending.reason is Reason.BAD_RESULT


async def test_the_loser_of_a_race_reads_the_winner_and_tells_its_words(start):
    """A later dispatch finds the job ended meanwhile: the caller hears what was recorded, under this dispatch's number."""
    running, go = asyncio.Event(), asyncio.Event()

    async def slow(calling: Calling) -> bytes:
        running.set()
        await go.wait()
        return b"mine"

    async with start({"slow": slow}) as it:
        call = it.call("slow")
        await it.place(call, placement=1)
        await running.wait()
        winner = Record(
            job=call.job, tenant=TENANT, function="slow", version=1, lane=Lane.SYNC,
            ending=Ending(state=State.SUCCESS, result=Body(size=6), executor="executor-2-00000000"),
        )  # fmt: skip
        await it.bus.publish(subjects.record(TENANT, call.job), b"theirs", meta=winner, contract="record.v1", expect_last=0)
        go.set()
        reply, body = await it.reply(call)
        await it.settled()
        record, _ = await it.record(call)
    assert body == b"theirs"
    assert reply.ending.placement == 1
    assert record.ending.executor == "executor-2-00000000"


async def test_a_later_dispatch_of_a_finished_job_does_not_run(start):
    calls = 0

    async def count(calling: Calling) -> bytes:
        nonlocal calls
        calls += 1
        return b"once"

    async with start({"count": count}) as it:
        call = it.call("count")
        await it.place(call)
        await it.reply(call)
        await it.settled()
        it.replies.clear()
        await it.place(call, placement=1)
        reply, body = await it.reply(call)
        await it.settled()
    assert calls == 1
    assert (body, reply.ending.placement) == (b"once", 1)


async def test_the_first_dispatch_never_looks_before_it_runs(start, own_bus, monkeypatch):
    """The normal path costs no question to the broker."""
    asked: list[str] = []
    get_last = own_bus.get_last

    async def watched(stream: str, subject: str):
        asked.append(subject)
        return await get_last(stream, subject)

    async with start({"echo": echo}) as it:
        await it.place(call := it.call("echo"))
        await it.record(call)
        await it.settled()
        monkeypatch.setattr(own_bus, "get_last", watched)
        await it.place(call := it.call("echo"))
        await it.record(call)
        await it.settled()
    assert asked == []


async def test_a_dispatch_that_comes_twice_runs_once_and_both_messages_are_settled(start):
    calls, go = 0, asyncio.Event()

    async def slow(calling: Calling) -> bytes:
        nonlocal calls
        calls += 1
        await go.wait()
        return b""

    async with start({"slow": slow}) as it:
        call = it.call("slow", lane=Lane.ASYNC)
        await it.place(call)
        await it.place(call, msg_id="again")
        await until(lambda: [held for held in it.executor._held.values() if len(held.messages) == 2])
        go.set()
        await it.settled()
        await it.place(call, msg_id="and again")
        await it.settled()
    assert calls == 1


async def test_a_later_dispatch_of_what_already_runs_shares_its_end(start):
    """As after a broker restart: the gateway publishes again what still runs here."""
    calls, go = 0, asyncio.Event()

    async def slow(calling: Calling) -> bytes:
        nonlocal calls
        calls += 1
        await go.wait()
        return b"one"

    async with start({"slow": slow}) as it:
        call = it.call("slow")
        await it.place(call)
        await it.place(call, placement=1)
        await until(lambda: [held for held in it.executor._held.values() if len(held.messages) == 2])
        go.set()
        reply, body = await it.reply(call)
        record, _ = await it.record(call)
        await it.settled()
    assert calls == 1
    assert len(it.replies) == 1
    assert (reply.ending.placement, record.ending.placement, body) == (1, 1, b"one")
    told = [subject for subject in it.heard if ".replies." in subject or ".records." in subject]
    assert told == [subjects.record(TENANT, call.job), subjects.reply(GATEWAY, call.job)]


async def test_a_run_of_a_deposed_scheduler_is_refused_without_an_attempt(start):
    async with start({"echo": echo}) as it:
        it.epoch = 7
        await it.place(call := it.call("echo"))
        await it.reply(call)
        late = it.call("echo", b"in", lane=Lane.ASYNC)
        await it.place(late, b"in", epoch=6, is_last=False)
        outcome, body = await it.outcome(late)
        await it.settled()
    assert (outcome.kind, outcome.ending, body) == (OutcomeKind.REFUSED, None, b"in")
    assert outcome.run.call.attempt == 1


async def test_no_room_in_the_backend_is_refused_without_an_attempt(start):
    async with start({"echo": echo}, units_max=0) as it:
        await it.place(call := it.call("echo"))
        outcome, _ = await it.outcome(call)
        await it.settled()
    assert outcome.kind is OutcomeKind.REFUSED


async def test_a_sandbox_that_breaks_is_a_lost_attempt(start):
    async def broken(calling: Calling) -> bytes:
        raise RuntimeError("the link is gone")

    async with start({"broken": broken}) as it:
        await it.place(call := it.call("broken"), is_last=False)
        outcome, _ = await it.outcome(call)
        await it.settled()
    assert outcome.ending is not None
    assert outcome.ending.reason is Reason.LOST
    assert it.backend.given_back == [("unit-0", False)]


async def test_a_version_that_does_not_exist_is_rejected(start):
    async with start({"echo": echo}) as it:
        await it.place(call := it.call("echo", version=9), is_last=False)
        record, _ = await it.record(call)
        await it.settled()
    assert record.ending.reason is Reason.REJECTED


async def test_a_function_deployed_a_moment_ago_is_found(start):
    async with start({"echo": echo}) as it:
        it.backend._functions = {"late": echo}
        await it.deploy("late")
        it.service.registry._versions.clear()
        await it.place(call := it.call("late"))
        record, _ = await it.record(call)
    assert record.ending.state is State.SUCCESS


@pytest.mark.parametrize(("persist", "wanted"), [(Persist.ALL, True), (Persist.SUCCESS, False), (Persist.OFF, False)])
async def test_the_record_says_whether_the_stores_keep_it(start, persist, wanted):
    async def bad(calling: Calling) -> Finished:
        return Finished("error")

    async with start({"bad": bad}) as it:
        await it.deploy("bad", 2, persist=persist)
        await it.place(call := it.call("bad", version=2))
        record, _ = await it.record(call)
    assert record.persist is wanted


async def test_large_bodies_travel_as_objects_both_ways(start, bus):
    large = bytes(range(256)) * 4096 * 3  # 3 MiB

    async def big(calling: Calling) -> Finished:
        assert await calling.body() == large
        writer = await calling.events.large_result(None)
        for at in range(0, len(large), 100_000):
            await writer.write(large[at : at + 100_000])
        return Finished(None, content_type="application/octet-stream")

    await Objects(bus).put("bodies", "the-input", large)
    async with start({"big": big}) as it:
        call = it.call("big", input=Body(size=len(large), object="the-input"))
        await it.place(call, b"")
        reply, body = await it.reply(call)
        record, content = await it.record(call)
        await it.settled()
    assert (body, content) == (b"", b"")
    assert reply.ending.result == record.ending.result
    assert (record.input.object, record.ending.result.size) == ("the-input", len(large))
    assert await Objects(bus).get("bodies", record.ending.result.object) == large


async def test_a_result_over_the_inline_limit_never_travels_in_a_message(start, bus):
    large = b"x" * (INLINE_BYTES_MAX + 1)

    async def big(calling: Calling) -> bytes:
        return large

    async with start({"big": big}) as it:
        await it.place(call := it.call("big"))
        record, _ = await it.record(call)
    assert await Objects(bus).get("bodies", record.ending.result.object) == large


async def test_a_result_over_its_limit_stops_the_function(start, bus):
    async def big(calling: Calling) -> Finished:
        writer = await calling.events.large_result(None)
        while True:
            await writer.write(b"x" * 100_000)

    async with start({"big": big}, result_bytes_max=1_000_000) as it:
        await it.place(call := it.call("big"), is_last=False)
        record, _ = await it.record(call)
        await it.settled()
        left = await it.left("OBJECTS_BODIES")
    assert record.ending.reason is Reason.BAD_RESULT
    assert left == 0


async def test_an_input_that_is_gone_ends_the_attempt(start):
    async def reads(calling: Calling) -> bytes:
        return await calling.body()

    async with start({"reads": reads}) as it:
        call = it.call("reads", input=Body(size=5_000_000, object="never-stored"))
        await it.place(call, b"", is_last=True)
        record, _ = await it.record(call)
        await it.settled()
    assert record.ending.reason is Reason.LOST
    assert record.ending.failure.message == "the input could not be read"


async def test_many_calls_wait_for_few_slots_and_all_end(start):
    running, most = 0, 0

    async def busy(calling: Calling) -> bytes:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        return await calling.body()

    async with start({"busy": busy}, slots=2) as it:
        calls = [it.call("busy", b"%d" % n) for n in range(60)]
        await asyncio.gather(*(it.place(call, b"%d" % n) for n, call in enumerate(calls)))
        for n, call in enumerate(calls):
            assert (await it.reply(call))[1] == b"%d" % n
        await it.settled()
    assert most == 2
    assert it.executor.free == 2
    assert it.executor.busy == {}


async def test_record_and_answer_leave_in_one_write_in_this_order(start, own_bus, monkeypatch):
    """Else the caller could ask again before the scheduler knows that the sandbox is free, and be sent to a cold one."""
    written: list[str] = []
    wire = own_bus._wire
    send, kick = wire.send, wire._kick

    def watched_send(subject: str, *rest) -> None:
        written.append(subject)
        send(subject, *rest)

    def watched_kick() -> None:
        written.append("write")
        kick()

    monkeypatch.setattr(wire, "send", watched_send)
    monkeypatch.setattr(wire, "_kick", watched_kick)
    async with start({"echo": echo}) as it:
        await it.place(call := it.call("echo"))
        await it.record(call)
    at = written.index(subjects.reply(GATEWAY, call.job))
    assert written[at - 1 : at + 2] == [subjects.record(TENANT, call.job), subjects.reply(GATEWAY, call.job), "write"]
