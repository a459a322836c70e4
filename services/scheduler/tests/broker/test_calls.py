"""Sync calls and jobs, from their stream to their record."""

import asyncio

import pytest
from scheduler_world import World

from hearth_contracts.enums import Lane, Reason, State

pytestmark = pytest.mark.broker


async def test_a_call_is_answered_and_recorded_once(world: World) -> None:
    async with world.scheduling() as scheduler:
        await world.executor("one")
        await world.joined(scheduler, 1)
        await world.deploy("hello")
        answer = await world.call("hello", b"ada")
        assert (answer.ending.state, answer.body) == (State.SUCCESS, b"ada")
        await world.empty("CALLS", "RUNS_SYNC")
        assert list((await world.records()).values()) == [1]


async def test_a_job_is_run_and_recorded_once(world: World) -> None:
    async with world.scheduling() as scheduler:
        await world.executor("one")
        await world.joined(scheduler, 1)
        await world.deploy("hello")
        jobs = [await world.job("hello", b"%d" % number) for number in range(50)]
        for job in jobs:
            assert (await world.ended(job)).ending.state is State.SUCCESS
        await world.empty("JOBS", "RUNS")
        assert set((await world.records()).values()) == {1}
        assert len(world.ran) == 50


async def test_many_calls_at_once_never_pass_an_executors_slots(world: World) -> None:
    async with world.scheduling() as scheduler:
        first = await world.executor("one", slots=3, behave=lambda run, body: 0.01)
        second = await world.executor("two", slots=2, behave=lambda run, body: 0.01)
        await world.joined(scheduler, 2)
        await world.deploy("hello")
        answers = await asyncio.gather(*(world.call("hello", b"%d" % number) for number in range(200)))
        assert {answer.ending.state for answer in answers} == {State.SUCCESS}
        assert (first.most_running, second.most_running) == (3, 2)


async def test_a_call_waits_for_an_executor(world: World) -> None:
    async with world.scheduling() as scheduler:
        await world.deploy("hello")
        waiting = asyncio.create_task(world.call("hello"))
        await asyncio.wait([waiting], timeout=0.2)
        assert not waiting.done()
        await world.executor("one")
        await world.joined(scheduler, 1)
        assert (await waiting).ending.state is State.SUCCESS


async def test_labels_are_obeyed(world: World) -> None:
    async with world.scheduling() as scheduler:
        await world.executor("plain")
        await world.executor("edge", labels={"zone": "edge"})
        await world.joined(scheduler, 2)
        await world.deploy("near", placement={"zone": "edge"})
        for _ in range(10):
            await world.call("near")
        assert {ran.executor for ran in world.ran} == {world.executors["edge"].id}


async def test_no_more_run_at_once_than_the_function_allows(world: World) -> None:
    async with world.scheduling() as scheduler:
        executor = await world.executor("one", slots=8, behave=lambda run, body: 0.01)
        await world.joined(scheduler, 1)
        await world.deploy("narrow", scale={"max": 2})
        await asyncio.gather(*(world.call("narrow") for _ in range(40)))
        assert executor.most_running == 2


@pytest.mark.parametrize("lane", [Lane.SYNC, Lane.ASYNC])
async def test_a_call_of_no_function_is_rejected(world: World, lane: Lane) -> None:
    async with world.scheduling():
        await world.deploy("hello")
        call = world.new_call("hello", b"x", tenant="acme", lane=lane).model_copy(update={"version": 7})
        await world.publish(call, b"x")
        record = await world.ended(call.job)
        assert (record.ending.state, record.ending.reason) == (State.FAILED, Reason.REJECTED)
        if lane is Lane.SYNC:
            assert (await world.answer(call.job)).ending.reason is Reason.REJECTED


async def test_a_deleted_functions_jobs_are_rejected_and_its_consumer_goes(world: World) -> None:
    async with world.scheduling() as scheduler:
        await world.deploy("hello")
        job = await world.job("hello")
        await world.head("hello", deleted=True)
        await world.executor("one")
        await world.joined(scheduler, 1)
        assert (await world.ended(job)).ending.reason in (Reason.REJECTED, None)
        await world.empty("JOBS")
        assert scheduler.term is not None
        async with asyncio.timeout(10):
            while await world.bus.consumer_names("JOBS"):
                await scheduler.term.feeds.tidy()
                await asyncio.sleep(0.02)


async def test_a_chain_too_deep_ends(world: World) -> None:
    async with world.scheduling() as scheduler:
        await world.executor("one")
        await world.joined(scheduler, 1)
        await world.deploy("hello")
        assert (await world.call("hello", depth=16)).ending.state is State.SUCCESS
        answer = await world.call("hello", depth=17)
        assert answer.ending.reason is Reason.RECURSION
        assert len(world.ran) == 1
