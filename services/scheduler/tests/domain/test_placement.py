"""Where a call goes, as a table of fleets."""

import time

import pytest

from hearth_contracts.enums import Reason
from hearth_contracts.fleet import Capacity
from hearth_scheduler.domain.fleet import Fleet
from hearth_scheduler.domain.placement import Hindrance, Job, Placed, Reject, Wait, Wants, Why, place

KEY = "acme.hello.1"
NOW = 1000.0


def wants(labels: dict[str, str] | None = None, running_max: int = 100, key: str = KEY, class_mb: int = 128) -> Wants:
    function = key.rpartition(".")[0]
    needs = ("python", "container", tuple(sorted((labels or {}).items())))
    return Wants(key, function, needs, f"python/{class_mb}", class_mb, running_max, keeps=True)


def report(name: str, **fields: object) -> Capacity:
    base = {
        "executor": f"{name}-00000000", "name": name, "at": NOW, "slots": 4, "free": 4, "backends": ("container",),
        "runtimes": ("python",), "memory_free_mb": 1024, "running": 4 - int(fields.get("free", 4)),  # pyright: ignore[reportArgumentType]
    }  # fmt: skip
    return Capacity.model_validate(base | fields)


def fleet_of(*reports: Capacity, now: float = NOW) -> Fleet:
    fleet = Fleet()
    for said in reports:
        fleet.heard(said, now)
        fleet.admitted(said.executor)
    return fleet


def chosen(fleet: Fleet, job: Job, now: float = NOW) -> tuple[str, Why]:
    decision = place(job, fleet, now)
    assert isinstance(decision, Placed), decision
    return decision.executor.id.rpartition("-")[0], decision.why


def put(fleet: Fleet, job: str, name: str, want: Wants | None = None, *, sequence: int = 0, generic: str = "") -> None:
    asked = want or wants()
    live = fleet.reserve(
        fleet.executors[f"{name}-00000000"], job, key=asked.key, function=asked.function, generic=generic, sync=True, keeps=True,
        now=NOW,
    )  # fmt: skip
    if sequence:
        fleet.stored(job, live, sequence)


ORDER = {
    "an idle sandbox of the version": (
        [report("a", generic={"python/128": 2}), report("b", free=1, warm={KEY: 1}, assigned={KEY: 1})], ("b", Why.WARM)),
    "then a booted one of its runtime and size": (
        [report("a"), report("b", free=1, generic={"python/128": 1})], ("b", Why.GENERIC)),
    "a booted one of another size does not count": (
        [report("a", free=2, generic={"python/256": 3}), report("b")], ("b", Why.FREE)),
    "then any free slot with memory": (
        [report("a", memory_free_mb=64), report("b", free=1)], ("b", Why.FREE)),
    "then one where another sandbox has to go": ([report("a", memory_free_mb=64)], ("a", Why.EVICT)),
    "last the short queue where the version lives": (
        [report("a", free=0, queue_room=9), report("b", free=0, queue_room=2, assigned={KEY: 1})], ("b", Why.QUEUE)),
    "a cold slot before a queue": (
        [report("a", free=0, queue_room=9, assigned={KEY: 4}), report("b", free=1)], ("b", Why.FREE)),
    "among equals the emptier one": (
        [report("a", free=1, generic={"python/128": 1}), report("b", free=3, generic={"python/128": 1})], ("b", Why.GENERIC)),
    "emptier by its part, not by its number": (
        [report("a", slots=16, free=4, running=12), report("b", slots=4, free=3)], ("b", Why.FREE)),
}  # fmt: skip


@pytest.mark.parametrize("case", ORDER)
def test_the_order_of_choice(case: str) -> None:
    reports, expected = ORDER[case]
    assert chosen(fleet_of(*reports), Job(wants())) == expected


NOBODY = {
    "no executor": [],
    "another runtime": [report("a", runtimes=("node",))],
    "no backend": [report("a", backends=())],
    "labels": [report("a", labels={"zone": "core"})],
    "draining": [report("a", labels={"zone": "edge"}, draining=True)],
}


@pytest.mark.parametrize("case", NOBODY)
def test_it_waits_for_somebody_who_could_run_it(case: str) -> None:
    assert place(Job(wants({"zone": "edge"})), fleet_of(*NOBODY[case]), NOW) == Wait(Hindrance.NOBODY)


