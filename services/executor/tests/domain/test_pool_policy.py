"""What the pool creates, keeps and lets go, as tables: no engine, no clock."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hearth_executor.domain import pool
from hearth_executor.domain.pool import Demand, IdleUnit, Plan, Policy, Shelf, ShelfState

SMALL, BIG = Shelf("python", 128), Shelf("python", 512)
NOW = 1000.0


def policy(**changes) -> Policy:
    settings = {
        "memory_budget_mb": 4096, "units_max": 100, "generic": {SMALL: 4}, "generic_max": 16, "creates_at_once": 2,
    } | changes  # fmt: skip
    return Policy(**settings)


def plan(shelves, *, busy=False, idle=(), protected=None, used_mb=0, units=0, now=NOW, **changes) -> Plan:
    return pool.plan(
        shelves, busy=busy, idle=idle, protected=protected or {}, used_mb=used_mb, units=units, policy=policy(**changes), now=now
    )


def unit(name: str, *, key: str = "acme.f.1", cost_mb: int = 128, idle_for_s: float = 60, idle_s: float = 300) -> IdleUnit:
    return IdleUnit(id=name, key=key, cost_mb=cost_mb, idle_since=NOW - idle_for_s, idle_s=idle_s)


@pytest.mark.parametrize(
    ("state", "created"),
    [
        (ShelfState(), (SMALL, SMALL)),
        (ShelfState(idle=3), (SMALL,)),
        (ShelfState(idle=4), ()),
        (ShelfState(idle=3, creating=1), ()),
        (ShelfState(creating=2), ()),
        (ShelfState(waiting=1, creating=1), (SMALL,)),
    ],
    ids=["empty", "one short", "full", "one on its way", "as many at once as may be", "who waits counts as one short"],
)
def test_refill(state, created):
    """The shelf is filled to its target, and not more is created at once than the engine takes."""
    assert plan({SMALL: state}).create == created


def test_while_functions_run_the_shelf_is_refilled_one_by_one_but_who_waits_is_served_at_full_speed():
    assert plan({SMALL: ShelfState()}, busy=True).create == (SMALL,)
    assert plan({SMALL: ShelfState(creating=1)}, busy=True).create == ()
    assert plan({SMALL: ShelfState(waiting=3)}, busy=True).create == (SMALL, SMALL)


def test_who_waits_comes_before_who_might_come():
    shelves = {SMALL: ShelfState(), BIG: ShelfState(waiting=1)}
    assert plan(shelves).create == (BIG, SMALL)


def test_a_crowd_on_one_shelf_does_not_starve_another():
    shelves = {SMALL: ShelfState(waiting=50), BIG: ShelfState(waiting=1)}
    assert set(plan(shelves).create) == {SMALL, BIG}


def test_demand_raises_the_target_and_is_forgotten():
    busy = Demand()
    for number in range(60):
        busy = pool.taken(busy, NOW + number / 10)  # ten a second
    raised = pool.target(SMALL, ShelfState(demand=busy), policy(), NOW + 6)
    assert raised == 4 + 7
    assert pool.target(SMALL, ShelfState(demand=busy), policy(generic_max=6), NOW + 6) == 6
    assert pool.target(SMALL, ShelfState(demand=busy), policy(), NOW + 600) == 4


def test_a_shelf_that_nobody_keeps_full_is_filled_on_demand_and_emptied_afterwards():
    state = ShelfState(idle=1, demand=pool.taken(Demand(), NOW))
    assert pool.target(BIG, state, policy(), NOW) == 1
    assert pool.surplus({BIG: state}, policy=policy(), now=NOW) == ()
    assert pool.surplus({BIG: state}, policy=policy(), now=NOW + 120) == (BIG,)


def test_who_waits_evicts_the_longest_idle():
    shelves = {SMALL: ShelfState(waiting=1)}
    idle = [unit("oldest", idle_for_s=9), unit("younger", idle_for_s=3)]
    assert plan(shelves, idle=idle, used_mb=4096, units=32) == Plan(create=(SMALL,), evict=("oldest",))


def test_refilling_evicts_only_what_has_been_idle_for_long():
    shelves = {SMALL: ShelfState(idle=3)}
    fresh, stale = unit("fresh", idle_for_s=5), unit("stale", idle_for_s=31)
    assert plan(shelves, idle=[fresh], used_mb=4096) == Plan()
    assert plan(shelves, idle=[stale, fresh], used_mb=4096) == Plan(create=(SMALL,), evict=("stale",))


def test_what_must_stay_warm_is_never_evicted():
    shelves = {SMALL: ShelfState(waiting=1)}
    idle = [unit("kept", key="acme.kept.1"), unit("other", key="acme.other.1")]
    protected = {"acme.kept.1": 1}
    assert plan(shelves, idle=idle, protected=protected, used_mb=4096).evict == ("other",)
    assert plan(shelves, idle=idle[:1], protected=protected, used_mb=4096) == Plan()


def test_nothing_is_let_go_when_that_would_not_be_enough():
    shelves = {BIG: ShelfState(waiting=1)}
    assert plan(shelves, idle=[unit("small", cost_mb=128)], used_mb=4096) == Plan()


def test_who_waits_for_one_class_gets_the_room_of_another():
    shelves = {SMALL: ShelfState(idle=4), BIG: ShelfState(waiting=1)}
    wanted = plan(shelves, used_mb=4096, units=8)
    assert wanted == Plan(create=(BIG,), destroy_generic=(SMALL, SMALL, SMALL, SMALL))


def test_units_are_limited_as_memory_is():
    assert plan({SMALL: ShelfState(waiting=5)}, units=99, units_max=100).create == (SMALL,)
    assert plan({SMALL: ShelfState(waiting=5)}, units=100, units_max=100).create == ()


def test_after_a_failure_refilling_waits_longer_each_time_and_callers_wait_little():
    state = ShelfState()
    for _ in range(4):
        state = pool.failed(state, NOW)
    assert pool.backoff_s(state) == 4.0
    assert plan({SMALL: state}, now=NOW + 3.9).create == ()
    assert plan({SMALL: state}, now=NOW + 4.0).create == (SMALL, SMALL)
    waiting = pool.failed(ShelfState(waiting=1), NOW)
    assert plan({BIG: waiting}, now=NOW + 0.4).create == ()
    assert plan({BIG: waiting}, now=NOW + 0.5).create == (BIG,)
    assert pool.backoff_s(pool.succeeded(state)) == 0.0


def test_idle_units_expire_by_their_functions_own_time_but_for_the_kept():
    idle = [unit("a", idle_for_s=70, idle_s=60), unit("b", idle_for_s=65, idle_s=60), unit("c", idle_for_s=50, idle_s=60)]
    assert pool.expired(idle, protected={}, now=NOW) == ("a", "b")
    assert pool.expired(idle, protected={"acme.f.1": 2}, now=NOW) == ("a",)
    assert pool.expired(idle[:2], protected={"acme.f.1": 2}, now=NOW) == ()


shelf_states = st.builds(
    ShelfState, idle=st.integers(0, 10), creating=st.integers(0, 3), waiting=st.integers(0, 60), failures=st.just(0)
)
idle_units = st.lists(
    st.builds(
        IdleUnit, id=st.uuids().map(str), key=st.sampled_from(["acme.f.1", "acme.g.1", "beta.f.2"]), cost_mb=st.integers(64, 600),
        idle_since=st.floats(0, NOW), idle_s=st.just(300.0),
    ),
    max_size=12,
)  # fmt: skip


@given(shelf_states, shelf_states, idle_units, st.integers(0, 3), st.integers(512, 4096), st.integers(0, 3000))
def test_a_plan_never_exceeds_the_budget_nor_lets_go_for_nothing(small, big, idle, kept, budget_mb, busy_mb):
    shelves = {SMALL: small, BIG: big}
    generic_mb = small.idle * 128 + big.idle * 512
    used = busy_mb + generic_mb + sum(unit.cost_mb for unit in idle)
    made = plan(shelves, idle=idle, protected={"acme.f.1": kept}, used_mb=used, units=len(idle), memory_budget_mb=budget_mb)
    freed = sum(unit.cost_mb for unit in idle if unit.id in made.evict) + sum(shelf.class_mb for shelf in made.destroy_generic)
    added = sum(shelf.class_mb for shelf in made.create)
    assert not made.create or used + added - freed <= budget_mb
    assert made.create or not (made.evict or made.destroy_generic)
    assert len(made.create) + small.creating + big.creating <= max(2, small.creating + big.creating)
    assert len(set(made.evict)) == len(made.evict)
    left = sum(unit.key == "acme.f.1" and unit.id not in made.evict for unit in idle)
    assert left >= min(kept, sum(unit.key == "acme.f.1" for unit in idle))
    for shelf, state in shelves.items():
        assert made.destroy_generic.count(shelf) <= state.idle
