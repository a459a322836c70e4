"""Duplicates, cancels, messages that do not parse, a broker that restarts, permissions, depths, traces."""

import asyncio
import contextlib
import json

import pytest
from scheduler_world import World, until

from hearth_contracts import permissions, registry, streams, subjects
from hearth_contracts.calls import Body, Dead, Depths, Ending, Record, StateChange
from hearth_contracts.enums import Lane, Reason, State
from hearth_kit.message import Message
from hearth_kit.nats_bus import connect
from hearth_kit.provision import provision
from hearth_kit.pytest_plugin import Broker
from hearth_scheduler import service
from hearth_scheduler.domain.fleet import Fleet
from hearth_scheduler.domain.placement import Decision, Job

pytestmark = pytest.mark.broker


async def test_a_call_published_twice_is_run_once(world: World) -> None:
    async with world.scheduling() as scheduler:
        await world.deploy("hello")
        call = world.new_call("hello", b"x", tenant="acme", lane=Lane.SYNC)
        for number in range(3):
            await world.bus.publish(
                subjects.call("acme", "hello"), b"x", meta=call, contract="call.v1", msg_id=f"{call.job}.{number}"
            )
        await until(lambda: scheduler.term and call.job in scheduler.term.dispatcher.by_job)
        await world.executor("one")
        await world.answer(call.job)
        await world.empty("CALLS", "RUNS_SYNC")
        assert len(world.runs_of(call.job)) == 1


async def test_a_later_dispatch_replaces_the_one_that_waits(world: World) -> None:
    async with world.scheduling() as scheduler:
        await world.deploy("hello")
        call = world.new_call("hello", b"x", tenant="acme", lane=Lane.SYNC)
        await world.publish(call, b"x")
        again = call.model_copy(update={"placement": 1})
        await world.publish(again, b"x")
        await until(lambda: scheduler.term and len(scheduler.term.dispatcher.by_job[call.job].letters) == 2)
        await world.executor("one")
        await world.answer(call.job)
        await world.empty("CALLS")
        assert [ran.placement for ran in world.runs_of(call.job)] == [1]


async def test_a_published_call_that_runs_already_goes_to_the_same_executor(world: World) -> None:
    async with world.scheduling() as scheduler:
        one = await world.executor("one", behave=lambda run, body: 0.3)
        await world.executor("two", behave=lambda run, body: 0.3)
        await world.joined(scheduler, 2)
        await world.deploy("hello")
        call = world.new_call("hello", b"x", tenant="acme", lane=Lane.SYNC)
        await world.publish(call, b"x")
        await until(lambda: world.ran)
        first = world.ran[0].executor
        await world.publish(call.model_copy(update={"placement": 1}), b"x")
        await until(lambda: len(world.ran) == 2)
        assert world.ran[1].executor == first
        assert world.ran[1].reason == "same-executor"
        assert one.bus.connected


async def test_a_redelivery_after_the_record_is_only_acknowledged(world: World) -> None:
    """The scheduler died between a run's acknowledgement and its call's; the job has ended since."""
    await world.deploy("hello")
    call = world.new_call("hello", b"x", tenant="acme", lane=Lane.ASYNC)
    async with world.scheduling() as scheduler:
        await world.executor("one")
        await world.joined(scheduler, 1)
        await world.publish(call, b"x")
        await world.ended(call.job)
        await world.empty("JOBS")
    # The same words again, as if the acknowledgement had been lost: the id's memory is gone with the purge of the window.
    await world.bus.publish(subjects.job("acme", "hello"), b"x", meta=call, contract="job.v1", msg_id="as-if-redelivered")
    async with world.scheduling():
        await world.empty("JOBS", "RUNS")
    assert len(world.runs_of(call.job)) == 1
    assert set((await world.records()).values()) == {1}


