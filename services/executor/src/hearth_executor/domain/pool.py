"""How many sandboxes to keep, of what kind, and which to let go: two tiers within one budget of memory.

Generic ones are booted and hold no code; assigned ones belong to one function version until they end.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

#: A cold start's demand for generic sandboxes is forgotten by half in this time.
DEMAND_HALF_LIFE_S = 30.0

#: The shelf should hold what is asked for within this time: several creations, which take 0.3-0.5 s each.
DEMAND_HORIZON_S = 5.0

#: Only to fill the generic shelf, an assigned sandbox is let go after this long without a call. Who waits for a sandbox
#: need not respect it.
IDLE_BEFORE_REFILL_S = 30.0

#: After a creation failed, the shelf is not refilled for so long, doubling with each failure in a row. Who waits is tried
#: for again after the first of these: a call is better told soon than late.
BACKOFF_S = 0.5
BACKOFF_S_MAX = 15.0

#: Failed creations in a row after which those who wait are told instead of waiting on.
FAILURES_TOLD = 3


class Shelf(NamedTuple):
    """What generic sandboxes are told apart by."""

    runtime: str
    class_mb: int

    def __str__(self) -> str:
        return f"{self.runtime}/{self.class_mb}"


@dataclass(frozen=True, slots=True)
class Policy:
    memory_budget_mb: int
    """All sandboxes' limits together."""
    units_max: int
    generic: Mapping[Shelf, int]
    """How many to keep ready when nothing is asked for."""
    generic_max: int
    """How many at most of one shelf, whatever the demand."""
    creates_at_once: int
    """The engine and the kernel start containers no faster when asked for more."""


@dataclass(frozen=True, slots=True)
class Demand:
    """A decaying count of generic sandboxes taken: `level` as of `at`."""

    level: float = 0.0
    at: float = 0.0


def decayed(demand: Demand, now: float) -> Demand:
    return Demand(demand.level * 0.5 ** (max(0.0, now - demand.at) / DEMAND_HALF_LIFE_S), now)


def taken(demand: Demand, now: float) -> Demand:
    current = decayed(demand, now)
    return Demand(current.level + 1.0, now)


def rate(demand: Demand, now: float) -> float:
    """Taken per second, lately."""
    return decayed(demand, now).level * math.log(2) / DEMAND_HALF_LIFE_S


@dataclass(frozen=True, slots=True)
class ShelfState:
    idle: int = 0
    creating: int = 0
    waiting: int = 0
    demand: Demand = field(default_factory=Demand)
    failures: int = 0
    failed_at: float = -math.inf


@dataclass(frozen=True, slots=True)
class IdleUnit:
    """An assigned sandbox without a call, as eviction sees it."""

    id: str
    key: str
    cost_mb: int
    idle_since: float
    idle_s: float


@dataclass(frozen=True, slots=True)
class Plan:
    create: tuple[Shelf, ...] = ()
    destroy_generic: tuple[Shelf, ...] = ()
    """One of each named shelf, as often as named."""
    evict: tuple[str, ...] = ()


def target(shelf: Shelf, state: ShelfState, policy: Policy, now: float) -> int:
    """How many of a shelf should be ready when nobody waits."""
    base = policy.generic.get(shelf, 0)
    wanted = base + math.ceil(rate(state.demand, now) * DEMAND_HORIZON_S - 0.05)
    return max(base, min(wanted, policy.generic_max))


def failed(state: ShelfState, now: float) -> ShelfState:
    return replace(state, failures=state.failures + 1, failed_at=now)


def succeeded(state: ShelfState) -> ShelfState:
    return replace(state, failures=0, failed_at=-math.inf)


def backoff_s(state: ShelfState) -> float:
    return 0.0 if state.failures == 0 else min(BACKOFF_S * 2.0 ** (state.failures - 1), BACKOFF_S_MAX)


def cost_mb(shelf: Shelf) -> int:
    return shelf.class_mb


