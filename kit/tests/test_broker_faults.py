"""The bus when the broker restarts, dies, stops answering or loses its memory (PROMISES 21, 26, 32)."""

import asyncio
import os
import signal
import time

import pytest

from hearth_contracts import streams, subjects
from hearth_contracts.keys import ApiKey
from hearth_kit import errors, metrics, nats_bus, provision, pump
from hearth_kit.bus import ConsumerSpec
from hearth_kit.kv import Bucket
from hearth_kit.message import Message

from .conftest import until

pytestmark = pytest.mark.broker

JOB = subjects.job("acme", "resize")


@pytest.fixture
async def bus(own_broker):
    async with nats_bus.connect(url=own_broker.url, instance="test") as connection:
        await provision.provision(connection)
        yield connection


async def restart(broker, how):
    await asyncio.to_thread(broker.kill if how == "kill" else broker.stop)
    await asyncio.to_thread(broker.start)


async def test_nothing_acknowledged_is_lost_over_restarts_and_kills_under_load(bus, own_broker):
    """Two hundred a second, three restarts; nothing of ours is started anew."""
    await bus.ensure_consumer(ConsumerSpec("JOBS", "w", ack_wait_s=0.5))
    acknowledged, delivered, gaps = set(), set(), []
    stopping = asyncio.Event()

    def handle(message: Message) -> None:
        delivered.add(int(message.body))
        message.ack()

    async def publish(number):
        try:
            await bus.publish(JOB, str(number).encode(), msg_id=f"{own_broker.port}.{number}", timeout_s=8)
            acknowledged.add(number)
        except errors.BusError:
            pass  # told that it is not known: no promise was made

    async def load():
        number = 0
        async with asyncio.TaskGroup() as tasks:
            while not stopping.is_set():
                number += 1
                tasks.create_task(publish(number))
                await asyncio.sleep(0.005)
        return number

    await bus.pull("JOBS", "w", handle)
    loading = asyncio.create_task(load())
    for how in ("stop", "kill", "kill"):
        await until(lambda: len(delivered) >= 50)
        delivered_before, broken_at = len(delivered), time.monotonic()
        await restart(own_broker, how)
        await until(lambda before=delivered_before: len(delivered) > before + 20, within_s=10)
        gaps.append(time.monotonic() - broken_at)
    stopping.set()
    sent = await loading
    await until(lambda: acknowledged <= delivered, within_s=10)
    assert sent >= len(acknowledged) > 100
    assert max(gaps) < 10
    assert bus.reconnects >= 3


async def test_a_publish_that_the_crash_interrupted_is_stored_once(bus, own_broker):
    own_broker.kill()
    await until(lambda: not bus.connected)
    waiting = [asyncio.create_task(bus.publish(JOB, b"x", msg_id=f"m{number}", timeout_s=10)) for number in range(20)]
    await asyncio.sleep(0)
    await asyncio.to_thread(own_broker.start)
    acks = await asyncio.gather(*waiting)
    assert len({ack.sequence for ack in acks}) == 20
    assert (await bus.stream_info("JOBS")).messages == 20


async def test_a_publish_into_an_outage_ends_at_its_deadline(bus, own_broker):
    own_broker.kill()
    await until(lambda: not bus.connected)
    began = time.monotonic()
    with pytest.raises(errors.PublishTimeout):
        await bus.publish(JOB, b"x", msg_id="m", timeout_s=0.5)
    assert 0.4 < time.monotonic() - began < 2


async def test_a_bus_whose_broker_is_away_ends_cleanly(own_broker):
    async with nats_bus.connect(url=own_broker.url, instance="test") as bus:
        own_broker.kill()
        await until(lambda: not bus.connected)
        bus.send("core.x", b"never sent")
    assert bus.closed.is_set()


async def test_an_outage_cannot_fill_the_memory(bus, own_broker):
    own_broker.kill()
    await until(lambda: not bus.connected)
    with pytest.raises(errors.NotConnected):
        for _ in range(100):
            bus.send("core.x", b"x" * 500_000)


