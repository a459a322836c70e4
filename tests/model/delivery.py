"""The delivery rules as a machine: gateway, schedulers, executors and broker, one small step at a time, no I/O.

Decisions are the services' own (`domain/`): which reply counts, what to do with a run that arrives, which way an end is told,
what becomes of a job that travelled back. Everything between them (who publishes what, in which order, and what a crash
forgets) is written out here from DELIVERY and docs/architecture.md, so that steps can be taken in any order, with faults
between any two of them.

`Rules` switches single guards off. A guard whose absence changes nothing is no guard: see `test_delivery.py`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from hearth_contracts.calls import Call, Ending, Outcome, Run
from hearth_contracts.enums import Lane, OutcomeKind, Reason, State
from hearth_contracts.functions import Retry
from hearth_executor.domain import ending as endings
from hearth_executor.domain import intake
from hearth_executor.domain.intake import Verdict
from hearth_gateway.domain import dispatch
from hearth_gateway.domain.dispatch import FIRST, Dispatch
from hearth_scheduler.domain import retry

POLICY: Final = Retry(attempts=2, backoff_s=(0,))
LOSSES_MAX: Final = 1
#: How often one job may be placed before the model calls it endless: faults are bounded, so placements are.
PLACEMENTS_MAX: Final = 60

Step = tuple[str, Callable[[], None]]


class Broken(AssertionError):
    """A promise does not hold."""


@dataclass(frozen=True)
class Rules:
    """The guards."""

    fence: bool = True
    """A record is published only where none is."""
    moved: bool = True
    """Before a sync call is placed anew its gateway is asked, and takes no earlier reply from then on."""
    record_first: bool = True
    """Any dispatch but the first records before it replies."""
    look: bool = True
    """Before a call is placed anew, RECORDS and REPLIES are looked at."""
    look_again: bool = True
    """REPLIES once more, when the gateway was asked and has not said that it waits."""
    custody: bool = True
    """Nobody acknowledges before the next hop has it."""
    dispatch_ids: bool = True
    """The id of a placement carries its number."""


@dataclass(eq=False)
class Letter:
    """A message in a work queue until it is acknowledged."""

    queue: "Queue"
    content: Call | Run | Outcome
    delivered: int = 0
    holder: object | None = None

    def ack(self) -> None:
        if self in self.queue.letters:
            self.queue.letters.remove(self)


@dataclass(eq=False)
class Queue:
    """A work-queue stream with its memory of ids."""

    in_memory: bool
    letters: list[Letter] = field(default_factory=list)
    ids: set[str] = field(default_factory=set)

    def publish(self, message_id: str, content: Call | Run | Outcome) -> bool:
        """False: this id was seen before."""
        if message_id in self.ids:
            return False
        self.ids.add(message_id)
        self.letters.append(Letter(self, content))
        return True


@dataclass(frozen=True)
class Content:
    """What one execution, or one decision, said: no two are the same."""

    said: str
    ending: Ending


@dataclass(eq=False)
class Hand:
    """A job in a scheduler's hands."""

    call: Call
    letters: list[Letter]
    sync: bool
    stage: str
    anew: bool = False
    asked: "Question | None" = None


@dataclass(eq=False)
class Question:
    """`moved`, on its way to the gateway and back."""

    job: str
    dispatch: Dispatch
    answered: bool | None = None


@dataclass(eq=False)
class Scheduler:
    epoch: int
    hands: dict[str, Hand] = field(default_factory=dict)


@dataclass(eq=False)
class Held:
    """A run in an executor's hands."""

    run: Run
    letters: list[Letter]
    sync: bool
    stage: str
    content: Content | None = None
    kind: OutcomeKind = OutcomeKind.FAILED
    taken_in: int = 0
    """In which life of the broker."""
    connection: int = 0
    """In which it was answered."""


@dataclass(eq=False)
class Executor:
    name: str
    state: str = "alive"
    epoch_seen: int = 0
    buried: bool = False
    doubtful: bool = False
    words_in_flight: int = 0
    """After a stop: steps that were past the check already."""
    held: dict[str, Held] = field(default_factory=dict)
    settled: set[str] = field(default_factory=set)


