"""What each guard of the delivery is there for, where no other test would miss it."""

import asyncio
import contextlib
import time

import pytest
from scheduler_world import World, until

from hearth_contracts import streams, subjects
from hearth_contracts.calls import Body, Call, Dead, Ending, Outcome, Record, Reply, Run, StateChange, Timings
from hearth_contracts.enums import Lane, OutcomeKind, Reason, State
from hearth_kit.errors import BusError
from hearth_kit.message import Message
from hearth_scheduler import sweeper
from hearth_scheduler.app import Scheduler

pytestmark = pytest.mark.broker

#: Short enough that a death is a matter of a second.
SHORT = {"dead_after_s": 1.0, "suspect_after_s": 0.6}
ANSWERED = Ending(state=State.SUCCESS, result=Body(size=6), executor="gone-00000000")


async def say(world: World, call: Call) -> None:
    """What an executor tells the caller first."""
    reply = Reply(job=call.job, ending=ANSWERED)
    await world.bus.publish(subjects.reply(world.gateway, call.job), b"answer", meta=reply, contract="reply.v1")


async def hand_back(world: World, call: Call) -> None:
    run = Run(call=call, executor="gone-00000000", placement=0, epoch=1, is_last=True, placed_at=0, reason="free")
    await world.bus.publish(
        subjects.outcome("acme", call.function, call.job, sync=True), b"x", meta=Outcome(run=run, kind=OutcomeKind.HANDED_BACK),
        contract="outcome-sync.v1", msg_id=f"{call.job}.1.0.outcome",
    )  # fmt: skip


async def answered_and_not_run(world: World, call: Call) -> None:
    record = await world.ended(call.job)
    stored = await world.bus.get_last("RECORDS", subjects.record("acme", call.job))
    assert stored is not None
    assert record.parts(stored.message.body)[1] == b"answer"
    assert world.runs_of(call.job) == []


async def test_a_call_that_comes_again_after_its_answer_is_not_run(world: World) -> None:
    """Its scheduler died after placing it, before it acknowledged; its executor after the answer, before the record."""
    await world.deploy("hello")
    call = world.new_call("hello", b"x", tenant="acme", lane=Lane.SYNC)
    await say(world, call)
    async with world.scheduling():
        assert await world.bus.consumer_info("CALLS", streams.SCHEDULER_CONSUMER)
    await world.publish(call, b"x")
    taken: list[Message] = []
    pump = await world.bus.pull("CALLS", streams.SCHEDULER_CONSUMER, taken.append)
    await until(lambda: bool(taken))
    await pump.stop()
    taken[0].nak()
    async with world.scheduling() as scheduler:
        await world.executor("one")
        await world.joined(scheduler, 1)
        await answered_and_not_run(world, call)
        assert world.asked == []


async def test_an_answer_that_comes_while_its_gateway_is_asked_counts(world: World) -> None:
    """It was on its way: the gateway had it before the question, the scheduler only afterwards."""
    await world.deploy("hello")
    moved = world._moved
    saying: list[asyncio.Task[None]] = []

    def late(message: Message) -> None:
        async def first_the_answer() -> None:
            await say(world, call)
            moved(message)

        saying.append(asyncio.create_task(first_the_answer()))

    await world.bus.subscribe(subjects.moved("gateway-late"), late)
    world.gateway = "gateway-late"
    call = world.new_call("hello", b"x", tenant="acme", lane=Lane.SYNC)
    async with world.scheduling() as scheduler:
        await world.executor("one")
        await world.joined(scheduler, 1)
        await hand_back(world, call)
        await answered_and_not_run(world, call)
    assert saying


async def test_an_earlier_dispatch_that_still_lies_somewhere_is_not_taken_for_this_one(world: World) -> None:
    """The stream has swallowed this placement, and what is there of the job is the one before: nobody would take its answer."""
    async with world.scheduling(sweep_s=3600) as scheduler:
        await world.deploy("hello")
        call = world.new_call("hello", b"x", tenant="acme", lane=Lane.SYNC, placement=1)
        swallowed = subjects.run("lost-00000000", call.job, sync=True)
        await world.bus.publish(swallowed, b"x", msg_id=f"{call.job}.1.1")
        await world.bus.purge("RUNS_SYNC", subject=swallowed)
        before = call.model_copy(update={"placement": 0})
        run = Run(call=before, executor="gone-00000000", placement=0, epoch=1, is_last=True, placed_at=0, reason="free")
        await world.bus.publish(
            subjects.run("gone-00000000", call.job, sync=True), b"x", meta=run, contract="run-sync.v1", msg_id=f"{call.job}.1.0"
        )
        await world.executor("one")
        await world.joined(scheduler, 1)
        await world.publish(call, b"x")
        await world.answer(call.job)
        assert [(ran.attempt, ran.placement) for ran in world.runs_of(call.job)] == [(1, 2)]


