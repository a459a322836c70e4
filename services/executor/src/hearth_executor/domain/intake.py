"""What to do with a run that has just arrived. Asked once per message, from the read loop."""

from dataclasses import dataclass
from enum import Enum, auto


class Verdict(Enum):
    RUN = auto()
    LOOK_FIRST = auto()
    """Run it unless the job has its final record already: somebody may have run it before."""
    SAME = auto()
    """This dispatch, or a later one of the same attempt, is in hand: only keep the message, to settle it with the other."""
    ADOPT = auto()
    """An earlier dispatch of the same attempt runs here: let its end answer this one."""
    SETTLED = auto()
    """This dispatch has ended here and its acknowledgement was lost: acknowledge again."""
    STALE_EPOCH = auto()
    """A scheduler that is no longer the active one placed it."""
    HAND_BACK = auto()
    FULL = auto()


@dataclass(frozen=True, slots=True)
class Twin:
    """A run in hand of the same job and attempt."""

    placement: int
    ending: bool
    """Whether it has ended and its outcome is being published."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A run, and what this executor knows that bears on it."""

    attempt: int
    placement: int
    epoch: int
    delivered: int
    settled: bool = False
    twin: Twin | None = None
    cancelled: bool = False
    """Whether somebody has asked to cancel the job before it came."""


def decide(arrival: Arrival, *, epoch_seen: int, draining: bool, full: bool) -> Verdict:
    """The first rule that fits. Duplicates come before refusals: what is in hand was accepted under the rules of its time."""
    if arrival.settled:
        return Verdict.SETTLED
    twin = arrival.twin
    if twin is not None and arrival.placement <= twin.placement:
        return Verdict.SAME
    if arrival.epoch < epoch_seen:
        return Verdict.STALE_EPOCH
    if twin is not None and not twin.ending:
        return Verdict.ADOPT
    if draining:
        return Verdict.HAND_BACK
    if full:
        return Verdict.FULL
    if arrival.attempt > 1 or arrival.placement or arrival.delivered > 1 or arrival.cancelled:
        return Verdict.LOOK_FIRST
    return Verdict.RUN