async def test_a_swallowed_placement_is_found_out(world: World) -> None:
    """The stream knows the dispatch's id, but the run is nowhere: it goes out under the next placement."""
    async with world.scheduling() as scheduler:
        await world.deploy("hello")
        call = world.new_call("hello", b"x", tenant="acme", lane=Lane.SYNC)
        await world.bus.publish(subjects.run("lost-00000000", call.job, sync=True), b"x", msg_id=f"{call.job}.1.0")
        await world.bus.purge("RUNS_SYNC", subject=subjects.run("lost-00000000", call.job, sync=True))
        await world.executor("one")
        await world.joined(scheduler, 1)
        await world.publish(call, b"x")
        await world.answer(call.job)
        assert [(ran.attempt, ran.placement) for ran in world.runs_of(call.job)] == [(1, 1)]
        assert [moved.placement for moved in world.asked] == [1]


async def cancel(world: World, job: str, lane: Lane) -> None:
    record = Record(
        job=job, tenant="acme", function="hello", version=1, lane=lane,
        ending=Ending(state=State.FAILED, reason=Reason.CANCELLED), input=Body(),
    )  # fmt: skip
    await world.bus.publish(subjects.record("acme", job), b"", meta=record, contract="record.v1", expect_last=0)


@pytest.mark.parametrize("lane", [Lane.SYNC, Lane.ASYNC])
async def test_a_cancelled_call_leaves_the_queue(world: World, lane: Lane) -> None:
    async with world.scheduling() as scheduler:
        await world.deploy("hello")
        call = world.new_call("hello", b"x", tenant="acme", lane=lane)
        await world.publish(call, b"x")
        await until(lambda: scheduler.term and call.job in scheduler.term.dispatcher.by_job)
        await cancel(world, call.job, lane)
        await world.empty("CALLS", "JOBS")
        if lane is Lane.SYNC:
            assert (await world.answer(call.job)).ending.reason is Reason.CANCELLED
        await world.executor("one")
        await world.joined(scheduler, 1)
        await world.call("hello")
        assert world.runs_of(call.job) == []


async def test_a_job_cancelled_in_the_stream_is_not_run(world: World) -> None:
    async with world.scheduling() as scheduler:
        await world.deploy("hello")
        assert scheduler.term is not None
        scheduler.term.dispatcher._listening_since = 0.0  # it has listened for long: what it has not heard has not been
        jobs = [await world.job("hello") for _ in range(3)]
        await until(lambda: scheduler.term and scheduler.term.dispatcher.by_job)
        await cancel(world, jobs[2], Lane.ASYNC)
        await world.executor("one")
        await world.ended(jobs[1])
        await world.empty("JOBS", "RUNS")
        assert world.runs_of(jobs[2]) == []


@pytest.mark.parametrize("readable", [True, False])
async def test_a_message_that_does_not_parse_is_kept_with_the_reason(world: World, readable: bool) -> None:
    async with world.scheduling() as scheduler:
        await world.executor("one")
        await world.joined(scheduler, 1)
        await world.deploy("hello")
        call = world.new_call("hello", b"x", tenant="acme", lane=Lane.ASYNC)
        meta = json.dumps({"job": call.job, "surprise": 1}) if readable else "{"
        await world.bus.publish(
            subjects.job("acme", "hello"), b"body", headers={"Hearth-Meta": meta, "Hearth-Contract": "job.v1"}
        )
        await world.empty("JOBS")
        stored = await world.bus.get_next("DEAD", subjects.DEAD_ALL)
        assert stored is not None
        dead = stored.message.meta(Dead)
        assert dead.ending.reason is Reason.REJECTED
        assert dead.ending.failure is not None
        assert dead.ending.failure.type == "E_UNDECODABLE"
        assert stored.message.body == b"body"
        if readable:
            assert (await world.ended(call.job)).ending.reason is Reason.REJECTED
        # And the function goes on.
        assert (await world.ended(await world.job("hello"))).ending.state is State.SUCCESS


async def test_depths_tell_what_waits(world: World) -> None:
    heard: list[Depths] = []

    def hear(message: Message) -> None:
        heard.append(message.meta(Depths))

    await world.bus.subscribe(subjects.DEPTHS_ALL, hear)
    async with world.scheduling() as scheduler:
        await world.deploy("hello")
        for _ in range(20):
            await world.job("hello")
        calls = [asyncio.create_task(world.call("hello")) for _ in range(5)]
        await until(lambda: heard and heard[-1].waiting.get("acme.hello") == 25)
        assert scheduler.term is not None
        assert heard[-1].epoch == scheduler.term._lease.epoch
        await world.executor("one")
        await asyncio.gather(*calls)
        await until(lambda: heard[-1].waiting == {})


