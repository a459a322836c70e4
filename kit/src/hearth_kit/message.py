"""One message as it came off the wire, and the headers as bytes.

Headers are built and read here rather than by the client library: its reader goes through an e-mail parser's rules and
a dictionary per message, which is half of a hop's cost.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, TypeVar

from pydantic import ValidationError

from hearth_contracts.calls import Meta
from hearth_contracts.errors import UndecodableMessage

if TYPE_CHECKING:
    from hearth_kit.bus import Sender

M = TypeVar("M", bound=Meta)

META: Final = "Hearth-Meta"
CONTRACT: Final = "Hearth-Contract"
TRACEPARENT: Final = "traceparent"
MSG_ID: Final = "Nats-Msg-Id"
EXPECTED_LAST: Final = "Nats-Expected-Last-Subject-Sequence"
TTL: Final = "Nats-TTL"

_LINE: Final = b"NATS/1.0\r\n"


def encode_headers(headers: Mapping[str, str]) -> bytes:
    """Header block. Values hold no line breaks: ids are ours, metas are JSON, and the rest is checked here."""
    parts = [_LINE]
    for key, value in headers.items():
        if "\r" in value or "\n" in value:
            raise ValueError(f"a line break in header {key}")
        parts.append(f"{key}: {value}\r\n".encode())
    parts.append(b"\r\n")
    return b"".join(parts)


def decode_headers(block: bytes) -> dict[str, str]:
    headers: dict[str, str] = {}
    for line in block.split(b"\r\n")[1:]:
        key, colon, value = line.partition(b":")
        if colon:
            headers[key.decode("utf-8", "replace").strip()] = value.decode("utf-8", "replace").strip()
    return headers


def inline_status(block: bytes) -> tuple[int, str]:
    """The broker's own status line (`NATS/1.0 408 Request Timeout`), or (0, "") for an ordinary message."""
    first = block[len(_LINE) - 2 : block.find(b"\r\n")].strip()
    if not first:
        return 0, ""
    code, _, text = first.partition(b" ")
    return int(code), text.decode("utf-8", "replace")


class Message:
    """A message. Settling one that came without a consumer does nothing."""

    __slots__ = ("_block", "_fields", "_headers", "_sender", "body", "reply", "subject")

    def __init__(self, subject: str, reply: str, block: bytes, body: bytes, sender: "Sender") -> None:
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
    # $JS.ACK.<stream>.<consumer>.<delivered>.<stream seq>.<consumer seq>.<time>.<pending>

    def _field(self, index: int) -> str:
        if self._fields is None:
            self._fields = self.reply.split(".")
        return self._fields[index] if len(self._fields) >= 9 else "0"

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

    # Settling. All are fire-and-forget: whoever needs certainty is idempotent instead.

    def ack(self) -> None:
        if self.reply:
            self._sender.send(self.reply, b"+ACK")

    def nak(self, delay_s: float = 0) -> None:
        if self.reply:
            self._sender.send(self.reply, b"-NAK" if not delay_s else b'-NAK {"delay": %d}' % int(delay_s * 1e9))

    def term(self, why: str) -> None:
        if self.reply:
            self._sender.send(self.reply, b"+TERM " + why.encode()[:200])

    def in_progress(self) -> None:
        if self.reply:
            self._sender.send(self.reply, b"+WPI")

    def respond(self, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        """Answer a request."""
        if self.reply:
            self._sender.send(self.reply, body, headers=headers)
