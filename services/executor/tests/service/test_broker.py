"""The broker goes away, comes back, forgets; the scheduler gives an executor up. What is told then, and what never is."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from in_process import Calling
from placing import Running, executor, until

from hearth_contracts import permissions, streams
from hearth_contracts.enums import Lane, State
from hearth_kit.nats_bus import connect
from hearth_kit.provision import provision, remake_memory
from hearth_kit.pytest_plugin import Broker

pytestmark = pytest.mark.broker

ID = "executor-1-0a1b2c3d"


class Gate:
    """A function that ends when it is let."""

    def __init__(self) -> None:
        self.running = 0
        self.go = asyncio.Event()

    async def __call__(self, calling: Calling) -> bytes:
        self.running += 1
        await self.go.wait()
        return b"done"


@asynccontextmanager
async def alone(broker: Broker, functions, **fields) -> AsyncIterator[Running]:
    """An executor on a broker of this test's own."""
    async with connect(url=broker.url, instance="test") as others, connect(url=broker.url, instance=ID) as own:
        await provision(others)
        async with executor(own, others=others, functions=functions, **fields) as running:
            yield running


async def _restart(broker: Broker, it: Running) -> None:
    broker.kill()
    broker.start()
    await until(lambda: it.bus.connected or None)
    await remake_memory(it.bus)
    await it.consumers(lanes=("RUNS_SYNC",))


async def test_what_ends_while_the_broker_is_away_is_told_when_it_is_back(own_broker):
    gate = Gate()
    async with alone(own_broker, {"gate": gate}) as it:
        sync, behind = it.call("gate"), it.call("gate", lane=Lane.ASYNC)
        await it.place(sync)
        await it.place(behind)
        await until(lambda: gate.running == 2)
        own_broker.kill()
        await until(lambda: not it.service._bus.connected or None)
        gate.go.set()
        await until(lambda: it.executor.free == 4 or None)
        own_broker.start()
        await until(lambda: it.bus.connected or None)
        await remake_memory(it.bus)
        await it.consumers(lanes=("RUNS_SYNC",))
        for call in (sync, behind):
            record, content = await it.record(call, within_s=20)
            assert record.parts(content)[1] == b"done"
        await it.settled(within_s=20)
    assert gate.running == 2


async def test_an_acknowledgement_from_before_a_restart_settles_nothing_after_it(own_broker):
    """RUNS_SYNC begins anew with the broker: the old message's number is another run's by then."""
    gate = Gate()
    async with alone(own_broker, {"gate": gate}, slots=4) as it:
        first = it.call("gate")
        await it.place(first)
        await until(lambda: gate.running == 1)
        await _restart(own_broker, it)
        second = it.call("gate")
        await until(lambda: _placed(it, second), within_s=20)
        await until(lambda: gate.running == 2, within_s=20)
        held = {held.run.call.job: held for held in it.executor._held.values()}
        assert held[first.job].messages == []
        assert it.executor.accepted[True] == 1
        gate.go.set()
        await it.settled(within_s=20)
        for call in (first, second):
            assert (await it.record(call))[0].ending.state is State.SUCCESS


async def _placed(it: Running, call) -> bool:
    await it.place(call)
    return True


async def test_work_goes_on_after_three_restarts(own_broker):
    async def echo(calling: Calling) -> bytes:
        return await calling.body()

    async with alone(own_broker, {"echo": echo}) as it:
        for n in range(3):
            call = it.call("echo", b"%d" % n)
            await it.place(call, b"%d" % n)
            assert (await it.reply(call, within_s=20))[1] == b"%d" % n
            await it.record(call, within_s=20)
            await _restart(own_broker, it)
        call = it.call("echo", lane=Lane.ASYNC)
        await it.place(call)
        await it.record(call, within_s=20)
        await it.settled(within_s=20)


async def test_an_executor_that_was_given_up_kills_its_runs_and_says_nothing(start):
    gate = Gate()
    async with start({"gate": gate}) as it:
        await it.place(call := it.call("gate"))
        await until(lambda: gate.running)
        await until(lambda: it.service.membership.known or None)
        for stream in ("RUNS", "RUNS_SYNC"):
            await it.bus.delete_consumer(stream, streams.executor_consumer(it.id))
        await asyncio.wait_for(it.service.membership.lost.wait(), 10)
        await it.executor.disown()
        assert await it.stored_record(call) is None
    assert not it.replies
    assert it.backend.given_back == [("unit-0", False)]


async def test_before_the_scheduler_has_made_its_consumers_it_waits_quietly(start, caplog):
    async def echo(calling: Calling) -> bytes:
        return b"1"

    async with start({"echo": echo}, consumers=False) as it:
        call = it.call("echo")
        await it.place(call)
        await asyncio.sleep(0.6)  # two of the pump's questions, each in vain
        assert not it.service.membership.lost.is_set()
        await it.consumers()
        await it.reply(call)
    assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]


