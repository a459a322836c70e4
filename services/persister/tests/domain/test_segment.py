"""The format: what goes in comes out, the same in gives the same bytes, and nothing altered passes."""

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hearth_persister.domain import segment
from hearth_persister.domain.entry import Entry, Summary
from hearth_persister.domain.segment import StoredBody
from hearth_persister.errors import SegmentCorrupt

EPOCH = "20260131235959123456-00"


def entry(sequence: int, meta: bytes = b"{}", body: bytes = b"") -> Entry:
    words = Summary(f"hello-{sequence}", "default", "hello", 1, "sync", "SUCCESS", "", "warm", 1, 1.5, 2.5, 1000.0)
    return Entry(sequence, sequence * 1000, meta, body, words)


def encode(entries: list[Entry], bodies=None, last: int = 0) -> segment.Encoded:
    last = last or max((e.sequence for e in entries), default=1)
    return segment.encode(epoch=EPOCH, first=1, last=last, entries=entries, bodies=bodies or {})


@settings(max_examples=50)
@given(st.lists(st.tuples(st.binary(max_size=3000), st.binary(max_size=70_000)), max_size=12))
def test_what_goes_in_comes_out(contents):
    entries = [entry(number + 1, meta, body) for number, (meta, body) in enumerate(contents)]
    encoded = encode(entries, last=20)

    directory = segment.verify(encoded.data)

    assert directory == encoded.directory
    assert (directory.epoch, directory.first, directory.last) == (EPOCH, 1, 20)
    assert hashlib.sha256(encoded.data).hexdigest() == encoded.sha256
    found = [(piece.sequence, piece.at_us, piece.meta, piece.body) for _, piece in segment.pieces(encoded.data, directory)]
    assert found == [(e.sequence, e.at_us, e.meta, e.body) for e in entries]
    for row in directory.rows:
        spot = row.spot
        block = encoded.data[spot.block_offset : spot.block_offset + spot.block_length]
        assert segment.cut(block, spot).body == contents[row.sequence - 1][1]


def test_the_same_records_are_the_same_bytes():
    body = StoredBody("result", "objects/a/b", 5, "0" * 64)
    make = [encode([entry(1, b"m", b"b"), entry(2)], {2: (body,)}) for _ in range(2)]
    assert make[0].data == make[1].data
    assert segment.verify(make[0].data).rows[1].objects == (body,)


def test_not_one_altered_byte_passes():
    data = encode([entry(number, b"{}" * 20, b"body") for number in range(1, 20)]).data
    for position in range(len(data)):
        altered = data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]
        with pytest.raises(SegmentCorrupt):
            segment.verify(altered)


@pytest.mark.parametrize("length", [0, 1, 40, 100])
def test_a_segment_cut_short_is_found_out(length):
    data = encode([entry(1, b"{}", b"x" * 500)]).data
    with pytest.raises(SegmentCorrupt):
        segment.verify(data[:length])
    with pytest.raises(SegmentCorrupt):
        segment.verify(data[: len(data) - 1])


def test_a_block_of_another_record_is_found_out():
    first, second = encode([entry(1, b"aaa")]), encode([entry(2, b"aaa")])
    spot = first.directory.rows[0].spot
    block = second.data[spot.block_offset : spot.block_offset + spot.block_length]
    with pytest.raises(SegmentCorrupt):
        segment.cut(block, spot)
