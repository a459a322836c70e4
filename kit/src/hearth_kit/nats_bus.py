"""The bus on a real nats-server."""

import asyncio
import contextlib
import datetime
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from hearth_contracts.calls import Meta
from hearth_contracts.permissions import inbox
from hearth_contracts.streams import SECOND_NS, Stream
from hearth_kit import errors
from hearth_kit.bus import Ack, ConsumerInfo, ConsumerSpec, Handler, Pump, Stored, StreamInfo, Subscription, contract_headers
from hearth_kit.message import Message, encode_headers
from hearth_kit.pump import PullPump
from hearth_kit.wire import Wire

_log = logging.getLogger(__name__)

#: An unanswered publish is sent again this often, under the same id.
RETRY_S: Final = 1.0
#: How often deadlines of unanswered requests are looked at.
SWEEP_S: Final = 0.1
#: Broker errors by number (server/errors.json): wrong last sequence (two forms), full in four ways, unknown things.
_WRONG_LAST: Final = frozenset({10071, 10164})
_FULL: Final = frozenset({10077, 10047, 10023, 10054})
_NOT_FOUND: Final = frozenset({10059, 10014})


@dataclass(slots=True, eq=False)
class _Waiter:
    """A request that waits for its answer."""

    future: "asyncio.Future[Message]"
    deadline: float
    again: Callable[[], None] | None
    again_at: float


@dataclass(slots=True, eq=False)
class _Subscription:
    wire: Wire
    sid: int

    async def stop(self) -> None:
        await self.wire.unlisten(self.sid)