async def test_ten_thousand_of_one_do_not_hold_up_one_of_another(world: World) -> None:
    async with world.scheduling() as scheduler:
        await world.executor("one", slots=2, behave=lambda run, body: 0.002)
        await world.joined(scheduler, 1)
        await world.deploy("many")
        await world.deploy("single", tenant="other")
        for _ in range(400):
            await world.job("many")
        job = await world.job("single", tenant="other")
        before = len(world.ran)
        await world.ended(job, tenant="other")
        after = next(number for number, ran in enumerate(world.ran) if ran.job == job)
        assert after - before < 20
        await world.empty("JOBS", within_s=30)


async def test_a_trace_has_its_spans(world: World) -> None:
    async with world.scheduling() as scheduler:
        await world.executor("one")
        await world.joined(scheduler, 1)
        await world.deploy("hello")
        parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        call = world.new_call("hello", b"x", tenant="acme", lane=Lane.SYNC)
        await world.publish(call, b"x", traceparent=parent)
        await world.answer(call.job)
        await until(lambda: len(scheduler._tracer._spans) == 4)
        spans = {span.name: span for span in scheduler._tracer._spans}
        process = spans["process hearth.v1.calls"]
        assert (process.parent, process.kind) == ("b7ad6b7169203331", "consumer")
        for name in ("wait", "place", "send hearth.v1.runs_sync"):
            assert spans[name].parent == process.span_id
            assert process.start <= spans[name].start <= spans[name].end <= process.end
        assert spans["place"].attributes["hearth.executor"] == world.executors["one"].id


async def test_a_broker_that_restarts_has_its_memory_made_again(own_broker: Broker) -> None:
    """Streams in memory and their consumers are back within 2 s, calls go on, jobs are not lost, held calls are republished."""
    async with contextlib.AsyncExitStack() as stack:
        bus = await stack.enter_async_context(connect(url=own_broker.url, instance="test"))
        await provision(bus)
        world = World(bus, own_broker.url, stack)
        await world.start()
        scheduler = await stack.enter_async_context(world.scheduling())
        await world.executor("one", behave=lambda run, body: 0.01)
        await world.joined(scheduler, 1)
        await world.deploy("hello")
        await world.call("hello")
        # One job and one call that wait for an executor which comes later.
        await world.deploy("later", placement={"zone": "edge"})
        job = await world.job("later")
        held = world.new_call("later", b"x", tenant="acme", lane=Lane.SYNC)
        await world.publish(held, b"x")
        await until(lambda: scheduler.term and len(scheduler.term.dispatcher.by_job) == 2)
        loop = asyncio.get_running_loop()
        own_broker.kill()
        own_broker.start()
        await until(lambda: bus.connected)
        began = loop.time()
        consumer = streams.executor_consumer(world.executors["one"].id)
        async with asyncio.timeout(10):
            while True:
                with contextlib.suppress(Exception):
                    names = {stream.name for stream in streams.MEMORY_STREAMS if await bus.stream_info(stream.name)}
                    made = [
                        await bus.consumer_info("CALLS", "scheduler"), await bus.consumer_info("OUTCOMES_SYNC", "scheduler"),
                        await bus.consumer_info("RUNS_SYNC", consumer), await bus.consumer_info("AI", streams.AI_CONSUMER),
                    ]  # fmt: skip
                    if len(names) == len(streams.MEMORY_STREAMS) and all(made):
                        break
                await asyncio.sleep(0.02)
        assert loop.time() - began < 2
        assert (await world.call("hello", within_s=5)).ending.state is State.SUCCESS
        # The gateway's part: what it holds is published again under another dispatch.
        await world.publish(held.model_copy(update={"placement": 1}), b"x")
        await world.executor("edge", labels={"zone": "edge"})
        assert (await world.answer(held.job)).ending.placement == 1
        assert (await world.ended(job)).ending.state is State.SUCCESS
        await world.empty("CALLS", "JOBS", "RUNS", "RUNS_SYNC")
        assert set((await world.records()).values()) == {1}


