"""Whether the container engine may be asked: closed, open after failures, then one careful probe."""

from dataclasses import dataclass, replace

#: Calls in a row that got no answer before the engine counts as hung. One may be a hiccup.
FAILURES_MAX = 2

OPEN_S = 2.0  # before the first probe; doubles with each failed one
OPEN_S_MAX = 15.0


@dataclass(frozen=True, slots=True)
class Breaker:
    failures: int = 0
    open_until: float | None = None
    open_s: float = OPEN_S
    probing: bool = False

    @property
    def is_open(self) -> bool:
        return self.open_until is not None


def admit(state: Breaker, now: float) -> tuple[bool, Breaker]:
    """Whether a call may go to the engine now. While open only one may, as the probe, when its time has come."""
    if state.open_until is None:
        return True, state
    if now >= state.open_until and not state.probing:
        return True, replace(state, probing=True)
    return False, state


def succeeded(state: Breaker) -> Breaker:
    return Breaker()


def failed(state: Breaker, now: float) -> Breaker:
    """A call got no answer in its time. (An error is an answer: the engine lives.)"""
    if state.is_open:
        longer = min(state.open_s * 2, OPEN_S_MAX)
        return Breaker(state.failures + 1, now + longer, longer)
    failures = state.failures + 1
    return Breaker(failures, now + OPEN_S if failures >= FAILURES_MAX else None)


def wait_s(state: Breaker, now: float) -> float:
    """When to come again."""
    return 0.0 if state.open_until is None else max(state.open_until - now, 0.1)


def abandoned(state: Breaker) -> Breaker:
    """A call was given up by its caller before it could tell anything."""
    return replace(state, probing=False)
