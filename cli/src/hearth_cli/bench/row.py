"""What a row of the table is, and the arithmetic behind its figures."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

#: Two sides of an interval for the median leave out so much together.
_DOUBT: Final = 0.1


@dataclass(frozen=True, slots=True)
class Row:
    """One measured line."""

    what: str
    value: str
    budget: str = ""
    ok: bool | None = None
    """Whether the budget was met; None where there is none, or where it cannot be told."""
    earlier: str = ""
    """What the earlier systems took."""
    figures: dict[str, float] = field(default_factory=dict[str, float])
    note: str = ""
    floor: str = ""
    """The value below which the work is not done."""
    above_floor: bool | None = None

    @property
    def verdict(self) -> str:
        if self.ok is None:
            return "unsure" if self.budget else ""
        return "met" if self.ok else "MISSED"

    @property
    def floor_verdict(self) -> str:
        if self.above_floor is None:
            return self.floor
        return f"{self.floor} {'met' if self.above_floor else 'MISSED'}"


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A row that is not there, and why."""

    what: str
    why: str


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of all are at or below; not a number when there are none."""
    if not values:
        return float("nan")
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * share - 1e-9) - 1)]


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """Where the median of what these were drawn from lies, nine times of ten, whatever its distribution: by the binomial
    counts of values below and above it. Without enough values for that, everything."""
    ordered, n = sorted(values), len(values)
    outside = 0.0
    for rank in range(n // 2):
        outside += math.comb(n, rank) / 2**n
        if 2 * outside > _DOUBT:
            return (ordered[rank - 1], ordered[n - rank]) if rank else (-math.inf, math.inf)
    return -math.inf, math.inf


def faults(failed: int, lost: Sequence[str], errors: Sequence[str]) -> str:
    """What went wrong under a load, in words; empty when nothing did."""
    parts: list[str] = []
    if failed:
        parts.append(f"{failed} calls failed: {errors[0][:200] if errors else ''}")
    if lost:
        parts.append(f"{len(lost)} answered calls without a record, such as {lost[0]}")
    return "; ".join(parts)
