"""Which bytes of a file a request wants (RFC 9110, section 14)."""

import re
from dataclasses import dataclass
from typing import Final

_SPEC: Final = re.compile(r"bytes[ \t]*=[ \t]*(?:([0-9]{1,20})-([0-9]{0,20})|-([0-9]{1,20}))[ \t]*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Span:
    start: int
    length: int


class Unsatisfiable(ValueError):
    """The range lies outside of the file."""


def wanted(header: str, size: int) -> Span | None:
    """None for all of it: also where the range cannot be read or asks for several parts, which a server may ignore. Raises
    `Unsatisfiable`."""
    match = _SPEC.fullmatch(header)
    if match is None:
        return None
    first, last, suffix = match.groups()
    if suffix is not None:
        length = min(int(suffix), size)
        if not length:
            raise Unsatisfiable
        return Span(size - length, length)
    start = int(first)
    end = min(int(last), size - 1) if last else size - 1
    if last and int(last) < start:
        return None  # not a range at all
    if start >= size:
        raise Unsatisfiable
    return Span(start, end - start + 1)


def matches(header: str, etag: str) -> bool:
    """Whether a list of entity tags (`If-None-Match`) names this one."""
    tags = [tag.strip() for tag in header.split(",")]
    return "*" in tags or etag in [tag.removeprefix("W/") for tag in tags]
