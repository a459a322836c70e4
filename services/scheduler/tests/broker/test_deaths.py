"""Executors that die, and schedulers."""

import asyncio
import contextlib

import pytest
from scheduler_world import World, until

from hearth_contracts import streams, subjects
from hearth_contracts.calls import Ending, HttpRequest, Moved, Record, Run, StateChange
from hearth_contracts.enums import Lane, Reason, State
from hearth_scheduler.members import TOGETHER

pytestmark = pytest.mark.broker


async def test_a_dead_executors_work_is_run_elsewhere(world: World) -> None:
    async with world.scheduling(dead_after_s=0.9, suspect_after_s=0.5) as scheduler:
        dying = await world.executor("dying", slots=60, behave=lambda run, body: "hang")
        await world.joined(scheduler, 1)
        await world.deploy("hello", scale={"max": 100})
        jobs = [await world.job("hello", b"%d" % number) for number in range(40)]
        calls = [asyncio.create_task(world.call("hello", b"s%d" % number)) for number in range(10)]
        await until(lambda: len(dying.held) == 50)
        dying.report()
        await until(lambda: scheduler.fleet.executors[dying.id].accepted[False] > 0)
        await dying.stop()
        await world.executor("living", slots=16)
        for job in jobs:
            record = await world.ended(job)
            assert record.ending.state is State.SUCCESS
        assert {answer.ending.state for answer in await asyncio.gather(*calls)} == {State.SUCCESS}
        assert {moved.placement for moved in world.asked} == {1}
        await world.empty("RUNS", "RUNS_SYNC", "OUTCOMES", "OUTCOMES_SYNC", "JOBS", "CALLS")
        assert set((await world.records()).values()) == {1}
        consumer = streams.executor_consumer(dying.id)
        async with asyncio.timeout(5):
            while await world.bus.consumer_info("RUNS", consumer) or await world.bus.consumer_info("RUNS_SYNC", consumer):
                await asyncio.sleep(0.02)


async def test_a_job_that_kills_its_executors_ends(world: World) -> None:
    """attempts + losses_max executions, then FAILED(lost)."""
    async with world.scheduling(dead_after_s=0.7, suspect_after_s=0.4, losses_max=1) as scheduler:
        await world.deploy("deadly", retry={"attempts": 2, "backoff_s": [5]})
        call = world.new_call("deadly", b"x", tenant="acme", lane=Lane.ASYNC)
        await world.publish(call, b"x")
        for number in range(3):
            one = await world.executor(f"one{number}", behave=lambda run, body: "hang")
            await until(lambda one=one: one.held, what="it runs")
            await until(lambda one=one: scheduler.fleet.executors[one.id].accepted[False] > 0)
            await one.stop()
        record = await world.ended(call.job)
        assert record.ending.reason is Reason.LOST
        assert [(ran.attempt, ran.placement) for ran in world.runs_of(call.job)] == [(1, 0), (2, 0), (2, 1)]
        await world.empty("OUTCOMES", "RUNS", "JOBS")


async def test_a_buried_executor_is_not_believed_again(world: World) -> None:
    async with world.scheduling(dead_after_s=0.6, suspect_after_s=0.3) as scheduler:
        one = await world.executor("one")
        await world.joined(scheduler, 1)
        one.frozen = True
        await until(lambda: one.id not in scheduler.fleet.executors)
        one.frozen = False
        for _ in range(3):
            one.report()
            await asyncio.sleep(0)
        await world.executor("two")
        await world.joined(scheduler, 1)
        assert one.id not in scheduler.fleet.executors
        assert await world.bus.consumer_info("RUNS", streams.executor_consumer(one.id)) is None


async def test_a_final_written_meanwhile_is_not_run_again(world: World) -> None:
    """The executor recorded, and died before its acknowledgement."""
    async with world.scheduling(dead_after_s=0.8, suspect_after_s=0.4) as scheduler:
        one = await world.executor("one", behave=lambda run, body: "hang")
        await world.joined(scheduler, 1)
        await world.deploy("hello")
        job = await world.job("hello")
        await until(lambda: one.held)
        record = Record(
            job=job, tenant="acme", function="hello", version=1, lane=Lane.ASYNC,
            ending=Ending(state=State.SUCCESS, executor=one.id),
        )  # fmt: skip
        await world.bus.publish(subjects.record("acme", job), b"", meta=record, contract="record.v1", expect_last=0)
        await one.stop()
        await world.executor("two")
        await world.empty("RUNS", "OUTCOMES")
        assert len(world.runs_of(job)) == 1


