"""The bus: what a service can do with the broker, and nothing more.

`Bus` is the port. `NatsBus` (nats_bus.py) is the real one, `MemoryBus` (memory_bus.py) the one for tests of a service's own
logic; `tests/test_bus_suite.py` holds both to the same behaviour.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from hearth_contracts.calls import Meta
from hearth_contracts.streams import Stream
from hearth_kit.message import Message, Sender

Handler = Callable[[Message], None]
"""Called for each message, from the read loop: must not block. Slow work goes into a task the handler starts."""


@dataclass(frozen=True, slots=True)
class Ack:
    """The broker has the message. `duplicate`: it had it before (or, on another subject, something with this id)."""

    stream: str
    sequence: int
    duplicate: bool


@dataclass(frozen=True, slots=True)
class Stored:
    """A message read back from a stream."""

    subject: str
    sequence: int
    at: float
    message: Message


class Subscription(Protocol):
    async def stop(self) -> None: ...


class Pump(Protocol):
    """A pre-armed pull on a durable consumer. Re-arms itself after reconnects, expiries and silence."""

    def grant(self, count: int) -> None:
        """Allow `count` more messages (only where the pump was opened with `auto=False`)."""
        ...

    @property
    def granted(self) -> int:
        """Messages allowed and not delivered yet."""
        ...

    async def stop(self) -> None:
        """Ask for nothing more. Messages already delivered can still be settled."""
        ...


@dataclass(frozen=True, slots=True)
class ConsumerSpec:
    """A durable pull consumer."""

    stream: str
    name: str
    filter_subject: str = ""
    ack_wait_s: float = 30.0
    max_ack_pending: int = -1
    deliver_new: bool = False
    ack_all: bool = False
    """An acknowledgement settles everything up to its message: for one reader that goes through the stream in order."""


@dataclass(frozen=True, slots=True)
class ConsumerInfo:
    pending: int
    ack_pending: int
    ack_floor: int
    """Everything up to this stream sequence is settled."""
    delivered: int


@dataclass(frozen=True, slots=True)
class StreamInfo:
    messages: int
    bytes: int
    first_sequence: int
    last_sequence: int
    config: Mapping[str, Any]
    created: str = ""
    """When the stream was made, as the broker writes it: sequences mean something only together with this."""


class Bus(Sender, Protocol):
    @property
    def instance(self) -> str: ...

    @property
    def connected(self) -> bool: ...

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
        """Publish into a stream and wait for its acknowledgement, trying again under the same id until the deadline.

        `expect_last=0`: only if the subject holds nothing yet. Raises a `BusError`; after `PublishTimeout` the message
        may still be stored later, which is why every publish carries an id or an expectation.
        """
        ...

    async def request(
        self, subject: str, body: bytes = b"", *, headers: Mapping[str, str] | None = None, timeout_s: float = 5.0
    ) -> Message:
        """Core request and reply. Raises `PublishTimeout`, or `StreamMissing` when nobody listens."""
        ...

    async def subscribe(self, subject: str, handler: Handler, *, queue: str = "") -> Subscription: ...

    async def pull(self, stream: str, consumer: str, handler: Handler, *, batch: int = 256, auto: bool = True,
                   lost: Callable[[str], None] | None = None) -> Pump:  # fmt: skip
        """Consume. `auto`: up to `batch` messages are always asked for; else only what is granted.

        `lost` is told when the consumer or its stream is gone; the pump keeps trying meanwhile.
        """
        ...

    async def get_last(self, stream: str, subject: str) -> Stored | None:
        """The last message of one subject, by direct get."""
        ...

    async def get_at(self, stream: str, sequence: int) -> Stored | None: ...

    async def get_next(self, stream: str, subject: str, sequence: int = 1) -> Stored | None:
        """The first message at or after `sequence` whose subject matches (wildcards allowed)."""
        ...

    async def get_last_each(self, stream: str, subjects: Sequence[str], *, messages_max: int = 0) -> list[Stored]:
        """The last message of every matching subject. With `messages_max` only about so many are read, the oldest first: of a
        stream that may hold millions."""
        ...

    async def ensure_consumer(self, spec: ConsumerSpec) -> None:
        """Make it, or leave it as it is when it exists with these settings (settings that may change are updated)."""
        ...

    async def delete_consumer(self, stream: str, name: str) -> None: ...

    async def consumer_info(self, stream: str, name: str) -> ConsumerInfo | None: ...

    async def consumer_names(self, stream: str) -> list[str]: ...

    async def ensure_stream(self, stream: Stream, *, replicas: int = 1) -> None: ...

    async def stream_info(self, name: str) -> StreamInfo | None: ...

    async def purge(self, stream: str, *, subject: str = "", below_sequence: int = 0) -> int: ...

    def on_reconnect(self, hook: Callable[[], Awaitable[None] | None]) -> None:
        """Call `hook` after each reconnect: streams in memory are gone then, and wake-ups were missed."""
        ...


def contract_headers(
    *, meta: Meta | None, contract: str, msg_id: str, traceparent: str, expect_last: int | None, headers: Mapping[str, str] | None
) -> dict[str, str]:
    """The headers of one message, in one place."""
    out: dict[str, str] = {}
    if contract:
        out["Hearth-Contract"] = contract
    if meta is not None:
        # What was never set is what the reader assumes. (Comparing every field with its default costs twice the time.)
        out["Hearth-Meta"] = meta.model_dump_json(exclude_unset=True)
    if msg_id:
        out["Nats-Msg-Id"] = msg_id
    if traceparent:
        out["traceparent"] = traceparent
    if expect_last is not None:
        out["Nats-Expected-Last-Subject-Sequence"] = str(expect_last)
    if headers:
        out.update(headers)
    return out


Chunks = AsyncIterator[bytes]
