"""Which records may leave the broker."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Held:
    """What the broker holds of RECORDS now."""

    messages: int
    bytes: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Budget:
    bytes_max: int
    records_max: int
    #: Past this share of the budget records leave before their grace has passed.
    pressure: float = 0.8


def leave_below(held: Held, *, stored_up_to: int, aged_up_to: int, budget: Budget) -> int:
    """Records below this sequence may leave; 0 when none may.

    `stored_up_to`: every consumer of the stream has settled everything up to here: nothing leaves before that, whatever
    the pressure. `aged_up_to`: older than the grace, during which a record is also the fence against a late second one.
    """
    want = aged_up_to
    if held.messages > budget.records_max:
        want = max(want, held.last - budget.records_max)
    if held.bytes > budget.bytes_max * budget.pressure:
        too_much = held.bytes - budget.bytes_max * budget.pressure / 2
        want = max(want, held.first + int((held.last - held.first) * too_much / held.bytes))
    below = min(want, stored_up_to) + 1
    return below if below > held.first and held.messages else 0