class NatsBus:
    """One connection. Made by `connect`."""

    def __init__(self, *, wire: Wire, instance: str, api_prefix: str = "$JS.API") -> None:
        self._wire = wire
        self._instance = instance
        self._inbox = inbox(instance)
        self._api = api_prefix
        self._waiters: dict[int, _Waiter] = {}
        self._collectors: dict[int, Callable[[Message], None]] = {}
        self._next = 0
        self._pumps: set[PullPump] = set()
        self._reconnect_hooks: list[Callable[[], Awaitable[None] | None]] = []
        self._loop = asyncio.get_running_loop()
        self._mux = f"{self._inbox}.m."
        self.closed = asyncio.Event()
        """Set when the connection has ended for good: the process must end too."""
        self.reconnects = 0

    # Life

    async def start(self) -> None:
        await self._wire.listen(f"{self._mux}*", self._answered)

    async def keep(self) -> None:
        """Deadlines, retries and silent pumps. Runs as long as the bus."""
        while True:
            await asyncio.sleep(SWEEP_S)
            now = self._loop.time()
            for number, waiter in list(self._waiters.items()):
                if waiter.future.done():
                    self._waiters.pop(number, None)
                elif now >= waiter.deadline:
                    self._waiters.pop(number, None)
                    waiter.future.set_exception(errors.PublishTimeout())
                elif waiter.again is not None and now >= waiter.again_at:
                    self._send_again(waiter, now)
            for pump in list(self._pumps):
                pump.check(now)

    def _send_again(self, waiter: _Waiter, now: float) -> None:
        waiter.again_at = now + RETRY_S
        assert waiter.again is not None
        with contextlib.suppress(errors.NotConnected):
            waiter.again()

    async def reconnected(self) -> None:
        """Re-arm: pulls are gone with the connection, and a stream in memory may be new."""
        self.reconnects += 1
        now = self._loop.time()
        for waiter in list(self._waiters.values()):
            if waiter.again is not None and not waiter.future.done():
                self._send_again(waiter, now)
        for pump in list(self._pumps):
            pump.rearm()
        for hook in self._reconnect_hooks:
            try:
                result = hook()
                if result is not None:
                    await result
            except Exception:
                _log.exception("a reconnect hook failed")

    @property
    def instance(self) -> str:
        return self._instance

    @property
    def connected(self) -> bool:
        return bool(self._wire.is_connected)

    @property
    def payload_bytes_max(self) -> int:
        return self._wire.payload_bytes_max

    @property
    def server_version(self) -> str:
        return self._wire.server_version

    def on_reconnect(self, hook: Callable[[], Awaitable[None] | None]) -> None:
        self._reconnect_hooks.append(hook)

    # Sending

    def send(self, subject: str, body: bytes = b"", *, headers: Mapping[str, str] | None = None, reply: str = "") -> None:
        self._wire.send(subject, body, reply, encode_headers(headers) if headers else b"")

    def _ask(self, subject: str, body: bytes, block: bytes, timeout_s: float, *, retry: bool) -> "asyncio.Future[Message]":
        self._next += 1
        number = self._next
        reply = f"{self._mux}{number}"
        now = self._loop.time()
        future: asyncio.Future[Message] = self._loop.create_future()
        again = (lambda: self._wire.send(subject, body, reply, block)) if retry else None
        self._waiters[number] = _Waiter(future, now + timeout_s, again, now + RETRY_S)
        try:
            self._wire.send(subject, body, reply, block)
        except errors.BusError:
            del self._waiters[number]
            raise
        return future

    def _answered(self, subject: str, reply: str, block: bytes, body: bytes) -> None:
        number = int(subject[len(self._mux) :])
        waiter = self._waiters.get(number)
        if waiter is None:
            collector = self._collectors.get(number)
            if collector is not None:
                collector(Message(subject, reply, block, body, self))
            return
        message = Message(subject, reply, block, body, self)
        if block and message.status[0] == 503:
            # Nobody listens now: a stream that is being remade, or a broker that is starting. Try until the deadline.
            if waiter.again is not None:
                waiter.again_at = min(waiter.again_at, self._loop.time() + SWEEP_S)
                return
            del self._waiters[number]
            if not waiter.future.done():
                waiter.future.set_exception(errors.StreamMissing("nobody listens"))
            return
        del self._waiters[number]
        if not waiter.future.done():
            waiter.future.set_result(message)

    async def request(
        self, subject: str, body: bytes = b"", *, headers: Mapping[str, str] | None = None, timeout_s: float = 5.0
    ) -> Message:
        return await self._ask(subject, body, encode_headers(headers) if headers else b"", timeout_s, retry=False)

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
        block = encode_headers(
            contract_headers(
                meta=meta, contract=contract, msg_id=msg_id, traceparent=traceparent, expect_last=expect_last, headers=headers
            )
        )
        message = await self._ask(subject, body, block, timeout_s, retry=True)
        answer = json.loads(message.body)
        error = answer.get("error")
        if error is None:
            return Ack(answer["stream"], answer["seq"], answer.get("duplicate", False))
        raise _publish_error(error)

    # Receiving

    async def subscribe(self, subject: str, handler: Handler, *, queue: str = "") -> Subscription:
        def deliver(subject: str, reply: str, block: bytes, body: bytes) -> None:
            handler(Message(subject, reply, block, body, self))

        return _Subscription(self._wire, await self._wire.listen(subject, deliver, queue))

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
        self._next += 1
        pump = PullPump(
            wire=self._wire,
            sender=self,
            request_subject=f"{self._api}.CONSUMER.MSG.NEXT.{stream}.{consumer}",
            inbox=f"{self._inbox}.p{self._next}",
            handler=handler,
            batch=batch,
            auto=auto,
            lost=lost,
            stopped=self._pumps.discard,
        )
        self._pumps.add(pump)
        await pump.start()
        return pump

    # Reading back

    async def get_last(self, stream: str, subject: str) -> Stored | None:
        return _stored(await self._ask(f"{self._api}.DIRECT.GET.{stream}.{subject}", b"", b"", 5.0, retry=True), self)

    async def get_at(self, stream: str, sequence: int) -> Stored | None:
        return await self._direct(stream, {"seq": sequence})

    async def get_next(self, stream: str, subject: str, sequence: int = 1) -> Stored | None:
        return await self._direct(stream, {"seq": sequence, "next_by_subj": subject})

    async def _direct(self, stream: str, query: dict[str, Any]) -> Stored | None:
        return _stored(
            await self._ask(f"{self._api}.DIRECT.GET.{stream}", json.dumps(query).encode(), b"", 5.0, retry=True), self
        )

    async def get_last_each(self, stream: str, subjects: Sequence[str]) -> list[Stored]:
        """One request, many answers (broker 2.11's batched direct get), in pages of what the broker allows."""
        found: list[Stored] = []
        up_to = 0
        start = 1
        while True:
            page, more, up_to = await self._page(stream, subjects, start, up_to)
            found.extend(page)
            if not more or not page:
                return found
            start = page[-1].sequence + 1

    async def _page(self, stream: str, subjects: Sequence[str], start: int, up_to: int) -> tuple[list[Stored], bool, int]:
        self._next += 1
        number = self._next
        done: asyncio.Future[tuple[bool, int]] = self._loop.create_future()
        page: list[Stored] = []

        def collect(message: Message) -> None:
            code, text = message.status
            if code == 204:
                pending = int(message.headers.get("Nats-Num-Pending", "0"))
                if not done.done():
                    done.set_result((pending > 0, int(message.headers.get("Nats-UpTo-Sequence", "0"))))
            elif code == 404:
                if not done.done():
                    done.set_result((False, 0))
            elif code:
                if not done.done():
                    done.set_exception(errors.ApiError(f"{stream}: {code} {text}", api_code=code))
            else:
                stored = _stored(message, self)
                if stored is not None:
                    page.append(stored)

        self._collectors[number] = collect
        query: dict[str, Any] = {"multi_last": list(subjects), "batch": 1000}
        if start > 1:
            query["seq"] = start
        if up_to:
            query["up_to_seq"] = up_to
        try:
            self._wire.send(f"{self._api}.DIRECT.GET.{stream}", json.dumps(query).encode(), f"{self._mux}{number}")
            more, last = await asyncio.wait_for(done, 10)
        except TimeoutError as error:
            raise errors.PublishTimeout(f"reading {stream}") from error
        finally:
            del self._collectors[number]
        return page, more, last

    # Administration

    async def _api_call(self, subject: str, body: dict[str, Any] | None = None, *, timeout_s: float = 5.0) -> dict[str, Any]:
        message = await self._ask(
            f"{self._api}.{subject}", json.dumps(body).encode() if body is not None else b"", b"", timeout_s, retry=True
        )
        answer: dict[str, Any] = json.loads(message.body)
        error = answer.get("error")
        if error is not None:
            raise errors.ApiError(
                f"{subject}: {error.get('description')}", api_code=error.get("code", 0), err_code=error.get("err_code", 0)
            )
        return answer

    async def ensure_consumer(self, spec: ConsumerSpec) -> None:
        config: dict[str, Any] = {
            "durable_name": spec.name,
            "name": spec.name,
            "ack_policy": "explicit",
            "ack_wait": int(spec.ack_wait_s * SECOND_NS),
            "deliver_policy": "new" if spec.deliver_new else "all",
            "max_ack_pending": spec.max_ack_pending,
            "max_deliver": -1,
            "max_waiting": 512,
        }
        subject = f"CONSUMER.CREATE.{spec.stream}.{spec.name}"
        if spec.filter_subject:
            config["filter_subject"] = spec.filter_subject
            subject = f"{subject}.{spec.filter_subject}"
        await self._api_call(subject, {"stream_name": spec.stream, "config": config})

    async def delete_consumer(self, stream: str, name: str) -> None:
        try:
            await self._api_call(f"CONSUMER.DELETE.{stream}.{name}")
        except errors.ApiError as error:
            if error.err_code not in _NOT_FOUND:
                raise

    async def consumer_info(self, stream: str, name: str) -> ConsumerInfo | None:
        try:
            answer = await self._api_call(f"CONSUMER.INFO.{stream}.{name}")
        except errors.ApiError as error:
            if error.err_code in _NOT_FOUND:
                return None
            raise
        return ConsumerInfo(
            pending=answer["num_pending"],
            ack_pending=answer["num_ack_pending"],
            ack_floor=answer["ack_floor"]["stream_seq"],
            delivered=answer["delivered"]["stream_seq"],
        )

    async def consumer_names(self, stream: str) -> list[str]:
        names: list[str] = []
        while True:
            answer = await self._api_call(f"CONSUMER.NAMES.{stream}", {"offset": len(names)})
            page = answer.get("consumers") or []
            names.extend(page)
            if not page or len(names) >= answer.get("total", 0):
                return names

    async def ensure_stream(self, stream: Stream, *, replicas: int = 1) -> None:
        try:
            await self._api_call(f"STREAM.CREATE.{stream.name}", stream.config(replicas=replicas))
        except errors.ApiError as error:
            if error.err_code != 10058:  # in use with other settings: an older release made it
                raise
            await self._api_call(f"STREAM.UPDATE.{stream.name}", stream.config(replicas=replicas))

    async def stream_info(self, name: str) -> StreamInfo | None:
        try:
            answer = await self._api_call(f"STREAM.INFO.{name}")
        except errors.ApiError as error:
            if error.err_code in _NOT_FOUND:
                return None
            raise
        state = answer["state"]
        return StreamInfo(state["messages"], state["bytes"], state["first_seq"], state["last_seq"], answer["config"])

    async def purge(self, stream: str, *, subject: str = "", below_sequence: int = 0) -> int:
        body: dict[str, Any] = {}
        if subject:
            body["filter"] = subject
        if below_sequence:
            body["seq"] = below_sequence
        answer = await self._api_call(f"STREAM.PURGE.{stream}", body, timeout_s=30.0)
        return int(answer.get("purged", 0))