async def test_an_executor_that_died_with_its_scheduler_is_buried_by_the_next(world: World) -> None:
    async with world.scheduling("scheduler-1") as scheduler:
        one = await world.executor("one", behave=lambda run, body: "hang")
        await world.joined(scheduler, 1)
        await world.deploy("hello")
        job = await world.job("hello")
        await until(lambda: one.held)
    await one.stop()
    await world.bus.purge("CAPACITY")
    async with world.scheduling("scheduler-2", dead_after_s=0.6, suspect_after_s=0.3):
        await world.executor("two")
        assert (await world.ended(job)).ending.executor == world.executors["two"].id


async def test_a_standby_takes_over_and_nothing_is_lost(world: World) -> None:
    """Two scheduler processes under load, kill -9 of the active one: every job and call ends once, epochs never overlap."""
    await world.deploy("hello")
    active: list[str] = []
    await world.bus.subscribe(subjects.DEPTHS_ALL, lambda message: active.append(message.subject.rpartition(".")[2]))
    with world.process("scheduler-1") as first, world.process("scheduler-2") as second:
        await world.executor("one", slots=4, behave=lambda run, body: 0.005)
        await world.executor("two", slots=4, behave=lambda run, body: 0.005)
        jobs: list[str] = []
        calls: list[asyncio.Task[object]] = []

        async def load() -> None:
            for number in range(300):
                jobs.append(await world.job("hello", b"%d" % number))
                calls.append(asyncio.create_task(world.call("hello", b"s%d" % number, within_s=40)))
                await asyncio.sleep(0.005)

        loading = asyncio.create_task(load())
        await until(lambda: len(world.ran) > 100)
        killed = active[-1]
        (first if killed == "scheduler-1" else second).kill()
        loop = asyncio.get_running_loop()
        began = loop.time()
        await until(lambda: active[-1] != killed, within_s=20, what="the standby is active")
        assert loop.time() - began < 8
        await loading
        for job in jobs:
            assert (await world.ended(job, within_s=30)).ending.state is State.SUCCESS
        await asyncio.gather(*calls)
        await world.empty("JOBS", "CALLS", "RUNS", "RUNS_SYNC")
        assert set((await world.records()).values()) == {1}
        epochs = [ran.epoch for ran in world.ran]
        assert epochs == sorted(epochs)
        assert len(set(epochs)) == 2


async def test_a_stopped_scheduler_hands_over_at_once(world: World) -> None:
    await world.deploy("hello")
    async with contextlib.AsyncExitStack() as stack:
        first = await stack.enter_async_context(world.scheduling("scheduler-1"))
        jobs = [await world.job("hello") for _ in range(5)]
        call = asyncio.create_task(world.call("hello"))
        await until(lambda: first.term and len(first.term.dispatcher.by_job) >= 2)
        second = await stack.enter_async_context(world.scheduling("scheduler-2", active=False))
        loop = asyncio.get_running_loop()
        began = loop.time()
        await first.stop()
        await until(lambda: second.term is not None)
        await world.executor("one")
        for job in jobs:
            await world.ended(job)
        await call
        assert loop.time() - began < 3
        assert {ran.epoch for ran in world.ran} == {second.term._lease.epoch}  # pyright: ignore[reportOptionalMemberAccess]


async def test_a_scheduler_that_sees_a_later_epoch_stops(world: World) -> None:
    async with world.scheduling() as scheduler:
        one = await world.executor("one")
        await world.joined(scheduler, 1)
        term = scheduler.term
        assert term is not None
        one.epoch = term._lease.epoch + 1000
        one.report()
        await until(lambda: scheduler.term is not term)
        assert not term.ours()


async def older_record(world: World) -> None:
    """So that the stream shows that nothing as young as what follows has left it for the stores."""
    call = world.new_call("hello", b"", tenant="acme", lane=Lane.ASYNC)
    record = Record(job=call.job, tenant="acme", function="hello", version=1, lane=Lane.ASYNC, ending=Ending(state=State.SUCCESS))
    await world.bus.publish(subjects.record("acme", call.job), meta=record, contract="record.v1")


async def test_a_record_that_may_have_left_for_the_stores_is_not_contradicted(world: World) -> None:
    """No record, and nobody to ask: the job is left alone."""
    async with world.scheduling(sweep_s=0.2) as scheduler:
        await world.deploy("hello")
        call = world.new_call("hello", b"", tenant="acme", lane=Lane.ASYNC)
        state = StateChange(job=call.job, tenant="acme", state=State.PENDING, at=0)
        await world.bus.publish(subjects.state("acme", call.job), meta=state, contract="state.v1")
        await older_record(world)
        await world.bus.purge("RECORDS")
        assert scheduler.term is not None
        for _ in range(6):
            await asyncio.sleep(0.2)
            await scheduler.term.sweeper.sweep()
        assert await world.record(call.job) is None


