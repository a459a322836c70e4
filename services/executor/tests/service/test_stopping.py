"""Cancel, drain and hand-back: what is stopped, and what nobody loses by it."""

import asyncio

import pytest
from in_process import Calling
from placing import TENANT, until

from hearth_contracts import subjects
from hearth_contracts.calls import Ending, Record
from hearth_contracts.enums import Lane, OutcomeKind, Reason, State

pytestmark = pytest.mark.broker


class Sleepy:
    """A function that runs until it is stopped, and remembers that it was."""

    def __init__(self) -> None:
        self.running = 0
        self.stopped = 0
        self.go = asyncio.Event()

    async def __call__(self, calling: Calling) -> bytes:
        self.running += 1
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.stopped += 1
            raise
        return b"done"


async def _cancelled_elsewhere(it, call) -> None:
    """The gateway's part of a cancel: the final, first."""
    ending = Ending(state=State.FAILED, reason=Reason.CANCELLED, attempt=call.attempt)
    final = Record(job=call.job, tenant=TENANT, function=call.function, version=1, lane=call.lane, ending=ending)
    await it.bus.publish(subjects.record(TENANT, call.job), meta=final, contract="record.v1", expect_last=0)


async def test_a_running_call_is_cancelled_and_its_caller_hears_of_it(start):
    function = Sleepy()
    async with start({"sleepy": function}) as it:
        call = it.call("sleepy")
        await it.place(call)
        await until(lambda: function.running)
        await _cancelled_elsewhere(it, call)
        assert (await it.control("cancel", call.job)).done
        reply, _ = await it.reply(call)
        await it.settled()
    assert function.stopped == 1
    assert reply.ending.reason is Reason.CANCELLED
    assert it.backend.given_back == [("unit-0", False)]


async def test_a_cancel_without_a_final_still_ends_the_job(start):
    """Whoever asked may have died between the two: then the executor's own word is the final."""
    function = Sleepy()
    async with start({"sleepy": function}) as it:
        call = it.call("sleepy", lane=Lane.ASYNC)
        await it.place(call, is_last=False)
        await until(lambda: function.running)
        await it.control("cancel", call.job)
        record, _ = await it.record(call)
        await it.settled()
    assert record.ending.reason is Reason.CANCELLED


async def test_a_waiting_call_is_cancelled_without_having_run(start):
    function = Sleepy()
    async with start({"sleepy": function}, slots=1) as it:
        first, second = it.call("sleepy"), it.call("sleepy")
        await it.place(first)
        await it.place(second)
        await until(lambda: it.executor.waiting)
        await _cancelled_elsewhere(it, second)
        assert (await it.control("cancel", second.job)).done
        reply, _ = await it.reply(second)
        assert it.executor.waiting == 0
        function.go.set()
        await it.settled()
    assert reply.ending.reason is Reason.CANCELLED
    assert function.running == 1


async def test_a_cancel_that_overtakes_its_run_keeps_it_from_running(start):
    function = Sleepy()
    async with start({"sleepy": function}) as it:
        call = it.call("sleepy")
        await _cancelled_elsewhere(it, call)
        assert not (await it.control("cancel", call.job)).done
        await it.place(call)
        reply, _ = await it.reply(call)
        await it.settled()
    assert function.running == 0
    assert reply.ending.reason is Reason.CANCELLED


async def test_an_unknown_verb_is_answered(start):
    async with start({}) as it:
        answer = await it.control("dance")
    assert not answer.done


async def test_draining_hands_back_what_waits_and_lets_what_runs_end(start):
    function = Sleepy()
    async with start({"sleepy": function}, slots=1) as it:
        running, waiting, late = (it.call("sleepy", lane=Lane.ASYNC) for _ in range(3))
        await it.place(running, is_last=False)
        await it.place(waiting, b"waits", is_last=False)
        await until(lambda: it.executor.waiting)
        assert (await it.control("drain")).done
        outcome, body = await it.outcome(waiting)
        await it.place(late, is_last=False)
        assert (await it.outcome(late))[0].kind is OutcomeKind.HANDED_BACK
        function.go.set()
        record, _ = await it.record(running)
        await it.settled()
        report = await until(lambda: it.capacity[-1] if it.capacity[-1].draining else None)
    assert (outcome.kind, outcome.ending, outcome.run.call.attempt, body) == (OutcomeKind.HANDED_BACK, None, 1, b"waits")
    assert record.ending.state is State.SUCCESS
    assert (report.free, report.queue_room) == (0, 0)


async def test_a_stop_waits_for_what_runs(start):
    function = Sleepy()
    async with start({"sleepy": function}) as it:
        await it.place(call := it.call("sleepy"))
        await until(lambda: function.running)
        draining = asyncio.ensure_future(it.service.drain(20))
        await until(lambda: it.executor.draining)
        function.go.set()
        await draining
        assert (await it.reply(call))[0].ending.state is State.SUCCESS
        assert await it.stored_record(call) is not None
        await it.settled()
    assert function.stopped == 0


async def test_a_stop_that_takes_too_long_hands_back_what_still_runs(start):
    """No attempt is burnt and no attempt's failure recorded."""
    function = Sleepy()
    async with start({"sleepy": function}) as it:
        calls = [it.call("sleepy", lane=lane) for lane in (Lane.SYNC, Lane.ASYNC, Lane.ASYNC)]
        for call in calls:
            await it.place(call, b"in", is_last=True)
        await until(lambda: function.running == 3)
        await it.service.drain(0.1)
        for call in calls:
            outcome, body = await it.outcome(call)
            assert (outcome.kind, outcome.ending, outcome.run.call.attempt, body) == (OutcomeKind.HANDED_BACK, None, 1, b"in")
            assert await it.stored_record(call) is None
        await it.settled()
    assert function.stopped == 3
    assert not it.replies


async def test_a_function_that_ignores_being_stopped_is_still_accounted_for(start):
    """A cancel in the very moment of the end: whichever comes first, the run is settled once."""

    async def quick(calling: Calling) -> bytes:
        await asyncio.sleep(0)
        return b"1"

    async with start({"quick": quick}) as it:
        for _ in range(30):
            call = it.call("quick")
            await it.place(call)
            await until(lambda job=call.job: it.executor.cancel(job) or it.replies or None)
        await it.settled()
        for reply, _ in it.replies:
            record = await it.bus.get_last("RECORDS", subjects.record(TENANT, reply.job))
            assert record.message.meta(Record).ending.state is reply.ending.state
    assert it.executor.free == 4
