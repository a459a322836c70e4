"""Policies as tables."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hearth_contracts.calls import Ending
from hearth_contracts.enums import Reason, State
from hearth_gateway.domain import admission, dispatch, endings, progress
from hearth_gateway.domain.admission import Load
from hearth_gateway.domain.dispatch import FIRST, Dispatch
from hearth_gateway.domain.progress import Cursor


@pytest.mark.parametrize(
    ("load", "depth", "running_max", "full"),
    [
        (Load(waiting=0, held=0, slots=0), 1, 20, False),
        (Load(waiting=1, held=0, slots=0), 1, 20, True),
        (Load(waiting=9, held=0, slots=8), 10, 20, False),
        (Load(waiting=0, held=12, slots=8), 5, 20, False),
        (Load(waiting=0, held=13, slots=8), 5, 20, True),
        (Load(waiting=0, held=7, slots=100), 5, 2, True),  # the function may run twice at once, whatever the fleet has
    ],
)
def test_when_a_queue_is_full(load, depth, running_max, full):
    assert admission.queue_full(load, depth=depth, running_max=running_max) is full


dispatches = st.builds(Dispatch, st.integers(1, 5), st.integers(0, 5))


@given(st.lists(dispatches), dispatches)
def test_a_superseded_dispatch_is_never_believed_again(announced, reply):
    earliest = FIRST
    for one in announced:
        earliest = dispatch.superseded(earliest, one)
    assert dispatch.believed(earliest, reply) is all(reply >= one for one in announced)
    assert not dispatch.believed(Dispatch(*earliest).republished(), earliest)


def test_every_reason_has_an_answer():
    for reason in Reason:
        problem = endings.failure(Ending(state=State.FAILED, reason=reason))
        assert problem is not None
        assert problem.code.startswith("E_")
        assert problem.fix
    assert endings.failure(Ending(state=State.SUCCESS)) is None


@given(st.integers(0, 9), st.integers(-1, 2), st.integers(0, 10**12))
def test_a_cursor_survives_the_wire(attempt, phase, log):
    cursor = Cursor(attempt, phase, log)
    assert progress.parse(str(cursor)) == cursor


@given(st.text(max_size=40))
def test_a_broken_cursor_is_the_beginning(text):
    assert progress.parse(text) is None if text == "final" else isinstance(progress.parse(text), Cursor)


def test_states_are_told_in_order_and_once():
    cursor = Cursor()
    told = []
    for attempt, phase in [(1, 0), (1, 2), (1, 1), (1, 2), (2, 0), (1, 2), (2, 1)]:
        after = cursor.after_state(attempt, phase)
        if after is not None:
            cursor = after
            told.append((attempt, phase))
    assert told == [(1, 0), (1, 2), (2, 0), (2, 1)]
