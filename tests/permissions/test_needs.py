"""What each service needs is allowed: the road of a call with the real users, and not one refusal on the way."""

import asyncio
import contextlib
import logging

import pytest

from hearth_contracts import names, streams, subjects
from hearth_contracts.calls import ArchiveQuery, Moved, MovedAnswer
from hearth_contracts.fleet import Control
from hearth_contracts.functions import FunctionHead
from hearth_contracts.keys import ApiKey
from hearth_kit import provision
from hearth_kit.bus import ConsumerSpec, contract_headers
from hearth_kit.clock import SystemClock
from hearth_kit.kv import Bucket
from hearth_kit.lease import Role
from hearth_kit.message import Message
from hearth_kit.objects import Objects
from hearth_kit.registry import Registry
from hearth_kit.tracing import Tracer

from .conftest import INSTANCES

pytestmark = pytest.mark.broker

JOB = names.new_job("resize", 2.0)
EXECUTOR = INSTANCES["executor"]


class Inbox(asyncio.Queue):
    """A handler whose messages are awaited."""

    def __call__(self, message: Message) -> None:
        self.put_nowait(message)

    async def next(self) -> Message:
        return await asyncio.wait_for(self.get(), 5)


@pytest.fixture
async def buses(guarded, caplog):
    caplog.set_level(logging.WARNING)
    async with contextlib.AsyncExitStack() as stack:
        yield {service: await stack.enter_async_context(guarded.bus(name)) for service, name in INSTANCES.items()}
    assert [record.getMessage() for record in caplog.records] == []


async def consumers(bus):
    for spec in provision.scheduler_consumers():
        await bus.ensure_consumer(spec)
    await bus.ensure_consumer(ConsumerSpec("JOBS", streams.function_consumer("acme", "resize"), subjects.job("acme", "resize")))
    for name in ("RUNS", "RUNS_SYNC"):
        await bus.ensure_consumer(
            ConsumerSpec(name, streams.executor_consumer(EXECUTOR), subjects.runs_of(EXECUTOR, sync=name == "RUNS_SYNC"))
        )
    await bus.ensure_consumer(ConsumerSpec("AI", streams.AI_CONSUMER))


@pytest.mark.parametrize("sync", [True, False])
async def test_a_call_travels_the_whole_way(buses, sync):
    gateway, scheduler, executor, persister = (buses[name] for name in ("gateway", "scheduler", "executor", "persister"))
    job = names.new_job("resize", 10.0 + sync)
    await consumers(scheduler)
    await persister.ensure_consumer(ConsumerSpec("RECORDS", streams.store_consumer("folder")))
    calls, runs, replies, stored, live = Inbox(), Inbox(), Inbox(), Inbox(), Inbox()
    await gateway.subscribe(subjects.replies_of("gateway-1"), replies)
    await gateway.subscribe(subjects.RECORDS_ALL, live)
    await scheduler.subscribe(subjects.RECORDS_ALL, Inbox())
    work, consumer = ("CALLS", "scheduler") if sync else ("JOBS", streams.function_consumer("acme", "resize"))
    await scheduler.pull(work, consumer, calls)
    pump = await executor.pull("RUNS_SYNC" if sync else "RUNS", streams.executor_consumer(EXECUTOR), runs, auto=False)
    pump.grant(1)
    await persister.pull("RECORDS", streams.store_consumer("folder"), stored)

    await gateway.publish(subjects.state("acme", job))
    await gateway.publish((subjects.call if sync else subjects.job)("acme", "resize"), b"{}", msg_id=job)
    placed = await calls.next()
    await scheduler.publish(subjects.run(EXECUTOR, job, sync=sync), placed.body, msg_id=f"{job}.1.0")
    placed.ack()
    run = await runs.next()
    run.in_progress()
    await executor.publish(subjects.state("acme", job))
    executor.send(subjects.log("acme", job), b"printed")
    if sync:
        await executor.publish(subjects.reply("gateway-1", job), b"1")
        assert (await replies.next()).body == b"1"
    await executor.publish(subjects.record("acme", job), b"1", expect_last=0)
    run.ack()
    assert (await live.next()).body == b"1"
    record = await stored.next()
    record.ack()
    for bus in (gateway, scheduler, executor, persister):
        assert (await bus.get_last("RECORDS", subjects.record("acme", job))).message.body == b"1"
    if sync:
        assert (await scheduler.get_last("REPLIES", subjects.reply("gateway-1", job))).message.body == b"1"
    await persister.purge("RECORDS", below_sequence=record.sequence + 1)


