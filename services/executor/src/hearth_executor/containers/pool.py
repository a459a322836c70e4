"""The warm pool: generic sandboxes ready to take code, assigned ones ready to be called.

Everything on the path of a warm call is a few dictionary operations; whatever asks the engine runs in the background.
"""

import asyncio
import logging
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Protocol, Self

from hearth_contracts.enums import Isolation, Reason
from hearth_contracts.functions import FunctionVersion
from hearth_executor.containers.maker import Booted
from hearth_executor.containers.ports import Sandbox
from hearth_executor.domain import limits, pool
from hearth_executor.domain.limits import MIB, Limits
from hearth_executor.domain.pool import IdleUnit, Policy, Shelf, ShelfState
from hearth_executor.errors import BackendUnavailable, ImageMissing, NoRoom, SandboxError
from hearth_executor.ports import CallEvents, Finished, Invocation, PoolReport
from hearth_kit.background import Background

_log = logging.getLogger(__name__)

#: Seconds between two looks at what has expired; idle times are minutes.
SWEEP_S = 1.0

#: A call waits so long for a sandbox when all the memory is in use or many functions start at once.
WAIT_S_MAX = 60.0

#: Containers removed at once: the engine removes no faster when asked for more.
REMOVALS_AT_ONCE = 4

#: Leaving waits so long for the engine to remove everything; then it is the next reaper's.
CLOSE_S_MAX = 20.0

#: Seconds without a call after which a unit is frozen. Freezing and thawing take the kernel 0.05 ms each.
FREEZE_AFTER_S = 0.05

#: Seconds that putting a unit in order may take: what goes on for longer has been stopped by the function, or hides from us.
UNSETTLED_S_MAX = 4.0

#: Idle units looked at for one that is in order: putting in order takes a millisecond, so more would find no better one.
LOOKS_MAX = 4

Code = Callable[[], AsyncIterator[bytes]]


class SandboxMaker(Protocol):
    """What makes sandboxes; `maker.Maker` does it with the engine."""

    async def make(self, shelf: Shelf) -> Booted: ...

    async def limit(self, sandbox: Sandbox, limits: Limits) -> None: ...

    async def destroy(self, booted: Booted) -> None: ...


class PooledUnit:
    """A sandbox that belongs to one function version until it ends. Implements `ports.Unit`."""

    def __init__(self, *, booted: Booted, version: FunctionVersion, phases: Mapping[str, float], cost_mb: int) -> None:
        self.booted = booted
        self.version = version
        self.key = version.key
        self.cost_mb = cost_mb
        self.cold_phases: Mapping[str, float] = phases
        self.idle_since = 0.0
        self.busy = True
        self.gone = False
        self.frozen = False
        self.freezing: asyncio.TimerHandle | None = None

    @property
    def id(self) -> str:
        return self.booted.name

    @property
    def usable(self) -> bool:
        return not self.gone and self.booted.sandbox.usable

    async def call(self, invocation: Invocation, events: CallEvents) -> Finished:
        return await self.booted.sandbox.call(invocation, events)


@dataclass(slots=True)
class _KeepWarm:
    version: FunctionVersion
    code: Code
    making: int = 0
    not_before: float = 0.0


@dataclass(slots=True)
class _Shelf:
    idle: dict[str, Booted] = field(default_factory=dict)
    waiting: deque["asyncio.Future[Booted]"] = field(default_factory=deque)
    state: ShelfState = field(default_factory=ShelfState)