async def test_an_end_that_comes_second_changes_nothing(world: World) -> None:
    """A success was recorded; then its scheduler hears that the last attempt was lost."""
    async with world.scheduling():
        await world.deploy("hello")
        call = world.new_call("hello", b"x", tenant="acme", lane=Lane.ASYNC, losses=9)
        record = Record(job=call.job, tenant="acme", function="hello", version=1, lane=Lane.ASYNC, ending=ANSWERED)
        await world.bus.publish(subjects.record("acme", call.job), b"answer", meta=record, contract="record.v1", expect_last=0)
        run = Run(call=call, executor="gone-00000000", placement=0, epoch=1, is_last=True, placed_at=0, reason="free")
        ending = Ending(state=State.FAILED, reason=Reason.LOST, executor="gone-00000000")
        await world.bus.publish(
            subjects.outcome("acme", "hello", call.job, sync=False), b"x",
            meta=Outcome(run=run, kind=OutcomeKind.FAILED, ending=ending), contract="outcome.v1", msg_id="late",
        )  # fmt: skip
        await world.empty("OUTCOMES")
        assert (await world.ended(call.job)).ending == ANSWERED
        assert (await world.records())[call.job] == 1
        assert await world.bus.get_last("DEAD", subjects.dead("acme", call.job)) is None


async def test_a_final_found_with_a_dead_executors_run_leaves_the_copy_it_owes(world: World) -> None:
    """The executor recorded the last failure, and died before the dead letter; and nothing is sent round for a job that is
    over."""
    async with world.scheduling(**SHORT) as scheduler:
        one = await world.executor("one", behave=lambda run, body: "hang")
        await world.joined(scheduler, 1)
        await world.deploy("hello")
        before = await travelled_back(world)
        job = await world.job("hello")
        await until(lambda: bool(one.held))
        ending = Ending(state=State.FAILED, reason=Reason.ERROR, executor=one.id, attempt=1)
        record = Record(job=job, tenant="acme", function="hello", version=1, lane=Lane.ASYNC, ending=ending)
        await world.bus.publish(subjects.record("acme", job), b"", meta=record, contract="record.v1", expect_last=0)
        await one.stop()
        await world.empty("RUNS")
        stored = await world.bus.get_last("DEAD", subjects.dead("acme", job))
        assert stored is not None
        assert (stored.message.meta(Dead).ending, stored.message.body) == (ending, b"x")
        assert await travelled_back(world) == before


async def lose(world: World, *, reported: bool, said: StateChange | None, attempts: int = 2) -> tuple[str, list[tuple[int, int]]]:
    """An executor dies with a run, after these signs of it. The attempts and placements elsewhere."""
    async with world.scheduling(**SHORT) as scheduler:
        one = await world.executor("one", behave=lambda run, body: "hang")
        await world.joined(scheduler, 1)
        await world.deploy("hello", retry={"attempts": attempts, "backoff_s": [0]})
        if not reported:
            one.frozen = True  # no report says that it took the run in
        job = await world.job("hello")
        await until(lambda: bool(one.held))
        if reported:
            await until(lambda: scheduler.fleet.executors[one.id].accepted[False] > 0)
        if said is not None:
            state = said.model_copy(update={"job": job, "executor": said.executor or one.id})
            await world.bus.publish(subjects.state("acme", job), meta=state, contract="state.v1")
        await one.stop()
        await world.executor("two")
        await world.ended(job)
        return job, [(ran.attempt, ran.placement) for ran in world.runs_of(job)[1:]]


def processing(executor: str = "", attempt: int = 1) -> StateChange:
    return StateChange(job="", tenant="acme", state=State.PROCESSING, attempt=attempt, phase=2, at=0, executor=executor)


@pytest.mark.parametrize(
    ("reported", "said", "again"),
    [
        (True, None, (2, 0)),
        (False, processing(), (2, 0)),
        (False, None, (1, 1)),
        (False, processing(executor="other-00000000"), (1, 1)),
        (False, processing(attempt=7), (1, 1)),
        (False, StateChange(job="", tenant="acme", state=State.PENDING, at=0), (1, 1)),
    ],
    ids=["reported", "said to run", "never heard of", "ran elsewhere", "ran before", "pending"],
)
async def test_an_attempt_is_burnt_only_by_what_had_started(world: World, reported, said, again) -> None:
    """A run that may have killed its executor is an attempt; one that never reached it is only placed again."""
    assert (await lose(world, reported=reported, said=said))[1] == [again]