async def _wake(it: Running, gate: Gate) -> None:
    """The process stood still past the limit, and the first thing it does is to end its runs."""
    membership = it.service.membership
    membership._ticked_at -= 9
    gate.go.set()


async def test_after_a_silence_nothing_is_said_before_the_consumer_has_been_seen(start, own_bus, monkeypatch):
    gate = Gate()
    asked = []
    info = own_bus.consumer_info

    async def watched(stream, name):
        asked.append(list(it.heard))
        return await info(stream, name)

    async with start({"gate": gate}) as it:
        await it.place(call := it.call("gate"))
        await until(lambda: gate.running)
        await until(lambda: it.service.membership.known or None)
        monkeypatch.setattr(own_bus, "consumer_info", watched)
        await _wake(it, gate)
        reply, _ = await it.reply(call)
        await it.settled()
    assert asked
    assert not [subject for subject in asked[0] if ".replies." in subject or ".records." in subject]
    assert reply.ending.state is State.SUCCESS


async def test_after_a_silence_and_given_up_nothing_is_said_at_all(start):
    gate = Gate()
    async with start({"gate": gate}) as it:
        await it.place(call := it.call("gate"))
        await until(lambda: gate.running)
        await until(lambda: it.service.membership.known or None)
        it.service._pumps[0]._lost = None  # only the silence can tell
        for stream in ("RUNS", "RUNS_SYNC"):
            await it.bus.delete_consumer(stream, streams.executor_consumer(it.id))
        await _wake(it, gate)
        await asyncio.wait_for(it.service.membership.lost.wait(), 10)
        await it.executor.idle(5)
        assert await it.stored_record(call) is None
    assert not it.replies


async def test_a_run_in_hand_longer_than_the_broker_waits_stays_one_run(start):
    """Heartbeats: five times the acknowledgement wait, one delivery, one run."""
    gate = Gate()
    async with start({"gate": gate}, ack_wait_s=0.5, heartbeat_s=0.1, slots=1) as it:
        running, waiting = it.call("gate", lane=Lane.ASYNC), it.call("gate")
        await it.place(running)
        await it.place(waiting)
        await until(lambda: it.executor.waiting)
        until_s = time.monotonic() + 2.5
        await until(lambda: time.monotonic() > until_s or None)
        assert max(held.messages[-1].delivered for held in it.executor._held.values()) == 1
        gate.go.set()
        await it.settled()
    assert gate.running == 2


async def test_without_heartbeats_a_redelivery_is_recognised(start):
    gate = Gate()
    async with start({"gate": gate}, ack_wait_s=0.3, heartbeat_s=3600) as it:
        await it.place(call := it.call("gate"))
        held = await until(lambda: next(iter(it.executor._held.values()), None))
        await until(lambda: held.messages[-1].delivered >= 2 or None)
        gate.go.set()
        await it.record(call)
        await it.settled()
    assert gate.running == 1
    assert len(it.replies) == 1


async def test_it_lives_within_the_permissions_of_one_executor(tmp_path):
    """A whole life under its generated user: calls on both lanes, large bodies, logs, events, cancel, drain."""
    may = permissions.for_service("executor", ID)
    users = [
        {"user": "boot", "password": "b"},
        {"user": "executor", "password": "e", "permissions": {
            "publish": list(may.publish), "subscribe": list(may.subscribe),
            **({"allow_responses": {"max": 1, "expires": "1m"}} if may.responses else {}),
        }},
    ]  # fmt: skip
    broker = Broker(tmp_path, extra=f"authorization {{ users: {json.dumps(users)} }}")
    broker.start()

    async def large(calling: Calling) -> bytes:
        body = await calling.body()
        calling.events.log("stdout", b"z" * 100_000)
        await calling.events.emit("camera.front", b"1", "text/plain")
        return body * 2

    try:
        async with (
            connect(url=broker.url, instance="test", user="boot", password="b") as others,
            connect(url=broker.url, instance=ID, user="executor", password="e") as own,
        ):
            await provision(others)
            async with executor(own, others=others, functions={"large": large}, heartbeat_s=0.05) as it:
                for lane in Lane:
                    call = it.call("large", b"x" * 200_000, lane=lane)
                    await it.place(call, b"x" * 200_000)
                    record, _ = await it.record(call)
                    assert record.ending.result.size == 400_000
                    assert record.log.object
                again = it.call("large", b"{}", lane=Lane.ASYNC)
                await it.place(again, is_last=False, placement=2)
                await it.record(again)
                assert not (await it.control("cancel", "nobody-00000000000000000000000000")).done
                await it.settled()
                await it.service.drain(5)
                await until(lambda: it.service.membership.known or None)
        assert "Permissions Violation" not in (tmp_path / "nats.log").read_text()
    finally:
        broker.stop()