async def test_a_broker_that_does_not_read_cannot_fill_the_memory(bus, own_broker):
    """It is there and takes nothing: a stopped process, a hung machine."""
    os.kill(own_broker.process.pid, signal.SIGSTOP)
    try:
        with pytest.raises(errors.NotConnected):
            for _ in range(400):
                bus.send("core.x", b"x" * 500_000)
                await asyncio.sleep(0)
    finally:
        os.kill(own_broker.process.pid, signal.SIGCONT)
    await until(lambda: bus.connected and not bus._wire._socket_bytes())
    bus.send("core.x", b"x")


async def test_a_broker_that_says_nothing_is_given_up_and_found_again(own_broker, monkeypatch):
    monkeypatch.setattr(nats_bus, "PING_S", 0.2)
    async with nats_bus.connect(url=own_broker.url, instance="test") as bus:
        assert bus.silent_s < 5
        os.kill(own_broker.process.pid, signal.SIGSTOP)
        try:
            await until(lambda: bus.silent_s > 0.5)
            await until(lambda: not bus.connected)
        finally:
            os.kill(own_broker.process.pid, signal.SIGCONT)
        await until(lambda: bus.connected and bus.reconnects == 1)
        await until(lambda: bus.silent_s < 0.5)


async def test_a_granted_pump_keeps_its_grant_over_a_reconnect(bus, own_broker):
    inbox = []
    await bus.ensure_consumer(ConsumerSpec("JOBS", "w"))
    puller = await bus.pull("JOBS", "w", inbox.append, auto=False)
    puller.grant(3)
    await restart(own_broker, "kill")
    await until(lambda: bus.reconnects == 1 and bus.connected)
    for number in range(6):
        await bus.publish(JOB, str(number).encode(), msg_id=f"n{number}")
    await until(lambda: len(inbox) == 3)
    assert puller.granted == 0
    info = await bus.stream_info("JOBS")
    assert info is not None and (info.messages, len(inbox)) == (6, 3)

    deadline = asyncio.get_running_loop().time() + 10
    while (await bus.consumer_info("JOBS", "w")).pending != 3:  # right after a kill it was once seen one too low
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.05)


async def test_a_connection_made_anew_brings_no_more_than_was_granted(bus):
    """The broker process lives on and may remember the request of the lost connection: together they ask for too much."""
    inbox = []
    await bus.ensure_consumer(ConsumerSpec("JOBS", "w"))
    puller = await bus.pull("JOBS", "w", lambda message: (inbox.append(message), message.ack()), auto=False)
    puller.grant(3)
    for round_ in range(1, 4):
        await bus._wire.force_reconnect()
        await until(lambda round_=round_: bus.reconnects == round_ and bus.connected)
    for number in range(12):
        await bus.publish(JOB, str(number).encode(), msg_id=f"n{number}")
    await until(lambda: len(inbox) == 3)
    await bus.publish(subjects.job("acme", "other"), b"")  # a round trip: whatever else was on its way is here
    assert (len(inbox), puller.granted) == (3, 0)
    puller.grant(20)
    await until(lambda: len({message.body for message in inbox}) == 13)


async def test_more_grants_than_the_broker_lets_wait_are_all_served(bus):
    """It keeps 512 requests of a consumer waiting, and forgets more without a word: fewer are made."""
    inbox = []
    await bus.ensure_consumer(ConsumerSpec("JOBS", "w"))
    puller = await bus.pull("JOBS", "w", lambda message: (inbox.append(message), message.ack()), auto=False)
    for _ in range(700):
        puller.grant(1)
    await bus.stream_info("JOBS")  # a round trip: the refusals are here
    await asyncio.gather(*(bus.publish(JOB, str(number).encode(), msg_id=f"g{number}") for number in range(720)))
    await until(lambda: len(inbox) == 700)
    await bus.stream_info("JOBS")
    assert (len(inbox), puller.granted, puller.rebinds) == (700, 0, 0)


