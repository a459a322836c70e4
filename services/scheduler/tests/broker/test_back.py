"""Jobs that travel back: retries, hand-backs, refusals."""

import asyncio

import pytest
from scheduler_world import World, until

from hearth_contracts import subjects
from hearth_contracts.calls import Body, Dead, Ending, Outcome, Reply, Run
from hearth_contracts.enums import Lane, OutcomeKind, Reason, State

pytestmark = pytest.mark.broker

LANES = [Lane.SYNC, Lane.ASYNC]


async def submit(world: World, lane: Lane, name: str) -> str:
    call = world.new_call(name, b"x", tenant="acme", lane=lane)
    await world.publish(call, b"x")
    return call.job


@pytest.mark.parametrize("lane", LANES)
async def test_attempts_are_exact_and_wait_their_backoff(world: World, lane: Lane) -> None:
    async with world.scheduling() as scheduler:
        await world.executor("one", behave=lambda run, body: "error")
        await world.joined(scheduler, 1)
        await world.deploy("fails", retry={"attempts": 3, "backoff_s": [0.1, 0.4]})
        job = await submit(world, lane, "fails")
        record = await world.ended(job)
        runs = world.runs_of(job)
        assert [(ran.attempt, ran.placement, ran.is_last) for ran in runs] == [(1, 0, False), (2, 0, False), (3, 0, True)]
        assert 0.1 <= runs[1].at - runs[0].at < 0.35
        assert 0.4 <= runs[2].at - runs[1].at < 0.9
        assert (record.ending.reason, record.ending.attempt) == (Reason.ERROR, 3)
        await world.empty("OUTCOMES", "OUTCOMES_SYNC", "RUNS", "RUNS_SYNC", "JOBS", "CALLS")
        if lane is Lane.SYNC:
            assert (await world.answer(job)).ending.attempt == 3


async def test_a_retry_that_works_is_a_success(world: World) -> None:
    async with world.scheduling() as scheduler:
        await world.executor("one", behave=lambda run, body: "timeout" if run.call.attempt == 1 else 0.0)
        await world.joined(scheduler, 1)
        await world.deploy("shaky", retry={"attempts": 2, "backoff_s": [0]})
        answer = await world.call("shaky", b"in")
        assert (answer.ending.state, answer.ending.attempt, answer.body) == (State.SUCCESS, 2, b"in")


async def test_a_waiting_retry_survives_the_scheduler(world: World) -> None:
    """The wait is in the broker and its end in the outcome: the next scheduler is neither early nor late."""
    async with world.scheduling("scheduler-1") as scheduler:
        await world.executor("one", behave=lambda run, body: "error" if run.call.attempt == 1 else 0.0)
        await world.joined(scheduler, 1)
        await world.deploy("shaky", retry={"attempts": 2, "backoff_s": [1]})
        job = await submit(world, Lane.ASYNC, "shaky")
        await until(lambda: world.runs_of(job))
    async with world.scheduling("scheduler-2"):
        assert (await world.ended(job)).ending.state is State.SUCCESS
        first, second = world.runs_of(job)
        assert 1.0 <= second.at - first.at < 2.0
        assert second.epoch > first.epoch


@pytest.mark.parametrize("lane", LANES)
async def test_a_hand_back_goes_elsewhere_and_burns_no_attempt(world: World, lane: Lane) -> None:
    async with world.scheduling() as scheduler:
        leaving = await world.executor("leaving", slots=8, behave=lambda run, body: "hand back")
        await world.joined(scheduler, 1)
        await world.deploy("hello")
        leaving.warm["acme.hello.1"] = 1
        leaving.report()
        await until(lambda: scheduler.fleet.units.get("acme.hello.1"))

        def hand_back(run: Run, body: bytes) -> str:
            leaving.draining = True
            leaving.report()
            return "hand back"

        leaving.behave = hand_back
        await world.executor("staying")
        await world.joined(scheduler, 2)
        job = await submit(world, lane, "hello")
        assert (await world.ended(job)).ending.state is State.SUCCESS
        assert [(ran.attempt, ran.placement, ran.executor) for ran in world.runs_of(job)] == [
            (1, 0, leaving.id),
            (1, 1, world.executors["staying"].id),
        ]
        if lane is Lane.SYNC:
            await world.answer(job)
            assert [(moved.attempt, moved.placement) for moved in world.asked] == [(1, 1)]


async def test_refusals_again_and_again_slow_down(world: World) -> None:
    refusals = 5
    async with world.scheduling() as scheduler:
        await world.executor("one", behave=lambda run, body: "refuse" if run.placement < refusals else 0.0)
        await world.joined(scheduler, 1)
        await world.deploy("hello")
        job = await submit(world, Lane.ASYNC, "hello")
        assert (await world.ended(job)).ending.attempt == 1
        runs = world.runs_of(job)
        assert [ran.placement for ran in runs] == list(range(refusals + 1))
        assert runs[-1].at - runs[-2].at > 0.15


async def test_what_is_not_retryable_is_recorded_by_the_executor(world: World) -> None:
    async with world.scheduling() as scheduler:
        await world.executor("one", behave=lambda run, body: "bad_result")
        await world.joined(scheduler, 1)
        await world.deploy("odd", retry={"attempts": 3, "backoff_s": [0]})
        answer = await world.call("odd")
        assert (answer.ending.reason, len(world.ran)) == (Reason.BAD_RESULT, 1)


async def test_the_answer_a_caller_had_is_what_is_recorded(world: World) -> None:
    """The executor replied, and died before it recorded: the call is not run again, its reply becomes the record."""
    async with world.scheduling() as scheduler:
        one = await world.executor("one", behave=lambda run, body: "hang")
        await world.joined(scheduler, 1)
        await world.deploy("hello")
        job = await submit(world, Lane.SYNC, "hello")
        await until(lambda: one.held)
        message = one.held.pop(job)
        run = message.meta(Run)
        ending = Ending(state=State.SUCCESS, result=Body(size=6), executor=one.id)
        await one.bus.publish(
            subjects.reply(world.gateway, job), b"answer", meta=Reply(job=job, ending=ending), contract="reply.v1"
        )
        await one._outcome(run, message, Outcome(run=run, kind=OutcomeKind.HANDED_BACK), sync=True)
        record = await world.ended(job)
        assert record.ending == ending
        stored = await world.bus.get_last("RECORDS", subjects.record("acme", job))
        assert stored is not None
        assert record.parts(stored.message.body)[:2] == (b"x", b"answer")
        await world.empty("OUTCOMES_SYNC")
        assert len(world.runs_of(job)) == 1


async def test_used_up_attempts_leave_a_copy(world: World) -> None:
    """The executor ends the last attempt; what the scheduler ends is kept for whoever looks into it."""
    async with world.scheduling(dead_after_s=0.8, suspect_after_s=0.4, losses_max=0) as scheduler:
        one = await world.executor("one", behave=lambda run, body: "hang")
        await world.joined(scheduler, 1)
        await world.deploy("deadly")
        job = await submit(world, Lane.ASYNC, "deadly")
        await until(lambda: one.held and scheduler.fleet.executors[one.id].accepted[False])
        await one.stop()
        record = await world.ended(job)
        assert record.ending.reason is Reason.LOST
        async with asyncio.timeout(5):
            while (dead := await world.bus.get_last("DEAD", subjects.dead("acme", job))) is None:
                await asyncio.sleep(0.02)
        meta = dead.message.meta(Dead)
        assert (meta.ending.reason, meta.call.job, dead.message.body) == (Reason.LOST, job, b"x")
        await world.empty("OUTCOMES", "RUNS", "JOBS")
