"""Placement is by reported warm capacity: on a real broker, with reports that fall anywhere."""

import asyncio
import random

import pytest
from scheduler_world import World, until

from hearth_contracts.enums import State
from hearth_scheduler import service
from hearth_scheduler.domain import placement

pytestmark = pytest.mark.broker


async def _two_hundred_where_it_is_warm_on_two(world: World) -> None:
    async with world.scheduling() as scheduler:
        for name in ("one", "two", "three"):
            await world.executor(name, behave=lambda run, body: 0.002)
        await world.joined(scheduler, 3)
        await world.deploy("hello")
        world.executors["two"].warm["acme.hello.1"] = 1
        world.executors["two"].report()
        await until(lambda: scheduler.fleet.units.get("acme.hello.1"))
        for _ in range(200):
            assert (await world.call("hello")).ending.state is State.SUCCESS


async def test_two_hundred_calls_one_at_a_time_stay_where_the_function_is_warm(world: World) -> None:
    await _two_hundred_where_it_is_warm_on_two(world)
    assert {ran.executor for ran in world.ran} == {world.executors["two"].id}
    assert {ran.reason for ran in world.ran} == {"assigned-warm"}


async def test_the_control_placed_at_random_they_do_not(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(7)

    def anywhere(job: placement.Job, fleet: placement.Fleet, now: float) -> placement.Decision:
        return placement.Placed(chance.choice(list(fleet.executors.values())), placement.Why.FREE)

    monkeypatch.setattr(service, "place", anywhere)
    await _two_hundred_where_it_is_warm_on_two(world)
    assert len({ran.executor for ran in world.ran}) == 3


async def test_an_executor_whose_reports_stop_gets_nothing_more(world: World) -> None:
    async with world.scheduling(suspect_after_s=0.6, dead_after_s=60) as scheduler:
        warm = await world.executor("warm")
        await world.executor("other")
        await world.joined(scheduler, 2)
        await world.deploy("hello")
        warm.warm["acme.hello.1"] = 1
        warm.report()
        await until(lambda: scheduler.fleet.units.get("acme.hello.1"))
        await world.call("hello")
        assert world.ran[-1].executor == warm.id
        warm.frozen = True
        loop = asyncio.get_running_loop()
        await until(lambda: loop.time() - scheduler.fleet.executors[warm.id].heard_at > 0.6)
        for _ in range(10):
            await world.call("hello")
        assert {ran.executor for ran in world.ran[1:]} == {world.executors["other"].id}
        warm.frozen = False
        warm.report()
        await until(lambda: loop.time() - scheduler.fleet.executors[warm.id].heard_at < 0.5)


async def test_work_spreads_over_equals(world: World) -> None:
    async with world.scheduling() as scheduler:
        for name in ("one", "two"):
            await world.executor(name, slots=4, behave=lambda run, body: 0.05)
        await world.joined(scheduler, 2)
        await world.deploy("hello")
        await asyncio.gather(*(world.call("hello") for _ in range(6)))
        counts = [sum(ran.executor == executor.id for ran in world.ran) for executor in world.executors.values()]
        assert counts == [3, 3]


async def test_the_short_queue_is_used_and_yields_to_a_function_that_needs_a_slot(world: World) -> None:
    """A busy function with a backlog, then one call of another: it starts as soon as a slot is free."""
    async with world.scheduling() as scheduler:
        await world.executor("one", slots=2, room=8, behave=lambda run, body: 0.01)
        await world.joined(scheduler, 1)
        await world.deploy("busy")
        await world.deploy("late")
        busy = [asyncio.create_task(world.call("busy")) for _ in range(300)]
        await until(lambda: any(ran.reason == "queue" for ran in world.ran))
        before = len(world.ran)
        await world.call("late")
        after = next(number for number, ran in enumerate(world.ran) if ran.job.startswith("late-"))
        assert after - before < 40
        await asyncio.gather(*busy)
