"""Where a call runs. Pure: the fleet as it is known, and the time, are arguments.

Of what can run it: where an idle sandbox of this very version waits; where a booted sandbox of its runtime and size waits; any
free slot with memory for a new sandbox; any free slot, though another function's sandbox has to go; and last the short queue
of an executor on which this version lives. Among equals the one with the larger part of its slots free.
"""

from enum import StrEnum
from typing import Final, NamedTuple

from hearth_contracts.calls import DEPTH_MAX
from hearth_contracts.enums import Isolation, Reason
from hearth_contracts.functions import FunctionVersion, memory_class_mb
from hearth_scheduler.domain.fleet import Executor, Fleet, Needs, Unit


class Wants(NamedTuple):
    """What one function version asks of an executor. Made once per version."""

    key: str
    """`tenant.function.version`."""
    function: str
    """`tenant.function`."""
    needs: Needs
    generic: str
    """The kind of booted sandbox it can take over: `runtime/memory class`."""
    class_mb: int
    running_max: int
    keeps: bool
    """Whether its sandboxes outlive a call."""

    @classmethod
    def of(cls, version: FunctionVersion) -> "Wants":
        spec = version.spec
        class_mb = memory_class_mb(spec.memory_mb)
        return cls(
            key=version.key,
            function=f"{version.tenant}.{version.function}",
            needs=(spec.runtime.value, version.backend, tuple(sorted(spec.placement.items()))),
            generic=f"{spec.runtime.value}/{class_mb}",
            class_mb=class_mb,
            running_max=spec.scale.max,
            keeps=spec.isolation is not Isolation.FRESH,
        )


class Job(NamedTuple):
    """A call as far as placement cares."""

    wants: Wants
    depth: int = 0
    beside: str = ""
    """The executor that holds an earlier dispatch of the same attempt, and would answer both at once."""


class Why(StrEnum):
    """Why this executor: in the run, in the trace."""

    BESIDE = "same-executor"
    WARM = "assigned-warm"
    GENERIC = "generic-warm"
    FREE = "free"
    EVICT = "evict"
    QUEUE = "queue"


class Placed(NamedTuple):
    executor: Executor
    why: Why


class Hindrance(StrEnum):
    """What a waiting call waits for."""

    NOBODY = "no executor has its runtime and labels"
    BUSY = "every executor that could run it is busy"
    MAXIMUM = "as many run as its scale.max allows"


class Wait(NamedTuple):
    hindrance: Hindrance


class Reject(NamedTuple):
    """It will never run."""

    reason: Reason
    message: str


Decision = Placed | Wait | Reject

#: What a kind of place is worth, beside the part of the slots that is free (at most 1).
_GENERIC: Final = 4.0
_FREE: Final = 2.0


def place(job: Job, fleet: Fleet, now: float) -> Decision:
    wants = job.wants
    if job.depth > DEPTH_MAX:
        return Reject(Reason.RECURSION, f"a function called a function more than {DEPTH_MAX} deep")
    heard_since = now - fleet.suspect_s
    if job.beside:
        executor = fleet.executors.get(job.beside)
        if executor is not None and executor.admitted and executor.heard_at > heard_since:
            return Placed(executor, Why.BESIDE)
    if fleet.running.get(wants.function, 0) >= wants.running_max:
        return _wait(Hindrance.MAXIMUM)
    units = fleet.units.get(wants.key)
    if units is not None:
        executor = _warmest(units, wants, heard_since)
        if executor is not None:
            return Placed(executor, Why.WARM)
    matching = fleet.matching(wants.needs)
    best, score = None, 0.0
    kind = wants.generic
    for executor in matching:
        share = executor.share  # above nothing: a free slot
        if share > 0 and score < share + _GENERIC and executor.heard_at > heard_since:
            if executor.generic.get(kind, 0) > executor.generic_unseen.get(kind, 0):
                share += _GENERIC
            elif executor.memory_free_mb >= wants.class_mb:
                share += _FREE
            if share > score:
                best, score = executor, share
    if best is not None:
        return Placed(best, Why.GENERIC if score > _GENERIC else Why.FREE if score > _FREE else Why.EVICT)
    if units is not None:
        executor = _shortest(units, wants, heard_since)
        if executor is not None:
            return Placed(executor, Why.QUEUE)
    return _wait(Hindrance.BUSY if matching else Hindrance.NOBODY)


def _warmest(units: dict[str, Unit], wants: Wants, heard_since: float) -> Executor | None:
    best, share = None, 0.0
    for unit in units.values():
        executor = unit.executor
        if (
            executor.share > share  # a share above nothing is a free slot
            and (unit.warm > unit.unseen or (executor.known and unit.assigned > unit.placed))
            and executor.heard_at > heard_since
            and (not wants.needs[2] or _labelled(executor, wants))
        ):
            best, share = executor, executor.share
    return best


def _shortest(units: dict[str, Unit], wants: Wants, heard_since: float) -> Executor | None:
    best, score = None, 0.0
    for unit in units.values():
        executor = unit.executor
        if (
            executor.room > 0
            and not executor.owed
            and (unit.assigned or unit.placed)
            and executor.heard_at > heard_since
            and executor.room / executor.slots > score
            and (not wants.needs[2] or _labelled(executor, wants))
        ):
            best, score = executor, executor.room / executor.slots
    return best


def _labelled(executor: Executor, wants: Wants) -> bool:
    return all(executor.labels.get(key) == value for key, value in wants.needs[2])


def _wait(hindrance: Hindrance) -> Wait:
    return _WAITS[hindrance]


_WAITS: Final = {hindrance: Wait(hindrance) for hindrance in Hindrance}
