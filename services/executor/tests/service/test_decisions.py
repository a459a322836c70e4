"""The executor's pure decisions, as tables."""

import pytest

from hearth_contracts.calls import Call, Run
from hearth_contracts.enums import Lane, Persist, Reason, State
from hearth_executor.domain import ending, queue_room
from hearth_executor.domain.ending import Way
from hearth_executor.domain.intake import Arrival, Twin, Verdict, decide
from hearth_executor.domain.queue_room import Pace


def arrival(**fields) -> Arrival:
    return Arrival(**({"attempt": 1, "placement": 0, "epoch": 5, "delivered": 1} | fields))


@pytest.mark.parametrize(
    ("fields", "state", "verdict"),
    [
        ({}, {}, Verdict.RUN),
        ({"attempt": 2}, {}, Verdict.LOOK_FIRST),
        ({"placement": 1}, {}, Verdict.LOOK_FIRST),
        ({"delivered": 2}, {}, Verdict.LOOK_FIRST),
        ({"cancelled": True}, {}, Verdict.LOOK_FIRST),
        ({"epoch": 4}, {}, Verdict.STALE_EPOCH),
        ({"epoch": 6}, {}, Verdict.RUN),
        ({}, {"draining": True}, Verdict.HAND_BACK),
        ({}, {"full": True}, Verdict.FULL),
        ({"settled": True}, {"draining": True}, Verdict.SETTLED),
        ({"settled": True, "epoch": 1}, {}, Verdict.SETTLED),
        ({"delivered": 2, "twin": Twin(0, ending=False)}, {}, Verdict.SAME),
        ({"delivered": 2, "twin": Twin(0, ending=True)}, {"draining": True}, Verdict.SAME),
        ({"epoch": 1, "twin": Twin(0, ending=False)}, {}, Verdict.SAME),
        ({"placement": 1, "twin": Twin(2, ending=False)}, {}, Verdict.SAME),
        ({"placement": 1, "twin": Twin(0, ending=False)}, {"draining": True}, Verdict.ADOPT),
        ({"placement": 1, "epoch": 4, "twin": Twin(0, ending=False)}, {}, Verdict.STALE_EPOCH),
        ({"placement": 1, "twin": Twin(0, ending=True)}, {}, Verdict.LOOK_FIRST),
    ],
)
def test_what_to_do_with_a_run(fields, state, verdict):
    assert decide(arrival(**fields), **({"epoch_seen": 5, "draining": False, "full": False} | state)) is verdict


def run(*, lane: Lane = Lane.SYNC, attempt: int = 1, placement: int = 0, is_last: bool = True) -> Run:
    call = Call(job="f-" + "0" * 26, tenant="t", function="f", version=1, lane=lane, submitted_at=0, attempt=attempt)
    return Run(call=call, executor="e-00000000", placement=placement, epoch=1, is_last=is_last, placed_at=0, reason="free")


@pytest.mark.parametrize(
    ("placed", "reason", "way"),
    [
        (run(), None, Way.REPLY_FIRST),
        (run(), Reason.ERROR, Way.REPLY_FIRST),
        (run(), Reason.CANCELLED, Way.RECORD_FIRST),
        (run(placement=1), None, Way.RECORD_FIRST),
        (run(attempt=2), None, Way.RECORD_FIRST),
        (run(lane=Lane.ASYNC), None, Way.RECORD_FIRST),
        *((run(is_last=False), reason, Way.OUTCOME) for reason in sorted(ending.RETRYABLE)),
        (run(is_last=False, lane=Lane.ASYNC), Reason.TIMEOUT, Way.OUTCOME),
        (run(is_last=False), Reason.BAD_RESULT, Way.REPLY_FIRST),
        (run(is_last=False, lane=Lane.ASYNC), Reason.IMAGE, Way.RECORD_FIRST),
        (run(is_last=False), None, Way.REPLY_FIRST),
    ],
)
def test_which_way_an_ending_is_told(placed, reason, way):
    assert ending.way(placed, reason) is way


@pytest.mark.parametrize(
    ("persist", "state", "kept"),
    [
        (Persist.ALL, State.FAILED, True), (Persist.SUCCESS, State.SUCCESS, True), (Persist.SUCCESS, State.FAILED, False),
        (Persist.OFF, State.SUCCESS, False),
    ],
)  # fmt: skip
def test_what_the_stores_keep(persist, state, kept):
    assert ending.persisted(persist, state) is kept


def pace(ms: float | None, seen_at: float = 100.0) -> Pace:
    return Pace(ms, seen_at)


@pytest.mark.parametrize(
    ("paces", "room"),
    [
        ([], 0),
        ([pace(None)], 0),
        ([pace(1.0)], 4 * 16),
        ([pace(2.0)], 4 * 10),
        ([pace(9.0)], 4 * 2),
        ([pace(11.0)], 0),
        ([pace(1.0), pace(500.0)], 0),
        ([pace(1.0), pace(None)], 0),
        ([pace(1.0), pace(500.0, seen_at=90.0)], 4 * 16),
        ([pace(1.0, seen_at=90.0)], 0),
    ],
)
def test_room_ahead_of_a_freed_slot(paces, room):
    assert queue_room.room(paces, slots=4, now=100.0) == room


def test_a_pace_follows_the_last_calls():
    known = Pace()
    for _ in range(30):
        known.took(1.0)
    for _ in range(30):
        known.took(100.0)
    assert known.ms == pytest.approx(100.0, rel=0.01)


@pytest.mark.parametrize(
    ("heads", "freed", "chosen"),
    [
        ({"a": 1.0, "b": 1.02}, "b", "b"),
        ({"a": 1.0, "b": 1.06}, "b", "a"),
        ({"a": 1.0, "b": 2.0}, "c", "a"),
        ({"b": 2.0}, "b", "b"),
    ],
)
def test_whose_call_takes_a_freed_slot(heads, freed, chosen):
    assert queue_room.next_key(heads, freed) == chosen
