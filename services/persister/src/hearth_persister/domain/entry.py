"""A record as it comes from the stream: its bytes, kept as they are, and the few words that batching and the index need."""

from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from pydantic_core import from_json

from hearth_contracts import names
from hearth_contracts.enums import Reason, Start, State
from hearth_contracts.errors import InvalidName, UndecodableMessage

_PREFIX: Final = "hearth.v1.records."
_STATES: Final = frozenset(state.value for state in State)
_REASONS: Final = frozenset(reason.value for reason in Reason)
_STARTS: Final = frozenset(start.value for start in Start)


class LargeBody(NamedTuple):
    """A body that lies in an object."""

    part: str
    object: str
    size: int


def output_part(number: int) -> str:
    """What the n-th output file of a record, from 1, is called here: names that people chose reach no key."""
    return f"output-{number}"


class Summary(NamedTuple):
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


class Decoded(NamedTuple):
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
        words = from_json(meta)
        if (words["tenant"], words["function"], words["job"]) != (tenant, function, job) or names.function_of(job) != function:
            raise UndecodableMessage(f"{subject}: the meta names another job")
        names.name("tenant", tenant)
        return _decoded(tenant, function, job, words)
    except (ValueError, KeyError, TypeError, AttributeError, InvalidName) as error:
        raise UndecodableMessage(f"{subject}: {type(error).__name__}: {error}") from error


def _decoded(tenant: str, function: str, job: str, words: dict[str, Any]) -> Decoded:
    ending: dict[str, Any] = words["ending"]
    timings: dict[str, Any] = ending.get("timings") or {}
    usage: dict[str, Any] = ending.get("usage") or {}
    reason, start = ending.get("reason") or "", ending.get("start") or "warm"
    if ending["state"] not in _STATES or start not in _STARTS or (reason and reason not in _REASONS):
        raise ValueError("its state, reason or start is not one that there is")
    summary = Summary(
        job, tenant, function, int(words["version"]), str(words["lane"]), ending["state"], reason, start,
        int(ending.get("attempt") or 1), float(timings.get("submitted_at") or 0) or names.made_at(job),
        float(timings.get("finished_at") or 0), float(usage.get("wall_ms") or 0),
    )  # fmt: skip
    large: tuple[LargeBody, ...] = ()
    for part, described in (("input", words.get("input")), ("result", ending.get("result")), ("log", words.get("log"))):
        if described and (object_id := described.get("object")):
            large += (LargeBody(part, names.token("object", object_id), int(described.get("size") or 0)),)
    for number, file in enumerate(ending.get("outputs") or (), 1):
        large += (LargeBody(output_part(number), names.token("object", file["object"]), int(file["size"])),)
    return Decoded(summary, large, bool(words.get("persist", True)))
