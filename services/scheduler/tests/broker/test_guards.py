"""What each guard of the delivery is there for, where no other test would miss it."""

import asyncio

import pytest
from scheduler_world import World, until

from hearth_contracts import streams, subjects
from hearth_contracts.calls import Body, Call, Dead, Ending, Outcome, Record, Reply, Run, StateChange
from hearth_contracts.enums import Lane, OutcomeKind, Reason, State
from hearth_kit.message import Message

pytestmark = pytest.mark.broker

#: Short enough that a death is a matter of a second.
SHORT = {"dead_after_s": 0.8, "suspect_after_s": 0.4}
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


async def test_a_final_found_with_a_dead_executors_run_leaves_the_copy_it_owes(world: World) -> None:
    """The executor recorded the last failure, and died before the dead letter; and nothing is sent round for a job that is
    over."""
    async with world.scheduling(**SHORT) as scheduler:
        one = await world.executor("one", behave=lambda run, body: "hang")
        await world.joined(scheduler, 1)
        await world.deploy("hello")
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
        info = await world.bus.stream_info("OUTCOMES")
        assert info is not None
        assert info.last_sequence == 0 or await world.bus.get_at("OUTCOMES", info.last_sequence) is None


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
