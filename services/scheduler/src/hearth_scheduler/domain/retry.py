"""What becomes of a job that travelled back: placed again now or later, or ended. A value; somebody else carries it out."""

from typing import Final, NamedTuple

from hearth_contracts.calls import Call, Ending, Failure, Outcome, Run, Timings
from hearth_contracts.enums import OutcomeKind, Reason, State
from hearth_contracts.functions import Retry

#: Failures that another attempt may mend.
RETRYABLE: Final = frozenset({Reason.ERROR, Reason.TIMEOUT, Reason.OOM, Reason.RESOURCE, Reason.LOST})
#: A run that is refused again and again waits longer each time: from this many placements of one attempt on.
REFUSALS_FREE: Final = 2
REFUSED_S: Final = 0.05
REFUSED_S_MAX: Final = 2.0


class Again(NamedTuple):
    """Place this, not before `at` (Unix seconds; 0: now)."""

    call: Call
    at: float


class Over(NamedTuple):
    """It has ended; `dead`: attempts were used up, and a copy is kept for whoever has to look into it."""

    ending: Ending
    dead: bool


def decide(outcome: Outcome, policy: Retry | None, *, losses_max: int, now: float) -> Again | Over:
    """`policy` is None when the function is gone: then nothing is tried again."""
    run, call, ending = outcome.run, outcome.run.call, outcome.ending
    if outcome.kind is not OutcomeKind.FAILED or ending is None:
        return Again(_placed_anew(run), _refused_until(run, now) if outcome.kind is OutcomeKind.REFUSED else 0.0)
    if ending.reason not in RETRYABLE or policy is None:
        return Over(ending, dead=ending.reason in RETRYABLE)
    if call.attempt < policy.attempts:
        # A lost executor is no reason to wait: it will not fail the same way again.
        at = 0.0 if ending.reason is Reason.LOST else due(policy, call.attempt, _finished(outcome), now)
        return Again(call.model_copy(update={"attempt": call.attempt + 1, "placement": 0}), at)
    if ending.reason is Reason.LOST and call.losses < losses_max:
        return Again(_placed_anew(run).model_copy(update={"losses": call.losses + 1}), 0.0)
    return Over(ending, dead=True)


def due(policy: Retry, attempt: int, finished_at: float, now: float) -> float:
    """When the attempt after this one may start. From the end of this one, so that a redelivery is never early; a clock
    that ran ahead elsewhere makes nobody wait longer than the policy says."""
    wait_s = policy.backoff_s[min(attempt, len(policy.backoff_s)) - 1]
    return min(finished_at, now) + wait_s


def lost(run: Run, *, started: bool, why: str, now: float) -> Outcome:
    """What a dead executor would have to say of a run it held."""
    if not started:
        return Outcome(run=run, kind=OutcomeKind.HANDED_BACK, note=why)
    return Outcome(run=run, kind=OutcomeKind.FAILED, ending=lost_ending(run, why, now), note=why)


def lost_ending(run: Run, why: str, now: float) -> Ending:
    ending = failed(run.call, Reason.LOST, "E_LOST", why, now)
    return ending.model_copy(update={"executor": run.executor, "placement": run.placement})


def failed(call: Call, reason: Reason, code: str, message: str, now: float) -> Ending:
    """An ending that no executor had a part in."""
    return Ending(
        state=State.FAILED,
        reason=reason,
        failure=Failure(type=code, message=message),
        timings=Timings(submitted_at=call.submitted_at, finished_at=now),
        attempt=call.attempt,
        placement=call.placement,
    )


def _placed_anew(run: Run) -> Call:
    return run.call.model_copy(update={"placement": run.placement + 1})


def _refused_until(run: Run, now: float) -> float:
    over = run.placement - REFUSALS_FREE
    if over < 0:
        return 0.0
    return min(run.placed_at, now) + min(REFUSED_S * 2.0 ** min(over, 10), REFUSED_S_MAX)


def _finished(outcome: Outcome) -> float:
    assert outcome.ending is not None
    return outcome.ending.timings.finished_at or outcome.run.placed_at
