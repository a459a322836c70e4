"""How long a store that fails is left alone."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Breaker:
    """Closed while `failures` is 0. Each failure in a row doubles the wait, from `base_s` to `max_s`."""

    base_s: float
    max_s: float
    failures: int = 0
    since: float = 0
    """When the first of the row of failures came, Unix seconds."""
    why: str = ""

    @property
    def open(self) -> bool:
        return self.failures > 0

    @property
    def wait_s(self) -> float:
        return min(self.max_s, self.base_s * 2.0 ** (min(self.failures, 32) - 1)) if self.failures else 0.0

    def failed(self, why: str, now: float) -> "Breaker":
        return Breaker(self.base_s, self.max_s, self.failures + 1, self.since or now, why)

    def succeeded(self) -> "Breaker":
        return self if not self.failures else Breaker(self.base_s, self.max_s)
