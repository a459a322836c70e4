"""A scheduler dies, or was away (PROMISES 8, 12)."""

import asyncio
import contextlib
import time

import pytest
from rounds import rounds
from scheduler_world import World, until
from small_platform import SmallPlatform

from hearth_contracts import subjects
from hearth_contracts.calls import Call, Ending, Outcome, Record, Run, StateChange
from hearth_contracts.enums import Lane, OutcomeKind, Reason, State
from hearth_kit.message import Message

pytestmark = pytest.mark.broker

#: A lease lives 5 s, and so long the broker waits for word of what the dead one had in hand; the rest is for a busy machine.
TAKEN_OVER_S = 12.0


@pytest.mark.parametrize("count", rounds(1, 10))
async def test_a_scheduler_is_killed_at_a_hundred_jobs_a_second(small: SmallPlatform, count: int) -> None:
    """Two schedulers, the active one killed again and again: no job waits longer than a takeover, and no run of an earlier
    epoch is placed once one of a later has been."""
    epochs: list[int] = []
    active: list[str] = []

    def placed(message: Message) -> None:
        epochs.append(message.meta(Run).epoch)

    for lane in ("runs", "runs_sync"):
        await small.bus.subscribe(f"hearth.v1.{lane}.>", placed)
    await small.bus.subscribe(subjects.DEPTHS_ALL, lambda message: active.append(message.subject.rpartition(".")[2]))
    schedulers = {name: small.scheduler(name, HEARTH_DEAD_AFTER_S="10") for name in ("scheduler-1", "scheduler-2")}
    await small.deploy_work(retry={"attempts": 2, "backoff_s": [0]})
    calls: list[Call] = []
    slowest_s = 0.0

    async def follow(call: Call) -> None:
        nonlocal slowest_s
        began = time.monotonic()
        await small.ended(call.job, within_s=30)
        slowest_s = max(slowest_s, time.monotonic() - began)

    async with small.kept(2, slots=8), asyncio.TaskGroup() as following:
        await until(lambda: bool(active))
        stop = asyncio.Event()

        async def load() -> None:
            while not stop.is_set():
                calls.append(await small.submit(Lane.SYNC if len(calls) % 4 == 0 else Lane.ASYNC, n=len(calls)))
                following.create_task(follow(calls[-1]))
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), 0.01)

        loading = following.create_task(load())
        for _ in range(count):
            so_far = len(calls)
            await until(lambda so_far=so_far: len(calls) > so_far + 50)
            killed = active[-1]
            schedulers[killed].kill()
            await until(lambda killed=killed: active[-1] != killed, within_s=20, what="the other is active")
            schedulers[killed] = small.scheduler(killed, HEARTH_DEAD_AFTER_S="10")
        so_far = len(calls)
        await until(lambda: len(calls) > so_far + 50)
        stop.set()
        await loading
    await small.check(calls)
    assert epochs == sorted(epochs)
    assert len(set(epochs)) == count + 1
    assert slowest_s < TAKEN_OVER_S


async def exhausted(world: World, number: int) -> Call:
    """A job whose last attempt was lost, as its executor's scheduler said before it died itself."""
    call = world.new_call("work", b"in", tenant="acme", lane=Lane.ASYNC, losses=3)
    ending = Ending(state=State.FAILED, reason=Reason.LOST, executor="gone-00000000")
    run = Run(call=call, executor="gone-00000000", placement=0, epoch=1, is_last=True, placed_at=time.time(), reason="free")
    await world.bus.publish(
        subjects.outcome("acme", "work", call.job, sync=False), b"in", meta=Outcome(run=run, kind=OutcomeKind.FAILED, ending=ending),
        contract="outcome.v1", msg_id=f"{call.job}.1.0.outcome",
    )  # fmt: skip
    return call


async def ownerless(world: World, number: int) -> Call:
    """A job that was accepted, and whose messages are all gone."""
    call = world.new_call("work", b"in", tenant="acme", lane=Lane.ASYNC)
    state = StateChange(job=call.job, tenant="acme", state=State.PENDING, at=0)
    await world.bus.publish(subjects.state("acme", call.job), meta=state, contract="state.v1")
    return call


async def older_record(world: World) -> None:
    """So that the stream shows that nothing as young as what follows has left it for the stores."""
    call = world.new_call("work", b"", tenant="acme", lane=Lane.ASYNC)
    record = Record(job=call.job, tenant="acme", function="work", version=1, lane=Lane.ASYNC, ending=Ending(state=State.SUCCESS))
    await world.bus.publish(subjects.record("acme", call.job), meta=record, contract="record.v1")


@pytest.mark.parametrize("left", [exhausted, ownerless])
async def test_fifty_jobs_that_ended_while_nobody_looked_are_all_found(small: SmallPlatform, left) -> None:
    """Nothing rests on a notice that somebody had to hear: after the restart each has its final and its dead letter."""
    await small.deploy_work()
    await older_record(small)
    calls = [await left(small, number) for number in range(50)]
    small.scheduler()
    for call in calls:
        record, _ = await small.recorded(call, within_s=30)
        assert (record.ending.state, record.ending.reason) == (State.FAILED, Reason.LOST)
    await small.drained()
    async with asyncio.timeout(10):
        while {dead.call.job for dead in await small.dead_letters()} != {call.job for call in calls}:
            await asyncio.sleep(0.05)


async def test_without_the_sweeper_nobody_finds_what_nobody_holds(small: SmallPlatform) -> None:
    await small.deploy_work()
    await older_record(small)
    calls = [await ownerless(small, number) for number in range(3)]
    small.scheduler(HEARTH_SWEEP_S="3600")
    last = await exhausted(small, 3)
    await small.recorded(last)
    await asyncio.sleep(2.5)  # twice as long as the sweeper needs above
    assert [await small.record(call.job) for call in calls] == [None] * 3
