"""The bus without a broker, for tests of a service's own logic: one `MemoryBroker`, a `MemoryBus` per service.

It has what the port has and no more: no permissions, no partitions, no sizes to the byte. `tests/test_bus_suite.py` holds it to
the same behaviour as the real broker. Time is a `ManualClock`: redeliveries, delays and ages happen in `advance`.
"""

import asyncio
import itertools
import json
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from hearth_contracts import streams
from hearth_contracts.calls import Meta
from hearth_contracts.permissions import inbox
from hearth_contracts.streams import Stream
from hearth_kit import errors
from hearth_kit.bus import Ack, ConsumerInfo, ConsumerSpec, Handler, Pump, Stored, StreamInfo, Subscription, contract_headers
from hearth_kit.clock import ManualClock
from hearth_kit.memory_stream import Item, MemoryConsumer, MemoryStream, matches
from hearth_kit.message import ACK_PREFIX, Message, encode_headers

_log = logging.getLogger(__name__)


class MemoryBroker:
    """What all services of one test share."""

    def __init__(self, clock: ManualClock, *, made: Sequence[Stream] = streams.STREAMS) -> None:
        self.clock = clock
        self.streams = {stream.name: MemoryStream(stream) for stream in made}
        self.subscriptions: list[MemorySubscription] = []
        self.pumps: list[MemoryPump] = []
        self.buses: list[MemoryBus] = []

    def connect(self, instance: str) -> "MemoryBus":
        bus = MemoryBus(self, instance)
        self.buses.append(bus)
        return bus

    async def advance(self, seconds: float) -> None:
        """Let time pass, and let what falls due happen."""
        await self.settle()
        self.clock.advance(seconds)
        for pump in list(self.pumps):
            pump.serve()
        await self.settle()

    async def settle(self) -> None:
        """Let the handlers that wait, and the tasks they start, run as far as they come without time passing."""
        for _ in range(20):
            await asyncio.sleep(0)

    async def restart(self) -> None:
        """As after a crash of the broker: memory streams and their consumers are gone, every service reconnects."""
        self.streams = {name: stream for name, stream in self.streams.items() if stream.config.storage == "file"}
        for bus in list(self.buses):
            await bus.reconnected()
        for pump in list(self.pumps):
            pump.serve()
        await self.settle()

    def stream_of(self, subject: str) -> MemoryStream | None:
        return next((stream for stream in self.streams.values() if stream.covers(subject)), None)

    def route(self, subject: str, headers: Mapping[str, str], body: bytes, reply: str) -> int:
        """Core delivery: to every plain subscriber, and to one of each queue group. How many heard it."""
        groups: set[tuple[str, str]] = set()
        heard = 0
        for subscription in list(self.subscriptions):
            if not matches(subscription.pattern, subject):
                continue
            if subscription.queue:
                if (subscription.pattern, subscription.queue) in groups:
                    continue
                groups.add((subscription.pattern, subscription.queue))
            heard += 1
            subscription.deliver(Message(subject, reply, _block(headers), body, subscription.bus))
        return heard


@dataclass(eq=False)
class MemorySubscription:
    bus: "MemoryBus"
    pattern: str
    queue: str
    handler: Handler

    def deliver(self, message: Message) -> None:
        asyncio.get_running_loop().call_soon(self._run, message)

    def _run(self, message: Message) -> None:
        if self not in self.bus.broker.subscriptions:
            return
        try:
            self.handler(message)
        except Exception:
            _log.exception("a handler failed")

    async def stop(self) -> None:
        if self in self.bus.broker.subscriptions:
            self.bus.broker.subscriptions.remove(self)


