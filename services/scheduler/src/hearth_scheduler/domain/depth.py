"""How much of a function's backlog is taken in, and how much of it waits."""

from typing import Final

#: Jobs of one function in hand at most: what is in hand when a scheduler dies waits for its acknowledgement's deadline.
WINDOW_MAX: Final = 64


def window(*, behind: int, open_slots: int) -> int:
    """Jobs of one function to have in hand or asked for: one always, and as many more as could be placed now."""
    return 1 + max(0, min(behind, open_slots, WINDOW_MAX - 1))


def grant(*, wanted: int, held: int, asked: int) -> int:
    """How many more to ask for. In portions, since each asking costs as much as a job; but never is nothing asked for."""
    missing = wanted - held - asked
    return missing if missing > 0 and (asked == 0 or 4 * missing >= wanted) else 0


def waiting(*, held: int, behind: int) -> int:
    """Calls of one function that wait: in hand, and in the broker behind those."""
    return held + behind