def _publish_error(error: dict[str, Any]) -> errors.BusError:
    number, text = error.get("err_code", 0), error.get("description", "")
    if number in _WRONG_LAST:
        return errors.WrongLastSequence(text)
    if number in _FULL:
        return errors.StreamFull(text)
    return errors.ApiError(text, api_code=error.get("code", 0), err_code=number)


def _stored(message: Message, bus: NatsBus) -> Stored | None:
    if message.status[0] in (404, 408):
        return None
    headers = message.headers
    subject = headers.get("Nats-Subject")
    if subject is None:
        return None
    at = datetime.datetime.fromisoformat(headers["Nats-Time-Stamp"][:26].rstrip("Z") + "+00:00").timestamp()
    return Stored(subject, int(headers["Nats-Sequence"]), at, message)


@contextlib.asynccontextmanager
async def connect(
    *, url: str, instance: str, user: str = "", password: str = "", wait_s: float = 30.0
) -> AsyncIterator[NatsBus]:
    """A connected bus, closed on leaving. Waits for the broker, and later reconnects without end."""
    wire = Wire()
    bus = NatsBus(wire=wire, instance=instance)

    async def on_error(error: Exception) -> None:
        _log.warning("broker: %s", error)

    async def on_closed() -> None:
        bus.closed.set()

    async def on_disconnected() -> None:
        _log.warning("broker: connection lost")

    deadline = asyncio.get_running_loop().time() + wait_s
    while True:
        try:
            await wire.connect(
                servers=url.split(","),
                name=instance,
                user=user or None,
                password=password or None,
                inbox_prefix=bus._inbox.encode(),
                max_reconnect_attempts=-1,
                reconnect_time_wait=0.25,
                connect_timeout=5,
                ping_interval=10,
                max_outstanding_pings=2,
                allow_reconnect=True,
                error_cb=on_error,
                disconnected_cb=on_disconnected,
                reconnected_cb=bus.reconnected,
                closed_cb=on_closed,
                pending_size=8 * 1024 * 1024,
            )
            break
        except Exception as error:
            if asyncio.get_running_loop().time() >= deadline:
                raise errors.NotConnected(f"{url}: {error}") from error
            await asyncio.sleep(0.1)
    await bus.start()
    keeper = asyncio.get_running_loop().create_task(bus.keep(), name="bus-keeper")
    try:
        yield bus
    finally:
        keeper.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await keeper
        for pump in list(bus._pumps):
            await pump.stop()
        if not wire.is_closed:
            with contextlib.suppress(Exception):
                await asyncio.wait_for(wire.flush(), 2)
            await wire.close()