async def test_work_goes_back_and_a_dead_executors_is_placed_again(buses):
    scheduler, executor = buses["scheduler"], buses["executor"]
    await consumers(scheduler)
    outcomes = Inbox()
    for name in ("OUTCOMES", "OUTCOMES_SYNC"):
        await scheduler.pull(name, "scheduler", outcomes)
    for sync in (True, False):
        await executor.publish(subjects.outcome("acme", "resize", JOB, sync=sync), b"{}", msg_id=names.new_boot())
        (await outcomes.next()).ack()
        stream = "RUNS_SYNC" if sync else "RUNS"
        await scheduler.publish(subjects.run(EXECUTOR, JOB, sync=sync), b"{}", msg_id=names.new_boot())
        assert await scheduler.get_next(stream, subjects.runs_of(EXECUTOR, sync=sync)) is not None
        assert await scheduler.purge(stream, subject=subjects.runs_of(EXECUTOR, sync=sync)) == 1
        await scheduler.delete_consumer(stream, streams.executor_consumer(EXECUTOR))
        assert await executor.consumer_info(stream, streams.executor_consumer(EXECUTOR)) is None
        assert await scheduler.consumer_names(stream) == []
    await scheduler.publish(subjects.dead("acme", JOB), b"{}", msg_id=names.new_boot())
    assert await buses["gateway"].get_last("DEAD", subjects.dead("acme", JOB)) is not None


async def test_streams_in_memory_are_made_again_by_the_scheduler(guarded, buses):
    assert await provision.remake_memory(buses["scheduler"]) == []
    async with guarded.bus("bootstrap") as bootstrap:
        for stream in streams.MEMORY_STREAMS:
            await bootstrap._api_call(f"STREAM.DELETE.{stream.name}")
    assert await provision.remake_memory(buses["scheduler"]) == [stream.name for stream in streams.MEMORY_STREAMS]
    assert await provision.problems(buses["scheduler"], tuple(stream.name for stream in streams.FILE_STREAMS)) == {}
    assert await provision.problems(buses["gateway"], tuple(stream.name for stream in streams.FILE_STREAMS)) == {}


async def test_requests_are_answered(buses):
    gateway, scheduler, executor, persister = (buses[name] for name in ("gateway", "scheduler", "executor", "persister"))

    def answer(message: Message) -> None:
        message.respond(b"done", {"Hearth-Meta": MovedAnswer(held=True, answered=False).model_dump_json()})

    await executor.subscribe(subjects.control(EXECUTOR), answer)
    await gateway.subscribe(subjects.moved("gateway-1"), answer)
    await persister.subscribe(subjects.ARCHIVE, answer, queue="persister")
    for bus in (executor, gateway, persister):
        await bus.get_last("RECORDS", subjects.record("acme", JOB))
    for bus, subject, meta in (
        (gateway, subjects.control(EXECUTOR), Control(verb="cancel", job=JOB)),
        (scheduler, subjects.control(EXECUTOR), Control(verb="drain")),
        (scheduler, subjects.moved("gateway-1"), Moved(job=JOB, attempt=1, placement=1)),
        (gateway, subjects.moved("gateway-1"), Moved(job=JOB, attempt=1, placement=1)),
        (gateway, subjects.ARCHIVE, ArchiveQuery(tenant="acme")),
    ):
        headers = contract_headers(meta=meta, contract="", msg_id="", traceparent="", expect_last=None, headers=None)
        assert (await bus.request(subject, headers=headers)).body == b"done"


