"""The pool over a maker that makes sandboxes of thin air: who gets which, what waits, what is let go.

The same pool over the real engine is in `test_backend.py`.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from hearth_contracts.functions import CodeRef, FunctionSpec, FunctionVersion
from hearth_executor.containers.container import Container
from hearth_executor.containers.maker import Booted
from hearth_executor.containers.pool import Pool
from hearth_executor.domain.limits import MIB, PLATFORM_MEMORY_MB, Limits
from hearth_executor.domain.pool import FAILURES_TOLD, Policy, Shelf
from hearth_executor.errors import BackendUnavailable, EngineStopped, ImageMissing, SandboxError

SHELF = Shelf("python", 128)


class ThinSandbox:
    """Implements `ports.Sandbox` with nothing behind it."""

    def __init__(self, name: str, maker: "ThinMaker") -> None:
        self.container = Container(
            id=name, name=name, pid=0, pidfd=-1, uid=1, mode="fast", socket_name=name, runtime="python", class_mb=128, cgroup=None,
        )  # fmt: skip
        self.maker = maker
        self.usable = True
        self.settled = True
        self.phases = {"code": 1.0, "import": 2.0}
        self.loaded: list[FunctionVersion] = []
        self._lost: list[Callable[[], None]] = []
        self._settled: list[Callable[[], None]] = []

    def on_lost(self, callback):
        self._lost.append(callback)

    def on_settled(self, callback):
        self._settled.append(callback)

    def lose(self):
        self.usable = False
        for callback in self._lost:
            callback()

    def settle(self, *, usable: bool):
        self.settled, self.usable = True, usable
        for callback in self._settled:
            callback()

    async def load(self, version, code):
        self.loaded.append(version)
        self.maker.code += [chunk async for chunk in code]
        if self.maker.load_error is not None:
            raise self.maker.load_error
        return 3 * MIB

    async def call(self, invocation, events):
        raise NotImplementedError

    async def close(self):
        self.usable = False


class ThinMaker:
    def __init__(self) -> None:
        self.made: list[Booted] = []
        self.destroyed: list[str] = []
        self.limits: list[Limits] = []
        self.code: list[bytes] = []
        self.errors: list[Exception] = []
        self.load_error: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.at_once = self.at_once_most = 0

    async def make(self, shelf):
        self.at_once += 1
        self.at_once_most = max(self.at_once, self.at_once_most)
        try:
            await self.gate.wait()
            await asyncio.sleep(0)
            if self.errors:
                raise self.errors.pop(0)
        finally:
            self.at_once -= 1
        name = f"box-{len(self.made) + 1}"
        booted = Booted(name, shelf, ThinSandbox(name, self), {"create": 1.0})
        self.made.append(booted)
        return booted

    async def limit(self, sandbox, limits):
        self.limits.append(limits)

    async def destroy(self, booted):
        self.destroyed.append(booted.name)


class Clock:
    """The pool's own clock, moved by hand; the loop's goes on as always."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead_s


@pytest.fixture
def maker():
    return ThinMaker()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def make_pool(maker, clock):
    @asynccontextmanager
    async def make(**changes) -> AsyncIterator[Pool]:
        settings = {"memory_budget_mb": 4096, "units_max": 100, "generic": {}, "generic_max": 0, "creates_at_once": 2} | changes
        async with Pool(maker=maker, policy=Policy(**settings), now=clock) as pool:
            yield pool

    return make


def version(function: str = "f", number: int = 1, tenant: str = "acme", **spec) -> FunctionVersion:
    return FunctionVersion(
        tenant=tenant, function=function, version=number, digest="0" * 64, spec=FunctionSpec(name=function, **spec),
        code=CodeRef(object="x", kind="zip", size=10, sha256="0" * 64), created_at=0.0,
    )  # fmt: skip


async def code() -> AsyncIterator[bytes]:
    yield b"the code"


