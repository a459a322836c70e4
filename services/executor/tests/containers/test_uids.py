"""Every container has a uid of its own, on the whole machine."""

import os

import pytest

from hearth_executor.containers.uids import SLICE, UidRange, Uids
from hearth_executor.errors import NoRoom

#: A range of this test process alone.
FIRST = 1_500_000_000 + os.getpid() * 2048


@pytest.fixture
def uids():
    made = []

    def make(count=2 * SLICE, **options) -> Uids:
        made.append(Uids(uids=UidRange(FIRST, count), owner=options.pop("owner", "p/e"), **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_two_executors_never_share_one(uids):
    one, other = uids(), uids()
    taken = [one.take() for _ in range(SLICE)] + [other.take() for _ in range(SLICE)]
    assert len(set(taken)) == 2 * SLICE
    with pytest.raises(NoRoom):
        one.take()


def test_a_slice_is_free_again_when_its_holder_ends(uids):
    one = uids(SLICE)
    first = one.take()
    other = uids(SLICE)
    with pytest.raises(NoRoom):
        other.take()
    one.close()
    assert other.take() in range(FIRST, FIRST + SLICE)
    assert first in range(FIRST, FIRST + SLICE)


def test_one_given_back_is_the_last_to_be_used_again(uids):
    pool = uids(SLICE)
    first = pool.take()
    pool.give_back(first)
    rest = [pool.take() for _ in range(SLICE)]
    assert rest[-1] == first


def test_what_was_seen_in_use_is_avoided(uids):
    pool = uids(SLICE, avoid={FIRST, FIRST + 1})
    taken = {pool.take() for _ in range(SLICE - 2)}
    assert not taken & {FIRST, FIRST + 1}


@pytest.mark.parametrize(("first", "count"), [(0, SLICE), (999, SLICE), (1000, SLICE - 1), (2**31 - SLICE, SLICE + 1)])
def test_ranges_with_real_users_or_past_the_end_are_refused(first, count):
    with pytest.raises(ValueError, match="uids"):
        UidRange(first, count)