async def test_a_run_that_is_being_stored_is_awaited_before_a_burial(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it would come into a stream that nobody reads any more."""
    async with world.scheduling(sweep_s=3600, **SHORT) as scheduler:
        one = await world.executor("one", behave=lambda run, body: "hang")
        await world.joined(scheduler, 1)
        await world.deploy("hello")
        assert scheduler.term is not None
        bus = scheduler._bus
        publish = bus.publish
        stuck = asyncio.Event()

        async def slow(subject, *arguments, **options):
            if subject.startswith(f"hearth.v1.runs.{one.id}"):
                stuck.set()
                await until(lambda: not scheduler.fleet.executors[one.id].admitted, what="it is found dead")
                await asyncio.sleep(0.3)  # a burial that does not wait is over by now
            return await publish(subject, *arguments, **options)

        monkeypatch.setattr(bus, "publish", slow)
        job = await world.job("hello")
        await stuck.wait()
        await one.stop()
        await world.executor("two")
        assert (await world.ended(job)).ending.executor == world.executors["two"].id


@pytest.mark.parametrize("why", ["it stops", "its lease has run out"])
async def test_a_term_that_is_over_places_nothing(world: World, monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    """What still comes in between the end of the lease and the end of the term is the next scheduler's."""
    async with world.scheduling() as scheduler:
        await world.executor("one")
        await world.joined(scheduler, 1)
        await world.deploy("hello")
        term = scheduler.term
        assert term is not None
        with monkeypatch.context() as over:
            if why == "it stops":
                over.setattr(term, "_fenced", True)
            else:
                over.setattr(type(term._lease), "ours", property(lambda self: False))
            job = await world.job("hello")
            await until(lambda: job in term.dispatcher.by_job or bool(world.runs_of(job)))
            await asyncio.sleep(0.2)
            assert world.runs_of(job) == []
        term.dispatcher.run()
        assert (await world.ended(job)).ending.state is State.SUCCESS


async def test_an_outcome_of_after_the_term_goes_to_the_next(world: World) -> None:
    async with world.scheduling("scheduler-1") as scheduler:
        await world.deploy("hello")
        assert scheduler.term is not None
        scheduler.term._fenced = True
        call = world.new_call("hello", b"x", tenant="acme", lane=Lane.SYNC)
        await hand_back(world, call)
        await asyncio.sleep(0.3)
        assert not scheduler.term.dispatcher.by_job
    async with world.scheduling("scheduler-2") as scheduler:
        await world.executor("one")
        assert (await world.ended(call.job)).ending.state is State.SUCCESS


# The sweeper: nobody's job is found, and somebody's is left alone


async def pending(world: World, call: Call, note: str = "") -> None:
    state = StateChange(job=call.job, tenant="acme", state=State.PENDING, at=0, note=note)
    await world.bus.publish(subjects.state("acme", call.job), meta=state, contract="state.v1")


async def older_record(world: World) -> None:
    """So that the stream shows that nothing as young as what follows has left it for the stores."""
    call = world.new_call("hello", b"", tenant="acme", lane=Lane.ASYNC)
    record = Record(job=call.job, tenant="acme", function="hello", version=1, lane=Lane.ASYNC, ending=Ending(state=State.SUCCESS))
    await world.bus.publish(subjects.record("acme", call.job), meta=record, contract="record.v1")


async def left_alone(world: World, scheduler: Scheduler, *jobs: str) -> None:
    """Six sweeps; two find an orphan."""
    assert scheduler.term is not None
    for _ in range(6):
        await asyncio.sleep(0.12)
        with contextlib.suppress(BusError):
            await scheduler.term.sweeper.sweep()
    assert [await world.record(job) for job in jobs] == [None] * len(jobs)


async def test_the_sweeps_find_who_is_nobodys(world: World) -> None:
    """The control of all below: the same sweeps, and nothing that speaks for the job."""
    async with world.scheduling(sweep_s=0.2) as scheduler:
        await world.deploy("hello")
        await older_record(world)
        call = world.new_call("hello", b"x", tenant="acme", lane=Lane.ASYNC)
        await pending(world, call)
        with pytest.raises(AssertionError):
            await left_alone(world, scheduler, call.job)


@pytest.mark.parametrize(
    ("said", "is_lost"),
    [
        ({"Hearth-Missing": "1"}, True),
        ({"Hearth-Error": "E_STORE_UNREADABLE"}, False),
        ({"Hearth-Missing": "1", "Hearth-Error": "E_STORE_UNREADABLE"}, False),
    ],
)
async def test_a_job_whose_record_a_store_may_hold_is_left_alone(world: World, said: dict[str, str], is_lost: bool) -> None:
    """Its record may have left the broker: only an archive that has read every store can say that it has none."""
    asked: list[Message] = []

    def answer(message: Message) -> None:
        asked.append(message)
        message.respond(b"", said)

    await world.bus.subscribe(subjects.ARCHIVE, answer)
    async with world.scheduling(sweep_s=0.2) as scheduler:
        await world.deploy("hello")
        call = world.new_call("hello", b"x", tenant="acme", lane=Lane.ASYNC)
        await pending(world, call)
        await older_record(world)  # younger, that is: what is older than it may have left
        if is_lost:
            with pytest.raises(AssertionError):
                await left_alone(world, scheduler, call.job)
        else:
            await left_alone(world, scheduler, call.job)
            assert await world.bus.get_last("STATES", subjects.state("acme", call.job)) is not None
        assert asked


async def test_a_retry_that_waits_is_left_alone(world: World) -> None:
    async with world.scheduling(sweep_s=0.2) as scheduler:
        await world.executor("one", behave=lambda run, body: "error")
        await world.joined(scheduler, 1)
        await world.deploy("hello", retry={"attempts": 2, "backoff_s": [60]})
        await older_record(world)
        job = await world.job("hello")
        await until(lambda: bool(world.runs_of(job)))
        await world.empty("RUNS")
        await left_alone(world, scheduler, job)


async def test_what_runs_since_the_scheduler_before_is_left_alone(world: World) -> None:
    """This one never placed it: only the run in its stream, and its executor's reports, say that it is somebody's."""
    await world.deploy("hello")
    async with world.scheduling("scheduler-1") as scheduler:
        one = await world.executor("one", behave=lambda run, body: "hang")
        await world.joined(scheduler, 1)
        await older_record(world)
        before = await travelled_back(world)
        job = await world.job("hello")
        await until(lambda: bool(one.held))
    async with world.scheduling("scheduler-2", sweep_s=0.2) as scheduler:
        await world.joined(scheduler, 1)
        await left_alone(world, scheduler, job)
        assert len(world.runs_of(job)) == 1
        assert await travelled_back(world) == before


async def travelled_back(world: World) -> int:
    """Messages that ever came into OUTCOMES."""
    info = await world.bus.stream_info("OUTCOMES")
    assert info is not None
    return info.last_sequence


async def test_jobs_that_wait_in_their_stream_are_left_alone(world: World) -> None:
    """Behind the one that the scheduler holds."""
    async with world.scheduling(sweep_s=0.2) as scheduler:
        await world.deploy("hello")
        await older_record(world)
        jobs = [await world.job("hello") for _ in range(5)]
        await until(lambda: bool(scheduler.term and scheduler.term.dispatcher.by_job))
        await left_alone(world, scheduler, *jobs)


@pytest.mark.parametrize("gateway", ["answered", "mute"])
async def test_a_call_in_a_gateways_custody_is_left_alone(world: World, monkeypatch: pytest.MonkeyPatch, gateway: str) -> None:
    """Its caller has been told and the record is on its way; or the gateway is there and cannot say."""
    monkeypatch.setattr(sweeper, "ASK_S", 0.1)
    heard: list[Message] = []
    await world.bus.subscribe(subjects.moved("gateway-mute"), heard.append)
    async with world.scheduling(sweep_s=0.2) as scheduler:
        await world.deploy("hello")
        await older_record(world)
        call = world.new_call("hello", b"x", tenant="acme", lane=Lane.SYNC)
        world.answered[call.job] = True
        await pending(world, call, f"gateway:{world.gateway if gateway == 'answered' else 'gateway-mute'}")
        await left_alone(world, scheduler, call.job)
        assert heard or world.asked


async def test_a_job_between_two_hands_is_looked_at_twice(world: World) -> None:
    """Nobody's for the moment in which it was looked at; then somebody has it."""
    async with world.scheduling(sweep_s=0.2) as scheduler:
        await world.deploy("hello", retry={"attempts": 2, "backoff_s": [60]})
        await older_record(world)
        assert scheduler.term is not None
        sweeps = scheduler.term.sweeper
        call = world.new_call("hello", b"x", tenant="acme", lane=Lane.ASYNC)
        await pending(world, call)
        await until(lambda: call.job in sweeps._orphans)
        ending = Ending(
            state=State.FAILED, reason=Reason.ERROR, attempt=1, timings=Timings(submitted_at=0, finished_at=time.time())
        )
        run = Run(call=call, executor="gone-00000000", placement=0, epoch=1, is_last=False, placed_at=time.time(), reason="free")
        outcome = Outcome(run=run, kind=OutcomeKind.FAILED, ending=ending)
        await world.bus.publish(
            subjects.outcome("acme", "hello", call.job, sync=False), b"x", meta=outcome, contract="outcome.v1", msg_id="one"
        )
        await left_alone(world, scheduler, call.job)


async def test_a_job_that_was_only_just_accepted_is_not_looked_at(world: World) -> None:
    async with world.scheduling(sweep_s=3600) as scheduler:
        assert scheduler.term is not None
        call = world.new_call("hello", b"x", tenant="acme", lane=Lane.ASYNC)
        await pending(world, call)
        await scheduler.term.sweeper.sweep()
        assert scheduler.term.sweeper._orphans == {}
