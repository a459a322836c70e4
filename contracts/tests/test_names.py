"""Names and ids: what may stand in a subject, and what our own ids promise."""

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hearth_contracts import functions, names, permissions, streams
from hearth_contracts.errors import InvalidName

FUNCTIONS = st.from_regex(r"[a-z][a-z0-9_-]{0,62}", fullmatch=True)
TIMES = st.floats(min_value=0, max_value=2**47 / 1000, allow_nan=False)


@given(FUNCTIONS, TIMES, TIMES)
def test_job_ids_sort_by_time_and_carry_it_and_their_function(function, one, other):
    first, second = names.new_job(function, one), names.new_job(function, other)
    assert names.job(first) == first
    assert names.function_of(first) == function
    assert names.made_at(first) == pytest.approx(one, abs=0.0011)
    if int(one * 1000) < int(other * 1000):
        assert first < second


def test_job_ids_do_not_repeat():
    assert len({names.new_job("f", 1.0) for _ in range(10_000)}) == 10_000


@given(FUNCTIONS, st.text(), st.text(), TIMES)
def test_the_same_cause_gives_the_same_job_and_another_cause_another(function, cause, other, at):
    derived = names.derived_job(function, cause, at)
    assert derived == names.derived_job(function, cause, at)
    assert names.job(derived) == derived
    if other != cause:
        assert names.derived_job(function, other, at) != derived
    assert names.made_at(derived) == pytest.approx(at, abs=0.0011)


def test_derived_ids_are_those_of_every_release():
    """They are compared across upgrades: this value may never change."""
    assert names.derived_job("resize", "trigger-7/4711", 1767225600.125) == "resize-06dqdpn8fp13qz8xb7drsrg9qk"


def test_a_function_name_and_the_dash_after_it_are_not_confused():
    job = names.new_job("a-b-01kdvyh8hxm4r2c6s9t0v3w7y1", 1.0)
    assert names.function_of(job) == "a-b-01kdvyh8hxm4r2c6s9t0v3w7y1"


HOSTILE = [
    "", ".", "a.b", "a*", ">", "a>", "a b", "a\r", "a\n", "a\r\nPUB x 0\r\n", "a\0", "a\t", "а", "ａ", "é", "a/b", "a\\b", "../x",
    "%2e%2e", "a\u2028", "\u200ba", "A", "1a", "-a", "_a", "a" * 64, "$JS", "a,b", "a=b",
]  # fmt: skip


@pytest.mark.parametrize("value", HOSTILE)
def test_a_name_that_may_not_stand_in_a_subject_is_refused(value):
    with pytest.raises(InvalidName):
        names.name("function", value)
    with pytest.raises(InvalidName):
        names.job(f"{value}-01kdvyh8hxm4r2c6s9t0v3w7y1")
    with pytest.raises(InvalidName):
        functions.registry_key("acme", value)
    with pytest.raises(ValueError, match="pattern"):
        functions.FunctionSpec(name=value)


@pytest.mark.parametrize("value", ["resize", "resize-", "resize-01KDVYH8HXM4R2C6S9T0V3W7Y1", "resize-01kdvyh8hxm4r2c6s9t0v3w7y1\n",
                                   "resize-01kdvyh8hxm4r2c6s9t0v3w7yl", "-01kdvyh8hxm4r2c6s9t0v3w7y1", "r-01kdvyh8hxm4r2c6s9t0v3w7y1x"])  # fmt: skip
def test_what_is_not_a_job_id_is_refused(value):
    for read in (names.job, names.function_of, names.made_at):
        with pytest.raises(InvalidName):
            read(value)


@given(st.text(max_size=60))
def test_a_foreign_name_becomes_one_token_and_no_two_the_same(text):
    escaped = names.escape(text)
    assert re.fullmatch(r"[A-Za-z0-9_=-]*", escaped)
    assert bytes(re.sub(rb"=([0-9A-F]{2})", lambda m: bytes([int(m[1], 16)]), escaped.encode())) == text.encode()


@given(st.text(max_size=60), st.text(max_size=60))
def test_different_foreign_names_stay_different(one, other):
    assert (names.escape(one) == names.escape(other)) == (one == other)


@pytest.mark.parametrize("path", ["a", "a.b.c", "camera.1.motion", "A=2E", ".".join("x" * 12)])
def test_an_event_path_is_tokens_with_dots(path):
    assert names.event_path(path) == path


@pytest.mark.parametrize("path", ["", ".", "a.", ".a", "a..b", "a b", "a.*", ">", "a\r\nb", ".".join("x" * 13), "x" * 101, "é"])
def test_an_event_path_holds_nothing_else(path):
    with pytest.raises(InvalidName):
        names.event_path(path)


@pytest.mark.parametrize(("pattern", "good"), [("a.*", True), (">", True), ("a.>", True), ("*.b.*", True), ("a.>.b", False),
                                               ("a*", False), ("a>", False), ("**", False)])  # fmt: skip
def test_a_trigger_may_hold_wildcards_where_the_broker_knows_them(pattern, good):
    if good:
        assert names.event_path(pattern, wildcards=True) == pattern
    else:
        with pytest.raises(InvalidName):
            names.event_path(pattern, wildcards=True)


def test_an_executor_id_is_a_name_and_a_boot():
    assert names.executor(f"edge-1-{names.new_boot()}")
    for bad in ("edge", "edge-1", "edge-0A1B2C3D", "edge-0a1b2c3", "edge.1-0a1b2c3d", "-0a1b2c3d"):
        with pytest.raises(InvalidName):
            names.executor(bad)


def test_no_two_functions_share_a_consumer():
    """A shared one would silently take over the other's filter, and its jobs would wait for ever."""
    generate = random.Random(1)
    parts = ["a", "b", "_", "__", "-", "a_", "b__a", "x"]
    seen: dict[str, tuple[str, str]] = {}
    for _ in range(20_000):
        pair = tuple("a" + "".join(generate.choices(parts, k=generate.randint(0, 4))) for _ in range(2))
        consumer = streams.function_consumer(*pair)
        assert seen.setdefault(consumer, pair) == pair
        assert re.fullmatch(r"[A-Za-z0-9_=-]{1,200}", consumer)


def test_inboxes_of_two_instances_never_overlap():
    instances = ["gateway-1", "gateway-10", "gateway-1-m", "scheduler-1"]
    prefixes = [f"{permissions.inbox(instance)}." for instance in instances]
    assert all(not one.startswith(other) for one in prefixes for other in prefixes if one != other)


@pytest.mark.parametrize(
    "value", ["a", "frames 1.bin", "über.csv", "a..b", ".hidden", "-rf", "x" * 200, "é" * 100, "日本.png", "?#%2F"]
)
def test_a_file_may_be_called_so(value):
    assert names.output(value) == value


@pytest.mark.parametrize(
    "value",
    ["", ".", "..", "a/b", "/", "../x", "a\\b", "a\0", "a\n", "\r", "\x1b[31m", "\x7f", "\u2028", "\u202etxt.exe", "\u200b", "\ud800",
     "x" * 201, "é" * 101],
)  # fmt: skip
def test_a_file_may_not_be_called_so(value):
    with pytest.raises(InvalidName):
        names.output(value)