class Pool:
    """An async context manager: entering starts the refill, leaving destroys every sandbox."""

    def __init__(self, *, maker: SandboxMaker, policy: Policy, now: Callable[[], float] = time.monotonic) -> None:
        self._maker = maker
        self._policy = policy
        self._now = now
        self._shelves = dict[Shelf, _Shelf]({shelf: _Shelf() for shelf in policy.generic})
        self._idle = dict[str, dict[str, PooledUnit]]()  # by version, then by unit; the last one in is the first one out
        self._lru = OrderedDict[str, PooledUnit]()  # every idle unit, longest idle first
        self._units = dict[str, PooledUnit]()  # every assigned one, busy or idle
        self._generic = dict[str, Booted]()
        self._keep_warm = dict[str, _KeepWarm]()
        self._used_mb = 0
        self._making = 0
        self._kick = asyncio.Event()
        self._background = Background("hearth-pool")
        self._removals = asyncio.Semaphore(REMOVALS_AT_ONCE)
        self._closing = False

    async def __aenter__(self) -> Self:
        self._loop_task = asyncio.create_task(self._run(), name="hearth-pool")
        self._kick.set()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Kill first, all of them; removing takes the engine a while."""
        self._closing = True
        self._loop_task.cancel()
        with suppress(asyncio.CancelledError):
            await self._loop_task
        for shelf in self._shelves.values():
            _fail(shelf.waiting, BackendUnavailable("the executor ends"))
            for booted in list(shelf.idle.values()):
                self._destroy_generic(booted)
        for unit in list(self._units.values()):
            self._destroy(unit)
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S_MAX):
                while len(self._background):
                    await self._background.drain(CLOSE_S_MAX)
        for booted in list(self._generic.values()):
            booted.sandbox.container.kill()
        await self._background.cancel()

    # -- the path of a call

    def take(self, version: FunctionVersion) -> PooledUnit | None:
        """An idle unit of this version, one that has been put in order after its last call if there is such; or None."""
        idle = self._idle.get(version.key)
        if not idle or version.spec.isolation is Isolation.FRESH:
            return None
        unit = _readiest(idle)
        if unit.frozen and not _thaw(unit):
            self._destroy(unit)
            return self.take(version)
        del idle[unit.id]
        del self._lru[unit.id]
        unit.busy = True
        unit.cold_phases = {}
        return unit

    def give_back(self, unit: PooledUnit, *, reusable: bool) -> None:
        if unit.gone:
            return
        if not reusable or not unit.usable or unit.version.spec.isolation is Isolation.FRESH or self._closing:
            self._destroy(unit)
            return
        unit.busy = False
        unit.idle_since = self._now()
        idle = self._idle.get(unit.key)
        if idle is None:
            idle = self._idle[unit.key] = {}
        idle[unit.id] = unit
        self._lru[unit.id] = unit
        if unit.freezing is None:
            unit.freezing = asyncio.get_running_loop().call_later(FREEZE_AFTER_S, self._freeze, unit)
        if self._shelf_waits():
            self._kick.set()  # somebody waits for memory that this one could make room with

    async def make(self, version: FunctionVersion, code: Code) -> PooledUnit:
        """A generic sandbox, made this version's own. Waits for one when there is none; a burst waits in turn."""
        shelf = Shelf(version.spec.runtime.value, limits.class_mb(version))
        if pool.cost_mb(shelf) > self._policy.memory_budget_mb:
            text = f"{shelf.class_mb} MiB are more than all sandboxes here may use together ({self._policy.memory_budget_mb} MiB)"
            raise SandboxError(text, reason=Reason.REJECTED)
        booted, waited = await self._acquire(shelf)
        try:
            unit = await self._assign(booted, version, code, waited)
        except BaseException:
            del self._generic[booted.name]
            self._discard(booted, pool.cost_mb(shelf))
            raise
        del self._generic[booted.name]
        self._used_mb += unit.cost_mb - pool.cost_mb(shelf)
        self._units[unit.id] = unit
        return unit

    async def _assign(self, booted: Booted, version: FunctionVersion, code: Code, waited_s: float) -> PooledUnit:
        """Stream the code in. While it unpacks and imports it has a whole processor; then what the function asked for."""
        sandbox = booted.sandbox
        await self._maker.limit(sandbox, limits.while_loading(version))
        unpacked = await sandbox.load(version, code())
        serving = limits.while_serving(version, unpacked)
        await self._maker.limit(sandbox, serving)
        if not sandbox.usable:
            raise SandboxError("the sandbox was lost while it took the code", reason=Reason.LOST)
        phases = {"create": waited_s * 1000, **sandbox.phases}
        unit = PooledUnit(booted=booted, version=version, phases=phases, cost_mb=serving.memory_bytes // MIB)
        sandbox.on_settled(lambda: self._settled(unit))
        return unit

    def report(self) -> PoolReport:
        return PoolReport(
            warm={key: len(units) for key, units in self._idle.items() if units},
            generic={str(shelf): len(state.idle) for shelf, state in self._shelves.items()},
            units=len(self._units) + len(self._generic),
        )

    def assigned(self) -> Mapping[str, int]:
        """Living units per version, busy or idle."""
        counts = dict[str, int]()
        for unit in self._units.values():
            counts[unit.key] = counts.get(unit.key, 0) + 1
        return counts

    @property
    def memory_budget_mb(self) -> int:
        return self._policy.memory_budget_mb

    @property
    def used_mb(self) -> int:
        return self._used_mb

    # -- what the service may ask beside calls

    def keep_warm(self, version: FunctionVersion, code: Code) -> None:
        """Hold `min_warm` units of this version ready from now on."""
        if version.spec.scale.min_warm > 0:
            self._keep_warm[version.key] = _KeepWarm(version, code)
            self._kick.set()

    def retire(self, key: str) -> None:
        """This version is no longer called: its idle units go now, busy ones when they are given back idle."""
        self._keep_warm.pop(key, None)
        for unit in list(self._idle.get(key, {}).values()):
            self._destroy(unit)

    # -- generic ones

    async def _acquire(self, shelf: Shelf) -> tuple[Booted, float]:
        """A generic sandbox and how long it took, seconds."""
        began = self._now()
        state = self._shelves.setdefault(shelf, _Shelf())
        state.state = replace(state.state, demand=pool.taken(state.state.demand, began))
        self._kick.set()
        while state.idle:
            _, booted = state.idle.popitem()
            if booted.sandbox.usable:
                return booted, self._now() - began
            self._destroy_generic(booted)
        if self._closing:
            raise BackendUnavailable("the executor ends")
        waiter: asyncio.Future[Booted] = asyncio.get_running_loop().create_future()
        state.waiting.append(waiter)
        try:
            async with asyncio.timeout(WAIT_S_MAX):
                return await waiter, self._now() - began
        except BaseException as error:
            if waiter in state.waiting:
                state.waiting.remove(waiter)
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._shelve(waiter.result())  # it came just as its caller gave up
            if isinstance(error, TimeoutError):
                raise NoRoom(f"no sandbox came free within {WAIT_S_MAX:.0f} s", retry_after_s=5.0) from None
            raise

    def _shelve(self, booted: Booted) -> None:
        """To whoever waits longest, else on the shelf."""
        state = self._shelves[booted.shelf]
        if self._closing or not booted.sandbox.usable:
            self._destroy_generic(booted)
            return
        while state.waiting:
            waiter = state.waiting.popleft()
            if not waiter.done():
                waiter.set_result(booted)
                return
        state.idle[booted.name] = booted

    async def _create(self, shelf: Shelf) -> None:
        state = self._shelves[shelf]
        try:
            booted = await self._maker.make(shelf)
        except (SandboxError, BackendUnavailable) as error:
            self._creation_failed(shelf, state, error)
        except BaseException as error:
            self._creation_failed(shelf, state, SandboxError(f"a container could not be made: {error!r}"))
            raise
        else:
            state.state = pool.succeeded(state.state)
            self._generic[booted.name] = booted
            self._used_mb += pool.cost_mb(shelf)
            booted.sandbox.on_lost(lambda: self._lost(booted))
            self._shelve(booted)
        finally:
            self._making -= 1
            state.state = replace(state.state, creating=state.state.creating - 1)
            self._kick.set()

    def _creation_failed(self, shelf: Shelf, state: _Shelf, error: SandboxError | BackendUnavailable) -> None:
        state.state = pool.failed(state.state, self._now())
        _log.warning("no container for %s (failure %d in a row): %s", shelf, state.state.failures, error)
        hopeless = isinstance(error, BackendUnavailable | ImageMissing)
        if hopeless or state.state.failures >= pool.FAILURES_TOLD:
            _fail(state.waiting, error)

    # -- between calls

    def _freeze(self, unit: PooledUnit) -> None:
        """What a function left running, such as a thread, gets no processor until the next call. Not at once: a busy unit
        is called again within milliseconds, and freezing it would cost more than it saves."""
        unit.freezing = None
        if unit.busy or unit.gone:
            return
        idle_s = self._now() - unit.idle_since
        left_s = FREEZE_AFTER_S - idle_s
        if idle_s > UNSETTLED_S_MAX and not unit.booted.sandbox.settled:
            self._destroy(unit)
            return
        if left_s > 0 or not unit.booted.sandbox.settled:
            again = max(left_s, FREEZE_AFTER_S / 5)
            unit.freezing = asyncio.get_running_loop().call_later(again, self._freeze, unit)
            return
        group = unit.booted.sandbox.container.cgroup
        unit.frozen = group is not None and group.freeze()

    # -- letting go

    def _settled(self, unit: PooledUnit) -> None:
        """It has been put in order after a call, or turned out to be spent: then it makes room at once."""
        if not unit.busy and not unit.usable:
            self._destroy(unit)

    def _lost(self, booted: Booted) -> None:
        """The link went while nobody had asked for it: the container is of no use."""
        unit = self._units.get(booted.name)
        if unit is not None:
            if not unit.busy:  # a busy one is given back by its caller, who learns of it from the call
                self._destroy(unit)
        elif booted.name in self._shelves[booted.shelf].idle:
            self._destroy_generic(booted)

    def _destroy(self, unit: PooledUnit) -> None:
        if unit.gone:
            return
        unit.gone = True
        if unit.freezing is not None:
            unit.freezing.cancel()
        self._lru.pop(unit.id, None)
        idle = self._idle.get(unit.key)
        if idle is not None:
            idle.pop(unit.id, None)
            if not idle:
                del self._idle[unit.key]  # versions come and go; an empty one that is called often stays
        self._units.pop(unit.id, None)
        self._discard(unit.booted, unit.cost_mb)

    def _destroy_generic(self, booted: Booted) -> None:
        self._shelves[booted.shelf].idle.pop(booted.name, None)
        if self._generic.pop(booted.name, None) is not None:
            self._discard(booted, pool.cost_mb(booted.shelf))

    def _discard(self, booted: Booted, cost_mb: int) -> None:
        booted.sandbox.container.kill()
        self._background.start(self._remove(booted, cost_mb), name=f"hearth-remove {booted.name}")

    async def _remove(self, booted: Booted, cost_mb: int) -> None:
        try:
            async with self._removals:
                await self._maker.destroy(booted)
        finally:
            self._used_mb -= cost_mb
            self._kick.set()

    # -- in the background

    async def _run(self) -> None:
        """Creates what is wanted whenever something changed, and looks at what has expired each second."""
        swept = self._now()
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(SWEEP_S):
                    await self._kick.wait()
            self._kick.clear()
            now = self._now()
            if now - swept >= SWEEP_S:
                swept = now
                self._sweep(now)
            self._refill(now)
            self._warm_up(now)

    def _sweep(self, now: float) -> None:
        for identity in pool.expired(self._idle_units(), protected=self._protected(), now=now):
            self._destroy(self._units[identity])
        for shelf in pool.surplus(self._states(), policy=self._policy, now=now):
            self._destroy_generic(next(iter(self._shelves[shelf].idle.values())))

    def _refill(self, now: float) -> None:
        plan = pool.plan(
            self._states(),
            busy=len(self._units) > len(self._lru),
            idle=self._idle_units(),
            protected=self._protected(),
            used_mb=self._used_mb + sum(pool.cost_mb(shelf) * state.state.creating for shelf, state in self._shelves.items()),
            units=len(self._units) + len(self._generic) + self._making,
            policy=self._policy,
            now=now,
        )
        for identity in plan.evict:
            self._destroy(self._units[identity])
        for shelf in plan.destroy_generic:
            self._destroy_generic(next(iter(self._shelves[shelf].idle.values())))
        for shelf in plan.create:
            state = self._shelves[shelf]
            state.state = replace(state.state, creating=state.state.creating + 1)
            self._making += 1
            self._background.start(self._create(shelf), name=f"hearth-create {shelf}")

    def _warm_up(self, now: float) -> None:
        alive = self.assigned() if self._keep_warm else {}
        for key, kept in self._keep_warm.items():
            missing = kept.version.spec.scale.min_warm - alive.get(key, 0) - kept.making
            if missing > 0 and now >= kept.not_before:
                kept.making += 1
                self._background.start(self._make_warm(kept), name=f"hearth-warm {key}")

    async def _make_warm(self, kept: _KeepWarm) -> None:
        try:
            unit = await self.make(kept.version, kept.code)
        except (SandboxError, BackendUnavailable) as error:
            kept.not_before = self._now() + pool.BACKOFF_S_MAX
            _log.warning("%s cannot be kept warm: %s", kept.version.key, error)
        else:
            self.give_back(unit, reusable=kept.version.key in self._keep_warm)
        finally:
            kept.making -= 1
            self._kick.set()

    def _states(self) -> dict[Shelf, ShelfState]:
        return {
            shelf: replace(state.state, idle=len(state.idle), waiting=len(state.waiting))
            for shelf, state in self._shelves.items()
        }

    def _idle_units(self) -> list[IdleUnit]:
        return [
            IdleUnit(
                id=unit.id, key=unit.key, cost_mb=unit.cost_mb, idle_since=unit.idle_since, idle_s=unit.version.spec.scale.idle_s
            )
            for unit in self._lru.values()
        ]

    def _protected(self) -> dict[str, int]:
        return {key: kept.version.spec.scale.min_warm for key, kept in self._keep_warm.items()}

    def _shelf_waits(self) -> bool:
        return any(state.waiting for state in self._shelves.values())


def _readiest(idle: dict[str, PooledUnit]) -> PooledUnit:
    """The last one given back has the warmest caches; but one that is not in order yet makes the call wait, so a few
    others are looked at."""
    last: PooledUnit | None = None
    for unit in islice(reversed(idle.values()), LOOKS_MAX):
        if unit.booted.sandbox.settled:
            return unit
        last = last or unit
    assert last is not None
    return last


def _thaw(unit: PooledUnit) -> bool:
    group = unit.booted.sandbox.container.cgroup
    unit.frozen = group is None or not group.thaw()
    return not unit.frozen


def _fail(waiting: deque["asyncio.Future[Booted]"], error: Exception) -> None:
    while waiting:
        waiter = waiting.popleft()
        if not waiter.done():
            waiter.set_exception(error)
