"""A call the scheduler has in its hands."""

from dataclasses import dataclass

from hearth_contracts.calls import Call
from hearth_contracts.enums import Lane
from hearth_contracts.functions import FunctionVersion, memory_class_mb
from hearth_kit.message import Message
from hearth_kit.tracing import Context
from hearth_scheduler.domain.placement import Need


@dataclass(slots=True, eq=False)
class Waiting:
    """Custody of one call: the message that brought it is settled when the next hop has it."""

    call: Call
    body: bytes
    message: Message | None
    """None for the run of a dead executor: its subject is purged when all of its runs are placed again."""
    need: Need
    version: FunctionVersion
    header: str
    """The traceparent it came with."""
    at: Context
    """Our span for it."""
    arrived_at: float
    kept_at: float
    """When the broker was last told that we still hold it."""
    wait_reason: str = ""
    source: str = "calls"

    @property
    def sync(self) -> bool:
        return self.call.lane is Lane.SYNC

    @property
    def dispatch(self) -> str:
        return f"{self.call.job}.{self.call.attempt}.{self.call.placement}"


def need_of(call: Call, version: FunctionVersion, not_on: frozenset[str] = frozenset()) -> Need:
    spec = version.spec
    return Need(
        key=version.key,
        pool=f"{spec.runtime.value}/{memory_class_mb(spec.memory_mb)}",
        backend=version.backend,
        runtime=spec.runtime.value,
        labels=spec.placement,
        not_on=not_on,
    )
