"""What a trace is made of: where one is in it, and what is written down of it."""

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

#: The four fields of every version, and what a later version than 00 may append.
_PATTERN: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")

Kind = Literal["internal", "server", "client", "producer", "consumer"]
Value = str | int | float | bool


@dataclass(frozen=True, slots=True)
class Context:
    """Where in which trace we are."""

    trace_id: str
    span_id: str
    sampled: bool

    @property
    def header(self) -> str:
        return f"00-{self.trace_id}-{self.span_id}-{'01' if self.sampled else '00'}"

    def child(self) -> "Context":
        """A new place below this one."""
        return Context(self.trace_id, secrets.token_hex(8), self.sampled)


def parse(header: str) -> Context | None:
    """The caller's `traceparent`, or None when it is absent or broken."""
    match = _PATTERN.fullmatch(header)
    if match is None or match[2] == "0" * 32 or match[3] == "0" * 16:
        return None
    if match[1] == "ff" or (match[1] == "00" and match[5]):
        return None
    return Context(match[2], match[3], bool(int(match[4], 16) & 1))


@dataclass(frozen=True, slots=True)
class Span:
    """One finished span. Times are Unix seconds."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent: str
    start: float
    end: float
    kind: Kind = "internal"
    attributes: Mapping[str, Value] = field(default_factory=dict)
    links: Sequence[str] = ()
    error: str = ""