def test_an_executor_whose_consumers_do_not_exist_yet_gets_nothing() -> None:
    fleet = Fleet()
    fleet.heard(report("a"), NOW)
    assert place(Job(wants()), fleet, NOW) == Wait(Hindrance.NOBODY)


def test_labels_hold_for_a_warm_sandbox_too() -> None:
    fleet = fleet_of(report("a", warm={KEY: 1}, assigned={KEY: 1}), report("b", labels={"zone": "edge"}))
    assert chosen(fleet, Job(wants({"zone": "edge"}))) == ("b", Why.FREE)


def test_a_silent_executor_gets_nothing() -> None:
    fleet = fleet_of(report("a", warm={KEY: 1}, assigned={KEY: 1}))
    fleet.heard(report("b"), NOW + 2)
    fleet.admitted("b-00000000")
    assert chosen(fleet, Job(wants()), NOW + 2.9) == ("a", Why.WARM)
    assert chosen(fleet, Job(wants()), NOW + 3.1) == ("b", Why.FREE)
    assert place(Job(wants()), fleet, NOW + 5.1) == Wait(Hindrance.BUSY)


def test_what_was_placed_counts_before_it_is_reported() -> None:
    fleet = fleet_of(report("a", slots=2, free=2, warm={KEY: 1}, assigned={KEY: 1}, generic={"python/128": 1}))
    assert chosen(fleet, Job(wants())) == ("a", Why.WARM)
    put(fleet, "j1", "a", sequence=7)
    assert chosen(fleet, Job(wants())) == ("a", Why.GENERIC)
    put(fleet, "j2", "a", sequence=8, generic="python/128")
    assert place(Job(wants()), fleet, NOW) == Wait(Hindrance.BUSY)


def test_a_report_that_includes_a_run_does_not_count_it_twice() -> None:
    fleet = fleet_of(report("a", slots=2, free=2))
    put(fleet, "j1", "a", sequence=7)
    fleet.heard(report("a", slots=2, free=1, running=1, accepted_sync=7, assigned={KEY: 1}), NOW)
    assert fleet.executors["a-00000000"].free == 1
    put(fleet, "j2", "a", sequence=8)
    assert fleet.executors["a-00000000"].free == 0


def test_an_acknowledgement_that_comes_after_the_report() -> None:
    fleet = fleet_of(report("a", slots=2, free=2))
    asked = wants()
    live = fleet.reserve(
        fleet.executors["a-00000000"], "j1", key=asked.key, function=asked.function, generic="", sync=True, keeps=True, now=NOW
    )
    fleet.heard(report("a", slots=2, free=1, running=1, accepted_sync=7, assigned={KEY: 1}), NOW)
    fleet.stored("j1", live, 7)
    assert fleet.executors["a-00000000"].free == 1


def test_a_call_that_ended_in_the_middle_of_a_report_leaves_its_sandbox_warm() -> None:
    """One caller, call after call: the next one finds the sandbox that the last one left, whatever the report says."""
    fleet = fleet_of(report("a", generic={"python/128": 4}), report("b", free=3, warm={KEY: 1}, assigned={KEY: 1}))
    for number in range(1, 20):
        assert chosen(fleet, Job(wants())) == ("b", Why.WARM)
        put(fleet, f"j{number}", "b", sequence=number)
        # The report falls into the run.
        fleet.heard(report("b", slots=4, free=3, running=1, assigned={KEY: 1}, warm={}, accepted_sync=number), NOW)
        fleet.ended(f"j{number}", own=True)


def test_a_sandbox_made_for_a_call_is_known_at_its_end() -> None:
    fleet = fleet_of(report("a"), report("b", free=3))
    assert chosen(fleet, Job(wants())) == ("a", Why.FREE)
    put(fleet, "j1", "a", sequence=1)
    fleet.ended("j1", own=True)
    assert chosen(fleet, Job(wants())) == ("a", Why.WARM)


def test_a_sandbox_that_dies_with_its_call_is_not_expected() -> None:
    fleet = fleet_of(report("a"))
    asked = wants()
    fleet.reserve(
        fleet.executors["a-00000000"], "j1", key=asked.key, function=asked.function, generic="", sync=True, keeps=False, now=NOW
    )
    fleet.ended("j1", own=True)
    assert chosen(fleet, Job(asked)) == ("a", Why.FREE)


def test_what_an_earlier_scheduler_placed_is_not_taken_for_free() -> None:
    fleet = fleet_of(report("a", slots=4, free=0, running=4, assigned={KEY: 4}, accepted_sync=9))
    assert place(Job(wants()), fleet, NOW) == Wait(Hindrance.BUSY)
    assert fleet.running["acme.hello"] == 4


