"""The bus on a real nats-server."""

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from hearth_contracts.calls import Meta
from hearth_contracts.permissions import inbox
from hearth_kit import errors, metrics
from hearth_kit.bus import Ack, Handler, Pump, Subscription, contract_headers
from hearth_kit.jetstream import JetStream
from hearth_kit.message import Message, encode_headers
from hearth_kit.pump import PullPump
from hearth_kit.wire import Wire

_log = logging.getLogger(__name__)

#: An unanswered publish is sent again this often, under the same id.
RETRY_S: Final = 1.0
#: The broker is asked for a sign of life this often, and given up after two that stay away.
PING_S: Final = 3
#: How often deadlines of unanswered requests are looked at.
SWEEP_S: Final = 0.1
#: A reconnect hook that the broker could not serve yet is tried again after this.
HOOK_RETRY_S: Final = 0.25
#: Broker errors by number (server/errors.json): wrong last sequence (two forms), full in four ways, and headers
#: of more than 64 KiB, which no later try makes fit.
_WRONG_LAST: Final = frozenset({10071, 10164})
_FULL: Final = frozenset({10077, 10047, 10023, 10054})
_HEADERS_TOO_LARGE: Final = 10097


@dataclass(slots=True, eq=False)
class _Waiter:
    """A request that waits for its answer."""

    future: "asyncio.Future[Message]"
    deadline: float
    again: Callable[[], None] | None
    again_at: float
    unheard: bool = False
    """Whether the broker said, last time, that nobody listens there."""


@dataclass(slots=True, eq=False)
class _Subscription:
    wire: Wire
    sid: int

    async def stop(self) -> None:
        await self.wire.unlisten(self.sid)


class NatsBus(JetStream):
    """One connection. Made by `connect`."""

    def __init__(self, *, wire: Wire, instance: str, api_prefix: str = "$JS.API") -> None:
        super().__init__(api_prefix)
        self._wire = wire
        self._instance = instance
        self._inbox = inbox(instance)
        self._waiters: dict[int, _Waiter] = {}
        self._collectors: dict[int, Callable[[Message], None]] = {}
        self._next = 0
        self._pumps: set[PullPump] = set()
        self._reconnect_hooks: list[Callable[[], Awaitable[None] | None]] = []
        self._hooks_running: asyncio.Task[None] | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._mux = f"{self._inbox}.m."
        self.closed = asyncio.Event()
        """Set when the connection has ended for good: the process must end too."""
        self.reconnects = 0

    # Life

    async def start(self) -> None:
        await self._wire.listen(f"{self._mux}*", self._answered)
        self._keeper = self._loop.create_task(self._keep(), name="bus-keeper")

    async def stop(self) -> None:
        """Stop the pumps, send what waits, close. Unanswered questions fail."""
        for task in (self._keeper, self._hooks_running):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        await asyncio.gather(*(pump.stop() for pump in list(self._pumps)))
        await self._wire.end()
        for waiter in self._waiters.values():
            if not waiter.future.done():
                waiter.future.set_exception(errors.NotConnected("the bus was closed"))
        self._waiters.clear()

    async def _keep(self) -> None:
        """Deadlines, retries and silent pumps. Runs as long as the bus."""
        while True:
            await asyncio.sleep(SWEEP_S)
            now = self._loop.time()
            for number, waiter in list(self._waiters.items()):
                if waiter.future.done():
                    self._waiters.pop(number, None)
                elif now >= waiter.deadline:
                    self._waiters.pop(number, None)
                    waiter.future.set_exception(errors.StreamMissing() if waiter.unheard else errors.PublishTimeout())
                elif waiter.again is not None and now >= waiter.again_at:
                    self._send_again(waiter, now)
            for pump in list(self._pumps):
                pump.check(now)
            await self._wire.supervise()

    def _send_again(self, waiter: _Waiter, now: float) -> None:
        waiter.again_at = now + RETRY_S
        assert waiter.again is not None
        metrics.REPEATS.inc()
        with contextlib.suppress(errors.BusError):
            waiter.again()

    async def reconnected(self) -> None:
        """Re-arm: pulls are gone with the connection, and a stream in memory may be new."""
        self.reconnects += 1
        metrics.RECONNECTS.inc()
        _log.info("broker: connected again")
        now = self._loop.time()
        for waiter in list(self._waiters.values()):
            if waiter.again is not None and not waiter.future.done():
                self._send_again(waiter, now)
        for pump in list(self._pumps):
            pump.rearm()
        # Not here: the library waits for this call, and what the hooks read may come only once the broker has recovered.
        if self._hooks_running is not None:
            self._hooks_running.cancel()
        self._hooks_running = self._loop.create_task(self._run_hooks(), name="reconnect-hooks")

    async def _run_hooks(self) -> None:
        left = list(self._reconnect_hooks)
        while left:
            failed: list[Callable[[], Awaitable[None] | None]] = []
            for hook in left:
                try:
                    result = hook()
                    if result is not None:
                        await result
                except errors.BusError as error:
                    _log.warning("a reconnect hook is tried again: %s", error)
                    failed.append(hook)
                except Exception:
                    _log.exception("a reconnect hook failed")
            left = failed
            if left:
                await asyncio.sleep(HOOK_RETRY_S)

    @property
    def instance(self) -> str:
        return self._instance

    @property
    def connected(self) -> bool:
        return bool(self._wire.is_connected)

    @property
    def silent_s(self) -> float:
        """How long the broker has said nothing: it is asked for a sign every `PING_S`."""
        return self._loop.time() - self._wire.heard_at

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

    def _ask_many(self, subject: str, body: bytes, collect: Callable[[Message], None]) -> Callable[[], None]:
        self._next += 1
        number = self._next
        self._collectors[number] = collect
        self._wire.send(subject, body, f"{self._mux}{number}")
        return lambda: self._collectors.pop(number, None) and None

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
                waiter.unheard = True
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
        answer = json.loads(message.body.decode())
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