async def test_an_outage_of_the_broker_buries_nobody(own_broker: Broker) -> None:
    """Longer than an executor may be silent, longer than the lease lasts."""
    async with contextlib.AsyncExitStack() as stack:
        bus = await stack.enter_async_context(connect(url=own_broker.url, instance="test"))
        await provision(bus)
        world = World(bus, own_broker.url, stack)
        await world.start()
        scheduler = await stack.enter_async_context(world.scheduling(dead_after_s=1.5, suspect_after_s=1))
        executor = await world.executor("one")
        await world.joined(scheduler, 1)
        await world.deploy("hello")
        term = scheduler.term
        executor.frozen = True  # it finds the broker again later than the scheduler does
        own_broker.kill()
        await until(lambda: scheduler.term is None, what="the lease has run out")
        own_broker.start()
        await until(lambda: scheduler.term is not None, what="it is active again")
        assert scheduler.term is not term
        told: list[Message] = []
        await until(lambda: bus.connected)
        await bus.subscribe(subjects.DEPTHS_ALL, told.append)
        await until(lambda: len(told) >= 4, what="it has looked for the dead")
        executor.frozen = False
        executor.report()
        await world.joined(scheduler, 1)
        assert (await world.call("hello")).ending.executor == executor.id


async def test_an_old_acknowledgement_settles_nothing_new(own_broker: Broker) -> None:
    """A call that waited when the broker died has the number of another one now: its cancel must not take that one away."""
    async with contextlib.AsyncExitStack() as stack:
        bus = await stack.enter_async_context(connect(url=own_broker.url, instance="test"))
        await provision(bus)
        world = World(bus, own_broker.url, stack)
        await world.start()
        scheduler = await stack.enter_async_context(world.scheduling())
        await world.deploy("hello")
        old = world.new_call("hello", b"old", tenant="acme", lane=Lane.SYNC)
        await world.publish(old, b"old")
        await until(lambda: scheduler.term and old.job in scheduler.term.dispatcher.by_job)
        own_broker.kill()
        own_broker.start()
        await until(lambda: bus.connected)
        new = world.new_call("hello", b"new", tenant="acme", lane=Lane.SYNC)
        async with asyncio.timeout(10):
            while True:
                with contextlib.suppress(Exception):
                    assert await world.publish(new, b"new") == 1
                    break
                await asyncio.sleep(0.02)
        await until(lambda: scheduler.term and new.job in scheduler.term.dispatcher.by_job)
        await cancel(world, old.job, Lane.SYNC)
        await until(lambda: scheduler.term and old.job not in scheduler.term.dispatcher.by_job)
        for _ in range(10):  # an acknowledgement is not answered: give a wrong one time to arrive
            info = await bus.consumer_info("CALLS", "scheduler")
            assert info is not None
            assert info.ack_pending == 1
            await asyncio.sleep(0.02)
        await world.executor("one")
        assert (await world.answer(new.job)).body == b"new"
        assert world.runs_of(old.job) == []


async def test_what_was_deleted_in_memory_is_made_again(world: World) -> None:
    async with world.scheduling() as scheduler:
        await world.executor("one")
        await world.joined(scheduler, 1)
        await world.deploy("hello")
        await world.bus.delete_consumer("CALLS", "scheduler")
        assert (await world.call("hello")).ending.state is State.SUCCESS


async def test_what_was_deleted_in_a_file_is_said_with_its_fix(world: World) -> None:
    """Never silently remade: somebody must know."""
    async with world.scheduling() as scheduler:
        await world.deploy("hello")
        await until(lambda: scheduler.term and scheduler.term.feeds._feeds)
        async with asyncio.timeout(5):
            while not await world.bus.consumer_names("JOBS"):
                await asyncio.sleep(0.02)
        await world.bus.delete_consumer("JOBS", "f_acme=hello")
        await world.bus.delete_consumer("OUTCOMES", "scheduler")
        assert scheduler.term is not None
        async with asyncio.timeout(10):
            while len(world.problems["scheduler-1"]) < 2:
                await scheduler.term._tidy()
                await asyncio.sleep(0.05)
        assert all("restart this scheduler" in fix for fix in world.problems["scheduler-1"].values())
        assert await world.bus.consumer_names("JOBS") == []


