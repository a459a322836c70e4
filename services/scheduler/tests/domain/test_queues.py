"""Whose turn it is."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from hearth_scheduler.domain.depth import grant, waiting, window
from hearth_scheduler.domain.queues import FairQueue


def fill(queue: FairQueue[str], tenant: str, function: str, count: int) -> None:
    line = queue.line(tenant, f"{tenant}.{function}")
    for number in range(count):
        queue.push(line, f"{tenant}.{function}#{number}")


def served(queue: FairQueue[str], count: int) -> list[str]:
    out: list[str] = []
    while len(out) < count and (line := queue.head()) is not None:
        out.append(queue.take(line))
    return out


def test_within_a_function_first_come_first_served() -> None:
    queue: FairQueue[str] = FairQueue()
    fill(queue, "a", "f", 5)
    assert served(queue, 9) == [f"a.f#{number}" for number in range(5)]
    assert len(queue) == 0


def test_a_late_tenant_does_not_wait_behind_a_backlog() -> None:
    """10,000 jobs of A, then one of B: B is next."""
    queue: FairQueue[str] = FairQueue()
    fill(queue, "a", "f", 10_000)
    served(queue, 100)
    fill(queue, "b", "f", 1)
    assert "b.f#0" in served(queue, 2)


def test_a_late_function_of_the_same_tenant_does_not_either() -> None:
    queue: FairQueue[str] = FairQueue()
    fill(queue, "a", "busy", 10_000)
    served(queue, 100)
    fill(queue, "a", "late", 1)
    assert "a.late#0" in served(queue, 2)


def test_many_functions_do_not_make_a_tenant_more() -> None:
    queue: FairQueue[str] = FairQueue()
    for number in range(10):
        fill(queue, "many", f"f{number}", 100)
    fill(queue, "one", "f", 100)
    counts = Counter(item.partition(".")[0] for item in served(queue, 100))
    assert abs(counts["many"] - counts["one"]) <= 1


def test_served_is_counted_in_time_not_in_calls() -> None:
    """A function of 1 s beside one of 10 ms: the same seconds, so about a hundred times the calls."""
    queue: FairQueue[str] = FairQueue()
    fill(queue, "slow", "f", 1000)
    fill(queue, "fast", "f", 5000)
    seconds = {"slow": 1.0, "fast": 0.01}
    counts: Counter[str] = Counter()
    for _ in range(2000):
        line = queue.head()
        assert line is not None
        queue.take(line)
        counts[line.tenant.name] += 1
        line.took(seconds[line.tenant.name])
    assert 60 <= counts["fast"] / counts["slow"] <= 140


def test_idleness_saves_nothing_up() -> None:
    queue: FairQueue[str] = FairQueue()
    fill(queue, "idle", "f", 1)
    served(queue, 1)
    fill(queue, "busy", "f", 1000)
    served(queue, 500)
    fill(queue, "idle", "f", 1000)
    counts = Counter(item.partition(".")[0] for item in served(queue, 100))
    assert abs(counts["idle"] - counts["busy"]) <= 2


def test_a_blocked_line_lets_others_pass_and_comes_back_at_its_turn() -> None:
    queue: FairQueue[str] = FairQueue()
    fill(queue, "a", "f", 2)
    fill(queue, "b", "f", 2)
    first = queue.head()
    assert first is not None
    queue.block(first)
    other = queue.head()
    assert other is not None
    assert other is not first
    served(queue, 2)
    assert queue.head() is None
    assert queue.unblock(10) == [first]
    assert served(queue, 9) == [f"{first.name}#0", f"{first.name}#1"]


def test_the_longest_blocked_is_let_go_first_and_only_so_many() -> None:
    queue: FairQueue[str] = FairQueue()
    for name in "abcd":
        fill(queue, name, "f", 1)
    order = []
    while (line := queue.head()) is not None:
        order.append(line)
        queue.block(line)
    assert queue.unblock(2) == order[:2]
    assert queue.blocked == order[2:]


def test_what_has_waited_goes_back_to_the_head() -> None:
    queue: FairQueue[str] = FairQueue()
    fill(queue, "a", "f", 2)
    line = queue.head()
    assert line is not None
    item = queue.take(line)
    queue.push(line, item, first=True)
    assert served(queue, 2) == ["a.f#0", "a.f#1"]


def test_a_cancelled_one_leaves_its_queue() -> None:
    queue: FairQueue[str] = FairQueue()
    fill(queue, "a", "f", 3)
    line = queue.lines["a.f"]
    assert queue.discard(line, "a.f#1")
    assert not queue.discard(line, "a.f#1")
    assert served(queue, 9) == ["a.f#0", "a.f#2"]
    assert queue.head() is None


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("push"), st.sampled_from("abc"), st.sampled_from("fg")),
            st.tuples(st.sampled_from(["take", "block", "unblock", "return"]), st.just(""), st.just("")),
        ),
        max_size=80,
    )
)
def test_nothing_is_lost_nothing_comes_twice(steps: list[tuple[str, str, str]]) -> None:
    queue: FairQueue[str] = FairQueue()
    pushed: list[str] = []
    taken: list[str] = []
    for number, (step, tenant, function) in enumerate(steps):
        line = queue.head()
        if step == "push":
            pushed.append(str(number))
            queue.push(queue.line(tenant, f"{tenant}.{function}"), str(number))
        elif step == "unblock":
            queue.unblock(1)
        elif line is None:
            continue
        elif step == "take":
            taken.append(queue.take(line))
        elif step == "block":
            queue.block(line)
        else:
            queue.push(line, queue.take(line), first=True)
    queue.unblock(100)
    taken += served(queue, 1000)
    assert sorted(taken) == sorted(pushed)
    assert len(queue) == 0


def test_one_job_is_always_asked_for_and_more_while_there_is_room() -> None:
    assert window(behind=0, open_slots=100) == 1
    assert window(behind=100, open_slots=0) == 1
    assert window(behind=100, open_slots=7) == 8
    assert window(behind=3, open_slots=7) == 4
    assert window(behind=10_000, open_slots=10_000) == 64
    assert waiting(held=2, behind=5) == 7


def test_jobs_are_asked_for_in_portions_and_one_always() -> None:
    assert grant(wanted=1, held=0, asked=0) == 1
    assert grant(wanted=1, held=1, asked=0) == 0
    assert grant(wanted=40, held=10, asked=25) == 0
    assert grant(wanted=40, held=10, asked=20) == 10
    assert grant(wanted=40, held=39, asked=0) == 1
    assert grant(wanted=1, held=5, asked=3) == 0
