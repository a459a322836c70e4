"""The protocol as the broker writes it, cut into pieces at any place."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hearth_kit.wire_reader import LINE_BYTES_MAX, WireReader

TOKENS = st.text("abz019._-$>=", min_size=1, max_size=12).map(str.encode)
MESSAGES = st.tuples(TOKENS, st.integers(1, 999), st.one_of(st.just(b""), TOKENS), st.binary(max_size=40), st.binary(max_size=60))
LINES = st.sampled_from([b"PING", b"PONG", b"+OK", b"-ERR 'Permissions Violation'", b'INFO {"a":1}'])


class Before(asyncio.Protocol):
    def __init__(self):
        self.calls = []

    def connection_lost(self, exc):
        self.calls.append("lost")

    def pause_writing(self):
        self.calls.append("pause")

    def resume_writing(self):
        self.calls.append("resume")


def reader():
    heard = []
    made = WireReader(Before(), lambda *parts: heard.append(parts))
    return made, heard


def lines(of):
    return [of.lines.get_nowait() for _ in range(of.lines.qsize())]


def written(item) -> bytes:
    if isinstance(item, bytes):
        return item + b"\r\n"
    subject, sid, reply, block, body = item
    names = b" ".join(part for part in (subject, str(sid).encode(), reply) if part)
    if block:
        return b"HMSG %b %d %d\r\n%b%b\r\n" % (names, len(block), len(block) + len(body), block, body)
    return b"MSG %b %d\r\n%b\r\n" % (names, len(body), body)


@given(items=st.lists(st.one_of(MESSAGES, LINES), max_size=6), cuts=st.lists(st.integers(0, 400), max_size=12))
def test_whatever_the_cuts_the_same_is_heard(items, cuts):
    made, heard = reader()
    stream = b"".join(written(item) for item in items)
    at = 0
    for cut in [*sorted(cut for cut in cuts if cut < len(stream)), len(stream)]:
        if cut > at:
            made.data_received(stream[at:cut])
            at = cut
    wanted = [(str(sid).encode(), subject, reply, block, body) for subject, sid, reply, block, body in
              (item for item in items if not isinstance(item, bytes))]  # fmt: skip
    assert heard == wanted
    assert lines(made) == [item for item in items if isinstance(item, bytes)]


def test_a_large_body_is_put_together_once():
    """Not with every piece anew: that would be quadratic in its size."""
    made, heard = reader()
    body = bytes(1 << 20)
    stream = written((b"s", 1, b"", b"", body))
    looks = []
    read = made._read
    made._read = lambda data: looks.append(len(data)) or read(data)
    for at in range(0, len(stream), 1000):
        made.data_received(stream[at : at + 1000])
    assert heard[0][4] == body
    assert len(looks) <= 2


@pytest.mark.parametrize(
    "rubbish", [b"MSG a b c d e\r\n", b"HMSG a 1 x 3\r\n", b"MSG\r\n", b"\xff" * (LINE_BYTES_MAX + 2)], ids=range(4)
)
def test_what_is_not_the_protocol_ends_the_reading(rubbish):
    made, heard = reader()
    made.data_received(rubbish)
    made.data_received(written((b"s", 1, b"", b"", b"x")))
    assert (lines(made), heard) == ([None], [])


def test_what_concerns_writing_and_closing_reaches_who_had_the_connection_before():
    made, _ = reader()
    made.pause_writing()
    made.resume_writing()
    made.connection_lost(None)
    assert made._before.calls == ["pause", "resume", "lost"]
    assert lines(made) == [None]


def test_after_its_stop_nothing_is_heard():
    made, heard = reader()
    made.stop()
    made.data_received(written((b"s", 1, b"", b"", b"x")))
    assert heard == []