def test_no_more_run_than_the_function_allows() -> None:
    fleet = fleet_of(report("a"))
    put(fleet, "j1", "a")
    assert place(Job(wants(running_max=1)), fleet, NOW) == Wait(Hindrance.MAXIMUM)
    fleet.ended("j1", own=True)
    assert isinstance(place(Job(wants(running_max=1)), fleet, NOW), Placed)


def test_a_dispatch_whose_end_was_not_heard_does_not_hold_its_place_for_ever() -> None:
    fleet = fleet_of(report("a"))
    put(fleet, "j1", "a", sequence=1)
    fleet.heard(report("a", accepted_sync=1), NOW + 1)
    fleet.tick(NOW + 1)
    assert place(Job(wants(running_max=1)), fleet, NOW + 1) == Wait(Hindrance.MAXIMUM)
    fleet.heard(report("a", accepted_sync=1), NOW + 4)
    fleet.tick(NOW + 4)
    assert isinstance(place(Job(wants(running_max=1)), fleet, NOW + 4), Placed)


def test_nothing_more_is_queued_where_somebody_waits_for_a_slot() -> None:
    fleet = fleet_of(report("a", free=0, queue_room=9, assigned={KEY: 4}))
    assert chosen(fleet, Job(wants())) == ("a", Why.QUEUE)
    fleet.executors["a-00000000"].owed = 1
    assert place(Job(wants()), fleet, NOW) == Wait(Hindrance.BUSY)


def test_an_earlier_dispatch_is_joined() -> None:
    fleet = fleet_of(report("a", free=0, running=4), report("b", warm={KEY: 1}, assigned={KEY: 1}))
    assert chosen(fleet, Job(wants(), beside="a-00000000")) == ("a", Why.BESIDE)
    assert chosen(fleet, Job(wants(), beside="gone-00000000")) == ("b", Why.WARM)


def test_the_seventeenth_in_a_chain_is_refused() -> None:
    assert isinstance(place(Job(wants(), depth=16), fleet_of(report("a")), NOW), Placed)
    decision = place(Job(wants(), depth=17), fleet_of(report("a")), NOW)
    assert isinstance(decision, Reject)
    assert decision.reason is Reason.RECURSION


def test_the_dead_are_named_until_they_are_buried_and_not_believed_after() -> None:
    fleet = fleet_of(report("a"))
    assert fleet.tick(NOW + 9.9).dead == ()
    assert fleet.tick(NOW + 10).dead == ("a-00000000",)
    fleet.condemn("a-00000000")
    assert place(Job(wants()), fleet, NOW + 10) == Wait(Hindrance.NOBODY)
    fleet.bury("a-00000000")
    assert fleet.heard(report("a"), NOW + 11) is None
    assert fleet.tick(NOW + 30).dead == ()


def test_silence_that_nobody_could_have_broken_does_not_count() -> None:
    """The broker was away for longer than it takes to be dead."""
    fleet = fleet_of(report("a"))
    fleet.listen_anew(NOW + 60)
    assert fleet.tick(NOW + 60.1).dead == ()
    assert fleet.tick(NOW + 70).dead == ("a-00000000",)


def test_the_sync_lanes_end_frees_what_no_executor_had_taken_in() -> None:
    fleet = fleet_of(report("a", slots=2, free=2))
    put(fleet, "j1", "a", sequence=7)
    assert fleet.executors["a-00000000"].free == 1
    fleet.memory_lost()
    assert fleet.executors["a-00000000"].free == 2
    put(fleet, "j2", "a", sequence=1)
    assert fleet.executors["a-00000000"].free == 1


@pytest.mark.long
@pytest.mark.parametrize("warm", [True, False])
def test_a_decision_takes_ten_microseconds_at_fifty_executors(warm: bool) -> None:
    pools = {"warm": {KEY: 1}, "assigned": {KEY: 1}} if warm else {"generic": {"python/128": 1}}
    fleet = fleet_of(*(report(f"e{number}", free=1 + number % 4, **pools) for number in range(50)))
    job = Job(wants())
    best = float("inf")
    for _ in range(20):
        began = time.process_time()
        for _ in range(500):
            place(job, fleet, NOW)
        best = min(best, (time.process_time() - began) / 500)
    assert best < 10e-6, f"{best * 1e6:.1f} us"
