"""Which reply of a sync call may be believed ("One answer, one record" in docs/architecture.md)."""

from typing import Final, NamedTuple


class Dispatch(NamedTuple):
    """One placement of one attempt. Later ones compare greater."""

    attempt: int = 1
    placement: int = 0

    def republished(self) -> "Dispatch":
        """What the gateway publishes after a reconnect: the same attempt under another dispatch id."""
        return Dispatch(self.attempt, self.placement + 1)


FIRST = Dispatch()

#: A first submission is on its way for at most so long: its PENDING and its call, each with the time of one publish.
ON_ITS_WAY_S: Final = 30.0
#: For so long a stream remembers the id of a dispatch.
REMEMBERED_S: Final = 600.0


def repeated(age_s: float) -> int:
    """The placement under which a call is submitted that was asked for so long ago and of which there is no trace. At first it
    is the same, so that a submission that is still on its way and this one are one call; later it is higher than any before,
    because whoever settled a dispatch would take no notice of it."""
    return 0 if age_s < ON_ITS_WAY_S else 1 + int(age_s // REMEMBERED_S)


def believed(earliest: Dispatch, reply: Dispatch) -> bool:
    """A reply counts unless its dispatch was superseded: by a republish, or by the scheduler's word that it places anew."""
    return reply >= earliest


def superseded(earliest: Dispatch, announced: Dispatch) -> Dispatch:
    """The new earliest dispatch; it never goes back."""
    return max(earliest, announced)
