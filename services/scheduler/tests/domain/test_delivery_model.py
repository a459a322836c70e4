"""The model of delivery: schedulers that are replaced at any moment, executors that die or fall silent, streams that swallow
a repeated id, acknowledgements that get lost. Placement, retries and the end of a dead executor are the domain's own.

Never has one dispatch two owners, never has a job two finals, never does a job run more often than its policy and its
executors' deaths allow; and when nothing more goes wrong every job comes to its end.
"""

from dataclasses import dataclass, field

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hearth_contracts.calls import Call, Ending, Outcome, Run, Timings
from hearth_contracts.enums import Lane, OutcomeKind, Reason, State
from hearth_contracts.fleet import Capacity
from hearth_contracts.functions import Retry
from hearth_scheduler.domain import retry
from hearth_scheduler.domain.fleet import Fleet
from hearth_scheduler.domain.placement import Job, Placed, Wants, place

WANTS = Wants("acme.f.1", "acme.f", ("python", "container", ()), "python/128", 128, 100, keeps=True)
POLICY = Retry(attempts=2, backoff_s=(0,))
LOSSES_MAX = 1


@dataclass(eq=False)
class Message:
    """A whole job, in CALLS or among the outcomes."""

    call: Call
    outcome: Outcome | None = None


@dataclass(eq=False)
class Real:
    """An executor as it is."""

    id: str
    epoch: int = 0
    stream: list[Run] = field(default_factory=list)
    taken: list[Run] = field(default_factory=list)
    alive: bool = True
    buried: bool = False


@dataclass(eq=False)
class Term:
    """A scheduler's term of office, and what it believes."""

    epoch: int
    fleet: Fleet
    unacknowledged: list[Message] = field(default_factory=list)


def dispatch(run: Run) -> tuple[str, int, int]:
    return run.call.job, run.call.attempt, run.placement


class DeliveryMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.executors: dict[str, Real] = {}
        self.waiting: list[Message] = []
        self.records: dict[str, list[Ending]] = {}
        self.ids: set[str] = set()
        self.owners: dict[tuple[str, int, int], set[str]] = {}
        self.executions: dict[str, int] = {}
        self.number = 0
        self.terms: list[Term] = []
        for _ in range(2):
            self.new_executor()
        self.new_term()

    @property
    def active(self) -> Term:
        return self.terms[-1]

    def new_executor(self) -> None:
        real = Real(f"e-{len(self.executors):08x}")
        self.executors[real.id] = real

    # What the broker does

    def store(self, message_id: str) -> bool:
        """False: swallowed."""
        fresh = message_id not in self.ids
        self.ids.add(message_id)
        return fresh

    def record(self, job: str, ending: Ending) -> bool:
        """Only if the subject holds nothing yet."""
        finals = self.records.setdefault(job, [])
        if not finals:
            finals.append(ending)
            return True
        return False

    # What a scheduler does

    def place(self, term: Term, message: Message) -> None:
        """As `Placer.store` and what follows it; `message` is acknowledged by another rule, or never."""
        call = message.call
        if self.records.get(call.job):
            self.settle(term, message)
            return
        self.view(term)
        decision = place(Job(WANTS), term.fleet, 0.0)
        if not isinstance(decision, Placed):
            return
        real = self.executors[decision.executor.id]
        run = Run(
            call=call, executor=real.id, placement=call.placement, epoch=term.epoch, is_last=call.attempt >= POLICY.attempts,
            placed_at=0, reason="free",
        )  # fmt: skip
        live = term.fleet.reserve(
            decision.executor, call.job, key=WANTS.key, function=WANTS.function, generic="", sync=False, keeps=True, now=0.0
        )
        if self.store("{}.{}.{}".format(*dispatch(run))):
            real.stream.append(run)
            self.owners.setdefault(dispatch(run), set()).add(real.id)
            term.fleet.stored(call.job, live, len(self.ids))
            term.unacknowledged.append(message)
        else:
            term.fleet.withdrawn(call.job, live)
            if self.is_somewhere(run):
                self.settle(term, message)
            else:
                message.call = call.model_copy(update={"placement": call.placement + 1})

    def is_somewhere(self, run: Run) -> bool:
        job, *this = dispatch(run)
        runs = [other for real in self.executors.values() for other in real.stream + real.taken]
        runs += [message.outcome.run for message in self.waiting if message.outcome is not None]
        return any(other.call.job == job and [other.call.attempt, other.placement] >= this for other in runs)

    def settle(self, term: Term, message: Message) -> None:
        if message in self.waiting:
            self.waiting.remove(message)

    def view(self, term: Term) -> None:
        for real in self.executors.values():
            if real.alive and not real.buried:
                term.fleet.heard(
                    Capacity(
                        executor=real.id, name="e", at=0, slots=50, free=50, backends=("container",), runtimes=("python",),
                        memory_free_mb=999,
                    ),
                    0.0,
                )  # fmt: skip
                term.fleet.admitted(real.id)

    # Rules

    @rule()
    def submit(self) -> None:
        self.number += 1
        job = f"f-{self.number:026d}"
        self.waiting.append(Message(Call(job=job, tenant="acme", function="f", version=1, lane=Lane.ASYNC, submitted_at=0)))

    @rule(which=st.integers(0, 20), zombie=st.booleans())
    @precondition(lambda self: self.waiting)
    def deliver(self, which: int, zombie: bool) -> None:
        """To the active scheduler, or to one that does not know yet that it is not."""
        term = self.terms[-2] if zombie and len(self.terms) > 1 else self.active
        message = self.waiting[which % len(self.waiting)]
        if message.outcome is None:
            self.place(term, message)
            return
        decision = retry.decide(message.outcome, POLICY, losses_max=LOSSES_MAX, now=0.0)
        if isinstance(decision, retry.Over):
            self.record(message.outcome.run.call.job, decision.ending)
            self.settle(term, message)
            return
        if message.call is message.outcome.run.call:
            message.call = decision.call
        self.place(term, message)

    @rule(which=st.integers(0, 20))
    def acknowledged(self, which: int) -> None:
        unacknowledged = self.active.unacknowledged
        if unacknowledged:
            self.settle(self.active, unacknowledged.pop(which % len(unacknowledged)))

    @rule()
    def new_term(self) -> None:
        """The old one's acknowledgements are lost: what it had placed comes again."""
        term = Term(len(self.terms) + 1, Fleet())
        self.terms.append(term)

    @rule(which=st.integers(0, 5))
    def take_in(self, which: int) -> None:
        real = self.pick(which)
        if real is None or not real.stream or real.buried:
            return
        run = real.stream[0]
        if run.epoch < real.epoch:
            self.travel_back(Outcome(run=run, kind=OutcomeKind.REFUSED))
            real.stream.remove(run)
            return
        real.epoch = run.epoch
        real.stream.remove(run)
        if not self.records.get(run.call.job):
            real.taken.append(run)
            self.executions[run.call.job] = self.executions.get(run.call.job, 0) + 1

    def pick(self, which: int) -> Real | None:
        alive = [real for real in self.executors.values() if real.alive]
        return alive[which % len(alive)] if alive else None

    def travel_back(self, outcome: Outcome) -> None:
        if self.store("{}.{}.{}.outcome".format(*dispatch(outcome.run))):
            self.waiting.append(Message(outcome.run.call, outcome))

    @rule(which=st.integers(0, 5), failed=st.booleans(), settled=st.booleans())
    def finish(self, which: int, failed: bool, settled: bool) -> None:
        real = self.pick(which)
        if real is None or not real.taken:
            return
        run = real.taken[0]
        ending = Ending(
            state=State.FAILED if failed else State.SUCCESS, reason=Reason.ERROR if failed else None, executor=real.id,
            timings=Timings(), attempt=run.call.attempt, placement=run.placement,
        )  # fmt: skip
        if failed and not run.is_last:
            self.travel_back(Outcome(run=run, kind=OutcomeKind.FAILED, ending=ending))
        else:
            self.record(run.call.job, ending)
        if settled or not real.buried:
            real.taken.remove(run)

    @rule(which=st.integers(0, 5))
    def die(self, which: int) -> None:
        real = self.pick(which)
        if real is not None and not real.buried:
            real.alive = False
            self.new_executor()

    @rule(which=st.integers(0, 5), stays=st.booleans())
    def bury(self, which: int, stays: bool) -> None:
        """A dead one; or (`stays`) one that is only stopped, and may still speak afterwards."""
        candidates = [real for real in self.executors.values() if not real.buried and (stays or not real.alive)]
        if not candidates:
            return
        real = candidates[which % len(candidates)]
        real.buried = True
        if real.alive:
            self.new_executor()
        term = self.active
        term.fleet.condemn(real.id)
        for run in real.taken + real.stream:
            if not self.records.get(run.call.job):
                self.travel_back(retry.lost(run, started=run in real.taken, why="died", now=0.0))
        real.stream.clear()
        if not real.alive:
            real.taken.clear()
        term.fleet.bury(real.id)

    @rule(which=st.integers(0, 5))
    def forget(self, which: int) -> None:
        """A run is gone while its stream remembers its id; the call behind it was not acknowledged."""
        runs = [(real, run) for real in self.executors.values() for run in real.stream]
        if not runs:
            return
        real, run = runs[which % len(runs)]
        if any(message.call.job == run.call.job for message in self.waiting):
            real.stream.remove(run)
            self.active.unacknowledged.clear()

    @rule()
    def sweep(self) -> None:
        """A scheduler that did not know better may place on an executor that is buried already."""
        for real in self.executors.values():
            if real.buried:
                for run in real.stream:
                    self.travel_back(retry.lost(run, started=False, why="nobody reads it", now=0.0))
                real.stream.clear()

    # What must hold

    @invariant()
    def one_owner_and_one_final(self) -> None:
        assert all(len(owners) == 1 for owners in self.owners.values())
        assert all(len(finals) <= 1 for finals in self.records.values())

    @invariant()
    def no_attempt_beyond_the_policy(self) -> None:
        for job, attempt, _ in self.owners:
            assert attempt <= POLICY.attempts, job
        for job, count in self.executions.items():
            assert count <= POLICY.attempts + LOSSES_MAX, job

    def teardown(self) -> None:
        """Nothing more goes wrong: every job ends, and no stream holds anything."""
        for real in list(self.executors.values()):
            if not real.alive and not real.buried:
                self.bury([r for r in self.executors.values() if not r.buried and not r.alive].index(real), stays=False)
        for _ in range(400):
            self.sweep()
            for position in range(len(self.waiting) - 1, -1, -1):
                if position < len(self.waiting):
                    self.deliver(position, zombie=False)
            while self.active.unacknowledged:
                self.acknowledged(0)
            for number in range(len(self.executors)):
                self.take_in(number)
            for number in range(len(self.executors)):
                self.finish(number, failed=False, settled=True)
            if not self.waiting and not any(real.stream or real.taken for real in self.executors.values()):
                break
        jobs = {f"f-{number:026d}" for number in range(1, self.number + 1)}
        assert {job for job, finals in self.records.items() if finals} == jobs
        assert not self.waiting
        self.one_owner_and_one_final()
        self.no_attempt_beyond_the_policy()


TestDelivery = DeliveryMachine.TestCase
TestDelivery.settings = settings(
    max_examples=150, stateful_step_count=60, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
