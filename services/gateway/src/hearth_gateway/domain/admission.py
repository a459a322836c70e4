"""Whether one more call of a function may wait."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Load:
    """What a gateway knows of one function's queue."""

    waiting: int
    """Calls that wait, as the scheduler last said (up to 100 ms ago)."""
    held: int
    """Sync calls of this function that this gateway holds, waiting or running."""
    slots: int
    """Calls the whole fleet can run at once."""


def queue_full(load: Load, *, depth: int, running_max: int) -> bool:
    """The scheduler's count decides; between two of its reports, what this gateway holds beyond everything that could
    possibly run is certainly waiting."""
    return load.waiting >= depth or load.held - min(load.slots, running_max) >= depth