@pytest.mark.parametrize("lane", [Lane.SYNC, Lane.ASYNC])
async def test_a_job_that_nobody_holds_is_found(world: World, lane: Lane) -> None:
    """A state, no final, no owner: FAILED(lost), and the caller hears of it."""
    async with world.scheduling(sweep_s=0.3):
        await world.deploy("hello")
        await older_record(world)
        call = world.new_call("hello", b"", tenant="acme", lane=lane)
        note = f"gateway:{world.gateway}" if lane is Lane.SYNC else ""
        state = StateChange(job=call.job, tenant="acme", state=State.PENDING, at=0, note=note)
        await world.bus.publish(subjects.state("acme", call.job), meta=state, contract="state.v1")
        record = await world.ended(call.job)
        assert (record.ending.state, record.ending.reason) == (State.FAILED, Reason.LOST)
        if lane is Lane.SYNC:
            assert (await world.answer(call.job)).ending.reason is Reason.LOST
            assert {(moved.attempt, moved.placement) for moved in world.asked} == {(1, 0)}


async def test_a_run_that_nobody_reads_is_found(world: World) -> None:
    async with world.scheduling(sweep_s=0.3) as scheduler:
        await world.executor("one")
        await world.joined(scheduler, 1)
        await world.deploy("hello")
        call = world.new_call("hello", b"x", tenant="acme", lane=Lane.ASYNC)
        run = Run(call=call, executor="gone-00000000", placement=0, epoch=1, is_last=True, placed_at=0, reason="free")
        state = StateChange(job=call.job, tenant="acme", state=State.PENDING, at=0)
        await world.bus.publish(subjects.state("acme", call.job), meta=state, contract="state.v1")
        await world.bus.publish(subjects.run("gone-00000000", call.job, sync=False), b"x", meta=run, contract="run.v1")
        assert (await world.ended(call.job)).ending.state is State.SUCCESS
        await world.empty("RUNS", "OUTCOMES")


async def test_a_job_that_waits_is_left_alone_by_the_sweeper(world: World) -> None:
    async with world.scheduling(sweep_s=0.2) as scheduler:
        await world.deploy("hello")
        job = await world.job("hello")
        assert scheduler.term is not None
        for _ in range(5):
            await asyncio.sleep(0.2)
            await scheduler.term.sweeper.sweep()
        assert await world.record(job) is None
        await world.executor("one")
        assert (await world.ended(job)).ending.state is State.SUCCESS


def test_a_probe_of_custody_changes_nothing() -> None:
    """What the sweeper asks names the first dispatch: no gateway drops a reply for it."""
    assert (Moved(job="j", attempt=1, placement=0).attempt, Moved(job="j", attempt=1, placement=0).placement) == (1, 0)


@pytest.mark.parametrize("sync", [False, True])
async def test_a_run_that_cannot_travel_back_stops_none_of_the_others(world: World, sync: bool) -> None:
    """Its run leaves no room in a header for the outcome: it is ended, and those behind it are placed elsewhere."""
    async with world.scheduling(dead_after_s=0.9, suspect_after_s=0.5) as scheduler:
        dying = await world.executor("dying", slots=60, behave=lambda run, body: "hang")
        await world.joined(scheduler, 1)
        await world.deploy("hello", scale={"max": 100})
        http = HttpRequest(method="GET", path="/", query="q" * (64 * 1024 - 650))
        large = world.new_call("hello", b"x", tenant="acme", lane=Lane.SYNC if sync else Lane.ASYNC, http=http)
        await world.publish(large, b"x")
        await until(lambda: len(dying.held) == 1)
        jobs = [await world.job("hello", b"%d" % number) for number in range(TOGETHER + 8)]
        await until(lambda: len(dying.held) == TOGETHER + 9)
        dying.report()
        await until(lambda: scheduler.fleet.executors[dying.id].accepted[sync] > 0)
        await dying.stop()
        await world.executor("living", slots=16)
        record = await world.ended(large.job)
        assert (record.ending.state, record.ending.reason, record.http) == (State.FAILED, Reason.LOST, None)
        for job in jobs:
            assert (await world.ended(job)).ending.state is State.SUCCESS
        if sync:
            assert (await world.answer(large.job)).ending.reason is Reason.LOST
        await until(lambda: dying.id not in scheduler.fleet.executors)
        await world.empty("RUNS", "RUNS_SYNC", "OUTCOMES", "OUTCOMES_SYNC", "JOBS")
