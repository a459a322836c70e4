"""Small decisions, as tables."""

import pytest

from hearth_contracts.errors import UndecodableMessage
from hearth_persister.domain.backoff import Breaker
from hearth_persister.domain.entry import decode
from hearth_persister.domain.retention import Budget, Held, leave_below

BUDGET = Budget(bytes_max=1000, records_max=100)


@pytest.mark.parametrize(
    ("held", "stored", "aged", "below"),
    [
        (Held(50, 100, 1, 50), 50, 0, 0),  # all stored, none old enough
        (Held(50, 100, 1, 50), 50, 20, 21),  # the old ones leave
        (Held(50, 100, 1, 50), 10, 20, 11),  # but none that a store lacks
        (Held(50, 100, 1, 50), 0, 50, 0),
        (Held(30, 100, 21, 50), 50, 20, 0),  # they left before
        (Held(0, 0, 51, 50), 50, 50, 0),  # nothing to do
        (Held(150, 100, 1, 150), 150, 0, 51),  # too many: the grace gives way
        (Held(150, 100, 1, 150), 40, 0, 41),  # the stores do not
        (Held(50, 900, 1, 50), 50, 0, 29),  # near the budget: down to half of the mark
        (Held(50, 900, 1, 50), 0, 0, 0),
    ],
)
def test_what_may_leave_the_broker(held, stored, aged, below):
    assert leave_below(held, stored_up_to=stored, aged_up_to=aged, budget=BUDGET) == below


def test_a_failing_store_is_left_alone_twice_as_long_each_time_up_to_a_limit():
    breaker = Breaker(0.5, 30)
    waits = []
    for number in range(1, 10):
        breaker = breaker.failed("disk full", 100.0 + number)
        waits.append(breaker.wait_s)
    assert waits == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]
    assert (breaker.open, breaker.since, breaker.why) == (True, 101.0, "disk full")
    assert breaker.succeeded() == Breaker(0.5, 30)
    assert breaker.succeeded().wait_s == 0


JOB = "hello-06gzr21w6qz8dtfg02c7gqds7d"
SUBJECT = f"hearth.v1.records.default.hello.{JOB}"
GOOD = f'{{"job":"{JOB}","tenant":"default","function":"hello","version":2,"lane":"sync","ending":{{"state":"SUCCESS"}}}}'


def test_a_record_is_read_as_far_as_needed():
    decoded = decode(SUBJECT, GOOD)
    assert decoded.persist
    assert decoded.large == ()
    assert decoded.summary[:9] == (JOB, "default", "hello", 2, "sync", "SUCCESS", "", "warm", 1)
    assert decoded.summary.submitted_at > 0  # from the id, when nobody said


@pytest.mark.parametrize(
    ("subject", "meta"),
    [
        (SUBJECT, ""),
        (SUBJECT, "[]"),
        (SUBJECT, "null"),
        (SUBJECT, "{}"),
        (SUBJECT, "[" * 100_000),
        (SUBJECT, GOOD.replace(JOB, JOB[:-1] + "0")),
        (SUBJECT, GOOD.replace('"default"', '"other"')),
        (SUBJECT, GOOD.replace('"hello"', '"other"')),
        (SUBJECT, GOOD.replace("SUCCESS", "FINE")),
        (SUBJECT, GOOD.replace('"version":2', '"version":"x"')),
        (SUBJECT, GOOD.replace('"ending":{', '"input":{"object":"../../etc"},"ending":{')),
        (SUBJECT, GOOD.replace('"ending":{', '"input":5,"ending":{')),
        ("hearth.v1.records.default.hello", GOOD),
        ("hearth.v1.records.default.hello.not-a-job", GOOD.replace(JOB, "not-a-job")),
        ("hearth.v1.records.Default.hello." + JOB, GOOD.replace("default", "Default")),
    ],
)
def test_what_is_no_record_is_said_to_be_none(subject, meta):
    with pytest.raises(UndecodableMessage):
        decode(subject, meta)