def plan(
    shelves: Mapping[Shelf, ShelfState],
    *,
    busy: bool,
    idle: Iterable[IdleUnit],
    protected: Mapping[str, int],
    used_mb: int,
    units: int,
    policy: Policy,
    now: float,
) -> Plan:
    """What to create and what to let go now. Who waits comes first, then the emptiest shelf. While functions run (`busy`)
    the shelf is refilled one by one: a creation keeps a processor busy for a quarter of a second, and calls come first.

    `idle` comes longest idle first; `protected` is how many of each version may not be evicted.
    """
    room = _Room(policy, used_mb, units, list(idle), dict(protected), {shelf: state.idle for shelf, state in shelves.items()})
    creating = sum(state.creating for state in shelves.values())
    create = list[Shelf]()
    for shelf, urgent in _wanted(shelves, policy, now):
        if creating + len(create) >= (policy.creates_at_once if urgent or not busy else 1):
            break
        if room.make(shelf, urgent=urgent, now=now):
            create.append(shelf)
    return Plan(tuple(create), tuple(room.destroyed), tuple(room.evicted))


def surplus(shelves: Mapping[Shelf, ShelfState], *, policy: Policy, now: float) -> tuple[Shelf, ...]:
    """Generic sandboxes above what demand still asks for: one of each shelf at a time, so that it shrinks slowly."""
    return tuple(
        shelf for shelf, state in shelves.items() if state.idle > target(shelf, state, policy, now) and not state.waiting
    )


def expired(idle: Iterable[IdleUnit], *, protected: Mapping[str, int], now: float) -> tuple[str, ...]:
    """Assigned sandboxes idle for longer than their function wants, but never its last `min_warm`."""
    units = list(idle)
    left = dict[str, int]()
    for unit in units:
        left[unit.key] = left.get(unit.key, 0) + 1
    gone = list[str]()
    for unit in units:
        if now - unit.idle_since >= unit.idle_s and left[unit.key] > protected.get(unit.key, 0):
            left[unit.key] -= 1
            gone.append(unit.id)
    return tuple(gone)


def _wanted(shelves: Mapping[Shelf, ShelfState], policy: Policy, now: float) -> list[tuple[Shelf, bool]]:
    """Creations wanted, most urgent first: round by round over the shelves, so that none waits for another's crowd."""
    urgent, refill = list[tuple[int, Shelf]](), list[tuple[int, Shelf]]()
    for shelf, state in shelves.items():
        coming, since = state.idle + state.creating, now - state.failed_at
        if since >= BACKOFF_S or not state.failures:
            urgent += [(number, shelf) for number in range(max(0, state.waiting - coming))]
        if since >= backoff_s(state):
            refill += [(number, shelf) for number in range(max(0, coming - state.waiting), target(shelf, state, policy, now))]
    return [(shelf, True) for _, shelf in sorted(urgent)] + [(shelf, False) for _, shelf in sorted(refill)]


class _Room:
    """What is left of the budget while a plan is made, and what had to go for it."""

    def __init__(
        self, policy: Policy, used_mb: int, units: int, idle: list[IdleUnit], protected: dict[str, int], generic: dict[Shelf, int]
    ) -> None:
        self._policy = policy
        self._used_mb = used_mb
        self._units = units
        self._idle = idle
        self._generic = generic
        self._spare = dict[str, int]()
        for unit in idle:
            self._spare[unit.key] = self._spare.get(unit.key, 0) + 1
        for key, count in protected.items():
            self._spare[key] = self._spare.get(key, 0) - count
        self.evicted = list[str]()
        self.destroyed = list[Shelf]()

    def make(self, shelf: Shelf, *, urgent: bool, now: float) -> bool:
        """Take room for one more, letting go what may go. False, and nothing let go, when there is none."""
        evict, destroy = list[IdleUnit](), list[Shelf]()
        used, units = self._used_mb + cost_mb(shelf), self._units + 1
        spare, generic = dict(self._spare), dict(self._generic)
        for unit in self._idle:
            if self._fits(used, units):
                break
            old_enough = urgent or now - unit.idle_since >= IDLE_BEFORE_REFILL_S
            if old_enough and spare.get(unit.key, 0) > 0:
                spare[unit.key] -= 1
                evict.append(unit)
                used, units = used - unit.cost_mb, units - 1
        for other in sorted(generic, reverse=True) if urgent else ():
            while other != shelf and generic[other] > 0 and not self._fits(used, units):
                generic[other] -= 1
                destroy.append(other)
                used, units = used - cost_mb(other), units - 1
        if not self._fits(used, units):
            return False
        self._used_mb, self._units, self._spare, self._generic = used, units, spare, generic
        self._idle = [unit for unit in self._idle if unit not in evict]
        self.evicted += [unit.id for unit in evict]
        self.destroyed += destroy
        return True

    def _fits(self, used_mb: int, units: int) -> bool:
        return used_mb <= self._policy.memory_budget_mb and units <= self._policy.units_max
