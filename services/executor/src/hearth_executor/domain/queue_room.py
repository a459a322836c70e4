"""How much work to take in ahead of a freed slot, and which of it goes next.

Between a slot's end and the next placement lies a report and a hop: a millisecond or more in which a fast function's slot
would stand idle. So a little work waits here already; never so much that it would have started sooner elsewhere.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

#: Work taken in ahead, per slot.
AHEAD_MS: Final = 20.0
#: Calls taken in ahead, per slot, however fast they are.
AHEAD_CALLS_MAX: Final = 16
#: A function slower than this gains nothing from waiting here.
FAST_MS: Final = 10.0
#: A new duration counts so much against what was known: about the last ten calls decide.
WEIGHT: Final = 0.2
#: A function not called for so long does not count any more.
RECENT_S: Final = 2.0
#: The function of the slot that was freed goes first (its sandbox is warm), unless another has waited this much longer.
PATIENCE_S: Final = 0.05


@dataclass(slots=True)
class Pace:
    """How long one function occupies a slot."""

    ms: float | None = None
    """None: no warm call of it has ended yet."""
    seen_at: float = 0.0

    def took(self, ms: float) -> None:
        self.ms = ms if self.ms is None else self.ms + WEIGHT * (ms - self.ms)


def room(paces: Iterable[Pace], *, slots: int, now: float) -> int:
    """Calls that may wait here in all. The slowest recent function decides: a report cannot say whose the room is, and a
    call that waits behind a slow one would have done better elsewhere."""
    slowest = 0.0
    for pace in paces:
        if now - pace.seen_at > RECENT_S:
            continue
        if pace.ms is None or pace.ms > FAST_MS:
            return 0
        slowest = max(slowest, pace.ms)
    if slowest <= 0:
        return 0
    return slots * min(AHEAD_CALLS_MAX, int(AHEAD_MS / slowest))


def next_key(heads: Mapping[str, float], freed: str) -> str:
    """Of the functions that wait, each with the time its first call arrived: whose call takes the slot that `freed` left."""
    oldest = min(heads, key=heads.__getitem__)
    own = heads.get(freed)
    return freed if own is not None and own - heads[oldest] <= PATIENCE_S else oldest
