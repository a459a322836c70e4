"""A record as it comes from the stream: its bytes, kept as they are, and the few words that batching and the index need."""

import json
from dataclasses import dataclass
from typing import Final

from hearth_contracts import names
from hearth_contracts.enums import Reason, Start, State
from hearth_contracts.errors import InvalidName, UndecodableMessage

_PREFIX: Final = "hearth.v1.records."
_STATES: Final = frozenset(state.value for state in State)
_REASONS: Final = frozenset(reason.value for reason in Reason)
_STARTS: Final = frozenset(start.value for start in Start)


@dataclass(frozen=True, slots=True)
class LargeBody:
    """A body that lies in an object."""

    part: str
    object: str
    size: int


@dataclass(frozen=True, slots=True)
class Summary:
    """What a page of history shows of a job."""

    job: str
    tenant: str
    function: str
    version: int
    lane: str
    state: str
    reason: str
    start: str
    attempt: int
    submitted_at: float
    finished_at: float
    wall_ms: float


@dataclass(slots=True, eq=False)
class Entry:
    """One record of the stream."""

    sequence: int
    at_us: int
    """When the stream took it, microseconds of the broker's clock."""
    meta: bytes
    body: bytes
    summary: Summary
    large: tuple[LargeBody, ...] = ()
    traceparent: str = ""
    """Set for sampled records only."""
    received_at: float = 0
    attempt: int = 1

    @property
    def weight(self) -> int:
        """Bytes it holds in memory, roughly: its own and those of the objects around them."""
        return len(self.meta) + len(self.body) + 1500


@dataclass(frozen=True, slots=True)
class Decoded:
    """The words of a record, and whether its function wants it kept."""

    summary: Summary
    large: tuple[LargeBody, ...]
    persist: bool


def decode(subject: str, meta: str) -> Decoded:
    """Read a record's meta as far as needed: a whole validated model costs three times as much, and readers make one anyway.

    Who it belongs to is taken from the subject, which the broker has checked, and must agree with the meta.
    """
    try:
        tenant, function, job = subject.removeprefix(_PREFIX).split(".")
        words = json.loads(meta)
        if words["job"] != job or words["tenant"] != tenant or names.function_of(job) != function:
            raise UndecodableMessage(f"{subject}: the meta names another job")
        names.name("tenant", tenant)
        return _decoded(words)
    except (ValueError, KeyError, TypeError, AttributeError, InvalidName, RecursionError) as error:
        raise UndecodableMessage(f"{subject}: {type(error).__name__}: {error}") from error


def _decoded(words: dict[str, object]) -> Decoded:
    ending: dict[str, object] = words["ending"]  # pyright: ignore[reportAssignmentType]
    timings: dict[str, float] = ending.get("timings") or {}  # pyright: ignore[reportAssignmentType]
    usage: dict[str, float] = ending.get("usage") or {}  # pyright: ignore[reportAssignmentType]
    summary = Summary(
        job=words["job"],  # pyright: ignore[reportArgumentType]
        tenant=words["tenant"],  # pyright: ignore[reportArgumentType]
        function=words["function"],  # pyright: ignore[reportArgumentType]
        version=int(words["version"]),  # pyright: ignore[reportArgumentType]
        lane=str(words["lane"]),
        state=_one_of(_STATES, ending["state"]),
        reason=_one_of(_REASONS, ending["reason"]) if ending.get("reason") else "",
        start=_one_of(_STARTS, ending.get("start") or "warm"),
        attempt=int(ending.get("attempt") or 1),  # pyright: ignore[reportArgumentType]
        submitted_at=float(timings.get("submitted_at") or 0) or names.made_at(words["job"]),  # pyright: ignore[reportArgumentType]
        finished_at=float(timings.get("finished_at") or 0),
        wall_ms=float(usage.get("wall_ms") or 0),
    )
    if summary.function != names.function_of(summary.job):
        raise ValueError("the meta names another function")
    large: tuple[LargeBody, ...] = ()
    for part, described in (("input", words.get("input")), ("result", ending.get("result")), ("log", words.get("log"))):
        if described and described.get("object"):  # pyright: ignore[reportAttributeAccessIssue]
            large += (LargeBody(part, names.token("object", described["object"]), int(described.get("size") or 0)),)  # pyright: ignore[reportIndexIssue, reportAttributeAccessIssue]
    return Decoded(summary, large, bool(words.get("persist", True)))


def _one_of(allowed: frozenset[str], value: object) -> str:
    if value not in allowed:
        raise ValueError(f"{value!r} is not one of {', '.join(sorted(allowed))}")
    return str(value)
