"""The one file that leans on the client library's insides: what it leans on is pinned here, and what it writes is inspected."""

import asyncio
import importlib.metadata
import inspect
import random
import re

import nats.aio.client
import nats.aio.transport
import pytest

from hearth_contracts import names, subjects
from hearth_contracts.errors import InvalidName
from hearth_kit import errors, nats_bus
from hearth_kit.message import Message, decode_headers, encode_headers, inline_status
from hearth_kit.wire import Wire

from .conftest import until


def source(thing) -> str:
    return inspect.getsource(thing)


def test_the_library_is_the_one_that_was_read():
    """A newer one may be as good: read what is pinned below in it, then change this."""
    assert importlib.metadata.version("nats-py").startswith("2.16.")


def test_its_insides_are_where_the_wire_expects_them():
    client = nats.aio.client.Client
    assert "create_task(self._read_loop())" in source(client._process_connect_init)
    transport = source(nats.aio.transport.TcpTransport)
    assert "self._bare_io_reader = self._io_reader = r" in transport
    assert "self._bare_io_writer = self._io_writer = w" in transport
    made = nats.aio.client.Client()
    for name in ("_pending", "_pending_data_size", "_subs", "_sid", "_pongs", "_pings_outstanding", "_max_payload", "_server_info",
                 "_transport", "_reading_task", "_reconnection_task"):  # fmt: skip
        assert hasattr(made, name), name
    for name in (
        "_read_loop",
        "_process_err",
        "_process_info",
        "_process_ping",
        "_process_pong",
        "_send_ping",
        "_process_op_err",
        "_close",
        "subscribe",
        "flush",
    ):
        assert inspect.iscoroutinefunction(getattr(client, name)), name
    subscribing = source(client.subscribe)
    assert subscribing.index("self._sid += 1") < subscribing.index("self._subs[sid] = sub") < subscribing.index("_send_subscribe")


def test_its_traps_are_still_the_ones_that_are_avoided():
    """Each of these lines is why an override exists; without it the override may go."""
    client = nats.aio.client.Client
    assert "future.set_result(True)" in source(client._process_pong)  # also of a flush that has given up
    assert "self._transport.write(PING_PROTO)" in source(client._send_ping)  # past what waits
    assert "except Exception as ex:" in source(client._read_loop)  # and then it ends, saying nothing
    reconnecting = source(client._attempt_reconnect)
    assert (
        reconnecting.index("_process_connect_init()") < reconnecting.index("sub_cmd(") < reconnecting.index("_reconnected_cb()")
    )


@pytest.mark.broker
async def test_a_flush_that_gave_up_does_not_end_the_read_loop(bus):
    """The answer to an abandoned ping would set the result of a cancelled future."""
    waiting = asyncio.get_running_loop().create_future()
    waiting.cancel()
    await bus._wire._send_ping(waiting)
    await bus._wire.flush()
    assert not bus._wire._reading_task.done()


@pytest.mark.broker
async def test_a_flush_answers_for_what_was_sent_before_it(bus):
    heard = []
    await bus.subscribe("core.*", heard.append)
    for _ in range(50):
        heard.clear()
        bus.send("core.x", b"")
        await bus._wire.flush()
        assert len(heard) == 1


@pytest.mark.broker
async def test_deliveries_come_straight_from_the_socket(bus):
    """With no task and no queue between: each would cost every hop of every call."""
    heard = asyncio.get_running_loop().create_future()
    await bus.subscribe("core.*", lambda message: heard.set_result(asyncio.current_task()))
    bus.send("core.x", b"")
    assert await heard is None


HOSTILE = ["a b", "a\r\n", "a\nb", "a\0", "", "a\tb", "é", "x" * 1801, "a\r\nPUB y 0\r\n\r\n", "\x7f", " "]


@pytest.mark.broker
@pytest.mark.parametrize("subject", HOSTILE)
async def test_a_subject_that_would_break_the_protocol_never_leaves(bus, subject):
    with pytest.raises(InvalidName):
        bus.send(subject, b"x")
    if subject:
        with pytest.raises(InvalidName):
            bus.send("core.x", b"x", reply=subject)
    with pytest.raises(InvalidName):
        await bus.publish(subject, b"x")
    await bus._wire.flush()
    assert bus.reconnects == 0


COMMAND = re.compile(rb"H?PUB ([!-~]+)(?: ([!-~]+))? (?:(\d+) )?(\d+)\r\n")


