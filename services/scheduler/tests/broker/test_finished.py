"""States leave the broker with their job's final (DELIVERY rule 14)."""

import asyncio

import pytest
from scheduler_world import World, until

from hearth_contracts import subjects
from hearth_contracts.calls import Ending, Record, StateChange
from hearth_contracts.enums import Lane, State

pytestmark = pytest.mark.broker


async def stated(world: World, job: str) -> bool:
    return await world.bus.get_last("STATES", subjects.state("acme", job)) is not None


async def record(world: World, job: str, *, stated: bool, **options: int) -> None:
    meta = Record(job=job, tenant="acme", function="hello", version=1, lane=Lane.ASYNC, ending=Ending(state=State.SUCCESS),
        stated=stated)  # fmt: skip
    await world.bus.publish(subjects.record("acme", job), meta=meta, contract="record.v1", **options)


async def a_job_with_a_state(world: World) -> str:
    job = world.new_call("hello", b"", tenant="acme", lane=Lane.ASYNC).job
    state = StateChange(job=job, tenant="acme", state=State.PROCESSING, phase=2, at=0)
    await world.bus.publish(subjects.state("acme", job), meta=state, contract="state.v1")
    return job


async def gone(world: World, job: str, within_s: float = 8.0) -> None:
    async with asyncio.timeout(within_s):
        while await stated(world, job):
            await asyncio.sleep(0.02)


async def test_they_go_when_the_final_is_recorded(world: World) -> None:
    """Given jobs with states, when one of them is recorded, then its states go, its record stays, and the others wait on."""
    async with world.scheduling(sweep_s=60):
        await world.deploy("hello")
        done, waits = await a_job_with_a_state(world), await a_job_with_a_state(world)
        await record(world, done, stated=True)
        await gone(world, done)
        assert await world.record(done) is not None
        assert await stated(world, waits)


async def test_a_record_that_the_stream_refused_takes_nothing_along(world: World) -> None:
    """A plain subscriber hears it all the same: only what is stored counts."""
    async with world.scheduling(sweep_s=60) as scheduler:
        await world.deploy("hello")
        job = await a_job_with_a_state(world)
        assert scheduler.term is not None
        cleared = scheduler.term.finished._clear
        looked: list[str] = []

        async def looking(tenant: str, job: str) -> None:
            await cleared(tenant, job)
            looked.append(job)

        scheduler.term.finished._clear = looking
        with pytest.raises(Exception, match="sequence"):
            await record(world, job, stated=True, expect_last=99)
        await until(lambda: looked == [job], within_s=8)
        assert await stated(world, job)


async def test_what_was_missed_the_sweeper_takes_away(world: World) -> None:
    """A record that does not say that there were states, or was written while no scheduler listened."""
    await world.deploy("hello")
    job = await a_job_with_a_state(world)
    await record(world, job, stated=False)
    async with world.scheduling(sweep_s=0.2):
        await gone(world, job)
        assert await world.record(job) is not None