def _publish_error(error: dict[str, Any]) -> errors.BusError:
    number, text = error.get("err_code", 0), error.get("description", "")
    if number in _WRONG_LAST:
        return errors.WrongLastSequence(text)
    if number in _FULL:
        return errors.StreamFull(text)
    if number == _HEADERS_TOO_LARGE:
        return errors.PayloadTooLarge(text)
    return errors.ApiError(text, api_code=error.get("code", 0), err_code=number)


@contextlib.asynccontextmanager
async def connect(*, url: str, instance: str, user: str = "", password: str = "", wait_s: float = 30.0) -> AsyncIterator[NatsBus]:
    """A connected bus, closed on leaving. Waits so long for the broker at first, and later reconnects without end."""
    wire = Wire()
    bus = NatsBus(wire=wire, instance=instance)
    try:
        await _open(wire, bus, url=url, user=user, password=password, wait_s=wait_s)
        await bus.start()
        yield bus
    finally:
        await bus.stop()


async def _open(wire: Wire, bus: NatsBus, *, url: str, user: str, password: str, wait_s: float) -> None:
    last = "no answer"

    async def on_error(error: Exception) -> None:
        nonlocal last
        if not (isinstance(error, OSError) and last.startswith("nats:")):  # the broker's own words say more than a reset
            last = str(error) or type(error).__name__
        if wire.is_connected:  # refusals: this user may not do that
            _log.warning("broker: %s", error)

    async def on_closed() -> None:
        bus.closed.set()

    async def on_disconnected() -> None:
        if not wire.is_closed:
            _log.warning("broker: connection lost")

    try:
        async with asyncio.timeout(wait_s):  # the library itself would try for ever
            await wire.connect(
                servers=url.split(","),
                name=bus.instance,
                user=user or None,
                password=password or None,
                inbox_prefix=inbox(bus.instance).encode(),
                max_reconnect_attempts=-1,
                reconnect_time_wait=0.25,  # pyright: ignore[reportArgumentType]
                connect_timeout=5,
                ping_interval=PING_S,
                max_outstanding_pings=2,
                allow_reconnect=True,
                error_cb=on_error,
                disconnected_cb=on_disconnected,
                reconnected_cb=bus.reconnected,
                closed_cb=on_closed,
                pending_size=8 * 1024 * 1024,
            )
    except TimeoutError as error:
        raise errors.NotConnected(f"{url}: {last}") from error
