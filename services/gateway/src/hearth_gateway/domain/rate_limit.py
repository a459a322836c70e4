"""How often a key may ask: the generic cell rate algorithm, one number of state per key.

The number is the theoretical arrival time: when the next request would be due if all kept exactly to the rate. A
request may come up to `burst - 1` intervals ahead of it. This equals a bucket of `burst` tokens refilled at the rate.
Times are whole nanoseconds, so that nothing is lost to rounding.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limit:
    """One request per interval in the long run, so many at once."""

    interval_ns: int
    burst: int


@dataclass(frozen=True, slots=True)
class Granted:
    arrival_ns: int
    """The new state."""


@dataclass(frozen=True, slots=True)
class Denied:
    retry_after_ns: int
    """After exactly this long a request is granted, if none is granted before."""


def limit(per_s: float, burst: int) -> Limit:
    return Limit(max(1, round(1e9 / per_s)), burst)


def take(arrival_ns: int, limit: Limit, now_ns: int) -> Granted | Denied:
    """Whether one more request is in order. `arrival_ns` is the key's state; 0 for a key not seen before."""
    start = max(arrival_ns, now_ns)
    excess = start - now_ns - limit.interval_ns * (limit.burst - 1)
    if excess > 0:
        return Denied(excess)
    return Granted(start + limit.interval_ns)