async def test_a_defect_ends_one_call_and_no_other(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    real = service.place

    def place(job: Job, fleet: Fleet, now: float) -> Decision:
        if job.wants.function == "acme.cursed":
            raise ZeroDivisionError
        return real(job, fleet, now)

    monkeypatch.setattr(service, "place", place)
    monkeypatch.setattr(service, "TRIES_MAX", 1)
    async with world.scheduling() as scheduler:
        await world.executor("one")
        await world.joined(scheduler, 1)
        await world.deploy("cursed")
        await world.deploy("hello")
        cursed = asyncio.create_task(world.call("cursed"))
        assert (await world.call("hello")).ending.state is State.SUCCESS
        ending = (await cursed).ending
        assert (ending.reason, ending.failure and ending.failure.type) == (Reason.REJECTED, "E_SCHEDULER")
        await world.empty("CALLS")


async def test_it_lives_with_the_permissions_it_is_given(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Everything above that touches the broker, once, as the user that a platform would make for it."""
    allowed = permissions.for_service(registry.SCHEDULER, "scheduler-1")

    def listed(subjects_: tuple[str, ...]) -> str:
        return ", ".join(json.dumps(subject) for subject in subjects_)

    user = (
        f"{{user: scheduler, password: secret, permissions: {{publish: {{allow: [{listed(allowed.publish)}]}}, "
        f"subscribe: {{allow: [{listed(allowed.subscribe)}]}}}}}}"
    )
    broker = Broker(
        tmp_path_factory.mktemp("broker"),
        extra=f"accounts: {{ H: {{ jetstream: enabled, users: [{user}, {{user: all, password: all}}] }} }}",
    )
    broker.start()
    everyone = broker.url.replace("nats://", "nats://all:all@")
    try:
        async with contextlib.AsyncExitStack() as stack:
            bus = await stack.enter_async_context(connect(url=everyone, instance="test"))
            await provision(bus)
            world = World(bus, everyone, stack)
            await world.start()
            await world.deploy("hello", retry={"attempts": 2, "backoff_s": [0]})
            world.url = broker.url.replace("nats://", "nats://scheduler:secret@")
            refusals: list[str] = []
            scheduler = await stack.enter_async_context(world.scheduling(dead_after_s=0.9, suspect_after_s=0.5, sweep_s=0.3))
            wire = scheduler._bus._wire

            async def refused(error: Exception) -> None:
                refusals.append(str(error))

            wire._error_cb = refused
            world.url = everyone
            one = await world.executor("one", behave=lambda run, body: "error" if run.call.attempt == 1 else "hang")
            await world.joined(scheduler, 1)
            job = await world.job("hello")
            call = world.new_call("hello", b"x", tenant="acme", lane=Lane.SYNC)
            await world.publish(call, b"x")
            await until(lambda: len(one.held) == 2)
            one.report()
            await one.stop()
            await world.executor("two")
            assert (await world.ended(job)).ending.state is State.SUCCESS
            assert (await world.answer(call.job)).ending.state is State.SUCCESS
            gone = await world.job("hello", depth=17)
            assert (await world.ended(gone)).ending.reason is Reason.RECURSION
            orphan = world.new_call("hello", b"", tenant="acme", lane=Lane.ASYNC)
            state = StateChange(job=orphan.job, tenant="acme", state=State.PENDING, at=0)
            await bus.publish(subjects.state("acme", orphan.job), meta=state, contract="state.v1")
            # There is no archive to ask here: it is left alone unless nothing can have left the broker.
            assert (await world.ended(orphan.job)).ending.reason is Reason.LOST
            await world.empty("RUNS", "RUNS_SYNC", "OUTCOMES", "OUTCOMES_SYNC", "JOBS", "CALLS")
            assert refusals == []
    finally:
        broker.stop()
