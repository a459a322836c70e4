"""What becomes of a job that travelled back."""

import pytest

from hearth_contracts.calls import Call, Ending, Outcome, Run, Timings
from hearth_contracts.enums import Lane, OutcomeKind, Reason, State
from hearth_contracts.functions import Retry
from hearth_scheduler.domain.retry import Again, Over, decide, lost

NOW = 5000.0
POLICY = Retry(attempts=3, backoff_s=(1, 5))


def run(**fields: int) -> Run:
    placement = fields.pop("placed", fields.get("placement", 0))
    call = Call(job="hello-x", tenant="acme", function="hello", version=1, lane=Lane.ASYNC, submitted_at=NOW - 100, **fields)
    return Run(call=call, executor="e-00000000", placement=placement, epoch=1, is_last=False, placed_at=NOW - 20, reason="free")


def failed(reason: Reason, **fields: int) -> Outcome:
    of = run(**fields)
    ending = Ending(state=State.FAILED, reason=reason, attempt=of.call.attempt, timings=Timings(finished_at=NOW - 10))
    return Outcome(run=of, kind=OutcomeKind.FAILED, ending=ending)


def decided(outcome: Outcome, policy: Retry | None = POLICY, now: float = NOW) -> Again | Over:
    return decide(outcome, policy, losses_max=3, now=now)


@pytest.mark.parametrize("reason", [Reason.ERROR, Reason.TIMEOUT, Reason.OOM, Reason.RESOURCE])
def test_a_retryable_failure_is_tried_again_after_its_backoff(reason: Reason) -> None:
    for attempt, wait in ((1, 1), (2, 5)):
        again = decided(failed(reason, attempt=attempt, placement=2))
        assert isinstance(again, Again)
        assert (again.call.attempt, again.call.placement, again.at) == (attempt + 1, 0, NOW - 10 + wait)


def test_a_redelivery_is_never_early_and_a_fast_clock_delays_nobody() -> None:
    outcome = failed(Reason.ERROR)
    assert {decided(outcome, now=NOW + passed).at for passed in (0, 1, 7)} == {NOW - 9}  # pyright: ignore[reportAttributeAccessIssue]
    assert decided(outcome, now=NOW - 50).at == NOW - 50 + 1  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("reason", [Reason.BAD_RESULT, Reason.CANCELLED, Reason.IMAGE, Reason.REJECTED, Reason.RECURSION])
def test_any_other_failure_is_final(reason: Reason) -> None:
    over = decided(failed(reason))
    assert isinstance(over, Over)
    assert over.dead is False


def test_used_up_attempts_are_final_and_kept() -> None:
    over = decided(failed(Reason.ERROR, attempt=3))
    assert isinstance(over, Over)
    assert (over.ending.reason, over.dead) == (Reason.ERROR, True)


def test_a_function_that_is_gone_is_not_tried_again() -> None:
    assert isinstance(decided(failed(Reason.ERROR), policy=None), Over)


@pytest.mark.parametrize("kind", [OutcomeKind.HANDED_BACK, OutcomeKind.REFUSED])
def test_a_hand_back_burns_no_attempt(kind: OutcomeKind) -> None:
    for placed in (0, 1):
        again = decided(Outcome(run=run(attempt=2, placed=placed), kind=kind))
        assert isinstance(again, Again)
        assert (again.call.attempt, again.call.placement, again.at) == (2, placed + 1, 0.0)


def test_what_is_refused_again_and_again_waits_longer_each_time() -> None:
    waits = [decided(Outcome(run=run(placed=placed), kind=OutcomeKind.REFUSED)).at - (NOW - 20) for placed in range(2, 20)]  # pyright: ignore[reportAttributeAccessIssue]
    assert waits == sorted(waits)
    assert waits[0] == pytest.approx(0.05)
    assert waits[-1] == pytest.approx(2.0)


def test_a_run_that_a_dead_executor_had_started_burns_an_attempt_and_waits_for_nothing() -> None:
    again = decided(lost(run(attempt=1, placed=1), started=True, why="e died", now=NOW))
    assert isinstance(again, Again)
    assert (again.call.attempt, again.call.placement, again.call.losses, again.at) == (2, 0, 0, 0.0)


def test_one_that_had_not_started_burns_none() -> None:
    again = decided(lost(run(attempt=2, placed=1), started=False, why="e died", now=NOW))
    assert isinstance(again, Again)
    assert (again.call.attempt, again.call.placement, again.call.losses) == (2, 2, 0)


def test_a_lost_run_is_tried_again_beyond_its_attempts_but_not_for_ever() -> None:
    policy = Retry(attempts=1)
    of, executions = run(), 1
    while True:
        decision = decided(lost(of, started=True, why="e died", now=NOW), policy)
        if isinstance(decision, Over):
            break
        executions += 1
        assert decision.call.attempt == 1
        of = of.model_copy(update={"call": decision.call, "placement": decision.call.placement})
    assert executions == 4
    assert (decision.ending.state, decision.ending.reason, decision.dead) == (State.FAILED, Reason.LOST, True)
    assert decision.ending.executor == "e-00000000"
