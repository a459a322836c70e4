"""Whether the engine may be asked, what old ones endanger, and whose containers are nobody's."""

import pytest

from hearth_executor.domain import breaker, engine_versions
from hearth_executor.domain.breaker import Breaker
from hearth_executor.domain.orphans import Found, orphans


def test_a_breaker_opens_after_two_unanswered_calls_and_then_lets_one_probe_through():
    state = Breaker()
    state = breaker.failed(state, 0.0)
    assert breaker.admit(state, 0.0)[0]
    state = breaker.failed(state, 10.0)
    assert state.is_open
    assert not breaker.admit(state, 11.9)[0]
    admitted, state = breaker.admit(state, 12.0)
    assert admitted
    assert not breaker.admit(state, 12.0)[0], "one probe at a time"


def test_a_failed_probe_waits_twice_as_long_up_to_a_limit_and_a_good_one_closes():
    state = breaker.failed(breaker.failed(Breaker(), 0.0), 0.0)
    waits = []
    now = 0.0
    for _ in range(6):
        now += breaker.wait_s(state, now)
        _, state = breaker.admit(state, now)
        state = breaker.failed(state, now)
        waits.append(breaker.wait_s(state, now))
    assert waits == [4.0, 8.0, 15.0, 15.0, 15.0, 15.0]
    assert breaker.succeeded(state) == Breaker()


def test_an_answered_call_between_two_unanswered_ones_starts_the_count_anew():
    state = breaker.succeeded(breaker.failed(Breaker(), 0.0))
    assert not breaker.failed(state, 1.0).is_open


def test_a_probe_that_was_given_up_lets_the_next_one_through():
    state = breaker.failed(breaker.failed(Breaker(), 0.0), 0.0)
    _, probing = breaker.admit(state, 5.0)
    assert breaker.admit(breaker.abandoned(probing), 5.0)[0]


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("20.10.24+dfsg1", (20, 10, 24)),
        ("1.1.5+ds1", (1, 1, 5)),
        ("v29.7.1", (29, 7, 1)),
        ("", ()),
        ("dev", ()),
        ("1.2.0-rc.1", (1, 2, 0)),
    ],
)
def test_versions_are_read_by_their_leading_numbers(text, numbers):
    assert engine_versions.version(text) == numbers


@pytest.mark.parametrize(
    ("engine", "runc", "words"),
    [
        ("29.7.1", "1.3.3", []),
        ("20.10.24+dfsg1", "1.3.3", ["archive API"]),
        ("29.8.0", "1.1.5", ["CVE-2024-21626"]),
        ("19.03.5", "1.1.5", ["oldest this profile", "runc 1.1.5"]),
        ("", "", []),
    ],
)
def test_old_engines_are_warned_of_with_what_they_endanger(engine, runc, words):
    found = engine_versions.warnings(engine=engine, runc=runc)
    assert len(found) == len(words)
    assert all(word in text for word, text in zip(words, found, strict=True))


def test_runcs_age_is_nothing_to_another_runtime():
    assert engine_versions.warnings(engine="29.7.1", runc="1.0.0", oci_runtime="runsc") == []


OURS = Found("1", "ours-1", "e1", "b2")


@pytest.mark.parametrize(
    ("container", "orphaned"),
    [
        (OURS, False),
        (Found("2", "ours-9", "e1", "b2"), True),
        (Found("3", "ours-1", "e1", "b1"), True),
        (Found("4", "peer-1", "e2", "b7"), False),
        (Found("5", "peer-1", "e3", "b8"), True),
        (Found("6", "peer-1", "e3", "b9"), False),
    ],
    ids=["known", "unknown of this life", "an earlier life's", "a living peer's", "a dead peer's", "the dead peer's next life"],
)
def test_orphans_are_told_by_their_labels(container, orphaned):
    found = orphans([container], executor="e1", boot="b2", known={"ours-1"}, dead={("e3", "b8")})
    assert found == ((container,) if orphaned else ())