class MemoryPump:
    """See `hearth_kit.bus.Pump`."""

    def __init__(
        self, bus: "MemoryBus", stream: str, consumer: str, handler: Handler, *, auto: bool, lost: Callable[[str], None] | None
    ) -> None:
        self._bus = bus
        self.stream = stream
        self._consumer = consumer
        self._handler = handler
        self._auto = auto
        self._lost = lost
        self._allowed = 0

    @property
    def granted(self) -> int:
        return self._allowed

    def grant(self, count: int) -> None:
        self._allowed += count
        self.serve()

    def serve(self) -> None:
        """Deliver what there is, as far as it is asked for."""
        if self not in self._bus.broker.pumps:
            return
        stream = self._bus.broker.streams.get(self.stream)
        consumer = stream.consumers.get(self._consumer) if stream is not None else None
        if consumer is None:
            if self._lost is not None and (self._auto or self._allowed):
                asyncio.get_running_loop().call_soon(self._lost, "404 consumer not found")
            return
        while self._auto or self._allowed > 0:
            found = consumer.next(self._bus.broker.clock.now())
            if found is None:
                return
            self._allowed -= 0 if self._auto else 1
            self._deliver(*found)

    def _deliver(self, item: Item, delivered: int, pending: int) -> None:
        reply = f"{ACK_PREFIX}{self.stream}.{self._consumer}.{delivered}.{item.sequence}.{item.sequence}.{int(item.at * 1e9)}.{pending}"
        message = Message(item.subject, reply, _block(item.headers), item.body, self._bus)
        asyncio.get_running_loop().call_soon(self._run, message)

    def _run(self, message: Message) -> None:
        if self not in self._bus.broker.pumps:
            message.nak()
            return
        try:
            self._handler(message)
        except Exception:
            _log.exception("a handler failed")

    async def stop(self) -> None:
        if self in self._bus.broker.pumps:
            self._bus.broker.pumps.remove(self)


