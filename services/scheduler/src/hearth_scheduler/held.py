"""A call in this scheduler's hands, from its arrival until its run is stored."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum, auto

from hearth_contracts.calls import Call
from hearth_contracts.functions import FunctionVersion
from hearth_kit.message import Message
from hearth_scheduler.domain.placement import Wants
from hearth_scheduler.domain.queues import Line


class Stage(Enum):
    LOOKING = auto()
    """Something has to be asked before it may wait for a place."""
    QUEUED = auto()
    PLACING = auto()
    GONE = auto()
    """Settled, or let go."""


class Source(Enum):
    CALLS = "calls"
    JOBS = "jobs"
    OUTCOMES = "outcomes"


class Lanes:
    """The sync lane's streams live in the broker's memory. When it comes back as another process, their messages are gone,
    and acknowledging one would settle whichever has its number now."""

    def __init__(self) -> None:
        self.generation = 0
        self.created = ""
        self.doubtful = False
        """Connected anew, and not known yet whether to the same broker process."""

    def may_settle(self, letter: "Letter") -> bool:
        return not letter.sync or (letter.generation == self.generation and not self.doubtful)


@dataclass(frozen=True, slots=True)
class Letter:
    """A message that has to be settled once the call is somebody else's."""

    message: Message
    sync: bool
    generation: int


@dataclass(slots=True, eq=False)
class Held:
    call: Call
    body: bytes
    header: str
    """The traceparent it came with."""
    sync: bool
    source: Source
    arrived_at: float
    """Unix seconds."""
    touched_at: float
    """Monotonic: when the broker last heard that it is in hand."""
    letters: list[Letter]
    text: str = ""
    """The call's own JSON, while it is what arrived."""
    look: bool = False
    """Whether the job may have ended already."""
    anew: bool = False
    """Whether it is placed again by us: then its gateway is told first."""
    stage: Stage = Stage.LOOKING
    version: FunctionVersion | None = None
    wants: Wants | None = None
    line: "Line[Held] | None" = None
    beside: str = ""
    later: "Held | None" = field(default=None)
    """The same job under a later dispatch id, which came while this one was being stored."""
    ended: bool = False
    """A final of the job was heard while something was being asked about it."""
    note: str = ""
    """What people were told it waits for."""

    @property
    def dispatch(self) -> tuple[int, int]:
        return self.call.attempt, self.call.placement

    def add(self, letters: Iterable[Letter]) -> None:
        """Another delivery: in place of an older one of the same message, which can no longer be settled."""
        for letter in letters:
            same = [
                known
                for known in self.letters
                if known.message.sequence == letter.message.sequence and _stream(known) == _stream(letter)
            ]
            for known in same:
                self.letters.remove(known)
            self.letters.append(letter)


def _stream(letter: Letter) -> str:
    return letter.message.reply.split(".", 4)[2]


def dispatch_id(job: str, attempt: int, placement: int) -> str:
    return f"{job}.{attempt}.{placement}"