async def test_a_direct_call_of_a_tenant_is_answered(guarded, buses):
    """`nats req hearth.v1.invoke.<tenant>.<function>`, across the accounts."""
    heard = Inbox()
    await buses["gateway"].subscribe(subjects.INVOKE_ALL, heard)
    await buses["gateway"].get_last("RECORDS", subjects.record("acme", JOB))
    async with guarded.raw("acme-publisher") as tenant:
        asked = asyncio.ensure_future(tenant.request("hearth.v1.invoke.acme.resize", b'{"name": "ada"}', timeout=5))
        message = await heard.next()
        assert (message.subject, message.body) == ("hearth.v1.invoke.acme.resize", b'{"name": "ada"}')
        message.respond(b"hello ada")
        assert (await asked).data == b"hello ada"
        await tenant.publish("hearth.v1.events.acme.camera.1", b"motion")
        await tenant.flush()
    for _ in range(100):
        if (found := await _event(guarded)) is not None:
            break
    assert found.message.body == b"motion"


async def _event(guarded):
    async with guarded.bus("bootstrap") as bus:
        return await bus.get_last("EVENTS", "hearth.v1.events.acme.camera.1")


async def test_buckets_objects_roles_and_the_fleet(buses):
    gateway, scheduler, executor, ai_proxy, persister = buses.values()
    heads = Bucket(gateway, streams.FUNCTIONS, FunctionHead)
    await heads.put("acme.resize", FunctionHead(tenant="acme", function="resize", current=1, updated_at=1))
    for bus in (gateway, scheduler, executor):
        registry = Registry(bus)
        await registry.start()
        assert registry.head("acme", "resize").current == 1
    keys = await Bucket(gateway, streams.KEYS, ApiKey).mirror()
    await Bucket(gateway, streams.KEYS, ApiKey).put("k1", ApiKey(prefix="p", tenant="acme"))
    assert (await keys.fresh("k1")).prefix == "p"
    for bus, role in ((scheduler, "scheduler"), (persister, "store.folder")):
        async with asyncio.timeout(5), Role(bus=bus, role=role, holder=bus.instance, clock=SystemClock()).hold() as held:
            assert held.ours
    assert ai_proxy.connected
    for area, writer in (("bodies", gateway), ("bodies", executor), ("code", gateway), ("bodies", persister)):
        await Objects(writer).put(area, f"o-{writer.instance}", b"x" * 300_000)
        for reader in (gateway, executor, persister):
            assert len(await Objects(reader).get(area, f"o-{writer.instance}")) == 300_000
        if writer is not persister:
            await Objects(gateway).delete(area, f"o-{writer.instance}")
    await executor.publish(subjects.capacity(EXECUTOR), msg_id=names.new_boot())
    for bus in (gateway, scheduler):
        assert len(await bus.get_last_each("CAPACITY", [subjects.CAPACITY_ALL])) == 1
    heard = Inbox()
    await gateway.subscribe(subjects.PRESENCE_ALL, heard)
    await gateway.subscribe(subjects.DEPTHS_ALL, heard)
    await gateway.get_last("RECORDS", subjects.record("acme", JOB))
    for service, bus in buses.items():
        bus.send(subjects.presence(service, bus.instance))
        assert (await heard.next()).subject == subjects.presence(service, bus.instance)
    scheduler.send(subjects.depths("scheduler-1"))
    assert (await heard.next()).subject == "hearth.v1.depths.scheduler-1"
    for service, bus in buses.items():
        tracer = Tracer(service=service, instance=bus.instance, bus=bus, clock=SystemClock(), per_second=10)
        context = tracer.root().child()
        tracer.span(context, "x", parent="", start=1, end=2)
        await tracer.flush()
        assert tracer.dropped == 0
        assert await gateway.get_last("TRACES", subjects.trace(context.trace_id)) is not None


async def test_a_model_is_asked_and_answers(buses):
    gateway, ai_proxy = buses["gateway"], buses["ai-proxy"]
    await consumers(buses["scheduler"])
    asked, tokens = Inbox(), Inbox()
    await ai_proxy.pull("AI", streams.AI_CONSUMER, asked)
    await gateway.subscribe(subjects.ai_tokens_of("gateway-1"), tokens)
    await gateway.publish(subjects.ai_request("llama3.2:1b"), b"{}", msg_id=names.new_boot())
    message = await asked.next()
    await ai_proxy.publish(subjects.ai_tokens("gateway-1", "r1"), b"hello")
    message.ack()
    assert (await tokens.next()).body == b"hello"