@dataclass(eq=False)
class Custody:
    """A sync call that the gateway holds."""

    call: Call
    earliest: Dispatch = FIRST
    frozen: bool = False
    recovering: bool = False


class World:
    """Everything. `steps()` are the steps that can be taken now; the faults are methods."""

    def __init__(self, rules: Rules, *, executors: int = 3) -> None:
        self.rules = rules
        self.calls, self.jobs = Queue(in_memory=True), Queue(in_memory=False)
        self.outcomes = {True: Queue(in_memory=True), False: Queue(in_memory=False)}
        self.runs = {True: Queue(in_memory=True), False: Queue(in_memory=False)}
        self.records: dict[str, Content] = {}
        self.record_writes: dict[str, int] = {}
        self.replies: dict[str, Content] = {}
        self.connection = 0
        self.gateway_alive = True
        self.gateway_stopped = False
        self.inbox: list[tuple[str, Content] | Question] = []
        self.custody: dict[str, Custody] = {}
        self.answered: set[str] = set()
        self.told: dict[str, Content] = {}
        self.accepted: set[str] = set()
        self.schedulers = [Scheduler(1)]
        self.executors = [Executor(f"x{number}") for number in range(executors)]
        self.made = executors
        self.said = 0
        self.executions: dict[str, int] = {}

    # The gateway

    def submit(self, job: str, lane: Lane) -> None:
        call = Call(
            job=job, tenant="t", function="f", version=1, lane=lane, gateway="g" if lane is Lane.SYNC else "", submitted_at=0
        )
        if lane is Lane.SYNC:
            self.custody[job] = Custody(call)
            self.calls.publish(f"{job}.1.0", call)
        else:
            self.jobs.publish(job, call)
            self.accepted.add(job)  # 202: the broker has it

    def _tell(self, job: str, content: Content) -> None:
        del self.custody[job]
        self.answered.add(job)
        self.told[job] = content

    def _hear(self) -> None:
        heard = self.inbox.pop(0)
        if isinstance(heard, Question):
            held = self.custody.get(heard.job)
            if held is not None:
                held.earliest = dispatch.superseded(held.earliest, heard.dispatch)
            heard.answered = held is None and heard.job in self.answered
            return
        job, content = heard
        held = self.custody.get(job)
        given = Dispatch(content.ending.attempt, content.ending.placement)
        if held is not None and not held.frozen and dispatch.believed(held.earliest, given):
            self._tell(job, content)

    def _recover(self, job: str) -> None:
        """After a reconnect: what was answered or recorded meanwhile, else the same call under another dispatch."""
        held = self.custody[job]
        held.recovering = False
        if job in self.replies:
            given = self.replies[job]
            if dispatch.believed(held.earliest, Dispatch(given.ending.attempt, given.ending.placement)):
                self._tell(job, given)
                return
        if job in self.records:
            self._tell(job, self.records[job])
            return
        held.earliest = held.earliest.republished()
        held.call = held.call.model_copy(update={"attempt": held.earliest.attempt, "placement": held.earliest.placement})
        self.calls.publish(f"{job}.{held.call.attempt}.{held.call.placement}", held.call)

    def _look(self, job: str) -> None:
        """A held call is looked up now and then."""
        self._tell(job, self.records[job])

    def cancel(self, job: str) -> None:
        """The final first; then whoever runs it is told."""
        held = self.custody.get(job)
        if held is not None:
            held.frozen = True
        self._record(job, self._decided(job, Reason.CANCELLED, FIRST))
        if held is not None:
            self._tell(job, self.records[job])
        for executor in self.executors:
            for run in executor.held.values():
                if run.run.call.job == job and run.stage == "running" and executor.state == "alive":
                    run.content, run.stage = self._executed(run.run, Reason.CANCELLED), "ended"

    # Records

    def _record(self, job: str, content: Content) -> bool:
        if job in self.records and self.rules.fence:
            return False
        self.records[job] = content
        self.record_writes[job] = self.record_writes.get(job, 0) + 1
        return True

    def _decided(self, job: str, reason: Reason, at: Dispatch) -> Content:
        self.said += 1
        ending = Ending(state=State.FAILED, reason=reason, attempt=at.attempt, placement=at.placement)
        return Content(f"{reason.value} {self.said}", ending)

    def _executed(self, run: Run, reason: Reason | None) -> Content:
        self.said += 1
        ending = Ending(
            state=State.FAILED if reason else State.SUCCESS, reason=reason, attempt=run.call.attempt, placement=run.placement
        )
        return Content(f"{run.executor} said {self.said}", ending)

    def _reply(self, call: Call, content: Content, at: Dispatch) -> None:
        """Stored for later, and heard at once by a gateway that lives."""
        given = Content(content.said, content.ending.model_copy(update={"attempt": at.attempt, "placement": at.placement}))
        self.replies[call.job] = given
        if self.gateway_alive:
            self.inbox.append((call.job, given))

    # The schedulers

    def _take(self, scheduler: Scheduler, letter: Letter) -> None:
        letter.delivered += 1
        letter.holder = scheduler
        content = letter.content
        if isinstance(content, Outcome):
            sync = content.run.call.lane is Lane.SYNC
            decision = retry.decide(content, POLICY, losses_max=LOSSES_MAX, now=0)
            if isinstance(decision, retry.Over):
                self._end(content.run.call, decision.ending, letter, sync=sync)
                return
            hand = Hand(decision.call, [letter], sync, "look", anew=True)
        else:
            assert isinstance(content, Call)
            call = content
            looks = letter.delivered > 1 or call.placement > 0 or call.attempt > 1
            hand = Hand(call, [letter], call.lane is Lane.SYNC, "look" if looks else "place")
        known = scheduler.hands.get(hand.call.job)
        if known is not None:
            if _of(hand.call) > _of(known.call):
                known.call, known.stage = hand.call, "look"
            known.anew = known.anew or hand.anew
            known.letters += hand.letters
        else:
            scheduler.hands[hand.call.job] = hand
        if not self.rules.custody:
            letter.ack()

    def _end(self, call: Call, ending: Ending, letter: Letter, *, sync: bool) -> None:
        self.said += 1
        self._record(call.job, Content(f"scheduler said {self.said}", ending))
        if sync:
            self._reply(call, self.records[call.job], _of(call))
        letter.ack()

    def _examine(self, scheduler: Scheduler, hand: Hand) -> None:
        """The looks before a call is placed anew."""
        job = hand.call.job
        if self.rules.look:
            if job in self.records:
                if hand.sync:
                    self._reply(hand.call, self.records[job], max(_of(hand.call), _given(self.records[job])))
                self._drop(scheduler, hand)
                return
            if hand.sync and job in self.replies:
                self._record(job, self.replies[job])
                self._drop(scheduler, hand)
                return
        if hand.sync and hand.anew and self.rules.moved and self.gateway_alive:
            hand.stage = "ask"
        else:
            hand.stage = "place"

    def _ask(self, hand: Hand) -> None:
        hand.asked = Question(hand.call.job, _of(hand.call))
        self.inbox.append(hand.asked)
        hand.stage = "wait"

    def _answer(self, scheduler: Scheduler, hand: Hand) -> None:
        """The gateway has spoken, or is gone, or has been silent for too long: then REPLIES is looked at once more."""
        job = hand.call.job
        hand.stage = "place"
        silent = hand.asked is not None and hand.asked.answered is None
        answered = hand.asked is not None and bool(hand.asked.answered)
        hand.asked = None
        if self.rules.look and (answered or (silent and self.rules.look_again)) and job in self.replies:
            self._record(job, self.replies[job])
            self._drop(scheduler, hand)

    def _place(self, scheduler: Scheduler, hand: Hand, executor: Executor) -> None:
        call = hand.call
        self.executions.setdefault(call.job, 0)
        run = Run(
            call=call, executor=executor.name, placement=call.placement, epoch=scheduler.epoch,
            is_last=call.attempt >= POLICY.attempts, placed_at=0, reason="free",
        )  # fmt: skip
        number = f".{call.placement}" if self.rules.dispatch_ids else ""
        if call.placement > PLACEMENTS_MAX:
            raise Broken(f"{call.job} is placed for ever")
        if self.runs[hand.sync].publish(f"{call.job}.{call.attempt}{number}", run):
            hand.stage = "stored"
            return
        if self._is_carried(hand):
            hand.stage = "stored"
            return
        hand.call = call.model_copy(update={"placement": call.placement + 1})
        hand.stage, hand.anew = "look", True

    def _is_carried(self, hand: Hand) -> bool:
        """The id is known: is the job where that dispatch put it, further on, or over?"""
        job = hand.call.job
        if not self.rules.dispatch_ids:
            return True  # trusting `duplicate` alone
        runs = [letter.content for letter in self.runs[hand.sync].letters]
        back = [letter.content.run for letter in self.outcomes[hand.sync].letters if isinstance(letter.content, Outcome)]
        return job in self.records or any(
            run.call.job == job and (run.call.attempt, run.placement) >= (hand.call.attempt, hand.call.placement)
            for run in (*runs, *back)
            if isinstance(run, Run)
        )

    def _drop(self, scheduler: Scheduler, hand: Hand) -> None:
        for letter in hand.letters:
            letter.ack()
        if scheduler.hands.get(hand.call.job) is hand:
            del scheduler.hands[hand.call.job]

    def _bury_one(self, executor: Executor, letter: Letter) -> None:
        """A dead executor's run travels back: what it cannot say itself. Then its subject is purged."""
        run = letter.content
        assert isinstance(run, Run)
        if run.call.job not in self.records:
            sync = run.call.lane is Lane.SYNC
            self.outcomes[sync].publish(_outcome_id(run), retry.lost(run, started=True, why="", now=0))
        letter.ack()

    # The executors

    def _deliver(self, executor: Executor, letter: Letter) -> None:
        letter.delivered += 1
        letter.holder = executor
        run = letter.content
        assert isinstance(run, Run)
        name = _dispatch(run)
        twin = executor.held.get(name) or next(
            (
                held
                for held in executor.held.values()
                if (held.run.call.job, held.run.call.attempt) == (run.call.job, run.call.attempt)
            ),
            None,
        )
        verdict = intake.decide(
            intake.Arrival(
                attempt=run.call.attempt, placement=run.placement, epoch=run.epoch, delivered=letter.delivered,
                settled=name in executor.settled, twin=twin and intake.Twin(twin.run.placement, twin.stage not in ("look", "running")),
            ),
            epoch_seen=executor.epoch_seen, draining=False, full=False,
        )  # fmt: skip
        executor.epoch_seen = max(executor.epoch_seen, run.epoch)
        sync = run.call.lane is Lane.SYNC
        match verdict:
            case Verdict.SETTLED:
                letter.ack()
            case Verdict.SAME:
                assert twin is not None
                twin.letters.append(letter)
            case Verdict.ADOPT:
                assert twin is not None
                del executor.held[_dispatch(twin.run)]
                twin.run = run
                twin.letters.append(letter)
                executor.held[name] = twin
            case Verdict.STALE_EPOCH:
                executor.held[name] = Held(run, [letter], sync, "outcome", kind=OutcomeKind.REFUSED, taken_in=self.connection)
            case _:
                stage = "look" if verdict is Verdict.LOOK_FIRST and self.rules.look else "running"
                executor.held[name] = Held(run, [letter], sync, stage, taken_in=self.connection)

    def finish(self, executor: Executor, held: Held, *, fails: bool) -> None:
        self.executions[held.run.call.job] = self.executions.get(held.run.call.job, 0) + 1
        held.content = self._executed(held.run, Reason.ERROR if fails else None)
        held.stage = "ended"

    def _advance(self, executor: Executor, held: Held) -> None:
        """One step of telling how it ended."""
        job = held.run.call.job
        if held.stage == "look":
            if job in self.records:
                self._pass_on(held)
                self._settle(executor, held)
            else:
                held.stage = "running"
            return
        if held.stage == "outcome":
            ending = held.content.ending if held.content else None
            self.outcomes[held.sync].publish(_outcome_id(held.run), Outcome(run=held.run, kind=held.kind, ending=ending))
            held.stage = "told"
            return
        if held.stage == "told":
            self._settle(executor, held)
            return
        content = held.content
        assert content is not None
        if held.stage == "ended":
            way = endings.way(held.run, content.ending.reason)
            if not self.rules.record_first and way is endings.Way.RECORD_FIRST and held.sync:
                way = endings.Way.REPLY_FIRST
            held.stage = {endings.Way.OUTCOME: "outcome", endings.Way.REPLY_FIRST: "reply", endings.Way.RECORD_FIRST: "record"}[
                way
            ]
        if held.stage == "outcome":
            self._advance(executor, held)
        elif held.stage == "reply":
            held.connection = self.connection
            self._reply(held.run.call, content, _at(held.run))
            held.stage = "replied"
        elif held.stage == "replied":
            won = self._record(job, content)
            if won and held.connection != self.connection:
                self._reply(held.run.call, content, _at(held.run))  # it may have been lost with the connection
            held.stage = "told"
        else:
            if self._record(job, content):
                if held.sync:
                    self._reply(held.run.call, content, _at(held.run))
            else:
                self._pass_on(held)
            held.stage = "told"

    def _pass_on(self, held: Held) -> None:
        """Who lost the race replies with the winner's content."""
        if held.sync:
            self._reply(held.run.call, self.records[held.run.call.job], _at(held.run))

    def _settle(self, executor: Executor, held: Held) -> None:
        for letter in held.letters:
            letter.ack()
        executor.held.pop(_dispatch(held.run), None)
        executor.settled.add(_dispatch(held.run))

    def _confirm(self, executor: Executor) -> None:
        """After a silence: is its consumer still there? If not, what it holds is somebody else's."""
        executor.doubtful = False
        if executor.buried:
            self._end_of(executor)

    def _end_of(self, executor: Executor) -> None:
        executor.state = "gone"
        executor.held.clear()
        self.made += 1
        self.executors.append(Executor(f"x{self.made}"))

    # What can happen next

    def steps(self) -> Iterator[Step]:
        """Every step that somebody can take now."""
        if self.inbox and self.gateway_alive and not self.gateway_stopped:
            yield "gateway hears", self._hear
        if self.gateway_alive and not self.gateway_stopped:
            for job, held in list(self.custody.items()):
                if held.recovering:
                    yield f"gateway recovers {job}", lambda job=job: self._recover(job)
                elif job in self.records:
                    yield f"gateway looks {job} up", lambda job=job: self._look(job)
        for scheduler in self.schedulers:
            yield from self._scheduler_steps(scheduler)
        for executor in list(self.executors):
            if executor.state == "alive":
                yield from self._executor_steps(executor)

    def _scheduler_steps(self, scheduler: Scheduler) -> Iterator[Step]:
        active = scheduler is self.schedulers[-1]
        name = f"scheduler {scheduler.epoch}"
        for queue in (self.calls, self.jobs, *self.outcomes.values()):
            for letter in list(queue.letters):
                # A letter in another's hands comes again when that one is gone, or is no longer heard of.
                if active and letter.holder is not scheduler:
                    yield f"{name} takes {_job(letter)}", lambda letter=letter: self._take(scheduler, letter)
        for hand in list(scheduler.hands.values()):
            job = hand.call.job
            if hand.stage == "look":
                yield f"{name} looks for {job}", lambda hand=hand: self._examine(scheduler, hand)
            elif hand.stage == "ask":
                yield f"{name} asks about {job}", lambda hand=hand: self._ask(hand)
            elif hand.stage == "wait":
                asked = hand.asked
                if asked is None or asked.answered is not None or not self.gateway_alive or self.gateway_stopped:
                    yield f"{name} goes on with {job}", lambda hand=hand: self._answer(scheduler, hand)
            elif hand.stage == "place":
                for executor in self.executors:
                    if executor.state == "alive" and not executor.buried:
                        yield (f"{name} places {job} on {executor.name}",
                               lambda hand=hand, executor=executor: self._place(scheduler, hand, executor))  # fmt: skip
            else:
                yield f"{name} lets {job} go", lambda hand=hand: self._drop(scheduler, hand)
        if active:
            for executor in self.executors:
                if executor.state != "alive" and not executor.buried:
                    left = self._letters_of(executor)
                    for letter in left:
                        yield (
                            f"{name} takes {_job(letter)} back",
                            lambda letter=letter, executor=executor: self._bury_one(executor, letter),
                        )
                    if not left:
                        yield f"{name} buries {executor.name}", lambda executor=executor: setattr(executor, "buried", True)

    def _letters_of(self, executor: Executor) -> list[Letter]:
        return [
            letter for queue in self.runs.values() for letter in queue.letters
            if isinstance(letter.content, Run) and letter.content.executor == executor.name
        ]  # fmt: skip

    def _executor_steps(self, executor: Executor) -> Iterator[Step]:
        if not executor.buried:
            for letter in self._letters_of(executor):
                if letter.holder is not executor:
                    yield f"{executor.name} receives {_job(letter)}", lambda letter=letter: self._deliver(executor, letter)
        silent = executor.doubtful and executor.words_in_flight == 0
        if executor.doubtful:
            yield f"{executor.name} asks whether it counts", lambda: self._confirm(executor)
        for held in list(executor.held.values()):
            job = held.run.call.job
            if held.stage == "running":
                for fails in (False, True):
                    yield (f"{executor.name} {'fails' if fails else 'finishes'} {job}",
                           lambda held=held, fails=fails: self.finish(executor, held, fails=fails))  # fmt: skip
            elif not silent:
                yield f"{executor.name} tells of {job}: {held.stage}", lambda held=held: self._speak(executor, held)

    def _speak(self, executor: Executor, held: Held) -> None:
        executor.words_in_flight = max(0, executor.words_in_flight - 1)
        self._advance(executor, held)

    # Faults

    def crash_broker(self, *, heard: bool) -> None:
        """Its process is killed: streams in memory are gone, and perhaps what was on its way to the gateway."""
        self.connection += 1
        for queue in (self.calls, self.outcomes[True], self.runs[True]):
            queue.letters.clear()
            queue.ids.clear()
        self.replies.clear()
        if not heard:
            for lost in self.inbox:
                if isinstance(lost, Question):
                    lost.answered = None
            self.inbox = []
        for scheduler in self.schedulers:
            for hand in list(scheduler.hands.values()):
                if hand.sync:
                    # What it took is gone, and so is what it placed: whoever has the call in custody brings it again.
                    del scheduler.hands[hand.call.job]
        for held in self.custody.values():
            held.recovering = True

    def crash_gateway(self) -> None:
        """Its callers are gone with it; another takes the next calls."""
        self.custody.clear()
        self.answered.clear()
        self.inbox = []
        self.gateway_alive = False

    def take_over(self, *, zombie: bool) -> None:
        """A new active scheduler. The former one is dead, or stopped and will go on for a moment with what it has in hand."""
        former = self.schedulers[-1]
        if not zombie:
            self.schedulers.remove(former)
            former.hands.clear()
        self.schedulers.append(Scheduler(former.epoch + 1))

    def end_zombies(self) -> None:
        """A scheduler that was stopped sees that its lease is over."""
        for former in self.schedulers[:-1]:
            former.hands.clear()
        self.schedulers = self.schedulers[-1:]

    def crash_executor(self, executor: Executor) -> None:
        executor.held.clear()
        executor.state = "crashed"

    def stop_executor(self, executor: Executor) -> None:
        executor.state = "stopped"

    def continue_executor(self, executor: Executor, *, words_in_flight: int) -> None:
        """It may have been stopped between its check and its words: so many are said unchecked."""
        executor.state, executor.doubtful = "alive", True
        whole = all(held.taken_in == self.connection for held in executor.held.values())
        executor.words_in_flight = words_in_flight if whole else 0

    def letters(self) -> list[Letter]:
        """Everything that waits in a work queue."""
        return [one for queue in (self.calls, self.jobs, *self.outcomes.values(), *self.runs.values()) for one in queue.letters]

    def redeliver(self, letter: Letter) -> None:
        """A word was lost: the letter comes again to whoever reads there."""
        letter.holder = None

    def is_fragile(self, executor: Executor) -> bool:
        """Whether it has answered a caller, holds the record in its hands alone, and a restart of the broker has taken every
        trace of the answer: the one moment at which a second fault cannot be mended."""
        return any(
            held.stage == "replied" and (held.run.call.job not in self.replies or held.taken_in != self.connection)
            for held in executor.held.values()
        )

    @property
    def is_fragile_without(self) -> bool:
        """The same the other way round: an answer whose executor is gone, and which only the broker's memory still holds."""
        kept = {held.run.call.job for executor in self.executors if executor.state == "alive" for held in executor.held.values()
                if held.stage == "replied"}  # fmt: skip
        on_the_way = {item[0] for item in self.inbox if isinstance(item, tuple)}
        return any(job not in self.records and job not in kept for job in {*self.told, *on_the_way})

    # Promises

    def check(self) -> None:
        for job, writes in self.record_writes.items():
            if writes > 1:
                raise Broken(f"{job} was recorded {writes} times")
        for job, content in self.told.items():
            if job in self.records and self.records[job].said != content.said:
                raise Broken(f"{job}: its caller was told {content.said!r}, its record says {self.records[job].said!r}")
        for queue in (*self.runs.values(), self.calls, self.jobs):
            for letter in queue.letters:
                call = letter.content.call if isinstance(letter.content, Run) else letter.content
                if isinstance(call, Call) and call.attempt > POLICY.attempts:
                    raise Broken(f"{call.job} is at attempt {call.attempt} of {POLICY.attempts}")

    def heal(self) -> None:
        """The faults are over: everything that was accepted comes to an end, and answers equal records."""
        self.gateway_stopped = False
        self.end_zombies()
        for executor in self.executors:
            if executor.state == "stopped":
                self.continue_executor(executor, words_in_flight=0)
        if not any(executor.state == "alive" and not executor.buried for executor in self.executors):
            self.executors.append(Executor("fresh"))
        for letter in self.letters():
            if letter.holder not in self.schedulers and letter.holder not in self.executors:
                letter.holder = None
        for number in range(5000):
            choices = list(self.steps())
            if not choices:
                break
            choices[number % len(choices)][1]()
            self.check()
        else:
            raise Broken("it never comes to rest")
        lost = sorted(self.accepted - self.records.keys())
        if lost:
            raise Broken(f"accepted and lost: {', '.join(lost)}")
        if self.custody:
            raise Broken(f"a caller waits for ever: {', '.join(self.custody)}")
        untrue = sorted(job for job in self.told if job not in self.records)
        if untrue:
            raise Broken(f"told and never recorded: {', '.join(untrue)}")


def _job(letter: Letter) -> str:
    content = letter.content
    if isinstance(content, Outcome):
        content = content.run
    return content.job if isinstance(content, Call) else content.call.job


def _of(call: Call) -> Dispatch:
    return Dispatch(call.attempt, call.placement)


def _at(run: Run) -> Dispatch:
    return Dispatch(run.call.attempt, run.placement)


def _given(content: Content) -> Dispatch:
    return Dispatch(content.ending.attempt, content.ending.placement)


def _dispatch(run: Run) -> str:
    return f"{run.call.job}.{run.call.attempt}.{run.placement}"


def _outcome_id(run: Run) -> str:
    return f"{_dispatch(run)}.outcome"
