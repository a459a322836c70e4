"""A run in this executor's hands, from its arrival to its acknowledgement."""

import asyncio
from dataclasses import dataclass, field
from enum import Enum, IntEnum, auto

from hearth_contracts.calls import Run
from hearth_executor.call_log import CallLog
from hearth_kit.message import Message
from hearth_kit.tracing import Context


class Phase(IntEnum):
    WAITING = 0
    RUNNING = 1
    ENDING = 2


class Stop(Enum):
    """Why a run is stopped before its function has ended."""

    CANCELLED = auto()
    DRAINED = auto()
    DISOWNED = auto()
    """The scheduler has given this executor up: the run is somebody else's now, and not a word of it may be published."""
    TOO_LARGE = auto()
    INPUT_LOST = auto()


@dataclass(slots=True, eq=False)
class Held:
    run: Run
    body: bytes
    sync: bool
    key: str
    """`tenant.function.version`."""
    header: str
    """The traceparent it came with."""
    at: Context
    """The span of its processing here."""
    arrived_at: float
    """Unix seconds."""
    messages: list[Message]
    """What has to be acknowledged in the end. Newest last."""
    look_first: bool = False
    phase: Phase = Phase.WAITING
    started_at: float = 0.0
    stated_at: float = 0.0
    """When PROCESSING was last published."""
    stop: Stop | None = None
    task: "asyncio.Task[None] | None" = None
    log: CallLog | None = None
    connection: int = field(default=0)
    unanswered: bool = False
    """The answer to a waiting caller did not reach the wire."""

    def stop_for(self, why: Stop) -> None:
        """Stop it now: a waiting one by whoever holds the queue, a running one by cancelling its task, an ending one never."""
        if self.phase is Phase.ENDING or self.stop is not None:
            return
        self.stop = why
        # Asked for by the run's own task, the exception it is about to raise ends it.
        if self.phase is Phase.RUNNING and self.task is not None and self.task is not asyncio.current_task():
            self.task.cancel()

    def in_progress(self) -> None:
        if self.messages:
            self.messages[-1].in_progress()

    def ack(self) -> None:
        for message in self.messages:
            message.ack()


def dispatch_id(job: str, attempt: int, placement: int) -> str:
    return f"{job}.{attempt}.{placement}"