class MemoryBus:
    """See `hearth_kit.bus.Bus`."""

    def __init__(self, broker: MemoryBroker, instance: str) -> None:
        self.broker = broker
        self._instance = instance
        self._hooks: list[Callable[[], Awaitable[None] | None]] = []
        self._next = 0

    @property
    def instance(self) -> str:
        return self._instance

    @property
    def connected(self) -> bool:
        return True

    def on_reconnect(self, hook: Callable[[], Awaitable[None] | None]) -> None:
        self._hooks.append(hook)

    async def reconnected(self) -> None:
        for hook in self._hooks:
            result = hook()
            if result is not None:
                await result

    def send(self, subject: str, body: bytes = b"", *, headers: Mapping[str, str] | None = None, reply: str = "") -> None:
        if subject.startswith(ACK_PREFIX):
            self._settle(subject, body)
            return
        _block(headers or {})  # refuses what may not stand in a header
        self.broker.route(subject, headers or {}, body, reply)
        stream = self.broker.stream_of(subject)
        if stream is not None:
            self._store(stream, subject, headers or {}, body)

    def _settle(self, subject: str, word: bytes) -> None:
        _, _, name, consumer, _, sequence, *_ = subject.split(".")
        stream = self.broker.streams.get(name)
        if stream is not None and consumer in stream.consumers:
            stream.consumers[consumer].settle(int(sequence), word, self.broker.clock.now())
            self._serve(name)

    def _store(self, stream: MemoryStream, subject: str, headers: Mapping[str, str], body: bytes) -> tuple[int, bool]:
        stored = stream.store(subject, headers, body, self.broker.clock.now())
        self._serve(stream.config.name)
        return stored

    def _serve(self, stream: str) -> None:
        for pump in list(self.broker.pumps):
            if pump.stream == stream:
                pump.serve()

    async def publish(
        self,
        subject: str,
        body: bytes = b"",
        *,
        meta: Meta | None = None,
        contract: str = "",
        msg_id: str = "",
        traceparent: str = "",
        expect_last: int | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 5.0,
    ) -> Ack:
        made = contract_headers(
            meta=meta, contract=contract, msg_id=msg_id, traceparent=traceparent, expect_last=expect_last, headers=headers
        )
        _block(made)  # refuses what may not stand in a header
        # A plain subscriber hears also what the stream then refuses, as on the real broker.
        self.broker.route(subject, made, body, "")
        stream = self.broker.stream_of(subject)
        if stream is None:
            raise errors.StreamMissing(subject)
        sequence, duplicate = self._store(stream, subject, made, body)
        await asyncio.sleep(0)
        return Ack(stream.config.name, sequence, duplicate)

    async def request(
        self, subject: str, body: bytes = b"", *, headers: Mapping[str, str] | None = None, timeout_s: float = 5.0
    ) -> Message:
        self._next += 1
        reply = f"{inbox(self._instance)}.r{self._next}"
        answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()

        def answered(message: Message) -> None:
            if not answer.done():
                answer.set_result(message)

        subscription = await self.subscribe(reply, answered)
        try:
            if not self.broker.route(subject, headers or {}, body, reply):
                raise errors.StreamMissing("nobody listens")
            return await asyncio.wait_for(answer, timeout_s)
        except TimeoutError as error:
            raise errors.PublishTimeout from error
        finally:
            await subscription.stop()

    async def subscribe(self, subject: str, handler: Handler, *, queue: str = "") -> Subscription:
        subscription = MemorySubscription(self, subject, queue, handler)
        self.broker.subscriptions.append(subscription)
        return subscription

    async def pull(
        self,
        stream: str,
        consumer: str,
        handler: Handler,
        *,
        batch: int = 256,
        auto: bool = True,
        lost: Callable[[str], None] | None = None,
    ) -> Pump:
        pump = MemoryPump(self, stream, consumer, handler, auto=auto, lost=lost)
        self.broker.pumps.append(pump)
        pump.serve()
        return pump

    # Reading back

    def _stream(self, name: str) -> MemoryStream:
        stream = self.broker.streams.get(name)
        if stream is None:
            raise errors.StreamMissing(name)
        stream.forget(self.broker.clock.now())
        return stream

    def _stored(self, item: Item | None) -> Stored | None:
        if item is None:
            return None
        return Stored(item.subject, item.sequence, item.at, Message(item.subject, "", _block(item.headers), item.body, self))

    async def get_last(self, stream: str, subject: str) -> Stored | None:
        return self._stored(self._stream(stream).last(subject))

    async def get_at(self, stream: str, sequence: int) -> Stored | None:
        return self._stored(self._stream(stream).items.get(sequence))

    async def get_next(self, stream: str, subject: str, sequence: int = 1) -> Stored | None:
        return self._stored(next((item for item in self._stream(stream).matching(subject) if item.sequence >= sequence), None))

    async def get_last_each(self, stream: str, subjects: Sequence[str], *, messages_max: int = 0) -> list[Stored]:
        found = (item for subject in subjects for item in self._stream(stream).matching(subject))
        last = {item.subject: item for item in itertools.islice(found, messages_max or None)}
        ordered = sorted(last.values(), key=lambda item: item.sequence)
        return [stored for item in ordered if (stored := self._stored(item)) is not None]

    # Administration

    async def ensure_consumer(self, spec: ConsumerSpec) -> None:
        stream = self._stream(spec.stream)
        known = stream.consumers.get(spec.name)
        if known is None:
            first = stream.last_sequence if spec.deliver_new else 0
            stream.consumers[spec.name] = MemoryConsumer(stream, spec, delivered=first)
        else:
            known.spec = spec
        self._serve(spec.stream)

    async def delete_consumer(self, stream: str, name: str) -> None:
        self._stream(stream).consumers.pop(name, None)
        self._serve(stream)

    async def consumer_info(self, stream: str, name: str) -> ConsumerInfo | None:
        found = self.broker.streams.get(stream)
        consumer = found.consumers.get(name) if found is not None else None
        return None if consumer is None else consumer.info

    async def consumer_names(self, stream: str) -> list[str]:
        return sorted(self._stream(stream).consumers)

    async def ensure_stream(self, stream: Stream, *, replicas: int = 1) -> None:
        if stream.name in self.broker.streams:
            self.broker.streams[stream.name].config = stream
        else:
            self.broker.streams[stream.name] = MemoryStream(stream)

    async def stream_info(self, name: str) -> StreamInfo | None:
        stream = self.broker.streams.get(name)
        if stream is None:
            return None
        stream.forget(self.broker.clock.now())
        first = next(iter(stream.items), stream.last_sequence + 1)
        config = json.loads(json.dumps(stream.config.config()))
        return StreamInfo(len(stream.items), stream.size, first, stream.last_sequence, config)

    async def purge(self, stream: str, *, subject: str = "", below_sequence: int = 0) -> int:
        return self._stream(stream).purge(subject, below_sequence)


def _block(headers: Mapping[str, str]) -> bytes:
    return encode_headers(headers) if headers else b""