async def test_a_hundred_thousand_ids_make_well_formed_commands_or_none():
    """The bytes for the wire, parsed as a broker would (PROMISES 30)."""
    wire = Wire()
    wire._max_payload = 1 << 20
    generate = random.Random(30)
    pieces = [".", "*", ">", " ", "\r\n", "\0", "а", "a", "b-1", "PUB x 0", "=2E", "\t", "é"]
    sent = 0
    for _ in range(100_000):
        one, other = ("".join(generate.choices(pieces, k=generate.randint(0, 3))) for _ in range(2))
        body = one.encode()
        try:
            subject = subjects.run(one, names.new_job("f", 1) if generate.random() < 0.3 else other, sync=True)
        except InvalidName:
            subject = f"{one}.{other}"  # as a builder without its check would
        try:
            wire.send(subject, body, reply="" if generate.random() < 0.5 else f"_INBOX.{other}", block=encode_headers({"X": "y"}))
            sent += 1
        except InvalidName:
            continue
    stream = b"".join(wire._pending)
    found = 0
    while stream:
        match = COMMAND.match(stream)
        assert match is not None, stream[:80]
        assert b" " not in match[1]
        end = match.end() + int(match[4])
        assert stream[end : end + 2] == b"\r\n"
        stream = stream[end + 2 :]
        found += 1
    assert found == sent > 10_000


def test_headers_are_written_and_read():
    given = {"Hearth-Meta": '{"a": "ü \U0001f525: x"}', "traceparent": "00-a-b-01", "Empty": ""}
    assert decode_headers(encode_headers(given)) == given


@pytest.mark.parametrize(("block", "status", "headers"), [
    (b"NATS/1.0\r\n\r\n", (0, ""), {}),
    (b"NATS/1.0 503\r\n\r\n", (503, ""), {}),
    (b"NATS/1.0 408 Request Timeout\r\nNats-Pending-Messages: 3\r\n\r\n", (408, "Request Timeout"), {"Nats-Pending-Messages": "3"}),
    (b"NATS/1.0 100 Idle Heartbeat\r\nNats-Last-Consumer:1\r\n\r\n", (100, "Idle Heartbeat"), {"Nats-Last-Consumer": "1"}),
    (b"NATS/1.0\r\nno colon\r\nA: b: c\r\n\xff: \xfe\r\n\r\n", (0, ""), {"A": "b: c", "\ufffd": "\ufffd"}),
])  # fmt: skip
def test_what_the_broker_says_of_itself_is_understood(block, status, headers):
    assert inline_status(block) == status
    assert decode_headers(block) == headers


class Sender:
    def __init__(self):
        self.sent = []

    def send(self, subject, body=b"", *, headers=None, reply=""):
        self.sent.append((subject, body))


@pytest.mark.parametrize("reply", [
    "$JS.ACK.JOBS.w.3.41.7.1700000000000000000.12",
    "$JS.ACK.hub.ACCHASH.JOBS.w.3.41.7.1700000000000000000.12",
    "$JS.ACK._.ACCHASH.JOBS.w.3.41.7.1700000000000000000.12.random",
])  # fmt: skip
def test_what_a_consumer_knows_is_read_from_either_form(reply):
    sender = Sender()
    message = Message("s", reply, b"", b"", sender)
    assert (message.delivered, message.sequence, message.pending) == (3, 41, 12)
    message.ack()
    message.nak()
    message.nak(1.5)
    message.term("why")
    message.in_progress()
    words = [b"+ACK", b"-NAK", b'-NAK {"delay": 1500000000}', b"+TERM why", b"+WPI"]
    assert sender.sent == [(reply, word) for word in words]


async def test_settling_while_the_broker_is_away_for_long_is_no_error():
    class Away(Sender):
        def send(self, *_, **__):
            raise errors.NotConnected

    Message("s", "$JS.ACK.JOBS.w.1.1.1.1.0", b"", b"", Away()).ack()


@pytest.mark.broker
async def test_many_callers_share_one_connection(broker):
    async with nats_bus.connect(url=broker.url, instance="mux") as bus:
        await bus.subscribe("core.echo", lambda message: message.respond(message.body))
        answers = await asyncio.gather(*(bus.request("core.echo", str(n).encode()) for n in range(500)))
        assert [answer.body for answer in answers] == [str(n).encode() for n in range(500)]
        await until(lambda: not bus._waiters)
