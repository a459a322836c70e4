"""Segments end in the same places, whoever cuts them and whenever: two stores hold the same bytes."""

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from hearth_persister.domain.batching import Batch, Cutter, Limits
from hearth_persister.domain.entry import Entry, Summary

LIMITS = Limits(bytes_max=1000, window_us=100_000, margin_s=0.05, records_max=7)
WORDS = Summary("j", "t", "f", 1, "sync", "SUCCESS", "", "warm", 1, 0, 0, 0)

# (microseconds since the one before, bytes, kept)
GAPS = st.sampled_from([0, 1000, 30_000, 99_999, 100_000, 350_000])
STREAM = st.lists(st.tuples(GAPS, st.integers(1, 600), st.booleans()), max_size=60)


def cuts(stream, *, live: bool, first: int = 1) -> list[tuple[int, int, tuple[int, ...]]]:
    """Feed a stream. `live`: records come as they happen and batches also close by age; else all at once."""
    cutter = Cutter(LIMITS, first=first)
    closed: list[Batch | None] = []
    at_us = 10**15
    for sequence, (gap, size, kept) in enumerate(stream, start=1):
        at_us += gap
        now = at_us / 1e6 if live else 5.0  # whoever catches up has a clock that tells nothing of the stream
        if live:
            closed.append(cutter.close_due(now - 1e-9))
        if sequence < first:
            continue
        if kept:
            closed.append(cutter.add(Entry(sequence, at_us, b"", b"x" * size, WORDS), now))
        else:
            closed.append(cutter.skip(sequence, at_us))
    closed.append(cutter.close_due(float("inf")))
    return [(batch.first, batch.last, tuple(e.sequence for e in batch.entries)) for batch in closed if batch is not None]


@settings(max_examples=300)
@given(STREAM)
def test_a_store_that_follows_live_and_one_that_catches_up_cut_alike(stream):
    assert cuts(stream, live=True) == cuts(stream, live=False)


@settings(max_examples=300)
@given(STREAM, st.data())
def test_whoever_begins_again_at_a_cut_makes_the_same_cuts(stream, data):
    whole = cuts(stream, live=False)
    if not whole:
        return
    again = data.draw(st.sampled_from(whole))
    # What lies before the first batch that is kept again was passed over.
    assert [cut for cut in whole if cut[0] >= again[0]] == cuts(stream, live=False, first=again[0])


@given(STREAM)
def test_nothing_is_left_out_nothing_is_twice_and_ranges_touch(stream):
    found = cuts(stream, live=True)
    kept = [sequence for sequence, (_, _, keep) in enumerate(stream, start=1) if keep]
    assert [sequence for _, _, sequences in found for sequence in sequences] == kept
    for (_, last, _), (first, _, _) in pairwise(found):
        assert first == last + 1


@given(STREAM)
def test_limits_hold(stream):
    sizes = {sequence: size for sequence, (_, size, _) in enumerate(stream, start=1)}
    for first, last, sequences in cuts(stream, live=False):
        assert last - first + 1 <= LIMITS.records_max
        assert len(sequences) <= 1 or sum(sizes[sequence] for sequence in sequences) <= LIMITS.bytes_max
