"""Which bytes a request wants."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hearth_gateway.domain import byte_range
from hearth_gateway.domain.byte_range import Span, Unsatisfiable


@pytest.mark.parametrize(
    ("header", "span"),
    [
        ("bytes=0-0", Span(0, 1)),
        ("bytes=0-9", Span(0, 10)),
        ("bytes=5-", Span(5, 5)),
        ("bytes=9-9", Span(9, 1)),
        ("bytes=5-1000000", Span(5, 5)),
        ("bytes=-3", Span(7, 3)),
        ("bytes=-1000", Span(0, 10)),
        ("Bytes = 2-3 ", Span(2, 2)),
        ("bytes=0-1,3-4", None),
        ("bytes=5-4", None),
        ("bytes=-", None),
        ("bytes=a-b", None),
        ("bytes=0x1-2", None),
        ("items=0-1", None),
        ("bytes=\u0661-", None),
        ("", None),
    ],
)
def test_a_range_of_a_file_of_ten_bytes(header, span):
    assert byte_range.wanted(header, 10) == span


@pytest.mark.parametrize(
    ("header", "size"), [("bytes=10-", 10), ("bytes=10-20", 10), ("bytes=-0", 10), ("bytes=0-", 0), ("bytes=-5", 0)]
)
def test_a_range_outside_of_the_file(header, size):
    with pytest.raises(Unsatisfiable):
        byte_range.wanted(header, size)


@given(st.integers(1, 10**12), st.integers(0, 10**13), st.integers(0, 10**13))
def test_a_span_lies_within_its_file(size, first, last):
    try:
        span = byte_range.wanted(f"bytes={first}-{last}", size)
    except Unsatisfiable:
        assert first >= size
        return
    if span is not None:
        assert span.start == first
        assert 0 < span.length <= last - first + 1
        assert span.start + span.length <= size


@pytest.mark.parametrize(
    ("header", "found"),
    [('"a"', True), ('W/"a"', True), ('"b", "a"', True), ("*", True), ('"b"', False), ("", False), ("a", False)],
)
def test_an_entity_tag_in_a_list(header, found):
    assert byte_range.matches(header, '"a"') is found
