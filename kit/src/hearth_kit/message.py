"""One message as it came off the wire, and the headers as bytes.

Headers are built and read here rather than by the client library: its reader goes through an e-mail parser's rules and
a dictionary per message, which is half of a hop's cost.
"""

import contextlib
from collections.abc import Mapping
from typing import Final, Protocol, TypeVar

from pydantic import ValidationError

from hearth_contracts.calls import Meta
from hearth_contracts.errors import UndecodableMessage
from hearth_kit.errors import NotConnected

M = TypeVar("M", bound=Meta)

META: Final = "Hearth-Meta"
CONTRACT: Final = "Hearth-Contract"
TRACEPARENT: Final = "traceparent"
MSG_ID: Final = "Nats-Msg-Id"
EXPECTED_LAST: Final = "Nats-Expected-Last-Subject-Sequence"
TTL: Final = "Nats-TTL"
ACK_PREFIX: Final = "$JS.ACK."

_LINE: Final = b"NATS/1.0\r\n"


class Sender(Protocol):
    def send(self, subject: str, body: bytes = b"", *, headers: Mapping[str, str] | None = None, reply: str = "") -> None:
        """Core publish: fire and forget."""
        ...


def encode_headers(headers: Mapping[str, str]) -> bytes:
    """Header block. Values hold no line breaks: ids are ours, metas are JSON, and the rest is checked here."""
    lines = [f"{key}: {value}" for key, value in headers.items()]
    text = "".join(lines)
    if "\r" in text or "\n" in text:
        broken = next(line for line in lines if "\r" in line or "\n" in line)
        raise ValueError(f"a line break in header {broken[:80]!r}")
    return ("\r\n".join(("NATS/1.0", *lines)) + "\r\n\r\n").encode()


def decode_headers(block: bytes) -> dict[str, str]:
    headers: dict[str, str] = {}
    for line in block.decode("utf-8", "replace").split("\r\n")[1:]:
        key, colon, value = line.partition(":")
        if colon:
            headers[key] = value.strip()
    return headers


def inline_status(block: bytes) -> tuple[int, str]:
    """The broker's own status line (`NATS/1.0 408 Request Timeout`), or (0, "") for an ordinary message."""
    if block.startswith(_LINE):
        return 0, ""
    first = block[len(_LINE) - 2 : block.find(b"\r\n")].strip()
    if not first:
        return 0, ""
    code, _, text = first.partition(b" ")
    return int(code), text.decode("utf-8", "replace")


class Message:
    """A message. Settling one that came without a consumer does nothing."""

    __slots__ = ("_block", "_fields", "_headers", "_sender", "body", "reply", "subject")

    def __init__(self, subject: str, reply: str, block: bytes, body: bytes, sender: Sender) -> None:
        self.subject = subject
        self.reply = reply
        self.body = body
        self._block = block
        self._headers: dict[str, str] | None = None
        self._fields: list[str] | None = None
        self._sender = sender

    @property
    def headers(self) -> dict[str, str]:
        if self._headers is None:
            self._headers = decode_headers(self._block) if self._block else {}
        return self._headers

    @property
    def status(self) -> tuple[int, str]:
        return inline_status(self._block) if self._block else (0, "")

    @property
    def traceparent(self) -> str:
        return self.headers.get(TRACEPARENT, "")

    def meta(self, model: type[M]) -> M:
        """The message's meta, or `UndecodableMessage`."""
        text = self.headers.get(META)
        if text is None:
            raise UndecodableMessage(f"{self.subject}: header {META} is missing")
        try:
            return model.model_validate_json(text)
        except ValidationError as error:
            raise UndecodableMessage(f"{self.subject}: {error.errors(include_url=False)[:3]}") from error

    # What the consumer knows, from the acknowledgement subject:
    # $JS.ACK.<stream>.<consumer>.<delivered>.<stream seq>.<consumer seq>.<time>.<pending>, and where the broker speaks the
    # second version, $JS.ACK.<domain>.<account>.<stream>...

    def _field(self, index: int) -> str:
        if self._fields is None:
            fields = self.reply.split(".") if self.consumed else []
            self._fields = fields[2:] if len(fields) >= 11 else fields
        return self._fields[index] if self._fields else "0"

    @property
    def consumed(self) -> bool:
        """Whether it came from a consumer, and so waits to be settled."""
        return self.reply.startswith(ACK_PREFIX)

    @property
    def delivered(self) -> int:
        """How often this message was delivered, this time included."""
        return int(self._field(4))

    @property
    def sequence(self) -> int:
        """Its sequence in the stream."""
        return int(self._field(5))

    @property
    def pending(self) -> int:
        """How many more wait for this consumer."""
        return int(self._field(8))

    # Settling. All are fire-and-forget: whoever needs certainty is idempotent instead. While the broker is away for so
    # long that nothing more can wait for it, they are dropped: the message comes again, as it does after any lost word.

    def ack(self) -> None:
        self._settle(b"+ACK")

    def nak(self, delay_s: float = 0) -> None:
        self._settle(b"-NAK" if not delay_s else b'-NAK {"delay": %d}' % int(delay_s * 1e9))

    def term(self, why: str) -> None:
        self._settle(b"+TERM " + why.encode()[:200])

    def in_progress(self) -> None:
        self._settle(b"+WPI")

    def _settle(self, word: bytes) -> None:
        if self.consumed:
            with contextlib.suppress(NotConnected):
                self._sender.send(self.reply, word)

    def respond(self, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        """Answer a request."""
        if self.reply:
            self._sender.send(self.reply, body, headers=headers)
