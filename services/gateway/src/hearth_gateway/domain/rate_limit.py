"""How often a key may ask: the generic cell rate algorithm, one number of state per key.

The number is the theoretical arrival time: when the next request would be due if all kept exactly to the rate. A
request may come up to `burst - 1` intervals ahead of it. This equals a bucket of `burst` tokens refilled at `per_s`.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limit:
    """So many requests a second in the long run, so many at once."""

    per_s: float
    burst: int


@dataclass(frozen=True, slots=True)
class Granted:
    arrival: float
    """The new state."""


@dataclass(frozen=True, slots=True)
class Denied:
    retry_after_s: float
    """After exactly this long a request is granted, if none is granted before."""


def take(arrival: float, limit: Limit, now: float) -> Granted | Denied:
    """Whether one more request is in order. `arrival` is the key's state; 0 for a key not seen before."""
    interval = 1 / limit.per_s
    start = max(arrival, now)
    ahead = start - now
    allowed = interval * (limit.burst - 1)
    if ahead > allowed:
        return Denied(ahead - allowed)
    return Granted(start + interval)