async def test_a_lost_pull_is_asked_for_again_and_counted(bus, monkeypatch):
    """A consumer with work whose request is gone: nothing would ever come, and nothing would say so."""
    monkeypatch.setattr(pump, "HEARTBEAT_S", 0.2)
    inbox = []
    await bus.ensure_consumer(ConsumerSpec("JOBS", "w"))
    send = bus._wire.send
    lost = []

    def lose_the_first(subject, *arguments):
        if "MSG.NEXT" in subject and not lost:
            lost.append(subject)
            return
        send(subject, *arguments)

    monkeypatch.setattr(bus._wire, "send", lose_the_first)
    before = metrics.REBINDS._value.get()
    await bus.pull("JOBS", "w", inbox.append)
    await bus.publish(JOB, b"x", msg_id="m")
    await until(lambda: inbox, within_s=3)
    assert lost
    assert metrics.REBINDS._value.get() == before + 1


async def test_a_quiet_consumer_is_left_alone(bus, monkeypatch):
    monkeypatch.setattr(pump, "HEARTBEAT_S", 0.2)
    await bus.ensure_consumer(ConsumerSpec("JOBS", "w"))
    puller = await bus.pull("JOBS", "w", lambda message: None)
    await asyncio.sleep(1.2)  # three times the silence that would be taken for a loss
    assert puller.rebinds == 0


async def test_a_message_too_large_is_refused_and_the_connection_lives(bus):
    largest = bus.payload_bytes_max
    with pytest.raises(errors.PayloadTooLarge):
        await bus.publish(JOB, b"x" * (largest + 1))
    with pytest.raises(errors.PayloadTooLarge):
        await bus.publish(JOB, b"x" * largest, msg_id="the headers make it too large")
    with pytest.raises(errors.PayloadTooLarge):
        bus.send("core.x", b"x" * (largest + 1))
    await bus.publish(JOB, b"x" * (largest - 1000), msg_id="m")
    assert (bus.connected, bus.reconnects) == (True, 0)


async def test_a_read_loop_that_ended_is_started_anew(bus):
    """As after a bug of ours or of the client library: it would look connected and hear no pings."""
    heard = []
    await bus.subscribe("core.*", heard.append)
    bus._wire._reading_task.cancel()
    await until(lambda: bus.reconnects == 1, within_s=3)
    bus.send("core.second", b"")
    await until(lambda: [message.subject for message in heard][-1:] == ["core.second"], within_s=3)


async def test_a_client_that_stopped_reconnecting_ends_the_bus(bus, own_broker, monkeypatch):
    """The process can then be started anew; half alive it would wait for ever."""

    async def give_up():
        raise AttributeError("a bug in the library")

    monkeypatch.setattr(bus._wire, "_select_next_server", give_up)
    own_broker.kill()
    await asyncio.wait_for(bus.closed.wait(), 5)
    with pytest.raises(errors.NotConnected):
        await bus.publish(JOB, b"x")


async def test_memory_streams_are_made_again_and_their_pumps_go_on(bus, own_broker):
    """Rule 7: they die with the broker's process, and are back within two seconds of it."""
    inbox, lost = [], []

    async def make():
        await provision.remake_memory(bus)
        await bus.ensure_consumer(ConsumerSpec("CALLS", "scheduler"))

    await make()
    bus.on_reconnect(make)
    await bus.pull("CALLS", "scheduler", inbox.append, lost=lost.append)
    await restart(own_broker, "kill")
    back_at = time.monotonic()
    await bus.publish(subjects.call("acme", "resize"), b"x", msg_id="m", timeout_s=8)
    await until(lambda: inbox)
    assert time.monotonic() - back_at < 2
    assert await provision.remake_memory(bus) == []


