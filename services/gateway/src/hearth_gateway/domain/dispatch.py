"""Which reply of a sync call may be believed ("One answer, one record" in docs/architecture.md)."""

from typing import NamedTuple


class Dispatch(NamedTuple):
    """One placement of one attempt. Later ones compare greater."""

    attempt: int = 1
    placement: int = 0

    def republished(self) -> "Dispatch":
        """What the gateway publishes after a reconnect: the same attempt under another dispatch id."""
        return Dispatch(self.attempt, self.placement + 1)


FIRST = Dispatch()


def believed(earliest: Dispatch, reply: Dispatch) -> bool:
    """A reply counts unless its dispatch was superseded: by a republish, or by the scheduler's word that it places anew."""
    return reply >= earliest


def superseded(earliest: Dispatch, announced: Dispatch) -> Dispatch:
    """The new earliest dispatch; it never goes back."""
    return max(earliest, announced)
