"""The limiter against its reference: a bucket of tokens, computed exactly."""

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from hearth_gateway.domain.rate_limit import Denied, Granted, Limit, limit, take


@given(
    interval_ns=st.integers(1, 10**9),
    burst=st.integers(1, 50),
    gaps=st.lists(st.one_of(st.integers(0, 3), st.integers(0, 3 * 10**9)), max_size=200),
)
def test_it_grants_exactly_what_a_token_bucket_grants(interval_ns, burst, gaps):
    rule = Limit(interval_ns, burst)
    now, arrival, tokens = 10**12, 0, Fraction(burst)
    for gap in gaps:
        now += gap
        tokens = min(Fraction(burst), tokens + Fraction(gap, interval_ns))
        taken = take(arrival, rule, now)
        if tokens >= 1:
            assert isinstance(taken, Granted)
            tokens -= 1
            arrival = taken.arrival_ns
        else:
            assert isinstance(taken, Denied)
            assert taken.retry_after_ns == (1 - tokens) * interval_ns
            # After exactly that long, and not a moment earlier:
            assert isinstance(take(arrival, rule, now + taken.retry_after_ns), Granted)
            assert isinstance(take(arrival, rule, now + taken.retry_after_ns - 1), Denied)


def test_a_key_not_seen_before_has_its_whole_burst():
    arrival, granted = 0, 0
    while isinstance(taken := take(arrival, limit(10, 7), 10**12), Granted):
        arrival, granted = taken.arrival_ns, granted + 1
    assert granted == 7