async def until(condition: Callable[[], bool], what: str = "", within_s: float = 5.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, what or "it did not happen in time"
        await asyncio.sleep(0.005)


async def test_a_generic_sandbox_takes_the_code_and_is_the_versions_own_ever_after(make_pool, maker):
    async with make_pool(generic={SHELF: 1}) as pool:
        await until(lambda: pool.report().generic == {"python/128": 1})
        assert pool.take(version()) is None
        unit = await pool.make(version(), code)
        assert maker.code == [b"the code"]
        assert set(unit.cold_phases) == {"create", "code", "import"}
        pool.give_back(unit, reusable=True)
        assert pool.report().warm == {"acme.f.1": 1}
        for other in (version(number=2), version("g"), version(tenant="beta")):
            assert pool.take(other) is None, "no other version, function or tenant ever gets it"
        again = pool.take(version())
        assert again is unit
        assert again.cold_phases == {}, "a warm start has no cold phases"
        assert pool.take(version()) is None, "it is busy"


async def test_the_shelf_is_refilled_behind_a_taken_one(make_pool, maker):
    async with make_pool(generic={SHELF: 2}) as pool:
        await until(lambda: pool.report().generic == {"python/128": 2})
        await pool.make(version(), code)
        await until(lambda: pool.report().generic["python/128"] >= 2)
        assert pool.report().units >= 3
        assert maker.at_once_most <= 2


async def test_memory_is_what_the_function_asked_for_once_it_serves(make_pool, maker):
    async with make_pool() as pool:
        await pool.make(version(memory_mb=100, cpu=0.25), code)
        loading, serving = maker.limits
        assert loading.cpus == 1.0
        assert serving == Limits(memory_bytes=(100 + PLATFORM_MEMORY_MB + 3) * MIB, cpus=0.25)
        assert pool.used_mb == 100 + PLATFORM_MEMORY_MB + 3


async def test_a_burst_of_new_functions_waits_its_turn_and_does_not_fail(make_pool, maker):
    async with make_pool(generic={SHELF: 2}, memory_budget_mb=10_000) as pool:
        units = await asyncio.gather(*(pool.make(version(f"f{number}"), code) for number in range(50)))
        assert len({unit.id for unit in units}) == 50
        assert maker.at_once_most <= 2


async def test_a_burst_larger_than_the_memory_gets_what_is_given_back(make_pool, maker):
    """Four fit; twenty want one. Those that were given back idle make room for those that wait."""
    async with make_pool(memory_budget_mb=4 * 152) as pool:

        async def one(number: int) -> str:
            unit = await pool.make(version(f"f{number}"), code)
            await asyncio.sleep(0.005)
            pool.give_back(unit, reusable=True)
            return unit.id

        served = await asyncio.gather(*(one(number) for number in range(20)))
        assert len(set(served)) == 20
        await until(lambda: pool.used_mb <= 4 * 152)


async def test_more_memory_than_there_is_is_refused_at_once(make_pool):
    async with make_pool(memory_budget_mb=256) as pool:
        with pytest.raises(SandboxError, match="more than all sandboxes") as caught:
            await pool.make(version(memory_mb=512), code)
        assert caught.value.reason == "rejected"


async def test_a_fresh_function_gets_a_new_sandbox_each_time(make_pool, maker):
    async with make_pool() as pool:
        fresh = version(isolation="fresh")
        first = await pool.make(fresh, code)
        pool.give_back(first, reusable=True)
        assert pool.take(fresh) is None
        second = await pool.make(fresh, code)
        assert second.id != first.id
        await until(lambda: maker.destroyed == [first.id])


async def test_one_that_may_not_serve_again_is_destroyed(make_pool, maker):
    async with make_pool() as pool:
        unit = await pool.make(version(), code)
        pool.give_back(unit, reusable=False)
        pool.give_back(unit, reusable=True)
        assert pool.take(version()) is None
        await until(lambda: maker.destroyed == [unit.id])
        await until(lambda: pool.used_mb == 0)


@pytest.mark.parametrize("busy", [True, False])
async def test_a_lost_sandbox_is_never_handed_out(make_pool, maker, busy):
    async with make_pool() as pool:
        unit = await pool.make(version(), code)
        if not busy:
            pool.give_back(unit, reusable=True)
        unit.booted.sandbox.lose()
        if busy:
            pool.give_back(unit, reusable=True)
        assert pool.take(version()) is None
        assert pool.report().warm == {}
        await until(lambda: maker.destroyed == [unit.id])


async def test_a_lost_generic_one_is_replaced(make_pool, maker):
    async with make_pool(generic={SHELF: 1}) as pool:
        await until(lambda: pool.report().generic["python/128"] == 1)
        maker.made[0].sandbox.lose()
        await until(lambda: maker.destroyed == ["box-1"] and pool.report().generic["python/128"] == 1)


async def test_one_still_being_put_in_order_is_the_last_choice(make_pool):
    async with make_pool() as pool:
        first, second = await asyncio.gather(pool.make(version(), code), pool.make(version(), code))
        pool.give_back(first, reusable=True)
        second.booted.sandbox.settled = False
        pool.give_back(second, reusable=True)
        assert pool.take(version()) is first
        assert pool.take(version()) is second


async def test_one_that_turns_out_spent_while_idle_makes_room_at_once(make_pool, maker):
    async with make_pool() as pool:
        unit = await pool.make(version(), code)
        unit.booted.sandbox.settled = False
        pool.give_back(unit, reusable=True)
        unit.booted.sandbox.settle(usable=False)
        assert pool.report().warm == {}
        await until(lambda: maker.destroyed == [unit.id])


async def test_code_that_does_not_start_fails_the_call_and_leaves_nothing(make_pool, maker):
    async with make_pool() as pool:
        maker.load_error = SandboxError("no module named nope", error_type="ModuleNotFoundError")
        with pytest.raises(SandboxError, match="nope"):
            await pool.make(version(), code)
        await until(lambda: pool.report().units == 0 and pool.used_mb == 0)
        assert maker.destroyed == ["box-1"]


async def test_a_caller_who_gives_up_leaves_his_sandbox_to_the_next(make_pool, maker):
    async with make_pool() as pool:
        maker.gate.clear()
        waiting = asyncio.create_task(pool.make(version(), code))
        await until(lambda: maker.at_once == 1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        maker.gate.set()
        await until(lambda: pool.report().generic == {"python/128": 1})
        assert (await pool.make(version("g"), code)).id == "box-1"


@pytest.mark.parametrize("error", [ImageMissing("hearth-runtime-python:x"), EngineStopped("it hangs")])
async def test_who_waits_is_told_at_once_when_waiting_cannot_help(make_pool, maker, error):
    async with make_pool() as pool:
        maker.errors = [error]
        with pytest.raises(type(error)):
            await asyncio.wait_for(pool.make(version(), code), 1)


async def test_a_creation_that_fails_now_and_then_is_tried_again(make_pool, maker):
    async with make_pool() as pool:
        maker.errors = [SandboxError("once")]
        assert (await asyncio.wait_for(pool.make(version(), code), 5)).id == "box-1"


async def test_who_waits_is_told_when_it_fails_again_and_again(make_pool, maker, clock):
    async with make_pool() as pool:
        maker.errors = [SandboxError(f"failure {number}") for number in range(FAILURES_TOLD)]
        asking = asyncio.create_task(pool.make(version(), code))
        for left in range(FAILURES_TOLD - 1, -1, -1):
            await until(lambda left=left: len(maker.errors) == left)
            clock.ahead_s += 20
        with pytest.raises(SandboxError, match="failure 2"):
            await asyncio.wait_for(asking, 5)


async def test_idle_ones_go_when_their_time_is_over(make_pool, maker, clock):
    async with make_pool() as pool:
        unit = await pool.make(version(scale={"idle_s": 60}), code)
        pool.give_back(unit, reusable=True)
        clock.ahead_s += 59
        await asyncio.sleep(0)
        assert pool.report().warm == {"acme.f.1": 1}
        clock.ahead_s += 2
        await until(lambda: maker.destroyed == [unit.id])


async def test_min_warm_is_held_ready_and_made_again_until_retired(make_pool, maker, clock):
    async with make_pool() as pool:
        kept = version(scale={"min_warm": 2, "idle_s": 1})
        pool.keep_warm(kept, code)
        await until(lambda: pool.report().warm == {"acme.f.1": 2})
        clock.ahead_s += 3600
        pool.take(kept).booted.sandbox.usable = False
        await until(lambda: pool.assigned() == {"acme.f.1": 2})
        assert maker.destroyed == []
        pool.retire("acme.f.1")
        await until(lambda: pool.report().warm == {})


async def test_leaving_destroys_everything_and_tells_who_waits(make_pool, maker):
    async with make_pool(generic={SHELF: 1}) as pool:
        await until(lambda: pool.report().generic["python/128"] == 1)
        idle, busy = await pool.make(version(), code), await pool.make(version("g"), code)
        pool.give_back(idle, reusable=True)
        await until(lambda: pool.report().generic["python/128"] >= 1)
        maker.gate.clear()
        while pool.report().generic["python/128"]:
            await pool.make(version("h"), code)
        waiting = asyncio.create_task(pool.make(version("late"), code))
        await asyncio.sleep(0)
        maker.gate.set()
    with pytest.raises(BackendUnavailable):
        await waiting
    assert sorted(maker.destroyed) == sorted(booted.name for booted in maker.made)
    assert busy.id in maker.destroyed


async def test_taking_and_giving_back_cost_the_same_however_many_are_warm(make_pool):
    """No look at other units: a thousand warm ones do not slow one call down."""

    def per_call(pool: Pool, wanted: FunctionVersion) -> float:
        best = 1.0
        for _ in range(5):
            began = time.perf_counter()
            for _ in range(200):
                pool.give_back(pool.take(wanted), reusable=True)
            best = min(best, (time.perf_counter() - began) / 200)
        return best

    async with make_pool(memory_budget_mb=1_000_000, units_max=2000, creates_at_once=100) as pool:
        first = version("first")
        pool.give_back(await pool.make(first, code), reusable=True)
        alone = per_call(pool, first)
        units: list[Awaitable] = [pool.make(version(f"f{number % 50}"), code) for number in range(600)]
        for unit in await asyncio.gather(*units):
            pool.give_back(unit, reusable=True)
        assert per_call(pool, first) < max(alone * 5, 30e-6)