async def test_a_mirror_is_current_again_after_a_restart(bus, own_broker):
    """It was deaf meanwhile, and the broker may answer only a moment after it can be reached."""
    bucket = Bucket(bus, streams.KEYS, ApiKey)
    mirror = await bucket.mirror()
    await bucket.put("a", ApiKey(prefix="old", tenant="acme"))
    await until(lambda: mirror.get("a"))
    subscription = mirror._subscription
    await subscription.stop()  # deaf, as while it is away
    await bucket.put("a", ApiKey(prefix="new", tenant="acme"))
    await restart(own_broker, "kill")
    await until(lambda: mirror.get("a").prefix == "new")


async def test_a_reconnect_hook_is_tried_until_the_broker_can_serve_it(bus):
    tries = []

    async def hook():
        tries.append(1)
        if len(tries) < 3:
            raise errors.StreamMissing
        await bus.get_last("JOBS", JOB)
        tries.append("done")

    def fails():
        raise RuntimeError("a bug")

    bus.on_reconnect(fails)
    bus.on_reconnect(hook)
    await bus._wire.force_reconnect()
    await until(lambda: "done" in tries)


async def test_the_first_connection_waits_so_long_for_a_broker_and_then_says_why(own_broker, caplog):
    url = own_broker.url
    own_broker.stop()
    began = time.monotonic()
    with pytest.raises(errors.NotConnected, match=r"refused|Connect call failed"):
        async with nats_bus.connect(url=url, instance="test", wait_s=0.5):
            pass
    assert time.monotonic() - began < 3

    async def later():
        await asyncio.sleep(0.3)
        await asyncio.to_thread(own_broker.start)

    starting = asyncio.create_task(later())
    async with nats_bus.connect(url=url, instance="test", wait_s=10) as bus:
        assert bus.connected
    await starting


async def test_what_was_sent_before_the_end_arrives(own_broker):
    heard = []
    async with nats_bus.connect(url=own_broker.url, instance="hears") as listening:
        await listening.subscribe("core.*", heard.append)
        await listening._wire.flush()
        async with nats_bus.connect(url=own_broker.url, instance="says") as bus:
            for number in range(100):
                bus.send("core.x", str(number).encode())
        await until(lambda: len(heard) == 100)


async def test_what_waits_when_the_bus_closes_fails(own_broker):
    async with nats_bus.connect(url=own_broker.url, instance="a") as bus:
        await bus.subscribe("core.silent", lambda message: None)
        asked = asyncio.create_task(bus.request("core.silent", timeout_s=30))
        await asyncio.sleep(0.05)
    with pytest.raises(errors.NotConnected):
        await asked


@pytest.mark.parametrize("v2", [False, True])
async def test_both_forms_of_the_acknowledgement_subject_are_understood(own_broker, v2):
    """The broker's next default; its own client library ends its read loop over it."""
    if v2:
        own_broker.stop()
        file = own_broker.folder / "nats.conf"
        file.write_text(file.read_text().replace("js_ack_fc_v2: false", "js_ack_fc_v2: true"))
        own_broker.start()
    async with nats_bus.connect(url=own_broker.url, instance="test") as bus:
        await provision.provision(bus)
        inbox = []
        await bus.ensure_consumer(ConsumerSpec("JOBS", "w"))
        for number in range(3):
            await bus.publish(JOB, str(number).encode())
        await bus.pull("JOBS", "w", lambda message: inbox.append(message) or (message.delivered == 1 and message.nak()))
        await until(lambda: len(inbox) == 6)
        assert (len(inbox[0].reply.split(".")) >= 11) == v2
        assert sorted((message.sequence, message.delivered) for message in inbox) == [(n, d) for n in (1, 2, 3) for d in (1, 2)]
        assert inbox[0].pending == 2
        for message in inbox:
            message.ack()
        while (await bus.stream_info("JOBS")).messages:
            await asyncio.sleep(0.01)


async def test_headers_that_no_stream_takes_are_refused_for_good(bus):
    with pytest.raises(errors.PayloadTooLarge):
        await bus.publish(JOB, b"x", msg_id="m", headers={"Hearth-Meta": "x" * 64 * 1024})
    await bus.publish(JOB, b"x", msg_id="m", headers={"Hearth-Meta": "x" * 60 * 1024})
